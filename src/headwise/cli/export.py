"""Hand runs over to other engines, from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwise import recipes
from headwise.cli.shared import add_out, command

__all__ = ["add_export"]


def add_export(commands: Any) -> None:
    """Add `headwise export`."""
    told = "hand a translator or summarizer over to an engine that serves it"
    parser = command(
        commands, "export", _export, told, "runs/en-fr --out served/en-fr --type int8", computes=False, threads=""
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--to", choices=("ctranslate2",), default="ctranslate2", help="the engine; ctranslate2")
    add_out(parser, "folder to write; new, or an export")
    parser.add_argument(
        "--type",
        choices=recipes.TYPES,
        default="float32",
        metavar="TYPE",
        help=f"of weights: {', '.join(recipes.TYPES)}",
    )


def _export(chosen: Any) -> None:
    folder = recipes.export(recipes.open_run(chosen.folder), chosen.out, weights=chosen.type)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB, {chosen.type}; ctranslate2.Translator({str(folder)!r}) reads it")
