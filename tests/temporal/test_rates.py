"""The rate limit of a task queue, on a real Temporal server: its pauses, and 429s that are shared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
from datetime import timedelta

import pytest
from attrs import asdict, evolve
from hypothesis import given
from hypothesis import strategies as st
from processes import read_until, wait_until_async
from support import CREATE, OWNER, REMOVE
from temporalio import activity
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import RateLimit
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest
from temporalio.client import Client
from temporalio.worker import Worker

from plaid_relay_async import AttemptEnd, ConfigurationError, RelayClient
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal.rate_state import RateState, setting_for
from plaid_relay_async.temporal.rates import SharedRate, pause, read_rate, resume, set_rate

# ------------------------------------------------------------------------------------------ pure functions

RATES = st.floats(0.01, 5_000)
TIMES = st.floats(1.7e9, 2.0e9)
STATES = st.builds(
    RateState,
    allowed=st.none() | RATES,
    stopped=st.booleans(),
    foreign=st.none() | RATES,
    until=TIMES,
    base=st.none() | RATES,
    since=TIMES,
    period=st.floats(1, 60),
)


@given(RATES)
def test_a_setting_keeps_every_window_and_uses_the_rate(rate):
    """With the bursts of four partitions, no window has more than is allowed, and 80 % of it is used."""
    window, setting = max(10.0, 80 / rate), setting_for(rate)
    assert setting * (window + 1) + 4 <= rate * window
    assert setting >= 0.8 * rate


@given(STATES, TIMES)
def test_a_setting_is_within_all_limits(state, now):
    """The setting is 0 in a pause, and never above what the user or another program has set."""
    setting = state.setting(now)
    assert (setting == 0) == (state.stopped or now < state.until)
    assert state.allowed is None or setting <= setting_for(state.allowed)
    assert state.foreign is None or setting <= state.foreign


@given(STATES, TIMES, st.floats(0, 10_000))
def test_the_adaptive_rate_increases(state, now, seconds):
    """The adaptive rate never decreases by itself, and is forgotten in the end."""
    assert state.adaptive(now) <= state.adaptive(now + seconds)
    assert state.adaptive(state.since + 24.01 * state.period) == math.inf


@given(STATES, TIMES, TIMES)
def test_pauses_are_never_shortened(state, first, second):
    """Pauses of several workers can be reported in any order, and again."""
    paused = state.paused(first).paused(second)
    assert paused == state.paused(second).paused(first) == paused.paused(first)
    assert paused.until >= max(state.until, first, second)
    assert paused.until < max(state.until, first, second) + 0.21
    assert evolve(paused, until=state.until) == state


@given(STATES, TIMES, st.floats(0, 10_000), st.floats(0, 100))
def test_a_decrease(state, now, admitted, seconds):
    """A 429 lowers the rate, unless nothing is known about the limit."""
    before = state.unpaused_setting(now)
    decreased = state.decreased(now, admitted=admitted, measured_since=now - seconds)
    if admitted or before < math.inf:
        assert decreased.base is not None
        assert decreased.base <= before * 0.93
        assert decreased.unpaused_setting(now) < before
        assert decreased.since == max(now, state.until)
    else:
        assert decreased == state


@given(STATES)
def test_a_state_fits_into_a_reason(state):
    """The state as JSON has fewer than the 1000 characters that Temporal permits, and can be read again."""
    text = json.dumps(asdict(state))
    assert len(text) < 500
    assert RateState(**json.loads(text)) == state


def test_the_measured_rate():
    """A thousand activities and a pause until the end of the minute mean a thousand a minute."""
    state = RateState(until=1_060.0).decreased(1_010.0, admitted=1_000, measured_since=1_000.0)
    assert state.base == pytest.approx(1_000 / 60, rel=1e-3)
    assert state.setting(1_059.9) == 0
    assert state.setting(1_060.0) == state.base
    assert state.setting(1_130.0) == pytest.approx(1.01 * state.base)


# ------------------------------------------------------------------------------------------- on the server


async def set_foreign(temporal_client, task_queue, setting, reason="at night"):
    """Set a limit as Temporal's command does."""
    await temporal_client.workflow_service.update_task_queue_config(
        UpdateTaskQueueConfigRequest(
            namespace="default",
            identity="operator@host",
            task_queue=task_queue,
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            update_queue_rate_limit=UpdateTaskQueueConfigRequest.RateLimitUpdate(
                rate_limit=RateLimit(requests_per_second=setting), reason=reason
            ),
        )
    )


async def test_pause_and_resume(temporal_client, task_queue):
    """A paused queue dispatches nothing, and continues with the rate that was set before or meanwhile."""
    started = []

    @activity.defn
    async def start() -> None:
        started.append(time.time())

    await pause(temporal_client, task_queue)
    for number in range(20):
        await temporal_client.start_activity(
            start,
            id=f"{task_queue}-{number}",
            task_queue=task_queue,
            start_to_close_timeout=timedelta(minutes=5),
        )
    async with Worker(temporal_client, task_queue=task_queue, activities=[start]):
        await set_rate(temporal_client, task_queue, 50)
        rate = await read_rate(temporal_client, task_queue)
        assert (rate.allowed, rate.setting, rate.is_paused, rate.paused_until) == (50, 0, True, None)
        assert started == []
        await resume(temporal_client, task_queue)
        rate = await read_rate(temporal_client, task_queue)
        assert (rate.allowed, rate.is_paused) == (50, False)
        assert rate.setting == pytest.approx(setting_for(50))
        await wait_until_async(lambda: len(started) == 20)


async def test_simultaneous_updates(temporal_client, task_queue):
    """An update that another one has undone is repeated."""
    await asyncio.gather(set_rate(temporal_client, task_queue, 30), pause(temporal_client, task_queue))
    rate = await read_rate(temporal_client, task_queue)
    assert (rate.allowed, rate.is_paused) == (30, True)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan, True])
async def test_an_invalid_rate(temporal_client, task_queue, rate):
    with pytest.raises(ConfigurationError, match="a number above 0"):
        await set_rate(temporal_client, task_queue, rate)


async def test_a_limit_that_was_set_without_the_package(temporal_client, task_queue):
    """It is reported, isn't replaced without an explicit request, and is in effect again after a pause."""
    await set_foreign(temporal_client, task_queue, 7)
    rate = await read_rate(temporal_client, task_queue)
    assert (rate.foreign, rate.foreign_identity, rate.setting, rate.allowed) == (7, "operator@host", 7, None)
    with pytest.raises(ConfigurationError, match="7 a second"):
        await set_rate(temporal_client, task_queue, 20)
    await pause(temporal_client, task_queue)
    rate = await read_rate(temporal_client, task_queue)
    assert (rate.foreign, rate.foreign_identity, rate.setting) == (7, None, 0)
    with pytest.raises(ConfigurationError, match="7 a second"):
        await set_rate(temporal_client, task_queue, 20)
    await resume(temporal_client, task_queue)
    assert (await read_rate(temporal_client, task_queue)).setting == 7
    await set_rate(temporal_client, task_queue, 20, replace=True)
    rate = await read_rate(temporal_client, task_queue)
    assert (rate.allowed, rate.foreign) == (20, None)


# ------------------------------------------------------------------------------------------ sharing a 429


def attempt_end(certainty="definitive", *, retry_after=None, duration=0.1, operation=CREATE):
    return AttemptEnd(
        operation=operation,
        call_id="call",
        batch_id=None,
        run=None,
        partner=None,
        attempt=1,
        status=429 if certainty == "declined" else 200,
        error_code=None,
        request_id=None,
        certainty=certainty,
        duration=duration,
        retry_after=retry_after,
    )


@pytest.fixture
async def start_rate(temporal_server, task_queue):
    """A function that starts the `SharedRate` of one more worker, and returns it and its task."""
    async with contextlib.AsyncExitStack() as stack:

        async def start():
            shared = SharedRate(await Client.connect(temporal_server.address), task_queue)
            running = asyncio.create_task(shared.run())
            stack.push_async_callback(stop, running)
            return shared, running

        yield start


async def stop(running):
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def wait_for(temporal_client, task_queue, condition):
    return await read_until(lambda: read_rate(temporal_client, task_queue), condition)


async def let_workers_read():
    """Wait while each worker reads the state twice; nothing shows that it changes nothing."""
    await asyncio.sleep(2)


def is_paused(rate):
    return rate.is_paused


def is_running(rate):
    return not rate.is_paused


def has_decreased(rate):
    return rate.adaptive is not None


async def test_a_worker_that_dies_in_a_pause(temporal_client, task_queue, start_rate):
    """A 429 pauses the queue for all workers, and another worker ends the pause, not before its end."""
    await set_rate(temporal_client, task_queue, 50)
    first, running = await start_rate()
    await start_rate()
    paused_until = time.time() + 4
    first.on_attempt(attempt_end("declined", retry_after=4.0))
    rate = await wait_for(temporal_client, task_queue, is_paused)
    assert rate.paused_until.timestamp() >= paused_until
    await stop(running)
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert time.time() >= paused_until
    assert rate.setting == pytest.approx(setting_for(50))


async def test_a_pause_is_kept_by_a_call_that_was_dispatched_before(temporal_client, task_queue, start_rate):
    """As a rate limiter, it keeps creations and removals from being sent in a pause, and no other call."""
    shared, _ = await start_rate()
    await shared.acquire(CREATE)
    paused_until = time.time() + 3
    shared.on_attempt(attempt_end("declined", retry_after=3.0, operation=REMOVE))
    await wait_for(temporal_client, task_queue, is_paused)
    async with asyncio.timeout(paused_until - time.time()):
        await shared.acquire("/asset_report/get")
    await shared.acquire(CREATE)
    assert time.time() >= paused_until


async def test_the_longest_pause_remains(temporal_client, task_queue, start_rate):
    """Of two workers' pauses the longer one remains, whichever update was later."""
    (first, _), (second, _) = await start_rate(), await start_rate()
    paused_until = time.time() + 4
    first.on_attempt(attempt_end("declined", retry_after=4.0))
    second.on_attempt(attempt_end("declined", retry_after=2.0))
    await wait_for(temporal_client, task_queue, is_paused)
    await wait_for(temporal_client, task_queue, is_running)
    assert time.time() >= paused_until


@pytest.mark.parametrize("retry_after", [1e12, sys.float_info.max], ids=["30,000 years", "for ever"])
async def test_a_pause_of_years_lasts_an_hour(temporal_client, task_queue, start_rate, retry_after):
    """A mistaken `Retry-After` doesn't stop all runs without end, nor the worker's share in the rate."""
    shared, running = await start_rate()
    shared.on_attempt(attempt_end("declined", retry_after=retry_after))
    rate = await wait_for(temporal_client, task_queue, lambda rate: rate.is_paused or running.done())
    assert not running.done()
    assert 3_000 < rate.paused_until.timestamp() - time.time() < 3_601


async def test_the_rate_after_a_429(temporal_client, task_queue, start_rate):
    """After the pause the rate is lower, within the limit of the user, and the same for all workers."""
    await set_rate(temporal_client, task_queue, 50)
    first, _ = await start_rate()
    second, _ = await start_rate()
    for shared in (first, second):
        shared.on_attempt(attempt_end("declined", retry_after=2.0))
    rate = await wait_for(temporal_client, task_queue, has_decreased)
    assert rate.is_paused
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert rate.setting == pytest.approx(0.92 * setting_for(50), rel=0.03)  # decreased once, not twice
    await set_rate(temporal_client, task_queue, 5)
    assert (await read_rate(temporal_client, task_queue)).setting == pytest.approx(setting_for(5))


async def test_an_isolated_429(temporal_client, task_queue, start_rate):
    """A 429 after which a later attempt is accepted causes a pause, and doesn't change the rate."""
    await set_rate(temporal_client, task_queue, 50)
    shared, _ = await start_rate()
    shared.on_attempt(attempt_end("declined", retry_after=2.0, duration=0.5))
    shared.on_attempt(attempt_end())
    await wait_for(temporal_client, task_queue, is_paused)
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert (rate.adaptive, rate.setting) == (None, pytest.approx(setting_for(50)))


async def test_many_429s_without_a_delay(temporal_client, task_queue, start_rate):
    """A few 429s that request no pause change nothing; many of them do, although attempts are accepted."""
    await set_rate(temporal_client, task_queue, 50)
    shared, _ = await start_rate()
    for _ in range(10):
        shared.on_attempt(attempt_end("declined"))
    await let_workers_read()
    assert (await read_rate(temporal_client, task_queue)).adaptive is None
    shared.on_attempt(attempt_end("declined", duration=0.5))
    shared.on_attempt(attempt_end("in_doubt"))
    shared.on_attempt(attempt_end("declined", operation="/asset_report/create"))
    await wait_for(temporal_client, task_queue, has_decreased)
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert rate.setting < setting_for(50)


async def test_a_429_of_which_nothing_is_known(temporal_client, task_queue, start_rate):
    """Without a limit and without a dispatched activity, the queue continues without a limit."""
    shared, _ = await start_rate()
    shared.on_attempt(attempt_end("declined", retry_after=1.0))
    await wait_for(temporal_client, task_queue, is_paused)
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert (rate.adaptive, rate.setting) == (None, None)


async def test_a_429_with_a_foreign_limit(temporal_client, task_queue, start_rate):
    """A limit that was set without the package isn't touched before a 429, and remains an upper bound."""
    await set_foreign(temporal_client, task_queue, 7)
    shared, _ = await start_rate()
    await let_workers_read()
    assert (await read_rate(temporal_client, task_queue)).foreign_identity == "operator@host"
    shared.on_attempt(attempt_end("declined", retry_after=1.0))
    await wait_for(temporal_client, task_queue, has_decreased)
    rate = await wait_for(temporal_client, task_queue, is_running)
    assert (rate.foreign, rate.setting) == (7, pytest.approx(0.92 * 7, rel=0.03))
    await set_foreign(temporal_client, task_queue, 3)
    await let_workers_read()
    rate = await read_rate(temporal_client, task_queue)
    assert (rate.foreign, rate.setting, rate.adaptive) == (3, 3, None)


async def test_a_client_that_gets_a_429(plaid, report, temporal_client, task_queue, start_rate):
    """As callback and rate limiter of a client, it receives a 429 and its delay."""
    shared, _ = await start_rate()
    plaid.fail(Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "2"}))
    limiter = {"on_attempt": shared.on_attempt, "rate_limiter": shared}
    async with RelayClient(OWNER, base_url=plaid.url, **limiter) as client:
        creation = asyncio.create_task(client.relay.create([report], "partner"))
        declined = await wait_for(temporal_client, task_queue, is_paused)
        await creation
        assert time.time() >= declined.paused_until.timestamp() - 0.2
    assert plaid.rate_limited[CREATE] == 0
    assert len(plaid.ledger) == 1


async def test_an_unavailable_server(temporal_server, temporal_client, task_queue, start_rate):
    """While Temporal is unavailable, the worker's task waits for it; then it reports a pause that still lasts."""
    shared, running = await start_rate()
    await temporal_server.kill()
    shared.on_attempt(attempt_end("declined", retry_after=300.0))
    done, _ = await asyncio.wait([running], timeout=2)
    assert not done
    await temporal_server.start()
    await wait_for(temporal_client, task_queue, is_paused)


@pytest.mark.parametrize("reason", ["", "[]", "1", "{}", '{"plaid_relay_async": {"until": "soon"}}'])
async def test_a_reason_that_is_no_state(temporal_client, task_queue, reason):
    """A limit with another text, or a damaged one, counts as one that was set without the package."""
    await set_foreign(temporal_client, task_queue, 7, reason)
    assert (await read_rate(temporal_client, task_queue)).foreign == 7
