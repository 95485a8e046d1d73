"""Compute what needs a query's whole row first: received attention, pooled maps and the strongest links."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from headwise.kernels.tritonic.tile import band, load, place_of, reaching, scores, worth

__all__ = ["Rows", "link", "receive"]


class Rows(NamedTuple):
    """Hold what the first pass found of each query: a weight is `2 ** (score - largest) * peak`."""

    largest: Any
    peak: Any


@triton.jit
def receive(call, found, room, cells):
    """Add up the weights that a tile of keys gets from one of `cells` equal runs of queries.

    The grid is tiles x cells x (samples x heads); each number has one writer, so that sums repeat bit for bit.
    """
    at = tl.program_id(0) * call.tiling.keys
    cell = tl.program_id(1)
    b, h = tl.program_id(2) // call.sizes.heads, tl.program_id(2) % call.sizes.heads
    place = place_of(call, b, h)
    cols = at + tl.arange(0, call.tiling.keys)
    spot = b, h // call.sizes.share
    k = load(call, call.key, spot, cols, (call.sizes.keys, call.sizes.width, tl.arange(0, call.tiling.width)))
    own = (cell * place[4] + cells - 1) // cells, ((cell + 1) * place[4] + cells - 1) // cells
    bounds = reaching(call, place, at)
    low = tl.maximum(bounds[0], own[0] // call.tiling.rows * call.tiling.rows)
    total = tl.zeros([call.tiling.keys], tl.float32)
    for first in range(low, tl.minimum(bounds[1], own[1]), call.tiling.rows):
        rows = first + tl.arange(0, call.tiling.rows)
        if call.hiding.segments > 0 or call.hiding.dense is not None:
            if worth(call, place, rows, cols):
                total += _received(call, found, place, (rows, cols), k, own)
        else:
            total += _received(call, found, place, (rows, cols), k, own)
    head = (tl.program_id(2).to(tl.int64) * cells + cell) * call.sizes.keys
    tl.store(room + head + cols, total, mask=cols < call.sizes.keys)


@triton.jit
def _received(call, found, place, tile, k, own):
    b, h, _, _, _ = place
    rows, cols = tile
    inside = (rows >= own[0]) & (rows < own[1])
    limits = call.sizes.queries, call.sizes.width, tl.arange(0, call.tiling.width)
    q = load(call, call.query, (b, h), rows, limits)
    at = (b.to(tl.int64) * call.sizes.heads + h) * call.sizes.queries + rows
    largest = tl.load(found.largest + at, mask=inside, other=0.0)
    peak = tl.load(found.peak + at, mask=inside, other=0.0)
    p = tl.exp2(scores(call, place, rows, cols, q, k, tl.constexpr(True)) - largest[:, None]) * peak[:, None]
    return tl.sum(tl.where(inside[:, None], p, 0.0), 0)


@triton.jit
def link(call, found, weights, keys, links, slots: tl.constexpr):
    """Keep the strongest keys of each query of a tile, in no order; the grid is that of the first pass."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * call.tiling.rows
    b, h = tl.program_id(1) // call.sizes.heads, tl.program_id(1) % call.sizes.heads
    place = place_of(call, b, h)
    rows = first + tl.arange(0, call.tiling.rows)
    limits = call.sizes.queries, call.sizes.width, tl.arange(0, call.tiling.width)
    q = load(call, call.query, (b, h), rows, limits)
    slot = tl.arange(0, slots)
    # Slots beyond `links` hold what nothing can beat.
    best = (
        tl.zeros([call.tiling.rows, slots], tl.float32) + tl.where(slot < links, float("-inf"), float("inf"))[None, :]
    )
    held = best, tl.zeros([call.tiling.rows, slots], tl.int32) - 1
    step: tl.constexpr = call.tiling.keys
    low, high, _, _ = band(call, place, first)
    for at in range(low, high, step):
        held = _strongest(call, place, (rows, at + tl.arange(0, step)), q, held, links)
    inside = rows < call.sizes.queries
    at = (b.to(tl.int64) * call.sizes.heads + h) * call.sizes.queries + rows
    largest = tl.load(found.largest + at, mask=inside, other=0.0)
    peak = tl.load(found.peak + at, mask=inside, other=0.0)
    weight = tl.exp2(held[0] - largest[:, None]) * peak[:, None]
    there = at[:, None] * links + slot[None, :]
    seen = inside[:, None] & (slot < links)[None, :]
    tl.store(weights + there, weight, mask=seen)
    tl.store(keys + there, tl.where(weight == 0, -1, held[1]).to(tl.int64), mask=seen)


@triton.jit
def _strongest(call, place, tile, q, held, links):
    """Let the strongest keys of a tile take the place of weaker ones, one a round."""
    b, h, _, _, _ = place
    rows, cols = tile
    best, keys = held
    spot = b, h // call.sizes.share
    k = load(call, call.key, spot, cols, (call.sizes.keys, call.sizes.width, tl.arange(0, call.tiling.width)))
    s = scores(call, place, rows, cols, q, k, tl.constexpr(True))
    slot = tl.arange(0, best.shape[1])
    for _ in range(links):
        top = tl.max(s, 1)
        at = tl.min(tl.where(s == top[:, None], cols[None, :], 2147483647), 1)
        least = tl.min(best, 1)
        weakest = tl.min(tl.where(best == least[:, None], slot[None, :], 2147483647), 1)
        swap = (top > least)[:, None] & (slot[None, :] == weakest[:, None])
        best = tl.where(swap, top[:, None], best)
        keys = tl.where(swap, at[:, None], keys)
        s = tl.where(cols[None, :] == at[:, None], float("-inf"), s)
    return best, keys
