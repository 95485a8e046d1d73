"""Hold what is computed without parameters."""

from headwise.functional.attention import Explanation, attend, attention_weights, explain

__all__ = ["Explanation", "attend", "attention_weights", "explain"]
