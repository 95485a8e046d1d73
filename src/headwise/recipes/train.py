"""Train a model on a user's texts, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from headwise.contracts import Statistics
from headwise.heads import observe
from headwise.models import Classifier, Seq2Seq
from headwise.recipes.config import AnyConfig
from headwise.recipes.gating import with_gates
from headwise.recipes.kinds import kind_of
from headwise.recipes.plans import Kind, Plan
from headwise.recipes.run import Run, check_out, save_run, taken
from headwise.tasks.sources import Source
from headwise.training import Outcome, Runtime
from headwise.training import train as run_loop

__all__ = ["plan", "train"]


def plan(source: Source, config: AnyConfig, *, quiet: bool = False) -> Plan:
    """Read the data and build the model.

    Args:
        source: a file, a folder, `hub:NAME`, two files of lines, or one of these for each split.
        config: the settings; what the data decides is filled in.
        quiet: show no progress.

    Raises:
        InputError: for data, vectors or a pretrained model that cannot be read.
        ConfigError: for a model that cannot be.
    """
    return kind_of(config).plan(source, config, quiet=quiet)


def train(planned: Plan, out: Path, runtime: Runtime, *, resume: bool = False, quiet: bool = False) -> Outcome:
    """Train what was planned; the best model stands in `out`, as `open_run` opens it.

    Args:
        planned: data, model and settings.
        out: the folder of the run.
        runtime: on what.
        resume: whether to go on where the run in `out` was stopped.
        quiet: show no progress.

    Raises:
        InputError, ConfigError, HeadwiseError, KeyboardInterrupt: as `headwise.training.train`.
    """
    check_out(out, resume=resume)
    kind, run = kind_of(planned.config), Run(planned.config, planned.model, planned.prepared.tokenizer)

    def save(model: nn.Module, folder: Path, figures: Mapping[str, float]) -> None:
        assert isinstance(model, Classifier | Seq2Seq), "the model that was planned, or a copy"
        held = replace(run, model=model)
        save_run(held, folder, figures, card=kind.card(held, figures))

    job = replace(kind.job(planned, runtime, save), look=partial(_look, kind))
    if planned.config.training.gate_penalty:
        job = with_gates(job, planned.config.training)
    with taken(out, runtime):
        return run_loop(job, planned.config.training, out, runtime, resume=resume, quiet=quiet)


def _look(kind: Kind, model: nn.Module, batch: Any) -> Mapping[str, float]:
    """Give the mean entropy of the heads of each layer for the log."""
    with observe(model, Statistics(entropy=True)) as observer:
        kind.forward(model, batch)
    return {f"entropy/{seam.place}": float(seam.scored["entropy"].mean.mean()) for seam in observer.table().seams}
