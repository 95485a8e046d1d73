"""Give vectors a sense of position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headwise.contracts import RelativeBias
from headwise.errors import ConfigError, InputError
from headwise.functional import sinusoidal

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LearnedPositions", "RelativePositions", "SinusoidalPositions"]


class SinusoidalPositions(nn.Module):
    """Add sine and cosine waves of the position (Vaswani et al. 2017, section 3.5); nothing to learn, no longest text.

    Example:
        >>> SinusoidalPositions()(torch.zeros(1, 2, 4))[0]
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """

    def forward(self, x_BTM: Float[Tensor, "B T M"], offset: int = 0) -> Tensor:
        """Add the waves; `offset` is the position of the first vector, as in a cache."""
        waves_TM = sinusoidal(x_BTM.shape[1], x_BTM.shape[2], offset=offset, device=x_BTM.device)
        return x_BTM + waves_TM.to(x_BTM.dtype)


class LearnedPositions(nn.Module):
    """Add a learned vector for each position up to a longest one.

    Args:
        positions: how many positions there are.
        d_model: width of the vectors.
    """

    def __init__(self, positions: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(positions, d_model)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x_BTM: Float[Tensor, "B T M"], offset: int = 0) -> Tensor:
        """Add the vectors; `offset` is the position of the first, as in a cache.

        Raises:
            InputError: when the text is longer than the positions.
        """
        known, last = self.table.num_embeddings, offset + x_BTM.shape[1]
        if not torch.compiler.is_compiling() and last > known:
            raise InputError(f"texts must have at most {known} positions; got {last}. Cut the text, or learn more.")
        return x_BTM + self.table.weight[offset:last]


class RelativePositions(nn.Module):
    """Learn a bias for each head and bucket of distances (T5; Raffel et al. 2020, section 2.1).

    Call it for a `RelativeBias` and pass that as `bias`; one can serve all layers.

    Args:
        heads: number of query heads.
        buckets: number of buckets, at least 4 (2 where not bidirectional).
        max_distance: distance from which on all keys share the last bucket.
        bidirectional: whether keys after the query have buckets of their own.
    """

    def __init__(self, heads: int, buckets: int = 32, *, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        exact = buckets // (4 if bidirectional else 2)
        if exact < 1 or max_distance <= exact:
            least = "4 buckets (2 if not bidirectional) and a `max_distance` above half a direction's buckets"
            raise ConfigError(
                f"relative positions need {least}; got {buckets} buckets and max_distance {max_distance}. "
                "T5 has 32 and 128."
            )
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(buckets, heads))

    def forward(self) -> RelativeBias:
        """Give the bias as `attend` takes it."""
        return RelativeBias(self.table, self.bidirectional, self.max_distance)
