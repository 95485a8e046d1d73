"""Read rows from CSV, TSV, JSONL and Parquet files, gzip of each, one row at a time, and say what is wrong with a row.

A row is known by its line, counted from 1 with the header, where a record of several lines begins; in Parquet files
and data sets, which have no lines, by its place, counted from 1.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, Any, Protocol, cast

from headwise.errors import InputError
from headwise.tasks.extras import need
from headwise.tasks.lines import LARGEST_ROW, Broken, Line, decompressed, lines_of

__all__ = ["Record", "Rows", "file_format", "listed", "opened", "opened_lines"]

_FORMATS = {"csv": "csv", "tsv": "tsv", "tab": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}


Record = tuple[int, list[Any] | Broken]


class Rows(Protocol):
    """Be a table that is read once, from its first row to its last."""

    @property
    def columns(self) -> Sequence[str]:
        """Name the columns."""

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        """Give each row's number and its values in these columns."""


def file_format(path: Path) -> str | None:
    """Tell a format by a file's name: `csv`, `tsv`, `jsonl`, `parquet`, or `None` for any other."""
    suffixes = path.suffixes[:-1] if path.suffix.lower() == ".gz" else path.suffixes
    return _FORMATS.get(suffixes[-1][1:].lower()) if suffixes else None


@contextmanager
def opened(path: Path, moved: Callable[[int], object]) -> Iterator[Rows]:
    """Open a table.

    Args:
        moved: is called with how many more bytes of the file have been read.
    """
    form = file_format(path)
    with decompressed(path) as (stream, raw):
        if form == "parquet":
            with nullcontext(raw) if stream is raw else _unpacked(stream) as whole:
                yield _Parquet(path, whole)
            moved(path.stat().st_size)
            return
        lines = lines_of(stream, raw, moved)
        match form:
            case "csv":
                yield _Csv(path, lines)
            case "tsv":
                yield _Tsv(path, lines)
            case "jsonl":
                yield _Jsonl(path, lines)
            case _:
                known = "csv, tsv, jsonl, parquet"
                raise InputError(f"{path} must end in one of {known}, or that and .gz; got `{path.name}`. Rename it.")


@contextmanager
def opened_lines(paths: Sequence[Path], moved: Callable[[int], object]) -> Iterator[Rows]:
    """Open plain text files as a table: line n of each is a value of row n; columns `source` and `target`.

    Args:
        paths: the file of each column.
        moved: is called with how many more bytes of the files have been read.
    """
    with ExitStack() as stack:
        streams = [stack.enter_context(decompressed(path)) for path in paths]
        yield _Plain(paths, [lines_of(stream, raw, moved, ending=True) for stream, raw in streams])


def _header(path: Path, columns: Sequence[str], fault: Broken | None) -> list[str]:
    """Check the names of the columns."""
    names = [column.strip() for column in columns]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if fault or twice or not any(names):
        fact = fault.fact if fault else f"{[name[:40] for name in twice[:10]]} twice" if twice else "an empty file"
        raise InputError(f"{path}, row 1 must be a header in UTF-8 that names each column once; got {fact}. Add one.")
    return names


class _Tsv:
    """Read tab-separated values: no quoting, one row a line, so that quotes are ordinary characters."""

    def __init__(self, path: Path, lines: Iterator[Line]) -> None:
        _, text, fault = next(lines, (1, "", None))
        self.columns = _header(path, text.rstrip("\r").split("\t"), fault)
        self._lines = lines

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        places = [self.columns.index(name) for name in names]
        for number, text, fault in self._lines:
            fields = text.rstrip("\r").split("\t")
            found = _picked(fields, self.columns, places) if fault is None else _placed(fault, self.columns, fields)
            yield number, found


def _picked(fields: Sequence[str], columns: Sequence[str], places: Sequence[int]) -> list[str] | Broken:
    if len(fields) != len(columns):
        return Broken(f"{len(fields)} fields, where the header has {len(columns)}")
    return [fields[place] for place in places]


def _placed(fault: Broken, columns: Sequence[str], fields: Sequence[str]) -> Broken:
    """Add the column in which a character was replaced or is NUL."""
    if len(fields) != len(columns):
        return fault
    held = (name for name, field in zip(columns, fields, strict=True) if "\ufffd" in field or "\0" in field)
    return fault._replace(column=next(held, None))


class _Csv:
    """Read comma-separated values with the quoting of RFC 4180; a quoted field may hold commas and newlines.

    Of a record that is broken only the first line is left out: what looked like the rest of it, after a quote that
    nobody closed, may be good rows.
    """

    def __init__(self, path: Path, lines: Iterator[Line]) -> None:
        self._lines, self._number = lines, 0
        self._record, self._again, self._spare = list[Line](), deque[Line](), _MOST_AGAIN
        self._reader = csv.reader(self._feed(), strict=True)
        with _long_fields():
            _, fields = next(self._records(), (1, list[str]()))
        fault = fields if isinstance(fields, Broken) else None
        self.columns = _header(path, [] if isinstance(fields, Broken) else fields, fault)

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        places = [self.columns.index(name) for name in names]
        with _long_fields():
            for number, fields in self._records():
                yield number, fields if isinstance(fields, Broken) else _picked(fields, self.columns, places)

    def _feed(self) -> Iterator[str]:
        """Hand the lines on, and remember those of the record."""
        while line := self._again.popleft() if self._again else next(self._lines, None):
            self._number = line[0]
            self._record.append(line)
            yield line[1] + "\n"

    def _records(self) -> Iterator[tuple[int, list[str] | Broken]]:
        while True:
            first = self._number + 1
            self._record.clear()
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, Broken(f"broken CSV ({error}{self._read_again()})")
                continue
            fault = next((fault for _, _, fault in self._record if fault is not None), None)
            if fault is not None:
                columns = getattr(self, "columns", fields)
                yield first, _placed(fault, columns, fields)
            else:
                yield first, fields

    def _read_again(self) -> str:
        """Go back to the second line of a broken record; once that was too much to read twice, tell where it ends."""
        rest = self._record[1:]
        self._spare -= sum(len(text) for _, text, _ in rest)
        if self._spare < 0 and rest:
            return f"; rows down to {rest[-1][0]} left out with it"
        self._again.extendleft(reversed(rest))
        self._number = self._record[0][0] if self._record else self._number
        self._reader = csv.reader(self._feed(), strict=True)
        return ""


_MOST_AGAIN = 2**28
"""Letters of a CSV file that are read again because a quote was not closed."""


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields up to the largest row; its own limit is 128 KB, for the whole process."""
    before = csv.field_size_limit(LARGEST_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Plain:
    """Read plain text files side by side."""

    def __init__(self, paths: Sequence[Path], files: Sequence[Iterator[Line]]) -> None:
        self.columns = ["source", "target"][: len(paths)]
        self._paths, self._files = paths, files

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        places = [self.columns.index(name) for name in names]
        for number, held in enumerate(self._rows(), 1):
            if None in held:
                self._refuse(number, held)
            broken = ((place, fault) for place, (_, _, fault) in enumerate(held) if fault is not None)
            for place, fault in broken:
                yield number, fault._replace(column=self.columns[place])
                break
            else:
                yield number, [held[place][1].rstrip("\r") for place in places]

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Give the lines side by side; of pairs, without the last ones that hold nothing on both sides."""
        empty: list[tuple[Any, ...]] = []
        for held in zip_longest(*self._files):
            if len(held) > 1 and not any(line and (line[2] or line[1].rstrip("\r")) for line in held):
                empty.append(held)
                continue
            yield from empty
            empty.clear()
            yield held

    def _refuse(self, number: int, held: Sequence[Line | None]) -> None:
        counts = [
            number - 1 if line is None else number + sum(1 for _ in file)
            for line, file in zip(held, self._files, strict=True)
        ]
        told = " and ".join(f"{count} in {path}" for count, path in zip(counts, self._paths, strict=True))
        raise InputError(f"files of pairs must have equally many lines; got {told}. Align them line by line.")


class _Jsonl:
    """Read JSON lines: one object a line; the first good one names the columns."""

    def __init__(self, path: Path, lines: Iterator[Line]) -> None:
        self._begun, faults = list[Line](), list[Broken]()
        for line in islice(lines, _TRIED):
            self._begun.append(line)
            held = _object(line[1], line[2])
            if not isinstance(held, Broken):
                break
            faults.append(held)
        else:
            fact = faults[0].fact if faults else "an empty file"
            raise InputError(f"{path}, row 1 must be a JSON object; got {fact}. Write one object a line, in UTF-8.")
        _header(path, list(held), None)
        self.columns, self._lines = list(held), lines

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        for number, text, fault in chain(self._begun, self._lines):
            held = _object(text, fault)
            yield number, held if isinstance(held, Broken) else [held.get(name) for name in names]


_TRIED = 1_000
"""Rows in which a file of JSON lines has to hold an object, else it is none."""


def _object(text: str, fault: Broken | None) -> dict[str, Any] | Broken:
    if fault is not None:
        return fault
    try:
        held = json.loads(text)
        # An escape may stand for half a character, which no file can hold.
        json.dumps(held if "\\u" in text else None, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("half of a surrogate pair")
    except (ValueError, RecursionError) as error:
        return Broken(f"broken JSON ({error})")
    return held if isinstance(held, dict) else Broken(f"JSON that is no object ({text[:40]})")


class _Parquet:
    """Read a Parquet file a batch at a time."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        try:
            self._file = parquet.ParquetFile(stream)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} must be a whole Parquet file; got: {error}. Write it again.") from error
        self.columns = list(self._file.schema_arrow.names)
        _header(path, self.columns, None)
        self._path, self._failure = path, (pyarrow.ArrowException, OSError)

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        number = 0
        try:
            for batch in self._file.iter_batches(1_000, columns=list(names)):
                for values in zip(*(listed(batch.column(name)) for name in names), strict=True):
                    number += 1
                    yield number, list(values)
        except self._failure as error:
            raise InputError(
                f"{self._path} must be a whole Parquet file; got after row {number}: {error}. Write it again."
            ) from error


@contextmanager
def _unpacked(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Unpack gzip into a temporary file, because Parquet is read from its end."""
    with tempfile.TemporaryFile() as whole:
        while block := stream.read(2**20):
            try:
                whole.write(block)
            except OSError as error:  # told here: further out it would pass for a fault of the file that is read
                told = f"must have room for what is unpacked; got {error.strerror}. Name another in TMPDIR."
                raise InputError(f"the folder of temporary files, {tempfile.gettempdir()}, {told}") from error
        yield cast(IO[bytes], whole)


def listed(values: Any) -> list[Any]:
    """Turn an Arrow array into Python values; text that is not UTF-8 becomes bytes, what Python has not `Broken`."""
    try:
        return list(values.to_pylist())
    except (ValueError, OverflowError):
        return [_scalar(value) for value in values]


def _scalar(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else Broken("bytes that are not UTF-8")
    except (ValueError, OverflowError) as error:
        return Broken(f"a value out of range ({error})")
