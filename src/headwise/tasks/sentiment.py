"""Classify texts: from a table of texts and labels to examples that a model can be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch

from headwise.contracts.examples import Batch
from headwise.contracts.files import cache_folder
from headwise.errors import InputError
from headwise.tasks.columns import Wanted
from headwise.tasks.data import Table, open_table, split
from headwise.tasks.files import key_of, progress, written
from headwise.tasks.labels import Labels
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer

__all__ = ["Prepared", "SentimentSettings", "TextExamples", "encode", "open_texts", "prepare"]

_VERSION = 1
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
    """Hold encoded texts, their tokens mapped into memory from the cache."""

    tokens_N: np.ndarray
    """Token ids of all texts one after the other, int32."""
    start_N: np.ndarray
    """Where each text begins in them."""
    length_N: np.ndarray
    """How many tokens each text has, int32."""
    target: np.ndarray | None = None
    """Class of each text, or 0 and 1 of shape (N, C) where there may be several; `None` where it is not known."""
    cut: int = 0
    """How many texts of the whole table were too long and lost their end."""

    def __len__(self) -> int:
        return len(self.length_N)

    def select(self, rows: np.ndarray) -> TextExamples:
        """Keep some examples, in this order; they are counted anew from 0."""
        target = None if self.target is None else self.target[rows]
        return replace(self, start_N=self.start_N[rows], length_N=self.length_N[rows], target=target)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Put the examples of these rows together."""
        row_B = np.asarray(rows, np.int64)
        length_B = self.length_N[row_B].astype(np.int64)
        place_T = np.arange(length_B.max(initial=1))
        valid_BT = place_T < length_B[:, None]
        tokens_BT = np.zeros(valid_BT.shape, np.int64)
        tokens_BT[valid_BT] = self.tokens_N[(self.start_N[row_B][:, None] + place_T)[valid_BT]]
        target = None
        if self.target is not None:
            held = torch.from_numpy(self.target[row_B])
            target = held.float() if held.dim() == 2 else held.long()
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(length_B), torch.from_numpy(row_B), target)

    def counts_V(self, size: int) -> np.ndarray:
        """Count how often each token of a vocabulary of this size stands in the whole table."""
        step, counts_V = 2**22, np.zeros(size, np.int64)
        for at in range(0, len(self.tokens_N), step):
            counts_V += np.bincount(self.tokens_N[at : at + step], minlength=size)
        return counts_V


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
    cache: Path | None = None,
    quiet: bool = False,
) -> Prepared:
    """Make a table ready for training: splits, classes, vocabulary, examples.

    Args:
        tokenizer: that of a pretrained model; left out, one is trained on the train split.

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
        tokenizer = _learned(table, settings, cache or cache_folder())
    examples = encode(table, tokenizer, settings, labels=labels, cache=cache, quiet=quiet)
    return Prepared(table, tokenizer, labels, {name: examples.select(rows) for name, rows in table.splits.items()})


def _learned(table: Table, settings: SentimentSettings, cache: Path) -> Tokenizer:
    """Train a tokenizer on the train split, or load it where the same was done before."""
    cut = [settings.dev, settings.test, settings.split_seed]
    path = cache / "tokenizers" / f"{key_of(_VERSION, table.key, cut, asdict(settings.tokenizer))}.json"
    if path.exists():
        return Tokenizer.load(path)
    texts = table.texts("text", table.rows("train"))
    tokenizer = Tokenizer.train(chain.from_iterable(texts), settings.tokenizer)
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
    key = key_of(_VERSION, table.key, tokenizer.json, settings.max_tokens, settings.ends)
    folder = (cache or cache_folder()) / "tokens" / key
    if not (folder / "about.json").exists():
        _write(table, tokenizer, settings, folder, quiet=quiet)
    cut = json.loads((folder / "about.json").read_text())["cut"]
    length_N = np.load(folder / "lengths.npy")
    start_N = np.cumsum(length_N, dtype=np.int64) - length_N
    return TextExamples(np.load(folder / "tokens.npy", mmap_mode="r"), start_N, length_N, target, cut)


def _write(table: Table, tokenizer: Tokenizer, settings: SentimentSettings, folder: Path, *, quiet: bool) -> None:
    """Write token ids and lengths a few thousand rows at a time, then a file that says that they are whole."""
    lengths, total, cut = [np.zeros(0, np.int32)], 0, 0
    bar = progress("tokens", len(table), unit=" rows", quiet=quiet)
    with bar as moved, written(folder / "tokens.npy") as file:
        _write_header(file, 0)
        for texts in table.texts("text"):
            found = tokenizer.encode(texts, max_tokens=settings.max_tokens, ends=settings.ends)
            flat = np.fromiter(chain.from_iterable(found.ids), np.int32)
            file.write(flat.tobytes())
            lengths.append(np.fromiter(map(len, found.ids), np.int32, len(found.ids)))
            total, cut = total + len(flat), cut + found.cut
            moved(len(texts))
        _write_header(file, total)
    with written(folder / "lengths.npy") as file:
        np.save(file, np.concatenate(lengths))
    with written(folder / "about.json") as file:
        file.write(json.dumps({"cut": cut}).encode())


def _write_header(file: IO[bytes], length: int) -> None:
    """Write the header of an array of int32 at the start of a file; it takes as much room for any length."""
    file.seek(0)
    about = {"descr": "<i4", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, about)
