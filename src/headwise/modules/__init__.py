"""Hold the layers."""

from headwise.modules.attention import Attend, AttentionBlock, MultiHeadAttention
from headwise.modules.blocks import ACTIVATIONS, Activation, DecoderLayer, EncoderLayer, FeedForward
from headwise.modules.cache import Beams, KeyValueCache
from headwise.modules.dropout import HiddenDropout, drop_heads
from headwise.modules.embeddings import (
    AlibiPositions,
    LearnedPositions,
    RelativePositions,
    SinusoidalPositions,
    TokenEmbedding,
)
from headwise.modules.norms import RMSNorm, build_norm

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "AlibiPositions",
    "Attend",
    "AttentionBlock",
    "Beams",
    "DecoderLayer",
    "EncoderLayer",
    "FeedForward",
    "HiddenDropout",
    "KeyValueCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "RMSNorm",
    "RelativePositions",
    "SinusoidalPositions",
    "TokenEmbedding",
    "build_norm",
    "drop_heads",
]
