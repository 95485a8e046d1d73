"""Answer for texts, and link the words of pairs, from the shell."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwise import recipes
from headwise.cli.shared import add_run, check_target, command, opened, source, started
from headwise.contracts.files import replacing
from headwise.errors import InputError
from headwise.training import Runtime

__all__ = ["add_align", "add_predict"]

_CHUNK = 64
"""Lines of standard input that are answered at once."""


def add_predict(commands: Any) -> None:
    """Add `headwise predict`."""
    example = "runs/first --data new.tsv --output answers.tsv"
    parser = command(commands, "predict", _predict, "answer for texts, in their order", example)
    add_run(parser, required=False)
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; else --data, else lines of stdin")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file of the answers; else the terminal")
    parser.add_argument("--resume", action="store_true", help="go on where the same command was cut off")
    parser.add_argument("--align", action="store_true", help="link words with those of the text, after `align`")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line, with all probabilities")


def add_align(commands: Any) -> None:
    """Add `headwise align`."""
    told = "find the heads of a translator that align, and link the words of pairs"
    parser = command(commands, "align", _align, told, "runs/first --data train.tsv --output links.txt")
    add_run(parser, hub=False)
    parser.add_argument("--output", type=Path, metavar="FILE", help="links of these pairs, a line each: 0-0 1-2")


def _predict(chosen: Any) -> None:
    if chosen.data is not None and chosen.text:
        raise InputError("texts must come from `--data` or from `--text`; got both. Leave one out.")
    if chosen.resume and None in (chosen.data, chosen.output):
        raise InputError("`--resume` must have `--data` and `--output`; got one at most. Name both files.")
    check_target(chosen.output, "--output", chosen.data or ())
    run = opened(chosen)
    if chosen.align:
        run = replace(run, aligner=recipes.read_aligner(chosen.folder))
    with started(chosen, run) as runtime:
        if chosen.data is not None and chosen.output is not None:
            given = {"split": chosen.split, "as_json": chosen.json, "resume": chosen.resume}
            recipes.write_answers(run, source(chosen.data), chosen.output, runtime, **given)
            return
        if chosen.data is not None:
            answers: Iterator[Any] = recipes.predict(run, source(chosen.data), runtime, split=chosen.split)
        else:
            answers = _answers(run, iter([chosen.text]) if chosen.text else _lines_of_stdin(), runtime)
        lines = (recipes.line(run, answer, as_json=chosen.json) for answer in answers)
        if chosen.output is not None:
            _write_lines(lines, chosen.output, runtime)
            return
        for line in lines:
            if runtime.first:
                print(line, flush=True)


def _write_lines(lines: Iterable[str], path: Path, runtime: Runtime) -> None:
    """Write lines as they come, whole or not at all; all processes compute them, the first one writes."""
    if not runtime.first:
        deque(lines, maxlen=0)
        return
    with replacing(path) as beside, beside.open("w", buffering=1, encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _answers(run: recipes.Run, texts: Iterator[list[str]], runtime: Runtime) -> Iterator[Any]:
    """Answer chunk by chunk; what the first process reads is for all, since they share one standard input."""
    while chunk := runtime.from_first(next(texts, []) if runtime.first else []):
        yield from recipes.predict_texts(run, chunk, runtime)


def _lines_of_stdin() -> Iterator[list[str]]:
    """Read lines of standard input, some at a time; from a terminal, one."""
    size, number, chunk = 1 if sys.stdin.isatty() else _CHUNK, 0, []
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            chunk.append(line.decode().rstrip("\r\n"))
        except UnicodeDecodeError as error:
            fact = f"byte 0x{line[error.start]:02x} in line {number}"
            raise InputError(f"standard input must be text in UTF-8; got {fact}. Convert it.") from None
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _align(chosen: Any) -> None:
    check_target(chosen.output, "--output", chosen.data)
    run = opened(chosen)
    if not chosen.folder.is_dir():
        raise InputError(
            f"to align, a model must be in a folder, to keep its heads; got {chosen.folder}. Copy it to one."
        )
    with started(chosen, run) as runtime:
        aligner = recipes.find_aligner(run, source(chosen.data), runtime, split=chosen.split)
        if runtime.first:
            recipes.save_aligner(aligner, chosen.folder)
            print(aligner)
        if chosen.output is None:
            return
        links = recipes.align_pairs(run, aligner, source(chosen.data), runtime, split=chosen.split)
        _write_lines(map(str, links), chosen.output, runtime)
