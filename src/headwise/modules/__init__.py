"""Hold the layers."""

from headwise.modules.attention import Attend, AttentionBlock, MultiHeadAttention
from headwise.modules.cache import KeyValueCache
from headwise.modules.embeddings import LearnedPositions, RelativePositions, SinusoidalPositions

__all__ = [
    "Attend",
    "AttentionBlock",
    "KeyValueCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "RelativePositions",
    "SinusoidalPositions",
]
