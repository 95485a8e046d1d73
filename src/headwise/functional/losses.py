"""Compute losses over a vocabulary without ever holding tokens x vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.contracts.statistics import Scored

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden_NM: Float[Tensor, "N M"],
    weight_VM: Float[Tensor, "V M"],
    target_N: Int[Tensor, " N"],
    *,
    bias_V: Float[Tensor, " V"] | None = None,
    smoothing: float = 0.0,
) -> Scored:
    """Sum the cross-entropy of `softmax(hidden weight^T + bias)`, in nats, and count the tokens."""
    logits_NV = F.linear(hidden_NM, weight_VM, bias_V)
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    total = F.cross_entropy(logits_NV, target_N, reduction="sum", label_smoothing=smoothing)
    return Scored(total, torch.tensor(target_N.numel(), device=target_N.device))
