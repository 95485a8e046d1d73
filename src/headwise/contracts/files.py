"""Write files so that a name holds the old contents or the new ones, and never a part, whenever the power goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_folder", "replacing", "sync", "write_whole"]


def cache_folder() -> Path:
    """Give the one folder that holds all of headwise's caches; it may be deleted at any time.

    It is what the variable `HEADWISE_CACHE` names, else `~/.cache/headwise`.
    """
    return Path(os.environ.get("HEADWISE_CACHE") or Path.home() / ".cache" / "headwise").expanduser()


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

    Leftovers of processes that were killed while writing the same file are removed, too.
    """
    _clear(path)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)  # a rename is on the disk when its folder is


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        writer = left.name.rpartition("-")[2]
        if writer.isdecimal() and not _alive(int(writer)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
