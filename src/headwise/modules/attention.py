"""Put attention into models: the seam, the layer, and the article's block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headwise.contracts import Alibi, Dropout, Mask, RelativeBias, Seen, Statistics
from headwise.contracts.problem import autocast_dtype
from headwise.errors import ConfigError, InputError
from headwise.functional import Rotary, attend, attention_weights
from headwise.modules.cache import Beams, KeyValueCache
from headwise.modules.dropout import drop_heads
from headwise.modules.norms import RMSNorm

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Attend", "AttentionBlock", "MultiHeadAttention", "lowered"]


class Attend(nn.Module):
    """Be the one place in a model where attention happens; it has no parameters.

    Args:
        heads: names of the query heads, in order.
        scale: factor of the scores; 1 / sqrt(D) where left out.
    """

    def __init__(self, heads: Sequence[int], *, scale: float | None = None) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.scale = scale

    def forward(
        self,
        query_BHQD: Float[Tensor, "B H Q D"],
        key_BGKD: Float[Tensor, "B G K D"],
        value_BGKE: Float[Tensor, "B G K E"],
        mask: Mask | None = None,
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
        dropout: float | Dropout = 0.0,
        statistics: Statistics | None = None,
        cross: bool = False,
    ) -> Tensor | tuple[Tensor, Seen]:
        """Compute attention as `headwise.attend` does.

        Args:
            query_BHQD: queries.
            key_BGKD: keys.
            value_BGKE: values.
            mask: which keys each query may look at.
            bias: added to the scores.
            dropout: rate at which weights are dropped, or a `Dropout`.
            statistics: what to learn about each head; the result is then `(output, seen)`.
            cross: whether the keys come from another text, where a query has no position of its own.

        Raises:
            InputError: when a statistic of the query's own position is asked of cross attention.
        """
        if cross and statistics is not None and (statistics.diagonal or statistics.previous or statistics.next):
            raise InputError(
                f"cross attention has no own position to look at; got {statistics}. "
                "Leave out diagonal, previous and next."
            )
        tensors = query_BHQD, key_BGKD, value_BGKE
        if statistics is None:
            return attend(*tensors, mask, bias=bias, scale=self.scale, dropout=dropout)
        return attend(*tensors, mask, bias=bias, scale=self.scale, dropout=dropout, statistics=statistics)

    def weights(
        self,
        query_BHQD: Float[Tensor, "B H Q D"],
        key_BGKD: Float[Tensor, "B G K D"],
        mask: Mask | None = None,
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
        queries: slice | None = None,
    ) -> Tensor:
        """Compute the weights of a call, before dropout, as `headwise.attention_weights` does."""
        return attention_weights(query_BHQD, key_BGKD, mask, bias=bias, scale=self.scale, queries=queries)

    @staticmethod
    def mask_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mask | None:
        """Find the mask of a call among its arguments, as a hook gets them."""
        mask: Mask | None = args[3] if len(args) > 3 else kwargs.get("mask")
        return mask

    def extra_repr(self) -> str:
        """Show the names of the heads."""
        return f"heads={self.heads}"


class MultiHeadAttention(nn.Module):
    """Project, split into heads, attend, join, project (Vaswani et al. 2017, section 3.2.2); batch first.

    Args:
        d_model: width of the input and the output.
        heads: number of query heads, or their names: `(0, 2, 3)` is what is left when head 1 is cut.
        kv_heads: number of key and value heads, a divisor of the query heads' (Ainslie et al. 2023); as many as query
            heads where left out.
        d_head: width of one head; `d_model / heads` where left out.
        dropout: rate at which attention weights are dropped in training.
        bias: whether the four projections add a bias.
        rotary: how queries and keys turn with their position; not at all where left out, nor across two texts, which
            have no positions in common.
        qk_norm: whether queries and keys are normalised per head (RMSNorm with a learned scale).

    Attributes:
        head_dropout: rate at which whole heads are dropped in training (DropHead; Zhou et al. 2020); 0 until it is set,
            at any time, as a schedule may.

    Raises:
        ConfigError: when no head is left, or the numbers do not divide.

    Example:
        >>> layer = MultiHeadAttention(64, 8, kv_heads=2)
        >>> layer(torch.randn(2, 5, 64), mask=Mask.causal()).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        d_model: int,
        heads: int | Sequence[int],
        *,
        kv_heads: int | None = None,
        d_head: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        names = tuple(range(heads)) if isinstance(heads, int) else tuple(heads)
        groups = len(names) if kv_heads is None else kv_heads
        width = _width(d_model, names, groups, d_head)
        if not 0 <= dropout <= 1:
            raise ConfigError(f"`dropout` must lie between 0 and 1; got {dropout}. 0.1 is usual.")
        self.d_model, self.d_head, self.kv_heads, self.dropout, self.rotary = d_model, width, groups, dropout, rotary
        self.query = nn.Linear(d_model, len(names) * width, bias=bias)
        self.key = nn.Linear(d_model, groups * width, bias=bias)
        self.value = nn.Linear(d_model, groups * width, bias=bias)
        self.output = nn.Linear(len(names) * width, d_model, bias=bias)
        self.joined: nn.Module | None = None  # the first three in one, once a model is packed for inference
        self.query_norm = RMSNorm(width, eps=None) if qk_norm else None
        self.key_norm = RMSNorm(width, eps=None) if qk_norm else None
        self.head_dropout = 0.0
        self.attend = Attend(names)
        for linear in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    @property
    def heads(self) -> tuple[int, ...]:
        """Name the query heads, in order."""
        return self.attend.heads

    def forward(
        self,
        x_BTM: Float[Tensor, "B T M"],
        context: Tensor | None = None,
        mask: Mask | None = None,
        cache: KeyValueCache | None = None,
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Let every position look.

        Args:
            x_BTM: what looks.
            context: what is looked at, shape (B, K, M); `x_BTM` itself where left out.
            mask: which keys each query may look at; all where left out. It counts cached keys too.
            cache: what was looked at before. Self attention adds to it; cross attention fills it once and then reads
                it without projecting `context` again.
            bias: added to the scores, as for `headwise.attend`.
        """
        dropout = self.dropout if self.training else 0.0
        heads = self.split(x_BTM, context, cache)
        mixed_BHTD = self.attend(*heads, mask, bias=bias, dropout=dropout, cross=context is not None)
        if self.training and self.head_dropout > 0:
            mixed_BHTD = drop_heads(mixed_BHTD, self.head_dropout)
        return self.join(mixed_BHTD)

    def split(
        self, x_BTM: Float[Tensor, "B T M"], context: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project and split: queries (B, H, T, D), keys and values (B, G, K, D), as the heads get them."""
        self._check(x_BTM, context)
        before = None if context is not None else 0 if cache is None else cache.length
        if cache is not None and context is not None and cache.held is not None:
            return self._heads(self.query(x_BTM), self.query_norm, before), *cache.held
        query_BTN, key_BKN, value_BKN = self._projected(x_BTM, context)
        query_BHTD = self._heads(query_BTN, self.query_norm, before)
        key_BGKD = self._heads(key_BKN, self.key_norm, before)
        value_BGKD = value_BKN.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        if cache is not None:
            key_BGKD, value_BGKD = cache.append(key_BGKD, value_BGKD)
        return query_BHTD, key_BGKD, value_BGKD

    def step(
        self,
        x_BWM: Float[Tensor, "B W M"],
        cache: KeyValueCache,
        beams: Beams,
        *,
        bias: Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Let the new position of every beam look at what that beam has written.

        Args:
            x_BWM: the new position of the W beams of each sentence.
            cache: what all of them have written, in slots.
            beams: whose slots are whose; those of the new positions are taken already.
            bias: added to the scores by distance.
        """
        self._check(x_BWM, None)
        at, shape = beams.length - 1, x_BWM.shape[:2]

        def folded(projected_BWN: Tensor, norm: nn.Module | None) -> Tensor:
            heads_NH1D = self._heads(projected_BWN.flatten(0, 1)[:, None], norm, at)
            heads_BHWD: Tensor = heads_NH1D[:, :, 0].unflatten(0, shape).transpose(1, 2)
            return heads_BHWD

        query_BWN, key_BWN, value_BWN = self._projected(x_BWM, None)
        query_BHWD, key_BGWD = folded(query_BWN, self.query_norm), folded(key_BWN, self.key_norm)
        value_BGWD = value_BWN.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        written = cache.append(key_BGWD, value_BGWD)
        mixed_BHWD: Tensor = self.attend(query_BHWD, *written, beams.mask, bias=beams.spread(bias))
        return self.join(mixed_BHWD)

    def _projected(self, x_BTM: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values before they are split into heads."""
        if context is None and self.joined is not None:
            widths = [n * self.d_head for n in (len(self.heads), self.kv_heads, self.kv_heads)]
            query_BTN, key_BTN, value_BTN = self.joined(x_BTM).split(widths, -1)
            return query_BTN, key_BTN, value_BTN
        x_BTM = lowered(x_BTM)
        source_BKM = x_BTM if context is None else lowered(context)
        return self.query(x_BTM), self.key(source_BKM), self.value(source_BKM)

    def join(self, mixed_BHTD: Float[Tensor, "B H T D"]) -> Tensor:
        """Join the heads and project them to the model's width."""
        joined_BTM: Tensor = self.output(mixed_BHTD.transpose(1, 2).flatten(-2))
        return joined_BTM

    def _heads(self, projected_BTN: Tensor, norm: nn.Module | None, offset: int | None) -> Tensor:
        """Split a projection into heads, then normalise and, where they have positions, turn them if asked."""
        heads_BTHD = projected_BTN.unflatten(-1, (-1, self.d_head))
        if norm is not None:
            heads_BTHD = norm(heads_BTHD)
        heads_BHTD = heads_BTHD.transpose(1, 2)
        return heads_BHTD if self.rotary is None or offset is None else self.rotary(heads_BHTD, offset)

    def _check(self, x_BTM: Tensor, context: Tensor | None) -> None:
        for name, tensor in (("x_BTM", x_BTM), ("context", context)):
            if tensor is not None and (tensor.dim() != 3 or tensor.shape[-1] != self.d_model):
                raise InputError(
                    f"`{name}` must have shape (B, T, {self.d_model}); got {tuple(tensor.shape)}. "
                    "Add the batch axis with x[None], or build the layer with that `d_model`."
                )

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"d_model={self.d_model}, d_head={self.d_head}, kv_heads={self.kv_heads}, dropout={self.dropout}"


def _width(d_model: int, heads: tuple[int, ...], groups: int, d_head: int | None) -> int:
    """Check the numbers of a layer, and find the width of a head."""
    if not heads or len(set(heads)) != len(heads):
        raise ConfigError(f"`heads` must name at least one head, each once; got {heads}. Pass a number, or names.")
    if groups < 1 or len(heads) % groups:
        raise ConfigError(
            f"`kv_heads` must divide the number of heads; got {groups} for {len(heads)} heads. "
            "Each key head serves the same number of query heads."
        )
    if d_head is None and d_model % len(heads):
        raise ConfigError(
            f"`d_model` must be a multiple of the number of heads; got {d_model} and {len(heads)}. "
            f"Use {_nearest(d_model, len(heads))} heads, or set `d_head` yourself."
        )
    width = d_model // len(heads) if d_head is None else d_head
    if width < 1:
        raise ConfigError(f"`d_head` must be at least 1; got {width}. 64 is usual.")
    return width


def _nearest(d_model: int, heads: int) -> int:
    """Find the number of heads nearest to the one wished for that divides the width."""
    return min((n for n in range(1, max(d_model, 1) + 1) if d_model % n == 0), key=lambda n: abs(n - heads))


def lowered(x: Tensor) -> Tensor:
    """Give what several products read in autocast's type, if it is on: else each would make a copy of its own."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


class AttentionBlock(nn.Module):
    """Be the article's module: attention with its projections, the residual and the normalisation, weights returned.

    Batch first. The weights are those before dropout.

    Args:
        embed_dim: width of the input and the output.
        num_heads: number of heads, a divisor of `embed_dim`.
        dropout: rate in training, of the attention weights and of what is added to the input.

    Example:
        >>> block = AttentionBlock(embed_dim=64, num_heads=8)
        >>> output, weights = block(torch.randn(2, 5, 64))
        >>> output.shape, weights.shape
        (torch.Size([2, 5, 64]), torch.Size([2, 8, 5, 5]))
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if num_heads >= 1 and embed_dim % num_heads:
            raise ConfigError(
                f"`embed_dim` must be a multiple of `num_heads`; got {embed_dim} and {num_heads}. "
                f"Use {_nearest(embed_dim, num_heads)} heads."
            )
        self.attention = MultiHeadAttention(embed_dim, num_heads, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self, x_BTM: Float[Tensor, "B T M"], mask: Mask | None = None, *, average_weights: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Let every position look, add what it saw to it, and normalise.

        Args:
            x_BTM: the input.
            mask: which keys each query may look at; all where left out.
            average_weights: whether to average the weights over the heads.

        Returns:
            The output, shape (B, T, M), and the weights, shape (B, H, T, T), or (B, T, T) averaged.
        """
        query_BHTD, key_BHTD, value_BHTD = self.attention.split(x_BTM)
        dropout = self.attention.dropout if self.training else 0.0
        mixed_BHTD = self.attention.attend(query_BHTD, key_BHTD, value_BHTD, mask, dropout=dropout)
        weights_BHTT = self.attention.attend.weights(query_BHTD, key_BHTD, mask)
        output_BTM = self.norm(x_BTM + self.dropout(self.attention.join(mixed_BHTD)))
        return output_BTM, weights_BHTT.mean(1) if average_weights else weights_BHTT
