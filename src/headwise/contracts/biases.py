"""Hold what is added to the scores or taken from the weights, as plain data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwise.contracts.tree import plain
from headwise.errors import InputError

__all__ = ["Alibi", "Dropout", "RelativeBias"]


@plain
class Dropout:
    """Drop attention weights at random, the same ones for the same seed on every backend.

    A weight is dropped with probability `rate`, rounded to a multiple of 1/65536, and the others grow by one over what
    is left. The decision for key `j` of query `i`, head `h`, sample `b` is the 16-bit word `j % 8` of Philox-4x32-7
    with the seed as key and the counter `(j // 8, i, h, b)`, compared with `rate * 65536`.

    Example:
        >>> Dropout(0.1, torch.tensor(7)).rate
        0.1
    """

    rate: float
    """Probability that a weight is dropped, 0 to 1."""
    seed: Tensor | int
    """Seed of the random words: an int64 tensor with one element, or a whole number from -2**63 to 2**63 - 1."""


@plain
class Alibi:
    """Make distant keys count less: add `-slope * distance` to the scores (Press et al. 2022, section 3).

    The distance is `abs(i + offset - j)`; no n x n tensor is made.
    """

    slopes_H: Tensor
    """One slope per query head, at least 0; the steeper, the shorter the head's sight."""

    @classmethod
    def geometric(cls, heads: int) -> Alibi:
        """Give the paper's slopes for a number of heads.

        Example:
            >>> Alibi.geometric(4).slopes_H
            tensor([0.2500, 0.0625, 0.0156, 0.0039])
        """
        if heads < 1:
            raise InputError(f"`heads` must be at least 1; got {heads}. Give one slope per query head.")
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
        return cls(torch.tensor(slopes))


@plain
class RelativeBias:
    """Add a learned number per head and bucket of relative positions (T5; Raffel et al. 2020, section 2.1).

    Half of the buckets of a direction hold one distance each, the other half grow geometrically up to `max_distance`.
    """

    table_NH: Tensor
    """One number per bucket and query head; carries gradient."""
    bidirectional: bool = True
    """Whether keys after the query have buckets of their own; if not, they share the bucket of distance 0."""
    max_distance: int = 128
    """Distance from which on all keys share the last bucket."""

    @staticmethod
    def possible(buckets: int, max_distance: int, *, bidirectional: bool) -> bool:
        """Tell whether each direction has a bucket of one distance, and distances beyond those for the rest."""
        exact = buckets // (4 if bidirectional else 2)
        return exact >= 1 and max_distance > exact

    def by_distance(self) -> Tensor:
        """Spread the table over the relative positions `-max_distance` to `max_distance`: shape (H, N)."""
        return self.table_NH[_relative_buckets(self)].transpose(0, 1)


def _relative_buckets(bias: RelativeBias) -> Tensor:
    """Find the bucket of each relative position `-max_distance` to `max_distance` (key minus query)."""
    relative_N = torch.arange(-bias.max_distance, bias.max_distance + 1, device=bias.table_NH.device)
    buckets = bias.table_NH.shape[0]
    if bias.bidirectional:
        buckets //= 2
        first_N, distance_N = (relative_N > 0) * buckets, relative_N.abs()
    else:
        first_N, distance_N = torch.zeros_like(relative_N), (-relative_N).clamp(min=0)
    exact = buckets // 2
    octaves_N = torch.log(distance_N.clamp(min=1).float() / exact) / math.log(bias.max_distance / exact)
    coarse_N = (exact + (octaves_N * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first_N + torch.where(distance_N < exact, distance_N, coarse_N)
