"""Build the parts that encoders and decoders share, as the settings say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headwise.contracts import Alibi, RelativeBias
from headwise.errors import ConfigError
from headwise.functional import Rotary
from headwise.models.config import EncoderConfig
from headwise.modules import (
    AlibiPositions,
    FeedForward,
    LearnedPositions,
    MultiHeadAttention,
    RelativePositions,
    SinusoidalPositions,
    TokenEmbedding,
    build_norm,
)

__all__ = [
    "added_positions",
    "attention",
    "bias_of",
    "bias_positions",
    "feed_forward",
    "norm",
    "tokens",
    "vectors",
]


def tokens(config: EncoderConfig, vocabulary: int | None = None) -> TokenEmbedding:
    """Build the table of token vectors, of the encoder's vocabulary or of this one.

    Raises:
        ConfigError: when the vocabulary is not known yet.
    """
    size = config.vocabulary if vocabulary is None else vocabulary
    if size == 0:
        raise ConfigError("`vocabulary` must be known to build a model; got 0. Set it to the tokenizer's size.")
    # Waves have a root mean square of 0.7: vectors of 0.02 would drown in them.
    spread = 0.7 if config.positions in ("sinusoidal", "halves") else 0.02
    if config.scale_embedding:
        spread = config.d_model**-0.5
    return TokenEmbedding(size, config.d_model, width=config.embedding_width, std=spread)


def vectors(table: TokenEmbedding, tokens_BT: Tensor, config: EncoderConfig) -> Tensor:
    """Look tokens up, some of them dropped in training, and scale their vectors where asked."""
    x_BTM: Tensor = table(tokens_BT)
    if table.training and config.word_dropout > 0:
        x_BTM = x_BTM * (torch.rand(tokens_BT.shape, device=x_BTM.device) >= config.word_dropout)[..., None]
    return x_BTM * config.d_model**0.5 if config.scale_embedding else x_BTM


def norm(config: EncoderConfig) -> nn.Module:
    """Build a normalisation."""
    return build_norm(config.normalisation, config.d_model, config.norm_eps)


def added_positions(config: EncoderConfig) -> SinusoidalPositions | LearnedPositions | None:
    """Build what is added to the token vectors to tell positions, if anything is."""
    if config.positions == "learned":
        return LearnedPositions(config.max_positions, config.d_model)
    waves = config.positions in ("sinusoidal", "halves")
    return SinusoidalPositions(halves=config.positions == "halves") if waves else None


def bias_positions(
    config: EncoderConfig, heads: Sequence[Sequence[int]], *, bidirectional: bool
) -> AlibiPositions | RelativePositions | None:
    """Build what tells positions by a bias of the scores, if anything does, for heads of these names in each layer."""
    count = 1 + max(max(names) for names in heads)  # those that were cut keep their place
    if config.positions == "relative":
        return RelativePositions(count, config.buckets, max_distance=config.max_distance, bidirectional=bidirectional)
    return AlibiPositions(count) if config.positions == "alibi" else None


def bias_of(
    positions: AlibiPositions | RelativePositions | None, heads: tuple[int, ...]
) -> Alibi | RelativeBias | None:
    """Give the bias of a layer by the names of its heads."""
    if positions is None:
        return None
    count = positions.table.shape[1] if isinstance(positions, RelativePositions) else positions.slopes_H.shape[0]
    bias: Alibi | RelativeBias = positions(None if heads == tuple(range(count)) else heads)
    return bias


def attention(config: EncoderConfig, heads: tuple[int, ...], kv_heads: int, *, positions: bool) -> MultiHeadAttention:
    """Build the attention of a layer; `positions` tells whether its queries and keys have any, for rotary ones."""
    built = MultiHeadAttention(
        config.d_model,
        heads,
        kv_heads=kv_heads,
        d_head=config.d_head,
        dropout=config.attention_dropout,
        bias=config.bias,
        rotary=Rotary() if positions and config.positions == "rotary" else None,
    )
    built.head_dropout = config.head_dropout
    return built


def feed_forward(config: EncoderConfig, width: int | None = None) -> FeedForward:
    """Build the feed-forward part of a layer, of the encoder's width or of this one."""
    return FeedForward(
        config.d_model,
        config.d_ff if width is None else width,
        activation=config.activation,
        dropout=config.feed_forward_dropout,
        bias=config.bias,
    )
