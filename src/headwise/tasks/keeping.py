"""Check every row of some tables, and keep the good ones in one Arrow file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from headwise.errors import InputError
from headwise.tasks.columns import SPLITS, Wanted, find_columns, split_name
from headwise.tasks.extras import need
from headwise.tasks.files import progress, unwritable, written
from headwise.tasks.lines import Broken
from headwise.tasks.readers import Rows
from headwise.tasks.sources import ALL, Part

__all__ = ["LISTED", "Keeper", "text_of"]

LISTED = 20
"""How many of the rows that were left out are listed."""

_ROWS_A_BATCH, _BYTES_A_BATCH = 10_000, 2**24
_MOST_SPLITS = 100
_NUMBERS = ("line", "file", "split")


def text_of(value: object, want: Wanted) -> str | Broken:
    """Turn a value of a table into text, or say why it cannot be one.

    Numbers are written out and booleans become `true` and `false`, since labels are often stored so. A list is joined
    where the column may hold several labels.
    """
    if isinstance(value, list) and want.separator is not None:
        texts = [text_of(item, want) for item in value]
        if any(isinstance(text, str) and want.separator in text for text in texts):
            return Broken(f"an item with {want.separator!r} in it, which joins items")
        value = next((text for text in texts if isinstance(text, Broken)), None) or want.separator.join(map(str, texts))
    if isinstance(value, bytes):  # as some programs store texts in Parquet files
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return Broken("bytes that are not UTF-8")
    match value:
        case Broken():
            return value
        case str() if "\0" in value:
            return Broken("a NUL byte")
        case str() if (value and not value.isspace()) or want.may_be_empty:
            return value
        case str():
            return Broken("an empty text")
        case None:
            return "" if want.may_be_empty else Broken("no value")
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return Broken(f"{value}, which is no number")
        case int() | float():
            return str(value)
    return Broken(f"a {type(value).__name__}, which is no text")


class Keeper:
    """Write the good rows of some tables to the cache, a batch at a time; keep one for one file only."""

    def __init__(self, wanted: Sequence[Wanted], *, skip: bool) -> None:
        self._wanted, self._skip = wanted, skip
        self._schema = need("pyarrow").schema(
            [(want.role, need("pyarrow").string()) for want in wanted]
            + [(name, need("pyarrow").int64()) for name in _NUMBERS]
        )
        self._held: list[list[Any]] = [[] for _ in self._schema.names]
        self._bytes = 0
        self._splits: dict[str, int] = {}
        self._rows, self._before, self._listed = 0, list[int](), list[str]()
        self._elsewhere = 0

    def keep(self, parts: Sequence[Part], kept: Path, *, quiet: bool) -> None:
        """Write the Arrow file, then a JSON file that says what is in it and that it is whole.

        Args:
            kept: the Arrow file.

        Raises:
            InputError: at the first row that is broken, unless such rows are left out.
        """
        roles: list[set[str]] = []
        total = sum(part.size for part in parts)
        with (
            progress("reading", total, quiet=quiet) as moved,
            written(kept) as sink,
            need("pyarrow.ipc").new_file(sink, self._schema) as out,
        ):
            write = partial(_write, out, kept)
            for number, part in enumerate(parts):
                with part.open(moved) as rows:
                    roles.append(self._read(rows, part, number, write))
            self._flush(write)
        about = {
            "roles": [want.role for want in self._wanted if want.role in _shared(parts, roles)],
            "files": [part.name for part in parts],
            "splits": list(self._splits),
            "before": self._before,
            "listed": self._listed,
            "elsewhere": self._elsewhere,
        }
        with written(kept.with_suffix(".json")) as file:
            file.write(json.dumps(about).encode())

    def _read(self, rows: Rows, part: Part, number: int, write: Callable[[Any], object]) -> set[str]:
        """Read one table, and give the roles that it has columns for."""
        # Files of lines have no names for their columns that a setting could mean.
        wanted = [replace(want, name=None) for want in self._wanted] if part.plain else self._wanted
        found = find_columns(rows.columns, wanted, part.name)
        wants = [want for want in self._wanted if want.role in found]
        named = "split" in rows.columns and "split" not in found.values()
        if named:
            wants.append(Wanted("split", "split", may_be_empty=part.split != ALL))
            found["split"] = "split"
        *columns, lines, files, splits = self._held
        texts = [columns[self._wanted.index(want)] for want in wants if want in self._wanted]
        absent = [column for column, want in zip(columns, self._wanted, strict=True) if want not in wants]
        for line, values in rows.read(list(found.values())):
            good = values if isinstance(values, Broken) else self._texts(wants, values, found)
            if isinstance(good, Broken):
                self._leave_out(part.name, line, good)
                continue
            word = split_name(good.pop()) if named else part.split
            if part.split != ALL:
                if word != part.split and word in SPLITS:
                    self._elsewhere += 1
                    continue
                word = part.split
            for column, value in zip(texts, good, strict=True):
                column.append(value)
            for column in absent:
                column.append(None)
            self._rows += 1
            lines.append(line)
            files.append(number)
            splits.append(self._number_of(word, part.name, line))
            if len(lines) >= _ROWS_A_BATCH or self._bytes >= _BYTES_A_BATCH:
                self._flush(write)
        return set(found) - {"split"}

    def _number_of(self, split: str, name: str, line: int) -> int:
        """Give the number of a split; a column of that name may hold something else, another value in each row."""
        number = self._splits.setdefault(split, len(self._splits))
        if number >= _MOST_SPLITS:
            raise InputError(
                f"the column `split` must name at most {_MOST_SPLITS} splits; got more, such as {split[:40]!r} in "
                f"{name}, row {line}. Give the column another name if it says something else."
            )
        return number

    def _texts(self, wants: Sequence[Wanted], values: list[Any], found: dict[str, str]) -> list[str] | Broken:
        """Turn the values of a row into texts, in place, or say what is wrong with one."""
        for place, value in enumerate(values):
            if type(value) is not str or not value or value.isspace() or "\0" in value:
                text = text_of(value, wants[place])
                if isinstance(text, Broken):
                    return text._replace(column=found[wants[place].role])
                values[place] = text
            self._bytes += len(values[place])
        return values

    def _leave_out(self, name: str, line: int, fault: Broken) -> None:
        column = f", column `{fault.column}`" if fault.column else ""
        told = f"{name}, row {line}{column}"
        if not self._skip:
            raise InputError(
                f"{told} must hold text in UTF-8 as the header says; got {fault.fact}. Correct the row, or leave such "
                "rows out with `--on-error skip`."
            )
        self._before.append(self._rows)
        if len(self._listed) < LISTED:
            self._listed.append(f"{told}: {fault.fact}")

    def _flush(self, write: Callable[[Any], object]) -> None:
        if self._held[-1]:
            write(need("pyarrow").record_batch(self._held, schema=self._schema))
            for column in self._held:
                column.clear()
            self._bytes = 0


def _write(out: Any, kept: Path, batch: Any) -> None:
    try:
        out.write_batch(batch)
    except OSError as error:  # told here: further out it would pass for a fault of the file that is read
        raise unwritable(kept, error) from error


def _shared(parts: Sequence[Part], roles: Sequence[set[str]]) -> set[str]:
    """Give the roles that every table has a column for; refuse one that only some have."""
    for part, held in zip(parts, roles, strict=True):
        if missing := set().union(*roles) - held:
            role = sorted(missing)[0]
            raise InputError(
                f"{part.name} must have a column for the {role} as the other files have; got none. Name it with "
                f"`--{role}-column`, or read the file alone."
            )
    return roles[0]
