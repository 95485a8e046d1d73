"""Compute the gradients of query, key, value and a bias from weights that are computed again.

No number is added to by two programs, so that gradients repeat bit for bit. With P the weights, D the sum of a row of
P dP, g the gradient of the log-sum-exp and e that of the entropy H, the gradient of the scores is
`P (dP - D - e (log P + H)) + P g`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from headwise.kernels.tritonic.tile import (
    band,
    finite,
    kept,
    load,
    place_of,
    pointers,
    reaching,
    scores,
    worth,
)

__all__ = ["Arriving", "to_bias", "to_keys", "to_queries"]


class Arriving(NamedTuple):
    """Hold what a backward pass begins with, and the numbers that its first kernel leaves for the next."""

    output: Any
    """Views of the output and of its gradient; `None` where only numbers have gradients."""
    gradient: Any
    lse: Any
    lse_gradient: Any
    entropy: Any
    entropy_gradient: Any
    pulled: Any
    """D of each query."""
    share: Any
    """1 / the sum of the weights as `2 ** (score - lse)`: the rounding of a large log-sum-exp."""
    broken: Any


@triton.jit
def _numbers(call, given, place, rows):
    """Load what is known of each query: log-sum-exp in powers of 2, gradients, the entropy, D and the share."""
    b, h, _, _, _ = place
    inside = rows < call.sizes.queries
    at = (b.to(tl.int64) * call.sizes.heads + h) * call.sizes.queries + rows
    lse = tl.load(given.lse + at, mask=inside, other=float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)
    pulled = tl.load(given.pulled + at, mask=inside, other=0.0)
    share = tl.load(given.share + at, mask=inside, other=0.0)
    of_lse, of_entropy, entropy = pulled * 0, pulled * 0, pulled * 0
    if given.lse_gradient is not None:
        of_lse = tl.load(given.lse_gradient + at, mask=inside, other=0.0)
    if given.entropy_gradient is not None:
        of_entropy = tl.load(given.entropy_gradient + at, mask=inside, other=0.0)
        entropy = tl.load(given.entropy + at, mask=inside, other=0.0)
    return lse, pulled, share, of_lse, of_entropy, entropy


@triton.jit
def _slope(call, given, place, tile, vectors, numbers):
    """Compute the gradient of a tile's scores, and its weights after dropout."""
    rows, at = tile
    q, k, v, do = vectors
    lse, pulled, share, of_lse, of_entropy, entropy = numbers
    s = scores(call, place, rows, at + tl.arange(0, call.tiling.keys), q, k, tl.constexpr(True))
    log = s - lse[:, None]
    p = tl.exp2(log)
    if call.tiling.guarded:
        p = tl.where(s == float("-inf"), 0.0, p)
    p *= share[:, None]
    dropped, pull = p, p * 0
    if given.gradient is not None:
        pull = tl.dot(do, tl.trans(v), input_precision=call.tiling.precision)
        if call.dropped.seed is not None:
            keep = kept(call, place, rows, at)
            dropped = tl.where(keep, p / call.dropped.kept, 0.0)
            pull = tl.where(keep, pull / call.dropped.kept, 0.0)
    pull -= pulled[:, None]
    if given.entropy_gradient is not None:
        # Weights below 2 ** -1e4 are 0, whatever their logarithm.
        pull -= of_entropy[:, None] * (tl.maximum(log, -1e4) * 0.6931471805599453 + entropy[:, None])
    if given.lse_gradient is not None:
        pull += of_lse[:, None]
    if call.tiling.guarded:
        pull = tl.where(p == 0, 0.0, pull)
    return p * pull, dropped, p


@triton.jit
def _query(call, given, place, rows):
    """Load queries and the gradients of their outputs."""
    spot = place[0], place[1]
    q = load(call, call.query, spot, rows, (call.sizes.queries, call.sizes.width, tl.arange(0, call.tiling.width)))
    do = q
    if given.gradient is not None:
        limits = call.sizes.queries, call.sizes.value_width, tl.arange(0, call.tiling.value_width)
        do = load(call, given.gradient, spot, rows, limits)
    return q, do


@triton.jit
def _key(call, given, place, cols):
    """Load keys and values."""
    spot = place[0], place[1] // call.sizes.share
    k = load(call, call.key, spot, cols, (call.sizes.keys, call.sizes.width, tl.arange(0, call.tiling.width)))
    v = k
    if given.gradient is not None:
        limits = call.sizes.keys, call.sizes.value_width, tl.arange(0, call.tiling.value_width)
        v = load(call, call.value, spot, cols, limits)
    return k, v


@triton.jit
def _clean(call, x):
    """Leave out what is not finite, in a guarded pass."""
    if call.tiling.guarded:
        x = tl.where(finite(x), x, 0.0).to(x.dtype)
    return x


@triton.jit
def _write(call, given, view, spot, rows, x, limits):
    """Store gradients, and say when one is not finite."""
    b, h = spot
    count, width, columns = limits
    if not call.tiling.guarded and given.broken is not None:
        tl.store(given.broken, 1, mask=tl.min(finite(x).to(tl.int32)) == 0)
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    tl.store(pointers(view, b, h, rows, columns), x, mask=inside)


@triton.jit
def to_queries(call, given, query_gradient):
    """Compute the gradients of a tile of queries, and the numbers of each query; the grid is that of the forward."""
    if call.tiling.guarded:
        if tl.load(given.broken) == 0:
            return
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * call.tiling.rows
    b, h = tl.program_id(1) // call.sizes.heads, tl.program_id(1) % call.sizes.heads
    place = place_of(call, b, h)
    rows = first + tl.arange(0, call.tiling.rows)
    inside = rows < call.sizes.queries
    at = (b.to(tl.int64) * call.sizes.heads + h) * call.sizes.queries + rows
    q, do = _query(call, given, place, rows)
    pulled = tl.zeros([call.tiling.rows], tl.float32)
    if given.gradient is not None:
        limits = call.sizes.queries, call.sizes.value_width, tl.arange(0, call.tiling.value_width)
        output = load(call, given.output, (b, h), rows, limits)
        pulled = tl.sum(output.to(tl.float32) * do.to(tl.float32), 1)
    # The share of each query is known at the end only, and 1 until then.
    tl.store(given.pulled + at, pulled, mask=inside)
    lse, _, _, of_lse, of_entropy, entropy = _numbers(call, given, place, rows)
    numbers = lse, pulled, pulled * 0 + 1, of_lse, of_entropy, entropy
    state = tl.zeros([call.tiling.rows, call.tiling.width], tl.float32), tl.zeros([call.tiling.rows], tl.float32)
    low, high, _, _ = band(call, place, first)
    for start in range(low, high, call.tiling.keys):
        if call.hiding.segments > 0 or call.hiding.dense is not None:
            if worth(call, place, rows, start + tl.arange(0, call.tiling.keys)):
                state = _pull(call, given, place, (rows, start), (q, do), numbers, state)
        else:
            state = _pull(call, given, place, (rows, start), (q, do), numbers, state)
    found, total = state
    share = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
    tl.store(given.share + at, share, mask=inside)
    found *= (share * (call.scale * 0.6931471805599453))[:, None]
    limits = call.sizes.queries, call.sizes.width, tl.arange(0, call.tiling.width)
    _write(call, given, query_gradient, (b, h), rows, found, limits)


@triton.jit
def _pull(call, given, place, tile, vectors, numbers, state):
    """Add what a tile of keys gives to its queries."""
    q, do = vectors
    found, total = state
    k, v = _key(call, given, place, tile[1] + tl.arange(0, call.tiling.keys))
    ds, _, p = _slope(call, given, place, tile, (q, k, v, do), numbers)
    k = _clean(call, k)
    return found + tl.dot(ds.to(k.dtype), k, input_precision=call.tiling.precision), total + tl.sum(p, 1)


@triton.jit
def to_keys(call, given, key_gradient, value_gradient):
    """Compute the gradients of a tile of keys and values; the grid is tiles x (samples x groups)."""
    if call.tiling.guarded:
        if tl.load(given.broken) == 0:
            return
    at = tl.program_id(0) * call.tiling.keys
    groups = call.sizes.heads // call.sizes.share
    b, g = tl.program_id(1) // groups, tl.program_id(1) % groups
    cols = at + tl.arange(0, call.tiling.keys)
    k, v = _key(call, given, (b, g * call.sizes.share), cols)
    reached = tl.zeros([call.tiling.keys], tl.float32)
    key = tl.zeros([call.tiling.keys, call.tiling.width], tl.float32)
    value = tl.zeros([call.tiling.keys, call.tiling.value_width], tl.float32)
    state = key, value, reached
    for i in range(call.sizes.share):
        place = place_of(call, b, g * call.sizes.share + i)
        bounds = reaching(call, place, at)
        for first in range(bounds[0], bounds[1], call.tiling.rows):
            rows = first + tl.arange(0, call.tiling.rows)
            if call.hiding.segments > 0 or call.hiding.dense is not None:
                if worth(call, place, rows, cols):
                    state = _gather(call, given, place, (rows, at), (k, v), state)
            else:
                state = _gather(call, given, place, (rows, at), (k, v), state)
    key, value, reached = state
    value = tl.where(reached[:, None] > 0, float("nan"), value)
    key *= call.scale * 0.6931471805599453
    widths = tl.arange(0, call.tiling.width), tl.arange(0, call.tiling.value_width)
    _write(call, given, key_gradient, (b, g), cols, key, (call.sizes.keys, call.sizes.width, widths[0]))
    _write(call, given, value_gradient, (b, g), cols, value, (call.sizes.keys, call.sizes.value_width, widths[1]))


@triton.jit
def _gather(call, given, place, tile, vectors, state):
    """Add what a tile of queries gives to its keys and values."""
    rows, _ = tile
    k, v = vectors
    key, value, reached = state
    q, do = _query(call, given, place, rows)
    numbers = _numbers(call, given, place, rows)
    ds, dropped, _ = _slope(call, given, place, tile, (q, k, v, do), numbers)
    if given.gradient is not None:
        if call.tiling.guarded:
            lost = tl.max(1 - finite(do).to(tl.int32), 1).to(tl.float32)
            reached = tl.maximum(reached, tl.max(tl.where(dropped > 0, 1.0, 0.0) * lost[:, None], 0))
        do = _clean(call, do)
        value += tl.dot(tl.trans(dropped).to(do.dtype), do, input_precision=call.tiling.precision)
    q = _clean(call, q)
    key += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=call.tiling.precision)
    return key, value, reached


@triton.jit
def to_bias(call, given, bias_gradient, shape):
    """Compute the gradient of a tile of the bias, summed over the axes that it shares.

    The grid is tiles of rows x tiles of keys x (samples x heads) of the bias, whose shape is `shape`.
    """
    samples, heads, shared_rows, shared_keys, batch = shape
    sample, head = tl.program_id(2) // heads, tl.program_id(2) % heads
    total = tl.zeros([call.tiling.rows, call.tiling.keys], tl.float32)
    row, col = tl.program_id(0) * call.tiling.rows, tl.program_id(1) * call.tiling.keys
    last_row = call.sizes.queries if shared_rows else row + 1
    last_col = call.sizes.keys if shared_keys else col + 1
    for b in range(sample, batch if samples == 1 else sample + 1):
        for h in range(head, call.sizes.heads if heads == 1 else head + 1):
            place = place_of(call, b + sample * 0, h + head * 0)
            for first in range(row, last_row, call.tiling.rows):
                rows = first + tl.arange(0, call.tiling.rows)
                q, do = _query(call, given, place, rows)
                numbers = _numbers(call, given, place, rows)
                for at in range(col, last_col, call.tiling.keys):
                    k, v = _key(call, given, place, at + tl.arange(0, call.tiling.keys))
                    ds, _, _ = _slope(call, given, place, (rows, at), (q, k, v, do), numbers)
                    total += ds
    rows, cols = row + tl.arange(0, call.tiling.rows), col + tl.arange(0, call.tiling.keys)
    row_last, col_last = call.sizes.queries, call.sizes.keys
    if shared_rows:
        total = tl.broadcast_to(tl.sum(total, 0)[None, :], total.shape)
        row_last = 1
    if shared_keys:
        total = tl.broadcast_to(tl.sum(total, 1)[:, None], total.shape)
        col_last = 1
    inside = (rows < row_last)[:, None] & (cols < col_last)[None, :]
    tl.store(pointers(bias_gradient, sample, head, rows, cols), total, mask=inside)
