"""Deadlines of tasks, which share one timer of the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_clock import run_virtually

from plaid_relay_async.deadlines import Deadline, DeadlineTimer


def create_timer() -> DeadlineTimer:
    return DeadlineTimer(asyncio.get_running_loop())


async def test_a_task_that_exceeds_its_deadline_gets_a_timeout_error():
    """As with asyncio.timeout, the error is a TimeoutError, and the task isn't left as cancelled."""
    timer = create_timer()
    with pytest.raises(TimeoutError), Deadline(timer, timer.loop.time() + 0.01):
        await asyncio.sleep(10)
    assert asyncio.current_task().cancelling() == 0


async def test_an_expired_deadline_cannot_be_entered():
    """Entering it raises a TimeoutError before the body runs."""
    timer, done = create_timer(), []
    with pytest.raises(TimeoutError), Deadline(timer, timer.loop.time()):
        done.append(1)
    assert done == []


@pytest.mark.parametrize("late", [False, True])
async def test_another_cancellation_is_not_turned_into_a_timeout(late):
    """This also holds if the deadline expires in the same iteration of the event loop."""
    timer = create_timer()
    deadline = Deadline(timer)

    async def work() -> None:
        with deadline:
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if late:
        deadline.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_is_not_replaced():
    """An error that the body raises after the deadline has expired is raised unchanged."""
    timer = create_timer()
    with pytest.raises(ValueError, match="mine"), Deadline(timer, timer.loop.time() + 0.2):
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("mine")
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.may_block
async def test_a_deadline_can_be_postponed_at_the_last_moment():
    """A blocked loop finds a deadline late, then runs what postpones it; the new deadline applies."""
    timer = create_timer()
    started_at = timer.loop.time()
    timer.loop.call_at(started_at + 0.01, time.sleep, 0.05)
    with pytest.raises(TimeoutError), Deadline(timer, started_at + 60) as deadline:
        deadline.set_timeout(0.02)
        timer.loop.call_at(started_at + 0.03, deadline.set_timeout, 0.1)
        await asyncio.sleep(10)
    assert timer.loop.time() - started_at > 0.15


@given(
    st.lists(
        st.tuples(*[st.integers(1, 50)] * 2, st.lists(st.tuples(*[st.integers(1, 50)] * 2), max_size=3)),
        min_size=1,
        max_size=12,
    )
)
def test_each_deadline_expires_at_its_own_time(tasks):
    """A task is cancelled if, and only if, it isn't done by its latest deadline, however often that changes."""

    async def run(
        timer: DeadlineTimer, first_timeout: int, work: int, steps: list[tuple[int, int]]
    ) -> tuple[float, bool]:
        started_at, due = timer.loop.time(), float(first_timeout)
        try:
            with Deadline(timer, started_at + 1_000) as deadline:
                deadline.set_timeout(first_timeout)
                for seconds, timeout in steps:
                    await asyncio.sleep(seconds + 0.5)
                    due = timer.loop.time() - started_at + timeout
                    deadline.set_timeout(timeout)
                await asyncio.sleep(work + 0.5)
        except TimeoutError:
            return timer.loop.time() - started_at - due, True
        return timer.loop.time() - started_at - due, False

    async def main() -> None:
        timer = create_timer()
        for over, late in await asyncio.gather(*(run(timer, *each) for each in tasks)):
            assert abs(over) < 0.01 if late else over < 0

    run_virtually(main())


class TimerCountingLoop(asyncio.SelectorEventLoop):
    timers = 0

    def call_at(self, *args, **kwargs):
        self.timers += 1
        return super().call_at(*args, **kwargs)


def test_all_deadlines_share_one_timer():
    """A thousand deadlines that don't expire need one timer of the event loop."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        timer = create_timer()

        async def work() -> None:
            with Deadline(timer, loop.time() + 60) as deadline:
                await asyncio.sleep(0)
                deadline.set_timeout(120)

        await asyncio.gather(*(work() for _ in range(1_000)))
        timer.close()
        return loop.timers

    with asyncio.Runner(loop_factory=TimerCountingLoop) as runner:
        assert runner.run(main()) == 1


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_a_closed_timer_applies_active_deadlines_and_then_stops(closed):
    """A closed client leaves no timer in the loop, but deadlines of calls in flight still expire."""
    timer = create_timer()

    async def work() -> None:
        with Deadline(timer, timer.loop.time() + 60) as deadline:
            deadline.set_timeout(0.01 if closed == "before" else 60)
            await asyncio.sleep(30 if closed == "before" else 0)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if closed == "before":
        timer.close()
        with pytest.raises(TimeoutError):
            await task
    else:
        await task
        timer.close()
    assert not [each for each in asyncio.get_running_loop()._scheduled if not each.cancelled()]
