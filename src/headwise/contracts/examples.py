"""Hold examples as the models and the training loop take them, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from headwise.contracts.tree import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Batch", "Examples", "PairBatch", "twice"]

_Some = TypeVar("_Some", covariant=True)
_Held = TypeVar("_Held", "Batch", "PairBatch")


@plain
class Batch:
    """Hold some examples, their tokens padded at the end to one length."""

    tokens_BT: Tensor
    """Token ids, int64; what stands beyond an example's length is 0 and is never looked at."""
    length_B: Tensor
    """How many tokens of each example are valid, at least 1."""
    row_B: Tensor
    """Place of each example in its data, counted from 0, so that results go back to where they belong."""
    target: Tensor | None = None
    """Class of each example, int64 of shape (B,); 0 or 1 per class, float32 of shape (B, C), where there may be
    several; `None` where it is not known."""

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        return _moved(self, device)


@plain
class PairBatch:
    """Hold some pairs of texts, each side padded at the end to one length."""

    source_BK: Tensor
    """Token ids of what is read, int64; what stands beyond a text's length is 0 and is never looked at."""
    source_length_B: Tensor
    """How many source tokens of each pair are valid, at least 1."""
    target_BT: Tensor
    """Token ids of what is written, int64: the begin token, the words, the end token; 0 beyond the length."""
    target_length_B: Tensor
    """How many target tokens of each pair are valid, both ends counted: at least 2."""
    row_B: Tensor
    """Place of each pair in its data, counted from 0."""

    def to(self, device: torch.device | str) -> PairBatch:
        """Copy to a device."""
        return _moved(self, device)


def _moved(batch: _Held, device: torch.device | str) -> _Held:
    moved: _Held = torch.utils._pytree.tree_map(lambda tensor: tensor.to(device, non_blocking=True), batch)
    return moved


def twice(batch: _Held) -> _Held:
    """Put a batch together with itself, so that dropout falls on the two readings of an example in different places."""
    doubled: _Held = torch.utils._pytree.tree_map(lambda tensor: torch.cat([tensor, tensor]), batch)
    return doubled


class Examples(Protocol[_Some]):
    """Be encoded data that can be cut into batches in any order."""

    @property
    def length_N(self) -> np.ndarray:
        """Tell how many tokens each example has, int32; of shape (N, 2), source and target, where they are pairs."""

    def batch(self, rows: Sequence[int]) -> _Some:
        """Put the examples of these rows together."""
