"""Hold what was seen of every head of a model, as sums that merge over batches and processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from headwise.contracts import Scored
from headwise.errors import InputError

__all__ = ["HeadTable", "Seam"]

_FORMAT = 1


@dataclass(frozen=True)
class Seam:
    """Hold the sums of the heads of one attention layer."""

    place: str
    """Path of the seam in the model."""
    layer: int
    """Number of its layer, counted from 0."""
    kind: Literal["self", "cross"]
    """Whether the queries look at their own text or at another."""
    heads: tuple[int, ...]
    """Names of the heads, in order."""
    scored: Mapping[str, Scored]
    """Sum and count of each statistic: one number a head, for `map` a matrix a head."""

    def __add__(self, other: Seam) -> Seam:
        """Merge the sums of other texts."""
        same = ("place", "layer", "kind", "heads")
        if any(getattr(self, name) != getattr(other, name) for name in same) or set(self.scored) != set(other.scored):
            raise InputError(
                f"tables must be of the same heads and statistics; got {self.place} {self.heads} {sorted(self.scored)} "
                f"and {other.place} {other.heads} {sorted(other.scored)}. Observe both with the same model and choice."
            )
        return replace(self, scored={name: scored + other.scored[name] for name, scored in self.scored.items()})


@dataclass(frozen=True)
class HeadTable:
    """Hold one row for every head of a model: means over all live queries of the texts that were looked at.

    Tables of two sets of texts add up to the table of both, so batches and processes merge by `+`.
    """

    seams: tuple[Seam, ...]

    def __add__(self, other: HeadTable) -> HeadTable:
        """Merge the tables of other texts."""
        if len(self.seams) != len(other.seams):
            raise InputError(
                f"tables must have the same layers; got {len(self.seams)} and {len(other.seams)}. Use the same model."
            )
        return HeadTable(tuple(mine + theirs for mine, theirs in zip(self.seams, other.seams, strict=True)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row a head: layer, kind, head, queries counted, and the mean of each statistic."""
        for seam in self.seams:
            means = {name: scored.mean.tolist() for name, scored in seam.scored.items() if name != "map"}
            counts = seam.scored["lse"].count.tolist()
            for i, head in enumerate(seam.heads):
                figures = {name: values[i] for name, values in means.items()}
                yield {"layer": seam.layer, "kind": seam.kind, "head": head, "queries": counts[i], **figures}

    def maps(self) -> Iterator[list[list[float]]]:
        """Yield the pooled map of each head, in the order of `rows`: the mean mass from a row of cells to a column."""
        for seam in self.seams:
            if "map" in seam.scored:
                yield from seam.scored["map"].mean.tolist()

    def to_json(self) -> str:
        """Write the table with its sums, so that `from_json` gives it back to the last bit."""
        seams = [
            vars(seam) | {"scored": {name: _listed(scored) for name, scored in seam.scored.items()}}
            for seam in self.seams
        ]
        return json.dumps({"format": _FORMAT, "rows": list(self.rows()), "seams": seams}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> HeadTable:
        """Read a table that `to_json` wrote."""
        held = json.loads(text)
        if not isinstance(held, dict) or held.get("format") != _FORMAT:
            raise InputError(f"a head table must have format {_FORMAT}; got {text[:60]!r}. Write it with `to_json`.")
        return cls(tuple(_seam(**seam) for seam in held["seams"]))

    def __str__(self) -> str:
        rows = list(self.rows())
        named = dict.fromkeys(name for row in rows for name in row)
        hidden = {"queries", "lse", *(("kind",) if len({row["kind"] for row in rows}) < 2 else ())}
        names = [name for name in named if name not in hidden]
        return _columns(names, [[_cell(row.get(name, "-")) for name in names] for row in rows])


def _seam(place: str, layer: int, kind: Any, heads: Sequence[int], scored: Mapping[str, Any]) -> Seam:
    held = {
        name: Scored(torch.tensor(total, dtype=torch.float64), torch.tensor(count))
        for name, (total, count) in scored.items()
    }
    return Seam(place, layer, kind, tuple(heads), held)


def _listed(scored: Scored) -> list[Any]:
    return [scored.sum.tolist(), scored.count.tolist()]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set out a table in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (names, *rows)
    )
