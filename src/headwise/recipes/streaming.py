"""Answer for the texts of a table one window after the other, in memory that does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from headwise.recipes.batches import spread
from headwise.recipes.plans import Unanswered
from headwise.tasks.files import progress
from headwise.tasks.sources import ALL
from headwise.training import Runtime

__all__ = ["stream"]

_WINDOW = 2000
"""Texts that are sorted by length together."""

_Answer = TypeVar("_Answer")


def stream(
    found: Unanswered,
    answer: Callable[[Sequence[str]], Sequence[Any]],
    runtime: Runtime,
    *,
    split: str | None,
    done: int = 0,
) -> Iterator[Any]:
    """Answer for every text of a table, in its order; of a split, for the rows that belong to it.

    Args:
        found: the texts.
        answer: gives an answer for each of some texts.
        runtime: on what; its first process shows how far it is.
        split: rows of which split; left out, all, with a blank for each row that was left out.
        done: how many answers are known from before. They are not given again, and the rest is what it would have been
            after them, bit for bit: windows begin at the same rows.
    """
    table, role, blank = found
    rows = None if split in (None, ALL) else table.rows(split or ALL)
    skipped = table.skipped.before if rows is None else ()
    count = len(table) if rows is None else len(rows)
    answers = _windows(table.texts(role, rows), answer, runtime, count=count, known=done - len(skipped), blank=blank)
    return islice(spread(answers, skipped, blank), done, None)


def _windows(
    chunks: Iterable[Sequence[str]],
    answer: Callable[[Sequence[str]], Sequence[_Answer]],
    runtime: Runtime,
    *,
    count: int,
    known: int,
    blank: _Answer,
) -> Iterator[_Answer]:
    """Answer window by window; in the place of one whose answers are all known stand blanks."""
    end = 0
    with progress("predict", count, unit=" texts", quiet=not runtime.first) as moved:
        for chunk in chunks:
            for at in range(0, len(chunk), _WINDOW):
                texts = chunk[at : at + _WINDOW]
                end += len(texts)
                yield from answer(texts) if end > known else [blank] * len(texts)
                moved(len(texts))
