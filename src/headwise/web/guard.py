"""Stand before the application: refuse what should not reach it, and drop what nobody waits for."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

from headwise.web.config import ServeConfig
from headwise.web.metrics import Metrics

__all__ = ["BUSY", "Guard", "Refusal"]

_log = logging.getLogger("headwise")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[Any, _Receive, _Send], Awaitable[None]]

_OPEN = ("/health", "/ready", "/")
"""Paths that need no token, beside the page's own files: they tell nothing of models or texts."""
_KNOWN = (*_OPEN, "/metrics", "/openapi.json", "/v1/models", "/v1/predict", "/v1/explain", "/v1/view")
_PAGE = "/page/"
_HERE = ("localhost", "127.0.0.1", "[::1]")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
BUSY = "a request must find room; got a full service. Try again in a second."
_DRAINED = 16
"""Bodies that are too long are read up to so many times the limit, so that clients get to see the answer."""


class Refusal(NamedTuple):
    """Hold an answer that is no result."""

    status: int
    """Status of HTTP."""
    detail: str
    """What was wrong, and what to do."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What else the answer says."""


class _GoneError(Exception):
    """Say that the client has gone."""


class Guard:
    """Check host, origin, token and body of each request before the application sees it.

    Args:
        app: the application.
        config: whom to let in, and with how much.
        metrics: where requests are counted.
        full: tells whether there is no room for a request.
    """

    def __init__(self, app: _App, config: ServeConfig, metrics: Metrics, full: Callable[[], bool]) -> None:
        self._app, self._limits, self._metrics, self._full = app, config.limits, metrics, full
        hosts = [name.lower() for name in (*_HERE, config.host, *config.hosts)]
        self._hosts = {*hosts, *(f"[{name}]" for name in hosts if ":" in name)}
        self._bearer = f"Bearer {config.token}".encode() if config.token else b""
        self._last_refusal = -math.inf

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500  # what the server answers where nothing else does

        async def told(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            await self._answer(scope, receive, told)
        except _GoneError:
            status = 499
        finally:  # what has answered with a 500 goes on as an error, for the server to log
            self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: Any, status: int, seconds: float) -> None:
        path = scope["path"]
        path = path if path in _KNOWN else _PAGE if path.startswith(_PAGE) else "other"
        self._metrics.requests.labels(path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        if status >= 400:
            _log.info("%s %s %d after %.0f ms", scope["method"][:10], path, status, 1e3 * seconds)

    async def _answer(self, scope: Any, receive: _Receive, send: _Send) -> None:
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST" and self._full():
            await self._turn()
            if self._full():
                refusal = Refusal(503, BUSY, ((b"retry-after", b"1"),))
        if refusal is None and _has_body(scope):
            found = await self._body(receive)
            if isinstance(found, bytes):
                await _unless_gone(self._app, scope, found, receive, send)
                return
            refusal = found
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(send, refusal)

    async def _turn(self) -> None:
        """Wait until a full service may refuse one more request."""
        now = time.monotonic()
        free = max(now, self._last_refusal + 1 / self._limits.refusals)
        self._last_refusal = min(free, now + self._limits.deadline)
        await asyncio.sleep(self._last_refusal - now)

    def _refusal(self, scope: Any) -> Refusal | None:
        """Tell why a request is refused by its head alone."""
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if _without_port(host) not in self._hosts:
            return Refusal(400, "Host must be a name of this service; got another. Serve with --allow-host NAME.")
        if scope["method"] not in ("GET", "HEAD") and any(_origin(each) != host for each in origins):
            return Refusal(403, "requests must come from this service's own page; got another Origin. Send none.")
        path = scope["path"]
        if self._bearer and path not in _OPEN and not path.startswith(_PAGE):
            given = _headers(scope, b"authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0], self._bearer):
                told = "Authorization must be `Bearer` with the token of this service; got none or another. Send it."
                return Refusal(401, told, ((b"www-authenticate", b"Bearer"),))
        return None

    async def _body(self, receive: _Receive) -> bytes | Refusal:
        """Read a body whole, or tell why it is refused."""
        parts, size, most = [], 0, self._limits.body
        try:
            async with asyncio.timeout(self._limits.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    size += len(message.get("body", b""))
                    if size <= most:
                        parts.append(message.get("body", b""))
                    if not message.get("more_body") or size > _DRAINED * most:
                        break
        except TimeoutError:
            told = f"a body must arrive within {self._limits.patience:g} seconds; got a part. Send it faster."
            return Refusal(408, told, ((b"connection", b"close"),))
        if size > most:
            told = f"a body must have at most {most} bytes; got more. Send fewer texts at a time."
            return Refusal(413, told, ((b"connection", b"close"),))
        return b"".join(parts)


def _headers(scope: Any, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


def _has_body(scope: Any) -> bool:
    return scope["method"] == "POST" or any(
        name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
    )


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _origin(origin: bytes) -> str:
    return origin.decode("latin-1").lower().partition("://")[2]


async def _unless_gone(app: _App, scope: Any, body: bytes, receive: _Receive, send: _Send) -> None:
    """Have the application answer, and cancel that when the client goes away."""
    left = [body]

    async def replay() -> _Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("waits for ever: the guard watches the client")

    answering = asyncio.ensure_future(app(scope, replay, send))
    watching = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise _GoneError
        answering.result()
    finally:
        await _cancel((answering, watching))


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse(send: _Send, refusal: Refusal) -> None:
    body = json.dumps({"detail": refusal.detail}).encode()
    told = (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": refusal.status, "headers": [*told, *refusal.headers]})
    await send({"type": "http.response.body", "body": body})
