#!/usr/bin/env python3
"""llama.cpp on a GGUF file, through llama-cpp-python's plain bindings: how fast, and what logits.

Usage: python3 tools/peers/llama.py rate FILE.gguf --ids 1,2,3 [--decode N] [--threads N]
       python3 tools/peers/llama.py bytes FILE.gguf
       python3 tools/peers/llama.py logits FILE.gguf --ids 1,2,3 --reference LOGITS.safetensors [--ids ... --reference ...] [--threads N]
Needs `pip install llama-cpp-python gguf numpy`. Prints one JSON object; llama.cpp's own log goes to stderr.

`rate` evaluates the prompt and decodes greedily once to warm up, then again with an empty cache, timed:
  prefill_tok_s, decode_tok_s   as `abruzzi generate --json` counts them: forward passes, without loading and sampling
  ids                           the tokens decoded
  buffers                       the kinds of memory llama.cpp put the weights in, with their MiB
`bytes` says how many bytes of weights a decoded token reads:
  token_bytes
`logits` compares the logits of every position of every prompt with those of `abruzzi logits`:
  cosine                        per position
  agree                         positions where the most probable token is the same
Everything is llama.cpp's default (memory-mapped file, repacked weights where its CPU backend has kernels for them, flash
attention where it chooses to) but the batch, which is the whole prompt, so that prefill is one pass as in abruzzi.
"""

import argparse
import ctypes
import json
import pathlib
import re
import sys
import time

from checkpoint import header

try:
    import gguf
    import llama_cpp as lib
    import numpy as np
except ImportError as e:
    sys.exit(f"{e}; needed: pip install llama-cpp-python gguf numpy (versions in tools/peers/requirements.txt)")

# "load_tensors:  CPU_REPACK model buffer size =   512.00 MiB"
BUFFER = re.compile(r"(\S+) model buffer size = *([0-9.]+) MiB")


class Llama:
    """A loaded model with one context."""

    def __init__(self, file, context, threads):
        self.log = []

        # Kept in the object: llama.cpp holds no reference of its own to the callback.
        @lib.llama_log_callback
        def log(_level, text, _data):
            self.log.append(text.decode(errors="replace"))
            sys.stderr.write(self.log[-1])

        self.callback = log
        lib.llama_log_set(log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        if not self.model:
            sys.exit(f"{file}: llama.cpp cannot load it; its log above says why")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, context, context
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"{file}: llama.cpp has no memory for a context of {context} tokens")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def buffers(self):
        return {name: float(mib) for name, mib in BUFFER.findall("".join(self.log))}

    def clear(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def step(self, ids):
        """Appends tokens; the seconds it took."""
        tokens = (lib.llama_token * len(ids))(*ids)
        begun = time.perf_counter()
        self.decode(lib.llama_batch_get_one(tokens, len(ids)))
        return time.perf_counter() - begun

    def decode(self, batch):
        if (code := lib.llama_decode(self.context, batch)) != 0:
            sys.exit(f"llama_decode failed with code {code}")
        lib.llama_synchronize(self.context)

    def row(self, index):
        """Logits [vocab] of a position of the last batch; -1 is its last."""
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, index), (self.vocab,))

    def logits(self, ids):
        """Logits [tokens, vocab] of a prompt."""
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        self.decode(batch)
        rows = np.stack([self.row(i) for i in range(len(ids))])
        lib.llama_batch_free(batch)
        return rows


def token_bytes(file):
    """Bytes of weights that decoding one token reads: all but the embedding's other rows and the experts not chosen."""
    try:
        reader = gguf.GGUFReader(file)
    except (OSError, ValueError) as e:
        sys.exit(f"{file}: not a GGUF file that can be read ({e})")
    used, count = (int(reader.fields[f"deepseek2.expert_{key}"].parts[-1][0]) for key in ["used_count", "count"])
    total = 0.0
    for tensor in reader.tensors:
        share = used / count if "_exps." in tensor.name else 1.0
        if tensor.name == "token_embd.weight":
            share = 1 / int(tensor.shape[1])
        total += int(tensor.n_bytes) * share
    return total


def generate(llama, ids, count):
    """Prefill and greedy decoding from an empty cache: seconds of each, and the tokens."""
    llama.clear()
    prefill, decode, out = llama.step(ids), 0.0, []
    for _ in range(count):
        logits = llama.row(-1)
        if not np.isfinite(logits).all():
            sys.exit(f"llama.cpp's logits are not finite after {len(ids) + len(out)} tokens")
        out.append(int(logits.argmax()))
        decode += llama.step(out[-1:])
    return prefill, decode, out


def rate(args, ids):
    llama = Llama(args.file, len(ids) + args.decode, args.threads)
    generate(llama, ids, args.decode)
    prefill, decode, out = generate(llama, ids, args.decode)
    return {
        "prefill_tok_s": len(ids) / prefill,
        "decode_tok_s": args.decode / decode,
        "ids": out,
        "buffers": llama.buffers(),
        "cpu": lib.llama_print_system_info().decode().strip(),
    }


def compare(args, prompts):
    llama = Llama(args.file, max(map(len, prompts)), args.threads)
    cosines, agree = [], 0
    for ids, file in zip(prompts, args.reference, strict=True):
        tensor = header(file)["logits"]
        reference = np.fromfile(file, np.float32, offset=tensor.offset).reshape(tensor.shape)
        llama.clear()
        ours = llama.logits(ids)
        if ours.shape != reference.shape:
            sys.exit(f"{file}: logits {list(reference.shape)}, llama.cpp has {list(ours.shape)}")
        if not (np.isfinite(ours).all() and np.isfinite(reference).all()):
            sys.exit(f"{args.file}: logits that are not finite")
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference, axis=1)
        cosines += ((ours * reference).sum(axis=1) / norms).tolist()
        agree += int((ours.argmax(axis=1) == reference.argmax(axis=1)).sum())
    return {"cosine": cosines, "agree": agree}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "bytes", "logits"])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--ids", action="append", default=[], help="token ids of a prompt, separated by commas")
    parser.add_argument("--decode", type=int, default=32, help="tokens to decode after the prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--reference", type=pathlib.Path, action="append", default=[], help="what `abruzzi logits` wrote for the same ids"
    )
    args = parser.parse_args()
    prompts = [[int(i) for i in ids.split(",")] for ids in args.ids]
    if args.what == "rate" and len(prompts) != 1:
        parser.error("rate needs one --ids")
    if args.what == "logits" and not 0 < len(prompts) == len(args.reference):
        parser.error("logits needs an --ids for each --reference, and one at least")
    if args.what == "bytes":
        result = {"token_bytes": token_bytes(args.file)}
    else:
        result = rate(args, prompts[0]) if args.what == "rate" else compare(args, prompts)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
