"""Keep processes that answer: load the models once, fork the workers from there, and put a new one where one dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from headwise.errors import HeadwiseError, InputError
from headwise.recipes import Run, open_run
from headwise.tasks.extras import need
from headwise.training import Runtime, check_device, start
from headwise.web.app import application
from headwise.web.config import ServeConfig
from headwise.web.connection import patient
from headwise.web.metrics import forget, sharing
from headwise.web.serving import served

__all__ = ["named_runs", "serve"]

_log = logging.getLogger("headwise")

_BREATH = 0.5
"""Seconds that a worker has to live, so that one which cannot start is not started without end."""
_TRIES = 5
"""Workers that may end one after the other before they have lived so long."""
_ENDS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end the service."""
_SWITCH = 0.0005
"""Seconds after which Python lets another thread on: a model makes many short calls beside a busy event loop."""


def named_runs(given: Sequence[str]) -> dict[str, Path]:
    """Give the folder of each run by the name that clients use: `NAME=FOLDER`, or the folder's own name.

    Raises:
        InputError: for a name that stands twice, or none.
    """
    runs: dict[str, Path] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        path = Path(folder if equals else each)
        name = name if equals else path.resolve().name
        if not name or name in runs:
            raise InputError(f"runs must have names of their own; got {name!r} for {path}. Write NAME={path}.")
        runs[name] = path
    return runs


def serve(runs: Sequence[str], config: ServeConfig, device: str = "auto") -> None:
    """Serve trained runs until the process is told to stop; what was begun is finished then.

    Args:
        runs: folders, or `NAME=FOLDER`.
        config: where and how.
        device: on what the models compute.

    Raises:
        InputError: for a run or an address that cannot be used.
    """
    _check_installed()
    threads = config.threads or torch.get_num_threads()
    # A process that has computed on several threads cannot be forked: theirs would be missing in the child.
    torch.set_num_threads(1)
    opened = {name: open_run(folder) for name, folder in named_runs(runs).items()}
    check_device(device)
    listening = _listening(config)
    host, port = listening.getsockname()[:2]
    _log.info("serving %s on http://%s:%d", ", ".join(opened), f"[{host}]" if ":" in host else host, port)
    if not config.token and host not in ("127.0.0.1", "::1"):
        _log.warning("whoever reaches %s may ask: set HEADWISE_TOKEN to a token that requests must bear", host)

    def work() -> None:
        _work(opened, config, listening, max(1, threads // config.workers), device)

    with sharing():
        _Supervisor(work, config.workers, listening).run()


def _check_installed() -> None:
    for module in ("fastapi", "uvicorn", "httptools"):
        need(module, "serve")
    # Workers import this one: on import it looks whether they are to count together, which is not yet settled here.
    if find_spec("prometheus_client") is None:
        need("prometheus_client", "serve")


def _listening(config: ServeConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name, such as `a..b`
        told = f"{config.host}:{config.port} ({getattr(error, 'strerror', error)})"
        raise InputError(f"`host` and `port` must be free to listen on; got {told}. Choose others.") from error


def _work(opened: dict[str, Run], config: ServeConfig, listening: socket.socket, threads: int, device: str) -> None:
    """Be a worker."""
    import uvicorn

    torch.set_num_threads(threads)
    sys.setswitchinterval(_SWITCH)
    limits = config.limits
    models = {name: served(name, run, _runtime(run, device), limits) for name, run in opened.items()}
    settings = uvicorn.Config(
        application(models, config),
        http=patient(_protocol(), limits.patience),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.deadline + limits.patience) + 1,
    )
    uvicorn.Server(settings).run(sockets=[listening])


def _runtime(run: Run, device: str) -> Runtime:
    return start(device, run.config.training.precision)


def _protocol() -> Callable[..., object]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    return HttpToolsProtocol


class _Supervisor:
    """Keep so many children alive until a signal ends them all."""

    def __init__(self, work: Callable[[], None], count: int, listening: socket.socket) -> None:
        self._work, self._count, self._listening = work, count, listening
        self._born: dict[int, float] = {}
        self._ending = False
        self._stillborn = 0

    def run(self) -> None:
        """Fork the workers, and wait until they have ended; none outlives this, whatever goes wrong.

        Raises:
            HeadwiseError: where workers cannot be made, or do not live.
        """
        before = {number: signal.signal(number, self._end) for number in _ENDS}
        try:
            for _ in range(self._count):
                self._fork()
            while self._born:
                self._wait()
        finally:
            self._end()
            with suppress(ChildProcessError):  # where somebody else has seen them end
                while self._born:
                    self._wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        self._ending = True
        self._listening.close()  # so that nobody is let in whom no worker will answer
        for pid in self._born:
            with suppress(ProcessLookupError):  # it may have ended just now
                os.kill(pid, signal.SIGTERM)

    def _fork(self) -> None:
        sys.stdout.flush()
        # Signals wait in the child until its own handlers are set: ours would take one for itself, and it would live.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        try:
            pid = os.fork()
            if pid == 0:
                self._live(mask)
        except OSError as error:
            told = f"a worker must find room in the system; got: {error.strerror}. Set fewer `--workers`."
            raise HeadwiseError(told) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._born[pid] = time.monotonic()
        if self._ending:
            os.kill(pid, signal.SIGTERM)

    def _live(self, mask: Iterable[int]) -> NoReturn:
        """Be the child, and end with its work."""
        status = 1
        try:
            for number in _ENDS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._work()
            status = 0
        finally:
            if status:
                traceback.print_exc()  # what `os._exit` would keep to itself
            logging.shutdown()
            os._exit(status)

    def _wait(self) -> None:
        pid, status = os.wait()
        if pid not in self._born:
            return
        lived = time.monotonic() - self._born.pop(pid)
        forget(pid)
        if self._ending:
            return
        _log.warning("worker %d ended (%s); another takes its place", pid, _told(status))
        self._stillborn = self._stillborn + 1 if lived < _BREATH else 0
        if self._stillborn == _TRIES:
            told = f"{_TRIES} one after the other that ended within {_BREATH} s"
            raise HeadwiseError(f"a worker must live to answer; got {told}. See what they wrote above.")
        if lived < _BREATH:
            time.sleep(_BREATH)
        self._fork()


def _told(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {each.value: each.name for each in signal.Signals}.get(number, f"signal {number}")  # some have no name
    return f"exit code {os.waitstatus_to_exitcode(status)}"
