"""Say where the heads of a model are, whatever the model, so that they can be scored, cut and shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from headwise.errors import ConfigError

__all__ = ["HeadId", "Layout", "Place"]


@dataclass(frozen=True, order=True)
class HeadId:
    """Name one head of a model."""

    place: str
    """Path of its seam in the model."""
    head: int
    """Its name in that layer, which it keeps when others are cut."""


@dataclass(frozen=True)
class Place:
    """Describe an attention layer whose heads can be cut."""

    path: str
    """Path of its seam in the model."""
    heads: tuple[int, ...]
    """Names of its query heads, in order."""
    kv_heads: int
    """Number of its key and value heads, each of which serves as many query heads that stand side by side."""
    query_parameters: int
    """Parameters that go with one query head."""
    kv_parameters: int
    """Parameters that go with one key and value head."""

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Give the names of the query heads that share each key and value head."""
        size = len(self.heads) // self.kv_heads
        return tuple(self.heads[at : at + size] for at in range(0, len(self.heads), size))

    def stood_for(self, kv_heads: int) -> int:
        """Tell how many key and value heads, side by side, each of so many would stand for.

        Raises:
            ConfigError: when the number does not divide those that there are.
        """
        if kv_heads < 1 or self.kv_heads % kv_heads:
            raise ConfigError(
                f"`kv_heads` must divide the key and value heads of each layer; got {kv_heads} "
                f"for {self.kv_heads} at {self.path}. Take a divisor."
            )
        return self.kv_heads // kv_heads


class Layout(Protocol):
    """Know a model's heads, and build smaller models of it."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Give the attention layers, in the order of the model."""

    def cut(self, keep: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """Build the model that has only these heads at each place; the model itself stays as it is."""

    def share(self, kv_heads: int, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Build the model whose layers have so many key and value heads, each made of those it stands for.

        Args:
            kv_heads: key and value heads of each layer.
            weights: by the path of the seam, shape (G, N): what each of the N heads adds to the one of G that stands
                for it; their mean where left out.

        Raises:
            ConfigError: when the number does not divide those of every layer.
        """
