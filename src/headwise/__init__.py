"""See, score and cut every head of multi-head attention, at full speed."""

from headwise.contracts import Alibi, Dropout, Mask, RelativeBias, Scored, Seen, Statistics
from headwise.errors import BackendError, ConfigError, HeadwiseError, InputError
from headwise.functional import Explanation, attend, attention_weights, explain

__version__ = "0.1.0"
__all__ = [
    "Alibi",
    "BackendError",
    "ConfigError",
    "Dropout",
    "Explanation",
    "HeadwiseError",
    "InputError",
    "Mask",
    "RelativeBias",
    "Scored",
    "Seen",
    "Statistics",
    "attend",
    "attention_weights",
    "explain",
]
