"""Write the answers for a table to a file, and go on with one that was cut off."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from headwise.contracts.files import begun_of, count_lines, going_on
from headwise.errors import InputError
from headwise.recipes.kinds import kind_of
from headwise.recipes.plans import Unanswered
from headwise.recipes.run import Run
from headwise.recipes.streaming import stream
from headwise.tasks.files import key_of
from headwise.tasks.sources import Source
from headwise.training import Runtime

__all__ = ["write_answers"]

_log = logging.getLogger("headwise")

_DIGITS = 12
"""Of each digest in the name of an unfinished file."""


def write_answers(
    run: Run,
    source: Source,
    path: Path,
    runtime: Runtime,
    *,
    split: str | None = None,
    as_json: bool = False,
    resume: bool = False,
) -> None:
    """Write an answer a line for every text of a table; all processes compute them, the first one writes.

    Until the file is whole it is hidden beside its place, where a killed process leaves it. Its name tells which
    weights, texts and settings its answers are of.

    Args:
        run: the run.
        source: a file, a folder, `hub:NAME`, or two files of lines.
        path: the file.
        runtime: on what.
        split: rows of which split; left out, all.
        as_json: write JSON, one object a line.
        resume: go on with what was left of the file; one that is whole stays as it is.

    Raises:
        InputError: for data that cannot be read, or a file to go on with that is of something else.
    """
    kind = kind_of(run.config)
    found = kind.unanswered(run, source, quiet=not runtime.first)
    file, done, refused = None, 0, ""
    with ExitStack() as held:
        if runtime.first:
            try:
                marks = _marks(run, found, [split, as_json])
                file, done = held.enter_context(_opened(path, marks, found.count(split), resume=resume))
            except InputError as error:
                refused = str(error)
        done, refused = runtime.from_first((done, refused))
        if refused:
            raise InputError(refused)
        answer = partial(kind.predict_texts, run, runtime=runtime)
        for each in stream(found, answer, runtime, split=split, done=done):
            if file is not None:
                file.write(kind.line(each, as_json=as_json) + "\n")


def _opened(
    path: Path, marks: Mapping[str, str], wanted: int, *, resume: bool
) -> AbstractContextManager[tuple[IO[str] | None, int]]:
    """Give the file to write to, and how many answers are in it; no file where none is missing."""
    if not resume or begun_of(path) or not path.exists():
        return going_on(path, marks, resume=resume)
    if (lines := count_lines(path)) != wanted:
        told = f"a line for each of {wanted} texts, or be unfinished; got {lines} lines"
        raise InputError(f"`{path}` must have {told}. Begin anew without `--resume`.")
    _log.info("%s has its %d answers already", path, lines)
    return nullcontext((None, lines))


def _marks(run: Run, found: Unanswered, asked: Sequence[Any]) -> dict[str, str]:
    """Name what answers come from, and a digest of each, the same wherever the files are."""
    weights = hashlib.blake2b(run.tokenizer.json.encode())
    for name, tensor in run.model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    texts = hashlib.blake2b(repr(found.table.skipped.before).encode())
    for values in found.table.column(found.role):
        for buffer in filter(None, values.buffers()):
            texts.update(buffer)
    links = run.aligner and run.aligner.heads
    digests = weights.hexdigest(), texts.hexdigest(), key_of(asdict(run.config), links, *asked)
    return {name: digest[:_DIGITS] for name, digest in zip(("run", "data", "settings"), digests, strict=True)}
