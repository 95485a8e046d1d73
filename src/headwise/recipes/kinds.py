"""Find what serves a task."""

from __future__ import annotations

from headwise.recipes import classify, rewrite
from headwise.recipes.config import AnyConfig
from headwise.recipes.plans import Kind

__all__ = ["KINDS", "kind_of"]

KINDS: dict[str, Kind] = {"sentiment": classify, "translation": rewrite, "summarization": rewrite}
"""What serves each task."""


def kind_of(config: AnyConfig) -> Kind:
    """Give what serves the task of a run."""
    return KINDS[config.task]
