"""Train a model with a gate at every head, so that it learns which it can do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headwise.contracts import Scored
from headwise.contracts.files import write_whole
from headwise.errors import ConfigError
from headwise.heads import LearnedGates
from headwise.training import Job, TrainingConfig

__all__ = ["GATES", "with_gates"]

GATES = "gates.json"
"""File of a run's learned gates, as scores of its heads."""

_STEP = 0.02
"""How far a gate moves in a step at the full learning rate: some hundred steps close it."""


def with_gates(job: Job, training: TrainingConfig) -> Job:
    """Train what a job trains with learned gates; what is saved has them in its weights, and their scores beside.

    Raises:
        ConfigError: for settings that gates cannot have.
    """
    if training.shard or training.compile:
        raise ConfigError(
            f"`gate_penalty` must go without shards and compilation; got shard={training.shard}, "
            f"compile={training.compile}. Leave them out."
        )
    look = job.look

    def loss(gates: nn.Module, batch: Any) -> Scored:
        return job.loss(_of(gates).model, batch)

    def validate(gates: nn.Module) -> Mapping[str, float]:
        return {**job.validate(_of(gates).model), "open_heads": float(_of(gates).penalty().detach())}

    def save(gates: nn.Module, folder: Path, figures: Mapping[str, float]) -> None:
        job.save(_of(gates).folded(), folder, figures)
        write_whole(folder / GATES, (_of(gates).scores().to_json() + "\n").encode())

    def penalty(gates: nn.Module) -> Tensor:
        return training.gate_penalty * _of(gates).penalty()

    return replace(
        job,
        model=LearnedGates(job.model, rate=max(1.0, _STEP / training.learning_rate)),
        loss=loss,
        validate=validate,
        save=save,
        extra_loss=penalty,
        look=None if look is None else lambda gates, batch: look(_of(gates).model, batch),
    )


def _of(gates: nn.Module) -> LearnedGates:
    assert isinstance(gates, LearnedGates), "the model of the job"
    return gates
