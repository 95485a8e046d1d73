"""See, score and cut every head of multi-head attention, at full speed."""

from headwise.contracts import Alibi, Dropout, Mask, RelativeBias, Scored, Seen, Statistics
from headwise.errors import BackendError, ConfigError, HeadwiseError, InputError
from headwise.functional import Explanation, Rotary, attend, attention_weights, explain, sinusoidal
from headwise.modules import (
    Attend,
    AttentionBlock,
    KeyValueCache,
    LearnedPositions,
    MultiHeadAttention,
    RelativePositions,
    SinusoidalPositions,
)

__version__ = "0.1.0"
__all__ = [
    "Alibi",
    "Attend",
    "AttentionBlock",
    "BackendError",
    "ConfigError",
    "Dropout",
    "Explanation",
    "HeadwiseError",
    "InputError",
    "KeyValueCache",
    "LearnedPositions",
    "Mask",
    "MultiHeadAttention",
    "RelativeBias",
    "RelativePositions",
    "Rotary",
    "Scored",
    "Seen",
    "SinusoidalPositions",
    "Statistics",
    "attend",
    "attention_weights",
    "explain",
    "sinusoidal",
]
