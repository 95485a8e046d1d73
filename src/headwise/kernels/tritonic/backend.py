"""Say which calls the GPU kernel takes, and hand them to it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.kernels import blocks, fused, measure
from headwise.kernels.fused import Gradients

__all__ = ["NAME", "PASSES", "backward", "describe", "forward", "refusal"]

NAME = "triton"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


PASSES: Any = None
"""The module that launches the kernels; `None` without Triton, and where it could not be used."""
if (torch.version.cuda is not None or _interpreting()) and find_spec("triton") is not None:
    from headwise.kernels.tritonic import passes

    PASSES = passes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_WIDTH = 256


def refusal(problem: Problem, asked: Statistics) -> str | None:
    """Say why this backend cannot take a call; it counts every statistic."""
    del asked
    query_BHQD, width, value_width = problem.query_BHQD, *problem.sizes[5:]
    if query_BHQD.dtype not in _DTYPES:
        return f"it computes float32, bfloat16 and float16, not {str(query_BHQD.dtype).removeprefix('torch.')}"
    if not (0 < width <= _MOST_WIDTH and 0 < value_width <= _MOST_WIDTH):
        return f"it takes widths of 1 to {_MOST_WIDTH}, not {width} and {value_width}"
    bias_BHQK = problem.bias_BHQK
    if bias_BHQK is not None and bias_BHQK.dtype not in _DTYPES:
        return f"it adds a bias of float32, bfloat16 or float16, not {str(bias_BHQK.dtype).removeprefix('torch.')}"
    if query_BHQD.device.type != "cuda" and not _interpreting():
        return "it is built for CUDA"
    return None if PASSES is not None else "Triton is not installed: pip install 'headwise[gpu]'"


def describe(problem: Problem) -> str:
    """Say how it computes a call."""
    learned = any(bias is not None and bias.requires_grad for bias in (problem.slopes_H, problem.relative_HN))
    told = "; the backward pass of fused for the gradient of slopes or a relative bias" if learned else ""
    where = "in Triton's interpreter, for tests only" if PASSES.INTERPRETED else "on the GPU"
    return f"one pass in the Triton kernel {where}{told}"


def forward(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    """Compute output, log-sum-exp and the statistics asked for."""
    problem.check_lengths()
    if problem.empty:
        return *blocks.output_room(problem), *measure.empty(asked, problem).values()
    results: tuple[Tensor, ...] = PASSES.attend(problem, asked)
    return results


def backward(
    problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None], needs: tuple[bool, ...]
) -> dict[str, Tensor]:
    """Compute the gradients; by the fused backend where ALiBi's slopes or a relative bias need one."""
    if problem.empty:
        return blocks.gradient_room(problem, needs)
    if any(needs[1:]):
        return fused.backward(problem, given, saved, needs)
    found: dict[str, Tensor] = PASSES.gradients(problem, given, saved, needs[0])
    return found
