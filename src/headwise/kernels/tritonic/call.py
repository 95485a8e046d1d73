"""Describe a call of attention to the GPU kernels: nested tuples of pointers, strides and numbers.

`None` and `tl.constexpr` are known when a kernel is compiled, so that what a call does not have costs it nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.kernels.philox import WORDS

__all__ = [
    "INTERPRETED",
    "LOG2_E",
    "Added",
    "Call",
    "Dropped",
    "Hiding",
    "Sizes",
    "Tiling",
    "View",
    "describe",
    "flat",
    "room",
    "view",
]

LOG2_E = 1.4426950408889634
INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton was imported under TRITON_INTERPRET=1, which runs kernels on the CPU, slowly."""
_FAR = 1 << 30
"""Beyond every tensor."""


class View(NamedTuple):
    """Hold a tensor of four axes: where it is, and the steps along each; 0 along an axis that is shared."""

    at: Any
    sample: Any
    head: Any
    row: Any
    column: Any


class Sizes(NamedTuple):
    """Hold the sizes of a call."""

    heads: Any
    share: Any
    """Query heads of a group."""
    queries: Any
    keys: Any
    width: Any
    value_width: Any


class Hiding(NamedTuple):
    """Hold a mask by its parts, each `None` where it hides nothing."""

    left: Any
    right: Any
    start_causal: Any
    key_length: Any
    key_start: Any
    query_length: Any
    key_segment: Any
    query_segment: Any
    segments: Any
    dense: Any


class Added(NamedTuple):
    """Hold what is added to the scores."""

    bias: Any
    slopes: Any
    relative: Any
    relatives: Any
    """Numbers a head in `relative`."""


class Dropped(NamedTuple):
    """Hold the dropout: `seed` is `None` where there is none."""

    seed: Any
    least: Any
    """Words of at least this size keep their weight."""
    kept: Any
    """Share of the weights that is kept."""


class Tiling(NamedTuple):
    """Hold what is fixed when a kernel is compiled."""

    rows: Any
    """Queries of a tile."""
    keys: Any
    """Keys of a tile."""
    width: Any
    """Width of queries and keys, rounded up to a power of 2."""
    value_width: Any
    even: Any
    """Whether widths need no rounding."""
    precision: Any
    """How float32 is multiplied: `ieee` or `tf32`."""
    widened: Any
    """Whether inputs become float32 right after a load: the interpreter would multiply the bits of bfloat16."""
    guarded: Any
    """Whether NaN and infinity are kept from passing through a weight of 0."""


class Call(NamedTuple):
    """Hold a call."""

    query: View
    key: View
    value: View
    scale: Any
    """Factor of the scores, times log2(e): weights are powers of 2."""
    sizes: Sizes
    hiding: Hiding
    added: Added
    dropped: Dropped
    tiling: Tiling


def describe(problem: Problem, rows: int, keys: int, *, guarded: bool = False) -> Call:
    """Describe a call, in tiles of so many rows and keys."""
    batch, heads, groups, queries, count, width, value_width = problem.sizes
    del batch
    return Call(
        view(problem.query_BHQD),
        view(problem.key_BGKD),
        view(problem.value_BGKE),
        problem.scale * LOG2_E,
        Sizes(heads, heads // groups, queries, count, width, value_width),
        _hiding(problem),
        _added(problem),
        _dropped(problem),
        _tiling(problem, rows, keys, guarded),
    )


def _tiling(problem: Problem, rows: int, keys: int, guarded: bool) -> Tiling:
    width, value_width = problem.sizes[5:]
    rounded = [max(16, triton.next_power_of_2(n)) for n in (width, value_width)]
    exact = torch.get_float32_matmul_precision() == "highest"
    fixed = (
        *(rows, keys, *rounded, rounded == [width, value_width]),
        *("ieee" if exact else "tf32", INTERPRETED and problem.query_BHQD.dtype == torch.bfloat16, guarded),
    )
    return Tiling(*map(tl.constexpr, fixed))


def view(tensor: Tensor) -> View:
    """Describe a tensor of four axes and any strides."""
    return View(tensor, *(0 if n == 1 else step for n, step in zip(tensor.shape, tensor.stride(), strict=True)))


def flat(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Give a tensor that can be read in order."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def room(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Make room that a kernel may store to: of the type of `like`, or float32 where the interpreter needs it."""
    widened = INTERPRETED and like.dtype == torch.bfloat16
    return like.new_empty(shape, dtype=torch.float32 if widened else like.dtype)


def _hiding(problem: Problem) -> Hiding:
    mask = problem.mask
    left, right = (None if bound is None else min(bound, _FAR) for bound in (mask.left, mask.right))
    held = mask.key_length_B, mask.key_start_B, mask.query_length_B, mask.key_segment_BKN, mask.query_segment_BQN
    length, start, counted, key, query = (flat(x, torch.int64) for x in held)
    count = 0 if mask.key_segment_BKN is None else mask.key_segment_BKN.shape[2]
    dense = None if mask.dense_BHQK is None else view(mask.dense_BHQK.view(torch.uint8))
    causal, segments = tl.constexpr(mask.start_causal), tl.constexpr(count)
    return Hiding(left, right, causal, length, start, counted, key, query, segments, dense)


def _added(problem: Problem) -> Added:
    slopes, relative = (flat(x, torch.float32) for x in (problem.slopes_H, problem.relative_HN))
    bias = None if problem.bias_BHQK is None else view(problem.bias_BHQK)
    return Added(bias, slopes, relative, 0 if relative is None else relative.shape[1])


def _dropped(problem: Problem) -> Dropped:
    if problem.rate == 0 or problem.seed is None:
        return Dropped(None, 0, 1.0)
    return Dropped(flat(problem.seed, torch.int64), round(problem.rate * WORDS), 1 - problem.rate or 1.0)
