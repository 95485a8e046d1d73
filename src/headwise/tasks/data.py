"""Open a table of texts: checked once, kept as one Arrow file in the cache, read a few thousand rows at a time.

The file is read with pyarrow itself and not with `datasets.Dataset`: reading is one call, and nothing of ours needs the
fingerprints and caches that a `Dataset` adds. What is mapped into memory stays there once it was read, so it is not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from headwise.contracts.files import cache_folder
from headwise.errors import ConfigError, InputError
from headwise.tasks.columns import Wanted, split_name
from headwise.tasks.extras import need
from headwise.tasks.files import key_of
from headwise.tasks.keeping import LISTED, Keeper
from headwise.tasks.sources import ALL, Source, find_parts

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Skipped", "Table", "open_table", "split"]

_log = logging.getLogger("headwise")

_VERSION = 4


@dataclass(frozen=True)
class Skipped:
    """Hold what was left out of a table, and why."""

    before: tuple[int, ...] = ()
    """How many rows were kept before each that was left out."""
    listed: tuple[str, ...] = ()
    """File, row, column and fault of the first 20."""

    @property
    def count(self) -> int:
        """Count them."""
        return len(self.before)


@dataclass(frozen=True)
class Table:
    """Hold a table's file in the cache, which is read a few thousand rows at a time, and the splits of its rows."""

    file: pa.NativeFile
    """The file, in Arrow's format: a column of texts for each role; `line`, `file` and `split` of each row."""
    columns: tuple[str, ...]
    """The columns of the file."""
    roles: tuple[str, ...]
    """Those that hold texts."""
    end_N: np.ndarray
    """How many rows stand before the end of each batch of the file."""
    key: str
    """Tells this content from any other; changes with the files and with how they are read."""
    files: tuple[str, ...]
    """The files that were read."""
    splits: Mapping[str, np.ndarray]
    """The rows of each split, ascending; `all` for rows that belong to none."""
    skipped: Skipped = field(default_factory=Skipped)
    """The rows that were left out as broken."""
    elsewhere: int = 0
    """How many rows were left out whose own column `split` puts them into another split than they were named for."""

    def __len__(self) -> int:
        return int(self.end_N[-1]) if len(self.end_N) else 0

    def has(self, role: str) -> bool:
        """Tell whether there is a column for a role."""
        return role in self.roles

    def rows(self, name: str) -> np.ndarray:
        """Give the rows of a split.

        Raises:
            InputError: when there is no such split.
        """
        name = split_name(name)
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise InputError(f"the data must have a split `{name}`; got {known}. Name a file for it, or cut one off.")
        return self.splits[name]

    def chosen(self, split: str | None) -> np.ndarray:
        """Give the rows that a command is about: of a split, all of them for `all`; left out, of `test` or all."""
        if split == ALL or (split is None and "test" not in self.splits):
            return np.arange(len(self))
        return self.rows(split or "test")

    def texts(self, role: str, rows: np.ndarray | None = None) -> Iterator[list[str]]:
        """Read a column a few thousand rows at a time.

        Args:
            rows: only these, ascending; left out, all.
        """
        return (values.to_pylist() for values in self._values(role, rows))

    def coded(self, role: str, rows: np.ndarray | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Read a column a few thousand rows at a time: its different texts, and which of them each row has.

        Args:
            rows: only these, ascending; left out, all.
        """
        for values in self._values(role, rows):
            coded = values.dictionary_encode()
            yield coded.dictionary.to_pylist(), coded.indices.to_numpy()

    def _values(self, role: str, rows: np.ndarray | None) -> Iterator[pa.Array]:
        for values, end in zip(self.column(role), self.end_N, strict=True):
            if rows is None:
                yield values
                continue
            start = end - len(values)
            first, last = np.searchsorted(rows, (start, end))
            if last > first:
                yield values.take(need("pyarrow").array(rows[first:last] - start))

    def column(self, name: str) -> Iterator[pa.Array]:
        """Read a column batch by batch."""
        return _column(self.file, self.columns.index(name))

    def where(self, row: int) -> str:
        """Say where a row came from, for messages."""
        batch = int(np.searchsorted(self.end_N, row, side="right"))
        values = _reader(self.file).get_batch(batch)
        place = row - int(self.end_N[batch]) + values.num_rows
        return f"{self.files[values['file'][place].as_py()]}, row {values['line'][place].as_py()}"


def open_table(
    source: Source,
    *,
    columns: Sequence[Wanted],
    on_error: Literal["stop", "skip"] = "stop",
    cache: Path | None = None,
    quiet: bool = False,
) -> Table:
    """Open a table, from the cache where nothing has changed since it was last read.

    Args:
        source: what `find_parts` takes: a file, a folder, `hub:NAME`, or one of these for each split.
        columns: what to read of it.
        on_error: whether the first broken row is an error, or broken rows are left out, counted and listed.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.

    Raises:
        InputError: with file, row and column of what cannot be read.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f'`on_error` must be "stop" or "skip"; got {on_error!r}. Choose one.')
    parts = find_parts(source)
    states = [[part.name, part.split, part.state] for part in parts]
    key = key_of(_VERSION, states, [asdict(want) for want in columns], on_error)
    kept = (cache or cache_folder()) / "tables" / f"{key}.arrow"
    if not all(map(os.path.isfile, (kept, kept.with_suffix(".json")))):
        Keeper(columns, skip=on_error == "skip").keep(parts, kept, quiet=quiet)
    table = _opened(kept, key)
    if table.skipped.count:
        more = f"\nand {table.skipped.count - LISTED} more" if table.skipped.count > LISTED else ""
        _log.warning("skipped %d rows:\n%s%s", table.skipped.count, "\n".join(table.skipped.listed), more)
    if table.elsewhere:
        _log.warning("left out %d rows whose column `split` names another split", table.elsewhere)
    bare = [part.name for part in parts if part.split != ALL and part.split not in table.splits]
    if bare or not len(table):
        raise InputError(f"{[*bare, parts[0].name][0]} must have at least one good row; got none. Check the file.")
    return table


def split(table: Table, *, dev: float = 0.1, test: float = 0.0, seed: int = 0, by: str | None = "label") -> Table:
    """Cut dev and test splits off where the data has none.

    A row's place follows from its first text and the seed alone: not from the order of the rows, and hardly from
    rows that are added later. Rows that are equal stay together.

    Args:
        dev: share of the rows for `dev`, 0 to 1; nothing is cut off where there is a dev split already.
        test: the same for `test`.
        by: the column whose values keep their shares in every split; `None` for no such column.

    Raises:
        ConfigError: for shares that leave nothing.
        InputError: when a split would get no row.

    Example:
        `split(table, dev=0.1, seed=1).splits` has rows for `train` and `dev`.
    """
    if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
        raise ConfigError(f"`dev` and `test` must be shares that leave a rest; got {dev} and {test}. Try 0.1 and 0.")
    splits = dict(table.splits)
    if ALL in splits and "train" not in splits:
        splits["train"] = splits.pop(ALL)
    shares = {name: share for name, share in (("dev", dev), ("test", test)) if share and name not in splits}
    rows = splits.get("train")
    if rows is None or not shares:
        return replace(table, splits=splits)
    order = _drawn(table, rows, seed)
    place = np.zeros(len(rows), np.int8)
    strata = list(_strata(table, rows, by))
    for stratum in strata:
        _cut(place, stratum, order, tuple(shares.values()))
    for number, name in enumerate(shares, 1):
        splits[name] = rows[place == number]
        if not len(splits[name]):
            told = f" with {len(strata)} different values of `{by}`. Check that column, or raise" if by else ". Raise"
            raise InputError(
                f"`{name}` must get a row; got a share of {shares[name]} of {len(rows)} rows{told} the share."
            )
    return replace(table, splits=splits | {"train": rows[place == 0]})


def _drawn(table: Table, rows: np.ndarray, seed: int) -> np.ndarray:
    """Draw a number for each row from its first text and the seed."""
    key = seed.to_bytes(16, "little", signed=True)
    drawn, at = np.empty(len(rows), np.uint64), 0
    for texts in table.texts(table.roles[0], rows):
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts)
        drawn[at : at + len(texts)] = np.frombuffer(digests, "<u8")
        at += len(texts)
    return drawn


def _strata(table: Table, rows: np.ndarray, by: str | None) -> Iterator[np.ndarray]:
    """Group the places among `rows` by a column's value."""
    if by is None or not table.has(by):
        yield np.arange(len(rows))
        return
    codes: dict[str, int] = {}
    found, at = np.empty(len(rows), np.int32), 0
    for values, index in table.coded(by, rows):
        found[at : at + len(index)] = np.array([codes.setdefault(value, len(codes)) for value in values])[index]
        at += len(index)
    order = np.argsort(found, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(found[order])) + 1)


def _cut(place: np.ndarray, stratum: np.ndarray, drawn: np.ndarray, shares: Sequence[float]) -> None:
    """Give the rows with the lowest numbers of a stratum to the splits in turn; equal rows go with the first."""
    ranked = stratum[np.argsort(drawn[stratum], kind="stable")]
    numbers, begin = drawn[ranked], 0
    for number, share in enumerate(shares, 1):
        end = min(begin + round(share * len(ranked)), len(ranked))
        while begin < end < len(ranked) and numbers[end] == numbers[end - 1]:
            end += 1
        place[ranked[begin:end]] = number
        begin = end


def _reader(file: pa.NativeFile, column: int | None = None) -> pa.ipc.RecordBatchFileReader:
    """Begin to read a file of Arrow's format, or one column of it."""
    ipc = need("pyarrow.ipc")
    return ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=None if column is None else [column]))


def _column(file: pa.NativeFile, column: int) -> Iterator[pa.Array]:
    reader = _reader(file, column)
    return (reader.get_batch(number).column(0) for number in range(reader.num_record_batches))


def _opened(kept: Path, key: str) -> Table:
    about = json.loads(kept.with_suffix(".json").read_text())
    file = need("pyarrow").OSFile(str(kept))
    columns = tuple(_reader(file).schema.names)
    codes = [values.to_numpy() for values in _column(file, columns.index("split"))]
    code_N = np.concatenate([np.zeros(0, np.int64), *codes])
    splits = {name: np.flatnonzero(code_N == number) for number, name in enumerate(about["splits"])}
    return Table(
        file,
        columns,
        tuple(about["roles"]),
        np.cumsum([len(code) for code in codes], dtype=np.int64),
        key,
        tuple(about["files"]),
        {name: rows for name, rows in splits.items() if len(rows)},
        Skipped(tuple(about["before"]), tuple(about["listed"])),
        about["elsewhere"],
    )
