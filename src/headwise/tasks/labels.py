"""Learn which classes there are, and turn labels into numbers and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise.errors import InputError
from headwise.tasks.data import Table
from headwise.tasks.sources import ALL

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SKIPPED", "Labels", "Prediction"]

_MOST_CLASSES = 10_000


class Prediction(NamedTuple):
    """Hold what a model says of one text."""

    label: str
    """The likeliest class; where there may be several, those of at least one half, written as in the data."""
    probabilities: dict[str, float]
    """Probability of each class, by name; they sum to 1 where a text has one class."""


SKIPPED = Prediction("", {})
"""Stands in the place of a broken row that was left out."""


@dataclass(frozen=True)
class Labels:
    """Hold the classes of a task, numbered in their order.

    Example:
        >>> import torch
        >>> Labels(("bad", "good")).predictions(torch.tensor([[0.0, 0.0]]))
        [Prediction(label='bad', probabilities={'bad': 0.5, 'good': 0.5})]
    """

    names: tuple[str, ...]
    """Names by class: in numeric order where all are numbers, else in alphabetical order."""
    separator: str | None = None
    """What stands between the labels of a text where it may have several; `None` where it has exactly one."""

    @classmethod
    def learn(cls, table: Table, *, separator: str | None = None, split: str = "train") -> Labels:
        """Find the classes of a table.

        Args:
            separator: what stands between labels; `None` where each text has exactly one.
            split: the rows to learn from.

        Raises:
            InputError: when there is one class only, or far too many.
        """
        seen: set[str] = set()
        rows = table.rows(split)
        for texts, _ in table.coded("label", rows if len(rows) else None):
            seen.update(*(_parts(text, separator) for text in texts))
            if len(seen) > _MOST_CLASSES:
                raise InputError(
                    f"the labels must name at most {_MOST_CLASSES} classes; got more, such as {texts[0][:40]!r}. "
                    "Check `--label-column`."
                )
        if len(seen) < 2 - (separator is not None) or not seen:
            raise InputError(
                f"the labels of `{split}` must name at least two classes; got {sorted(seen)}. Check `--label-column`."
            )
        return cls(_in_order(seen), separator)

    @property
    def several(self) -> bool:
        """Tell whether a text may have several labels, or none."""
        return self.separator is not None

    def encode(self, table: Table) -> np.ndarray:
        """Give the classes of all rows: int32 of shape (N,); where there may be several, 0 and 1 of shape (N, C).

        Raises:
            InputError: for a label that is none of the classes, with its file and row.
        """
        shape = (len(table), len(self.names)) if self.several else len(table)
        target = np.zeros(shape, np.uint8 if self.several else np.int32)
        place_of, at = {name: place for place, name in enumerate(self.names)}, 0
        for texts, index in table.coded("label"):
            held = np.zeros((len(texts), *target.shape[1:]), target.dtype)
            for number, text in enumerate(texts):
                parts = _parts(text, self.separator)
                if not place_of.keys() >= set(parts):
                    raise InputError(self._unknown(table, at + int(np.argmax(index == number)), text))
                places = [place_of[part] for part in parts]
                if self.several:
                    held[number, places] = 1
                else:
                    held[number] = places[0]
            target[at : at + len(index)] = held[index]
            at += len(index)
        return target

    def predictions(self, logits_NC: Float[Tensor, "N C"]) -> list[Prediction]:
        """Read a model's answers, in the order of the rows."""
        logits_NC = logits_NC.detach().float().cpu()
        share_NC = logits_NC.sigmoid() if self.several else logits_NC.softmax(-1)
        return [self._prediction(shares) for shares in share_NC.tolist()]

    def _prediction(self, shares: list[float]) -> Prediction:
        by_name = dict(zip(self.names, shares, strict=True))
        if self.separator is None:
            return Prediction(max(by_name, key=by_name.__getitem__), by_name)
        return Prediction(self.separator.join(name for name, share in by_name.items() if share >= 0.5), by_name)

    def _unknown(self, table: Table, row: int, text: str) -> str:
        split = next((name for name, rows in table.splits.items() if row in rows and name != ALL), None)
        known = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
        place = "" if split is None else f" in `{split}`"
        return (
            f"{table.where(row)} must have a label that was seen in training ({known}); got {text!r}{place}. "
            "Correct the row, or train on such rows too."
        )


def _parts(text: str, separator: str | None) -> list[str]:
    if separator is None:
        return [text.strip()]
    return [part.strip() for part in text.split(separator) if part.strip()]


def _in_order(names: set[str]) -> tuple[str, ...]:
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if not all(map(math.isfinite, numbers.values())):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))
