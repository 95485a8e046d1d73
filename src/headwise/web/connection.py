"""Let no client hold a connection without sending a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["patient"]

_MOST_HEAD = 64 * 1024
"""Bytes of the head of a request, and of what a client may send before its answer is ready."""


class _Patient(asyncio.Protocol):
    """Hand a connection to uvicorn's protocol, and end it where the head of a request does not arrive in time."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._inner.connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        before = self._inner.cycle
        if self._timer is None and (before is None or before.response_complete):
            self._start()
        self._inner.data_received(data)
        if self._inner.cycle is not before:
            self._stop()
        elif self._timer is not None:
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self._transport.abort()

    def eof_received(self) -> bool | None:
        result: bool | None = self._inner.eof_received()
        return result

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _start(self) -> None:
        self._head = 0
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient(inner: Callable[..., Any], seconds: float) -> Callable[..., asyncio.Protocol]:
    """Make uvicorn's protocol give a client so many seconds for the head of a request."""

    def made(*args: Any, **named: Any) -> asyncio.Protocol:
        return _Patient(inner(*args, **named), seconds)

    return made
