"""The training loop and the held-out loss."""

import contextlib
import time

import numpy as np
import torch
from torch.nn import functional

from optim import Optimizer

WINDOW = 256  # tokens of context
HELD_OUT_WINDOWS = 64
WARM_UP, DECAY_FROM, LAST = 10, 0.6, 0.02  # steps; part of the time; rate at the end, as a part of the peak
BALANCE = 0.01  # step of the router's bias, falling to 0
REPORT_SECONDS = 20


def run(network, ids, held_ids, args, log):
    """Trains for args.minutes. Returns what was done, for the record."""
    dtype = quicker_dtype()
    log(f"training: {args.minutes:g} minutes, {args.threads} threads, {str(dtype).removeprefix('torch.')} products")
    optimizer, random = Optimizer(network, dtype), np.random.default_rng(args.seed)
    start = reported = time.monotonic()
    step = 0
    while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        batch = windows(ids, random.integers(0, len(ids) - WINDOW, args.batch))
        with torch.autocast("cpu", torch.bfloat16) if dtype == torch.bfloat16 else contextlib.nullcontext():
            loss = cross_entropy(network, batch)
        loss.backward()
        optimizer.step(args.lr * schedule(step, progress))
        for router in network.routers():
            router.balance(BALANCE * (1 - progress))
        step += 1
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {step}: a lower --lr may help")
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS or step == 1:
            busiest = max((router.load.max() / router.load.mean()).item() for router in network.routers())
            speed = step * args.batch * WINDOW / (now - start)
            log(f"{(now - start) / 60:6.1f} min  step {step:5}  loss {loss.item():.3f}  {speed:,.0f} tokens/s  "
                f"busiest expert {busiest:.1f} x mean")
            reported = now
    minutes = (time.monotonic() - start) / 60
    return {"minutes": round(minutes, 1), "steps": step, "tokens": step * args.batch * WINDOW}


def schedule(step, progress):
    """Warm-up, stable, decay: the rate as a part of its peak."""
    return min(1, (step + 1) / WARM_UP) * min(1, max(LAST, (1 - progress) / (1 - DECAY_FROM)))


def windows(ids, starts):
    return torch.from_numpy(np.stack([ids[start:start + WINDOW + 1] for start in starts]))


def cross_entropy(network, batch):
    logits = network(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(network, ids):
    """Mean loss in nats a token over windows spread evenly over the held-out text, in float32."""
    starts = np.linspace(0, len(ids) - WINDOW - 1, HELD_OUT_WINDOWS).astype(int)
    return float(np.mean([cross_entropy(network, windows(ids, part)).item() for part in starts.reshape(-1, 8)]))


def quicker_dtype():
    """bfloat16 where the CPU multiplies it quicker than float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1024, 256).to(dtype)
        tries = []
        for _ in range(5):
            start = time.perf_counter()
            x @ x.t()
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    return min(seconds, key=seconds.get)
