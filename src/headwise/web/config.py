"""Hold the settings of a service."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from headwise.web.work import TILE

__all__ = ["Limits", "ServeConfig"]


@dataclass(frozen=True)
class Limits:
    """Say how much a client may ask, and how long anything may take."""

    body: int = 1_000_000
    """Most bytes of a request's body; more is refused with 413."""
    texts: int = 64
    """Most texts of a request; more is refused with 422, as with all that follows."""
    characters: int = 20_000
    """Most characters of a text."""
    beams: int = 8
    """Most beams of a search."""
    occlusions: int = 48
    """Most pieces that are masked one by one in a text; in a longer one each piece has several words."""
    cells: int = 256
    """Most cells a side of a head's map."""
    queue: int = 256
    """Most requests that wait or are computed in a worker; one more is refused with 503."""
    refusals: int = 20
    """Most such refusals a second, the rest wait: clients that ask again at once would else take the others' time."""
    deadline: float = 10.0
    """Seconds after which a request is given up with 504, and its work with it."""
    patience: float = 10.0
    """Seconds in which the head of a request, and then its body, has to arrive."""
    batch_tokens: int = 2048
    """Most padded tokens that are computed together."""
    linger: float = 0.002
    """Seconds that a batch waits for company, while there is any."""

    def problems(self) -> Iterator[str]:
        """Tell what no service can have, a line each."""
        counts = ("body", "texts", "characters", "beams", "occlusions", "cells", "queue", "refusals", "batch_tokens")
        for name in counts:
            least = TILE if name == "cells" else 1
            if (value := getattr(self, name)) < least:
                yield f"`{name}` must be at least {least}; got {value}. Leave it out for the default."
        for name in ("deadline", "patience"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                yield f"`{name}` must be above 0 seconds; got {value}. 10 is usual."
        if not 0 <= self.linger <= 1:
            yield f"`linger` must be from 0 to 1 second; got {self.linger}. 0.002 is usual."


@dataclass(frozen=True)
class ServeConfig:
    """Say where and how models are served."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine alone."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    workers: int = 1
    """Processes that answer; each computes on its own share of the threads, and all share one copy of the weights."""
    threads: int = 0
    """Threads of all workers together; 0 for as many as PyTorch would take."""
    hosts: tuple[str, ...] = ()
    """Names besides those of this machine that a request's Host may have."""
    token: str = field(default="", repr=False)
    """What a request has to bear in its Authorization; anyone may ask where it is empty."""
    log_texts: bool = False
    """Whether texts are written to the log."""
    limits: Limits = field(default_factory=Limits)
    """How much a client may ask."""

    def problems(self) -> Iterator[str]:
        """Tell what no service can have, a line each."""
        if not 0 <= self.port < 65536:
            yield f"`port` must be from 0 to 65535; got {self.port}. 8000 is usual."
        if self.workers < 1:
            yield f"`workers` must be at least 1; got {self.workers}. One for two cores is usual."
        if self.threads < 0:
            yield f"`threads` must be at least 0; got {self.threads}. 0 takes all."
        if not self.token.isascii() or any(letter.isspace() for letter in self.token):
            yield "`token` must be of ASCII letters without spaces; got others. Draw it with `openssl rand -hex 32`."
