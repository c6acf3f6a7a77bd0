#!/usr/bin/env python3
"""Measures abruzzi beside llama.cpp and PyTorch on this machine's CPU, on the same synthetic weights.

Usage: cargo build --release --bin abruzzi && python3 tools/bench_peers.py [--out TABLE.md]
The first run makes a virtual environment with the other engines (network; llama.cpp is built for this CPU, minutes), two
checkpoints with `abruzzi synth` and four GGUF files of them (42 GB in all at the default size); later runs find them in --cache.
`--model DIR` takes checkpoints of `abruzzi synth` that are there already; they get a vocabulary if they have none.

Every round runs each engine once, in turn, in a process of its own: load, prefill the same prompt, decode greedily. The first
round does not count. What is compared, how the formats correspond and what is not comparable: docs/notes/peers.md.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import subprocess
import sys

from peers import setup
from peers.checkpoint import Checkpoint, add_vocabulary

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKERS = ROOT / "tools/peers"
# By the format of a checkpoint: the GGUF files made of it, and what their weights are called in the table.
GGUF_TYPES = {
    "fp8-block": {"matched": "Q8_0, the rest BF16", "q8_0": "Q8_0 throughout"},
    "int4-g32": {"matched": "Q4_0 experts, the rest BF16", "q4_0": "Q4_0, head Q8_0"},
}
OWN_NAMES = {"fp8-block": "FP8 block, the rest BF16", "int4-g32": "INT4 g32 experts, the rest BF16"}
CHECK_PROMPTS, CHECK_TOKENS = 4, 24
# Median cosine of the logits where the formats correspond. Rounding and the experts it makes a token choose otherwise cost less
# than this; a wrong conversion costs nearly all.
LEAST_COSINE = 0.98
# Where a page of several commands has the table.
BEGIN, END = "<!-- written by tools/bench_peers.py -->", "<!-- end -->"


class Engine:
    """A line of the table: an engine with a model and a number of threads."""

    def __init__(self, name, weights, threads, token_bytes, measure):
        self.name, self.weights, self.threads, self.token_bytes = name, weights, threads, token_bytes
        self.measure = measure
        self.prefill, self.decode = [], []

    def round(self, counts):
        result = self.measure()
        if counts:
            self.prefill.append(result["prefill_tok_s"])
            self.decode.append(result["decode_tok_s"])
        print(
            f"  {self.name:<10} {self.weights:<32} {self.threads} threads  "
            f"prefill {result['prefill_tok_s']:8.2f} tok/s  decode {result['decode_tok_s']:7.3f} tok/s",
            flush=True,
        )


class Others:
    """How much of the CPUs goes to processes that are not this one's: a busy machine spoils the rates."""

    def __init__(self):
        self.most = 0.0
        self.mark()

    def mark(self):
        self.at, self.busy, self.own = os.times().elapsed, busy_seconds(), sum(os.times()[:4])

    def count(self):
        """Takes what went by since the mark into account."""
        others = busy_seconds() - self.busy - (sum(os.times()[:4]) - self.own)
        self.most = max(self.most, others / (os.times().elapsed - self.at) / (os.cpu_count() or 1))
        self.mark()


def busy_seconds():
    """Seconds of all CPUs together that were not idle, nor waiting, since the start; 0 where the kernel does not say."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def run(command, variables=None):
    """A command's standard output; if it fails, the end of what it said, and the end."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        how = f"signal {-done.returncode} (9: out of memory?)" if done.returncode < 0 else f"exit code {done.returncode}"
        sys.exit(f"{said}\n{' '.join(map(str, command))[:300]}: {how}")
    return done.stdout


class Bench:
    """Where everything is."""

    def __init__(self, args):
        self.args = args
        self.abruzzi = args.abruzzi.resolve()
        if not os.access(self.abruzzi, os.X_OK):
            sys.exit(f"{args.abruzzi}: no such program; cargo build --release --bin abruzzi, or name another --abruzzi")
        self.cache = args.cache
        self.cache.mkdir(parents=True, exist_ok=True)
        self.environment = setup.prepare(args.venv or self.cache / "venv")

    def worker(self, name, *arguments):
        """Runs one of tools/peers; the JSON it prints last."""
        command = [self.environment.python, WORKERS / name, *arguments]
        return json.loads(run([str(word) for word in command], self.environment.variables()).splitlines()[-1])

    def checkpoints(self):
        """Those given, or one a format made by `abruzzi synth`."""
        if self.args.model:
            return [Checkpoint(folder) for folder in self.args.model]
        made, like = [], pathlib.Path(self.args.like)
        # Two configurations may have the same file name.
        own = f"-{hashlib.sha256(like.read_bytes()).hexdigest()[:8]}" if like.is_file() else ""
        for name in GGUF_TYPES:
            folder = self.cache / f"{like.stem}{own}-{self.args.layers}x{self.args.experts}-{name}"
            if not folder.exists():
                size = ["--layers", str(self.args.layers), "--experts", str(self.args.experts)]
                print(run([self.abruzzi, "synth", "-o", folder, "--like", self.args.like, *size, "--format", name]), end="")
            made.append(Checkpoint(folder))
        return made

    def gguf(self, checkpoint, kind):
        """The GGUF file of a checkpoint; kept, and made anew when the checkpoint or the converter is another."""
        file = self.cache / f"{checkpoint.folder.resolve().name}.{kind}.gguf"
        note = file.with_suffix(".json")
        converter = (WORKERS / "convert.py").read_text()
        origin = checkpoint.identity() | {"converter": converter, "gguf": setup.versions()["gguf"]}
        if file.exists() and note.exists() and json.loads(note.read_text()) == origin:
            return file
        note.unlink(missing_ok=True)
        command = [self.environment.python, WORKERS / "convert.py", checkpoint.folder, file, "--type", kind]
        print(run([str(word) for word in command], self.environment.variables()).strip().splitlines()[-1], flush=True)
        note.write_text(json.dumps(origin))
        return file

    def measure_abruzzi(self, checkpoint, prompt, threads):
        """One run of `abruzzi generate`."""
        command = [self.abruzzi, "generate", "-m", checkpoint.folder, "--device", "cpu", "--threads", str(threads)]
        command += ["-f", prompt, "-n", str(self.args.decode + 1), "-c", str(self.args.prompt + self.args.decode + 1)]
        command += ["--temp", "0", "--ignore-eos", "--json"]
        events = [json.loads(line) for line in run(command).splitlines()]
        done = next((e for e in events if e.get("event") == "done"), None)
        if done is None or done["prompt_tokens"] != self.args.prompt:
            got = "nothing" if done is None else f"a prompt of {done['prompt_tokens']} tokens"
            sys.exit(f"{checkpoint.folder}: abruzzi reports {got}, expected {self.args.prompt}; is its vocabulary another?")
        return done

    def measure_llama(self, file, ids, threads):
        """One run of llama.cpp."""
        return self.worker("llama.py", "rate", file, "--ids", ids, "--decode", self.args.decode, "--threads", threads)

    def references(self, checkpoint):
        """The logits that abruzzi has for a few prompts: options for the worker that compares."""
        options = []
        for seed in range(CHECK_PROMPTS):
            ids, file = joined(prompt_ids(CHECK_TOKENS, seed)), self.cache / f"check-{seed}.safetensors"
            run([self.abruzzi, "logits", "-m", checkpoint.folder, "--device", "cpu", "--tokens", ids, "-o", file])
            options += ["--ids", ids, "--reference", file]
        return options


def prompt_ids(count, seed):
    """Printable ASCII characters, which are tokens of the same number in the vocabulary of a synthetic checkpoint."""
    generator = random.Random(seed)
    return [generator.randrange(33, 127) for _ in range(count)]


def joined(ids):
    return ",".join(map(str, ids))


def engines(bench, prompt, ids, checks):
    """All lines of the table; makes the GGUF files, and appends what the comparison of logits found to `checks`."""
    lines = []
    for checkpoint in bench.checkpoints():
        if (types := GGUF_TYPES.get(checkpoint.format)) is None:
            sys.exit(f"{checkpoint.folder}: {checkpoint.format}, expected {' or '.join(GGUF_TYPES)}")
        add_vocabulary(checkpoint)
        for threads in bench.args.threads:
            measure = lambda c=checkpoint, t=threads: bench.measure_abruzzi(c, prompt, t)
            lines.append(Engine("abruzzi", OWN_NAMES[checkpoint.format], threads, checkpoint.token_bytes(), measure))
        references = bench.references(checkpoint)
        for kind, weights in types.items():
            file = bench.gguf(checkpoint, kind)
            token_bytes = bench.worker("llama.py", "bytes", file)["token_bytes"]
            found = bench.worker("llama.py", "logits", file, "--threads", max(bench.args.threads), *references)
            checks.append((weights, found["cosine"], found["agree"]))
            print(f"{weights}: {said(found['cosine'], found['agree'])}", flush=True)
            if kind == "matched" and statistics.median(found["cosine"]) < LEAST_COSINE:
                sys.exit(f"{file}: expected a cosine of {LEAST_COSINE} at least; the engines do not compute the same model")
            for threads in bench.args.threads:
                measure = lambda f=file, t=threads: bench.measure_llama(f, ids, t)
                lines.append(Engine("llama.cpp", weights, threads, token_bytes, measure))
    return lines


def said(cosines, agree):
    """A comparison of logits in words."""
    return (
        f"cosine with abruzzi's {statistics.median(cosines):.5f} (median; least {min(cosines):.4f}), "
        f"most probable token the same at {agree} of {len(cosines)} positions"
    )


def spread(values, digits):
    """Median, least and greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine():
    """This machine, without its name."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    flags = [flag for flag in ["avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"] if f" {flag}" in text]
    name = model.group(1) if model else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GB ({', '.join(flags)})"


def markdown(bench, lines, checks, torch, others):
    """The fragment for docs/benchmarks.md."""
    args, versions = bench.args, setup.versions()
    own = run([bench.abruzzi, "--version"]).strip()
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    threads = " ".join(map(str, args.threads))
    given = "".join(f"--model {folder.name} " for folder in args.model or [])
    weights = f"of {', '.join(folder.name for folder in args.model)}" if args.model else (
        f"like `{pathlib.Path(args.like).stem}`, {args.layers} layers, {args.experts} experts"
    )
    out = [
        f"<!-- python3 tools/bench_peers.py {given}--threads {threads} --prompt {args.prompt} --decode {args.decode} "
        f"--rounds {args.rounds} {'' if torch else '--no-torch '}--out FILE -->",
        f"{machine()}; {datetime.date.today().isoformat()}; {own}, commit {commit.stdout.strip() or 'unknown'}; "
        f"llama-cpp-python {versions['llama-cpp-python']} built with `CMAKE_ARGS=\"{setup.LLAMA_BUILD}\"`; "
        f"gguf {versions['gguf']}{'; torch ' + versions['torch'] if torch else ''}.",
        f"Synthetic weights {weights}: {args.prompt} tokens of prompt, then {args.decode} decoded. "
        f"Median of {len(lines[0].decode)} rounds, in brackets the least and the greatest. Bytes are those of the weights that decoding "
        f"a token reads. Other processes had at most {100 * max(others.most, 0):.0f} % of the CPUs in a round.",
        "",
        "| weights | engine | threads | prefill tok/s | decode tok/s | GB a token | decode GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in lines:
        rate = statistics.median(e.decode) * e.token_bytes / 1e9
        out.append(
            f"| {e.weights} | {e.name} | {e.threads} | {spread(e.prefill, 1)} | {spread(e.decode, 2)} "
            f"| {e.token_bytes / 1e9:.2f} | {rate:.1f} |"
        )
    out += ["", f"llama.cpp's logits at every position of {CHECK_PROMPTS} prompts of {CHECK_TOKENS} tokens:", ""]
    out += [f"- {weights}: {said(cosines, agree)}." for weights, cosines, agree in checks]
    if torch:
        out += [
            "",
            "The experts of one layer alone, 8 of 32 and the shared one of 7168 × 2048, BF16, in PyTorch (which has no product of "
            "a vector with FP8-block or INT4-group weights on a CPU):",
            "",
            "| threads | a token, ms | GB/s | prompt, ms | TFLOP/s |",
            "|---|---|---|---|---|",
        ]
        for count, t in torch:
            decode, prefill = t["decode_seconds"], t["prefill_seconds"]
            out.append(
                f"| {count} | {spread([1e3 * s for s in decode], 1)} | {t['token_bytes'] / 1e9 / statistics.median(decode):.1f} "
                f"| {spread([1e3 * s for s in prefill], 0)} | {t['prompt_flop'] / 1e12 / statistics.median(prefill):.2f} |"
            )
    return "\n".join(out) + "\n"


def page(text, target):
    """The table, or the page that is there with the table between its markers."""
    if not target.exists() or BEGIN not in (old := target.read_text()):
        return text
    front, rest = old.split(BEGIN, 1)
    if END not in rest:
        sys.exit(f"{target}: no line {END!r} after {BEGIN!r}")
    return f"{front}{BEGIN}\n\n{text}\n{END}{rest.split(END, 1)[1]}"


def write(text, target):
    """Under a temporary name first."""
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text)
    os.replace(partial, target)


def arguments():
    def positive(text):
        if (number := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"{text}, expected 1 or more")
        return number

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--abruzzi", type=pathlib.Path, default=ROOT / "target/release/abruzzi", help="the program to measure")
    add("--cache", type=pathlib.Path, default=ROOT / "target/peers", help="where checkpoints and GGUF files are kept")
    add("--venv", type=pathlib.Path, help="virtual environment with the other engines [default: CACHE/venv]")
    add("--model", type=pathlib.Path, action="append", help="a checkpoint of `abruzzi synth`; may be given several times")
    add("--like", default="kimi-k2", help="without --model: what `abruzzi synth` imitates")
    add("--layers", type=positive, default=3, help="without --model: layers")
    add("--experts", type=positive, default=32, help="without --model: experts a layer")
    add("--threads", type=positive, nargs="+", default=[1, 2])
    add("--prompt", type=positive, default=512, help="tokens of the prompt")
    add("--decode", type=positive, default=32, help="tokens to decode after it")
    add("--rounds", type=positive, default=5, help="rounds that count")
    add("--no-torch", action="store_true", help="leave PyTorch's experts out")
    add("--out", type=pathlib.Path, help="write the table there, as Markdown; between the markers of a page that has them [default: only print it]")
    return parser.parse_args()


def main():
    args = arguments()
    # As an exception, so that subprocess.run ends the engine that is running: an orphan would hold gigabytes and every core.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    bench = Bench(args)
    tokens = prompt_ids(args.prompt, seed=1)
    prompt = bench.cache / "prompt.txt"
    write("".join(map(chr, tokens)), prompt)
    checks, torch = [], []
    lines = engines(bench, prompt, joined(tokens), checks)
    for threads in [] if args.no_torch else args.threads:
        print(f"PyTorch's experts, {threads} threads", flush=True)
        options = ["--threads", threads, "--prompt", args.prompt, "--rounds", args.rounds]
        torch.append((threads, bench.worker("torch_block.py", *options)))
    others = Others()
    for number in range(args.rounds + 1):
        others.mark()
        print(f"round {number} of {args.rounds}" if number else "warming up", flush=True)
        for engine in lines:
            engine.round(counts=number > 0)
        if number > 0:
            others.count()
        # After every round: what is interrupted has shown something.
        if number > 0 and args.out:
            write(page(markdown(bench, lines, checks, torch, others), args.out), args.out)
    print(markdown(bench, lines, checks, torch, others), end="")


if __name__ == "__main__":
    main()
