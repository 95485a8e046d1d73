"""Run a command: train, evaluate, predict, observe, doctor, demo; those on heads are in `heads`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headwise import recipes
from headwise.cli.heads import add_compare, add_prune, add_score, add_share
from headwise.cli.shared import add_columns, add_data, check_target, command, data_settings, source
from headwise.contracts import settings
from headwise.contracts.files import replacing
from headwise.errors import BackendError, ConfigError, HeadwiseError, InputError
from headwise.training import Runtime, start
from headwise.web import ServeConfig, serve

__all__ = ["main"]

_REFUSED, _FAILED, _STOPPED = 2, 1, 130
_CHUNK = 64
"""Lines of standard input that are answered at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and give its exit code: 0, 1 for a failed run, 2 for wrong input, 130 when it was stopped."""
    chosen = _parser().parse_args(arguments)
    _log_to_terminal(quiet=chosen.quiet)
    try:
        chosen.run(chosen)
        sys.stdout.flush()  # here, where it can still be told that nobody reads
    except (InputError, ConfigError, BackendError) as error:
        return _ended(error, _REFUSED, chosen.debug)
    except (HeadwiseError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        return _ended(error, _FAILED, chosen.debug)
    except KeyboardInterrupt as error:
        return _ended(error, _STOPPED, chosen.debug)
    return 0


def _ended(error: BaseException, code: int, debug: bool) -> int:
    """Tell what ended a command, a line a problem; with `--debug`, where as well."""
    if isinstance(error, BrokenPipeError):
        # Nobody reads any more: give Python a place where it can flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if debug and code != _STOPPED:
        traceback.print_exception(error)
    told = str(error) or ("stopped." if code == _STOPPED else type(error).__name__)
    if isinstance(error, OSError):
        told = f"files must be there to read and write; got {error}. Check the path, and the room on the disk."
    for line in told.splitlines():
        print(f"headwise: {line}", file=sys.stderr)
    return code


def _log_to_terminal(*, quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("headwise")
    logger.handlers = [handler]
    first = os.environ.get("RANK", "0") == "0"
    logger.setLevel((logging.WARNING if quiet else logging.INFO) if first else logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("headwise", description="Attention in which every head can be seen.")
    parser.add_argument("--version", action="version", version=f"headwise {version('headwise')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    heads = (_add_observe, add_score, add_prune, add_share, add_compare, _add_tour)
    others = (_add_serve, _add_doctor, _add_demo)
    for add in (_add_train, _add_evaluate, _add_predict, _add_align, *heads, *others):
        add(commands)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text}. 0 is none.")
    return int(text)


def _add_train(commands: Any) -> None:
    example = "sentiment --data train.tsv --dev dev.tsv --out runs/first --init pretrained:minilm"
    parser = command(commands, "train", _train, "train a model on your own texts", example)
    parser.add_argument(
        "task",
        choices=("sentiment", "translation", "summarization"),
        metavar="TASK",
        help="sentiment, translation or summarization",
    )
    add_data(parser, "--data", "table, folder or hub:NAME; two files of lines for pairs", required=True)
    add_data(parser, "--dev", "texts that choose the model; a tenth of the data by default")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--init", metavar="FROM", help="random, vectors, pretrained:minilm, pretrained:FOLDER or HUB_ID"
    )
    parser.add_argument("--vectors", metavar="FILE", help="word vectors to begin from, or glove")
    parser.add_argument(
        "--tokenizer",
        choices=("words", "subwords", "unigram", "characters"),
        metavar="KIND",
        help="cut texts into words, subwords, unigram or characters",
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "base"),
        metavar="SIZE",
        help="of a new model: tiny (default), small, base",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random")
    parser.add_argument("--config", type=Path, metavar="TOML", help="file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as training.steps=500")
    parser.add_argument("--resume", action="store_true", help="go on where the run in DIR was stopped")
    parser.add_argument("--dry-run", action="store_true", help="show all settings and the memory, and stop")
    add_columns(parser)


def _add_evaluate(commands: Any) -> None:
    parser = command(commands, "evaluate", _evaluate, "measure a run on labelled texts", "runs/first --data test.tsv")
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="all figures, as JSON")


def _add_predict(commands: Any) -> None:
    example = "runs/first --data new.tsv --output answers.tsv"
    parser = command(commands, "predict", _predict, "answer for texts, in their order", example)
    _add_run(parser, required=False)
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; else --data, else lines of stdin")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file of the answers; else the terminal")
    parser.add_argument("--align", action="store_true", help="link words with those of the text, after `align`")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line, with all probabilities")


def _add_align(commands: Any) -> None:
    told = "find the heads of a translator that align, and link the words of pairs"
    parser = command(commands, "align", _align, told, "runs/first --data train.tsv --output links.txt")
    _add_run(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="links of these pairs, a line each: 0-0 1-2")


def _add_observe(commands: Any) -> None:
    example = "runs/first --data test.tsv"
    parser = command(commands, "observe", _observe, "see what every head of a run does on texts", example)
    _add_run(parser)
    parser.add_argument("--page", type=Path, metavar="HTML", help="the page; heads.html in the run by default")
    parser.add_argument("--texts", type=_count, default=4, metavar="N", help="texts to draw; 4 by default, 0 for none")
    parser.add_argument("--before", type=Path, metavar="DIR", help="run before heads were cut, to stand beside")
    parser.add_argument("--json", action="store_true", help="the table with its sums, as JSON")


def _add_tour(commands: Any) -> None:
    told = "walk through attention step by step, with a model's own numbers"
    parser = command(commands, "tour", _tour, told, '"The animal was tired."')
    parser.add_argument("sentence", metavar="SENTENCE", help="a sentence of your own")
    parser.add_argument(
        "--model", default="auto", metavar="FROM", help="minilm (default), random, a run, a FOLDER or HUB_ID"
    )
    parser.add_argument("--page", type=Path, default=Path("tour.html"), metavar="HTML", help="the page; tour.html")


def _add_serve(commands: Any) -> None:
    parser = command(commands, "serve", _serve, "answer over HTTP, with a page to try the models", "runs/demo/en")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or NAME=FOLDER")
    parser.add_argument("--host", help="address to listen on; 127.0.0.1 by default")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on; 8000 by default, 0 for any")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that answer; 1 by default")
    parser.add_argument("--allow-host", action="append", metavar="NAME", help="another name the service goes by")
    parser.add_argument("--log-texts", action="store_true", help="write texts to the log")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as limits.deadline=5")


def _add_doctor(commands: Any) -> None:
    command(commands, "doctor", _doctor, "tell what works on this machine, and which way attention takes", "")


def _add_demo(commands: Any) -> None:
    parser = command(commands, "demo", _demo, "train on the bundled reviews, and see the heads", "--out runs/demo")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of the runs")


def _add_run(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the run")
    add_data(parser, "--data", "table, folder or hub:NAME; files of lines for pairs", required=required)
    parser.add_argument("--split", metavar="NAME", help="rows of this split only")
    add_columns(parser)


def _train(chosen: Any) -> None:
    config = recipes.resolve(
        chosen.task,
        size=chosen.size,
        init=chosen.init or ("vectors" if chosen.vectors else None),
        file=chosen.config,
        given=_given(chosen),
        overrides=chosen.set,
    )
    if not chosen.dry_run:
        recipes.check_out(chosen.out, resume=chosen.resume)
    data = source(chosen.data)
    splits = {"train": data, "dev": source(chosen.dev)} if chosen.dev else data
    training = config.training
    with start(chosen.device, training.precision, threads=training.threads) as runtime:
        planned = recipes.plan(splits, config, quiet=chosen.quiet or not runtime.first)
        if chosen.dry_run:
            if runtime.first:
                print("\n".join(recipes.describe(planned)))
            return
        outcome = recipes.train(planned, chosen.out, runtime, resume=chosen.resume, quiet=chosen.quiet)
        if runtime.first:
            for name, value in outcome.best.items():
                print(f"{name} {value:.4f}")
            print(f"the best model, of step {outcome.best_step} of {outcome.step}, is in {chosen.out}")


def _given(chosen: Any) -> dict[str, Any]:
    """Lay out what the flags of `train` say as tables of settings."""
    given: dict[str, Any] = {"data": data_settings(chosen), "training": {}}
    if chosen.vectors:
        given["vectors"] = chosen.vectors
    if chosen.tokenizer:
        given["data"]["tokenizer"] = {"kind": chosen.tokenizer}
    if chosen.seed is not None:
        given["training"]["seed"] = chosen.seed
    if chosen.threads:
        given["training"]["threads"] = chosen.threads
    return given


def _opened(chosen: Any) -> recipes.Run:
    return recipes.with_data(recipes.open_run(chosen.folder), data_settings(chosen))


def _started(chosen: Any, run: recipes.Run) -> Runtime:
    return start(chosen.device, run.config.training.precision, threads=chosen.threads)


def _evaluate(chosen: Any) -> None:
    run = _opened(chosen)
    with _started(chosen, run) as runtime:
        figures = recipes.evaluate(run, source(chosen.data), runtime, split=chosen.split)
        if not runtime.first:
            return
        if chosen.json:
            print(json.dumps(figures, ensure_ascii=False))
            return
        for name, value in figures.items():
            if isinstance(value, float | str):
                print(name, f"{value:.4f}" if isinstance(value, float) else value)


def _predict(chosen: Any) -> None:
    if chosen.data is not None and chosen.text:
        raise InputError("texts must come from `--data` or from `--text`; got both. Leave one out.")
    check_target(chosen.output, "--output")
    run = _opened(chosen)
    if chosen.align:
        run = replace(run, aligner=recipes.read_aligner(chosen.folder))
    with _started(chosen, run) as runtime:
        if chosen.data is not None:
            answers: Iterable[Any] = recipes.predict(run, source(chosen.data), runtime, split=chosen.split)
        else:
            texts = iter([chosen.text]) if chosen.text else _lines_of_stdin()
            answers = _answers(run, texts, runtime)
        lines = (recipes.line(run, answer, as_json=chosen.json) for answer in answers)
        if chosen.output is None:
            for line in lines:
                if runtime.first:
                    print(line, flush=True)
            return
        _write_lines(lines, chosen.output, runtime)


def _write_lines(lines: Iterable[str], path: Path, runtime: Runtime) -> None:
    """Write lines as they come, whole or not at all; all processes compute them, the first one writes."""
    if not runtime.first:
        deque(lines, maxlen=0)
        return
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
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
    check_target(chosen.output, "--output")
    run = _opened(chosen)
    with _started(chosen, run) as runtime:
        aligner = recipes.find_aligner(run, source(chosen.data), runtime, split=chosen.split)
        if runtime.first:
            recipes.save_aligner(aligner, chosen.folder)
            print(aligner)
        if chosen.output is None:
            return
        links = recipes.align_pairs(run, aligner, source(chosen.data), runtime, split=chosen.split)
        _write_lines(map(str, links), chosen.output, runtime)


def _observe(chosen: Any) -> None:
    run, page = _opened(chosen), chosen.page or chosen.folder / "heads.html"
    check_target(page, "--page")
    given: dict[str, Any] = {"split": chosen.split, "texts": chosen.texts}
    with _started(chosen, run) as runtime:
        data = source(chosen.data)
        if chosen.before:
            older = recipes.with_data(recipes.open_run(chosen.before), data_settings(chosen))
            given["before"] = recipes.look(older, data, runtime, split=chosen.split)
        given["about"] = f"{chosen.folder} on {' and '.join(chosen.data)}"
        report = recipes.report(run, data, runtime, **given)
    if not runtime.first:
        return
    report.write(page)
    print(report.table.to_json() if chosen.json else report.table)
    print(f"the page is {page}", file=sys.stderr)


def _tour(chosen: Any) -> None:
    check_target(chosen.page, "--page")
    walked = recipes.tour(chosen.sentence, chosen.model)
    walked.write(chosen.page)
    print("\n".join(walked.lines()))
    print(f"the page is {chosen.page}", file=sys.stderr)


def _serve(chosen: Any) -> None:
    names = ("host", "port", "workers", "threads")
    given: dict[str, Any] = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    given |= {"hosts": chosen.allow_host or [], "log_texts": chosen.log_texts}
    given["token"] = os.environ.get("HEADWISE_TOKEN", "")
    for assignment in chosen.set:
        given = settings.override(given, assignment)
    serve(chosen.runs, settings.read(ServeConfig, given), chosen.device)


def _doctor(chosen: Any) -> None:
    for line in recipes.doctor():
        print(line)


def _demo(chosen: Any) -> None:
    with start(chosen.device, threads=chosen.threads) as runtime:
        for line in recipes.demo(chosen.out, runtime, quiet=chosen.quiet):
            print(line, flush=True)
