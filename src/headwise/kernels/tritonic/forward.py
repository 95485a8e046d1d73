"""Compute output, log-sum-exp and the statistics of a query in one pass over its keys."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from headwise.kernels.tritonic.tile import (
    band,
    edge,
    finite,
    kept,
    load,
    place_of,
    pointers,
    relative_of,
    scores,
    worth,
)

__all__ = ["Results", "attend"]


class Results(NamedTuple):
    """Hold where results go: one number a query each, `None` for what is not asked."""

    output: Any
    lse: Any
    largest: Any
    """Largest score times log2(e)."""
    entropy: Any
    peak: Any
    peak_key: Any
    position: Any
    distance: Any
    sink: Any
    diagonal: Any
    previous: Any
    next: Any
    local: Any
    sinks: Any
    reach: Any
    broken: Any
    """Set where the output of something is not finite, so that a guarded pass has to follow."""


@triton.jit
def attend(call, results):
    """Compute a tile of queries; the grid is tiles x (samples x heads), the last tiles, the longest, first."""
    if call.tiling.guarded:
        if tl.load(results.broken) == 0:
            return
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * call.tiling.rows
    b, h = tl.program_id(1) // call.sizes.heads, tl.program_id(1) % call.sizes.heads
    place = place_of(call, b, h)
    rows = first + tl.arange(0, call.tiling.rows)
    limits = call.sizes.queries, call.sizes.width, tl.arange(0, call.tiling.width)
    q = load(call, call.query, (b, h), rows, limits)
    zero = tl.zeros([call.tiling.rows], tl.float32)
    sums = zero, zero, zero, zero, zero, zero, zero
    mixed = tl.zeros([call.tiling.rows, call.tiling.value_width], tl.float32)
    state = zero + float("-inf"), zero, mixed, zero, zero.to(tl.int32) - 1, zero, sums
    step: tl.constexpr = call.tiling.keys
    bounds = band(call, place, first)
    for at in range(bounds[2], bounds[3], step):
        state = _tile(call, results, place, rows, at, q, state, tl.constexpr(False))
    for i in range(tl.cdiv(bounds[2] - bounds[0] + tl.maximum(bounds[1] - bounds[3], 0), step)):
        at = edge(step, bounds, i)
        if call.hiding.segments > 0 or call.hiding.dense is not None:
            if worth(call, place, rows, at + tl.arange(0, step)):
                state = _tile(call, results, place, rows, at, q, state, tl.constexpr(True))
        else:
            state = _tile(call, results, place, rows, at, q, state, tl.constexpr(True))
    _store(call, results, b, h, rows, state)


@triton.jit
def _tile(call, results, place, rows, at, q, state, masked):
    """Take one tile of keys into the running sums of its queries."""
    b, h, _, _, _ = place
    spot = b, h // call.sizes.share
    cols = at + tl.arange(0, call.tiling.keys)
    largest, total, mixed, centred, peak_key, reached, sums = state
    k = load(call, call.key, spot, cols, (call.sizes.keys, call.sizes.width, tl.arange(0, call.tiling.width)))
    s = scores(call, place, rows, cols, q, k, masked)
    top = tl.max(s, 1)
    if results.peak_key is not None:
        found = tl.min(tl.where(s == top[:, None], cols[None, :], 2147483647), 1)
        peak_key = tl.where(top > largest, found, peak_key)
    now = tl.maximum(largest, top)
    base = tl.where(now == float("-inf"), 0.0, now)
    fade = tl.exp2(largest - base)
    gap = s - base[:, None]
    p = tl.exp2(gap)
    if call.tiling.guarded:
        p = tl.where(s == float("-inf"), 0.0, p)
    if results.entropy is not None:
        # Centred on the running maximum, which keeps every digit and the entropy from going below 0.
        moved = tl.where(largest == float("-inf"), 0.0, largest - base)
        centred = fade * (centred + moved * total) + tl.sum(p * tl.maximum(gap, -1e30), 1)
    total = fade * total + tl.sum(p, 1)
    sums = _sums(results, place, rows, cols, p, fade, sums)
    if call.dropped.seed is not None:
        p = tl.where(kept(call, place, rows, at), p, 0.0)
    v = load(
        call, call.value, spot, cols, (call.sizes.keys, call.sizes.value_width, tl.arange(0, call.tiling.value_width))
    )
    if call.tiling.guarded:
        whole = finite(v)
        lost = tl.max(1 - whole.to(tl.int32), 1)
        reached = tl.maximum(reached, tl.max(tl.where(p > 0, 1.0, 0.0) * lost[None, :].to(tl.float32), 1))
        v = tl.where(whole, v, 0.0).to(v.dtype)
    mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=call.tiling.precision)
    return now, total, mixed, centred, peak_key, reached, sums


@triton.jit
def _sums(results, place, rows, cols, p, fade, sums):
    """Add up weight times a function of place."""
    position, distance, sink, diagonal, previous, following, local = sums
    spot = cols - place[2]
    relative = relative_of(place, rows, cols)
    if results.position is not None:
        position = fade * position + tl.sum(p * spot[None, :].to(tl.float32), 1)
    if results.distance is not None:
        distance = fade * distance + tl.sum(p * tl.abs(relative).to(tl.float32), 1)
    if results.sink is not None:
        first = (spot >= 0) & (spot < results.sinks)
        sink = fade * sink + tl.sum(tl.where(first[None, :], p, 0.0), 1)
    if results.diagonal is not None:
        diagonal = fade * diagonal + tl.sum(tl.where(relative == 0, p, 0.0), 1)
    if results.previous is not None:
        previous = fade * previous + tl.sum(tl.where(relative == -1, p, 0.0), 1)
    if results.next is not None:
        following = fade * following + tl.sum(tl.where(relative == 1, p, 0.0), 1)
    if results.local is not None:
        local = fade * local + tl.sum(tl.where(tl.abs(relative) <= results.reach, p, 0.0), 1)
    return position, distance, sink, diagonal, previous, following, local


@triton.jit
def _store(call, results, b, h, rows, state):
    """Write the results of a tile of queries."""
    largest, total, mixed, centred, peak_key, reached, sums = state
    inside = rows < call.sizes.queries
    dead = total == 0
    whole = tl.where(dead, 1.0, total)
    share = tl.where(dead, 0.0, 1.0 / whole)
    at = (b.to(tl.int64) * call.sizes.heads + h) * call.sizes.queries + rows
    base = tl.where(largest == float("-inf"), 0.0, largest)
    lse = (base + tl.log2(whole)) * 0.6931471805599453
    tl.store(results.lse + at, tl.where(dead, float("-inf"), lse), mask=inside)
    if results.largest is not None:
        tl.store(results.largest + at, base, mask=inside)
    if results.entropy is not None:
        entropy = (tl.log2(whole) - centred * share) * 0.6931471805599453
        tl.store(results.entropy + at, entropy, mask=inside)
    if results.peak is not None:
        tl.store(results.peak + at, share, mask=inside)
    if results.peak_key is not None:
        tl.store(results.peak_key + at, peak_key.to(tl.int64), mask=inside)
    _store_sums(results, at, inside, share, sums)
    output = mixed / (whole * call.dropped.kept)[:, None]
    if call.tiling.guarded:
        output = tl.where(reached[:, None] > 0, float("nan"), output)
    elif results.broken is not None:
        tl.store(results.broken, 1, mask=tl.min(finite(output).to(tl.int32)) == 0)
    columns = tl.arange(0, call.tiling.value_width)
    seen = inside[:, None] & (columns < call.sizes.value_width)[None, :]
    tl.store(pointers(results.output, b, h, rows, columns), output, mask=seen)


@triton.jit
def _store_sums(results, at, inside, share, sums):
    """Write the sums of weight times a function of place."""
    position, distance, sink, diagonal, previous, following, local = sums
    if results.position is not None:
        tl.store(results.position + at, position * share, mask=inside)
    if results.distance is not None:
        tl.store(results.distance + at, distance * share, mask=inside)
    if results.sink is not None:
        tl.store(results.sink + at, sink * share, mask=inside)
    if results.diagonal is not None:
        tl.store(results.diagonal + at, diagonal * share, mask=inside)
    if results.previous is not None:
        tl.store(results.previous + at, previous * share, mask=inside)
    if results.next is not None:
        tl.store(results.next + at, following * share, mask=inside)
    if results.local is not None:
        tl.store(results.local + at, local * share, mask=inside)
