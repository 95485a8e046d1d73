"""Work of many requests is computed together; what nobody waits for is not."""

import asyncio
import threading

import pytest

from headwise.web.batching import Batcher, FullError, LateError
from headwise.web.config import Limits
from headwise.web.metrics import Metrics
from headwise.web.work import StoppedError, Work


class Doubling:
    """Doubles numbers, and remembers what it was given; it waits at a gate where there is one."""

    def __init__(self, *, gated=False):
        self.batches, self.gate, self.began = [], threading.Event(), threading.Event()
        self.heeds, self.stopped = True, threading.Event()  # whether it stops when told so, and that it did
        if not gated:
            self.gate.set()

    def compute(self, payloads, stopped):
        self.batches.append(list(payloads))
        self.began.set()
        while not self.gate.wait(0.005):
            if self.heeds and stopped():
                self.stopped.set()
                raise StoppedError
        if "broken" in payloads:
            raise ValueError("broken")
        return [2 * number for number in payloads]


def work(group, number, rows=1, longest=1):
    return Work(group, number, rows, longest)


def within(scenario, **limits):
    """Run a scenario with a batcher."""

    async def whole():
        batcher = Batcher(Limits(**limits), Metrics())
        try:
            return await scenario(batcher)
        finally:
            await batcher.close()

    return asyncio.run(whole())


async def behind_a_gate(batcher, group, works):
    """Submit works while the first is held at the gate."""
    first = asyncio.ensure_future(batcher.do(work(group, 0)))
    await asyncio.to_thread(group.began.wait)
    others = [asyncio.ensure_future(batcher.do(each)) for each in works]
    await asyncio.sleep(0)
    return first, others


def test_what_gathers_meanwhile_is_computed_together():
    group = Doubling(gated=True)

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, i) for i in range(1, 6)])
        group.gate.set()
        return await asyncio.gather(first, *others)

    assert within(scenario) == [0, 2, 4, 6, 8, 10]
    assert group.batches == [[0], [1, 2, 3, 4, 5]]


def test_a_batch_keeps_to_its_budget_of_padded_tokens():
    group = Doubling(gated=True)
    works = [work(group, 1, longest=10), work(group, 2, longest=20), work(group, 3, longest=30), work(group, 4)]

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, works)
        group.gate.set()
        await asyncio.gather(first, *others)

    within(scenario, batch_tokens=60)
    assert group.batches == [[0], [1, 2], [3, 4]]


def test_work_of_other_kinds_waits_its_turn():
    group, other = Doubling(gated=True), Doubling()

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1), work(other, 2), work(group, 3)])
        group.gate.set()
        return await asyncio.gather(first, *others)

    assert within(scenario) == [0, 2, 4, 6]
    assert (group.batches, other.batches) == ([[0], [1, 3]], [[2]])


def test_a_full_queue_refuses():
    group = Doubling(gated=True)

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1), work(group, 2)])
        with pytest.raises(FullError):
            await batcher.do(work(group, 3))
        group.gate.set()
        return await asyncio.gather(first, *others)

    assert within(scenario, queue=3) == [0, 2, 4], "one that is computed and two that wait"


def test_what_is_late_is_dropped_from_the_queue_and_stopped_on_the_way():
    group = Doubling(gated=True)
    group.heeds = False  # until the other is late too, else that would come next

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1)])
        with pytest.raises(LateError):
            await first
        with pytest.raises(LateError):
            await others[0]
        group.heeds = True
        assert await asyncio.to_thread(group.stopped.wait, 30)
        group.gate.set()
        return await batcher.do(work(group, 5))

    assert within(scenario, deadline=0.3) == 10
    assert group.batches == [[0], [5]]


def test_whoever_goes_takes_the_work_along():
    group = Doubling(gated=True)

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1), work(group, 2)])
        others[0].cancel()
        await asyncio.sleep(0)
        group.gate.set()
        return await asyncio.gather(first, others[1])

    assert within(scenario) == [0, 4]
    assert group.batches == [[0], [2]]


def test_what_is_broken_fails_alone():
    group = Doubling(gated=True)

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1), work(group, "broken"), work(group, 3)])
        group.gate.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    *_, two, broken, three = within(scenario)
    assert (two, three, str(broken)) == (2, 6, "broken")


class Wrong:
    """Does wrong in one way, whatever it is given."""

    def __init__(self, way):
        self.way = way

    def compute(self, payloads, stopped):
        return self.way(payloads)


WAYS = {
    "too few": lambda payloads: payloads[1:],
    "too many": lambda payloads: [*payloads, 0],
    "nothing": lambda payloads: None,
    "no end": lambda payloads: next(iter(())),
    "an error": lambda payloads: 1 / 0,
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_group_does_wrong_fails_its_own_work_alone(way):
    group, wrong = Doubling(), Wrong(WAYS[way])

    async def scenario(batcher):
        failed = [batcher.do(work(wrong, number)) for number in range(3)]
        failed = await asyncio.gather(*failed, return_exceptions=True)
        return failed, batcher.lives, await batcher.do(work(group, 2))

    failed, lives, answer = within(scenario, deadline=2.0)
    assert {type(each) for each in failed} <= {RuntimeError, TypeError, ZeroDivisionError}
    assert (len(failed), lives, answer) == (3, True, 4)


def test_what_waits_is_finished_before_the_end():
    group = Doubling(gated=True)

    async def scenario(batcher):
        first, others = await behind_a_gate(batcher, group, [work(group, 1)])
        ending = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(FullError):
            await batcher.do(work(group, 2))
        group.gate.set()
        await ending
        return await asyncio.gather(first, *others)

    assert within(scenario) == [0, 2]
