"""Hold what is computed without parameters."""

from headwise.functional.attention import Explanation, attend, attention_weights, explain
from headwise.functional.losses import linear_cross_entropy
from headwise.functional.positions import Rotary, sinusoidal

__all__ = ["Explanation", "Rotary", "attend", "attention_weights", "explain", "linear_cross_entropy", "sinusoidal"]
