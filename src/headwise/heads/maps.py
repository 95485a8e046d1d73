"""Draw what every head does on one text: maps at several scales, links and curves, in memory linear in its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headwise.contracts import Seen, Statistics
from headwise.errors import InputError
from headwise.heads.gates import hooked, seams_of
from headwise.heads.zoom import CELLS, Window, cell_of, cells_of, pooled, windows_of
from headwise.modules import Attend

__all__ = ["Drawing", "Picture", "draw", "sharpness"]

_LINKS = 3
_BLOCK = 1 << 24
"""Weights of a head that are held at once."""
_CURVES = Statistics(
    entropy=True, peak=True, distance=True, sink=1, diagonal=True, previous=True, next=True, local=2, received=True
)
_PER_QUERY = ("entropy", "peak", "distance", "sink", "diagonal", "previous", "next", "local")


@dataclass(frozen=True)
class Picture:
    """Hold what the heads of one seam did on one text: queries in P cells, keys in N, both of nearly equal sizes."""

    place: str
    """Path of the seam in the model."""
    kind: Literal["self", "cross"]
    """Whether the queries look at their own text or at another."""
    heads: tuple[int, ...]
    """Names of the heads, in order."""
    queries: int
    """How many queries there are; query i falls in cell floor(i P / queries)."""
    keys: int
    """How many keys there are; key j falls in cell floor(j N / keys)."""
    map_HPN: Tensor
    """Mean over the cell's live queries of what they give to the cell's keys, 0 to 1: a row adds up to 1."""
    curves: Mapping[str, Tensor]
    """Mean of each statistic over the live queries of a cell, (H, P); of `received` over the keys of one, (H, N)."""
    link_query_HP: Tensor
    """The query of each cell whose strongest link is the strongest there."""
    link_key_HPL: Tensor
    """Its strongest keys, -1 where there are fewer."""
    link_weight_HPL: Tensor
    """Their weights, 0 to 1."""
    every_key_HQL: Tensor
    """The strongest keys of every query."""
    every_weight_HQL: Tensor
    """Their weights."""
    windows: tuple[Window, ...] = ()
    """Parts of the map of chosen heads at finer scales."""


@dataclass(frozen=True)
class Drawing:
    """Hold what every head did on one text, or on a text and what was written from it."""

    source: tuple[str, ...]
    """The tokens that were read, as they are to be shown."""
    target: tuple[str, ...]
    """The tokens of the text that a decoder wrote; empty without one."""
    pictures: tuple[Picture, ...]
    """What was seen at each seam."""
    title: str = ""
    """What the text is called."""
    written: int | None = None
    """Index of the first token that the model wrote itself, in the target where there is one, else in the source."""
    closer: tuple[tuple[str, int], ...] = ()
    """Place and name of the heads that were looked at closer: their maps at the finest scale and all their links."""


def draw(
    model: nn.Module,
    call: Callable[[], object],
    source: Sequence[str],
    *,
    target: Sequence[str] = (),
    title: str = "",
    written: int | None = None,
    closer: int | Sequence[tuple[str, int]] = 4,
) -> Drawing:
    """Draw every head of a model while it reads one text, exactly, however long the text is.

    Of every head there are a map of at most 256 x 256 cells, curves along the text, and links. Where that is coarser
    than a token, the call is repeated for some heads: parts of their maps around the strongest cells are computed again
    in blocks, at finer scales down to the token.

    Args:
        model: any model built on `headwise.Attend`, or attached to it.
        call: runs the model once on the text, whole and without padding; for a text that was generated, on all of it.
        source: its tokens.
        target: the tokens that a decoder was given.
        title: what the text is called.
        written: index of the first token that the model wrote itself.
        closer: the heads to look at closer, by place and name; a number takes the sharpest.

    Raises:
        InputError: when the model does not run through each seam once, on one text, with as many tokens as are named,
            or has not a head that is named.

    Example:
        >>> from headwise import MultiHeadAttention
        >>> layer, x_BTM = MultiHeadAttention(16, 2).eval(), torch.randn(1, 3, 16)
        >>> draw(layer, lambda: layer(x_BTM), ["a", "b", "c"]).pictures[0].map_HPN.shape
        torch.Size([2, 3, 3])
    """
    found: dict[str, Picture] = {}
    with torch.no_grad(), hooked(model, {place: partial(_hear, found, place) for place in seams_of(model)}, _ask):
        call()
    drawing = Drawing(tuple(source), tuple(target), tuple(found.values()), title, written)
    _check(drawing, seams_of(model))
    chosen = tuple(_sharpest(found, closer)) if isinstance(closer, int) else tuple(closer)
    for place, head in chosen:
        if place not in found or head not in found[place].heads:
            held = {name: picture.heads for name, picture in found.items()}
            raise InputError(f"`closer` must name heads of the model; got {head} of {place!r}. It has {held}.")
    coarse = {name: each for name, each in found.items() if each.map_HPN.shape[1:] != (each.queries, each.keys)}
    if any(place in coarse for place, _ in chosen):
        zoom = {place: partial(_zoom, coarse, chosen, place) for place in coarse}
        with torch.no_grad(), hooked(model, zoom):
            call()
    return replace(drawing, pictures=tuple(coarse.get(place, each) for place, each in found.items()), closer=chosen)


@contextmanager
def sharpness(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Learn how much each head gives to the strongest key of a query, on average over the live queries of each text.

    Gives numbers from 0 to 1, shape (B, H), by the place of the seam, for the last call that is made inside.
    """
    found: dict[str, Tensor] = {}

    def ask(seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"statistics": Statistics(peak=True)}

    def hear(place: str, seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        output, seen = result
        live_BHQ = seen.live_BHQ
        found[place] = seen.peak_BHQ.masked_fill(~live_BHQ, 0).sum(2) / live_BHQ.sum(2).clamp(min=1)
        return output

    with hooked(model, {place: partial(hear, place) for place in seams_of(model)}, ask):
        yield found


def _ask(seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ask a seam for what a picture takes; a map that its cells would not fill is made of weights afterwards."""
    queries, keys = args[0].shape[2], args[1].shape[2]
    asked = replace(_CURVES, links=min(_LINKS, keys), map=_cells_of_pass(queries, keys))
    if kwargs.get("cross"):
        asked = replace(asked, diagonal=False, previous=False, next=False)
    return args, kwargs | {"statistics": asked}


def _cells_of_pass(queries: int, keys: int) -> int:
    """Give the cells of a map that is summed in the pass itself; 0 for one that is made in blocks."""
    if min(queries, keys) <= CELLS:
        return 0
    return cells_of(queries) if queries == keys else CELLS


def _hear(
    found: dict[str, Picture], place: str, seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """Take the statistics out of a seam's result, so that the model sees the output alone."""
    output, seen = result
    if place in found or args[0].shape[0] != 1:
        told = f"a second call of {place}" if place in found else f"{args[0].shape[0]} texts"
        raise InputError(f"a drawing must be of one text, read in one call; got {told}. Pass each text whole, alone.")
    weights_of = partial(_weights, seam, args, kwargs)
    map_HPN = _map_of_pass(seen) if seen.map_BHPP is not None else _map_in_blocks(weights_of, seen)
    found[place] = _picture(place, seam.heads, seen, map_HPN, cross=bool(kwargs.get("cross")))
    return output


def _weights(seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any], rows: slice) -> Tensor:
    """Compute the weights of some queries of a seam's call, shape (H, Q, K)."""
    return seam.weights(args[0], args[1], seam.mask_of(args, kwargs), bias=kwargs.get("bias"), queries=rows)[0]


def _weights_of_head(seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any], at: int, rows: slice) -> Tensor:
    """Compute the weights of one head, shape (Q, K); of all heads where bias or mask may be a head's own."""
    if _has_own(args, kwargs):
        return _weights(seam, args, kwargs, rows)[at]
    query_BHQD, key_BGKD = args[:2]
    group = at // (query_BHQD.shape[1] // key_BGKD.shape[1])
    alone = query_BHQD[:, at : at + 1], key_BGKD[:, group : group + 1], *args[2:]
    return _weights(seam, alone, kwargs, rows)[0]


def _has_own(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    mask = Attend.mask_of(args, kwargs)
    return kwargs.get("bias") is not None or (mask is not None and mask.dense_BHQK is not None)


def _map_of_pass(seen: Seen) -> Tensor:
    assert seen.map_BHPP is not None, "the map was asked for"
    assert seen.map_count_BHP is not None, "a map comes with its count"
    return seen.map_BHPP[0] / seen.map_count_BHP[0].clamp(min=1)[..., None]


def _map_in_blocks(weights_of: Callable[[slice], Tensor], seen: Seen) -> Tensor:
    """Sum weights into cells, some queries at a time."""
    assert seen.received_BHK is not None, "it was asked for"
    (heads, queries), keys = seen.lse_BHQ.shape[1:], seen.received_BHK.shape[2]
    rows, columns = cells_of(queries), cells_of(keys)
    map_HPN = seen.lse_BHQ.new_zeros(heads, rows, columns)
    step = max(1, _BLOCK // max(1, keys))
    for begin in range(0, queries, step):
        block_HQK = weights_of(slice(begin, begin + step))
        row_Q = cell_of(queries, rows)[begin : begin + step].to(block_HQK.device)
        map_HPN.index_add_(1, row_Q, pooled(block_HQK.to(map_HPN.dtype), columns))
    live_HP = pooled(seen.live_BHQ[0].to(map_HPN.dtype), rows)
    return map_HPN / live_HP.clamp(min=1)[..., None]


def _picture(place: str, heads: tuple[int, ...], seen: Seen, map_HPN: Tensor, *, cross: bool) -> Picture:
    assert seen.received_BHK is not None, "it was asked for"
    assert seen.link_weight_BHQN is not None, "links were asked for"
    assert seen.link_key_BHQN is not None, "links have keys"
    rows, columns = map_HPN.shape[1:]
    live_HQ, keys = seen.live_BHQ[0], seen.received_BHK.shape[2]
    counted_HP = pooled(live_HQ.float(), rows).clamp(min=1)
    asked = {name: getattr(seen, f"{name}_BHQ") for name in _PER_QUERY}
    curves = {
        name: pooled(values_BHQ[0].masked_fill(~live_HQ, 0).float(), rows) / counted_HP
        for name, values_BHQ in asked.items()
        if values_BHQ is not None
    }
    in_cell_N = pooled(torch.ones(keys, device=live_HQ.device), columns)
    curves["received"] = pooled(seen.received_BHK[0].float(), columns) / in_cell_N
    weight_HQL, key_HQL = seen.link_weight_BHQN[0].float(), seen.link_key_BHQN[0].int()
    query_HP = _strongest_of_cells(weight_HQL[..., 0], rows)
    at_HPL = query_HP[..., None].expand(-1, -1, weight_HQL.shape[2])
    return Picture(
        place,
        "cross" if cross else "self",
        heads,
        live_HQ.shape[1],
        keys,
        map_HPN.float().cpu(),
        {name: values.cpu() for name, values in curves.items()},
        query_HP.int().cpu(),
        key_HQL.gather(1, at_HPL).cpu(),
        weight_HQL.gather(1, at_HPL).cpu(),
        key_HQL.cpu(),
        weight_HQL.cpu(),
    )


def _strongest_of_cells(weight_HQ: Tensor, cells: int) -> Tensor:
    """Find in each cell the query with the largest weight."""
    cell_Q = cell_of(weight_HQ.shape[1], cells).to(weight_HQ.device)
    order_HQ = (2 * cell_Q + weight_HQ.double()).argsort(-1)  # weights are at most 1, so cells stay together
    last_P = torch.bincount(cell_Q, minlength=cells).cumsum(0) - 1
    return order_HQ[:, last_P]


def _sharpest(found: Mapping[str, Picture], count: int) -> Iterator[tuple[str, int]]:
    """Name the heads whose queries give most to their strongest key, on average."""
    ranked = [
        (-sharpness, place, head)
        for place, picture in found.items()
        for head, sharpness in zip(picture.heads, picture.every_weight_HQL[..., 0].mean(1).tolist(), strict=True)
    ]
    for _, place, head in sorted(ranked)[:count]:
        yield place, head


def _zoom(
    coarse: dict[str, Picture],
    chosen: tuple[tuple[str, int], ...],
    place: str,
    seam: Attend,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> None:
    """Compute parts of the maps of chosen heads again, in blocks, at finer scales."""
    wanted = [head for where, head in chosen if where == place]
    picture = coarse[place]
    step = max(1, _BLOCK // (picture.keys * (len(picture.heads) if _has_own(args, kwargs) else 1)))
    made: list[Window] = []
    for head in wanted:
        at = picture.heads.index(head)
        weights_of = partial(_weights_of_head, seam, args, kwargs, at)
        made += windows_of(head, picture.map_HPN[at], (picture.queries, picture.keys), weights_of, step)
    coarse[place] = replace(picture, windows=tuple(made))


def _check(drawing: Drawing, seams: Mapping[str, Attend]) -> None:
    missed = [place for place in seams if place not in {picture.place for picture in drawing.pictures}]
    if missed:
        raise InputError(
            f"every attention layer must run while it is drawn; got no call of {', '.join(missed)}. "
            "Let `call` run the model's forward."
        )
    sizes = {size for picture in drawing.pictures for size in (picture.queries, picture.keys)}
    for name, tokens in (("source", drawing.source), ("target", drawing.target)):
        if tokens and len(tokens) not in sizes:
            told = f"{len(tokens)} for layers that saw {', '.join(map(str, sorted(sizes)))}"
            raise InputError(f"`{name}` must name every token that the model was given; got {told}. Name them all.")
