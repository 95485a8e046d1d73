"""Cut heads out of a model, or let them share keys and values, and train it a little more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from headwise import heads
from headwise.contracts.files import write_whole
from headwise.errors import ConfigError, InputError
from headwise.heads import HeadScores, Plan
from headwise.heads.gates import seams_of
from headwise.recipes.config import changed
from headwise.recipes.kinds import kind_of
from headwise.recipes.run import Run
from headwise.recipes.score import mean_loss
from headwise.recipes.subjects import Own, Subject
from headwise.recipes.train import train
from headwise.tasks.sources import Source
from headwise.training import Outcome, Runtime

__all__ = ["Limit", "further", "milliseconds", "parameters", "plan_heads", "prune", "share", "train_on"]

_PLAN, _REPEATS = "plan.json", 5


@dataclass(frozen=True)
class Limit:
    """Say how small a model is to be, by exactly one of these."""

    keep: float | None = None
    """Part of the heads that stays."""
    parameters: int | None = None
    """Most parameters."""
    milliseconds: float | None = None
    """Longest time of a batch, as measured here."""
    loss: float | None = None
    """Largest growth of the loss."""


def plan_heads(
    subject: Subject, scores: HeadScores, limit: Limit, source: Source, runtime: Runtime, *, split: str | None = None
) -> Plan:
    """Choose the heads that stay.

    Args:
        subject: the model.
        scores: what its heads are worth.
        limit: how small it is to be.
        source: data with its answers, for a limit of time or loss.
        runtime: on what.
        split: rows of which split.

    Raises:
        ConfigError: when not exactly one limit is set, or no model keeps it.
        InputError: when the scores are of another model.
    """
    given = [name for name, value in vars(limit).items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"a plan needs exactly one limit; got {' and '.join(given) or 'none'}. `keep=0.6` is usual.")
    if others := sorted({head.place for head in scores.scores} - set(seams_of(subject.model))):
        raise InputError(f"scores must be of this model; got some of {others[0]}, which it has not. Score this model.")
    layout = subject.layout
    if limit.keep is not None:
        return heads.plan(layout, scores, limit.keep)
    if limit.parameters is not None:
        most = limit.parameters
        return heads.plan_within(layout, scores, lambda model: parameters(model) <= most)
    if limit.milliseconds is not None:
        longest, batch = limit.milliseconds, _first(subject, source, runtime, split)
        return heads.plan_within(layout, scores, lambda model: milliseconds(subject.having(model), batch) <= longest)
    assert limit.loss is not None, "one is set"

    def loss(model: nn.Module) -> float:
        return mean_loss(subject.having(model), source, runtime, split=split)

    worst = loss(subject.model) + limit.loss
    return heads.plan_within(layout, scores, lambda model: loss(model) <= worst, heads="fewest")


def _first(subject: Subject, source: Source, runtime: Runtime, split: str | None) -> Any:
    for batch in subject.batches(source, runtime, split=split):
        return batch
    raise InputError("a time needs at least one batch; got none. Check the data.")


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(each.numel() for each in model.parameters())


@torch.no_grad()
def milliseconds(subject: Subject, batch: Any) -> float:
    """Measure how long a model takes for a batch: the median of five, after one to warm up."""
    model, took = subject.model.eval(), list[float]()
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        float(subject.losses(model, batch).sum())  # waits for the device
        took.append(time.perf_counter() - began)
    return 1000 * median(took[1:])


def prune(subject: Subject, chosen: Plan, out: Path, figures: Mapping[str, float] | None = None) -> Subject:
    """Cut a model to what a plan keeps, and write it into a folder with the plan beside it."""
    return _written(subject.having(heads.prune(subject.layout, chosen)), out, chosen, figures or {})


def share(subject: Subject, kv_heads: int, out: Path, scores: HeadScores | None = None) -> Subject:
    """Let the heads of a model share so many key and value heads, and write it into a folder.

    Args:
        subject: the model.
        kv_heads: key and value heads of each layer.
        out: the folder.
        scores: what its heads are worth: of those that become one, the best is kept; left out, they become their mean.

    Raises:
        ConfigError: when the number does not divide those of every layer.
        InputError: when the scores are of another model, or the folder holds one.
    """
    layout = subject.layout
    weights = None if scores is None else heads.representatives(layout, scores, kv_heads)
    return _written(subject.having(layout.share(kv_heads, weights)), out, None, {})


def _written(subject: Subject, out: Path, chosen: Plan | None, figures: Mapping[str, float]) -> Subject:
    if (out / "model.safetensors").exists():
        raise InputError(f"`--out` must be a new folder; got {out}, which holds a model. Choose another.")
    out.mkdir(parents=True, exist_ok=True)
    subject.save(out, figures)
    if chosen is not None:
        write_whole(out / _PLAN, (chosen.to_json() + "\n").encode())
    return subject


def train_on(
    subject: Subject,
    source: Source,
    out: Path,
    runtime: Runtime,
    *,
    passes: int = 1,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Outcome:
    """Train a run's model further on data, by the same loop; the best model stands in `out`.

    Args:
        subject: the model.
        source: the data; its split `dev` chooses the model.
        out: the folder.
        runtime: on what.
        passes: over the data.
        overrides: what is unlike the training of the run, which had its gates; `training.name=value`.
        quiet: show no progress.

    Raises:
        ConfigError: for settings that cannot be.
        InputError: for a model of Transformers, which its own libraries train.
    """
    run = further(subject, passes=passes, overrides=overrides)
    planned = kind_of(run.config).again(run, source, quiet=quiet or not runtime.first)
    return train(planned, out, runtime, quiet=quiet)


def further(subject: Subject, *, passes: int = 1, overrides: Sequence[str] = ()) -> Run:
    """Give the run that `train_on` is to train: what cannot be is told before anything is computed."""
    if not isinstance(subject, Own):
        raise InputError(f"only runs of headwise are trained here; got {type(subject.model).__name__}. Use a trainer.")
    first = (f"training.passes={passes}", "training.steps=none", "training.gate_penalty=0.0")
    return replace(subject.run, config=changed(subject.run.config, [*first, *overrides]))
