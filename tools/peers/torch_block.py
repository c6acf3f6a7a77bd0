#!/usr/bin/env python3
"""PyTorch on the experts of one MoE layer of Kimi-K2's dimensions, BF16: how fast a token is decoded, and a prompt prefilled.

Usage: python3 tools/peers/torch_block.py [--threads N] [--prompt N] [--rounds N]; needs `pip install torch`
(tools/peers/setup.py says how without CUDA's libraries).

A token goes through 8 of 32 routed experts and the shared one, each down(silu(gate(x)) * up(x)) with 7168 x 2048 matrices, by
plain torch.nn.functional.linear. Decoding chooses 8 other experts each time, so that no weight is still in a cache. For a
prompt each token chooses its own 8 and an expert takes its tokens together. Routing itself, norms and attention are left out.
Prints one JSON object: seconds of each round, and the bytes and multiplications they are for.
"""

import argparse
import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except (ImportError, OSError, ValueError) as e:  # torch raises the latter two where CUDA's libraries are missing.
    sys.exit(f"{e}; needed: pip install torch (version in tools/peers/requirements.txt)")

HIDDEN, WIDTH, EXPERTS, CHOSEN = 7168, 2048, 32, 8
EXPERT_WEIGHTS = 3 * HIDDEN * WIDTH
DECODES = 16  # Tokens a round: one alone is too short to time.


def expert(weights, x):
    gate, up, down = weights
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def block(experts, shared, x, chosen, scores):
    """The layer's output for x [tokens, hidden]; `chosen` and `scores` are [tokens, CHOSEN]."""
    out = expert(shared, x)
    for e in chosen.unique().tolist():
        token, slot = (chosen == e).nonzero(as_tuple=True)
        out.index_add_(0, token, expert(experts[e], x[token]) * scores[token, slot, None])
    return out


def timed(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    def matrix(rows, cols):
        return torch.empty(rows, cols, dtype=torch.bfloat16).normal_(0, cols**-0.5)

    def weights():
        return matrix(WIDTH, HIDDEN), matrix(WIDTH, HIDDEN), matrix(HIDDEN, WIDTH)

    experts, shared = [weights() for _ in range(EXPERTS)], weights()

    def inputs(tokens):
        chosen = torch.rand(tokens, EXPERTS).topk(CHOSEN).indices
        return matrix(tokens, HIDDEN), chosen, torch.rand(tokens, CHOSEN).bfloat16()

    prompt, tokens = inputs(args.prompt), [inputs(1) for _ in range(DECODES)]

    def decode():
        for x, chosen, scores in tokens:
            out = block(experts, shared, x, chosen, scores)
        return out

    with torch.inference_mode():
        if not torch.isfinite(block(experts, shared, *prompt)).all() or not torch.isfinite(decode()).all():
            sys.exit("the layer's output is not finite")
        prefill = [timed(lambda: block(experts, shared, *prompt)) for _ in range(args.rounds)]
        decoding = [timed(decode) / DECODES for _ in range(args.rounds)]
    used = CHOSEN + 1
    print(
        json.dumps(
            {
                "prefill_seconds": prefill,
                "decode_seconds": decoding,
                "token_bytes": used * EXPERT_WEIGHTS * 2,
                "prompt_flop": args.prompt * used * EXPERT_WEIGHTS * 2,
            }
        )
    )


if __name__ == "__main__":
    main()
