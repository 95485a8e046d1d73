"""Join attention, feed-forward, residuals and normalisation into the layers of a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts import Alibi, Mask, RelativeBias
from headwise.errors import ConfigError
from headwise.modules.attention import MultiHeadAttention
from headwise.modules.cache import Beams, KeyValueCache
from headwise.modules.dropout import HiddenDropout
from headwise.modules.norms import build_norm

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ACTIVATIONS", "Activation", "DecoderLayer", "EncoderLayer", "FeedForward"]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu"]
ACTIVATIONS: tuple[str, ...] = ("gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu")
"""What may bend a feed-forward part; the last two have a third product (Shazeer 2020)."""
_GATED = {"swiglu": "silu", "geglu": "gelu_tanh"}


class FeedForward(nn.Module):
    """Widen, bend, narrow: the same two products at every position (Vaswani et al. 2017, section 3.3).

    Args:
        d_model: width of the input and the output.
        d_ff: width in between.
        activation: `"gelu"`, `"gelu_tanh"`, its older approximation, `"relu"`, `"silu"`; or `"swiglu"` and `"geglu"`,
            which have a third product that is bent by silu or by the approximate gelu (Shazeer 2020).
        dropout: rate at which values in between are dropped in training.
        bias: whether the products add a bias.

    Example:
        >>> FeedForward(8, 32)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"`activation` must be one of {known}; got {activation!r}. gelu is usual.")
        if min(d_model, d_ff) < 1:
            raise ConfigError(
                f"`d_model` and `d_ff` must be at least 1; got {d_model} and {d_ff}. 4 x d_model is usual."
            )
        self.activation = activation
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.gate = nn.Linear(d_model, d_ff, bias=bias) if activation in _GATED else None
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = HiddenDropout(dropout)
        for linear in (self.up, self.gate, self.down):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Tensor:
        """Transform every position by itself."""
        wide_BTF = self.up(x_BTM)
        if self.gate is not None:
            wide_BTF = _bend(self.gate(x_BTM), _GATED[self.activation]) * wide_BTF
        else:
            wide_BTF = _bend(wide_BTF, self.activation)
        narrow_BTM: Tensor = self.down(self.dropout(wide_BTF))
        return narrow_BTM

    def extra_repr(self) -> str:
        """Show the activation."""
        return f"activation={self.activation}"


def _bend(x_BTF: Tensor, activation: str) -> Tensor:
    match activation:
        case "gelu":
            return F.gelu(x_BTF)
        case "gelu_tanh":
            return F.gelu(x_BTF, approximate="tanh")
        case "silu":
            return F.silu(x_BTF)
        case "none":
            return x_BTF  # bent by the product before
    return F.relu(x_BTF)


class _Layer(nn.Module):
    """Know where the normalisations of a layer are."""

    def __init__(self, norm: Literal["pre", "post"], dropout: float) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ConfigError(f'`norm` must be "pre" or "post"; got {norm!r}. "pre" trains more easily.')
        self.norm = norm
        self.dropout = HiddenDropout(dropout)

    def _added(self, x_BTM: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """Add what a part makes of the states, normalised before or after."""
        if self.norm == "pre":
            added_BTM: Tensor = self.dropout(part(norm(x_BTM)))
            return x_BTM + added_BTM
        normalised_BTM: Tensor = norm(x_BTM + self.dropout(part(x_BTM)))
        return normalised_BTM

    def extra_repr(self) -> str:
        """Show where the normalisations are."""
        return f"norm={self.norm}"


class EncoderLayer(_Layer):
    """Let every position look at the others, then think for itself; a residual and a normalisation around each.

    Args:
        attention: the self attention; it holds the names of its heads.
        feed_forward: what follows it.
        norm: `"post"` normalises after adding, as the paper and BERT do; `"pre"` normalises what goes into each part,
            which trains deep stacks more easily and wants one more normalisation behind the last layer.
        dropout: rate at which values are dropped in training, of what each part adds.
        eps: added to the variance in the normalisations.
        normalisation: `"layer"` or `"rms"`.

    Example:
        >>> layer = EncoderLayer(MultiHeadAttention(16, 4), FeedForward(16, 64), norm="post")
        >>> layer(torch.randn(2, 5, 16), Mask.lengths(torch.tensor([5, 3]))).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: FeedForward,
        *,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        normalisation: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__(norm, dropout)
        self.attention = attention
        self.attention_norm = build_norm(normalisation, attention.d_model, eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = build_norm(normalisation, attention.d_model, eps)

    def forward(
        self,
        x_BTM: Float[Tensor, "B T M"],
        mask: Mask | None = None,
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Transform a text.

        Args:
            x_BTM: the hidden states.
            mask: which keys each query may look at; all where left out.
            bias: added to the scores, as for `headwise.attend`.
        """
        x_BTM = self._added(x_BTM, self.attention_norm, lambda x: self.attention(x, mask=mask, bias=bias))
        return self._added(x_BTM, self.feed_forward_norm, self.feed_forward)


class DecoderLayer(_Layer):
    """Look at what is written so far, then at the source, then think; a residual and a normalisation around each.

    Args:
        attention: the attention to what is written so far.
        cross_attention: the attention to the source.
        feed_forward: what follows them.
        norm: as for `EncoderLayer`.
        dropout: rate at which values are dropped in training, of what each part adds.
        eps: added to the variance in the normalisations.
        normalisation: `"layer"` or `"rms"`.

    Example:
        >>> parts = MultiHeadAttention(16, 4), MultiHeadAttention(16, 4), FeedForward(16, 64)
        >>> layer = DecoderLayer(*parts)
        >>> layer(torch.randn(2, 5, 16), torch.randn(2, 7, 16), (Mask.causal(), None)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        cross_attention: MultiHeadAttention,
        feed_forward: FeedForward,
        *,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        normalisation: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__(norm, dropout)
        self.attention = attention
        self.attention_norm = build_norm(normalisation, attention.d_model, eps)
        self.cross_attention = cross_attention
        self.cross_attention_norm = build_norm(normalisation, attention.d_model, eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = build_norm(normalisation, attention.d_model, eps)

    def forward(
        self,
        x_BTM: Float[Tensor, "B T M"],
        source_BKM: Float[Tensor, "B K M"],
        masks: tuple[Mask | None, Mask | None],
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Transform a text that is known to its end.

        Args:
            x_BTM: the hidden states of what is written.
            source_BKM: the hidden states of the source.
            masks: which positions each query may look at, of what is written and of the source.
            bias: added to the scores of what is written, as for `headwise.attend`.
        """
        x_BTM = self.listen(x_BTM, masks[0], bias=bias)
        return self.read(x_BTM, source_BKM, masks[1])

    def listen(
        self,
        x_BTM: Float[Tensor, "B T M"],
        mask: Mask | None = None,
        *,
        bias: Tensor | Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Look at what is written so far: the first part of a layer."""
        return self._added(x_BTM, self.attention_norm, lambda x: self.attention(x, mask=mask, bias=bias))

    def listen_on(
        self,
        x_BWM: Float[Tensor, "B W M"],
        cache: KeyValueCache,
        beams: Beams,
        *,
        bias: Alibi | RelativeBias | None = None,
    ) -> Tensor:
        """Look at what each beam of each source has written, one position on; `beams` tells which of it is whose."""
        return self._added(x_BWM, self.attention_norm, lambda x: self.attention.step(x, cache, beams, bias=bias))

    def read(
        self,
        x_BTM: Float[Tensor, "B T M"],
        source_BKM: Float[Tensor, "B K M"],
        mask: Mask | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Look at the source and think: the rest of a layer. The positions may be the beams of the source."""

        def looked(x: Tensor) -> Tensor:
            seen: Tensor = self.cross_attention(x, source_BKM, mask=mask, cache=cache)
            return seen

        x_BTM = self._added(x_BTM, self.cross_attention_norm, looked)
        return self._added(x_BTM, self.feed_forward_norm, self.feed_forward)

    def weights(
        self,
        x_BTM: Float[Tensor, "B T M"],
        source_BKM: Float[Tensor, "B K M"],
        mask: Mask | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Give the weights with which each head would look at the source in `read`, shape (B, H, T, K)."""
        asking_BTM = self.cross_attention_norm(x_BTM) if self.norm == "pre" else x_BTM
        query_BHTD, key_BGKD, _ = self.cross_attention.split(asking_BTM, source_BKM, cache)
        return self.cross_attention.attend.weights(query_BHTD, key_BGKD, mask)
