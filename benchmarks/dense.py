"""Attention and its statistics as they are defined, from weights that are kept whole, for many kinds of call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise import Alibi, Dropout, Mask
from headwise.kernels.philox import WORDS, keep_mask

BATCH, HEADS, WIDTH = 2, 4, 64
RATE, SLOPES = 0.1, Alibi.geometric(HEADS).slopes_H
SINK, LOCAL, CELLS, LINKS = 2, 3, 5, 4

Results = dict[str, Tensor]


class Case(NamedTuple):
    """Hold one kind of call: the mask as we take it, and the same written out."""

    name: str
    queries: int
    keys: int
    mask: Mask | None = None
    allowed_BHQK: Tensor | None = None
    length_B: Tensor | None = None
    """Valid keys of each sample."""
    query_length_B: Tensor | None = None
    start_B: Tensor | None = None
    groups: int = HEADS
    biased: bool = False
    sloped: bool = False
    dropout: Dropout | None = None
    backwards: bool = False
    """Whether queries and keys come last one first."""

    def rows(self) -> Tensor:
        """Number the queries in the order in which they come."""
        return torch.arange(self.queries).flip(0) if self.backwards else torch.arange(self.queries)

    def places(self) -> Tensor:
        """Count the keys from the first valid one: shape (B, 1, 1, K)."""
        keys = torch.arange(self.keys)
        return (keys.flip(0) if self.backwards else keys) - self.extent()[0]

    def extent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give first valid key, valid keys and valid queries, shape (B, 1, 1, 1)."""
        default = (0, self.keys, self.queries)
        given = zip((self.start_B, self.length_B, self.query_length_B), default, strict=True)
        start, keys, queries = (torch.full((BATCH,), n) if x is None else x for x, n in given)
        return tuple(x[:, None, None, None] for x in (start, keys, queries))

    def relative(self) -> Tensor:
        """Count how far each key lies after the query's own position: shape (B, 1, Q, K)."""
        _, keys, queries = self.extent()
        return self.places() - (self.rows()[:, None] + keys - queries)


def cases(length: int) -> Iterator[Case]:
    """List the kinds of call; the last three masks hold queries that see nothing."""
    rows, keys = torch.arange(length)[:, None], torch.arange(length)
    yield Case("no mask", length, length)
    yield Case("grouped heads", length, length, groups=HEADS // 2)
    yield Case("dropout", length, length, dropout=Dropout(RATE, 7))
    yield Case("causal", length, length, Mask.causal(), (rows >= keys)[None, None])
    yield Case("causal, ALiBi", length, length, Mask.causal(), (rows >= keys)[None, None], sloped=True)
    fewer = length // 2
    yield Case("fewer queries", fewer, length, Mask.causal(), (rows >= keys)[None, None, length - fewer :])
    yield Case("window", length, length, Mask.window(7, 2), ((rows - keys <= 7) & (keys - rows <= 2))[None, None])
    ids = torch.stack([keys * 3 // length, keys * 2 // length])
    yield Case("segments", length, length, Mask.segments(ids), (ids[:, :, None] == ids[:, None])[:, None])
    dense = torch.rand(BATCH, HEADS, length, length) < 0.6
    dense[:, :, 1] = False
    yield Case("dense, bias", length, length, Mask.dense(dense), dense, biased=True)
    lengths = torch.tensor([length, length // 3 + 1])
    valid = (keys < lengths[:, None])[:, None]
    padded = Mask.lengths(lengths, lengths)
    yield Case("lengths", length, length, padded, valid[:, :, None] & valid[..., None], lengths, lengths)
    left = Case("", length, length, length_B=lengths, start_B=length - lengths)
    allowed = (keys >= left.start_B[:, None])[:, None, None] & (left.relative() <= 0)
    left_mask = Mask.causal() & Mask.lengths(lengths, key_start=left.start_B)
    yield left._replace(name="left padding, causal", mask=left_mask, allowed_BHQK=allowed)


def written_out(case: Case, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Results, Tensor]:
    """Compute attention and every statistic as they are defined, in the inputs' type; the weights come last."""
    share, dtype = HEADS // case.groups, query.dtype
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores_BHQK = (query * WIDTH**-0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores_BHQK = scores_BHQK + bias
    if case.sloped:
        scores_BHQK = scores_BHQK - SLOPES.to(dtype)[:, None, None] * case.relative().abs().to(dtype)
    allowed_BHQK = case.allowed_BHQK
    if allowed_BHQK is None:
        allowed_BHQK = torch.ones(1, 1, case.queries, case.keys, dtype=torch.bool)
    live_BHQ = allowed_BHQK.any(-1)
    # A row that sees nothing keeps its scores, so that nothing becomes NaN; its weights are set to 0 below.
    scores_BHQK = scores_BHQK.masked_fill(~allowed_BHQK & live_BHQ[..., None], -torch.inf)
    weights_BHQK = scores_BHQK.softmax(-1).masked_fill(~allowed_BHQK, 0)
    log_BHQK = scores_BHQK.log_softmax(-1).masked_fill(~allowed_BHQK, 0)
    results = {
        "output": (weights_BHQK * kept(case).to(dtype)) @ value,
        "lse": scores_BHQK.logsumexp(-1).masked_fill(~live_BHQ, -torch.inf),
        "entropy": -(weights_BHQK * log_BHQK).sum(-1),
    }
    weights_BHQK = weights_BHQK.detach()
    live_BHQ = live_BHQ.expand(weights_BHQK.shape[:-1])
    return results | by_place(case, weights_BHQK) | by_strength(weights_BHQK, live_BHQ, case), weights_BHQK


def kept(case: Case) -> Tensor:
    """Give the factor of every weight that dropout makes; the mask is the one that the seed stands for."""
    if case.dropout is None:
        return torch.ones(())
    places = (*(torch.arange(n) for n in (BATCH, HEADS, case.queries)), slice(0, case.keys))
    factor_BHQK = keep_mask(torch.tensor(case.dropout.seed), RATE, *places).double() / (1 - round(RATE * WORDS) / WORDS)
    return factor_BHQK.flip(2, 3) if case.backwards else factor_BHQK


def by_place(case: Case, weights_BHQK: Tensor) -> Results:
    """Compute the statistics that are sums of weight times a function of place."""
    place, relative = case.places(), case.relative()
    factors = {
        "position": place,
        "distance": relative.abs(),
        "sink": (place >= 0) & (place < SINK),
        "diagonal": relative == 0,
        "previous": relative == -1,
        "next": relative == 1,
        "local": relative.abs() <= LOCAL,
    }
    return {name: (weights_BHQK * factor.to(weights_BHQK.dtype)).sum(-1) for name, factor in factors.items()}


def by_strength(weights_BHQK: Tensor, live_BHQ: Tensor, case: Case) -> Results:
    """Compute peak, links, received attention and the map."""
    peak, peak_key = weights_BHQK.max(-1)
    link_weight, link_key = weights_BHQK.topk(LINKS, -1)
    _, keys, queries = (x[..., 0] for x in case.extent())
    row_B1Q = (case.rows() * CELLS // queries).clamp(0, CELLS - 1)
    key_B1K = (case.places()[..., 0, :] * CELLS // keys).clamp(0, CELLS - 1)
    by_row, by_key = (F.one_hot(x, CELLS).to(weights_BHQK.dtype) for x in (row_B1Q, key_B1K))
    return {
        "peak": peak,
        "peak_key": peak_key,
        "link_weight": link_weight,
        "link_key": link_key,
        "received": weights_BHQK.sum(-2),
        "map": by_row.transpose(-1, -2) @ (weights_BHQK @ by_key),
        "map_count": (F.one_hot(row_B1Q, CELLS) * live_BHQ[..., None]).sum(-2),
    }


def written_backwards(case: Case, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Results:
    """Compute the same with every sum taken in reverse: what rounding alone does."""
    allowed = case.allowed_BHQK
    last_first = case._replace(backwards=True, allowed_BHQK=None if allowed is None else allowed.flip(2, 3))
    turned = query.flip(2, 3), key.flip(2, 3), value.flip(2), None if bias is None else bias.flip(2, 3)
    results = written_out(last_first, *turned)[0]
    results |= {name: case.keys - 1 - results[name] for name in ("peak_key", "link_key")}
    return {name: x if name.startswith("map") else x.flip(2) for name, x in results.items()}
