"""Count what a service does, for Prometheus, over all of its workers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Metrics", "forget", "sharing"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Hold the counters; workers share them by files where `PROMETHEUS_MULTIPROC_DIR` names a folder."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self._registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "headwise_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.seconds = prometheus.Histogram(
            "headwise_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("path",),
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.batch = prometheus.Histogram(
            "headwise_batch_rows",
            "Sequences that were computed together.",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.waiting = prometheus.Gauge(
            "headwise_waiting", "Requests that wait to be computed.", registry=registry, multiprocess_mode="livesum"
        )

    def text(self) -> bytes:
        """Write all counters in Prometheus' format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        shared: Any = self._registry
        if os.environ.get(_FOLDER):
            shared = CollectorRegistry()
            MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        written: bytes = generate_latest(shared)
        return written


@contextmanager
def sharing() -> Iterator[None]:
    """Let the processes that are forked meanwhile count together, in a folder; then all is as before."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix="headwise-") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER]
            if before is not None:
                os.environ[_FOLDER] = before


def forget(pid: int) -> None:
    """Drop what a worker that has ended says of the present; its counts stay."""
    folder = os.environ.get(_FOLDER)
    if folder:
        for path in Path(folder).glob(f"gauge_live*_{pid}.db"):
            with suppress(FileNotFoundError):
                path.unlink()
