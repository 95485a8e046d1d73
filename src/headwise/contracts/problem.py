"""Hold one call of attention, checked and complete, in the form in which every backend takes it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.masks import Mask
from headwise.contracts.tree import plain

__all__ = ["Problem", "autocast_dtype"]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Give the type to which autocast takes products on a device; `None` where it is off, and for "meta"."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


@plain
class Problem:
    """Describe one call of attention: `softmax(scale q k^T + bias) v` over the keys that the mask lets a query see."""

    query_BHQD: Tensor
    """Queries."""
    key_BGKD: Tensor
    """Keys; query head h looks at group h // (H / G)."""
    value_BGKE: Tensor
    """Values."""
    mask: Mask
    """What may be seen, resolved for this number of queries."""
    scale: float
    """Factor of the scores."""
    bias_BHQK: Tensor | None = None
    """Added to the scores; an axis of size 1 is shared."""
    slopes_H: Tensor | None = None
    """ALiBi slopes."""
    relative_HN: Tensor | None = None
    """Added to the scores by relative position, -(N // 2) to N // 2, clamped at the ends."""
    rate: float = 0.0
    """Dropout rate of the weights."""
    seed: Tensor | None = None
    """Seed of the dropout."""
    guarded: bool = False
    """Whether inputs hold NaN or infinity, which must not pass from what is hidden into sums."""
    origin: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Sample, query head, query and key at which this part begins in the whole call; dropout counts from there."""

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """Give B, H, G, Q, K, D, E."""
        batch, heads, queries, width = self.query_BHQD.shape
        groups, keys, value_width = self.value_BGKE.shape[1:]
        return batch, heads, groups, queries, keys, width, value_width

    @property
    def empty(self) -> bool:
        """Tell whether there is no score at all: no samples, queries or keys."""
        return self.query_BHQD.shape[0] == 0 or self.query_BHQD.shape[2] == 0 or self.key_BGKD.shape[2] == 0

    @property
    def hides(self) -> bool:
        """Tell whether a key can be hidden from a query; a bias may hold -inf."""
        return self.mask.hides or self.bias_BHQK is not None

    @property
    def plain(self) -> bool:
        """Tell whether nothing is hidden, added or dropped."""
        added = self.slopes_H is not None or self.relative_HN is not None
        return not (self.hides or added or self.rate > 0)

    @property
    def trained(self) -> bool:
        """Tell whether a gradient can follow."""
        return self.query_BHQD.requires_grad or self.key_BGKD.requires_grad or self.value_BGKE.requires_grad

    @property
    def working_dtype(self) -> torch.dtype:
        """Give the type in which scores and statistics are computed: float64 for float64, else float32."""
        return torch.float64 if self.query_BHQD.dtype == torch.float64 else torch.float32

    def check_lengths(self) -> None:
        """Raise `InputError` for lengths that leave the tensors, as every kernel does before it reads by them."""
        self.mask.check_lengths(self.query_BHQD.shape[2], self.key_BGKD.shape[2])

    def exactly(self) -> AbstractContextManager[None]:
        """Keep autocast, which has chosen the inputs' type, from lowering the products inside as well."""
        device = self.query_BHQD.device
        on = torch._C._is_any_autocast_enabled() and autocast_dtype(device) is not None
        return torch.autocast(device.type, enabled=False) if on else _AS_IT_IS

    def but(self, **changes: Any) -> Problem:
        """Copy with some fields changed."""
        return Problem(**{**vars(self), **changes})


_AS_IT_IS = nullcontext()
