"""Look at every head of a model while it runs, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headwise.contracts import Mask, Scored, Seen, Statistics
from headwise.errors import InputError
from headwise.heads.gates import hooked, seams_of
from headwise.heads.table import HeadTable, Seam
from headwise.heads.tokens import Tokens, shares
from headwise.modules import Attend

__all__ = ["Observer", "observe"]

_USUAL = Statistics(
    entropy=True, peak=True, distance=True, sink=1, diagonal=True, previous=True, next=True, local=2, map=16
)


class Observer:
    """Collect what the seams of a model tell; `table` gives what was seen so far."""

    def __init__(self, seams: dict[str, Attend]) -> None:
        self._seams = seams
        self._seen: dict[str, Seam] = {}
        self._tokens: Tokens | None = None

    def table(self) -> HeadTable:
        """Give one row for every head.

        Raises:
            InputError: when the model was not run, or a part of it that holds heads.
        """
        missed = [place for place in self._seams if place not in self._seen]
        if missed:
            raise InputError(
                f"every attention layer must run while it is observed; got no call of {', '.join(missed)}. "
                "Call the model inside `with observe(model)`, by its forward."
            )
        return HeadTable(tuple(self._seen[place] for place in self._seams))

    def reading(self, tokens: Tokens | None) -> None:
        """Tell what the model is about to read, so that shares of separators, equal and rare tokens are counted too.

        They take a second pass, by windows of queries. Calls whose keys are not these tokens are passed over.
        """
        self._tokens = tokens

    def hear(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], seen: Seen) -> None:
        """Add what one call of the seam at a place has shown."""
        cross, seam = bool(kwargs.get("cross")), self._seams[place]
        scored = {name: Scored(held.sum.double().cpu(), held.count.cpu()) for name, held in seen.per_head().items()}
        values = {name: getattr(seen, f"{name}_BHQ") for name in scored if name != "map"}
        if self._tokens is not None and not cross and self._tokens.fit(*args[:2]):
            found = self._shares(seam, args, kwargs)
            values |= found
            scored |= {name: _summed(held_BHQ, seen.live_BHQ) for name, held_BHQ in found.items()}
        number = next((part for part in place.split(".") if part.isdecimal()), "0")
        kind: Literal["self", "cross"] = "cross" if cross else "self"
        examples = _examples(values, seen.live_BHQ)
        here = Seam(place, int(number), kind, seam.heads, scored, examples)
        self._seen[place] = self._seen[place] + here if place in self._seen else here

    def _shares(self, seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        assert self._tokens is not None, "asked where it is known"
        query_BHQD, key_BGKD = args[:2]
        mask = seam.mask_of(args, kwargs) or Mask()
        return shares(query_BHQD, key_BGKD, mask, self._tokens, scale=seam.scale, bias=kwargs.get("bias"))


@contextmanager
def observe(model: nn.Module, statistics: Statistics = _USUAL) -> Iterator[Observer]:
    """Look at the heads of every attention layer of a model, for as many calls as are made inside.

    Output, gradients and random numbers are those of an unobserved model, to the bit where the same backend takes the
    call. Compiled models run eagerly meanwhile. Nothing is left behind, not even after an exception.

    Args:
        model: any model built on `headwise.Attend`, wrapped and compiled ones included.
        statistics: what to learn about each head. Links and received mass do not add up over texts of different
            lengths and are not kept.

    Raises:
        InputError: when the model has no attention layer of ours.

    Example:
        >>> from headwise import MultiHeadAttention
        >>> layer = MultiHeadAttention(16, 2)
        >>> with observe(layer) as observer:
        ...     _ = layer(torch.randn(1, 5, 16))
        >>> [(row["layer"], row["head"]) for row in observer.table().rows()]
        [(0, 0), (0, 1)]
    """
    seams = seams_of(model)
    observer = Observer(seams)
    hear = {place: partial(_hear, observer, place) for place in seams}
    with hooked(model, hear, partial(_ask, statistics)):
        yield observer


def _ask(statistics: Statistics, seam: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ask a seam for statistics; across two texts there is no own position to ask for."""
    if kwargs.get("cross"):
        statistics = replace(statistics, diagonal=False, previous=False, next=False)
    return args, kwargs | {"statistics": statistics}


def _hear(
    observer: Observer, place: str, seam: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """Take the statistics out of a seam's result, so that the model sees the output alone."""
    output, seen = result
    observer.hear(place, args, kwargs, seen)
    return output


def _summed(held_BHQ: Tensor, live_BHQ: Tensor) -> Scored:
    return Scored(held_BHQ.masked_fill(~live_BHQ, 0).sum((0, 2)).double().cpu(), live_BHQ.sum((0, 2)).cpu())


def _examples(values: dict[str, Tensor], live_BHQ: Tensor) -> dict[str, Scored]:
    """Sum the mean of each example that has a live query, and its square."""
    queries_BH = live_BHQ.sum(2)
    counted_H = (queries_BH > 0).sum(0).cpu()
    found = {}
    for name, held_BHQ in values.items():
        mean_BH = held_BHQ.detach().masked_fill(~live_BHQ, 0).sum(2).double() / queries_BH.clamp(min=1)
        found[name] = Scored(torch.stack([mean_BH.sum(0), (mean_BH**2).sum(0)]).cpu(), counted_H)
    return found
