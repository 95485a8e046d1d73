"""Read pairs of texts, what is read and what is to be written, as examples that a model can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from headwise.contracts import PairBatch
from headwise.contracts.files import cache_folder
from headwise.errors import InputError
from headwise.tasks.columns import Wanted
from headwise.tasks.data import Table, open_table, split
from headwise.tasks.encoding import Tokens, encode_column
from headwise.tasks.files import key_of
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.readers import file_format
from headwise.tasks.sources import Source
from headwise.tasks.text_metrics import TextScore
from headwise.tasks.tokenizer import Tokenizer

__all__ = ["PairExamples", "PairSettings", "PairTask", "PreparedPairs", "encode_pairs", "open_pairs", "prepare_pairs"]

_VERSION = 2


@dataclass(frozen=True)
class PairSettings:
    """Choose how pairs of texts are read."""

    source_column: str | None = None
    """Column of the texts that are read; none to guess it."""
    target_column: str | None = None
    """Column of the texts that are to be written; none to guess it."""
    language: str = ""
    """Language of what is written, such as zh, by which it is scored; the target column's name where left out."""
    on_error: Literal["stop", "skip"] = "stop"
    """Whether a broken row ends the run, or is left out and listed."""
    dev: float = 0.1
    """Share of the rows that becomes the dev split where the data has none."""
    test: float = 0.0
    """Share of the rows that becomes the test split where the data has none."""
    split_seed: int = 0
    """Seed by which rows fall into these splits."""
    max_source: int = 256
    """Most tokens of a text that is read, the end token among them; what is beyond is cut off."""
    max_target: int = 256
    """Most tokens of a text that is to be written, both ends among them; what is beyond is cut off."""
    source_prefix: str = ""
    """Text before every text that is read, such as T5's "summarize: "; its tokens count, but belong to no word."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """How texts are cut into tokens; one vocabulary for both sides."""

    def problems(self) -> Iterator[str]:
        """Name what cannot be."""
        if not (0 <= self.dev < 1 and 0 <= self.test < 1 and self.dev + self.test < 1):
            yield f"`dev` and `test` must be shares that leave a rest; got {self.dev} and {self.test}. Try 0.1 and 0."
        for name in ("max_source", "max_target"):
            if getattr(self, name) < 3:
                yield f"`{name}` must be at least 3; got {getattr(self, name)}. 256 is usual."
        if self.source_column is not None and self.source_column == self.target_column:
            yield f"`source_column` and `target_column` must differ; got {self.source_column!r} twice. Name two."

    @property
    def scored_as(self) -> str:
        """Name the language by which what is written is scored."""
        return self.language or self.target_column or "en"

    def reader(self, tokenizer: Tokenizer) -> Tokenizer:
        """Give what cuts texts that are read into tokens."""
        return replace(tokenizer, prefix=self.source_prefix) if self.source_prefix else tokenizer


@dataclass(frozen=True)
class PairTask:
    """Say what is peculiar to a task that turns one text into another."""

    name: str
    """What the task is called."""
    sources: tuple[str, ...]
    """Usual names of the column that is read."""
    targets: tuple[str, ...]
    """Usual names of the column that is to be written."""
    figures: tuple[str, ...]
    """Figures of validation by which a model may be chosen."""
    score: Callable[[Sequence[str], Sequence[str], PairSettings], dict[str, float]]
    """Scores texts against those that should have been written: the figures, 0 to 100."""
    scores: Callable[[Sequence[str], Sequence[str], PairSettings], dict[str, TextScore]]
    """Gives every score with what was counted in each text, so that two runs can be held against each other."""
    report: Callable[[Sequence[str], Sequence[str], Sequence[str], PairSettings], dict[str, float | str]]
    """Gives all figures of texts, references and sources, with signatures, intervals and baselines."""


@dataclass(frozen=True)
class PairExamples:
    """Hold encoded pairs."""

    source: Tokens
    """What is read."""
    target: Tokens | None
    """What is to be written; `None` where it is not known."""
    begin: int
    """Id of the token before what is written."""
    end: int
    """Id of the token after each text, on both sides."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def length_N(self) -> np.ndarray:
        """Tell how many tokens each pair has, source and target, in shape (N, 2); 1 for a target that is not known."""
        written = 1 if self.target is None else self.target.length_N + 2
        return np.stack(np.broadcast_arrays(self.source.length_N + 1, written), axis=1).astype(np.int32)

    def select(self, rows: np.ndarray) -> PairExamples:
        """Keep some pairs, in this order; they are counted anew from 0."""
        target = None if self.target is None else self.target.select(rows)
        return replace(self, source=self.source.select(rows), target=target)

    def counts_V(self, size: int) -> np.ndarray:
        """Count how often each token of a vocabulary of this size stands on both sides of the whole table."""
        counts_V = self.source.counts_V(size)
        return counts_V if self.target is None else counts_V + self.target.counts_V(size)

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """Put the pairs of these rows together."""
        source_BK, source_length_B = _ended(*self.source.padded(rows), self.end)
        if self.target is None:
            target_BT, target_length_B = np.full((len(rows), 1), self.begin), np.ones(len(rows), np.int64)
        else:
            ended_BT, length_B = _ended(*self.target.padded(rows), self.end)
            target_BT = np.pad(ended_BT, ((0, 0), (1, 0)), constant_values=self.begin)
            target_length_B = length_B + 1
        arrays = source_BK, source_length_B, target_BT, target_length_B, np.asarray(rows, np.int64)
        return PairBatch(*(torch.from_numpy(array) for array in arrays))


def _ended(tokens_BT: np.ndarray, length_B: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Put the end token after each text."""
    ended_BT = np.pad(tokens_BT, ((0, 0), (0, 1)))
    ended_BT[np.arange(len(length_B)), length_B] = end
    return ended_BT, length_B + 1


@dataclass(frozen=True)
class PreparedPairs:
    """Hold all that training needs to know of the data."""

    table: Table
    """The rows, and the splits that they belong to."""
    tokenizer: Tokenizer
    """Learned on both sides of the train split, or given."""
    examples: Mapping[str, PairExamples]
    """The pairs of each split."""


def open_pairs(
    source: Source,
    settings: PairSettings,
    task: PairTask,
    *,
    paired: bool = True,
    cache: Path | None = None,
    quiet: bool = False,
) -> Table:
    """Open a table of pairs, or two files whose lines are pairs.

    Args:
        source: a table, or two files of lines.
        settings: how it is read.
        task: for the usual names of the columns.
        paired: whether it is read with its targets; without, a column of them is not looked for.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.
    """
    source = _as_lines(source)
    columns = [Wanted("source", settings.source_column, task.sources, may_be_empty=not paired)]
    if paired:
        columns.append(Wanted("target", settings.target_column, task.targets))
    return open_table(source, columns=columns, on_error=settings.on_error, cache=cache, quiet=quiet)


def _as_lines(source: Source) -> Source:
    """Take a file whose name is that of no table as a file of lines."""
    if isinstance(source, Mapping):
        return {name: _as_part(each) for name, each in source.items()}
    return _as_part(source)


def _as_part(source: str | Path | Sequence[str | Path]) -> str | Path | Sequence[str | Path]:
    if not isinstance(source, str | Path):
        return source[0] if len(source) == 1 and not _is_lines(source[0]) else source
    return [source] if _is_lines(source) else source


def _is_lines(source: str | Path) -> bool:
    path = Path(source).expanduser()
    return not str(source).startswith("hub:") and path.is_file() and file_format(path) is None


def prepare_pairs(
    source: Source,
    settings: PairSettings,
    task: PairTask,
    *,
    tokenizer: Tokenizer | None = None,
    ends: tuple[int, int] | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> PreparedPairs:
    """Make pairs ready for training: splits, vocabulary, examples.

    Args:
        source: a table, or two files of lines; or one of these for each split.
        settings: how it is read.
        task: for the usual names of the columns.
        tokenizer: that of a pretrained model; left out, one is trained on the train split.
        ends: as for `encode_pairs`.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.

    Raises:
        InputError: for data that nothing can be learned from.
    """
    table = open_pairs(source, settings, task, cache=cache, quiet=quiet)
    table = split(table, dev=settings.dev, test=settings.test, seed=settings.split_seed, by=None)
    if not len(table.rows("train")):
        told = f"none of {len(table)}: equal texts stay together"
        raise InputError(f"`train` must get a row; got {told}. Check the columns, or name a file for each split.")
    if tokenizer is None:
        tokenizer = _learned(table, settings, cache or cache_folder())
    examples = encode_pairs(table, tokenizer, settings, ends=ends, cache=cache, quiet=quiet)
    return PreparedPairs(table, tokenizer, {name: examples.select(rows) for name, rows in table.splits.items()})


def _learned(table: Table, settings: PairSettings, cache: Path) -> Tokenizer:
    """Train a tokenizer on both sides of the train split, or load it where the same was done before."""
    cut = [settings.dev, settings.test, settings.split_seed]
    path = cache / "tokenizers" / f"pairs-{key_of(_VERSION, table.key, cut, asdict(settings.tokenizer))}.json"
    if path.exists():
        return Tokenizer.load(path)
    rows = settings.tokenizer.sample(table.rows("train"))
    texts = chain(table.texts("source", rows), table.texts("target", rows))
    tokenizer = Tokenizer.train(chain.from_iterable(texts), settings.tokenizer)
    tokenizer.save(path)
    return tokenizer


def encode_pairs(
    table: Table,
    tokenizer: Tokenizer,
    settings: PairSettings,
    *,
    ends: tuple[int, int] | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> PairExamples:
    """Turn all rows of a table into examples, from the cache where that was done before.

    Args:
        table: the rows; without a column of targets, the examples have none.
        tokenizer: what cuts both sides.
        settings: for the longest texts.
        ends: ids of the tokens before and after what is written; the tokenizer's own where left out.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.
    """
    encoded = partial(encode_column, table, cache=cache, quiet=quiet)
    source = encoded("source", settings.reader(tokenizer), max_tokens=settings.max_source - 1)
    target = None
    if table.has("target"):
        target = encoded("target", tokenizer, max_tokens=settings.max_target - 2)
    return PairExamples(source, target, *(ends or (tokenizer.begin_id, tokenizer.end_id)))
