"""Drop values, or whole heads, in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["HiddenDropout", "drop_heads"]

_WORDS = 1 << 16


class HiddenDropout(nn.Module):
    """Set values to 0 at random in training, and let the others grow so that the mean stays.

    On the CPU a value is dropped by a 16-bit random word, four of which come from one draw: more than twice as
    fast as `nn.Dropout`, which draws a float64 a value. The rate is rounded to a multiple of 1/65536; what is kept
    grows by the rounded rate, so that the mean is exact. Elsewhere, and compiled, it is `nn.functional.dropout`.
    All draws come from PyTorch's default generator.

    Args:
        rate: probability that a value is dropped, 0 to 1.

    Example:
        >>> HiddenDropout(0.25)(torch.ones(1000)).unique()
        tensor([0.0000, 1.3333])
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ConfigError(f"`rate` must lie between 0 and 1; got {rate}. 0.1 is usual.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of `x`, of any shape, in training; give `x` itself otherwise."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return nn.functional.dropout(x, self.rate)
        dropped = round(self.rate * _WORDS)
        if dropped == 0:
            return x
        # `>`, as the bound must be a 16-bit word itself; into numbers at once, which takes a tenth of booleans' time.
        kept = torch.gt(_words(x.shape), dropped - _WORDS // 2 - 1, out=x.new_empty(x.shape))
        return x * kept.mul_(_WORDS / max(_WORDS - dropped, 1))

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate}"


def _words(shape: torch.Size) -> Tensor:
    """Draw 16-bit words, -32768 to 32767, four at a time."""
    count = shape.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return drawn.view(torch.int16)[:count].view(shape)


def drop_heads(mixed_BHTD: Float[Tensor, "B H T D"], rate: float) -> Tensor:
    """Drop whole heads of each sample at random, and let the others grow by H / kept (DropHead; Zhou et al. 2020).

    A sample that would lose all its heads keeps them all.

    Args:
        mixed_BHTD: what the heads give.
        rate: probability that a head is dropped, 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"`rate` must lie between 0 and 1; got {rate}. 0.1 is usual.")
    batch, heads = mixed_BHTD.shape[:2]
    kept_BH = torch.rand(batch, heads, device=mixed_BHTD.device) >= rate
    kept_BH = kept_BH | ~kept_BH.any(1, keepdim=True)
    factor_BH = kept_BH * (heads / kept_BH.sum(1, keepdim=True))
    return mixed_BHTD * factor_BH.to(mixed_BHTD.dtype)[:, :, None, None]
