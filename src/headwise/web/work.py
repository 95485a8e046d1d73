"""Describe what a request asks a model to compute, so that the work of several requests can be done together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwise.contracts.layout import HeadId

__all__ = ["TILE", "Group", "HeadView", "Served", "Stopped", "StoppedError", "TextReport", "Work", "Writing"]

TILE = 16
"""Cells of a side of what is shown of a head's map at once."""

Stopped = Callable[[], bool]
"""Tells whether nobody waits for the results any more."""


class StoppedError(Exception):
    """Say that work ended early because nobody waited for it."""


class Group(Hashable, Protocol):
    """Compute work of one kind together; works of equal groups may share a batch."""

    def compute(self, payloads: Sequence[Any], stopped: Stopped) -> list[Any]:
        """Give a result for each payload, in their order.

        Raises:
            StoppedError: where `stopped` told so on the way.
        """


@dataclass(frozen=True)
class Work:
    """Hold what one request asks to compute."""

    group: Group
    """What computes it."""
    payload: Any
    """What it is computed from."""
    rows: int
    """How many sequences it has."""
    longest: int
    """Tokens of the longest of them."""


@dataclass(frozen=True)
class Writing:
    """Say how texts are to be written; `None` stands for what the run was trained with."""

    beams: int | None = None
    """Beams of the search."""
    n_best: int = 1
    """How many texts are given."""
    align: bool = False
    """Whether to tell which words of the source each word was written from."""


@dataclass(frozen=True)
class HeadView:
    """Choose a head, and the part of its map to look at."""

    head: HeadId
    """The head."""
    zoom: int = 0
    """The map has `TILE` x 2^zoom cells a side."""
    row: int = 0
    """Which tile of `TILE` x `TILE` cells, counted from the top."""
    column: int = 0
    """The same from the left."""

    @property
    def cells(self) -> int:
        """Count the cells of a side of the whole map."""
        return TILE << self.zoom


@dataclass(frozen=True)
class TextReport:
    """Hold works whose results together tell what a model makes of one text."""

    works: tuple[Work, ...]
    """What is to be computed."""
    join: Callable[..., dict[str, Any]]
    """Makes the report of the works' results, one argument each."""


class Served(Protocol):
    """Be a trained model that answers requests; texts come checked for their number and length."""

    name: str
    task: str

    def about(self) -> Mapping[str, Any]:
        """Tell what clients may know of the model."""

    def predict(self, texts: Sequence[str], off: Sequence[HeadId], writing: Writing, *, cut: bool) -> TextReport:
        """Plan the answers for some texts while heads are switched off.

        Raises:
            InputError: for a head that the model has not, or a text that is too long while it may not be cut.
        """

    def explain(self, text: str, off: Sequence[HeadId]) -> TextReport:
        """Plan what shows how a model comes to its answer: words that mattered, and heads that looked at them."""

    def view(self, text: str, off: Sequence[HeadId], view: HeadView) -> TextReport:
        """Plan what one head does on a text: a tile of its map, and its strongest links."""
