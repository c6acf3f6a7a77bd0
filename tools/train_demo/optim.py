"""The optimiser: Muon for the weight matrices, AdamW for the router, the norms, the embedding and the head.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by a nearly orthogonal one: five steps of the polynomial
3.4445 X - 4.7750 (XX^T)X + 2.0315 (XX^T)^2 X bring every singular value near 1. With the factor 0.2 sqrt(max(n, k)) of
Moonlight (Liu et al. 2025) an update is as large as AdamW's, and one learning rate serves both.
"""

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
MOMENTUM, DECAY = 0.95, 0.05


def is_projection(name, weight):
    """Whether Muon trains it. The same tensors are FP8 in the checkpoint."""
    return weight.ndim == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight"))


class Optimizer:
    def __init__(self, network, dtype):
        named = list(network.named_parameters())
        self.dtype = dtype
        self.others = [p for name, p in named if not is_projection(name, p)]
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.95), weight_decay=0)
        by_shape = {}  # the experts are many and small: matrices of one shape are taken together
        for name, weight in named:
            if is_projection(name, weight):
                by_shape.setdefault(tuple(weight.shape), []).append(weight)
        self.groups = [(weights, torch.zeros(len(weights), *shape)) for shape, weights in by_shape.items()]

    @torch.no_grad()
    def step(self, rate):
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for weights, momentum in self.groups:
            # An expert without a token in the batch has no gradient.
            gradient = torch.stack([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp_(momentum, MOMENTUM).to(self.dtype)).float()
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            for weight, change in zip(weights, update):
                weight.mul_(1 - rate * DECAY).add_(change, alpha=-rate * scale)
        for weight in [*self.others, *(w for weights, _ in self.groups for w in weights)]:
            weight.grad = None


def orthogonal(x):
    """Each matrix of [count, n, k] with its singular values brought near 1."""
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.float().square().sum((1, 2), keepdim=True).sqrt() + 1e-7).to(x.dtype)
    linear, cubic, quintic = QUINTIC
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = linear * x + (cubic * square + quintic * (square @ square)) @ x
    return x.transpose(1, 2) if tall else x
