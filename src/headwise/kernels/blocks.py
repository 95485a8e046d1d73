"""Cut one call of attention into parts and tiles that stay in the cache, and compute the scores of a tile.

A part is some samples and heads of a call, or one sample without its padding; a tile is some query rows of a part and
the run of keys that they may see. Working memory is bounded by a tile (and by one part's copies in the working type).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.contracts.masks import Extent, Mask
from headwise.contracts.problem import Problem
from headwise.kernels.philox import keep_mask

__all__ = [
    "ALONE",
    "LEAST_ROWS",
    "LOG2_E",
    "TILE_SCORES",
    "Part",
    "Run",
    "Tile",
    "added_up",
    "all_finite",
    "bias_of",
    "clamped",
    "cut",
    "extent_of",
    "gradient_room",
    "guard",
    "indices",
    "kept",
    "matmul_grouped",
    "output_room",
    "parts",
    "product",
    "scores",
    "stacked",
    "tiles",
    "visible",
]

TILE_SCORES = 1 << 18
"""Scores of a tile: 1 MB of float32, so that a few of them share a second-level cache."""
LEAST_ROWS = 64
"""Rows of a tile, however long they are: fewer starve the matrix product."""
LOG2_E = math.log2(math.e)
ALONE = 128 * 128
"""From so many scores a head on, padded samples are taken one by one without their padding."""


class Part(NamedTuple):
    """Name a part of a call and hold it as a call of its own."""

    batch: slice
    heads: slice
    groups: slice
    rows: slice
    keys: slice
    problem: Problem


class Run(NamedTuple):
    """Name a run of indices where a slice would freeze them: Dynamo takes the ends of a slice for constants."""

    start: int
    stop: int


class Tile(NamedTuple):
    """Name some rows of a part and the keys they may see."""

    rows: Any
    """A slice of the rows; a `Run` when the tile is the whole call."""
    keys: Any
    """A slice of the keys, likewise."""
    masked: bool
    """Whether some key of the tile is hidden from some row."""
    whole: bool = False
    """Whether the tile is the whole call, which needs no cutting."""


def parts(problem: Problem, unit_cost: int, budget: int, least_heads: int = 1) -> Iterator[Part]:
    """Cut a call along samples and heads; a sample in which nothing is valid is left out.

    Args:
        problem: the whole call.
        unit_cost: cost of one sample and group.
        budget: how much cost a part may have.
        least_heads: how many sample-group pairs a part holds at least, to keep all threads busy.
    """
    batch, _, groups, queries, keys, _, _ = problem.sizes
    units = max(least_heads, budget // max(unit_cost, 1))
    alone = problem.mask.key_length_B is not None and queries * keys >= ALONE
    samples = 1 if alone else max(1, min(batch, units // groups))
    step = groups if units >= groups else units
    spans = _spans(problem.mask, queries) if alone else None
    for b in range(0, batch, samples):
        rows, columns = (slice(0, queries), slice(0, keys)) if spans is None else spans[b]
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        for g in range(0, groups, step):
            ranges = slice(b, min(b + samples, batch)), slice(g, min(g + step, groups)), rows, columns
            yield _part(problem, *ranges, padded=not alone)


def _spans(mask: Any, queries: int) -> list[tuple[slice, slice]]:
    """List the valid rows and keys of each sample; rows that stand before the first key they could see are cut off."""
    starts, lengths = mask.key_start_B.tolist(), mask.key_length_B.tolist()
    rows = [queries] * len(starts) if mask.query_length_B is None else mask.query_length_B.tolist()
    trims = mask.right is not None and not mask.start_causal
    blind = [max(0, r - n - (mask.right or 0)) if trims else 0 for r, n in zip(rows, lengths, strict=True)]
    return [(slice(a, r), slice(s, s + n)) for a, r, s, n in zip(blind, rows, starts, lengths, strict=True)]


def _part(problem: Problem, batch: slice, groups: slice, rows: slice, keys: slice, *, padded: bool) -> Part:
    """Cut every tensor of a call down to a part; `padded` keeps the lengths, else rows and keys are all valid."""
    count, held = problem.key_BGKD.shape[:2]
    share = problem.query_BHQD.shape[1] // held
    heads = slice(groups.start * share, groups.stop * share)
    if padded and (batch, groups) == (slice(0, count), slice(0, held)):
        return Part(batch, heads, groups, rows, keys, problem)  # the whole call
    mask = _cut_mask(problem.mask, batch, heads, rows, keys, padded=padded)
    small = problem.but(
        query_BHQD=problem.query_BHQD[batch, heads, rows],
        key_BGKD=problem.key_BGKD[batch, groups, keys],
        value_BGKE=problem.value_BGKE[batch, groups, keys],
        mask=mask,
        bias_BHQK=cut(problem.bias_BHQK, batch, heads, rows, keys),
        slopes_H=None if problem.slopes_H is None else problem.slopes_H[heads],
        relative_HN=None if problem.relative_HN is None else problem.relative_HN[heads],
        origin=(batch.start, heads.start, rows.start, keys.start),
    )
    return Part(batch, heads, groups, rows, keys, small)


def _cut_mask(mask: Mask, batch: slice, heads: slice, rows: slice, keys: slice, *, padded: bool) -> Mask:
    segments = mask.key_segment_BKN, mask.query_segment_BQN
    lengths = (mask.key_length_B, mask.query_length_B, mask.key_start_B) if padded else (None, None, None)
    key_length_B, query_length_B, key_start_B = (x if x is None else x[batch] for x in lengths)
    return Mask(
        mask.left,
        mask.right,
        mask.start_causal,
        key_length_B,
        query_length_B,
        key_start_B,
        key_segment_BKN=None if segments[0] is None else segments[0][batch, keys],
        query_segment_BQN=None if segments[1] is None else segments[1][batch, rows],
        dense_BHQK=cut(mask.dense_BHQK, batch, heads, rows, keys),
    )


def cut(tensor_BHQK: Tensor | None, *ranges: slice) -> Tensor | None:
    """Take a range of every axis; an axis of size 1 is shared and stays."""
    if tensor_BHQK is None:
        return None
    return tensor_BHQK[tuple(r if n > 1 else slice(None) for r, n in zip(ranges, tensor_BHQK.shape, strict=True))]


def tiles(problem: Problem, step: int | None = None) -> Iterator[Tile]:
    """Cut a part into runs of rows with the keys they may see; rows and keys that see nothing are left out.

    Args:
        problem: the part.
        step: rows of a tile; left out, as many as `TILE_SCORES` allows.
    """
    batch, heads, _, queries, keys, _, _ = problem.sizes
    step = step or max(TILE_SCORES // max(batch * heads * keys, 1), LEAST_ROWS)
    mask = problem.mask
    if mask.key_length_B is not None:
        for a in range(0, queries, step):
            yield Tile(slice(a, min(a + step, queries)), slice(0, keys), True)
        return
    offset = keys - queries
    irregular = mask.key_segment_BKN is not None or problem.mask.dense_BHQK is not None or problem.bias_BHQK is not None
    for a in range(0, queries, step):
        z = min(a + step, queries)
        first, last = _reach(mask, a, z, offset, keys)
        if first < last:
            yield Tile(slice(a, z), slice(first, last), irregular or _crossed(mask, a, z, offset, first, last))


def _reach(mask: Mask, a: int, z: int, offset: int, keys: int) -> tuple[int, int]:
    """Bound the keys that rows a to z - 1 may see."""
    first = 0 if mask.left is None else max(0, a + offset - mask.left)
    last = keys if mask.right is None else min(keys, z + offset + mask.right)
    return first, min(last, z) if mask.start_causal else last


def _crossed(mask: Mask, a: int, z: int, offset: int, first: int, last: int) -> bool:
    """Tell whether an edge of the band crosses the tile."""
    behind = mask.left is not None and first < z - 1 + offset - mask.left
    ahead = mask.right is not None and last - 1 > a + offset + mask.right
    return behind or ahead or (mask.start_causal and last - 1 > a)


def matmul_grouped(left_BHQN: Tensor, right_BGND: Tensor) -> Tensor:
    """Multiply each query head's matrix with its group's matrix, without repeating the groups."""
    heads, groups = left_BHQN.shape[1], right_BGND.shape[1]
    if heads == groups:
        return left_BHQN @ right_BGND
    folded_BGND = left_BHQN.unflatten(1, (groups, heads // groups)).flatten(2, 3) @ right_BGND
    product_BHND: Tensor = folded_BGND.unflatten(2, (heads // groups, -1)).flatten(1, 2)
    return product_BHND


def product(left_NQD: Tensor, right_NDK: Tensor, scale: float, room_NQK: Tensor | None = None) -> Tensor:
    """Compute `scale left right` for stacks of matrices, in the room given; the product itself scales, at no cost."""
    if scale == 0:  # the product would skip its operands, and with them a NaN
        return torch.mul(left_NQD @ right_NDK, 0, out=room_NQK)
    if room_NQK is None:
        room_NQK = left_NQD.new_empty(left_NQD.shape[0], left_NQD.shape[1], right_NDK.shape[2])
    return torch.baddbmm(room_NQK, left_NQD, right_NDK, beta=0, alpha=scale, out=room_NQK)


def stacked(x_BHND: Tensor, groups: int) -> Tensor:
    """Fold samples and groups, and the heads of a group with their rows: shape (B G, H / G * N, D)."""
    batch, heads, rows, width = x_BHND.shape
    return x_BHND.reshape(batch * groups, heads // groups * rows, width)


def extent_of(problem: Problem) -> Extent:
    """Place the queries of a part among its keys."""
    return problem.mask.extent(problem.query_BHQD.shape[2], problem.key_BGKD.shape[2])


def indices(problem: Problem, tile: Tile) -> tuple[Tensor, Tensor]:
    """Give the rows and the keys of a tile as indices within its part."""
    device = problem.query_BHQD.device
    rows, keys = tile.rows, tile.keys
    rows_Q = torch.arange(rows.start, rows.stop, device=device, dtype=torch.int32)
    return rows_Q, torch.arange(keys.start, keys.stop, device=device, dtype=torch.int32)


def visible(problem: Problem, tile: Tile) -> Tensor | None:
    """Write out the mask of a tile; `None` when nothing is hidden."""
    if not tile.masked:
        return None
    every, part = slice(None), problem.mask
    if not tile.whole:
        part = _cut_mask(part, every, every, tile.rows, tile.keys, padded=True)
    return part.visible_at(*indices(problem, tile), extent_of(problem))


def bias_of(problem: Problem, tile: Tile) -> Tensor | None:
    """Add up what is added to the scores of a tile, in the working type."""
    every, dtype = slice(None), problem.working_dtype
    bias = problem.bias_BHQK if tile.whole else cut(problem.bias_BHQK, every, every, tile.rows, tile.keys)
    total = None if bias is None else bias.to(dtype)
    if problem.slopes_H is None and problem.relative_HN is None:
        return total
    relative_QK = extent_of(problem).relative(*indices(problem, tile))
    relative_BHQK = relative_QK[(None,) * (4 - relative_QK.dim())]
    if problem.slopes_H is not None:
        added = -problem.slopes_H.to(dtype)[:, None, None] * relative_BHQK.abs()
        total = added if total is None else total + added
    if problem.relative_HN is not None:
        added = problem.relative_HN.to(dtype)[:, clamped(relative_BHQK, problem.relative_HN)[:, 0]].transpose(0, 1)
        total = added if total is None else total + added
    return total


def clamped(relative_BHQK: Tensor, relative_HN: Tensor) -> Tensor:
    """Find the column of each relative position in a table that is clamped at both ends."""
    reach = relative_HN.shape[1] // 2
    return relative_BHQK.clamp(-reach, reach).long() + reach


def scores(problem: Problem, tile: Tile) -> Tensor:
    """Compute the scores of a tile times log2(e), hidden ones at -inf: weights are then powers of 2.

    PyTorch's `exp` takes up to a hundred times longer where results underflow, as hidden and far keys make them;
    its `exp2` does not.
    """
    query_BHQD, key_BGKD = problem.query_BHQD[:, :, tile.rows], problem.key_BGKD[:, :, tile.keys]
    query_NQD, key_NDK = stacked(query_BHQD, key_BGKD.shape[1]), key_BGKD.flatten(0, 1).transpose(1, 2)
    # A product may scale numbers before it sums them; float64 would show how log2(e) rounds, so it comes after there.
    late = query_NQD.dtype == torch.float64
    scores_NQK = product(query_NQD, key_NDK, problem.scale * (1.0 if late else LOG2_E))
    scores_BHQK = (scores_NQK.mul_(LOG2_E) if late else scores_NQK).view(*query_BHQD.shape[:3], key_BGKD.shape[2])
    bias_BHQK, visible_BHQK = bias_of(problem, tile), visible(problem, tile)
    if bias_BHQK is not None:
        scores_BHQK.add_(bias_BHQK, alpha=LOG2_E)
    if problem.guarded:
        # NaN or infinity that is hidden would survive a sum with -inf.
        hidden = [bias_BHQK == -torch.inf] if bias_BHQK is not None else []
        hidden += [~visible_BHQK] if visible_BHQK is not None else []
        for hidden_BHQK in hidden:
            scores_BHQK.masked_fill_(hidden_BHQK, -torch.inf)
    elif visible_BHQK is not None:
        # A tenth of the time of masked_fill_ with a mask that heads share.
        scores_BHQK += torch.zeros_like(visible_BHQK, dtype=scores_BHQK.dtype).masked_fill_(~visible_BHQK, -torch.inf)
    return scores_BHQK


def kept(problem: Problem, tile: Tile) -> Tensor | None:
    """Decide which weights of a tile dropout keeps; `None` when there is no dropout."""
    if problem.rate == 0 or problem.seed is None or tile.keys.stop <= tile.keys.start:
        return None
    batch, heads = problem.query_BHQD.shape[:2]
    starts = problem.origin[0], problem.origin[1], problem.origin[2] + tile.rows.start
    counts = batch, heads, tile.rows.stop - tile.rows.start
    device = problem.query_BHQD.device
    b, h, q = (torch.arange(a, a + n, device=device) for a, n in zip(starts, counts, strict=True))
    keys = slice(problem.origin[3] + tile.keys.start, problem.origin[3] + tile.keys.stop)
    return keep_mask(problem.seed, problem.rate, b, h, q, keys)


def output_room(problem: Problem) -> tuple[Tensor, Tensor]:
    """Make room for output and log-sum-exp: zeros and -inf where a tile may not reach."""
    batch, heads, _, queries, _, _, width = problem.sizes
    output_BHQE = problem.query_BHQD.new_empty(batch, heads, queries, width)
    lse_BHQ = problem.query_BHQD.new_empty((batch, heads, queries), dtype=problem.working_dtype)
    if problem.hides or problem.empty:
        output_BHQE.zero_()
        lse_BHQ.fill_(-torch.inf)
    return output_BHQE, lse_BHQ


def gradient_room(problem: Problem, needs: tuple[bool, ...]) -> dict[str, Tensor]:
    """Make room for the gradients: zeros where a tile may not reach, and for the biases, which tiles add to.

    One number of the relative bias adds up thousands of scores, one after the other: in float64.
    """
    make = torch.zeros_like if problem.hides or problem.empty else torch.empty_like
    room = {name: make(getattr(problem, name)) for name in ("query_BHQD", "key_BGKD", "value_BGKE")}
    for name, needed in zip(("bias_BHQK", "slopes_H", "relative_HN"), needs, strict=True):
        if needed:
            dtype = torch.float64 if name == "relative_HN" else problem.working_dtype
            room[name] = torch.zeros_like(getattr(problem, name), dtype=dtype)
    return room


def added_up(total: Tensor | None, found: Tensor, keys: slice, like: Tensor) -> Tensor:
    """Add what a tile found for its keys to the sum of its part; what covers every key can be the sum's beginning."""
    if total is None:
        if found.shape == like.shape:
            return found
        total = found.new_zeros(like.shape)
    total[:, :, keys] += found
    return total


def guard(problem: Problem, *others: Tensor) -> Problem:
    """Find out whether something hidden could be NaN or infinity and has to be kept from sums."""
    if not problem.hides:
        return problem
    tensors = (problem.query_BHQD, problem.key_BGKD, problem.value_BGKE, *others)
    return problem if all_finite(*tensors) else problem.but(guarded=True)


def all_finite(*tensors: Tensor) -> bool:
    """Tell whether all numbers are finite, by their sums: a sum of large ones may overflow, which only costs time."""
    return math.isfinite(sum(float(tensor.detach().sum()) for tensor in tensors))
