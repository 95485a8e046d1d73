"""Hold what is computed without parameters."""

from headwise.functional.attention import Explanation, attend, attention_weights, explain
from headwise.functional.positions import Rotary, sinusoidal

__all__ = ["Explanation", "Rotary", "attend", "attention_weights", "explain", "sinusoidal"]
