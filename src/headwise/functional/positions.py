"""Tell positions: by waves added to the input, or by turning queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwise.contracts.tree import plain
from headwise.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Rotary", "sinusoidal"]


def sinusoidal(
    positions: int,
    width: int,
    *,
    offset: int = 0,
    base: float = 10_000.0,
    device: torch.device | str | None = None,
    halves: bool = False,
) -> Tensor:
    """Compute the sine and cosine position vectors of Vaswani et al. 2017, section 3.5.

    Even columns are sines, odd ones cosines, of wavelengths from 2 pi to `base` times 2 pi positions.

    Args:
        positions: how many vectors.
        width: length of each, an even number.
        offset: position of the first.
        base: ratio of the longest wavelength to the shortest.
        device: where to put them.
        halves: whether the first half of the columns are the sines and the second the cosines, as in Marian.

    Returns:
        A float32 tensor of shape (positions, width).

    Example:
        >>> sinusoidal(2, 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    angles_TN = _angles(positions, width, offset, base, torch.device(device or "cpu"))
    waves = angles_TN.sin(), angles_TN.cos()
    return torch.cat(waves, -1) if halves else torch.stack(waves, -1).flatten(-2)


@plain
class Rotary:
    """Turn queries and keys by angles that grow with the position (Su et al. 2021, section 3.4).

    The score of a turned query and a turned key depends on their distance only.

    Example:
        >>> x = torch.randn(1, 2, 5, 8)
        >>> torch.allclose(Rotary()(x)[:, :, 3:], Rotary()(x[:, :, 3:], offset=3))
        True
    """

    base: float = 10_000.0
    """How many times slower than the fastest the slowest turn is, all but one step."""
    interleaved: bool = False
    """Whether neighbouring columns turn together (the paper, GPT-J) or columns half a width apart (NeoX, Llama)."""

    def __call__(self, x_BHTD: Float[Tensor, "B H T D"], offset: int | Tensor = 0) -> Tensor:
        """Turn each vector by its position.

        Args:
            x_BHTD: queries or keys of an even width.
            offset: position of the first, as in a cache: one number, or one a sample, shape (B,).
        """
        angles_TN = _angles(x_BHTD.shape[2], x_BHTD.shape[3], offset, self.base, x_BHTD.device)
        if angles_TN.dim() == 3:
            angles_TN = angles_TN[:, None]
        cos_TN, sin_TN = angles_TN.cos().to(x_BHTD.dtype), angles_TN.sin().to(x_BHTD.dtype)
        pairs = x_BHTD.unflatten(-1, (-1, 2)) if self.interleaved else x_BHTD.unflatten(-1, (2, -1)).transpose(-1, -2)
        first, second = pairs.unbind(-1)
        turned = first * cos_TN - second * sin_TN, first * sin_TN + second * cos_TN
        return torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)


def _angles(positions: int, width: int, offset: int | Tensor, base: float, device: torch.device) -> Tensor:
    """Compute an angle for each position and pair of columns: shape (T, N), or (B, T, N) for offsets a sample."""
    if width % 2:
        raise InputError(f"positions need an even width; got {width}. Add or drop one column.")
    place_T = torch.arange(positions, device=device, dtype=torch.float32)
    place_T = place_T + (offset[:, None] if isinstance(offset, Tensor) and offset.dim() else offset)
    frequency_N = base ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / -width)
    return place_T[..., None] * frequency_N
