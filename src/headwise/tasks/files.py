"""Keep what was computed once: one cache folder, files that are whole or not there, progress bars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from headwise.contracts.files import replacing
from headwise.errors import InputError
from headwise.tasks.extras import need

__all__ = ["identity", "key_of", "progress", "unwritable", "written"]


def identity(path: Path) -> list[str | int]:
    """Tell one state of a file from another without reading it: its path, size and time of change in ns."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def key_of(*parts: object) -> str:
    """Name a cached file after all that it depends on, given as plain data."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, sync it, and move it there: it is whole, or it is not there.

    Raises:
        InputError: when the disk is full or the folder may not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("w+b") as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """Tell what keeps a file from being written."""
    told = error.strerror or error
    return InputError(
        f"`{path}` must be writable; got {told}. Free some space, or name another folder in HEADWISE_CACHE."
    )


@contextmanager
def progress(told: str, total: int, *, unit: str = "B", quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and give the function that moves it; it appears after two seconds only.

    Args:
        told: what is going on.
        total: how much there is to do.
        quiet: show nothing.
    """
    hidden = True if quiet else None
    bar = need("tqdm").tqdm(total=total, desc=told, unit=unit, unit_scale=True, disable=hidden, delay=2, leave=False)
    with bar:
        yield bar.update
