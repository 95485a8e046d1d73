"""Encode a column of a table once, and keep its token ids in the cache, mapped into memory from then on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from headwise.contracts.files import cache_folder
from headwise.tasks.data import Table
from headwise.tasks.files import key_of, progress, written
from headwise.tasks.tokenizer import Encoded, Tokenizer

__all__ = ["Tokens", "encode_column"]

_VERSION = 1


@dataclass(frozen=True)
class Tokens:
    """Hold the token ids of some texts, one after the other."""

    ids_N: np.ndarray
    """Token ids of all texts, int32."""
    start_N: np.ndarray
    """Where each text begins in them."""
    length_N: np.ndarray
    """How many tokens each text has, int32."""
    cut: int = 0
    """How many texts of the whole column were too long and lost their end."""

    @classmethod
    def of(cls, found: Encoded) -> Tokens:
        """Hold texts that were encoded at once."""
        length_N = np.array([len(ids) for ids in found.ids], np.int32)
        flat_N = np.fromiter(chain.from_iterable(found.ids), np.int32)
        return cls(flat_N, np.cumsum(length_N, dtype=np.int64) - length_N, length_N, found.cut)

    def __len__(self) -> int:
        return len(self.length_N)

    def select(self, rows: np.ndarray) -> Tokens:
        """Keep some texts, in this order."""
        return replace(self, start_N=self.start_N[rows], length_N=self.length_N[rows])

    def padded(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Give the ids of some texts, padded with 0 at the end to one length, and their lengths; both int64."""
        row_B = np.asarray(rows, np.int64)
        length_B = self.length_N[row_B].astype(np.int64)
        place_T = np.arange(length_B.max(initial=1))
        valid_BT = place_T < length_B[:, None]
        tokens_BT = np.zeros(valid_BT.shape, np.int64)
        tokens_BT[valid_BT] = self.ids_N[(self.start_N[row_B][:, None] + place_T)[valid_BT]]
        return tokens_BT, length_B

    def counts_V(self, size: int) -> np.ndarray:
        """Count how often each token of a vocabulary of this size stands in the whole column."""
        step, counts_V = 2**22, np.zeros(size, np.int64)
        for at in range(0, len(self.ids_N), step):
            counts_V += np.bincount(self.ids_N[at : at + step], minlength=size)
        return counts_V


def encode_column(
    table: Table,
    role: str,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    ends: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
) -> Tokens:
    """Turn a column into tokens, from the cache where that was done before.

    Args:
        table: the table.
        role: which of its columns.
        tokenizer: what cuts the texts.
        max_tokens: most tokens of a text; what is beyond is cut off.
        ends: whether begin and end tokens stand around each text.
        cache: another folder for the cache than `cache_folder()`.
        quiet: show no progress.
    """
    key = key_of(_VERSION, table.key, role, tokenizer.json, tokenizer.prefix, max_tokens, ends)
    folder = (cache or cache_folder()) / "tokens" / key
    if not (folder / "about.json").exists():
        _write(table, role, lambda texts: tokenizer.encode(texts, max_tokens=max_tokens, ends=ends), folder, quiet)
    cut = json.loads((folder / "about.json").read_text())["cut"]
    length_N = np.load(folder / "lengths.npy")
    start_N = np.cumsum(length_N, dtype=np.int64) - length_N
    return Tokens(np.load(folder / "tokens.npy", mmap_mode="r"), start_N, length_N, cut)


def _write(table: Table, role: str, encode: Callable[[list[str]], Encoded], folder: Path, quiet: bool) -> None:
    """Write token ids and lengths a few thousand rows at a time, then a file that says that they are whole."""
    lengths, total, cut = [np.zeros(0, np.int32)], 0, 0
    bar = progress("tokens", len(table), unit=" rows", quiet=quiet)
    with bar as moved, written(folder / "tokens.npy") as file:
        _write_header(file, 0)
        for texts in table.texts(role):
            found = Tokens.of(encode(texts))
            file.write(found.ids_N.tobytes())
            lengths.append(found.length_N)
            total, cut = total + len(found.ids_N), cut + found.cut
            moved(len(texts))
        _write_header(file, total)
    with written(folder / "lengths.npy") as file:
        np.save(file, np.concatenate(lengths))
    with written(folder / "about.json") as file:
        file.write(json.dumps({"cut": cut}).encode())


def _write_header(file: IO[bytes], length: int) -> None:
    """Write the header of an array of int32 at the start of a file; it takes as much room for any length."""
    file.seek(0)
    about = {"descr": "<i4", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, about)
