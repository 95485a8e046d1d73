"""Hold the layers."""

from headwise.modules.attention import Attend, AttentionBlock, MultiHeadAttention
from headwise.modules.blocks import EncoderLayer, FeedForward
from headwise.modules.cache import KeyValueCache
from headwise.modules.dropout import HiddenDropout, drop_heads
from headwise.modules.embeddings import (
    AlibiPositions,
    LearnedPositions,
    RelativePositions,
    SinusoidalPositions,
    TokenEmbedding,
)

__all__ = [
    "AlibiPositions",
    "Attend",
    "AttentionBlock",
    "EncoderLayer",
    "FeedForward",
    "HiddenDropout",
    "KeyValueCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "RelativePositions",
    "SinusoidalPositions",
    "TokenEmbedding",
    "drop_heads",
]
