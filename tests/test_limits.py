"""The rate limiter for one process: no window has too many permits, and nearly all of the limit is used."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CREATE, max_in_window
from virtual_clock import run_virtually

from plaid_relay_async import ConfigurationError
from plaid_relay_async.limits import (
    PLAID_PRODUCTION,
    PLAID_SANDBOX,
    InProcessLimiter,
    RateLimit,
)

GET = "/asset_report/get"


async def permit_times(limiter, arrivals):
    """Return the times of the permits; each arrival comes after a pause and may wait until its timeout."""
    loop, times = asyncio.get_running_loop(), []

    async def acquire(max_wait):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max_wait):
                await limiter.acquire(CREATE)
            times.append(loop.time())

    async with asyncio.TaskGroup() as group:
        for pause, max_wait in arrivals:
            await asyncio.sleep(pause)
            group.create_task(acquire(max_wait))
    return times


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 90) | st.just(0.0), st.none() | st.floats(0, 200)), min_size=1, max_size=60
    ),
    count=st.integers(1, 7),
    per=st.sampled_from([1.0, 10.0, 60.0]),
    slack=st.sampled_from([None, 0.0, 0.5]),
)
def test_no_window_holds_more_than_the_limit(arrivals, count, per, slack):
    """However attempts arrive and are cancelled, no window of `per` and the slack has more than `count` permits."""
    limiter = InProcessLimiter({CREATE: RateLimit(count, per)}, slack=slack)
    times = run_virtually(permit_times(limiter, [*arrivals, (0.0, None)]))
    assert len(times) > sum(max_wait is None for _, max_wait in arrivals)
    window = per + (per / 30 if slack is None else slack)
    assert max_in_window(times, window - 1e-6) <= count


def test_nearly_all_of_the_limit_is_used():
    """If enough attempts wait, only the slack is lost: 3 % by default."""
    times = run_virtually(permit_times(InProcessLimiter({CREATE: RateLimit(50)}), [(0.0, None)] * 501))
    assert 10 * 60 / (times[500] - times[0]) == pytest.approx(30 / 31, abs=0.001)


def test_an_endpoint_without_a_limit_never_waits():
    """Calls of other endpoints don't delay it either."""

    async def main():
        limiter = InProcessLimiter({**PLAID_PRODUCTION, CREATE: RateLimit(1)})
        await limiter.acquire(CREATE)
        waiting = asyncio.create_task(limiter.acquire(CREATE))
        async with asyncio.timeout(1):
            for endpoint in ["/credit/relay/get", GET] * 100:
                await limiter.acquire(endpoint)
        assert not waiting.done()
        await waiting
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(62, abs=0.001)


def test_permits_are_granted_in_order_of_arrival():
    """A waiting call that is cancelled, also at the head of the queue, uses no permit."""

    async def main():
        limiter, order = InProcessLimiter({CREATE: RateLimit(2, 10)}, slack=0.0), []

        async def acquire(name):
            await limiter.acquire(CREATE)
            order.append((name, round(asyncio.get_running_loop().time())))

        tasks = [asyncio.create_task(acquire(name)) for name in range(9)]
        await asyncio.sleep(5)
        for number in (2, 4, 5):
            tasks[number].cancel()
        await asyncio.wait(tasks)
        return order

    assert run_virtually(main()) == [(0, 0), (1, 0), (3, 10), (6, 10), (7, 20), (8, 20)]


def test_try_acquire_returns_the_seconds_to_wait():
    """It takes a permit without waiting, or returns the seconds until one is available."""

    async def main():
        limiter, waits = InProcessLimiter({CREATE: RateLimit(2, 10)}, slack=0.0), []
        for moment in (0, 4, 5, 10.5, 11):
            await asyncio.sleep(moment - asyncio.get_running_loop().time())
            waits.append(limiter.try_acquire(CREATE))
        return [*map(round, waits), limiter.try_acquire("/elsewhere")]

    assert run_virtually(main()) == [0, 0, 5, 0, 3, 0]


def test_a_limiter_belongs_to_one_event_loop():
    """Used in another one, it raises an error."""
    limiter = InProcessLimiter({CREATE: RateLimit(5)})
    asyncio.run(limiter.acquire(CREATE))
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(limiter.acquire(CREATE))


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: RateLimit(0), "count must be a whole number of 1 or more"),
        (lambda: RateLimit(10**20), "count must be a whole number of 1 or more, not such a large number"),
        (lambda: RateLimit(1.5), "count must be a whole number of 1 or more"),
        (lambda: RateLimit(5, 0), "per must be a finite number of seconds, above 0"),
        (lambda: RateLimit(5, math.nan), "per must be a finite number of seconds, above 0"),
        (lambda: RateLimit(5, True), "per must be a finite number of seconds, above 0"),
        (lambda: InProcessLimiter({CREATE: 100}), "must be a RateLimit, not int"),
        (lambda: InProcessLimiter({"create": RateLimit(1)}), "isn't a path"),
        (lambda: InProcessLimiter({}, slack=-1), "slack must be a finite number of seconds, 0 or more"),
        (lambda: InProcessLimiter({}, slack=math.inf), "slack must be a finite number of seconds, 0 or more"),
        (lambda: InProcessLimiter({}, slack="1"), "slack must be a finite number of seconds, 0 or more"),
    ],
)
def test_invalid_limits_are_rejected(create, message):
    """The error names the invalid setting."""
    with pytest.raises(ConfigurationError, match=message):
        create()


def test_the_published_limits_are_immutable():
    """The presets can be combined into other mappings, and can't be modified."""
    for preset in (PLAID_PRODUCTION, PLAID_SANDBOX):
        assert isinstance(preset, Mapping)
        with pytest.raises(TypeError):
            preset[CREATE] = RateLimit(1)
        assert not any("relay" in path for path in preset)
