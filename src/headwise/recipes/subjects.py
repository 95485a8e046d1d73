"""Open whatever has heads to score and cut: a run of ours, or a model of Transformers in a folder or on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts.layout import Layout
from headwise.errors import InputError
from headwise.models import Classifier, OwnLayout, Seq2Seq, locate
from headwise.recipes.batches import TOKENS, in_batches
from headwise.recipes.kinds import kind_of
from headwise.recipes.run import Run, open_run, save_run, with_data
from headwise.tasks.extras import need
from headwise.tasks.sentiment import SentimentSettings, open_texts
from headwise.tasks.sources import ALL, Source
from headwise.training import Runtime

__all__ = ["Hub", "Own", "Subject", "open_subject"]

_BATCH, _LONGEST = 16, 512


class Subject(Protocol):
    """Be a model with data that it can be scored on."""

    @property
    def model(self) -> nn.Module:
        """Give the model."""

    @property
    def layout(self) -> Layout:
        """Give what knows its heads."""

    def batches(self, source: Source, runtime: Runtime, *, split: str | None) -> Iterator[Any]:
        """Yield data with its answers; of `split` left out, `test` where there is one, else all."""

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


@dataclass(frozen=True)
class Hub:
    """Hold an attached model of Transformers with its tokenizer: a classifier of texts, or a model of language."""

    model: nn.Module
    """The model."""
    tokenizer: Any
    """Its tokenizer."""
    settings: SentimentSettings
    """How data is read."""

    @property
    def layout(self) -> Layout:
        """Give what knows its heads."""
        return _transformers().TransformersLayout(self.model)  # type: ignore[no-any-return]

    @property
    def classifies(self) -> bool:
        """Tell whether texts have labels."""
        return type(self.model).__name__.endswith("ForSequenceClassification")

    def batches(self, source: Source, runtime: Runtime, *, split: str | None = None) -> Iterator[Any]:
        """Yield tokens with their labels, or tokens alone."""
        table = open_texts(source, self.settings, labelled=self.classifies, quiet=not runtime.first)
        rows = None if split == ALL or (split is None and "test" not in table.splits) else table.rows(split or "test")
        texts = list(chain.from_iterable(table.texts("text", rows)))
        labels = list(chain.from_iterable(table.texts("label", rows))) if self.classifies else None
        starts = runtime.share(list(range(0, len(texts), _BATCH)))
        for at in starts:
            encoded = self.tokenizer(
                texts[at : at + _BATCH], padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            )
            batch = dict(encoded.to(runtime.device))
            if labels is not None:
                batch["labels"] = torch.tensor([self._label(each) for each in labels[at : at + _BATCH]])
            yield batch

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Give the cross-entropy of each text's label, or the mean one of its next tokens."""
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**given)[0].float()
        if "labels" in batch:
            return F.cross_entropy(logits, batch["labels"].to(logits.device), reduction="none")
        each_BT = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        counted_BT = batch["attention_mask"][:, 1:]
        mean_B: Tensor = (each_BT * counted_BT).sum(1) / counted_BT.sum(1).clamp(min=1)
        return mean_B

    def having(self, model: nn.Module) -> Hub:
        """Give the same with another model."""
        return replace(self, model=model)

    def save(self, folder: Path, figures: Mapping[str, float]) -> None:
        """Write the model and its tokenizer."""
        _transformers().save(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def _longest(self) -> int:
        known: Any = getattr(self.model, "config", None)
        return min(_LONGEST, getattr(known, "max_position_embeddings", None) or _LONGEST)

    def _label(self, text: str) -> int:
        config: Any = self.model.config
        named = {str(name): int(number) for name, number in config.label2id.items()}
        if text in named:
            return named[text]
        if text.isdecimal() and int(text) < config.num_labels:
            return int(text)
        raise InputError(f"labels must be those of the model; got {text!r}. It has {', '.join(named)}.")


def open_subject(name: str, data: Mapping[str, Any] | None = None) -> Subject:
    """Open a run's folder, a folder of Transformers, or a name on its hub.

    Args:
        name: where it is.
        data: settings of how data is read, which take the place of the run's.

    Raises:
        InputError: when there is none, or it is neither a run, a classifier of texts nor a model of language.
        BackendError: when attention of that architecture cannot be ours.
    """
    if (Path(name) / "run.json").is_file():
        return Own(with_data(open_run(Path(name)), data or {}))
    folder = locate(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"`{name}` must be a run, or a folder of Transformers; got neither. Check the path.")
    read = {key: value for key, value in (data or {}).items() if key in ("text_column", "label_column", "on_error")}
    tokenizer = need("transformers").AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Hub(_model(folder), tokenizer, SentimentSettings(**read))


def _model(folder: Path) -> nn.Module:
    ours, theirs = _transformers(), need("transformers")
    if (folder / "headwise.json").is_file():
        model: nn.Module = ours.load(folder)
        return model
    config = theirs.AutoConfig.from_pretrained(folder)
    built = (config.architectures or [""])[0]
    if built.endswith("ForSequenceClassification"):
        auto = theirs.AutoModelForSequenceClassification
    elif built.endswith(("ForCausalLM", "LMHeadModel")):
        auto = theirs.AutoModelForCausalLM
    else:
        raise InputError(
            f"a model of Transformers must classify texts or be a model of language; got {built or 'no architecture'} "
            f"in {folder}. Use `headwise.heads` from Python for others."
        )
    attached: nn.Module = ours.attach(auto.from_pretrained(folder).eval())
    return attached


def _transformers() -> Any:
    """Import what takes seconds to import, once it is wanted."""
    need("transformers")
    return import_module("headwise.integrations.transformers")
