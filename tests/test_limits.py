"""Limits that are kept beforehand in one process: never more in any window, and nearly all of it used."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import max_in_window
from virtual_clock import run_virtually

from plaid_relay_async import ConfigurationError
from plaid_relay_async.limits import (
    PLAID_PRODUCTION,
    PLAID_SANDBOX,
    InProcessLimiter,
    RateLimit,
)

CREATE, GET = "/credit/relay/create", "/asset_report/get"


async def granted(limiter, visitors):
    """The moments at which the limiter let visitors through, each of whom comes after a pause and may lose patience."""
    loop, moments = asyncio.get_running_loop(), []

    async def come(patience):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await limiter.acquire(CREATE)
            moments.append(loop.time())

    async with asyncio.TaskGroup() as group:
        for pause, patience in visitors:
            await asyncio.sleep(pause)
            group.create_task(come(patience))
    return moments


@given(
    visitors=st.lists(
        st.tuples(st.floats(0, 90) | st.just(0.0), st.none() | st.floats(0, 200)), min_size=1, max_size=60
    ),
    count=st.integers(1, 7),
    per=st.sampled_from([1.0, 10.0, 60.0]),
    slack=st.sampled_from([None, 0.0, 0.5]),
)
def test_no_window_holds_more_than_the_limit(visitors, count, per, slack):
    """Whenever attempts come and are cancelled, there are never more than `count` in a window of `per` and slack."""
    limiter = InProcessLimiter({CREATE: RateLimit(count, per)}, slack=slack)
    moments = run_virtually(granted(limiter, [*visitors, (0.0, None)]))
    assert len(moments) > sum(patience is None for _, patience in visitors)
    window = per + (per / 30 if slack is None else slack)
    assert max_in_window(moments, window - 1e-6) <= count


def test_nearly_all_of_the_limit_is_used():
    """When enough attempts wait, the share that is lost is that of the slack: 3 % by default."""
    moments = run_virtually(granted(InProcessLimiter({CREATE: RateLimit(50)}), [(0.0, None)] * 501))
    assert 10 * 60 / (moments[500] - moments[0]) == pytest.approx(30 / 31, abs=0.001)


def test_an_endpoint_without_a_limit_passes_at_once():
    """Other endpoints aren't held up, nor by those that wait."""

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


def test_who_comes_first_goes_first_and_who_leaves_costs_nothing():
    """The line is served in order; whoever is cancelled in it, its head too, takes no grant with them."""

    async def main():
        limiter, through = InProcessLimiter({CREATE: RateLimit(2, 10)}, slack=0.0), []

        async def come(name):
            await limiter.acquire(CREATE)
            through.append((name, round(asyncio.get_running_loop().time())))

        line = [asyncio.create_task(come(name)) for name in range(9)]
        await asyncio.sleep(5)
        for left in (2, 4, 5):
            line[left].cancel()
        await asyncio.wait(line)
        return through

    assert run_virtually(main()) == [(0, 0), (1, 0), (3, 10), (6, 10), (7, 20), (8, 20)]


def test_who_does_not_wait_is_told_how_long_it_would_take():
    """Taken without waiting a grant is there at once, or it is told after how many seconds it will be."""

    async def main():
        limiter, told = InProcessLimiter({CREATE: RateLimit(2, 10)}, slack=0.0), []
        for moment in (0, 4, 5, 10.5, 11):
            await asyncio.sleep(moment - asyncio.get_running_loop().time())
            told.append(limiter.try_acquire(CREATE))
        return [*map(round, told), limiter.try_acquire("/elsewhere")]

    assert run_virtually(main()) == [0, 0, 5, 0, 3, 0]


def test_a_limiter_stays_in_its_event_loop():
    """Used in another one, it says so."""
    limiter = InProcessLimiter({CREATE: RateLimit(5)})
    asyncio.run(limiter.acquire(CREATE))
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(limiter.acquire(CREATE))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: RateLimit(0), "count must be a whole number from 1"),
        (lambda: RateLimit(1.5), "count must be a whole number from 1"),
        (lambda: RateLimit(5, 0), "per must be a number of seconds above 0"),
        (lambda: RateLimit(5, math.nan), "per must be a number of seconds above 0"),
        (lambda: RateLimit(5, True), "per must be a number of seconds above 0"),
        (lambda: InProcessLimiter({CREATE: 100}), "must be a RateLimit, not int"),
        (lambda: InProcessLimiter({"create": RateLimit(1)}), "isn't a path"),
        (lambda: InProcessLimiter({}, slack=-1), "slack must be a number of seconds from 0"),
        (lambda: InProcessLimiter({}, slack=math.inf), "slack must be a number of seconds from 0"),
        (lambda: InProcessLimiter({}, slack="1"), "slack must be a number of seconds from 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, words):
    """The error names what is wrong."""
    with pytest.raises(ConfigurationError, match=words):
        wrong()


def test_what_plaid_publishes_is_not_for_changing():
    """The presets can be combined into mappings of one's own, and stay as they are."""
    for preset in (PLAID_PRODUCTION, PLAID_SANDBOX):
        assert isinstance(preset, Mapping)
        with pytest.raises(TypeError):
            preset[CREATE] = RateLimit(1)
        assert not any("relay" in path for path in preset)
