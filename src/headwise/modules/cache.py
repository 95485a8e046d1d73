"""Remember keys and values while a text is written word by word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Hold the keys and values that one attention layer has seen.

    Room is doubled when it runs out, so that n steps copy O(n) vectors and not O(n^2). While gradients are recorded,
    the parts are joined instead of written into room.

    Example:
        >>> cache = KeyValueCache()
        >>> key, value = cache.append(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8))
        >>> cache.length
        3
    """

    def __init__(self) -> None:
        self.length = 0
        """How many positions are held."""
        self._room: tuple[Tensor, Tensor] | None = None

    def append(self, key_BGTD: Float[Tensor, "B G T D"], value_BGTE: Float[Tensor, "B G T E"]) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new positions, and give all that are held."""
        added, total = (key_BGTD, value_BGTE), self.length + key_BGTD.shape[2]
        if any(x.requires_grad for x in (*added, *(self._room or ()))):
            held = self.held or tuple(x[:, :, :0] for x in added)
            self._room = (torch.cat([held[0], key_BGTD], 2), torch.cat([held[1], value_BGTE], 2))
        else:
            self._grow(added, total)
            for room, new in zip(self._room or (), added, strict=True):
                room[:, :, self.length : total] = new
        self.length = total
        assert self.held is not None, "something was just added"
        return self.held

    def _grow(self, added: tuple[Tensor, Tensor], total: int) -> None:
        """Make room for `total` positions."""
        if self._room is not None and self._room[0].shape[2] >= total:
            return
        size = max(total, 2 * self.length, 16)
        key_room, value_room = (x.new_empty(*x.shape[:2], size, x.shape[3]) for x in added)
        if self.held is not None:
            key_room[:, :, : self.length], value_room[:, :, : self.length] = self.held
        self._room = (key_room, value_room)

    @property
    def held(self) -> tuple[Tensor, Tensor] | None:
        """Give the keys and values held, without copying; `None` before the first."""
        if self._room is None:
            return None
        return self._room[0][:, :, : self.length], self._room[1][:, :, : self.length]

    def select(self, samples_B: Int[Tensor, " B"]) -> None:
        """Keep these samples, in this order: the survivors of a beam search, or the sentences not yet finished."""
        if self.held is not None:
            key_BGTD, value_BGTE = self.held
            self._room = (key_BGTD[samples_B], value_BGTE[samples_B])

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        self.length = min(length, self.length)
