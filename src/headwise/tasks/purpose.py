"""Tell what a pretrained encoder-decoder is used for: its config says it, or the user does, or it is assumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from headwise.errors import InputError

__all__ = ["Purpose", "purpose_of"]

_log = logging.getLogger("headwise")

_Task = Literal["translation", "summarization"]
_TASKS: tuple[_Task, ...] = get_args(_Task)
_VERBS: dict[str, _Task] = {"translate": "translation", "summarize": "summarization"}
"""What the prefix of a task begins with."""


@dataclass(frozen=True)
class Purpose:
    """Hold what a pretrained model is used for."""

    task: _Task
    """Which of our tasks it is."""
    language: str = ""
    """Language that it writes, as far as the task's name says it."""
    source_prefix: str = ""
    """Text that it wants before every text that it reads."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its config says of writing for this task, by the names of Transformers."""


def purpose_of(config: Mapping[str, Any], name: str, asked: str | None = None) -> Purpose:
    """Tell what a model is used for, and log it.

    A Marian translates. Others name their tasks under `task_specific_params`, or tell one by the `prefix` of what they
    read. A model that tells nothing, or several tasks, is taken for a summarizer if it may be one.

    Args:
        config: its config.json.
        name: what it is called in messages.
        asked: translation, summarization, or a task that its config names, such as translation_en_to_de.

    Raises:
        InputError: for a task that is neither, or that stands for several of the config's.

    Example:
        >>> purpose_of({"task_specific_params": {"translation_en_to_de": {"num_beams": 4}}}, "mine").language
        'de'
    """
    named = {task: settings for task, settings in (config.get("task_specific_params") or {}).items() if _kind(task)}
    chosen = _asked(named, name, asked) if asked else _told(config, named, name)
    task = _kind(chosen)
    assert task is not None, "chosen among those that have one"
    settings = named.get(chosen, {})
    prefix = str(config.get("prefix") or "")
    if _verb(prefix) not in (None, task):
        prefix = ""
    language = chosen.rpartition("_to_")[2] if "_to_" in chosen else ""
    return Purpose(task, language, settings.get("prefix", prefix), settings)


def _asked(named: Mapping[str, Any], name: str, asked: str) -> str:
    """Find the task that was asked for among those that a config names."""
    like = [task for task in named if task.startswith(f"{asked}_")]
    if asked in named or (asked in _TASKS and not like):
        return asked
    if len(like) != 1:
        known = ", ".join(like or dict.fromkeys((*_TASKS, *named)))
        raise InputError(f"`--task` must be one that {name} is for: {known}; got {asked}. Name one of them.")
    return like[0]


def _told(config: Mapping[str, Any], named: Mapping[str, Any], name: str) -> str:
    """Find the task of which a config speaks, and assume one where it does not."""
    prefix = str(config.get("prefix") or "")
    by_prefix = [task for task, settings in named.items() if prefix.strip() and settings.get("prefix") == prefix]
    candidates = by_prefix or list(named) or [task for task in [_verb(prefix)] if task]
    if config.get("model_type") == "marian":
        candidates = ["translation"]
    if len(candidates) == 1:
        _log.info("%s is taken for %s, as its config says", name, candidates[0])
        return candidates[0]
    summarizers = [task for task in candidates if _kind(task) == "summarization"]
    assumed = [*summarizers, *candidates, "summarization"][0]
    others = ", ".join(dict.fromkeys(task for task in (*candidates, *_TASKS) if task != assumed))
    _log.warning("%s does not say what it is for, and is taken for %s; --task may name %s", name, assumed, others)
    return assumed


def _kind(task: str) -> _Task | None:
    """Tell which of our tasks a task's name stands for."""
    return next((each for each in _TASKS if task == each or task.startswith(f"{each}_")), None)


def _verb(prefix: str) -> _Task | None:
    """Tell which of our tasks a prefix speaks of."""
    return next((task for verb, task in _VERBS.items() if prefix.strip().lower().startswith(verb)), None)
