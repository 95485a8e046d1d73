"""Classify texts: from a table of texts and labels to examples that a model can be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from headwise.contracts.examples import Batch
from headwise.contracts.files import cache_folder
from headwise.errors import InputError
from headwise.tasks.columns import Wanted
from headwise.tasks.data import Table, open_table, split
from headwise.tasks.encoding import Tokens, encode_column
from headwise.tasks.files import identity, key_of
from headwise.tasks.labels import Labels
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.tasks.vectors import vectors_file, words_of

__all__ = ["Prepared", "SentimentSettings", "TextExamples", "encode", "open_texts", "prepare"]

_VERSION = 2
_TEXT = ("sentence", "review", "comment", "question", "tweet", "content", "body", "document", "sms", "message")
_LABEL = ("sentiment", "stars", "rating", "polarity", "class", "category", "target", "labels")


@dataclass(frozen=True)
class SentimentSettings:
    """Choose how texts and labels are read."""

    text_column: str | None = None
    """Column of the texts; none to guess it."""
    label_column: str | None = None
    """Column of the labels; none to guess it."""
    label_separator: str | None = None
    """What stands between the labels of a text that may have several; none where each has exactly one."""
    on_error: Literal["stop", "skip"] = "stop"
    """Whether a broken row ends the run, or is left out and listed."""
    dev: float = 0.1
    """Share of the rows that becomes the dev split where the data has none."""
    test: float = 0.0
    """Share of the rows that becomes the test split where the data has none."""
    split_seed: int = 0
    """Seed by which rows fall into these splits."""
    max_tokens: int = 256
    """Most tokens of a text; what is beyond is cut off."""
    ends: bool = False
    """Whether begin and end tokens stand around each text; a pretrained tokenizer always adds its own."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """How texts are cut into tokens."""

    def problems(self) -> Iterator[str]:
        """Name what cannot be."""
        if not (0 <= self.dev < 1 and 0 <= self.test < 1 and self.dev + self.test < 1):
            yield f"`dev` and `test` must be shares that leave a rest; got {self.dev} and {self.test}. Try 0.1 and 0."
        if self.max_tokens < 3:
            yield f"`max_tokens` must be at least 3; got {self.max_tokens}. 256 is usual."
        if self.text_column is not None and self.text_column == self.label_column:
            yield f"`text_column` and `label_column` must differ; got {self.text_column!r} for both. Name two columns."
        if self.label_separator == "":
            yield "`label_separator` must be at least one character; got an empty text. A comma is usual."


@dataclass(frozen=True)
class TextExamples:
    """Hold encoded texts and their classes."""

    tokens: Tokens
    """The tokens of each text."""
    target: np.ndarray | None = None
    """Class of each text, or 0 and 1 of shape (N, C) where there may be several; `None` where it is not known."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length_N(self) -> np.ndarray:
        """Tell how many tokens each text has."""
        return self.tokens.length_N

    def select(self, rows: np.ndarray) -> TextExamples:
        """Keep some examples, in this order; they are counted anew from 0."""
        return TextExamples(self.tokens.select(rows), None if self.target is None else self.target[rows])

    def batch(self, rows: Sequence[int]) -> Batch:
        """Put the examples of these rows together."""
        tokens_BT, length_B = self.tokens.padded(rows)
        row_B, target = np.asarray(rows, np.int64), None
        if self.target is not None:
            held = torch.from_numpy(self.target[row_B])
            target = held.float() if held.dim() == 2 else held.long()
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(length_B), torch.from_numpy(row_B), target)


@dataclass(frozen=True)
class Prepared:
    """Hold all that training needs to know of the data."""

    table: Table
    """The rows, and the splits that they belong to."""
    tokenizer: Tokenizer
    """Learned on the train split, or given."""
    labels: Labels
    """The classes of the train split."""
    examples: dict[str, TextExamples]
    """The examples of each split."""


def open_texts(
    source: Source,
    settings: SentimentSettings,
    *,
    labelled: bool = True,
    cache: Path | None = None,
    quiet: bool = False,
) -> Table:
    """Open a table of texts.

    Args:
        labelled: whether it is read with its labels; without, a label column is not looked for.
    """
    separator = settings.label_separator
    columns = [Wanted("text", settings.text_column, _TEXT)]
    if labelled:
        several = separator is not None
        columns.append(Wanted("label", settings.label_column, _LABEL, may_be_empty=several, separator=separator))
    return open_table(source, columns=columns, on_error=settings.on_error, cache=cache, quiet=quiet)


def prepare(
    source: Source,
    settings: SentimentSettings,
    *,
    tokenizer: Tokenizer | None = None,
    vectors: str = "",
    cache: Path | None = None,
    quiet: bool = False,
) -> Prepared:
    """Make a table ready for training: splits, classes, vocabulary, examples.

    Args:
        tokenizer: that of a pretrained model; left out, one is trained on the train split.
        vectors: where the model begins from word vectors, their source: words that it knows and the train split lacks
            fill what `tokenizer.vocabulary` leaves, so that a text is read by more than the words of training.

    Raises:
        InputError: for data that nothing can be learned from, or that has labels outside the train split only.
    """
    table = open_texts(source, settings, cache=cache, quiet=quiet)
    by = "label" if settings.label_separator is None else None
    table = split(table, dev=settings.dev, test=settings.test, seed=settings.split_seed, by=by)
    labels = Labels.learn(table, separator=settings.label_separator)
    if not len(table.rows("train")):
        told = f"none of {len(table)}: equal texts stay together"
        raise InputError(f"`train` must get a row; got {told}. Check `--text-column`, or name a file for each split.")
    if tokenizer is None:
        tokenizer = _learned(table, settings, vectors, cache or cache_folder(), quiet=quiet)
    examples = encode(table, tokenizer, settings, labels=labels, cache=cache, quiet=quiet)
    return Prepared(table, tokenizer, labels, {name: examples.select(rows) for name, rows in table.splits.items()})


def _learned(table: Table, settings: SentimentSettings, vectors: str, cache: Path, *, quiet: bool) -> Tokenizer:
    """Train a tokenizer on the train split, or load it where the same was done before."""
    cut, how = [settings.dev, settings.test, settings.split_seed], settings.tokenizer
    source = identity(vectors_file(vectors)) if vectors and how.kind == "words" else None
    path = cache / "tokenizers" / f"{key_of(_VERSION, table.key, cut, asdict(how), source)}.json"
    if path.exists():
        return Tokenizer.load(path)
    texts = table.texts("text", how.sample(table.rows("train")))
    tokenizer = Tokenizer.train(chain.from_iterable(texts), how)
    if source is not None:
        tokenizer = tokenizer.knowing(words_of(vectors, quiet=quiet), how.vocabulary)
    tokenizer.save(path)
    return tokenizer


def encode(
    table: Table,
    tokenizer: Tokenizer,
    settings: SentimentSettings,
    *,
    labels: Labels | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> TextExamples:
    """Turn all rows of a table into examples, from the cache where that was done before.

    Args:
        labels: the classes; left out, the examples have no target.

    Raises:
        InputError: for a label that is none of the classes, with its file and row.
    """
    target = None if labels is None else labels.encode(table)
    tokens = encode_column(
        table, "text", tokenizer, max_tokens=settings.max_tokens, ends=settings.ends, cache=cache, quiet=quiet
    )
    return TextExamples(tokens, target)
