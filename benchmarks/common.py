"""What every benchmark shares: fair timing, tables, and the header that says where a table comes from."""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

import headwise
from headwise.kernels import native

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

WARM_UP, ROUNDS = 2, 7
LEAST_SECONDS = 0.005
"""A call is repeated within a round until it takes so long: the clock and the loop weigh less than 1 %."""


class Contestant(NamedTuple):
    """Name a call and the context in which it is made."""

    name: str
    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


def side_by_side(contestants: Sequence[Contestant], rounds: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """Measure the milliseconds of one call of each contestant: the median of rounds in alternating order.

    Every contestant runs once in every round, so that a change in the machine's speed meets all of them alike.
    """
    gc.collect()
    first = {x.name: [_seconds(x, 1) for _ in range(max(warm_up, 1))] for x in contestants}
    repeats = {name: 1 if rounds == 1 else math.ceil(LEAST_SECONDS / min(took)) for name, took in first.items()}
    took: dict[str, list[float]] = {x.name: [] for x in contestants}
    for i in range(rounds):
        for x in contestants if i % 2 == 0 else reversed(contestants):
            took[x.name].append(_seconds(x, repeats[x.name]))
    return {name: 1e3 * statistics.median(values) for name, values in took.items()}


def _seconds(contestant: Contestant, repeats: int) -> float:
    gc.disable()
    try:
        with contestant.context():
            start = time.perf_counter()
            for _ in range(repeats):
                contestant.call()
            return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def geometric_mean(values: Iterable[float]) -> float:
    """Average ratios, so that twice as fast and half as fast cancel; NaN where there are none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def number(value: float | None) -> str:
    """Write a number with three digits that count; `-` where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.1e}"


class Report:
    """Print tables and lines as they come, and keep the same as markdown in a file.

    The file is written anew with every line, so that a run that is cut short loses nothing.
    """

    def __init__(self, title: str, path: Path | None) -> None:
        self.path = path
        self.markdown = [f"# {title}", ""]
        self.widths: list[int] = []
        print(title)

    def header(self) -> None:
        """Say which machine, versions, commit and command the numbers come from."""
        for name, value in provenance().items():
            self.line(f"- {name}: {value}")

    def line(self, text: str = "") -> None:
        """Add a line of text, which ends a table."""
        if self.widths:
            self.widths = []
            self.line()
        self._add(text, text)

    def section(self, title: str) -> None:
        """Begin a section."""
        self.line()
        self._add(title, f"## {title}")
        self.line()

    def table(self, *columns: str, first: int = 1) -> None:
        """Begin a table; its first columns hold words and stand to the left."""
        self.line()
        self.widths, self.words = [max(len(x), 12 if i < first else 9) for i, x in enumerate(columns)], first
        rule = ["---" if i < first else "---:" for i in range(len(columns))]
        self._add(self._padded(columns), f"| {' | '.join(map(str.strip, columns))} |\n| {' | '.join(rule)} |")

    def row(self, *cells: str | float | None) -> None:
        """Add a row to the table."""
        words = [cell if isinstance(cell, str) else number(cell) for cell in cells]
        assert len(words) == len(self.widths), "a row has as many cells as its table has columns"
        self._add(self._padded(words), f"| {' | '.join(words)} |")

    def _padded(self, words: Sequence[str]) -> str:
        pairs = zip(words, self.widths, strict=True)
        return "  ".join(f"{x:<{n}}" if i < self.words else f"{x:>{n}}" for i, (x, n) in enumerate(pairs)).rstrip()

    def _add(self, text: str, markdown: str) -> None:
        if not markdown and not self.markdown[-1]:
            return  # one blank line is enough
        print(text, flush=True)
        self.markdown.append(markdown)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("\n".join(self.markdown).rstrip() + "\n", encoding="utf-8")


def provenance() -> dict[str, str]:
    """Tell where numbers come from."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores, used = len(os.sched_getaffinity(0)), torch.get_num_threads()
    sets = f"PyTorch: {torch.backends.cpu.get_cpu_capability()}, native kernel: {native.LIBRARY.isa or 'none'}"
    program = Path(sys.argv[0]).resolve()
    named = program.relative_to(ROOT).as_posix() if program.is_relative_to(ROOT) else program.name
    return {
        "machine": f"{_processor()} ({sets}), {cores} cores, {gib:.0f} GB; threads used: {used}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, headwise {headwise.__version__}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _commit(),
        "command": f"`{shlex.join(['python', named, *sys.argv[1:]])}`",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Name the commit, with a `+` where the tree differs from it in anything but results."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", ".", ":!benchmarks/results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def options(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: see that it works, no more")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed rounds (default: {ROUNDS})")
    parser.add_argument("--write", action="store_true", help="keep the tables as markdown in the results folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="that folder (default: benchmarks/results)")
    parser.add_argument("--name", help="name of the table's file (default: that of the program)")
    return parser


def begin(title: str, chosen: argparse.Namespace) -> Report:
    """Set threads and seed, and open the report that the options ask for."""
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    if chosen.quick:
        chosen.rounds = 1
    path = chosen.results / f"{chosen.name or Path(sys.argv[0]).stem}.md" if chosen.write else None
    report = Report(title, path)
    report.header()
    return report
