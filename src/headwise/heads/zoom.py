"""Pool weights into cells, and compute parts of a map again at finer scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CELLS", "Window", "cell_of", "cells_of", "pooled", "windows_of"]

CELLS = 256
"""Most cells on a side of a map."""
_SIDE = 128
"""Cells on a side of a window."""
_SCALES = (8, 1)
"""Tokens in a cell of the windows."""
_SPOTS = 3
"""Places that windows are laid around."""


@dataclass(frozen=True)
class Window:
    """Hold a part of one head's map at a finer scale."""

    head: int
    """Name of the head."""
    query: int
    """Its first query."""
    key: int
    """Its first key."""
    cell: int
    """Tokens on a side of a cell; 1 is exact."""
    map_PN: Tensor
    """Mean over a cell's queries of what they give to its keys, 0 to 1."""


def cells_of(length: int, most: int = CELLS) -> int:
    """Choose how many cells a length is cut into, so that all but the last hold the same number, or nearly.

    Example:
        >>> cells_of(30), cells_of(300), cells_of(30_000)
        (30, 150, 255)
    """
    each = max(1, -(-length // most))
    return -(-length // each)


def cell_of(length: int, cells: int) -> Tensor:
    """Give the cell of each position."""
    return torch.arange(length) * cells // max(1, length)


def pooled(values_NT: Tensor, cells: int) -> Tensor:
    """Sum the last axis into cells."""
    summed = values_NT.new_zeros(*values_NT.shape[:-1], cells)
    return summed.index_add_(-1, cell_of(values_NT.shape[-1], cells).to(values_NT.device), values_NT)


def windows_of(
    head: int, map_PN: Tensor, sizes: tuple[int, int], weights_of: Callable[[slice], Tensor], step: int
) -> Iterator[Window]:
    """Lay windows around the strongest places of a head's map, at each scale that is finer than the map.

    Args:
        head: name of the head.
        map_PN: its map.
        sizes: how many queries and keys there are.
        weights_of: computes the weights of some queries over all keys.
        step: how many queries at once.
    """
    for row, column in _spots(map_PN):
        middle = [
            int((at + 0.5) * size / cells) for at, size, cells in zip((row, column), sizes, map_PN.shape, strict=True)
        ]
        for cell in _SCALES:
            if cell * max(map_PN.shape) < max(sizes):
                yield _window(head, (middle[0], middle[1]), cell, sizes, weights_of, step)


def _spots(map_PN: Tensor) -> Iterator[tuple[int, int]]:
    """Find the strongest cells that lie apart from each other."""
    left_PN, apart = map_PN.clone(), max(1, max(map_PN.shape) // 8)
    for _ in range(_SPOTS):
        row, column = divmod(int(left_PN.argmax()), left_PN.shape[1])
        if left_PN[row, column] <= 0:
            return
        yield row, column
        left_PN[max(0, row - apart) : row + apart + 1, max(0, column - apart) : column + apart + 1] = 0


def _window(
    head: int,
    middle: tuple[int, int],
    cell: int,
    sizes: tuple[int, int],
    weights_of: Callable[[slice], Tensor],
    step: int,
) -> Window:
    (query, query_end), (key, key_end) = (_around(at, size, cell) for at, size in zip(middle, sizes, strict=True))
    rows = -(-(query_end - query) // cell)
    map_PN = torch.zeros(rows, -(-(key_end - key) // cell))
    for begin in range(query, query_end, step):
        end = min(begin + step, query_end)
        part_QK = weights_of(slice(begin, end))[:, key:key_end].float().cpu()
        at_K = torch.arange(key_end - key) // cell
        columns_QN = part_QK.new_zeros(len(part_QK), map_PN.shape[1]).index_add_(1, at_K, part_QK)
        map_PN.index_add_(0, torch.arange(begin - query, end - query) // cell, columns_QN)
    queries_P = torch.bincount(torch.arange(query_end - query) // cell)
    return Window(head, query, key, cell, map_PN / queries_P[:, None])


def _around(middle: int, size: int, cell: int) -> tuple[int, int]:
    """Place a run of cells around a token, inside the text."""
    begin = max(0, min(middle - cell * _SIDE // 2, size - cell * _SIDE))
    return begin, min(begin + cell * _SIDE, size)
