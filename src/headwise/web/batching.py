"""Compute the work of many requests together, in one thread, from a queue that has an end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from headwise.web.config import Limits
from headwise.web.metrics import Metrics
from headwise.web.work import Work

__all__ = ["Batcher", "FullError", "LateError"]


class FullError(Exception):
    """Say that too many requests wait already, or that the service is about to end."""


class LateError(Exception):
    """Say that the work of a request was not done in time."""


class _Job:
    """Hold work that somebody waits for."""

    def __init__(self, work: Work, result: asyncio.Future[Any]) -> None:
        self.work, self.result = work, result

    def gone(self) -> bool:
        """Tell whether nobody waits any more."""
        return self.result.cancelled()

    def settle(self, outcome: Any) -> None:
        """Give a result, or what went wrong, to whoever still waits."""
        if self.result.done():
            return
        if isinstance(outcome, BaseException):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)


class Batcher:
    """Queue work, and compute what is alike together, up to a budget of padded tokens.

    While a batch is computed, requests gather for the next, so a busy service needs no waiting to fill its batches. One
    that had company lingers a moment for more of it.

    Args:
        limits: how much may wait, for how long, and how much is computed together.
        metrics: what is told of it.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._waiting: deque[_Job] = deque()
        self._awake = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headwise-model")
        self._unsettled = 0
        self._closing = False
        self._loop = asyncio.create_task(self._serve())

    @property
    def full(self) -> bool:
        """Tell whether no more work is taken."""
        return self._closing or not self.lives or self._unsettled >= self._limits.queue

    @property
    def lives(self) -> bool:
        """Tell whether anything is computed; where not, nothing will be any more."""
        return not self._loop.done()

    async def do(self, work: Work) -> Any:
        """Wait for the result of some work; whoever stops waiting takes the work out of the queue.

        Raises:
            FullError: when there is no room, or the service is about to end.
            LateError: when the deadline passes; what computes for nobody else stops as soon as it can.
        """
        if self.full:
            raise FullError
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._unsettled += 1
        self._metrics.waiting.inc()
        self._awake.set()
        try:
            async with asyncio.timeout(self._limits.deadline):
                return await job.result
        except TimeoutError:
            raise LateError from None
        finally:
            job.result.cancel()
            self._unsettled -= 1
            self._drop(job)

    async def close(self) -> None:
        """Take no more work, finish what waits, and end the thread."""
        self._closing = True
        self._awake.set()
        await self._loop
        self._pool.shutdown()

    def _drop(self, job: _Job) -> None:
        with suppress(ValueError):
            self._waiting.remove(job)
            self._metrics.waiting.dec()

    async def _serve(self) -> None:
        company = False
        while not (self._closing and not self._waiting):
            if not self._waiting:
                self._awake.clear()
                await self._awake.wait()
                continue
            if company and self._limits.linger:
                await asyncio.sleep(self._limits.linger)
            batch = self._take()
            company = len(batch) > 1
            if batch:
                await self._compute(batch)

    def _take(self) -> list[_Job]:
        """Take the work that has waited longest, and what is alike, as long as the budget holds."""
        batch: list[_Job] = []
        rows = longest = 0
        for job in list(self._waiting):
            work = job.work
            if batch and work.group != batch[0].work.group:
                continue
            rows, longest = rows + work.rows, max(longest, work.longest)
            if batch and rows * longest > self._limits.batch_tokens:
                break
            batch.append(job)
            self._drop(job)
        return batch

    async def _compute(self, batch: Sequence[_Job]) -> None:
        """Compute a batch; where that fails, its jobs one by one, so that only what cannot be done fails."""
        self._metrics.batch.observe(sum(job.work.rows for job in batch))
        computing = asyncio.get_running_loop().run_in_executor(self._pool, _results, batch)
        await asyncio.wait([computing])
        error = computing.exception()
        if error is None:
            for job, result in zip(batch, computing.result(), strict=True):
                job.settle(result)
        elif len(batch) == 1:
            batch[0].settle(error)
        else:
            for job in batch:
                await self._compute([job])


def _results(batch: Sequence[_Job]) -> list[Any]:
    """Compute a batch in the thread, where all that a group does wrong becomes the outcome of its jobs."""
    group = batch[0].work.group
    told = f"`compute` of {type(group).__name__} must give a result for each of {len(batch)} payloads"
    try:
        found = list(group.compute([job.work.payload for job in batch], lambda: all(job.gone() for job in batch)))
    except StopIteration as error:  # a future takes every error but this one, and would wait for ever
        raise RuntimeError(f"{told}; got StopIteration. Mend it.") from error
    if len(found) != len(batch):
        raise RuntimeError(f"{told}; got {len(found)}. Mend it.")
    return found
