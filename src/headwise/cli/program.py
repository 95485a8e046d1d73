"""Run a command: train, evaluate, tour, serve, doctor, demo; others are in `answers`, `export`, `heads`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headwise import recipes
from headwise.cli.answers import add_align, add_predict
from headwise.cli.export import add_export
from headwise.cli.heads import add_compare, add_observe, add_prune, add_score, add_share
from headwise.cli.shared import (
    add_columns,
    add_data,
    add_out,
    add_run,
    check_target,
    command,
    data_settings,
    folder,
    numbers,
    opened,
    source,
    splits,
    started,
)
from headwise.contracts import settings
from headwise.errors import BackendError, ConfigError, HeadwiseError, InputError
from headwise.training import start
from headwise.web import ServeConfig, serve

__all__ = ["main"]

_REFUSED, _FAILED, _STOPPED = 2, 1, 130


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
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "allocate memory" not in str(error):
            raise
        return _ended(MemoryError(_TOO_LARGE), _FAILED, chosen.debug)  # what PyTorch raises on a CPU
    except KeyboardInterrupt as error:
        return _ended(error, _STOPPED, chosen.debug)
    return 0


_TOO_LARGE = "the model and its batches must fit the memory; got more. Choose a smaller `--size` or `batch_tokens`."


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
    heads = (add_observe, add_score, add_prune, add_share, add_compare, _add_tour)
    others = (add_export, _add_serve, _add_tune, _add_doctor, _add_demo)
    for add in (_add_train, _add_evaluate, add_predict, add_align, *heads, *others):
        add(commands)
    return parser


def _add_train(commands: Any) -> None:
    example = "sentiment --data train.tsv --dev dev.tsv --out runs/first --init pretrained:minilm"
    parser = command(commands, "train", _train, "train a model on your own texts", example)
    parser.add_argument(
        "task",
        metavar="TASK",
        help="sentiment, translation or summarization; of a pretrained writer also one in its config",
    )
    add_data(parser, "--data", "table, folder or hub:NAME; two files of lines for pairs", required=True)
    add_data(parser, "--dev", "texts that choose the model; a tenth of the data by default")
    add_out(parser, "folder of the run")
    parser.add_argument(
        "--init", metavar="FROM", help="random, vectors, or pretrained:NAME: minilm, FOLDER, HUB_ID; RUN for pairs"
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
    add_run(parser)
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="another writer, or a file of its texts: do they differ?"
    )
    parser.add_argument("--json", action="store_true", help="all figures, as JSON")


def _add_tour(commands: Any) -> None:
    told = "walk through attention step by step, with a model's own numbers"
    parser = command(commands, "tour", _tour, told, '"The animal was tired."', computes=False, threads="")
    parser.add_argument("sentence", metavar="SENTENCE", help="a sentence of your own")
    parser.add_argument(
        "--model", default="auto", metavar="FROM", help="minilm (default), random, a run, a FOLDER or HUB_ID"
    )
    parser.add_argument("--page", type=Path, default=Path("tour.html"), metavar="HTML", help="the page; tour.html")


def _add_serve(commands: Any) -> None:
    told, threads = "answer over HTTP, with a page to try the models", "threads of all workers together"
    parser = command(commands, "serve", _serve, told, "runs/demo/en", threads=threads)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or NAME=FOLDER")
    parser.add_argument("--host", help="address to listen on; 127.0.0.1 by default")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on; 8000 by default, 0 for any")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that answer; 1 by default")
    parser.add_argument("--allow-host", action="append", metavar="NAME", help="another name the service goes by")
    parser.add_argument("--log-texts", action="store_true", help="write texts to the log")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as limits.deadline=5")


def _add_tune(commands: Any) -> None:
    told = "measure the fastest backend of plain calls of attention here, which `auto` follows then"
    parser = command(commands, "tune", _tune, told, "", computes=False)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the answer; else the cache, where it is found"
    )
    parser.add_argument("--keys", type=numbers, default=recipes.KEYS, metavar="N,N", help="32,128,512,2048 by default")


def _add_doctor(commands: Any) -> None:
    told = "tell what works on this machine, and which way attention takes"
    command(commands, "doctor", _doctor, told, "", computes=False, threads="")


def _add_demo(commands: Any) -> None:
    parser = command(commands, "demo", _demo, "train on the bundled texts, and see the heads", "--out runs/demo")
    parser.add_argument("--out", type=folder, default=Path("runs/demo"), metavar="DIR", help="folder of the runs")


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
    training = config.training
    with start(chosen.device, training.precision, threads=training.threads) as runtime:
        planned = recipes.plan(splits(chosen.data, chosen.dev), config, quiet=chosen.quiet or not runtime.first)
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


def _evaluate(chosen: Any) -> None:
    run, data = opened(chosen), source(chosen.data)
    other = chosen.against if chosen.against is None or chosen.against.is_file() else opened(chosen, chosen.against)
    with started(chosen, run) as runtime:
        if other is None:
            figures = recipes.evaluate(run, data, runtime, split=chosen.split)
        else:
            figures = recipes.significance(run, other, data, runtime, split=chosen.split)
        if not runtime.first:
            return
        if chosen.json:
            print(json.dumps(figures, ensure_ascii=False))
            return
        for name, value in figures.items():
            if isinstance(value, float | str):
                print(name, f"{value:.4f}" if isinstance(value, float) else value)


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


def _tune(chosen: Any) -> None:
    check_target(chosen.out, "--out")
    with start("cpu", "float32", threads=chosen.threads):
        for line in recipes.tune(chosen.keys, chosen.out):
            print(line, flush=True)


def _doctor(chosen: Any) -> None:
    for line in recipes.doctor():
        print(line)


def _demo(chosen: Any) -> None:
    recipes.check_folder(chosen.out)
    with start(chosen.device, threads=chosen.threads) as runtime:
        for line in recipes.demo(chosen.out, runtime, quiet=chosen.quiet):
            print(line, flush=True)
