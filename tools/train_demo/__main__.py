#!/usr/bin/env python3
"""Trains a small model of Kimi-K2's architecture on a CPU and writes it as a Kimi-K2 FP8 checkpoint.

How to run, on Debian 12 (bookworm), from the repository root; Debian's python3-torch needs Debian's /usr/bin/python3:

    apt-get update
    apt-get install -y --no-install-recommends python3-torch python3-numpy python3-regex \\
        sword-text-web sword-text-kjv r-cran-janeaustenr
    /usr/bin/python3 tools/train_demo --out my-model --minutes 90 --threads 1 --seed 1
    cargo run --release -- verify -m my-model
    cargo run --release -- generate -m my-model -p "In the beginning" --temp 0.6 --seed 1

How long: under a minute for the corpus and the vocabulary, M minutes of training, half a minute for export and check.
Five minutes give words and short phrases (then use --batch 8 --lr 0.006: more and larger steps); the shipped demo model
had 88. A CPU with AVX512-BF16 is quicker than one without: bfloat16 is used if this machine multiplies it faster.

What comes out, in the folder of --out:

    config.json         the architecture, copied from models/demo/config.json (or --config)
    model.safetensors   F8_E4M3 weights with F32 scales of 128x128 blocks; router, norms, embedding and head BF16
    tiktoken.model      3,840 byte pairs, one "base64 rank" a line
    heldout.txt         whole chapters, about 60,000 tokens, that neither the model nor its vocabulary saw

The seed fixes the chapters held out, the first weights and the order of batches. The schedule follows the clock, so
two runs differ in how many steps they make. Progress goes to stderr; the last line, on stdout, is the result as JSON.

The files: corpus.py (text from Debian packages), bpe.py (vocabulary), model.py (the architecture), optim.py (Muon),
train.py (the loop), checkpoint.py (FP8 and safetensors).
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HELD_OUT_TOKENS = 60_000


def arguments():
    parser = argparse.ArgumentParser(
        prog="train_demo",
        description="Trains a small Kimi-K2-architecture model and writes it in Kimi-K2's FP8 format.",
        epilog="What to install, how long it takes and what comes out: at the head of tools/train_demo/__main__.py")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR",
                        help="folder to write; must hold no model yet")
    parser.add_argument("--minutes", type=float, default=90, metavar="M", help="length of training (default: 90)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed (default: 1)")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="windows of 256 tokens a step (default: 16)")
    parser.add_argument("--lr", type=float, default=0.004, help="peak learning rate (default: 0.004)")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "models/demo/config.json", metavar="FILE",
                        help="the architecture (default: models/demo/config.json)")
    args = parser.parse_args()
    if args.minutes <= 0 or args.threads < 1 or args.batch < 1 or args.lr <= 0 or args.seed < 0:
        parser.error("--minutes, --threads, --batch and --lr must be positive, --seed not negative")
    if (args.out / "model.safetensors").exists():
        parser.error(f"{args.out} already holds a model: name another folder")
    return args


def log(message):
    print(message, file=sys.stderr, flush=True)


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)  # read when torch is loaded
    try:
        import numpy  # noqa: F401
        import regex  # noqa: F401
        import torch
    except ImportError as error:
        sys.exit(f"train_demo: {error}; apt-get install -y python3-torch python3-numpy python3-regex, "
                 "then run it with /usr/bin/python3")
    import bpe
    import checkpoint
    import corpus
    import model
    import train

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        config = json.loads(args.config.read_text())
        model.check(config)
        args.out.mkdir(parents=True, exist_ok=True)

        start = time.monotonic()
        training, held_out = corpus.split(corpus.chapters(), HELD_OUT_TOKENS, args.seed)
        tokenizer = bpe.Tokenizer.train(training, config["vocab_size"] - bpe.RESERVED)
        train_ids, held_ids = tokenizer.encode(training), tokenizer.encode(held_out)
        log(f"corpus: {len(train_ids):,} tokens to train on, {len(held_ids):,} held out, "
            f"{len(training.encode()) / len(train_ids):.2f} bytes a token, {time.monotonic() - start:.0f} s")

        network = model.Kimi(config)
        log(f"model: {sum(p.numel() for p in network.parameters()):,} parameters")
        run = train.run(network, train_ids, held_ids, args, log)
        trained_loss = train.held_out_loss(network, held_ids)

        checkpoint.write_file(args.out / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        checkpoint.write_file(args.out / "tiktoken.model", tokenizer.to_tiktoken())
        checkpoint.write_file(args.out / "heldout.txt", held_out.encode())
        checkpoint.save(network, args.out / "model.safetensors")

        reloaded = model.Kimi(config)
        reloaded.load_state_dict(checkpoint.load(args.out / "model.safetensors"), strict=True)
        stored_loss = train.held_out_loss(reloaded, held_ids)
    except (corpus.Missing, model.Unsupported, OSError, ValueError) as error:
        sys.exit(f"train_demo: {error}")
    log(f"held-out loss in float32: {trained_loss:.3f} nats a token as trained, {stored_loss:.3f} with the file's FP8")
    print(json.dumps({**run, "loss": round(trained_loss, 4), "loss_fp8": round(stored_loss, 4)}))
    if not stored_loss < trained_loss + 0.1:
        sys.exit("train_demo: FP8 costs more than 0.1 nats a token: something is wrong with the export")


if __name__ == "__main__":
    main()
