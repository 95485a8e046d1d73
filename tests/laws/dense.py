"""Attention from its definitions, dense and slow: what the laws hold the backends against.

Nothing here comes from `headwise`. Computed in float64, this is the reference; computed in the type of the inputs, it
is the peer, softmax(QK)V written out in PyTorch with the same dropout mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Causal:
    align: str = "end"


@dataclass(frozen=True)
class Window:
    left: int | None
    right: int | None


@dataclass(frozen=True)
class Lengths:
    keys_B: Tensor
    queries_B: Tensor | None = None
    start_B: Tensor | None = None


@dataclass(frozen=True)
class Segments:
    ids_BK: Tensor
    query_ids_BQ: Tensor | None = None


@dataclass(frozen=True)
class Dense:
    allowed_BHQK: Tensor


@dataclass(frozen=True)
class Slopes:
    slopes_H: Tensor


@dataclass(frozen=True)
class Buckets:
    table_NH: Tensor
    bidirectional: bool = True
    max_distance: int = 128


Part = Causal | Window | Lengths | Segments | Dense
Bias = Tensor | Slopes | Buckets | None


@dataclass(frozen=True, repr=False)
class Call:
    """Hold one call of attention: tensors, the parts of its mask, what is added, what is dropped, what is asked."""

    query_BHQD: Tensor
    key_BGKD: Tensor
    value_BGKE: Tensor
    parts: tuple[Part, ...] = ()
    bias: Bias = None
    scale: float | None = None
    rate: float = 0.0
    seed: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = {name: told(value) for name, value in vars(self).items()}
        return f"Call({', '.join(f'{name}={value}' for name, value in held.items())})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would write every number out

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Give B, H, Q, K."""
        return (*self.query_BHQD.shape[:3], self.key_BGKD.shape[2])

    def but(self, **changes: Any) -> Call:
        return replace(self, **changes)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Give the tensors that may carry gradient."""
        held = {"query": self.query_BHQD, "key": self.key_BGKD, "value": self.value_BGKE}
        match self.bias:
            case Tensor():
                held["bias"] = self.bias
            case Slopes(slopes_H):
                held["slopes"] = slopes_H
            case Buckets(table_NH):
                held["table"] = table_NH
        return held

    def with_leaves(self, **leaves: Tensor) -> Call:
        """Replace tensors by the names that `leaves` gives them."""
        bias = leaves.get("bias", self.bias)
        if "slopes" in leaves:
            bias = Slopes(leaves["slopes"])
        if "table" in leaves:
            bias = replace(self.bias, table_NH=leaves["table"])
        query, key = leaves.get("query", self.query_BHQD), leaves.get("key", self.key_BGKD)
        value = leaves.get("value", self.value_BGKE)
        return replace(self, query_BHQD=query, key_BGKD=key, value_BGKE=value, bias=bias)


def told(value: Any) -> str:
    """Write a short tensor out, and of a long one the shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(told, value))})"
    if is_dataclass(value):
        return f"{type(value).__name__}({', '.join(map(told, vars(value).values()))})"
    if isinstance(value, Tensor) and value.numel() > 20:
        return f"{value.dtype}{list(value.shape)}"
    return str(value.tolist()) if isinstance(value, Tensor) else repr(value)


def extent(call: Call, b: int) -> tuple[int, int, int]:
    """Give sample b's first valid key, how many keys are valid, and how many queries."""
    _, _, queries, end = call.sizes
    start = 0
    for part in call.parts:
        if isinstance(part, Lengths):
            first = 0 if part.start_B is None else int(part.start_B[b])
            start, end = max(start, first), min(end, first + int(part.keys_B[b]))
            queries = queries if part.queries_B is None else min(queries, int(part.queries_B[b]))
    return start, max(end - start, 0), queries


def places(call: Call, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number sample b's queries and keys, the keys from the first valid one, and each key from each query."""
    _, _, queries, keys = call.sizes
    start, key_count, query_count = extent(call, b)
    i_Q1, j_1K = torch.arange(queries)[:, None], torch.arange(keys)[None] - start
    own_Q1 = i_Q1 + (key_count - query_count)
    return i_Q1, j_1K, j_1K - own_Q1


def visible(call: Call) -> Tensor:
    """Say which keys each query may look at, a bias of -inf included."""
    samples, heads, queries, keys = call.sizes
    allowed_BHQK = torch.ones(samples, heads, queries, keys, dtype=torch.bool)
    for b in range(samples):
        _, key_count, query_count = extent(call, b)
        i_Q1, j_1K, relative_QK = places(call, b)
        allowed_BHQK[b] &= (j_1K >= 0) & (j_1K < key_count) & (i_Q1 < query_count)
        for part in call.parts:
            match part:
                case Causal("end"):
                    allowed_BHQK[b] &= relative_QK <= 0
                case Causal("start"):
                    allowed_BHQK[b] &= j_1K <= i_Q1
                case Window(left, right):
                    allowed_BHQK[b] &= relative_QK >= (-keys - queries if left is None else -left)
                    allowed_BHQK[b] &= relative_QK <= (keys + queries if right is None else right)
                case Segments(ids_BK, query_ids_BQ):
                    of_query = ids_BK[b, keys - queries :] if query_ids_BQ is None else query_ids_BQ[b]
                    allowed_BHQK[b] &= of_query[:, None] == ids_BK[b][None]
    for part in call.parts:
        if isinstance(part, Dense):
            allowed_BHQK &= part.allowed_BHQK
    if isinstance(call.bias, Tensor):
        allowed_BHQK &= call.bias.detach() != -torch.inf
    return allowed_BHQK


def bucket(relative: int, buckets: int, *, bidirectional: bool, max_distance: int) -> int:
    """Find the T5 bucket of a key so far after its query, in whole numbers: no rounding can shift an edge."""
    first, distance = 0, max(-relative, 0)
    if bidirectional:
        buckets //= 2
        first, distance = (buckets if relative > 0 else 0), abs(relative)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    steps, coarse = buckets - exact, 0
    # floor(steps log(distance / exact) / log(max_distance / exact)), with the logarithms taken away.
    while coarse < steps - 1 and max_distance ** (coarse + 1) * exact**steps <= distance**steps * exact ** (coarse + 1):
        coarse += 1
    return first + exact + coarse


def added(call: Call, dtype: torch.dtype) -> Tensor:
    """Write out what is added to the scores, 0 in place of -inf: `visible` hides those."""
    samples, heads, queries, keys = call.sizes
    match call.bias:
        case Tensor():
            numbers = call.bias.to(dtype)
            return torch.where(numbers == -torch.inf, 0, numbers).expand(samples, heads, queries, keys)
        case Slopes(slopes_H):
            distance_BQK = torch.stack([places(call, b)[2].abs() for b in range(samples)])
            return -slopes_H.to(dtype)[:, None, None] * distance_BQK[:, None]
        case Buckets(table_NH, bidirectional, max_distance):
            numbers = table_NH.to(dtype)
            span = range(-queries - 2 * keys, 2 * keys + queries + 1)
            rule = {"bidirectional": bidirectional, "max_distance": max_distance}
            found_N = torch.tensor([bucket(r, len(numbers), **rule) for r in span])
            bucket_BQK = torch.stack([found_N[places(call, b)[2] - span[0]] for b in range(samples)])
            return numbers[bucket_BQK].movedim(-1, 1)
    return torch.zeros((), dtype=dtype)


def philox(counter: tuple[Any, ...], key: tuple[int, int], rounds: int = 7) -> tuple[Any, ...]:
    """Encrypt four 32-bit counter words with two key words (Salmon et al. 2011, Philox-4x32), in NumPy uint64."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), product1 & np.uint64(low)
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), product0 & np.uint64(low)
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def keep(call: Call) -> Tensor:
    """Decide which weights dropout keeps: word j % 8 of Philox at (j // 8, i, h, b), the low half of a word first."""
    samples, heads, queries, keys = call.sizes
    shape = samples, heads, queries, (keys + 7) // 8
    b, h, i, n = np.ix_(*(np.arange(size) for size in shape))
    words = philox((n, i, h, b), (call.seed & 0xFFFFFFFF, (call.seed >> 32) & 0xFFFFFFFF))
    halves = [half for word in words for half in (word & np.uint64(0xFFFF), word >> np.uint64(16))]
    words_BHQK = np.stack([np.broadcast_to(half, shape) for half in halves], -1)
    words_BHQK = words_BHQK.reshape(*shape[:3], 8 * shape[3])[..., :keys]
    return torch.from_numpy(words_BHQK.astype(np.int64) >= round(call.rate * 65536))


SCALED = ("query", "key", "both", "scores")
"""Where the scale may come in: four ways to write the same formula, each with rounding errors of its own."""


def scores(call: Call, dtype: torch.dtype, scaled: str) -> Tensor:
    """Compute `scale q k^T + bias`, nothing hidden."""
    query_BHQD, key_BGKD = call.query_BHQD.to(dtype), call.key_BGKD.to(dtype)
    key_BHKD = key_BGKD.repeat_interleave(query_BHQD.shape[1] // key_BGKD.shape[1], 1)
    width = query_BHQD.shape[-1]
    scale = call.scale if call.scale is not None else width**-0.5 if width else 1.0
    match scaled:
        case "query":
            product_BHQK = (query_BHQD * scale) @ key_BHKD.transpose(-1, -2)
        case "key":
            product_BHQK = query_BHQD @ (key_BHKD * scale).transpose(-1, -2)
        case "both":
            root = abs(scale) ** 0.5
            product_BHQK = (query_BHQD * root) @ (key_BHKD * math.copysign(root, scale)).transpose(-1, -2)
        case "scores":
            product_BHQK = query_BHQD @ key_BHKD.transpose(-1, -2) * scale
    return product_BHQK + added(call, dtype)


def attend(call: Call, dtype: torch.dtype = torch.float64, scaled: str = "query") -> dict[str, Tensor]:
    """Compute the output and every statistic that is asked, by the names of `Seen` without their axes."""
    visible_BHQK = visible(call)
    live_BHQ = visible_BHQK.any(-1)
    scores_BHQK = (
        scores(call, dtype, scaled).masked_fill(~visible_BHQK, -torch.inf).masked_fill(~live_BHQ[..., None], 0)
    )
    weights_BHQK = scores_BHQK.softmax(-1).masked_fill(~visible_BHQK, 0)
    dropped_BHQK = weights_BHQK
    if call.rate > 0:
        share = 1 - round(call.rate * 65536) / 65536
        dropped_BHQK = weights_BHQK * keep(call) * (1 / share if share else 0)
    value_BHKE = call.value_BGKE.to(dtype).repeat_interleave(weights_BHQK.shape[1] // call.value_BGKE.shape[1], 1)
    found = {
        "output": dropped_BHQK @ value_BHKE,
        "lse": scores_BHQK.logsumexp(-1).masked_fill(~live_BHQ, -torch.inf),
        "weights": weights_BHQK,
    }
    if call.asked.get("entropy"):
        logs_BHQK = torch.where(weights_BHQK > 0, weights_BHQK, 1).log()
        found["entropy"] = -(weights_BHQK * logs_BHQK).sum(-1)
    return found | statistics(call, weights_BHQK.detach(), live_BHQ)


def statistics(call: Call, weights_BHQK: Tensor, live_BHQ: Tensor) -> dict[str, Tensor]:
    """Compute what is asked of the weights, but the entropy."""
    asked, samples, dtype = call.asked, call.sizes[0], weights_BHQK.dtype
    j_BK = torch.stack([places(call, b)[1][0] for b in range(samples)])
    relative_BQK = torch.stack([places(call, b)[2] for b in range(samples)])
    by_pair = {
        "distance": relative_BQK.abs(),
        "diagonal": relative_BQK == 0,
        "previous": relative_BQK == -1,
        "next": relative_BQK == 1,
        "local": relative_BQK.abs() <= (asked.get("local") or 0),
    }
    by_key = {"position": j_BK, "sink": (j_BK >= 0) & (j_BK < asked.get("sink", 0))}
    found = {}
    for name in (*by_pair, *by_key):
        if asked.get(name) or (name == "local" and asked.get(name) is not None):
            numbers = by_pair[name][:, None] if name in by_pair else by_key[name][:, None, None]
            found[name] = (weights_BHQK * numbers.to(dtype)).sum(-1)
    if asked.get("peak"):
        found["peak"] = weights_BHQK.amax(-1) if weights_BHQK.shape[-1] else weights_BHQK.sum(-1)
    if asked.get("received"):
        found["received"] = (weights_BHQK * live_BHQ[..., None]).sum(-2)
    if asked.get("map"):
        found["map"], found["map_count"] = pooled(call, weights_BHQK, live_BHQ)
    if asked.get("links"):
        strongest = weights_BHQK.sort(-1, descending=True).values[..., : asked["links"]]
        missing = asked["links"] - strongest.shape[-1]
        found["link_weight"] = torch.nn.functional.pad(strongest, (0, missing))
    return found


def pooled(call: Call, weights_BHQK: Tensor, live_BHQ: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the weights, and the live queries, of each cell of the map."""
    _, _, queries, keys = call.sizes
    cells_P1 = torch.arange(call.asked["map"])[:, None]
    masses, counts = [], []
    for weights_HQK, live_HQ, b in zip(weights_BHQK, live_BHQ, range(call.sizes[0]), strict=True):
        start, key_count, query_count = extent(call, b)
        i_Q, j_K = torch.arange(queries), torch.arange(keys) - start
        row_PQ = (i_Q * len(cells_P1) // max(query_count, 1) == cells_P1) & (i_Q < query_count)
        column_PK = (j_K * len(cells_P1) // max(key_count, 1) == cells_P1) & (j_K >= 0) & (j_K < key_count)
        masses.append(row_PQ.to(weights_HQK.dtype) @ weights_HQK @ column_PK.to(weights_HQK.dtype).T)
        counts.append((row_PQ & live_HQ[:, None]).sum(-1))
    return torch.stack(masses), torch.stack(counts)


def solve(
    call: Call, given: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, scaled: str = "query"
) -> dict[str, Tensor]:
    """Compute a call and, by autograd, its gradients: `given` holds those of some of `output`, `lse` and `entropy`.

    The gradient of the leaf `query` is called `grad_query`, and so on.
    """
    leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in call.leaves.items()}
    found = attend(call.with_leaves(**leaves), dtype, scaled)
    total = torch.zeros((), dtype=dtype)
    for name, gradient in given.items():
        finite = torch.where(found[name].isfinite(), found[name], 0)
        total = total + (finite * gradient.to(dtype)).sum()
    found = {name: tensor.detach() for name, tensor in found.items()}
    return found | (slopes(total, leaves) if given else {})


def slopes(total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the gradients of leaves, zeros where a leaf has no part in the total."""
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"grad_{name}": slope for name, slope in zip(leaves, found, strict=True)}
