"""Hold all that a run needs before its first step, and say what every task gives to the recipes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from headwise.contracts import Examples
from headwise.errors import ConfigError
from headwise.models import Classifier, Seq2Seq
from headwise.recipes.config import AnyConfig
from headwise.recipes.run import Run
from headwise.tasks.data import Table
from headwise.tasks.pairs import PreparedPairs
from headwise.tasks.sentiment import Prepared
from headwise.tasks.sources import ALL, Source
from headwise.training import Job, Runtime

__all__ = ["Kind", "Plan", "Save", "Unanswered", "check_dev"]

Save = Callable[[nn.Module, Path, Mapping[str, float]], None]
"""Writes a model and its figures into a folder."""


@dataclass(frozen=True)
class Plan:
    """Hold all that a run needs before its first step."""

    config: AnyConfig
    """The settings, complete."""
    prepared: Prepared | PreparedPairs
    """The data."""
    model: Classifier | Seq2Seq
    """The model, with the parameters it begins from."""


def check_dev(splits: Collection[str]) -> None:
    """Refuse data of which nothing is left to choose a model by.

    Raises:
        ConfigError: when there is no dev split.
    """
    if "dev" not in splits:
        raise ConfigError("training needs a dev split; got none. Name one with --dev, or set data.dev to a share.")


class Unanswered(NamedTuple):
    """Hold the texts that a run is to answer for."""

    table: Table
    """The rows."""
    role: str
    """Which of its columns holds the texts."""
    blank: Any
    """Answer in the place of a row that was left out."""

    def count(self, split: str | None) -> int:
        """Count the answers: of a split, one for each of its rows; else one for each row, left out or not."""
        if split in (None, ALL):
            return len(self.table) + self.table.skipped.count
        return len(self.table.rows(split or ALL))


class Kind(Protocol):
    """Be what a task knows and the recipes do not: one of the modules `classify` and `rewrite`."""

    def plan(self, source: Source, config: Any, *, quiet: bool) -> Plan:
        """Read the data and build the model."""

    def job(self, planned: Plan, runtime: Runtime, save: Save) -> Job:
        """Say how the model is trained and validated."""

    def card(self, run: Run, figures: Mapping[str, float]) -> str:
        """Write the model card."""

    def examples(self, run: Run, source: Source, *, split: str | None, quiet: bool) -> Examples[Any]:
        """Read data for looking at heads; of `split` left out, `test` where there is one, else all."""

    def again(self, run: Run, source: Source, *, quiet: bool) -> Plan:
        """Read data for a model to go on learning from, with its own tokenizer."""

    def known(self, run: Run, source: Source, *, split: str | None, quiet: bool) -> Examples[Any]:
        """Read data with its answers; splits as for `examples`."""

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Give the loss of each example of a batch, or, of what writes texts, of a batch of one."""

    def forward(self, model: nn.Module, batch: Any) -> object:
        """Have the model read a batch."""

    def report(self, run: Run, source: Source, runtime: Runtime, *, split: str | None) -> dict[str, Any]:
        """Compute the figures of a run."""

    def unanswered(self, run: Run, source: Source, *, quiet: bool) -> Unanswered:
        """Open texts to answer for; that answers to them are known is not asked."""

    def predict_texts(self, run: Run, texts: Sequence[str], runtime: Runtime) -> list[Any]:
        """Answer for texts at hand, in their order."""

    def line(self, answer: Any, *, as_json: bool) -> str:
        """Write an answer as one line."""
