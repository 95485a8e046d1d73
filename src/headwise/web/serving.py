"""Find what serves a run."""

from __future__ import annotations

from headwise.models import Seq2Seq
from headwise.recipes import Run
from headwise.training import Runtime
from headwise.web.classifier import ServedClassifier
from headwise.web.config import Limits
from headwise.web.work import Served
from headwise.web.writer import ServedWriter

__all__ = ["served"]


def served(name: str, run: Run, runtime: Runtime, limits: Limits) -> Served:
    """Make a run answer requests.

    Args:
        name: what clients call it.
        run: the run.
        runtime: on what it computes.
        limits: how much is computed together, and how many words are masked.
    """
    if isinstance(run.model, Seq2Seq):
        return ServedWriter(name, run, runtime, occlusions=limits.occlusions)
    return ServedClassifier(name, run, runtime, batch_tokens=limits.batch_tokens, occlusions=limits.occlusions)
