"""Put the settings of a run together from defaults, a pretrained model, a TOML file and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwise.contracts import settings
from headwise.errors import ConfigError
from headwise.models import preset
from headwise.recipes.config import AnyConfig, RunConfig, config_of
from headwise.recipes.pair_config import PRETRAINED, PairConfig, beginning_problems, pair_defaults
from headwise.recipes.pretrained import open_any

__all__ = ["resolve"]

_DROPOUTS = ("dropout", "attention_dropout", "feed_forward_dropout", "head_dropout", "word_dropout")
_FREE = {RunConfig: ("head_dropout",), PairConfig: _DROPOUTS}
"""Settings of a pretrained encoder that may be changed, by the kind of run."""

_FROM_NOTHING = {"training": {"passes": 12, "learning_rate": 1e-3, "batch_tokens": 2048, "label_smoothing": 0.1}}
_FROM_PRETRAINED = {
    "training": {"passes": 4, "learning_rate": 5e-5, "batch_tokens": 1024, "weight_decay": 0.01, "label_smoothing": 0.1}
}
_FURTHER = {"passes": 3, "learning_rate": 5e-5, "batch_tokens": 4096, "weight_decay": 0.01, "label_smoothing": 0.1}


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

    A writer that begins from a pretrained one has its settings wherever nothing else is said.

    Args:
        task: what the model is for; of a pretrained writer, one of those that it names, such as translation_en_to_de.
        size: tiny, small or base: how large a model is that begins from nothing; tiny where left out.
        init: what it begins from, as in `RunConfig` and `PairConfig`.
        file: a TOML file with any of the settings.
        given: the same as nested tables.
        overrides: `section.name=value`, as on the command line.

    Raises:
        ConfigError: with a line for every setting that cannot be.
        InputError: for a pretrained writer that cannot be read.

    Example:
        >>> resolve("sentiment", overrides=["training.passes=2"]).training.passes
        2
    """
    purpose, (task, *_) = task, task.split("_")
    tables = [{"task": task}, _read_toml(file) if file is not None else {}, dict(given or {})]
    if init is not None:
        tables.append({"init": init})
    merged = _merged(tables)
    for each in overrides:
        merged = settings.override(merged, each)
    init = str(merged.get("init", ""))
    pretrained = init.startswith(PRETRAINED)
    kind = config_of(task)
    if not (pretrained and kind is PairConfig):
        config_of(purpose)  # nothing but a pretrained writer names tasks of its own
    if merged["task"] != task:
        raise ConfigError(f"the task must be that of the file, {merged['task']}; got {task}. Choose one of the two.")
    if pretrained:
        _refuse_fixed(kind, merged, size)
    if kind is PairConfig:
        defaults = _going_on(init, purpose) if pretrained else pair_defaults(merged, size)
    elif pretrained:
        defaults = _FROM_PRETRAINED
    else:
        defaults = {**_FROM_NOTHING, "model": {"encoder": preset(size or "tiny")}}
    config: AnyConfig = settings.read(kind, _merged([defaults, merged]))
    return config


def _going_on(init: str, purpose: str) -> dict[str, Any]:
    """Give the settings of a pretrained writer, as one that is trained further has them."""
    if problems := list(beginning_problems(init, "", 0, "Name a run, or a model.")):
        raise ConfigError(problems[0])
    held = asdict(open_any(init.removeprefix(PRETRAINED), task=purpose).config)
    return {**held, "vectors": "", "frozen_passes": 0, "training": _FURTHER}


def _refuse_fixed(kind: type[Any], given: Mapping[str, Any], size: str | None) -> None:
    """Refuse to change what a pretrained model decides."""
    model, data = ({} if not isinstance(held := given.get(name), Mapping) else held for name in ("model", "data"))
    fixed = ["size"] if size is not None else []
    fixed += ["data.tokenizer"] if data.get("tokenizer") else []
    encoder = model.get("encoder")
    named = encoder if isinstance(encoder, Mapping) else ()
    fixed += [f"model.encoder.{name}" for name in named if name not in _FREE[kind]]
    fixed += [f"model.{name}" for name in model if kind is PairConfig and name != "encoder"]
    if fixed:
        raise ConfigError(
            f"a pretrained model must keep its own tokenizer and sizes; got `{'`, `'.join(fixed)}`. "
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
            if isinstance(old, Mapping) != isinstance(value, Mapping) and old is not None:
                wrong = value if isinstance(old, Mapping) else old
                raise ConfigError(f"`{name}` must be a table of settings; got {wrong!r}. Write [{name}] above them.")
            merged[name] = _merged([old, value]) if isinstance(old, Mapping) else value
    return merged
