"""The watch that ends what isn't over in time, with one timer for all."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_clock import run_virtually

from plaid_relay_async.deadlines import DeadlineTimer


def a_watch() -> DeadlineTimer:
    return DeadlineTimer(asyncio.get_running_loop())


async def test_what_is_not_over_in_time_ends_in_a_timeout():
    """As with asyncio's own timeout, the error is a TimeoutError, and the task isn't left as cancelled."""
    watch = a_watch()
    with pytest.raises(TimeoutError), watch.create_deadline(watch.loop.time() + 0.01):
        await asyncio.sleep(10)
    assert asyncio.current_task().cancelling() == 0


async def test_what_begins_too_late_does_not_begin():
    """A span whose deadline has gone by is refused before anything is done."""
    watch, done = a_watch(), []
    with pytest.raises(TimeoutError), watch.create_deadline(watch.loop.time()):
        done.append(1)
    assert done == []


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancellation_of_somebody_elses_stays_one(late):
    """Also where the time ran out in the same turn of the loop."""
    watch = a_watch()
    span = watch.create_deadline()

    async def work() -> None:
        with span:
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if late:
        span.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_its_own_is_not_replaced():
    """What is raised on the way out, when the time has run out, goes out as it is."""
    watch = a_watch()
    with pytest.raises(ValueError, match="mine"), watch.create_deadline(watch.loop.time() + 0.01):
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("mine")
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.may_block
async def test_who_is_put_off_at_the_last_moment_goes_on():
    """A loop that was held up finds a span late, then runs what puts it off; it ends when that is over, too."""
    watch = a_watch()
    began = watch.loop.time()
    watch.loop.call_at(began + 0.01, time.sleep, 0.05)
    with pytest.raises(TimeoutError), watch.create_deadline(began + 60) as span:
        span.set_timeout(0.02)
        watch.loop.call_at(began + 0.03, span.set_timeout, 0.1)
        await asyncio.sleep(10)
    assert watch.loop.time() - began > 0.15


@given(
    st.lists(
        st.tuples(*[st.integers(1, 50)] * 2, st.lists(st.tuples(*[st.integers(1, 50)] * 2), max_size=3)),
        min_size=1,
        max_size=12,
    )
)
def test_each_ends_at_its_own_time_and_no_other(spans):
    """Whatever the deadlines, and however they are put off: late is who isn't done by the last one it was given."""

    async def run(
        watch: DeadlineTimer, deadline: int, work: int, steps: list[tuple[int, int]]
    ) -> tuple[float, bool]:
        began, due = watch.loop.time(), float(deadline)
        try:
            with watch.create_deadline(began + 1_000) as span:
                span.set_timeout(deadline)
                for seconds, allowed in steps:
                    await asyncio.sleep(seconds + 0.5)
                    due = watch.loop.time() - began + allowed
                    span.set_timeout(allowed)
                await asyncio.sleep(work + 0.5)
        except TimeoutError:
            return watch.loop.time() - began - due, True
        return watch.loop.time() - began - due, False

    async def main() -> None:
        watch = a_watch()
        for over, late in await asyncio.gather(*(run(watch, *each) for each in spans)):
            assert abs(over) < 0.01 if late else over < 0

    run_virtually(main())


class Counting(asyncio.SelectorEventLoop):
    timers = 0

    def call_at(self, *args, **kwargs):
        self.timers += 1
        return super().call_at(*args, **kwargs)


def test_one_timer_does_for_all():
    """A thousand spans that are over in time take one timer."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        watch = a_watch()

        async def work() -> None:
            with watch.create_deadline(loop.time() + 60) as span:
                await asyncio.sleep(0)
                span.set_timeout(120)

        await asyncio.gather(*(work() for _ in range(1_000)))
        watch.close()
        return loop.timers

    with asyncio.Runner(loop_factory=Counting) as runner:
        assert runner.run(main()) == 1


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_a_watch_that_is_closed_ends_what_is_under_way_and_leaves_no_timer(closed):
    """A client that is closed leaves nothing in the loop, but calls of its that go on still end in time."""
    watch = a_watch()

    async def work() -> None:
        with watch.create_deadline(watch.loop.time() + 60) as span:
            span.set_timeout(0.01 if closed == "before" else 60)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if closed == "before":
        watch.close()
        with pytest.raises(TimeoutError):
            await task
    else:
        await task
        watch.close()
    assert not [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
