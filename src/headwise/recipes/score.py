"""Score the heads of a model on a user's data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from headwise.errors import InputError
from headwise.heads import HeadScores, ablate, gradient_importance, random_scores
from headwise.recipes.gating import GATES
from headwise.recipes.subjects import Subject
from headwise.tasks.sources import Source
from headwise.training import Runtime

__all__ = ["Way", "alone", "learned_scores", "mean_loss", "score"]

Way = Literal["gradient", "ablation", "random"]


def score(
    subject: Subject,
    source: Source,
    runtime: Runtime,
    *,
    by: Way = "gradient",
    split: str | None = None,
    batches: int | None = None,
) -> HeadScores:
    """Score every head of a model: the larger, the more it is needed.

    Args:
        subject: the model.
        source: data with its answers.
        runtime: on what; one process.
        by: `gradient`, the slope of each example's loss by a head's gate; `ablation`, the growth of the loss without
            the head, one at a time; `random`, to compare.
        split: rows of which split; left out, `test` where there is one, else all.
        batches: how many batches count; all where left out.

    Raises:
        InputError: for data that cannot be read, or several processes.
    """
    alone(runtime, "heads must be scored")
    model = subject.model.to(runtime.device).eval()
    if by == "random":
        return random_scores(model)

    def held() -> Iterator[Any]:
        return islice(subject.batches(source, runtime, split=split), batches)

    if by == "gradient":
        return gradient_importance(model, held(), subject.losses)
    kept = list(held())
    return ablate(model, lambda held: _mean(subject, held, kept))


def alone(runtime: Runtime, what: str) -> None:
    """Refuse several processes where each would do the same, or a part as if it were all.

    Raises:
        InputError: when there are several.
    """
    if runtime.processes > 1:
        raise InputError(f"{what} by one process; got {runtime.processes}. Leave torchrun out.")


def learned_scores(folder: Path) -> HeadScores:
    """Read the scores that a run with learned gates has left.

    Raises:
        InputError: when it has none.
    """
    path = folder / GATES
    if not path.is_file():
        raise InputError(
            f"`{folder}` must be of a run with learned gates; got no {GATES} in it. "
            "Train with --set training.gate_penalty=1."
        )
    return HeadScores.from_json(path.read_bytes())


@torch.no_grad()
def mean_loss(subject: Subject, source: Source, runtime: Runtime, *, split: str | None = None) -> float:
    """Compute the mean loss of the examples."""
    model = subject.model.to(runtime.device).eval()
    return _mean(subject, model, list(subject.batches(source, runtime, split=split)))


def _mean(subject: Subject, model: nn.Module, batches: list[Any]) -> float:
    losses = torch.cat([subject.losses(model, batch) for batch in batches] or [torch.zeros(0)])
    if not len(losses):
        raise InputError("a loss needs at least one example; got none. Check the data and the split.")
    return float(losses.mean())
