"""Read the rows of a file of word vectors, text or binary, told by what stands in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np

from headwise.errors import InputError
from headwise.tasks.files import progress
from headwise.tasks.lines import decompressed

__all__ = ["Row", "rows_of"]

Row = tuple[bytes, np.ndarray]

_BLOCK = 2**22
_LONGEST_LINE, _LONGEST_WORD = 2**20, 2**12
_TRIED = 50


def rows_of(path: Path, sought: Collection[bytes] | None = None, *, quiet: bool = False) -> Iterator[Row]:
    """Give word and numbers of each row whose word is sought, or of every row, in the file's order.

    Text rows are parsed from the right, because some words hold spaces. A row, in messages, is a line of a text file
    and the place of a vector in a binary one, counted from 1.

    Raises:
        InputError: for a row of another width or with what is no finite number, and for a file that is cut short.
    """
    with decompressed(path) as (stream, raw), progress("vectors", path.stat().st_size, quiet=quiet) as moved:
        first = stream.readline(_LONGEST_LINE)
        head = first.split()
        counted = len(head) == 2 and all(field.isdigit() for field in head)
        count, width = (int(head[0]), int(head[1])) if counted else (None, None)
        start = stream.read(_BLOCK)
        if counted and count is not None and width and _is_binary(start, width):
            yield from _Binary(path, width, count).rows(_followed(start, stream, raw, moved), sought)
            return
        lines = _cut(_followed(start if counted else first + start, stream, raw, moved))
        yield from _Text(path, count, 2 if counted else 1).rows(lines, sought, width)


def _is_binary(start: bytes, width: int) -> bool:
    """Tell binary rows from text: the first text row ends in as many numbers as the header says."""
    fields = start.partition(b"\n")[0].split()
    try:
        return len([float(field) for field in fields[-width:]]) < width
    except ValueError:
        return True


def _followed(start: bytes, stream: IO[bytes], raw: IO[bytes], moved: Callable[[int], object]) -> Iterator[bytes]:
    at, block = 0, start
    while block:
        yield block
        moved(raw.tell() - at)
        at, block = raw.tell(), stream.read(_BLOCK)


def _cut(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


@dataclass(frozen=True)
class _Text:
    path: Path
    count: int | None
    """Rows by the header; `None` where there is none."""
    first: int
    """Line of the first row."""

    def rows(self, lines: Iterator[bytes], sought: Collection[bytes] | None, width: int | None) -> Iterator[Row]:
        tried = list(islice(lines, _TRIED))
        width = width or self._usual_width(tried)
        number = self.first - 1
        for number, given in enumerate(chain(tried, lines), self.first):
            line = given.rstrip(b" \r")
            word = line.partition(b" ")[0] if line.count(b" ") == width else self._word(number, line, width)
            if sought is None or word in sought:
                yield word, self._numbers(number, line[len(word) :].split(b" ")[1:])
        read = number - self.first + 1
        if self.count is not None and read < self.count:
            raise InputError(
                f"{self.path} must have {self.count} rows by its header; got {read}: it is cut short. {_FETCH}"
            )

    def _usual_width(self, lines: list[bytes]) -> int:
        fields = Counter(line.rstrip(b" \r").count(b" ") for line in lines)
        width = fields.most_common(1)[0][0] if fields else 0
        if width < 1:
            raise InputError(f"{self.path} must hold a word and its numbers in each row; got none. {_FETCH}")
        return width

    def _word(self, number: int, line: bytes, width: int) -> bytes:
        """Take the word off a row that has not one word and `width` numbers; it may hold spaces."""
        fields = line.split(b" ")
        inner = fields[1 : len(fields) - width]
        if len(fields) <= width or (inner and all(map(_is_number, inner))):
            raise InputError(
                f"{self.path}, row {number} must have {width} numbers; got {len(fields) - 1}: the file is of several "
                f"widths or cut short. {_FETCH}"
            )
        return b" ".join(fields[: len(fields) - width])

    def _numbers(self, number: int, fields: list[bytes]) -> np.ndarray:
        wrong = next((field for field in fields if not _is_number(field)), None)
        if wrong is not None:
            told = wrong[:40].decode(errors="replace")
            raise InputError(f"{self.path}, row {number} must hold finite numbers; got {told!r}. {_FETCH}")
        return np.array(fields, np.bytes_).astype(np.float32)


def _is_number(field: bytes) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False


@dataclass(frozen=True)
class _Binary:
    path: Path
    width: int
    count: int

    def rows(self, blocks: Iterator[bytes], sought: Collection[bytes] | None) -> Iterator[Row]:
        held, at, size = b"", 0, 4 * self.width
        for number in range(1, self.count + 1):
            while (space := held.find(b" ", at)) < 0 or space + 1 + size > len(held):
                if space < 0 and len(held) - at > _LONGEST_WORD:
                    raise InputError(f"{self.path}, row {number} must begin with a word; got none. {_FETCH}")
                block = next(blocks, b"")
                if not block:
                    raise InputError(
                        f"{self.path} must have {self.count} rows by its header; got {number - 1}: it is cut short. "
                        f"{_FETCH}"
                    )
                held, at = held[at:] + block, 0
            word = held[at:space].lstrip(b"\n")
            at = space + 1 + size
            if sought is None or word in sought:
                values = np.frombuffer(held[space + 1 : at], "<f4").astype(np.float32)
                if not np.isfinite(values).all():
                    raise InputError(f"{self.path}, row {number} must hold finite numbers; got nan or inf. {_FETCH}")
                yield word, values


_FETCH = "Fetch or export the file again."
