"""Choose which heads a model keeps, and build the smaller model."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from headwise.contracts.files import read_format
from headwise.contracts.layout import HeadId, Layout, Place
from headwise.errors import ConfigError, InputError
from headwise.heads.importance import HeadScores

__all__ = ["Plan", "check_scores", "plan", "plan_within", "prune"]

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Say which heads a model keeps at each place."""

    by: str
    """How the heads were scored."""
    keep: Mapping[str, tuple[int, ...]]
    """Names of the heads that stay, by the path of the seam."""
    cut: Mapping[str, tuple[int, ...]]
    """Names of the heads that go; with `keep`, all that the model had when it was planned."""

    @property
    def share(self) -> float:
        """Give the part of all heads that stays."""
        kept, gone = (sum(map(len, each.values())) for each in (self.keep, self.cut))
        return kept / (kept + gone)

    def to_json(self) -> str:
        """Write the plan, so that `from_json` gives it back."""
        return json.dumps({"format": _FORMAT, "by": self.by, "keep": dict(self.keep), "cut": dict(self.cut)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            InputError: when the text holds none, or one of another version.
        """

        def read(held: Any) -> Plan:
            keep, cut = ({path: tuple(names) for path, names in held[part].items()} for part in ("keep", "cut"))
            return cls(held["by"], keep, cut)

        return read_format(text, _FORMAT, read, "a plan", "Plan again.")

    def __str__(self) -> str:
        lines = [f"{path}: keep {list(names)}, cut {list(self.cut[path])}" for path, names in self.keep.items()]
        return "\n".join([*lines, f"{self.share:.0%} of the heads stay, chosen by {self.by}"])


def plan(layout: Layout, scores: HeadScores, keep: float) -> Plan:
    """Choose the heads that stay: the best over the whole model, at least one a layer.

    Where query heads share a key and value head, whole groups go or stay: their score is the mean of their heads'.

    Args:
        layout: the model.
        scores: a number for each of its heads; the larger, the more it is needed. Other heads are passed over.
        keep: part of all heads that stays, above 0 and at most 1.

    Raises:
        ConfigError: when the part is none.
        InputError: when the scores are of another model.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"`keep` must be above 0 and at most 1; got {keep}. 0.6 keeps 60 % of the heads.")
    heads = [HeadId(place.path, name) for place in layout.places for name in place.heads]
    check_scores(scores, heads)
    ranked = _ranked(layout.places, scores)
    best = {path: next(group for at, group in ranked if at == path) for path in {at for at, _ in ranked}}
    chosen = list(best.items())
    wanted, held = round(keep * len(heads)), sum(map(len, best.values()))
    for at, group in ranked:
        if held < wanted and best[at] != group:
            chosen.append((at, group))
            held += len(group)
    stays = {HeadId(at, name) for at, group in chosen for name in group}
    parts = [
        {
            place.path: tuple(n for n in place.heads if (HeadId(place.path, n) in stays) is kept)
            for place in layout.places
        }
        for kept in (True, False)
    ]
    return Plan(scores.by, *parts)


def _ranked(places: tuple[Place, ...], scores: HeadScores) -> list[tuple[str, tuple[int, ...]]]:
    """List the groups of all layers, the most needed head for head first."""
    groups = [(place.path, group) for place in places for group in place.groups]
    return sorted(
        groups, key=lambda each: -sum(scores.scores[HeadId(each[0], name)] for name in each[1]) / len(each[1])
    )


def check_scores(scores: HeadScores, heads: list[HeadId]) -> None:
    """Refuse scores that lack some of these heads.

    Raises:
        InputError: when they do.
    """
    missing = sorted(set(heads) - set(scores.scores))
    if missing:
        raise InputError(
            f"scores must be of this model's {len(heads)} heads; got none for {missing[0].place} "
            f"head {missing[0].head}. Score this model."
        )


def plan_within(
    layout: Layout,
    scores: HeadScores,
    fits: Callable[[nn.Module], bool],
    *,
    heads: Literal["most", "fewest"] = "most",
) -> Plan:
    """Keep as many heads as a limit of time or size allows, or as few as a limit of loss allows.

    Halves the range until one head decides, so a few models are built and asked.

    Args:
        layout: the model.
        scores: as for `plan`.
        fits: whether a cut model keeps within the limit; more heads turn it once at most, to false for `"most"`, to
            true for `"fewest"`.
        heads: which end of the models that fit is wanted.

    Raises:
        ConfigError: when none fits.
    """
    least, count = len(layout.places), sum(len(place.heads) for place in layout.places)
    at = range(least, count + 1) if heads == "most" else range(count, least - 1, -1)
    fitting = bisect_left(at, True, key=lambda n: not fits(prune(layout, plan(layout, scores, n / count))))
    if not fitting:
        raise ConfigError(f"a cut model must keep within the limit; got none with {at[0]} heads or another. Loosen it.")
    return plan(layout, scores, at[fitting - 1] / count)


def prune(layout: Layout, chosen: Plan) -> nn.Module:
    """Build the model that has only the heads that a plan keeps; rows and columns are gone for good.

    Args:
        layout: the model; it stays as it is.
        chosen: what to keep.

    Raises:
        InputError: when the plan is of another model, keeps no head of a layer, or unequal parts of its groups.
    """
    held = {place.path: place for place in layout.places}
    if set(held) != set(chosen.keep):
        told = sorted(set(held) ^ set(chosen.keep))[0]
        raise InputError(f"a plan must be of this model; got one that differs at {told}. Plan for this model.")
    for path, names in chosen.keep.items():
        _check_place(held[path], names)
    return layout.cut({path: tuple(names) for path, names in chosen.keep.items()})


def _check_place(place: Place, names: tuple[int, ...]) -> None:
    unknown = set(names) - set(place.heads)
    if unknown:
        raise InputError(
            f"a plan must name heads of the model; got {min(unknown)} at {place.path}. Plan for this model."
        )
    if not names:
        raise InputError(f"a layer must keep at least one head; got none at {place.path}. Keep its best.")
    sizes = {len(set(group) & set(names)) for group in place.groups} - {0}
    if len(sizes) > 1:
        raise InputError(
            f"groups must keep the same number of query heads, or go whole; got {sorted(sizes)} at {place.path}. "
            "Cut whole groups."
        )
