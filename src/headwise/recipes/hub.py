"""Open models of Transformers that read texts, so that their heads can be seen, scored and cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts import Batch
from headwise.contracts.layout import Layout
from headwise.errors import InputError
from headwise.recipes.batches import in_batches
from headwise.tasks.data import Table
from headwise.tasks.extras import need
from headwise.tasks.sentiment import SentimentSettings, TextExamples, encode, open_texts
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["Hub", "open_hub"]

_TOKENS, _LONGEST = 2048, 512


@dataclass(frozen=True)
class Hub:
    """Hold an attached model of Transformers that reads texts: a classifier, a model of language, or a bare encoder."""

    model: nn.Module
    """The model."""
    tokenizer: Tokenizer
    """What cuts its texts into tokens."""
    theirs: Any
    """The same as Transformers knows it, to be written beside the model."""
    data: SentimentSettings
    """How data is read."""
    precision: Literal["float32"] = "float32"
    """The model computes in the type of its weights, without autocast."""

    @property
    def layout(self) -> Layout:
        """Give what knows its heads."""
        return _ours().TransformersLayout(self.model)  # type: ignore[no-any-return]

    def examples(self, source: Source, *, split: str | None = None, quiet: bool = False) -> TextExamples:
        """Read texts without their labels."""
        table = open_texts(source, self.data, labelled=False, quiet=quiet)
        return encode(table, self.tokenizer, self.data, quiet=quiet).select(table.chosen(split))

    def batches(self, source: Source, runtime: Runtime, *, split: str | None = None) -> Iterator[Batch]:
        """Yield tokens with their labels, or, for a model of language, tokens alone.

        Raises:
            InputError: for a model without a loss, or labels that it does not know.
        """
        quiet = not runtime.first
        if not self._classifies:
            self._check_writes()
            held = self.examples(source, split=split, quiet=quiet)
        else:
            table = open_texts(source, self.data, quiet=quiet)
            held = encode(table, self.tokenizer, self.data, quiet=quiet)
            held = replace(held, target=self._classes(table)).select(table.chosen(split))
        return in_batches(held, runtime, told="score", tokens=_TOKENS)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the cross-entropy of each text's label, or the mean one of its next tokens."""
        given = self._inputs(batch)
        logits = model(**given)[0].float()
        if batch.target is not None:
            return F.cross_entropy(logits, batch.target, reduction="none")
        each_BT = F.cross_entropy(logits[:, :-1].transpose(1, 2), given["input_ids"][:, 1:], reduction="none")
        counted_BT = given["attention_mask"][:, 1:]
        mean_B: Tensor = (each_BT * counted_BT).sum(1) / counted_BT.sum(1).clamp(min=1)
        return mean_B

    def forward(self, batch: Batch) -> object:
        """Have the model read a batch."""
        return self.model(**self._inputs(batch))

    def having(self, model: nn.Module) -> Hub:
        """Give the same with another model."""
        return replace(self, model=model)

    def save(self, folder: Path, figures: Mapping[str, float]) -> None:
        """Write the model and its tokenizer."""
        _ours().save(self.model, folder)
        self.theirs.save_pretrained(folder)

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def _classifies(self) -> bool:
        return type(self.model).__name__.endswith("ForSequenceClassification")

    def _check_writes(self) -> None:
        name = type(self.model).__name__
        if not name.endswith(("ForCausalLM", "LMHeadModel")):
            raise InputError(
                "a model must classify texts or be a model of language, so that there is a loss to score its heads by; "
                f"got {name}. `headwise observe` takes it."
            )

    def _classes(self, table: Table) -> np.ndarray:
        config = self._config
        if config.num_labels < 2 or config.problem_type == "multi_label_classification":
            told = "numbers" if config.num_labels < 2 else "several labels a text"
            raise InputError(f"a classifier must give each text one label to be scored; got {told}. Take another.")
        known = {str(number): int(number) for number in config.id2label}
        known |= {str(name): int(number) for name, number in config.label2id.items()}
        texts = [text.strip() for text in chain.from_iterable(table.texts("label"))]
        unknown = next((row for row, text in enumerate(texts) if text not in known), None)
        if unknown is not None:
            told = f"{texts[unknown]!r} in {table.where(unknown)}"
            raise InputError(f"labels must be those of the model; got {told}. It has {', '.join(known)}.")
        return np.array([known[text] for text in texts])

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Pad as the model expects it: some tell the end of a text, or count positions, by the padding's id."""
        valid_BT = torch.arange(batch.tokens_BT.shape[1], device=batch.length_B.device) < batch.length_B[:, None]
        ids_BT = batch.tokens_BT.masked_fill(~valid_BT, self._config.pad_token_id)
        return {"input_ids": ids_BT, "attention_mask": valid_BT.long()}


def open_hub(folder: Path, data: Mapping[str, Any]) -> Hub:
    """Open a folder of Transformers whose model reads texts.

    Args:
        folder: where config.json is.
        data: settings of how data is read.

    Raises:
        InputError: when a part is missing, or of a kind that is not known.
        BackendError: when attention of that architecture cannot be ours.
    """
    theirs = _tokenizer(folder)
    model = _model(folder)
    config: Any = model.config
    if config.pad_token_id is None:
        config.pad_token_id = next((id_ for id_ in (theirs.pad_token_id, theirs.eos_token_id) if id_ is not None), 0)
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    longest = min(_LONGEST, positions, theirs.model_max_length)
    # A copy, so that what is written beside the model is not cut as texts are here.
    tokenizer = Tokenizer(need("tokenizers").Tokenizer.from_str(theirs.backend_tokenizer.to_str()))
    read = {name: value for name, value in data.items() if name in ("text_column", "label_column", "on_error")}
    return Hub(model, tokenizer, theirs, SentimentSettings(max_tokens=longest, **read))


def _tokenizer(folder: Path) -> Any:
    try:
        theirs = need("transformers").AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"`{folder}` must hold the tokenizer of its model; got: {told} Copy it again.") from error
    if not theirs.is_fast:
        raise InputError(
            f"a model must have a fast tokenizer, of tokenizer.json; got {type(theirs).__name__} in {folder}. "
            "Use `headwise.heads` from Python."
        )
    return theirs


def _model(folder: Path) -> nn.Module:
    theirs = need("transformers")
    if (folder / "headwise.json").is_file():
        model: nn.Module = _ours().load(folder)
        return model
    config = theirs.AutoConfig.from_pretrained(folder)
    name = (config.architectures or [""])[0]
    kind = getattr(theirs, name, None) if name else None
    if kind is None:
        told = repr(name) if name else "none"
        raise InputError(f"`{folder / 'config.json'}` must name an architecture of transformers; got {told}. Name it.")
    try:
        held = kind.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"`{folder}` must hold weights that fit its config.json; got: {told} Copy it again."
        ) from error
    attached: nn.Module = _ours().attach(held.eval())
    return attached


def _ours() -> Any:
    """Import what takes seconds to import, once it is wanted."""
    need("transformers")
    return import_module("headwise.integrations.transformers")
