"""Hold examples as the models and the training loop take them, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headwise.contracts.tree import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Batch", "Examples"]


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
        moved = torch.utils._pytree.tree_map(lambda tensor: tensor.to(device, non_blocking=True), self)
        assert isinstance(moved, Batch), "a tree keeps its kind"
        return moved


class Examples(Protocol):
    """Be encoded data that can be cut into batches in any order."""

    @property
    def length_N(self) -> np.ndarray:
        """Tell how many tokens each example has, int32."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """Put the examples of these rows together."""
