"""A checkpoint of `abruzzi synth` as tools/bench_peers.py needs it: where each tensor lies, and what a token reads.

Standard library only: the driver and the converter share it.
"""

import base64
import json
import os
import pathlib
import struct
import sys
from typing import NamedTuple

HEADER_CAP = 100 << 20  # What the safetensors format allows a header.
RESERVED = 256  # Ids behind the ranks of a tiktoken.model that Kimi keeps for control tokens.


class Tensor(NamedTuple):
    """A tensor's type (as safetensors names it), shape and bytes."""

    file: pathlib.Path
    dtype: str
    shape: list
    offset: int
    nbytes: int


class Checkpoint:
    """config.json and the headers of all shards."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        try:
            self.config = json.loads((self.folder / "config.json").read_text())
            if not isinstance(self.config, dict):
                raise ValueError("config.json is no object")
            self.shards = sorted(self.folder.glob("*.safetensors"))
            self.tensors = {}
            for shard in self.shards:
                self.tensors |= header(shard)
        except (OSError, ValueError, KeyError, struct.error) as e:
            sys.exit(f"{self.folder}: not a checkpoint that can be read ({e}); make one with `abruzzi synth`")
        if not self.tensors:
            sys.exit(f"{self.folder}: no *.safetensors with tensors; make a checkpoint with `abruzzi synth`")

    @property
    def format(self):
        """How the routed experts are stored: `fp8-block`, `int4-g32` or `bf16`."""
        if any(name.endswith(".weight_packed") for name in self.tensors):
            return "int4-g32"
        return "fp8-block" if any(name.endswith(".weight_scale_inv") for name in self.tensors) else "bf16"

    def identity(self):
        """What decides a conversion's result: the configuration and the shards' sizes and times."""
        stats = [(s.name, s.stat().st_size, s.stat().st_mtime_ns) for s in self.shards]
        return {"config": self.config, "shards": [list(s) for s in stats]}

    def token_bytes(self):
        """Bytes of weights that decoding one token reads: all but the embedding's other rows and the experts not chosen."""
        share = self.config["num_experts_per_tok"] / self.config["n_routed_experts"]
        total = 0.0
        for name, tensor in self.tensors.items():
            if ".mlp.experts." in name:
                total += tensor.nbytes * share
            elif name.startswith("model.embed_tokens."):
                total += tensor.nbytes / tensor.shape[0]
            else:
                total += tensor.nbytes
        return total


def header(shard):
    """The tensors of one safetensors file."""
    with open(shard, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > HEADER_CAP:
            raise ValueError(f"{shard.name}: a header of {length} bytes, expected at most {HEADER_CAP}")
        entries = json.loads(f.read(length))
    base = 8 + length
    return {
        name: Tensor(shard, e["dtype"], e["shape"], base + e["data_offsets"][0], e["data_offsets"][1] - e["data_offsets"][0])
        for name, e in entries.items()
        if name != "__metadata__"
    }


def add_vocabulary(checkpoint):
    """Gives a synthetic checkpoint a tiktoken.model in which every ASCII character is one token: its code.

    The other ranks start with 0xFF, a byte that no UTF-8 text contains, so that nothing merges and the ids of a prompt are
    known without a tokenizer.
    """
    target = checkpoint.folder / "tiktoken.model"
    if target.exists() or (checkpoint.folder / "tokenizer.json").exists():
        return
    ranks = checkpoint.config["vocab_size"] - RESERVED
    if ranks < 256:
        sys.exit(f"{checkpoint.folder}: vocab_size {ranks + RESERVED}, expected at least {256 + RESERVED}")
    tokens = [bytes([i]) for i in range(256)] + [b"\xff" + i.to_bytes(4, "big") for i in range(ranks - 256)]
    partial = target.with_suffix(".partial")
    with open(partial, "w") as f:
        f.writelines(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    os.replace(partial, target)
    print(f"{checkpoint.folder}: added a vocabulary of one token a character")
