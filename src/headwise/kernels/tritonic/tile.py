"""Compute what every pass over tiles needs: which tiles there are, their scores, and what is dropped.

A `place` is what a program works on: sample, query head, first valid key, valid keys, valid queries.
"""

import triton
import triton.language as tl

__all__ = [
    "band",
    "edge",
    "finite",
    "kept",
    "load",
    "place_of",
    "pointers",
    "reaching",
    "relative_of",
    "scores",
    "visible",
    "worth",
]


@triton.jit
def place_of(call, b, h):
    """Place the queries of a sample among its keys."""
    start, keys, queries = 0, call.sizes.keys, call.sizes.queries
    if call.hiding.key_length is not None:
        keys = tl.load(call.hiding.key_length + b).to(tl.int32)
        start = tl.load(call.hiding.key_start + b).to(tl.int32)
    if call.hiding.query_length is not None:
        queries = tl.load(call.hiding.query_length + b).to(tl.int32)
    return b, h, start, keys, queries


@triton.jit
def band(call, place, first):
    """Bound the keys that some query of a tile may see, and those that all of them see: first, last, first, last."""
    _, _, start, keys, queries = place
    step: tl.constexpr = call.tiling.keys
    last = tl.minimum(first + call.tiling.rows, call.sizes.queries) - 1
    own = keys - queries
    low, high, all_low, all_high = start, start + keys, start, start + keys
    if call.hiding.left is not None:
        low = tl.maximum(low, start + first + own - call.hiding.left)
        all_low = tl.maximum(all_low, start + last + own - call.hiding.left)
    if call.hiding.right is not None:
        high = tl.minimum(high, start + last + own + call.hiding.right + 1)
        all_high = tl.minimum(all_high, start + first + own + call.hiding.right + 1)
    if call.hiding.start_causal:
        high = tl.minimum(high, start + last + 1)
        all_high = tl.minimum(all_high, start + first + 1)
    if call.hiding.query_length is not None:
        high = tl.where(first < queries, high, low)
        all_high = tl.where(last < queries, all_high, all_low)
    if call.hiding.segments > 0 or call.hiding.dense is not None:
        all_high = all_low
    low = low // step * step
    high = tl.maximum(high, low)
    all_low = tl.minimum(tl.maximum((all_low + step - 1) // step * step, low), high)
    all_high = tl.minimum(tl.maximum(all_high // step * step, all_low), high)
    return low, high, all_low, all_high


@triton.jit
def edge(step, bounds, i):
    """Give the first key of the i-th tile of those at the edges of the band."""
    low, _, all_low, all_high = bounds
    before = low + i * step
    return tl.where(before < all_low, before, all_high + before - all_low)


@triton.jit
def reaching(call, place, first):
    """Bound the queries that may see some key of a tile."""
    _, _, start, keys, queries = place
    step: tl.constexpr = call.tiling.rows
    low, high = first * 0, call.sizes.queries + first * 0
    spot = first - start
    last = spot + call.tiling.keys - 1
    own = keys - queries
    if call.hiding.right is not None:
        low = tl.maximum(low, spot - own - call.hiding.right)
    if call.hiding.start_causal:
        low = tl.maximum(low, spot)
    if call.hiding.left is not None:
        high = tl.minimum(high, last - own + call.hiding.left + 1)
    if call.hiding.query_length is not None:
        high = tl.minimum(high, queries)
    if call.hiding.key_length is not None:
        high = tl.where((spot < keys) & (last >= 0), high, 0)
    low = tl.minimum(low, high) // step * step
    return tl.maximum(low, 0), high


@triton.jit
def worth(call, place, rows, cols):
    """Tell whether a tile holds anything to see, where only a look at segments or at a dense mask can tell."""
    return tl.max(visible(call, place, rows, cols).to(tl.int32)) > 0


@triton.jit
def pointers(view, b, h, rows, columns):
    """Point at rows x columns of a sample and head."""
    head = view.at + b.to(tl.int64) * view.sample + h.to(tl.int64) * view.head
    return head + rows.to(tl.int64)[:, None] * view.row + columns[None, :] * view.column


@triton.jit
def load(call, view, spot, rows, limits):
    """Load vectors of a head; zeros beyond the tensor.

    `spot` is the sample and the head, `limits` holds the numbers of vectors and of their components, and a constant
    range over these.
    """
    b, h = spot
    count, width, columns = limits
    if call.tiling.even:
        x = tl.load(pointers(view, b, h, rows, columns), mask=(rows < count)[:, None], other=0.0)
    else:
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        x = tl.load(pointers(view, b, h, rows, columns), mask=inside, other=0.0)
    if call.tiling.widened:
        x = x.to(tl.float32)
    return x


@triton.jit
def finite(x):
    """Tell which numbers are neither NaN nor infinite."""
    return (x == x) & (tl.abs(x) != float("inf"))


@triton.jit
def relative_of(place, rows, cols):
    """Count how far each key lies after the query's own position."""
    _, _, start, keys, queries = place
    return (cols - start)[None, :] - (rows + (keys - queries))[:, None]


@triton.jit
def visible(call, place, rows, cols):
    """Write out the mask of a tile."""
    b, h, start, keys, queries = place
    spot = cols - start
    inside = (rows < call.sizes.queries)[:, None] & (cols < call.sizes.keys)[None, :]
    seen = inside
    if call.hiding.key_length is not None:
        seen &= ((spot >= 0) & (spot < keys))[None, :]
    if call.hiding.query_length is not None:
        seen &= (rows < queries)[:, None]
    if call.hiding.left is not None:
        seen &= relative_of(place, rows, cols) >= -call.hiding.left
    if call.hiding.right is not None:
        seen &= relative_of(place, rows, cols) <= call.hiding.right
    if call.hiding.start_causal:
        seen &= spot[None, :] <= rows[:, None]
    for n in tl.static_range(call.hiding.segments):
        q_at = call.hiding.query_segment + (b.to(tl.int64) * call.sizes.queries + rows) * call.hiding.segments + n
        k_at = call.hiding.key_segment + (b.to(tl.int64) * call.sizes.keys + cols) * call.hiding.segments + n
        q_id = tl.load(q_at, mask=rows < call.sizes.queries, other=0)
        k_id = tl.load(k_at, mask=cols < call.sizes.keys, other=0)
        seen &= q_id[:, None] == k_id[None, :]
    if call.hiding.dense is not None:
        seen &= tl.load(pointers(call.hiding.dense, b, h, rows, cols), mask=inside, other=0) != 0
    return seen


@triton.jit
def scores(call, place, rows, cols, q, k, masked):
    """Compute the scores of a tile times log2(e), hidden ones at -inf; `masked` where some may be hidden."""
    b, h, _, _, _ = place
    s = tl.dot(q, tl.trans(k), input_precision=call.tiling.precision) * call.scale
    if call.added.bias is not None:
        inside = (rows < call.sizes.queries)[:, None] & (cols < call.sizes.keys)[None, :]
        bias = tl.load(pointers(call.added.bias, b, h, rows, cols), mask=inside, other=0.0).to(tl.float32)
        # A bias of -inf hides, whatever the score is.
        s = tl.where(bias == float("-inf"), float("-inf"), s + bias * 1.4426950408889634)
    if call.added.slopes is not None:
        slope = tl.load(call.added.slopes + h) * 1.4426950408889634
        s -= slope * tl.abs(relative_of(place, rows, cols)).to(tl.float32)
    if call.added.relative is not None:
        reach = call.added.relatives // 2
        column = tl.minimum(tl.maximum(relative_of(place, rows, cols), -reach), reach) + reach
        s += tl.load(call.added.relative + h * call.added.relatives + column) * 1.4426950408889634
    if masked:
        s = tl.where(visible(call, place, rows, cols), s, float("-inf"))
    return s


@triton.jit
def kept(call, place, rows, first):
    """Decide which weights of a tile dropout keeps: Philox-4x32 with 7 rounds, eight 16-bit words a counter."""
    b, h, _, _, _ = place
    blocks = first // 8 + tl.arange(0, call.tiling.keys // 8)
    zero = (rows[:, None] * 0 + blocks[None, :] * 0).to(tl.uint32)
    c0, c1 = zero + blocks[None, :].to(tl.uint32), zero + rows[:, None].to(tl.uint32)
    c2, c3 = zero + h.to(tl.uint32), zero + b.to(tl.uint32)
    seed = tl.load(call.dropped.seed)
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    m0, m1 = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    w0, w1 = tl.full((), 0x9E3779B9, tl.uint32), tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(7):
        high0, high1 = tl.umulhi(c0, m0 + zero), tl.umulhi(c2, m1 + zero)
        low0, low1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    # The last axis counts fastest: pairs of words, then the halves of each.
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [call.tiling.rows, call.tiling.keys]).to(tl.int32) >= call.dropped.least
