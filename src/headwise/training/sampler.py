"""Cut data into batches of like lengths under a budget of tokens, in an order that a seed and a pass decide."""

from __future__ import annotations

import logging
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.errors import InputError

__all__ = ["Sampler", "split"]

_log = logging.getLogger(__name__)

_Ints = NDArray[Any]


class Sampler:
    """Name the rows of every global batch, whoever computes it.

    Lengths are rounded up to sizes that grow by a tenth. In every pass, rows of one size are shuffled; then the rows
    are cut, size by size, into batches of at most `tokens` padded tokens; then the batches are shuffled. The cuts are
    the same in every pass, so that all passes have as many batches.

    Args:
        length: tokens of each row, of shape (N,), or (N, S) where a row has S sides that are padded each on its own.
        tokens: padded tokens of a batch, all sides together; a longer row is a batch of its own.
        seed: seed of the shuffles.

    Raises:
        InputError: when there is no row.

    Example:
        >>> sampler = Sampler(np.array([5, 2, 2, 5, 2]), tokens=10, seed=0)
        >>> [sorted(sampler.rows(0, place).tolist()) for place in range(len(sampler))]
        [[1, 2, 4], [0, 3]]
    """

    def __init__(self, length: NDArray[Any], *, tokens: int, seed: int) -> None:
        if not len(length):
            raise InputError("training data must hold at least one example; got none. Check the file and its columns.")
        self.seed = seed
        side_NS = length[:, None] if length.ndim == 1 else length
        assert side_NS.shape[1] <= 2, "a third side would need more than 16 bits"
        sizes = _sizes(int(side_NS.max()))
        self._class_N = _classes(side_NS, sizes)
        ceiling_CS = _ceilings(sizes, side_NS.shape[1])
        self._ends = _ends(np.bincount(self._class_N, minlength=len(ceiling_CS)), ceiling_CS, tokens)
        self._pass = -1
        self._order_N: _Ints = np.empty(0, np.int64)
        self._batches: _Ints = np.empty(0, np.int64)
        self.fingerprint = f"{len(length)}-{len(self)}-{zlib.crc32(self._class_N.tobytes()):08x}"
        longer = int((side_NS.sum(1) > tokens).sum())
        if longer:
            _log.warning("%d examples have more than %d tokens; each is a batch of its own", longer, tokens)

    def __len__(self) -> int:
        """Count the batches of a pass."""
        return len(self._ends)

    def rows(self, pass_: int, place: int) -> _Ints:
        """Name the rows of the batch at a place of a pass."""
        if pass_ != self._pass:
            self._shuffle(pass_)
        batch = int(self._batches[place])
        return self._order_N[self._ends[batch - 1] if batch else 0 : self._ends[batch]]

    def _shuffle(self, pass_: int) -> None:
        random = np.random.default_rng((self.seed, pass_))
        self._batches = random.permutation(len(self))
        order_N = np.arange(len(self._class_N), dtype=np.int32 if len(self._class_N) < 2**31 else np.int64)
        random.shuffle(order_N)
        # A stable sort of 16-bit keys is a radix sort: linear, a second for ten million rows.
        self._order_N = order_N[np.argsort(self._class_N[order_N], kind="stable")]
        self._pass = pass_


def split(rows: _Ints, length: NDArray[Any], *, processes: int, rounds: int) -> list[list[_Ints]]:
    """Cut a global batch into the micro-batches of every process: `[round][process]`, neighbours in length together.

    No round is empty for all, so there may be fewer than asked for; one process's part of a round may be.

    Example:
        >>> split(np.array([4, 7, 9]), np.arange(10), processes=2, rounds=2)
        [[array([9]), array([7])], [array([4]), array([], dtype=int64)]]
    """
    rounds = min(rounds, -(-len(rows) // processes))
    key = length[rows] if length.ndim == 1 else length[rows].sum(1)
    pieces = np.array_split(rows[np.argsort(-key, kind="stable")], rounds * processes)
    return [pieces[at : at + processes] for at in range(0, len(pieces), processes)]


def _sizes(longest: int) -> _Ints:
    """List the lengths to which rows are rounded up."""
    sizes = [1]
    while sizes[-1] < longest:
        sizes.append(max(sizes[-1] + 1, int(sizes[-1] * 1.1)))
    return np.array(sizes)


def _classes(side_NS: NDArray[Any], sizes: _Ints) -> NDArray[np.uint16]:
    """Give each row its class; neighbouring classes have neighbouring sizes."""
    class_N = np.searchsorted(sizes, side_NS[:, 0]).astype(np.uint16)
    for side_N in side_NS.T[1:]:
        size_N = np.searchsorted(sizes, side_N).astype(np.uint16)
        # Back and forth: where the first side steps up, the second goes on from where it was.
        np.subtract(np.uint16(len(sizes) - 1), size_N, out=size_N, where=class_N % 2 == 1)
        class_N = class_N * np.uint16(len(sizes)) + size_N
    return class_N


def _ceilings(sizes: _Ints, sides: int) -> _Ints:
    """Give the size of each side in each class."""
    if sides == 1:
        return sizes[:, None]
    first, second = np.divmod(np.arange(len(sizes) ** 2), len(sizes))
    return np.stack([sizes[first], sizes[np.where(first % 2 == 1, len(sizes) - 1 - second, second)]], axis=1)


def _ends(count_C: _Ints, ceiling_CS: _Ints, tokens: int) -> _Ints:
    """Find where each batch ends, in rows sorted by class."""
    ends: list[int] = []
    at, held, widest = 0, 0, np.zeros_like(ceiling_CS[0])
    for count, ceiling_S in zip(count_C.tolist(), ceiling_CS, strict=True):
        left = count
        while left:
            wider = np.maximum(widest, ceiling_S)
            room = tokens // int(wider.sum()) - held
            if room < 1 and held:
                ends.append(at)
                held, widest = 0, np.zeros_like(widest)
                continue
            taken = min(left, max(room, 1))
            at, held, left, widest = at + taken, held + taken, left - taken, wider
    return np.array([*ends, at])
