"""Hold all settings of a run, and keep them beside its model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from headwise.contracts import settings
from headwise.errors import ConfigError, InputError
from headwise.models import ClassifierConfig
from headwise.recipes.pair_config import PRETRAINED, PairConfig, beginning_problems
from headwise.tasks.sentiment import SentimentSettings
from headwise.training import TrainingConfig

__all__ = ["AnyConfig", "RunConfig", "changed", "config_of", "read_run", "written_run"]

_FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """Say all that decides what a classifier's training run gives, beside the data."""

    task: Literal["sentiment"] = "sentiment"
    """What the model is for."""
    init: str = "random"
    """What the model begins from: random, vectors, pretrained:minilm, pretrained:FOLDER or pretrained:HUB_ID."""
    vectors: str = ""
    """File of word vectors, or glove; for init = "vectors"."""
    frozen_passes: int = 0
    """Passes in which word vectors stay as they were read; -1 for all."""
    data: SentimentSettings = field(default_factory=SentimentSettings)
    """How the data is read."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The model; what a pretrained encoder or the data decides is filled in."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""

    def problems(self) -> Iterator[str]:
        """Yield a line for each value that cannot be."""
        yield from beginning_problems(self.init, self.vectors, self.frozen_passes, "Try pretrained:minilm.")
        if self.training.guided_alignment:
            told = f"a model with cross attention; got a classifier and {self.training.guided_alignment}"
            yield f"`training.guided_alignment` teaches a head of {told}. Leave it out."

    @property
    def pretrained(self) -> str | None:
        """Name the pretrained encoder, if the run begins from one."""
        return self.init.removeprefix(PRETRAINED) if self.init.startswith(PRETRAINED) else None


AnyConfig = RunConfig | PairConfig

_CONFIGS: dict[str, type[Any]] = {"sentiment": RunConfig, "translation": PairConfig, "summarization": PairConfig}


def config_of(task: str) -> type[Any]:
    """Give the settings class of a task.

    Raises:
        ConfigError: for a task that is none.
    """
    if task not in _CONFIGS:
        raise ConfigError(f"the task must be one of {', '.join(_CONFIGS)}; got {task!r}. See `headwise train --help`.")
    return _CONFIGS[task]


def changed(config: AnyConfig, overrides: Sequence[str]) -> AnyConfig:
    """Change how a model is trained, by `training.name=value` as on the command line.

    Raises:
        ConfigError: for a setting of another section, or one that cannot be.
    """
    held: Mapping[str, Any] = asdict(config)
    for each in overrides:
        if not each.startswith("training."):
            raise ConfigError(f"a model that is there takes settings of `training` only; got {each!r}. Leave it out.")
        held = settings.override(held, each)
    found: AnyConfig = settings.read(config_of(config.task), held)
    return found


def written_run(config: AnyConfig) -> bytes:
    """Write the settings as `run.json`, which stands beside the model."""
    return (json.dumps({"format": _FORMAT, **asdict(config)}, indent=2, ensure_ascii=False) + "\n").encode()


def read_run(folder: Path) -> AnyConfig:
    """Read the settings that stand beside a model.

    Raises:
        InputError: when the folder holds no run, or one of another version.
    """
    path = folder / "run.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        told = f"no run.json that can be read in it ({error.strerror})"
        raise InputError(f"{folder} must be the folder of a trained run; got {told}. Train one first.") from error
    except ValueError as error:
        raise InputError(f"{path} must hold the settings of a run; got: {error}. It is torn: train again.") from error
    if not isinstance(held, dict) or held.pop("format", None) != _FORMAT:
        raise InputError(f"{path} must have format {_FORMAT}; got another. Use the version of headwise that wrote it.")
    kind = _CONFIGS.get(str(held.get("task")))
    if kind is None:
        tasks, task = ", ".join(_CONFIGS), held.get("task")
        raise InputError(f"{path} must be of a task in {tasks}; got {task!r}. Use the version that wrote it.")
    config: AnyConfig = settings.read(kind, held)
    return config
