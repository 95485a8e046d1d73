"""Tell how a run goes: a line of JSON for every so many steps, TensorBoard where asked, and a bar in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from headwise.contracts.files import write_whole
from headwise.errors import ConfigError
from headwise.training.checkpoint import Progress, room

__all__ = ["Bar", "Log"]


class Log:
    """Write figures by step; a resumed run first forgets what was written after the state it goes on from.

    Args:
        folder: where `log.jsonl` and `tensorboard` lie; nothing is written where it is `None`.
        progress: the state from which the run goes on.
        tensorboard: whether to write for TensorBoard too.

    Raises:
        ConfigError: when TensorBoard is asked for and is not installed.
    """

    def __init__(self, folder: Path | None, progress: Progress, *, tensorboard: bool = False) -> None:
        self._file = self._board = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.jsonl"
        write_whole(self._path, b"".join(line for line in _lines(self._path) if _stays(line, progress)))
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        if tensorboard:
            self._board = _board(folder / "tensorboard", progress.step + 1)

    def write(self, step: int, figures: Mapping[str, float], part: str = "training") -> None:
        """Add a line: figures of training as they are, those of another part under its name.

        Raises:
            HeadwiseError: when the disk is full.
        """
        if self._file is not None:
            line = {"step": step, **(figures if part == "training" else {part: figures})}
            with room("the log", self._path.with_suffix(".part")):
                self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        """Finish writing."""
        for held in (self._file, self._board):
            if held is not None:
                held.close()


class Bar:
    """Show steps, time left, tokens per second and loss in the terminal.

    Args:
        done: steps that were done before.
        steps: steps in all.
        shown: whether to show anything.
    """

    def __init__(self, done: int, steps: int, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(initial=done, total=steps, unit="step", dynamic_ncols=True)
        self._told = self._began = time.perf_counter()
        self._tokens = 0

    def advance(self, tokens: int, loss: Callable[[], float]) -> None:
        """Count a step; the loss is asked for once a second, since it makes a GPU wait."""
        self._tokens += tokens
        if self._bar is None:
            return
        self._bar.update()
        now = time.perf_counter()
        if now - self._told >= 1:
            rate = self._tokens / (now - self._began)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s, loss {loss():.4f}", refresh=False)
            self._told = now

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        if self._bar is not None:
            self._bar.write(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class _Board(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _stays(line: bytes, progress: Progress) -> bool:
    """Tell whether a line was written before the state; the last may have been cut off. Averaging comes after all."""
    try:
        read = json.loads(line)
    except ValueError:
        return False
    if "validation" in read:
        return bool(read["step"] <= progress.validated)
    return "average" not in read and bool(read["step"] <= progress.step)


def _board(folder: Path, first_step: int) -> _Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "`tensorboard` must be installed to be written for; got none. Run pip install tensorboard, or unset it."
        ) from None
    board: _Board = SummaryWriter(str(folder), purge_step=first_step)
    return board
