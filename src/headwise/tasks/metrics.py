"""Count how right the answers of a classifier are; counts of parts add up to those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.contracts.tree import plain

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Confusion", "Matches", "score"]


def score(logits_BC: Float[Tensor, "B C"], target: Tensor) -> Confusion | Matches:
    """Count the answers to a batch by the kind of its target: one class each, or 0 and 1 for every class."""
    return Matches.of(logits_BC, target) if target.dim() == 2 else Confusion.of(logits_BC, target)


@plain
class Confusion:
    """Count which class was taken for which, where each example has one class.

    Example:
        >>> Confusion.of(torch.eye(3), torch.tensor([0, 1, 1])).accuracy
        0.6666666666666666
    """

    counts_CC: Tensor
    """Examples of the class of the row that were taken for the class of the column, int64."""

    @classmethod
    def of(cls, logits_BC: Float[Tensor, "B C"], target_B: Int[Tensor, " B"]) -> Confusion:
        """Count a batch; of classes that are equally likely, the first is the answer."""
        classes = logits_BC.shape[-1]
        pair_B = target_B * classes + logits_BC.argmax(-1)
        return cls(torch.bincount(pair_B, minlength=classes**2).unflatten(0, (classes, classes)))

    def __add__(self, other: Confusion) -> Confusion:
        """Merge two parts."""
        return Confusion(self.counts_CC + other.counts_CC)

    @property
    def count(self) -> int:
        """Give how many examples were counted."""
        return int(self.counts_CC.sum())

    @property
    def accuracy(self) -> float:
        """Give the share of right answers, 0 to 1; 0 where nothing was counted."""
        return float(self.counts_CC.trace()) / max(1, self.count)

    @property
    def by_class(self) -> Matches:
        """Look at every class by itself: is it this one or not?"""
        hit_C = self.counts_CC.diagonal()
        return Matches(hit_C, self.counts_CC.sum(0), self.counts_CC.sum(1), hit_C.sum(), self.counts_CC.sum())

    @property
    def macro_f1(self) -> float:
        """Give the mean F1 of the classes, 0 to 1."""
        return self.by_class.macro_f1

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Give all figures as plain data."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "count": self.count,
            "classes": self.by_class.classes(names),
            "confusion": self.counts_CC.tolist(),
        }


@plain
class Matches:
    """Count the right and the wrong answers of every class, where an example may have several classes or none."""

    hit_C: Tensor
    """Examples of each class that were said to be of it."""
    said_C: Tensor
    """Examples that were said to be of it."""
    true_C: Tensor
    """Examples that are of it."""
    exact: Tensor
    """Examples of which every class was right."""
    total: Tensor
    """All examples."""

    @classmethod
    def of(cls, logits_BC: Float[Tensor, "B C"], target_BC: Float[Tensor, "B C"]) -> Matches:
        """Count a batch; a class is said to be there from a probability of one half on."""
        said_BC, true_BC = logits_BC >= 0, target_BC > 0.5
        exact = (said_BC == true_BC).all(-1).sum()
        total = torch.tensor(len(target_BC), device=target_BC.device)
        return cls((said_BC & true_BC).sum(0), said_BC.sum(0), true_BC.sum(0), exact, total)

    def __add__(self, other: Matches) -> Matches:
        """Merge two parts."""
        return Matches(
            self.hit_C + other.hit_C,
            self.said_C + other.said_C,
            self.true_C + other.true_C,
            self.exact + other.exact,
            self.total + other.total,
        )

    @property
    def count(self) -> int:
        """Give how many examples were counted."""
        return int(self.total)

    @property
    def accuracy(self) -> float:
        """Give the share of examples of which every class was right, 0 to 1."""
        return float(self.exact) / max(1, self.count)

    @property
    def precision_C(self) -> Tensor:
        """Give the share of right ones among those said to be of a class; 0 where none was."""
        return self.hit_C.double() / self.said_C.clamp(min=1)

    @property
    def recall_C(self) -> Tensor:
        """Give the share of a class that was found; 0 where there is none."""
        return self.hit_C.double() / self.true_C.clamp(min=1)

    @property
    def f1_C(self) -> Tensor:
        """Give the harmonic mean of precision and recall, 0 to 1; 0 where nothing was found."""
        return 2 * self.hit_C.double() / (self.said_C + self.true_C).clamp(min=1)

    @property
    def micro_f1(self) -> float:
        """Give the F1 of all classes thrown together, 0 to 1."""
        return 2 * float(self.hit_C.sum()) / max(1, int((self.said_C + self.true_C).sum()))

    @property
    def macro_f1(self) -> float:
        """Give the mean F1 of the classes that are or were said to be there, 0 to 1; 0 where there is none."""
        seen_C = (self.said_C + self.true_C) > 0
        return float(self.f1_C[seen_C].sum()) / max(1, int(seen_C.sum()))

    def classes(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Give precision, recall, F1 and count of each class as plain data."""
        numbers = (self.precision_C, self.recall_C, self.f1_C, self.true_C)
        figures = zip(names, *(number_C.tolist() for number_C in numbers), strict=True)
        return {name: {"precision": p, "recall": r, "f1": f, "count": n} for name, p, r, f, n in figures}

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Give all figures as plain data."""
        return {
            "accuracy": self.accuracy,
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "count": self.count,
            "classes": self.classes(names),
        }
