"""Find the columns that a task reads: named by the user, or guessed where there is one choice only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from headwise.errors import InputError

__all__ = ["SPLITS", "Wanted", "find_columns", "split_name"]

_log = logging.getLogger("headwise")

SPLITS = {
    "train": "train training",
    "dev": "dev development val valid validation eval",
    "test": "test testing",
}
"""What the splits are called in files, by their usual names."""
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words.split()}


@dataclass(frozen=True)
class Wanted:
    """Describe one column that a task reads."""

    role: str
    """What the task calls it: `text`, `label`."""
    name: str | None = None
    """What the file calls it; `None` to guess."""
    guesses: tuple[str, ...] = ()
    """Other names to look for where no column is called like the role; lower case."""
    required: bool = True
    """Whether a table without it is an error."""
    may_be_empty: bool = False
    """Whether a row may leave it empty."""
    separator: str | None = None
    """What joins the items of a list, as JSON and Parquet have them; `None` where a list is an error."""

    @property
    def flag(self) -> str:
        """Give the flag of the command line that names this column."""
        return f"--{self.role}-column"


def split_name(word: str) -> str:
    """Give the usual name of a split, so that `validation` is `dev`; other words stay as they are."""
    return _SPLIT_OF.get(word.strip().lower(), word.strip())


def find_columns(columns: Sequence[str], wanted: Sequence[Wanted], place: str) -> dict[str, str]:
    """Find the column of each role, by role; a guess is logged.

    Args:
        columns: the columns of the file.
        place: the file, for messages.

    Raises:
        InputError: for a column that is missing or could be one of several.
    """
    named = {want.name for want in wanted}
    free = [column for column in columns if column not in named]
    found = {}
    for want in wanted:
        column = _named(columns, want, place) if want.name is not None else _guessed(free, want, place)
        if column is not None:
            found[want.role] = column
    return found


def _named(columns: Sequence[str], want: Wanted, place: str) -> str:
    if want.name is None or want.name not in columns:
        raise InputError(
            f"{place} must have a column `{want.name}`; got {_listed(columns)}. Name another with `{want.flag}`."
        )
    return want.name


def _guessed(columns: Sequence[str], want: Wanted, place: str) -> str | None:
    fits = _fitting(columns, (want.role,)) or _fitting(columns, want.guesses)
    if len(fits) == 1:
        _log.info("%s: reading column `%s` as the %s", place, fits[0], want.role)
        return fits[0]
    if not want.required and not fits:
        return None
    told = "several columns could be it" if fits else "no column has a usual name for it"
    raise InputError(
        f"{place} must have one column for the {want.role}; got {_listed(columns)}, and {told}. "
        f"Name it with `{want.flag}`."
    )


def _fitting(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in columns if column.strip().lower() in names]


def _listed(columns: Sequence[str]) -> str:
    """List the columns, cut where the first line is no header but a long text."""
    shown = ", ".join(f"`{column[:60]}`" for column in columns[:20]) or "none"
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown
