"""Read rows from CSV, TSV, JSONL and Parquet files, gzip of each, one row at a time, and say what is wrong with a row.

A row is known by its line, counted from 1 with the header, where a record of several lines begins; in Parquet files
and data sets, which have no lines, by its place, counted from 1.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from headwise.errors import InputError
from headwise.tasks.extras import need

__all__ = ["LARGEST_ROW", "Broken", "Record", "Rows", "decompressed", "file_format", "listed", "opened", "opened_lines"]

LARGEST_ROW = 2**24
"""Most bytes that a row may have (16 MB); a longer one is broken, so that a lost quote cannot fill the memory."""

_BLOCK = 2**20
_FORMATS = {"csv": "csv", "tsv": "tsv", "tab": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}


class Broken(NamedTuple):
    """Say why a row cannot be used."""

    fact: str
    """What was found instead."""
    column: str | None = None
    """Where in the row; `None` where the row as a whole is broken."""


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
def decompressed(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file, gzip or not, told by its first bytes: what it holds, and the file itself for its position.

    Raises:
        InputError: when it is not there, or its compressed data is damaged or cut short.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} must be a whole gzip file; got: {error}. Fetch or compress it again.") from error
    except OSError as error:
        told = error.strerror or error
        raise InputError(f"{path} must be a file that can be read; got: {told}. Check the path.") from error


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
        lines = _lines(stream, raw, moved)
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
        yield _Plain(paths, [_lines(stream, raw, moved) for stream, raw in streams])


_Line = tuple[int, str, Broken | None]


def _lines(stream: IO[bytes], raw: IO[bytes], moved: Callable[[int], object]) -> Iterator[_Line]:
    """Give number, text and fault of each line but the empty ones at the end of the file."""
    empty: list[str] = []
    for number, line in enumerate(_split(stream, raw, moved), 1):
        if not line or line == b"\r":
            empty.append(line.decode())
            continue
        yield from ((number - len(empty) + place, text, None) for place, text in enumerate(empty))
        empty.clear()
        yield number, *_decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _split(stream: IO[bytes], raw: IO[bytes], moved: Callable[[int], object]) -> Iterator[bytes]:
    """Cut a stream at its newlines; of a line that is too long, keep one byte more than allowed."""
    rest, at = b"", 0
    while block := stream.read(_BLOCK):
        moved(raw.tell() - at)
        at = raw.tell()
        *whole, rest = (rest + block).split(b"\n") if b"\n" in block else (rest + block,)
        yield from whole
        rest = rest[: LARGEST_ROW + 1]
    if rest:
        yield rest


def _decoded(line: bytes) -> tuple[str, Broken | None]:
    if len(line) > LARGEST_ROW:
        return "", Broken(f"a row of more than {LARGEST_ROW // 2**20} MB")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        fact = f"byte 0x{line[error.start]:02x} at place {error.start + 1}, which is not UTF-8"
        return line.decode(errors="replace"), Broken(fact)
    return text, Broken("a NUL byte") if "\0" in text else None


def _header(path: Path, columns: Sequence[str], fault: Broken | None) -> list[str]:
    """Check the names of the columns."""
    names = [column.strip() for column in columns]
    twice = {name for name in names if names.count(name) > 1}
    if fault or twice or not any(names):
        fact = fault.fact if fault else f"{sorted(twice)} twice" if twice else "an empty file"
        raise InputError(f"{path}, row 1 must be a header in UTF-8 that names each column once; got {fact}. Add one.")
    return names


class _Tsv:
    """Read tab-separated values: no quoting, one row a line, so that quotes are ordinary characters."""

    def __init__(self, path: Path, lines: Iterator[_Line]) -> None:
        _, text, fault = next(lines, (1, "", None))
        self.columns = _header(path, text.rstrip("\r").split("\t"), fault)
        self._lines = lines

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        width, places = len(self.columns), [self.columns.index(name) for name in names]
        for number, text, fault in self._lines:
            fields = text.rstrip("\r").split("\t")
            if fault is not None:
                yield number, _placed(fault, self.columns, fields)
            elif len(fields) != width:
                yield number, Broken(f"{len(fields)} fields, where the header has {width}")
            else:
                yield number, [fields[place] for place in places]


def _placed(fault: Broken, columns: Sequence[str], fields: Sequence[str]) -> Broken:
    """Add the column in which a character was replaced or is NUL."""
    if len(fields) != len(columns):
        return fault
    held = (name for name, field in zip(columns, fields, strict=True) if "\ufffd" in field or "\0" in field)
    return fault._replace(column=next(held, None))


class _Csv:
    """Read comma-separated values with the quoting of RFC 4180; a quoted field may hold commas and newlines."""

    def __init__(self, path: Path, lines: Iterator[_Line]) -> None:
        self._lines, self._number, self._faults = lines, 0, list[Broken]()
        self._reader = csv.reader(self._feed(), strict=True)
        with _long_fields():
            _, fields = next(self._records(), (1, list[str]()))
        fault = fields if isinstance(fields, Broken) else None
        self.columns = _header(path, [] if isinstance(fields, Broken) else fields, fault)

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        width, places = len(self.columns), [self.columns.index(name) for name in names]
        with _long_fields():
            for number, fields in self._records():
                if isinstance(fields, Broken):
                    yield number, fields
                elif len(fields) != width:
                    yield number, Broken(f"{len(fields)} fields, where the header has {width}")
                else:
                    yield number, [fields[place] for place in places]

    def _feed(self) -> Iterator[str]:
        """Hand the lines on, and remember where the reader is and what was wrong with them."""
        for number, text, fault in self._lines:
            self._number = number
            if fault is not None:
                self._faults.append(fault)
            yield text + "\n"

    def _records(self) -> Iterator[tuple[int, list[str] | Broken]]:
        while True:
            first = self._number + 1
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                self._faults.clear()
                yield first, Broken(f"broken CSV ({error})")
                continue
            fault = self._faults[0] if self._faults else None
            self._faults.clear()
            if fault is not None:
                columns = getattr(self, "columns", fields)
                yield first, _placed(fault, columns, fields)
            else:
                yield first, fields


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

    def __init__(self, paths: Sequence[Path], files: Sequence[Iterator[_Line]]) -> None:
        self.columns = ["source", "target"][: len(paths)]
        self._paths, self._files = paths, files

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        places, number = [self.columns.index(name) for name in names], 0
        for number, held in enumerate(zip_longest(*self._files), 1):
            if None in held:
                self._refuse(number, held)
            broken = ((place, fault) for place, (_, _, fault) in enumerate(held) if fault is not None)
            for place, fault in broken:
                yield number, fault._replace(column=self.columns[place])
                break
            else:
                yield number, [held[place][1].rstrip("\r") for place in places]

    def _refuse(self, number: int, held: Sequence[_Line | None]) -> None:
        counts = [
            number - 1 if line is None else number + sum(1 for _ in file)
            for line, file in zip(held, self._files, strict=True)
        ]
        told = " and ".join(f"{count} in {path}" for count, path in zip(counts, self._paths, strict=True))
        raise InputError(f"files of pairs must have equally many lines; got {told}. Align them line by line.")


class _Jsonl:
    """Read JSON lines: one object a line; the first good one names the columns."""

    def __init__(self, path: Path, lines: Iterator[_Line]) -> None:
        self._begun, faults = list[_Line](), list[Broken]()
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
    except AttributeError:
        return Broken(f"JSON that is no object ({text[:40]})")
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
        shutil.copyfileobj(stream, whole)
        yield cast(IO[bytes], whole)


def listed(values: Any) -> list[Any]:
    """Turn an Arrow array into Python values; text that is not UTF-8 becomes bytes."""
    try:
        return list(values.to_pylist())
    except UnicodeDecodeError:
        return [_scalar(value) for value in values]


def _scalar(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()
