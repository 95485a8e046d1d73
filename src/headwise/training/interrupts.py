"""Turn Ctrl-C and SIGTERM into a wish that a run meets at a good moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Note signals within a context. A second one stops at once, but where a launcher may pass on what it got too.

    Args:
        patient: ignore further signals: `torchrun` sends its own after the terminal's.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked = False
        """Whether a signal has come."""
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self._patient:
            raise KeyboardInterrupt(
                "stopped at once; the last saved state is whole: the same command with --resume goes on from it."
            )
        self.asked = True
