"""Answer requests over HTTP: what models say of texts, how they come to it, and how the service is."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from headwise.contracts.layout import HeadId
from headwise.errors import InputError
from headwise.recipes.batches import checked_texts
from headwise.web import schemas
from headwise.web.batching import Batcher, FullError, LateError
from headwise.web.config import ServeConfig
from headwise.web.guard import BUSY, Guard
from headwise.web.metrics import Metrics
from headwise.web.work import TILE, HeadView, Served, TextReport, Writing

__all__ = ["Api", "application"]

_Made = TypeVar("_Made")

_SHORT = 2_000
"""Letters of a request that are read at once: to hand them to a thread takes longer, and halves the rate."""

_log = logging.getLogger("headwise")

_WRONG = {status: {"model": schemas.Problem} for status in (400, 401, 403, 408, 413, 422, 503, 504)}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ABOUT = "Answers of trained models, the words that mattered, and what every head does."


class Api:
    """Answer the requests of clients.

    Args:
        models: by name, the first one for those who name none.
        config: limits, and whether texts are logged.
        metrics: where work is counted.
    """

    def __init__(self, models: Mapping[str, Served], config: ServeConfig, metrics: Metrics) -> None:
        self._models, self._config, self._metrics = models, config, metrics
        self._batcher: Batcher | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._reads = threading.Lock()  # a tokenizer is changed by its calls, and can be shared

    @asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Take requests, and at the end finish what waits."""
        with ThreadPoolExecutor(1, thread_name_prefix="headwise-reader") as self._reader:
            self._batcher = Batcher(self._config.limits, self._metrics)
            yield
            batcher, self._batcher = self._batcher, None
            await batcher.close()

    def full(self) -> bool:
        """Tell whether no request is taken."""
        return self._batcher is None or self._batcher.full

    async def predict(self, body: schemas.PredictRequest) -> Any:
        """Answer for texts."""
        limits = self._config.limits
        if not 1 <= len(body.texts) <= limits.texts:
            raise InputError(f"`texts` must be 1 to {limits.texts}; got {len(body.texts)}. Send several requests.")
        if not 1 <= body.n_best <= limits.beams or not 1 <= (body.beams or 1) <= limits.beams or body.beams == 0:
            told = f"`beams` and `n_best` must be 1 to {limits.beams}"
            raise InputError(f"{told}; got {body.beams} and {body.n_best}. Ask for fewer.")
        model, writing = self._model(body.model), Writing(body.beams, body.n_best, body.align)
        plan = partial(model.predict, body.texts, _heads(body.off), writing, cut=body.cut)
        return await self._report(model, body.texts, plan)

    async def explain(self, body: schemas.ExplainRequest) -> Any:
        """Show the words that mattered for an answer, and the heads that looked at them."""
        model = self._model(body.model)
        return await self._report(model, [body.text], partial(model.explain, body.text, _heads(body.off)))

    async def view(self, body: schemas.ViewRequest) -> Any:
        """Show what one head does on a text: its strongest links, and a tile of its map."""
        limits, side = self._config.limits, 2 ** min(max(body.zoom, 0), 30)
        if body.zoom < 0 or TILE * side > limits.cells:
            raise InputError(f"a map must have at most {limits.cells} cells a side; got zoom {body.zoom}. Zoom out.")
        if not (0 <= body.row < side and 0 <= body.column < side):
            told = f"{body.row} and {body.column}"
            raise InputError(f"`row` and `column` must be 0 to {side - 1} at this zoom; got {told}. Choose a tile.")
        (head,), model = _heads([body.head]), self._model(body.model)
        view = HeadView(head, body.zoom, body.row, body.column)
        return await self._report(model, [body.text], partial(model.view, body.text, _heads(body.off), view))

    async def models(self) -> Any:
        """List the models, their heads, and the limits."""
        return {"models": [model.about() for model in self._models.values()], "limits": asdict(self._config.limits)}

    async def health(self) -> Any:
        """Tell that the process answers."""
        return {"status": "ok"}

    async def ready(self) -> Any:
        """Tell that requests are taken."""
        if self._batcher is None or not self._batcher.lives:
            raise FullError
        return {"status": "ready"}

    def _check(self, texts: Sequence[str]) -> None:
        most = self._config.limits.characters
        if (longest := max(map(len, texts))) > most:
            raise InputError(f"a text must have at most {most} characters; got {longest}. Send its parts.")
        checked_texts(texts)
        if self._config.log_texts:
            _log.info("texts: %r", texts)

    def _model(self, name: str | None) -> Served:
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise InputError(f"`model` must be one of {', '.join(self._models)}; got {name[:80]!r}. See /v1/models.")
        return self._models[name]

    async def _report(self, model: Served, texts: Sequence[str], plan: Callable[[], TextReport]) -> Any:
        """Do what is planned for texts: read them, compute, and spell out what was written."""
        if self._batcher is None:
            raise FullError

        def planned() -> TextReport:
            self._check(texts)
            return plan()

        short = sum(map(len, texts)) <= _SHORT
        try:
            async with asyncio.timeout(self._config.limits.deadline):
                report = await self._read(planned, short=short)
                results = await _results(self._batcher, report)
                return {"model": model.name, **await self._read(partial(report.join, *results), short=short)}
        except TimeoutError:
            raise LateError from None

    async def _read(self, made: Callable[[], _Made], *, short: bool) -> _Made:
        """Do what a tokenizer has a part in: short texts at once, long ones beside the event loop."""
        if short and self._reads.acquire(blocking=False):
            try:
                return made()
            finally:
                self._reads.release()

        def alone() -> _Made:
            with self._reads:
                return made()

        return await asyncio.get_running_loop().run_in_executor(self._reader, alone)


async def _results(batcher: Batcher, report: TextReport) -> list[Any]:
    tasks = [asyncio.ensure_future(batcher.do(work)) for work in report.works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _heads(names: Sequence[schemas.HeadName]) -> list[HeadId]:
    return [HeadId(name.place, name.head) for name in names]


def application(models: Mapping[str, Served], config: ServeConfig) -> Guard:
    """Build the ASGI application that serves models.

    Args:
        models: by name.
        config: how they are served.
    """
    from fastapi import FastAPI

    metrics = Metrics()
    api = Api(models, config, metrics)
    app = FastAPI(
        title="headwise",
        version=version("headwise"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=api.running,
        responses=_WRONG,  # type: ignore[arg-type]
    )
    _add_routes(app, api, metrics)
    _add_page(app)
    _add_problems(app)
    schemas.limited(app.openapi(), config.limits, models)  # FastAPI keeps the document that it has made
    return Guard(app, config, metrics, api.full)


def _add_routes(app: Any, api: Api, metrics: Metrics) -> None:
    from fastapi import Response

    app.post("/v1/predict", response_model=schemas.Predicted)(api.predict)
    app.post("/v1/explain", response_model=schemas.Explained)(api.explain)
    app.post("/v1/view", response_model=schemas.Viewed)(api.view)
    app.get("/v1/models", response_model=schemas.Models)(api.models)
    app.get("/health", response_model=schemas.State)(api.health)
    app.get("/ready", response_model=schemas.State)(api.ready)

    def counters() -> Any:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.get("/metrics", include_in_schema=False)(counters)


def _add_page(app: Any) -> None:
    """Serve the page from the package: each file by its name, so that no path from outside is ever opened."""
    from fastapi import Response

    for file in files("headwise.web").joinpath("page").iterdir():
        kind = _KINDS[Path(file.name).suffix]
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        app.get(path, include_in_schema=False)(_always(partial(Response, file.read_bytes(), media_type=kind)))


def _always(made: Callable[[], Any]) -> Callable[[], Any]:
    async def answer() -> Any:
        return made()

    return answer


def _add_problems(app: Any) -> None:
    """Answer every kind of failure in one form.

    Of what the client sent it repeats numbers, and names cut where they are long: of a model, a layer, a field that is
    not known. Of a text it repeats only the beginning of one that is no Unicode.
    """
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def handler(status: int, told: Callable[[Any], str], headers: Mapping[str, str] | None = None) -> Any:
        async def answer(_: Any, error: Any) -> JSONResponse:
            more = headers or getattr(error, "headers", None)  # such as the methods that are allowed
            return JSONResponse({"detail": told(error)}, getattr(error, "status_code", status), more)

        return answer

    late = "a request must be done within its deadline; got none left. Send less at a time."
    app.add_exception_handler(RequestValidationError, handler(422, _misfits))
    app.add_exception_handler(HTTPException, handler(400, lambda error: str(error.detail)))
    app.add_exception_handler(InputError, handler(422, str))
    app.add_exception_handler(FullError, handler(503, lambda _: BUSY, {"Retry-After": "1"}))
    app.add_exception_handler(LateError, handler(504, lambda _: late))
    app.add_exception_handler(Exception, handler(500, lambda _: "the service must not fail; it did. See its log."))


def _misfits(error: Any) -> str:
    """List what did not fit, a line each, by its place in the body and the rule."""
    lines = (f"{'.'.join(map(str, each['loc']))[:200]}: {each['msg'][:200]}" for each in error.errors()[:20])
    return "\n".join(lines).encode("utf-8", "replace").decode()
