"""Choose how parameters move: AdamW, which of them decay, and how fast at which step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from headwise.training.config import TrainingConfig
from headwise.training.parallel import local

__all__ = ["adamw", "learning_rate", "scale_gradients"]


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over all parameters; while one is frozen, it stays as it is.

    Matrices decay; embeddings and what has one axis, biases and norms, do not.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    embeddings = {id(module.weight) for module in tables}
    decaying: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decaying if parameter.dim() > 1 and id(parameter) not in embeddings else rest).append(parameter)
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    filled = [group for group in groups if group["params"]]
    first, second = config.betas
    return torch.optim.AdamW(filled, lr=config.learning_rate, betas=(first, second), fused=True)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Give the learning rate of a step, counted from 0, of all steps.

    Example:
        >>> config = TrainingConfig(learning_rate=1.0, warmup=2, schedule="linear")
        >>> [round(learning_rate(config, step, steps=6), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    falls = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "inverse_sqrt": math.sqrt(max(warmup, 1) / (max(warmup, 1) + step - warmup)),
    }
    return config.learning_rate * falls[config.schedule]


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], count: Tensor, clip: float) -> Tensor:
    """Divide summed gradients by what was counted, and by what the norm exceeds `clip`; give the norm before clipping.

    Nothing waits for the device. Where nothing was counted the gradients are 0 and stay 0.
    """
    held = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not held:
        return torch.zeros((), device=count.device)
    parts = [local(gradient) for gradient in held]
    square = torch.stack(torch._foreach_norm(parts)).square().sum()
    if isinstance(held[0], DTensor):
        distributed.all_reduce(square)
    divisor = count.clamp(min=1).to(square.dtype)
    norm = square.sqrt() / divisor
    factor = (clip / (norm + 1e-6)).clamp(max=1) / divisor if clip else 1 / divisor
    torch._foreach_mul_(parts, factor)
    return norm
