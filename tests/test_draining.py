"""An attempt whose task is cancelled finishes if it is in flight, and is cancelled otherwise."""

from __future__ import annotations

import asyncio

import pytest

from plaid_relay_async.cancellation import Draining, DrainTracker


class Sent:
    def __init__(self, *, in_flight: bool) -> None:
        self.in_flight = in_flight


async def drained(work, *, in_flight: bool) -> str:
    draining = Draining(work, Sent(in_flight=in_flight), 10, DrainTracker())
    try:
        return await draining
    finally:
        if draining.deferred_cancellation is not None:
            raise draining.deferred_cancellation


@pytest.mark.parametrize("in_flight", [False, True])
async def test_an_attempt_that_yields_without_a_future_drains(in_flight):
    """An attempt that yields to the event loop without a future drains like one that waits."""
    ended = []

    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(True)

    task = asyncio.create_task(drained(work(), in_flight=in_flight))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == [True] * in_flight


async def test_an_attempt_that_is_cancelled_waits_for_its_own_task_to_end():
    """A task that the attempt awaits is cancelled, and its end is waited for."""
    ended = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def work() -> None:
        await asyncio.create_task(slow())

    task = asyncio.create_task(drained(work(), in_flight=False))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), ended) == (True, [True])


async def test_a_result_is_kept_if_a_cancellation_arrives_in_the_same_iteration():
    """A cancellation in the same iteration of the event loop doesn't discard a result."""
    future = asyncio.get_running_loop().create_future()

    async def work() -> str:
        results.append(await future)

    results: list[str] = []
    task = asyncio.create_task(drained(work(), in_flight=True))
    await asyncio.sleep(0)
    future.set_result("response")
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), results) == (True, ["response"])
