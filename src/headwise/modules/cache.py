"""Remember keys and values while a text is written word by word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwise.contracts import Alibi, Mask, RelativeBias
from headwise.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Beams", "KeyValueCache"]


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
        if torch.is_grad_enabled():  # what attention has read must stay, whoever asks for a gradient
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
        size = max(total, 2 * self.length, 64)
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
        """Forget all but the first `length` positions, at least 0."""
        if length < 0:
            raise InputError(f"`length` must be at least 0; got {length}. Pass how many positions stay.")
        self.length = min(length, self.length)


class Beams:
    """Know who wrote what: the beams of a sentence share one row of slots, and each looks at those of its own past.

    So keys and values never move when a beam goes on from another's past. Only the table of slots does, which is the
    same for every layer.

    Args:
        sentences: how many sentences there are.
        device: where their tokens lie.

    Example:
        >>> beams = Beams(sentences=1)
        >>> beams.write(1)
        >>> beams.reorder(torch.tensor([[0, 0]]))
        >>> beams.write(2)
        >>> beams.mask.visible(queries=2, keys=3)[0, 0].int()
        tensor([[1, 1, 0],
                [1, 0, 1]], dtype=torch.int32)
    """

    def __init__(self, sentences: int, device: torch.device | None = None) -> None:
        self.length = 0
        """How many positions each beam has written."""
        self.mask: Mask | None = None
        """Which slots each beam may look at; `None` where it may look at all."""
        self.time_N = torch.empty(0, dtype=torch.long, device=device)
        """At which position each slot was written."""
        self._slot_BWT = torch.empty(sentences, 1, 0, dtype=torch.long, device=device)

    def write(self, count: int) -> None:
        """Take a new slot for each beam of every sentence."""
        slots, sentences = len(self.time_N), len(self._slot_BWT)
        new_W = torch.arange(slots, slots + count, device=self.time_N.device)
        self.time_N = torch.cat([self.time_N, torch.full_like(new_W, self.length)])
        past_BWT = self._slot_BWT.expand(-1, count, -1)
        self._slot_BWT = torch.cat([past_BWT, new_W[:, None].expand(sentences, -1, 1)], 2)
        self.length += 1
        if len(self.time_N) == self.length:
            self.mask = None
        else:
            hidden_BWN = torch.zeros(sentences, count, slots + count, dtype=torch.bool, device=new_W.device)
            self.mask = Mask.dense(hidden_BWN.scatter_(2, self._slot_BWT, True)[:, None])

    def reorder(self, parent_BW: Int[Tensor, "B W"]) -> None:
        """Let beam w of sentence b go on from what beam `parent_BW[b, w]` of it has written."""
        self._slot_BWT = self._slot_BWT.take_along_dim(parent_BW[..., None], 1)

    def keep(self, samples_B: Int[Tensor, " B"]) -> None:
        """Keep these sentences, in this order."""
        self._slot_BWT = self._slot_BWT[samples_B]

    def spread(self, bias: Alibi | RelativeBias | None) -> Tensor | None:
        """Write out a bias by distance for the newest position and every slot: shape (1, H, 1, N)."""
        distance_N = self.length - 1 - self.time_N
        if isinstance(bias, Alibi):
            return (-bias.slopes_H[:, None] * distance_N)[None, :, None]
        if bias is None:
            return None
        place_N = bias.max_distance - distance_N.clamp(max=bias.max_distance)
        return bias.by_distance()[:, place_N][None, :, None]
