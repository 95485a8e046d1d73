"""See what the heads of a model do on one text: what each key receives, and the strongest links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from headwise.contracts import Seen, Statistics
from headwise.contracts.layout import HeadId
from headwise.errors import InputError
from headwise.functional import attend
from headwise.heads import HeadTable
from headwise.heads.gates import gated, seams_of
from headwise.heads.importance import closed
from headwise.modules import Attend
from headwise.web.work import TILE, HeadView

__all__ = [
    "check_heads",
    "head_links",
    "hearing",
    "layers_of",
    "off_for_all",
    "strongest",
    "switched",
    "table_of",
    "tile_of",
]


@contextmanager
def hearing(model: nn.Module, statistics: Statistics) -> Iterator[dict[str, Seen]]:
    """Collect what the last call of every seam shows, by the path of the seam; the model itself notices nothing."""
    heard: dict[str, Seen] = {}
    with ExitStack() as stack:
        for place, seam in seams_of(model).items():
            hook = partial(_hear, heard, place, statistics)
            stack.callback(seam.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield heard


def _hear(
    heard: dict[str, Seen],
    place: str,
    statistics: Statistics,
    seam: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    assert isinstance(seam, Attend), "hooked on seams only"
    (query, key, value), mask = args[:3], seam.mask_of(args, kwargs)
    heard[place] = attend(query, key, value, mask, bias=kwargs.get("bias"), scale=seam.scale, statistics=statistics)[1]


def layers_of(model: nn.Module) -> list[dict[str, Any]]:
    """List the attention layers with their kind and the names of their heads, in the order of the model.

    The kind says which text is looked at from which: `encoder`, `decoder`, `cross` (the source, from what is written)
    or `pooling` (a text, from one query for all of it).
    """
    return [
        {"place": place, "kind": "cross" if "cross_attention" in place else place.split(".")[0], "heads": [*seam.heads]}
        for place, seam in seams_of(model).items()
    ]


def switched(model: nn.Module, off_B: Sequence[tuple[HeadId, ...]]) -> AbstractContextManager[None]:
    """Switch off, for each sample of a batch, its own heads; a model whose heads all stay on is left alone.

    Raises:
        InputError: for a head that the model has not.
    """
    if not any(off_B):
        return nullcontext()
    heads = {place: seam.heads for place, seam in seams_of(model).items()}
    each = [closed(heads, off) for off in off_B]
    places = sorted({place for gates in each for place in gates})
    open_ = {place: torch.ones(len(heads[place])) for place in places}
    return gated(model, {x: torch.stack([gates.get(x, open_[x]) for gates in each]) for x in places})


def off_for_all(model: nn.Module, off: tuple[HeadId, ...]) -> AbstractContextManager[None]:
    """Switch the same heads off for every sample, however many there are at a time."""
    if not off:
        return nullcontext()
    heads = {place: seam.heads for place, seam in seams_of(model).items()}
    return gated(model, closed(heads, off))


def strongest(
    heard: Mapping[str, Seen], layers: Sequence[Mapping[str, Any]], keys: Sequence[int]
) -> dict[str, Any] | None:
    """Name the head whose queries together looked most at some keys, with the share of its weight that they got."""
    best: dict[str, Any] | None = None
    for layer in layers:
        seen = heard[layer["place"]]
        assert seen.received_BHK is not None, "asked for"
        share_H = seen.received_BHK[0, :, list(keys)].sum(-1) / seen.live_BHQ[0].sum(-1).clamp(min=1)
        share, at = share_H.max(-1)
        if best is None or float(share) > best["share"]:
            best = {"place": layer["place"], "head": layer["heads"][int(at)], "share": float(share)}
    return best


def head_links(heard: Mapping[str, Seen], layers: Sequence[Mapping[str, Any]], head: HeadId) -> list[list[Any]]:
    """List for each query the strongest keys of a head, as pairs of key and weight."""
    seen, at = heard[head.place], _place_of(layers, head)
    assert seen.link_weight_BHQN is not None, "asked for"
    assert seen.link_key_BHQN is not None, "asked for"
    keys, weights = seen.link_key_BHQN[0, at].tolist(), seen.link_weight_BHQN[0, at].tolist()
    return [
        [{"key": key, "weight": weight} for key, weight in zip(*pair, strict=True) if key >= 0]
        for pair in zip(keys, weights, strict=True)
    ]


def _place_of(layers: Sequence[Mapping[str, Any]], head: HeadId) -> int:
    names = next(layer["heads"] for layer in layers if layer["place"] == head.place)
    return int(names.index(head.head))


def check_heads(layers: Sequence[Mapping[str, Any]], heads: Sequence[HeadId]) -> None:
    """Refuse heads that the model has not.

    Raises:
        InputError: with the first of them.
    """
    known = {layer["place"]: layer["heads"] for layer in layers}
    for head in heads:
        if head.head not in known.get(head.place, ()):
            told = f"{head.head} of {head.place[:80]!r}"
            raise InputError(f"heads must be the model's own; got {told}. GET /v1/models lists them.")


def table_of(table: HeadTable) -> list[dict[str, Any]]:
    """List the heads with their figures, each under the path of its seam."""
    places = [seam.place for seam in table.seams for _ in seam.heads]
    return [{"place": place, **row} for place, row in zip(places, table.rows(), strict=True)]


def tile_of(table: HeadTable, view: HeadView) -> list[list[float]]:
    """Cut a tile of `TILE` x `TILE` cells out of the map of a head."""
    seam = next(seam for seam in table.seams if seam.place == view.head.place)
    map_PP = seam.scored["map"].mean[seam.heads.index(view.head.head)]
    rows, columns = (slice(TILE * at, TILE * at + TILE) for at in (view.row, view.column))
    tile: list[list[float]] = map_PP[rows, columns].tolist()
    return tile
