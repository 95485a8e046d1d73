"""Build what the commands have in common: their flags, and what these mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headwise import recipes
from headwise.errors import InputError
from headwise.training import Runtime, start

__all__ = [
    "add_columns",
    "add_data",
    "add_out",
    "add_run",
    "add_task",
    "check_target",
    "command",
    "data_settings",
    "folder",
    "numbers",
    "opened",
    "positive",
    "source",
    "splits",
    "started",
]

_USAGE = {
    "train": "TASK --data FILE --out DIR",
    "evaluate": "DIR --data FILE",
    "predict": "DIR",
    "align": "DIR --data FILE",
    "export": "DIR --out DIR",
    "observe": "MODEL --data FILE",
    "tour": "SENTENCE",
    "score": "MODEL --data FILE",
    "prune": "MODEL --data FILE --out DIR",
    "share": "MODEL --kv-heads N --out DIR",
    "compare": "TASK --data FILE --heads N,N --out DIR",
    "serve": "RUN [RUN ...]",
    "tune": "",
    "doctor": "",
    "demo": "",
}


class _Help(argparse.HelpFormatter):
    """Set help out in lines of up to 100 letters, so that that of a command fits a screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def command(
    commands: Any,
    name: str,
    run: Callable[[Any], None],
    told: str,
    example: str,
    *,
    computes: bool = True,
    threads: str = "threads of each process",
) -> argparse.ArgumentParser:
    """Add a command with what all of them have; one that `computes` on a device of the user's choice may be told it.

    `threads` says whose number the user may set; nobody's where it is empty.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=told,
        usage=f"headwise {name} {_USAGE[name]} [options]".replace("  ", " "),
        description=f"{told[0].upper()}{told[1:]}.",
        epilog=f"example: headwise {name} {example}".rstrip(),
        formatter_class=_Help,
    )
    parser.set_defaults(run=run)
    if computes:
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    if threads:
        parser.add_argument("--threads", type=positive, default=0, metavar="N", help=threads)
    parser.add_argument("--quiet", action="store_true", help="show results and problems only")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    return parser


def positive(text: str) -> int:
    """Read a whole number from 1, as the type of a flag."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text}. See --help.")
    return int(text)


def add_data(parser: argparse.ArgumentParser, flag: str, told: str, *, required: bool = False) -> None:
    """Add a flag that names data: one thing, or two files of lines."""
    parser.add_argument(flag, nargs="+", type=_named, required=required, metavar="FILE", help=told)


def add_out(parser: argparse.ArgumentParser, told: str) -> None:
    """Add the folder that a command writes."""
    parser.add_argument("--out", required=True, type=folder, metavar="DIR", help=told)


def folder(text: str) -> Path:
    """Read the name of a folder, as the type of a flag."""
    return Path(_named(text))


def _named(text: str) -> str:
    """Refuse an empty name, as an unset variable of the shell leaves it: it would mean the folder at hand."""
    if not text:
        raise argparse.ArgumentTypeError("must be a name; got an empty one. Write . for the folder at hand.")
    return text


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how tables are read."""
    for name, told in (
        ("text", "texts"),
        ("label", "labels"),
        ("source", "texts to read"),
        ("target", "texts to write"),
    ):
        parser.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {told}")
    parser.add_argument("--on-error", choices=("stop", "skip"), metavar="WAY", help="at a broken row: stop, or skip")


def add_run(parser: argparse.ArgumentParser, *, required: bool = True, hub: bool = True) -> None:
    """Add a run, and the data that it is used on; it may be a writer of others, on the hub too where it says so."""
    told = "folder of the run, or of a Marian, BART or T5"
    parser.add_argument("folder", type=Path, metavar="DIR", help=f"{told}; or its ORG/NAME" if hub else told)
    add_data(parser, "--data", "table, folder or hub:NAME; files of lines for pairs", required=required)
    parser.add_argument("--split", metavar="NAME", help="rows of this split only")
    add_task(parser)
    add_columns(parser)


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says what a pretrained model is used for."""
    told = "of a pretrained writer: translation, summarization or a name in its config"
    parser.add_argument("--task", metavar="TASK", help=told)


def opened(chosen: Any, folder: Path | None = None) -> recipes.Run:
    """Open the run that a command names, or that of another folder, to read data as the command's flags say."""
    return recipes.with_data(recipes.open_any(folder or chosen.folder, task=chosen.task), data_settings(chosen))


def started(chosen: Any, run: recipes.Run) -> Runtime:
    """Start what a run computes on."""
    return start(chosen.device, run.config.training.precision, threads=chosen.threads)


def data_settings(chosen: Any) -> dict[str, Any]:
    """Lay out what these flags say as settings."""
    names = ("text_column", "label_column", "source_column", "target_column", "on_error")
    return {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}


def source(files: Sequence[str]) -> Any:
    """Give what a flag names as the readers take it: one thing, or two files of lines."""
    return files[0] if len(files) == 1 else files


def splits(train: Sequence[str], dev: Sequence[str] | None) -> Any:
    """Give the texts of a training, and those that choose among its states where they are named."""
    return {"train": source(train), "dev": source(dev)} if dev else source(train)


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them, as the type of a flag."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers from 1 with commas; got {text}. 1,2,4,8 is usual.")
    return tuple(map(int, parts))


def check_target(path: Path | None, flag: str, read: Sequence[str | Path | None] = ()) -> None:
    """Refuse a file that cannot be written, or is read first, before anybody waits for what it is to hold."""
    if path is None:
        return
    told = ""
    if path.is_dir():
        told = "is a folder"
    elif path.exists() and not path.is_file():
        told = "is no ordinary file, and would be replaced by one"
    elif not os.access(path.parent, os.W_OK):
        told = f"needs the folder {path.parent} to be there and writable"
    elif path.exists() and any(path.samefile(each) for each in _files(read)):
        told = "is read: it would be lost"
    if told:
        raise InputError(f"`{flag}` must be a file to write; got {path}, which {told}. Choose another.")


def _files(named: Sequence[str | Path | None]) -> Iterator[Path]:
    """List the files that are there under these names, and those in folders of them."""
    for path in (Path(each).expanduser() for each in named if each is not None):
        yield from path.iterdir() if path.is_dir() else [path] if path.exists() else []
