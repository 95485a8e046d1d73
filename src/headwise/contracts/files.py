"""Write files so that a name holds the old contents or the new ones, and never a part, whenever the power goes."""

from __future__ import annotations

import fcntl
import glob
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from headwise.errors import InputError

__all__ = ["begun_of", "cache_folder", "count_lines", "going_on", "read_format", "replacing", "sync", "write_whole"]


_BLOCK = 1 << 20
_Read = TypeVar("_Read")


def cache_folder() -> Path:
    """Give the one folder that holds all of headwise's caches; it may be deleted at any time.

    It is what the variable `HEADWISE_CACHE` names, else `~/.cache/headwise`.

    Raises:
        InputError: where there is neither the variable nor a home.
    """
    try:
        return Path(os.environ.get("HEADWISE_CACHE") or "~/.cache/headwise").expanduser()
    except RuntimeError as error:
        raise InputError(f"`HEADWISE_CACHE` must name a folder here; got none, and {error} Set it.") from None


def read_format(text: str | bytes, version: int, read: Callable[[Any], _Read], what: str, remedy: str) -> _Read:
    """Read what stands in JSON under the number of its format.

    Raises:
        InputError: when it is of another format, or torn.
    """
    try:
        held = json.loads(text)
        if held["format"] != version:
            raise KeyError("format")
        return read(held)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{what} must be JSON of format {version}; got {text[:60]!r}. {remedy}") from error


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file beside its place, bring it to the disk, and rename it.

    Raises:
        OSError: when the disk is full, say; what the name held before is still there.
    """
    with replacing(path) as beside:
        beside.write_bytes(contents)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which takes its place when all went well and is removed otherwise.

    Leftovers of processes that were killed while writing the same file are removed, too: whoever writes holds a lock,
    which processes of other containers see as well.
    """
    for left in _left(path):
        left.unlink(missing_ok=True)
    with _beside(path) as beside:
        try:
            yield beside
            sync(beside)
            beside.replace(path)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(path)  # a full disk does not name what did not fit
            raise
        finally:
            beside.unlink(missing_ok=True)
    sync(path.parent)  # a rename is on the disk when its folder is


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Make an empty file of a name that nobody has, and keep it for this process."""
    while True:
        beside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
        with beside.open("xb") as held:
            with suppress(OSError):  # of a file system that has no locks, and where nobody takes leftovers away
                fcntl.flock(held, fcntl.LOCK_EX)
            if beside.exists():  # else another process took it for a leftover before it was locked
                yield beside
                return


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def going_on(path: Path, marks: Mapping[str, str], *, resume: bool) -> Iterator[tuple[IO[str], int]]:
    """Give a file of lines to write more lines to, each of which is there at once, and how many it has.

    It stands hidden beside `path`, under a name that tells what its lines come from, and takes its place when all went
    well. What a process leaves behind that failed or was killed, another may go on with; a last line without its end
    is cut off.

    Args:
        path: the file, once it is whole.
        marks: what the lines come from, by name; of each a digest that changes with it.
        resume: go on with what was left, if it comes from the same; else it is removed.

    Raises:
        InputError: when another process writes to the file, or what was left comes from something else.
    """
    begun = path.with_name(f".{path.name}.begun-{'-'.join(marks.values())}")
    for other in begun_of(path):
        with other.open("ab") as left:
            _take(left, path)
        if resume and other != begun:
            theirs = other.name.rpartition(".begun-")[2].split("-")
            told = " and ".join(name for name, their in zip(marks, theirs, strict=False) if marks[name] != their)
            raise InputError(
                f"`{path}` must be gone on with as it was begun; got another {told}. Name the same, or begin anew "
                "without `--resume`."
            )
        if not resume:
            other.unlink()
    with begun.open("a+b") as file:
        _take(file, path)
        lines, size = _whole_lines(file)
        file.truncate(size)
        try:
            with io.TextIOWrapper(file, encoding="utf-8", newline="\n", line_buffering=True) as text:
                yield text, lines
            sync(begun)
        except BaseException:
            if not begun.stat().st_size:
                begun.unlink()
            raise
    begun.replace(path)
    sync(path.parent)


def begun_of(path: Path) -> list[Path]:
    """List what there is of a file that was begun and is not whole."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.begun-*"))


def count_lines(path: Path) -> int:
    """Count the lines of a file that have an end."""
    with path.open("rb") as file:
        return _whole_lines(file)[0]


def _take(file: IO[bytes], path: Path) -> None:
    """Keep a file for this process until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"`{path}` must be nobody else's; got one that is being written. Wait, or stop that."
        ) from None


def _whole_lines(file: IO[bytes]) -> tuple[int, int]:
    """Count the lines that have an end, and their bytes."""
    lines = size = at = 0
    file.seek(0)
    while block := file.read(_BLOCK):
        lines += block.count(b"\n")
        size = at + last + 1 if (last := block.rfind(b"\n")) >= 0 else size
        at += len(block)
    return lines, size


def _left(path: Path) -> Iterator[Path]:
    """Yield what processes left that were killed while they wrote a file, locked while it is looked at."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-{'[0-9a-f]' * 16}"):
        with suppress(OSError), left.open("rb") as file:  # gone meanwhile, or somebody's who writes
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield left
