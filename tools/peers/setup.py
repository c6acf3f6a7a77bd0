"""The virtual environment with the engines to compare with, at the versions of requirements.txt. Standard library only.

Two of them do not install as they are:

torch on PyPI is a CUDA build. Its CUDA libraries are gigabytes, and none of their functions is called on a CPU, but the loader
wants every name that torch's own libraries mention. Shared libraries of the same names stand in for them: registering kernels
succeeds, everything else answers 100, "no CUDA-capable device is detected".

llama.cpp is built from source for this very CPU (GGML_NATIVE). GCC 12.2 believes that `_tile_loadconfig` reads 8 bytes of a
configuration of 64 (its amxtileintrin.h casts it to a pointer) and drops stores to the rest; the first matrix
multiplication with AMX then dies of a general protection fault. -fno-dse and -fno-tree-dse keep the stores.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")
LLAMA_BUILD = "-DGGML_NATIVE=ON '-DCMAKE_CXX_FLAGS=-fno-dse -fno-tree-dse'"
MARK = "abruzzi-peers"  # A file in the environment: the requirements and build options it was made of.
# Names that torch takes from CUDA's libraries: cudaMalloc, __cudaRegisterFatBinary, cublasCreate_v2, ncclSend, nvrtcVersion...
CUDA_NAME = re.compile(r"_*(cu|nccl|nv)\w+")
MISSING = re.compile(r"^\s*(\S+\.so\S*) => not found", re.MULTILINE)


class Environment:
    """A virtual environment that is ready."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "bin/python"
        self.stand_ins = folder / "stand-ins"

    def variables(self):
        """What to run `python` with."""
        own = os.environ.get("LD_LIBRARY_PATH")
        path = f"{self.stand_ins}:{own}" if own else str(self.stand_ins)
        # llama.cpp would start a debugger to print where it aborted.
        return os.environ | {"LD_LIBRARY_PATH": path, "GGML_NO_BACKTRACE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def versions():
    """The pinned packages, by name."""
    lines = REQUIREMENTS.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def prepare(folder):
    """The environment at `folder`; made, or brought to the pinned versions, if it is not there yet."""
    environment = Environment(folder.resolve())
    want = REQUIREMENTS.read_text() + LLAMA_BUILD
    mark = environment.folder / MARK
    if mark.is_file() and mark.read_text() == want:
        return environment
    if environment.folder.exists() and not environment.python.exists():
        sys.exit(f"{folder}: exists and is no virtual environment; name another --venv or remove it")
    for tool in ["gcc", "g++", "nm", "ldd"]:
        if shutil.which(tool) is None:
            sys.exit(f"{tool} not found; llama.cpp is built from source: install GCC and binutils")
    print(f"{folder}: installing the packages of {REQUIREMENTS.name}; building llama.cpp takes minutes", flush=True)
    if not environment.python.exists():
        call([sys.executable, "-m", "venv", str(environment.folder)])
    build = {"CMAKE_ARGS": LLAMA_BUILD, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    # A wheel that pip has kept may come from another build, or for another CPU.
    fresh = ["--no-cache-dir", "--force-reinstall", "--no-binary", "llama-cpp-python"]
    pip = [str(environment.python), "-m", "pip", "install", "--quiet", "--no-deps"]
    call([*pip, *fresh, "-r", str(REQUIREMENTS)], os.environ | build)
    stand_in(environment)
    mark.write_text(want)
    return environment


def call(command, variables=None):
    """Runs a command that must succeed."""
    done = subprocess.run(command, env=variables, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")


def stand_in(environment):
    """Makes the libraries that stand in for CUDA's."""
    (torch,) = environment.folder.glob("lib/python*/site-packages/torch/lib")
    own = sorted(torch.glob("*.so*"))
    environment.stand_ins.mkdir(exist_ok=True)
    listed = "".join(output(["nm", "-D", "--undefined-only", str(lib)]) for lib in own)
    names = sorted({word.split("@")[0] for word in listed.split() if CUDA_NAME.fullmatch(word.split("@")[0])})
    missing = sorted({name for lib in own for name in MISSING.findall(output(["ldd", str(lib)]))})
    source = environment.stand_ins / "stand-ins.c"
    source.write_text("".join(f"long {name}(void) {{ return {0 if name[0] == '_' else 100}; }}\n" for name in names))
    here = str(environment.stand_ins)
    # The names are in a library of their own: where a name has a version, the library of that version must not be the one.
    build = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-L{here}", "-Wl,--no-as-needed"]
    call([*build, "-o", f"{here}/libstand-ins.so", "-Wl,-soname,libstand-ins.so", str(source)])
    empty = environment.stand_ins / "empty.c"
    empty.write_text("")
    for name in missing:
        call([*build, "-o", f"{here}/{name}", f"-Wl,-soname,{name}", str(empty), "-lstand-ins"])


def output(command):
    """What a command prints; what it fails on has nothing to say."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
