"""Find the tables behind what a user names: a file, a folder, a data set of the Hugging Face hub, or one each split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headwise.contracts.files import cache_folder
from headwise.errors import InputError
from headwise.tasks.columns import split_name
from headwise.tasks.extras import need
from headwise.tasks.files import identity
from headwise.tasks.readers import Record, Rows, file_format, listed, opened, opened_lines

__all__ = ["ALL", "Part", "Source", "find_parts"]

_log = logging.getLogger("headwise")

ALL = "all"
"""Name of the split of rows that nothing assigns to one."""

Source = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]]


@dataclass(frozen=True)
class Part:
    """Hold one table and the split that its rows belong to."""

    name: str
    """What messages call it: the path of a file."""
    split: str
    """The split of all its rows; `all` where it says nothing about that."""
    state: list[Any]
    """Tells one state of its content from another."""
    size: int
    """How much there is to read: bytes of a file."""
    open: Callable[[Callable[[int], object]], AbstractContextManager[Rows]]
    """Open it; the argument is called with how much more has been read."""
    plain: bool = False
    """Whether it is files of lines, whose columns have no names of their own."""


def find_parts(source: Source) -> list[Part]:
    """List the tables of a source.

    Args:
        source: a file; a folder, whose files are train, dev or test by their names, or all one table; `hub:NAME` or
            `hub:NAME:CONFIG` for a data set of the Hugging Face hub, or a folder laid out as one; one or two files of
            lines in a list, for pairs; or one of these for each split, by its name.

    Raises:
        InputError: when there is nothing to read there.
    """
    if isinstance(source, Mapping):
        return [part for split, each in source.items() for part in _parts_of(split_name(split), each)]
    if not isinstance(source, str | Path):
        return [_lines_part([Path(each).expanduser() for each in source])]
    if str(source).startswith("hub:"):
        return _hub_parts(str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_parts(path)
    if not path.exists():
        raise InputError(
            f"the data must be a file, a folder or hub:NAME; got `{source}`, which is not there. Check it."
        )
    return [_file_part(path, ALL)]


def _parts_of(split: str, source: Source) -> list[Part]:
    """List the tables of a source that is named for one split, without those that say they are of another."""
    parts = find_parts(source)
    own = [part for part in parts if part.split in (ALL, split)]
    others = ", ".join(part.name for part in parts if part not in own)
    if not own:
        raise InputError(f"`{source}` must hold tables of `{split}`; got {others} alone. Name them one by one.")
    if others:
        _log.warning("left out %s: named for another split than `%s`", others, split)
    return [replace(part, split=split) for part in own]


def _file_part(path: Path, split: str) -> Part:
    return Part(str(path), split, identity(path), path.stat().st_size, lambda moved: opened(path, moved))


def _lines_part(paths: Sequence[Path]) -> Part:
    """Take plain text files side by side: what is read, and where there are two, what is to be written."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not 1 <= len(paths) <= 2:
        told = f"`{missing[0]}`, which is none" if missing else f"{len(paths)}"
        raise InputError(f"pairs must be one table, or two files of lines; got {told}. Check the paths.")
    sizes = sum(path.stat().st_size for path in paths)
    name = " and ".join(map(str, paths))
    states = [identity(path) for path in paths]
    return Part(name, ALL, states, sizes, lambda moved: opened_lines(paths, moved), plain=True)


def _folder_parts(folder: Path) -> list[Part]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and file_format(path)]
    if not files:
        raise InputError(f"{folder} must hold csv, tsv, jsonl or parquet files; got none. Name another folder.")
    splits = [_split_of_name(path) for path in files]
    if None in splits and set(splits) != {None}:
        unnamed = [path.name for path, split in zip(files, splits, strict=True) if split is None]
        raise InputError(
            f"{folder} must hold files named train, dev and test, or none so named; got these besides: "
            f"{', '.join(unnamed[:10])}. Move them, or name a file for each split."
        )
    return [_file_part(path, split or ALL) for path, split in zip(files, splits, strict=True)]


def _split_of_name(path: Path) -> str | None:
    words = re.findall("[a-z]+", path.name.lower())
    return next((split for word in words if (split := split_name(word)) in ("train", "dev", "test")), None)


def _hub_parts(source: str) -> list[Part]:
    """Load a data set through `datasets`, which fetches it and keeps it in our cache folder."""
    datasets = need("datasets")
    name, _, config = source.removeprefix("hub:").partition(":")
    if not name:
        raise InputError(f"`{source}` must name a data set of the Hugging Face hub; got no name. Write hub:NAME.")
    try:
        held = datasets.load_dataset(name, config or None, cache_dir=str(cache_folder() / "hub"))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"`{source}` must be a data set of the Hugging Face hub; got: {told} Check the name, and the network."
        ) from error
    return [_hub_part(f"{source} {split}", split_name(str(split)), table) for split, table in held.items()]


def _hub_part(name: str, split: str, table: Any) -> Part:
    state = [identity(Path(file["filename"])) for file in table.cache_files]

    @contextmanager
    def open_it(moved: Callable[[int], object]) -> Iterator[Rows]:
        yield _Hub(table, moved)

    return Part(name, split, state, len(table), open_it)


class _Hub:
    """Read a data set of the hub; class ids become the names of the classes."""

    def __init__(self, table: Any, moved: Callable[[int], object]) -> None:
        self.columns, self._table, self._moved = list(table.column_names), table, moved

    def read(self, names: Sequence[str]) -> Iterator[Record]:
        number, features = 0, self._table.features
        words = {name: features[name].names for name in names if hasattr(features[name], "names")}
        for batch in self._table.select_columns(list(names)).with_format("arrow").iter(1_000):
            columns = [_named(listed(batch.column(name)), words.get(name)) for name in names]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, list(values)
            self._moved(len(batch))


def _named(ids: list[Any], words: list[str] | None) -> list[Any]:
    """Give the names of class ids; -1, which stands for no class, becomes `None`."""
    return ids if words is None else [words[id_] if id_ is not None and id_ >= 0 else None for id_ in ids]
