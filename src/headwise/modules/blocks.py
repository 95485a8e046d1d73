"""Join attention, feed-forward, residuals and normalisation into the layers of a Transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts import Alibi, Mask, RelativeBias
from headwise.errors import ConfigError
from headwise.modules.attention import MultiHeadAttention
from headwise.modules.dropout import HiddenDropout

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["EncoderLayer", "FeedForward"]


class FeedForward(nn.Module):
    """Widen, bend, narrow: the same two products at every position (Vaswani et al. 2017, section 3.3).

    Args:
        d_model: width of the input and the output.
        d_ff: width in between.
        activation: `"gelu"`, `"relu"`, or `"swiglu"`, which has a third product (Shazeer 2020).
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
        activation: Literal["gelu", "relu", "swiglu"] = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ("gelu", "relu", "swiglu"):
            raise ConfigError(f'`activation` must be "gelu", "relu" or "swiglu"; got {activation!r}. "gelu" is usual.')
        if min(d_model, d_ff) < 1:
            raise ConfigError(
                f"`d_model` and `d_ff` must be at least 1; got {d_model} and {d_ff}. 4 x d_model is usual."
            )
        self.activation = activation
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.gate = nn.Linear(d_model, d_ff, bias=bias) if activation == "swiglu" else None
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
            wide_BTF = F.silu(self.gate(x_BTM)) * wide_BTF
        else:
            wide_BTF = F.gelu(wide_BTF) if self.activation == "gelu" else F.relu(wide_BTF)
        narrow_BTM: Tensor = self.down(self.dropout(wide_BTF))
        return narrow_BTM

    def extra_repr(self) -> str:
        """Show the activation."""
        return f"activation={self.activation}"


class EncoderLayer(nn.Module):
    """Let every position look at the others, then think for itself; a residual and a normalisation around each.

    Args:
        attention: the self attention; it holds the names of its heads.
        feed_forward: what follows it.
        norm: `"post"` normalises after adding, as the paper and BERT do; `"pre"` normalises what goes into each part,
            which trains deep stacks more easily and wants one more normalisation behind the last layer.
        dropout: rate at which values are dropped in training, of what each part adds.
        eps: added to the variance in the normalisations.

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
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ConfigError(f'`norm` must be "pre" or "post"; got {norm!r}. "pre" trains more easily.')
        self.norm = norm
        self.attention = attention
        self.attention_norm = nn.LayerNorm(attention.d_model, eps=eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(attention.d_model, eps=eps)
        self.dropout = HiddenDropout(dropout)

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
        if self.norm == "pre":
            x_BTM = x_BTM + self.dropout(self.attention(self.attention_norm(x_BTM), mask=mask, bias=bias))
            x_BTM = x_BTM + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTM)))
        else:
            x_BTM = self.attention_norm(x_BTM + self.dropout(self.attention(x_BTM, mask=mask, bias=bias)))
            x_BTM = self.feed_forward_norm(x_BTM + self.dropout(self.feed_forward(x_BTM)))
        return x_BTM

    def extra_repr(self) -> str:
        """Show where the normalisations are."""
        return f"norm={self.norm}"
