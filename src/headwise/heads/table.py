"""Hold what was seen of every head of a model, as sums that merge over batches and processes."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from headwise.contracts import Scored
from headwise.contracts.files import read_format
from headwise.errors import InputError
from headwise.heads.roles import guess

if TYPE_CHECKING:
    from pandas import DataFrame

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
    examples: Mapping[str, Scored] = field(default_factory=dict)
    """Of each statistic the sums of the examples' means and of their squares, shape (2, H), and the examples."""

    def __add__(self, other: Seam) -> Seam:
        """Merge the sums of other texts."""
        same = ("place", "layer", "kind", "heads")
        if any(getattr(self, name) != getattr(other, name) for name in same) or set(self.scored) != set(other.scored):
            raise InputError(
                f"tables must be of the same heads and statistics; got {self.place} {self.heads} {sorted(self.scored)} "
                f"and {other.place} {other.heads} {sorted(other.scored)}. Observe both with the same model and choice."
            )
        both = self.examples.keys() & other.examples.keys()
        return replace(
            self,
            scored={name: scored + other.scored[name] for name, scored in self.scored.items()},
            examples={name: self.examples[name] + other.examples[name] for name in self.examples if name in both},
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row a head, as `HeadTable.rows` does."""
        means = {name: scored.mean.tolist() for name, scored in self.scored.items() if name != "map"}
        counts = self.scored["lse"].count.tolist()
        for i, head in enumerate(self.heads):
            figures = {name: values[i] for name, values in means.items()}
            yield {"layer": self.layer, "kind": self.kind, "head": head, "queries": counts[i], **figures}

    def spread(self, name: str) -> list[float]:
        """Give the standard deviation of each head's statistic over the examples."""
        mean_2H = self.examples[name].mean
        return (mean_2H[1] - mean_2H[0] ** 2).clamp(min=0).sqrt().tolist()


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
            yield from seam.rows()

    def full_rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row with its place, the mean length of a text, the spread of each statistic, and a role.

        The spread is the standard deviation of the examples' own means, under `entropy_spread` and the like. An example
        is a sample of a call; `headwise.heads.guess` tells the rules of the roles, and `evidence` the figures.
        """
        for seam in self.seams:
            spreads = {f"{name}_spread": seam.spread(name) for name in seam.examples}
            counts = seam.examples["lse"].count.tolist() if "lse" in seam.examples else None
            for i, row in enumerate(seam.rows()):
                length = row["queries"] / max(1, counts[i]) if counts else 0.0
                told = {"place": seam.place, **row, "length": length}
                role = guess(told)
                spread = {name: values[i] for name, values in spreads.items()}
                yield told | spread | {"role": role.name, "evidence": role.evidence}

    def to_csv(self) -> str:
        """Write `full_rows` as CSV with a header."""
        rows, file = list(self.full_rows()), io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def to_pandas(self) -> DataFrame:
        """Give `full_rows` as a data frame."""
        import pandas as pd

        return pd.DataFrame(list(self.full_rows()))

    def maps(self) -> Iterator[list[list[float]]]:
        """Yield the pooled map of each head, in the order of `rows`: the mean mass from a row of cells to a column."""
        for seam in self.seams:
            if "map" in seam.scored:
                yield from seam.scored["map"].mean.tolist()

    def to_json(self) -> str:
        """Write the table with its sums, so that `from_json` gives it back to the last bit.

        Raises:
            InputError: when a sum is no finite number, as of a model that gave NaN.
        """
        for seam in self.seams:
            for name, scored in seam.scored.items():
                if not bool(scored.sum.isfinite().all()):
                    told = f"{name} of {seam.place}"
                    raise InputError(
                        f"a head table must hold finite numbers to be written; got NaN in {told}. {_CHECK}"
                    )
        seams = [
            vars(seam) | {"scored": _listed(seam.scored), "examples": _listed(seam.examples)} for seam in self.seams
        ]
        return json.dumps({"format": _FORMAT, "rows": list(self.full_rows()), "seams": seams}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> HeadTable:
        """Read a table that `to_json` wrote.

        Raises:
            InputError: when the text holds none, or one of another version.
        """

        def read(held: Any) -> HeadTable:
            return cls(tuple(_seam(seam) for seam in held["seams"]))

        return read_format(text, _FORMAT, read, "a head table", "Write it with `to_json`.")

    def _repr_html_(self) -> str:
        """Show the table in a notebook; `Report` shows it with maps."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        """Set the rows out in columns; where layers of several parts share their numbers, by their paths."""
        rows = [{"place": seam.place, **row} for seam in self.seams for row in seam.rows()]
        named = dict.fromkeys(name for row in rows for name in row)
        several = len({seam.layer for seam in self.seams}) < len(self.seams)
        hidden = {"queries", "lse", "kind", *(("layer",) if several else ("place",))}
        names = [name for name in named if name not in hidden]
        return _columns(names, [[_cell(row.get(name, "-")) for name in names] for row in rows])


_CHECK = "Check the model and its input."


def _seam(held: Mapping[str, Any]) -> Seam:
    scored, examples = (_read(held.get(name, {})) for name in ("scored", "examples"))
    return Seam(held["place"], held["layer"], held["kind"], tuple(held["heads"]), scored, examples)


def _read(held: Mapping[str, Any]) -> dict[str, Scored]:
    return {
        name: Scored(torch.tensor(total, dtype=torch.float64), torch.tensor(count))
        for name, (total, count) in held.items()
    }


def _listed(held: Mapping[str, Scored]) -> dict[str, list[Any]]:
    return {name: [scored.sum.tolist(), scored.count.tolist()] for name, scored in held.items()}


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set out a table in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (names, *rows)
    )
