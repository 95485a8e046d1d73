"""Compute attention with PyTorch's own operations in linear memory, and its statistics beside it.

Two ways give the same numbers, and `choose` says which one a call gets. `flash` is PyTorch's fused operation, with the
mask written out a tile at a time where it has no structure that the operation knows. `written` is softmax(QK)V in
tiles, which is faster where keys are few, and the only way with dropout or the gradient of a bias.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.kernels import blocks, flash, measure, written

__all__ = ["FEW_KEYS", "NAME", "Gradients", "backward", "choose", "describe", "forward", "refusal"]

NAME = "fused"

FEW_KEYS = 128
"""Up to so many queries and keys, writing attention out beats the fused operation, backward above all: 1.0x to 1.2x
forward and 1.3x to 5x with backward at 32 to 128 tokens; 0.6x to 0.9x from 256 (benchmarks/results)."""


def refusal(problem: Problem, asked: Statistics) -> str | None:
    """Say why this backend cannot take a call; it takes them all."""
    del problem, asked
    return None


def describe(problem: Problem) -> str:
    """Say which way a call takes, and why."""
    way, reason = choose(blocks.guard(problem))
    working = str(problem.working_dtype).removeprefix("torch.")
    how = {"flash": "PyTorch's fused operation", "written": "softmax(QK)V written out in tiles"}[way]
    return f"{how} in {working}: {reason}"


def choose(problem: Problem) -> tuple[str, str]:
    """Choose the way of a forward call, with the reason."""
    _, _, _, queries, keys, width, value_width = problem.sizes
    if problem.query_BHQD.device.type != "cpu":
        return "written", "the fused way is measured and built for the CPU only"
    if problem.rate > 0:
        return "written", "the fused operation has no dropout on the CPU"
    if width != value_width or width == 0:
        return "written", f"values of width {value_width} beside keys of width {width}"
    if keys < flash.LEAST_KEYS:
        return "written", f"the fused operation loses NaN beside fewer than {flash.LEAST_KEYS} keys"
    if queries <= FEW_KEYS and keys <= FEW_KEYS:
        return "written", f"measured faster up to {FEW_KEYS} queries and keys"
    if problem.guarded:
        return "written", "inputs hold NaN or infinity, which the fused operation lets through its mask"
    return "flash", f"measured faster above {FEW_KEYS} queries or keys"


def forward(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    """Compute the output, the log-sum-exp and the statistics asked for."""
    problem.check_lengths()
    problem = blocks.guard(problem)
    if problem.empty:
        results = blocks.output_room(problem)
    elif choose(problem)[0] == "flash":
        results = flash.forward(problem)
    else:
        results = written.forward(problem)
    return *results, *measure.measure(problem, asked).values()


class Gradients(NamedTuple):
    """Hold what comes into a backward call."""

    output_BHQE: Tensor | None
    lse_BHQ: Tensor | None
    entropy_BHQ: Tensor | None


def backward(
    problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None], needs: tuple[bool, ...]
) -> dict[str, Tensor]:
    """Compute the gradients of a call.

    Args:
        problem: the call.
        given: gradients of output, log-sum-exp and entropy; `None` for zero.
        saved: output, log-sum-exp and entropy of the forward pass.
        needs: whether bias, slopes and the relative bias need theirs.
    """
    if problem.empty:
        return blocks.gradient_room(problem, needs)
    grad = given.output_BHQE
    problem = blocks.guard(problem, *(x for x in (grad,) if x is not None))
    plain = not any(needs) and given.lse_BHQ is None and given.entropy_BHQ is None
    if grad is not None and plain and choose(problem)[0] == "flash":
        return flash.backward(problem, grad, saved[:2])
    return written.backward(problem, given, saved, needs)
