"""Open what answers: a run of ours, or a pretrained translator or summarizer of Transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from headwise.errors import InputError
from headwise.models import Seq2Seq, load_seq2seq, locate
from headwise.models.checkpoint import CONFIG, read_config
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.run import Run, open_run
from headwise.tasks.pairs import PairSettings
from headwise.tasks.pretrained_pairs import load_pretrained_pairs, pair_tokenizer
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import TrainingConfig

__all__ = ["check_task", "open_any", "open_writer", "pretrained_run"]


def open_any(name: str | Path, *, task: str | None = None) -> Run:
    """Open a run's folder, or a Marian, BART or T5: a folder of Transformers, or ORG/NAME on the hub.

    Args:
        name: where it is.
        task: what a pretrained model is used for, as in `purpose_of`; of a run, its own.

    Raises:
        InputError: when there is none, or it is of another architecture or task.
    """
    folder = _found(name)
    if not _is_theirs(folder):
        run = open_run(folder)
        check_task(task, run.config.task, folder)
        return run
    return pretrained_run(folder, task)


def open_writer(name: str | Path) -> tuple[Seq2Seq, Tokenizer]:
    """Read the model of what `open_any` opens, and its tokenizer, whatever they are used for.

    Raises:
        InputError: when there is none, or it is of another architecture, or writes nothing.
    """
    folder = _found(name)
    if _is_theirs(folder):
        return load_seq2seq(folder), pair_tokenizer(folder)
    run = open_run(folder)
    if not isinstance(run.model, Seq2Seq):
        raise InputError(f"{folder} must hold a model that writes; got a {type(run.model).__name__}. Take another.")
    return run.model, run.tokenizer


def _found(name: str | Path) -> Path:
    """Give the folder of a name, which may be one on the hub; a mistyped path beside folders that exist is none."""
    folder = Path(name)
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)) and not folder.parent.exists():
        return locate(str(name))
    return folder


def _is_theirs(folder: Path) -> bool:
    held = not (folder / "run.json").is_file() and (folder / CONFIG).is_file()
    return held and "model_type" in read_config(folder)


def check_task(asked: str | None, task: str, name: str | Path) -> None:
    """Refuse a task that is not the one that something was trained for; `translation_en_to_de` is a translation.

    Raises:
        InputError: when another was asked for.
    """
    if asked is not None and asked != task and not asked.startswith(f"{task}_"):
        raise InputError(f"`--task` must be that of {name}, {task}; got {asked}. Leave it out.")


def pretrained_run(folder: Path, task: str | None = None) -> Run:
    """Read an encoder-decoder of Transformers as a run of ours: its logits are the same.

    It computes in float32, as Transformers does, and writes as its own settings say.

    Args:
        folder: where it is.
        task: what it is used for, as in `purpose_of`.

    Raises:
        InputError: when it is of another architecture, or a part is missing.
    """
    held = load_pretrained_pairs(folder, task)
    purpose, longest = held.purpose, held.model.config.encoder.max_positions
    config = PairConfig(
        task=purpose.task,
        init="pretrained",
        data=PairSettings(
            max_source=longest,
            max_target=longest,
            language=purpose.language,
            source_prefix=purpose.source_prefix,
        ),
        model=held.model.config,
        training=TrainingConfig(precision="float32"),
        decoding=replace(held.decoding, max_length=min(held.decoding.max_length, longest - 1)),
    )
    return Run(config, held.model, held.tokenizer)
