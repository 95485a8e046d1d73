"""Cut files, gzip or not, into lines of text, and say what is wrong with one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from headwise.errors import InputError

__all__ = ["LARGEST_ROW", "Broken", "Line", "decompressed", "lines_of"]

LARGEST_ROW = 2**24
"""Most bytes that a row may have (16 MB); a longer one is broken, so that a lost quote cannot fill the memory."""
_BLOCK = 2**20


class Broken(NamedTuple):
    """Say why a row cannot be used."""

    fact: str
    """What was found instead."""
    column: str | None = None
    """Where in the row; `None` where the row as a whole is broken."""


Line = tuple[int, str, Broken | None]
"""Number, text and fault of a line."""


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


def lines_of(
    stream: IO[bytes], raw: IO[bytes], moved: Callable[[int], object], *, ending: bool = False
) -> Iterator[Line]:
    """Give number, text and fault of each line; the empty ones at the end of the file where `ending` says so."""
    empty = bytearray()  # for each such line its carriage returns: as good as none, where there are millions
    for number, line in enumerate(_split(stream, raw, moved), 1):
        if not ending and line in (b"", b"\r"):
            empty.append(len(line))
            continue
        yield from ((number - len(empty) + place, "\r" * count, None) for place, count in enumerate(empty))
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
