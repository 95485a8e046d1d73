"""Hold all settings of a run, and put them together from defaults, a TOML file and the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from headwise.contracts import settings
from headwise.errors import ConfigError, InputError
from headwise.models import ClassifierConfig, preset
from headwise.recipes.pair_config import PairConfig, pair_defaults
from headwise.tasks.sentiment import SentimentSettings
from headwise.training import TrainingConfig

__all__ = ["PRETRAINED", "AnyConfig", "RunConfig", "changed", "read_run", "resolve", "written_run"]

PRETRAINED = "pretrained:"
_FREE = ("head_dropout",)
"""Settings of a pretrained encoder that may be changed."""
_FORMAT = 1

_FROM_NOTHING = {"training": {"passes": 12, "learning_rate": 1e-3, "batch_tokens": 2048, "label_smoothing": 0.1}}
_FROM_PRETRAINED = {
    "training": {"passes": 4, "learning_rate": 5e-5, "batch_tokens": 1024, "weight_decay": 0.01, "label_smoothing": 0.1}
}


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
        if self.init not in ("random", "vectors") and not self.init.removeprefix(PRETRAINED).strip(":"):
            yield f"`init` must name a model after `{PRETRAINED}`; got {self.init!r}. Try pretrained:minilm."
        elif self.init not in ("random", "vectors") and not self.init.startswith(PRETRAINED):
            yield f"`init` must be random, vectors or {PRETRAINED}NAME; got {self.init!r}. Try pretrained:minilm."
        if (self.init == "vectors") != bool(self.vectors):
            yield f'`vectors` goes with init = "vectors"; got {self.vectors!r} and {self.init!r}. Set both or neither.'
        if self.frozen_passes < -1:
            yield f"`frozen_passes` must be at least -1; got {self.frozen_passes}. 0 tunes the vectors from the start."
        if self.training.guided_alignment:
            told = f"a model with cross attention; got a classifier and {self.training.guided_alignment}"
            yield f"`training.guided_alignment` teaches a head of {told}. Leave it out."

    @property
    def pretrained(self) -> str | None:
        """Name the pretrained encoder, if the run begins from one."""
        return self.init.removeprefix(PRETRAINED) if self.init.startswith(PRETRAINED) else None


AnyConfig = RunConfig | PairConfig

_KINDS: dict[str, type[Any]] = {"sentiment": RunConfig, "translation": PairConfig, "summarization": PairConfig}


def resolve(
    task: str,
    *,
    size: str | None = None,
    init: str | None = None,
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> AnyConfig:
    """Put settings together; what comes later wins: defaults, the size, a TOML file, `given`, overrides.

    Args:
        task: what the model is for.
        size: tiny, small or base: how large a model is that begins from nothing; tiny where left out.
        init: what it begins from, as in `RunConfig`.
        file: a TOML file with any of the settings.
        given: the same as nested tables.
        overrides: `section.name=value`, as on the command line.

    Raises:
        ConfigError: with a line for every setting that cannot be.

    Example:
        >>> resolve("sentiment", overrides=["training.passes=2"]).training.passes
        2
    """
    tables = [{"task": task}, _read_toml(file) if file is not None else {}, dict(given or {})]
    if init is not None:
        tables.append({"init": init})
    merged = _merged(tables)
    for each in overrides:
        merged = settings.override(merged, each)
    if task not in _KINDS or merged["task"] != task:
        known = ", ".join(_KINDS)
        raise ConfigError(f"the task must be one of {known}, and the file's; got {task!r} and {merged['task']!r}.")
    if _KINDS[task] is PairConfig:
        return settings.read(PairConfig, _merged([pair_defaults(merged, size), merged]))
    if str(merged.get("init", "random")).startswith(PRETRAINED):
        config = settings.read(RunConfig, _merged([_FROM_PRETRAINED, merged]))
        _refuse_fixed(merged, size)
        return config
    defaults = {**_FROM_NOTHING, "model": {"encoder": preset(size or "tiny")}}
    return settings.read(RunConfig, _merged([defaults, merged]))


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
    return settings.read(_KINDS[config.task], held)


def _refuse_fixed(given: Mapping[str, Any], size: str | None) -> None:
    """Refuse to change what a pretrained encoder decides."""
    encoder = given.get("model", {}).get("encoder", {})
    fixed = ["size"] if size is not None else []
    fixed += ["data.tokenizer"] if given.get("data", {}).get("tokenizer") else []
    fixed += [f"model.encoder.{name}" for name in encoder if name not in _FREE]
    if fixed:
        raise ConfigError(
            f"a pretrained encoder must keep its own tokenizer and sizes; got `{'`, `'.join(fixed)}`. "
            "Leave that out, or begin from random."
        )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"`{path}` must be a TOML file of settings; got: {error.strerror}. Check the path."
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"`{path}` must be a TOML file of settings; got: {error}. See examples/.") from error


def _merged(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay tables over each other, section by section."""
    merged: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            old = merged.get(name)
            merged[name] = _merged([old, value]) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


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
    kind = _KINDS.get(str(held.get("task")))
    if kind is None:
        tasks, task = ", ".join(_KINDS), held.get("task")
        raise InputError(f"{path} must be of a task in {tasks}; got {task!r}. Use the version that wrote it.")
    config: AnyConfig = settings.read(kind, held)
    return config
