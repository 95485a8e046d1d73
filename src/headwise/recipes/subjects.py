"""Open whatever has heads to see, score and cut: a run of ours, a folder of Transformers, or a name on its hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from headwise.contracts import Examples
from headwise.contracts.layout import Layout
from headwise.errors import InputError
from headwise.models import Classifier, OwnLayout, Seq2Seq, locate
from headwise.recipes.batches import TOKENS, in_batches
from headwise.recipes.hub import open_hub
from headwise.recipes.kinds import kind_of
from headwise.recipes.pretrained import check_task, open_any, pretrained_run
from headwise.recipes.run import Run, save_run, with_data
from headwise.tasks.extras import need
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["Own", "Subject", "open_subject"]


class Subject(Protocol):
    """Be a model of texts whose heads can be seen, scored, cut and shared."""

    @property
    def model(self) -> nn.Module:
        """Give the model."""

    @property
    def layout(self) -> Layout:
        """Give what knows its heads."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Give what cuts its texts into tokens."""

    @property
    def precision(self) -> Literal["auto", "float32", "bf16"]:
        """Say in which precision it is looked at."""

    def examples(self, source: Source, *, split: str | None, quiet: bool) -> Examples[Any]:
        """Read data to look at; of `split` left out, `test` where there is one, else all."""

    def forward(self, batch: Any) -> object:
        """Have the model read a batch of it."""

    def batches(self, source: Source, runtime: Runtime, *, split: str | None) -> Iterator[Any]:
        """Yield data with its answers; splits as for `examples`."""

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Give the loss of each example."""

    def having(self, model: nn.Module) -> Subject:
        """Give the same with another model."""

    def save(self, folder: Path, figures: Mapping[str, float]) -> None:
        """Write the model, so that `open_subject` opens it."""


@dataclass(frozen=True)
class Own:
    """Hold a run of ours."""

    run: Run
    """The run."""

    @property
    def model(self) -> nn.Module:
        """Give the model."""
        return self.run.model

    @property
    def layout(self) -> Layout:
        """Give what knows its heads."""
        return OwnLayout(self.run.model)

    @property
    def tokenizer(self) -> Tokenizer:
        """Give what cuts its texts into tokens."""
        return self.run.tokenizer

    @property
    def precision(self) -> Literal["auto", "float32", "bf16"]:
        """Say in which precision it is looked at: as it was trained."""
        return self.run.config.training.precision

    def examples(self, source: Source, *, split: str | None = None, quiet: bool = False) -> Examples[Any]:
        """Read data to look at."""
        return kind_of(self.run.config).examples(self.run, source, split=split, quiet=quiet)

    def forward(self, batch: Any) -> object:
        """Have the model read a batch of it."""
        return kind_of(self.run.config).forward(self.run.model, batch)

    def batches(self, source: Source, runtime: Runtime, *, split: str | None = None) -> Iterator[Any]:
        """Yield data with its answers; pairs one by one."""
        held = kind_of(self.run.config).known(self.run, source, split=split, quiet=not runtime.first)
        tokens = 1 if isinstance(self.run.model, Seq2Seq) else TOKENS
        return in_batches(held, runtime, told="score", tokens=tokens)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Give the loss of each example."""
        return kind_of(self.run.config).losses(model, batch)

    def having(self, model: nn.Module) -> Own:
        """Give the same run with another model."""
        assert isinstance(model, Classifier | Seq2Seq), "made of the run's"
        changed: Any = {"model": model.config}
        return Own(replace(self.run, model=model, config=replace(self.run.config, **changed)))

    def save(self, folder: Path, figures: Mapping[str, float]) -> None:
        """Write the run."""
        save_run(self.run, folder, figures, card=kind_of(self.run.config).card(self.run, figures))


def open_subject(name: str, data: Mapping[str, Any] | None = None, *, task: str | None = None) -> Subject:
    """Open a run's folder, a folder of Transformers, or a name on its hub.

    Encoder-decoders of Transformers (Marian, BART, T5, mT5) are read as models of ours, and are written as runs.

    Args:
        name: where it is.
        data: settings of how data is read, which take the place of the run's.
        task: what a pretrained model that writes is used for, as in `purpose_of`; of a run, its own.

    Raises:
        InputError: when there is none, or it is neither a run nor a model that reads texts, or not for that task.
        BackendError: when attention of that architecture cannot be ours.
    """
    if (Path(name) / "run.json").is_file():
        return Own(with_data(open_any(name, task=task), data or {}))
    folder = locate(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"`{name}` must be a run, or a folder of Transformers; got neither. Check the path.")
    config = need("transformers").AutoConfig.from_pretrained(folder)
    writes = (config.architectures or [""])[0].endswith(("ForConditionalGeneration", "MTModel"))
    if writes:
        return Own(with_data(pretrained_run(folder, task), data or {}))
    check_task(task, "reading", name)
    return open_hub(folder, data or {})
