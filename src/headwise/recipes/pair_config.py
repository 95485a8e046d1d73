"""Hold all settings of a run that learns to turn one text into another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headwise.models import Seq2SeqConfig, seq2seq_preset
from headwise.tasks.decoding import Decoding
from headwise.tasks.pairs import PairSettings
from headwise.training import TrainingConfig

__all__ = ["PRETRAINED", "PairConfig", "beginning_problems", "pair_defaults"]

PRETRAINED = "pretrained:"


@dataclass(frozen=True)
class PairConfig:
    """Say all that decides what a run gives that learns from pairs of texts, beside the data."""

    task: Literal["translation", "summarization"] = "translation"
    """What the model is for."""
    init: str = "random"
    """What the model begins from: random, vectors, pretrained:RUN, pretrained:FOLDER or pretrained:HUB_ID, where FOLDER
    and HUB_ID are a Marian, BART or T5; `pretrained` marks one of these that was not trained here."""
    vectors: str = ""
    """File of word vectors, or glove; for init = "vectors"."""
    frozen_passes: int = 0
    """Passes in which word vectors stay as they were read; -1 for all."""
    sample: int = 200
    """Dev pairs that are written greedily at each validation, for BLEU or ROUGE; 0 for none, -1 for all."""
    data: PairSettings = field(default_factory=PairSettings)
    """How the data is read."""
    model: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)
    """The model; what the data decides is filled in."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    decoding: Decoding = field(default_factory=Decoding)
    """How texts are written."""

    def problems(self) -> Iterator[str]:
        """Yield a line for each value that cannot be."""
        if self.init != "pretrained":
            yield from beginning_problems(self.init, self.vectors, self.frozen_passes, "Leave it out for random.")
        if self.sample < -1:
            yield f"`sample` must be at least -1; got {self.sample}. 200 is usual."
        if self.sample == 0 and self.training.keep_best not in ("", "loss"):
            yield f"`sample` must not be 0 where {self.training.keep_best} keeps the best; got 0. 200 is usual."
        if self.model.copy and self.training.rdrop:
            told = "what is written from the vocabulary alone; got `model.copy` beside it"
            yield f"`training.rdrop` compares {told}. Set one of both to false or 0."
        if self.training.compile and self.training.guided_alignment:
            told = "a model that is not compiled; got `training.compile` beside it"
            yield f"`training.guided_alignment` teaches a head of {told}. Set one of both to false or 0."


def beginning_problems(init: str, vectors: str, frozen_passes: int, remedy: str) -> Iterator[str]:
    """Yield a line for each thing that a run cannot begin from."""
    named = init.startswith(PRETRAINED) and init.removeprefix(PRETRAINED).strip(":")
    if init not in ("random", "vectors") and not named:
        yield f"`init` must be random, vectors or {PRETRAINED}NAME; got {init!r}. {remedy}"
    if (init == "vectors") != bool(vectors):
        yield f'`vectors` goes with init = "vectors"; got {vectors!r} and {init!r}. Set both or neither.'
    if frozen_passes < -1:
        yield f"`frozen_passes` must be at least -1; got {frozen_passes}. 0 tunes the vectors from the start."


def pair_defaults(given: Mapping[str, Any], size: str | None) -> dict[str, Any]:
    """Give the settings that a run on pairs has unless told otherwise.

    Args:
        given: what is told; vectors from a file are tied to no output, and stand for words.
        size: tiny, small or base, as in `seq2seq_preset`; tiny where left out.
    """
    words = given.get("init") == "vectors"
    kind, vocabulary = ("words", 30_000) if words else ("subwords", 8_000)
    long = given.get("task") == "summarization"
    model = seq2seq_preset(size or "tiny")
    return {
        "data": {
            "tokenizer": {"kind": kind, "vocabulary": vocabulary, "lowercase": words, "chinese": "characters"},
            **({"max_source": 512, "max_target": 128} if long else {}),
        },
        "model": {**model, "tied": not words},
        "training": {
            "passes": 30,
            "learning_rate": 3e-3,
            "schedule": "inverse_sqrt",
            "warmup": 0.1,
            "batch_tokens": 8192,
            "betas": (0.9, 0.98),
            "label_smoothing": 0.1,
            "weight_decay": 0.0001,
            "average": 5,
        },
        "decoding": {"beams": 4, **({"no_repeat": 3, "max_ratio": 1.0} if long else {})},
    }
