"""Normalise hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["RMSNorm", "build_norm"]


class RMSNorm(nn.Module):
    """Divide by the root mean square and scale each column (Zhang and Sennrich 2019); under autocast, too.

    Args:
        width: number of columns.
        eps: added to the mean square; the smallest step of the number's type where it is `None`.

    Example:
        >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]], grad_fn=<MulBackward0>)
    """

    def __init__(self, width: int, eps: float | None = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Tensor:
        """Normalise every position by itself."""
        # PyTorch's operation wants one type of number, and autocast leaves the scale in float32.
        return nn.functional.rms_norm(x_BTM, self.weight.shape, self.weight.to(x_BTM.dtype), self.eps)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


def build_norm(kind: Literal["layer", "rms"], width: int, eps: float) -> nn.Module:
    """Build a normalisation: `"layer"` takes the mean away and adds a bias, `"rms"` does neither.

    Raises:
        ConfigError: when there is no such kind.
    """
    if kind not in ("layer", "rms"):
        raise ConfigError(f'`normalisation` must be "layer" or "rms"; got {kind!r}. "layer" is usual.')
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else RMSNorm(width, eps)
