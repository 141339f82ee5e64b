"""The statistics of a client, and its hook for retries."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs.exceptions import FrozenInstanceError
from processes import wait_until_async
from support import CREATE, GET, OWNER, QUICK

from plaid_relay_async import (
    ConfigurationError,
    OutcomeUnknownError,
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    Retry,
    RetryPolicy,
)
from plaid_relay_async.simulator import Fault


async def _hook(_: Retry) -> None: ...


async def test_the_statistics_count_attempts_calls_and_retries(plaid, client):
    """Each attempt and each call is counted once, by how it ended; a retry by its reason."""
    report = plaid.add_report()
    await client.relay.create([report], "p")
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, close=True, times=1),
        Fault(path=GET, close=True, times=1),
    )
    with pytest.raises(OutcomeUnknownError):
        await client.relay.create([report], "p")
    with pytest.raises(PlaidRelayError):
        await client.relay.get("no-such-token")
    statistics = client.statistics()
    assert statistics.attempts == {"definitive": 2, "declined": 1, "in_doubt": 2}
    assert statistics.outcomes == {"succeeded": 1, "unknown": 1, "failed": 1}
    assert statistics.retries == {"RATE_LIMIT": 1, "ConnectionLostError": 1}
    assert sum(statistics.attempts.values()) == sum(plaid.counts.values())
    assert (statistics.in_flight, statistics.queued, statistics.connections) == (0, 0, 100)


async def test_unsent_and_cancelled_attempts_are_counted(plaid):
    """A failed connection counts as an attempt; a cancelled call is neither failed nor unknown."""
    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK) as client:
        with pytest.raises(PlaidRelayError):
            await client.relay.create(["t"], "p")
        assert client.statistics().attempts == {"not_sent": 4}
        assert client.statistics().retries == {"NotSentError": 3}
    plaid.fail(Fault(path=CREATE, stall=30))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        call = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        while not plaid.requests:
            await asyncio.sleep(0.001)
        assert client.statistics().in_flight == 1
        call.cancel()
        await asyncio.wait([call])
        statistics = client.statistics()
    assert (statistics.attempts, statistics.outcomes, statistics.in_flight) == (
        {"cancelled": 1},
        {"unknown": 1},
        0,
    )


async def test_an_attempt_that_is_cancelled_while_its_report_is_decoded_is_counted(plaid):
    """A long report is decoded in a thread; the attempt counts as cancelled."""
    release, executor = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    executor.submit(release.wait, 60)
    plaid.fail(Fault(path=GET, status=200, body=" " * 300_000))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
        reading = asyncio.create_task(client.relay.get("t"))
        while not plaid.counts[GET] or client.statistics().in_flight:
            await asyncio.sleep(0.001)
        reading.cancel()
        await asyncio.wait([reading])
        release.set()
        statistics = client.statistics()
    assert (statistics.attempts, statistics.outcomes) == ({"cancelled": 1}, {"cancelled": 1})


async def test_waits_are_counted_by_their_reason(plaid):
    """Seconds for the limiter, for a connection, for the server's pause and for backoff are counted separately."""

    class Slow:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.sleep(0.02)

    report = plaid.add_report()
    plaid.fail(
        Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1),
        Fault(path=GET, close=True, times=1),
    )
    async with RelayClient(
        OWNER, base_url=plaid.url, rate_limiter=Slow(), connections=1, retry=RetryPolicy(backoff=0.2)
    ) as client:
        await client.relay.create([report], "p")
        plaid.fail(Fault(path=CREATE, latency=0.2))
        calls = [client.relay.create([report], "q"), client.relay.get("t")]
        running = [asyncio.create_task(each) for each in calls]
        await wait_until_async(lambda: client.statistics().queued == 1)
        await asyncio.gather(*running, return_exceptions=True)
        waits = client.statistics().waits
    assert waits["pause"] >= 0.9  # a pause starts when the response arrives
    assert waits["limiter"] >= 0.08
    assert waits["connection"] > 0.03
    assert waits["backoff"] > 0


async def test_a_snapshot_is_immutable(plaid, client):
    """It doesn't change with later calls, and can't be modified."""
    before = client.statistics()
    await client.relay.create([plaid.add_report()], "p")
    assert before.outcomes == {}
    assert client.statistics().outcomes == {"succeeded": 1}
    with pytest.raises(FrozenInstanceError):
        before.in_flight = 3  # type: ignore[misc]  # a deliberate mistake
    with pytest.raises(TypeError):
        before.attempts["definitive"] = 3  # type: ignore[index]  # a deliberate mistake


async def test_a_snapshot_can_be_pickled_and_copied(plaid, client):
    """A copy equals the snapshot, and can't be modified either."""
    await client.relay.create([plaid.add_report()], "p")
    snapshot = client.statistics()
    for copied in (pickle.loads(pickle.dumps(snapshot)), copy.copy(snapshot), copy.deepcopy(snapshot)):
        assert copied == snapshot
        assert copied.outcomes == {"succeeded": 1}
        with pytest.raises(TypeError):
            copied.attempts["definitive"] = 3


async def test_a_rate_is_reported_once_there_is_one(plaid, client):
    """An operation that was never declined has no rate."""
    report = plaid.add_report()
    await client.relay.create([report], "p")
    assert client.statistics().rates == {}
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    await client.relay.create([report], "q")
    assert client.statistics().rates.keys() == {CREATE}
    assert 0 < client.statistics().rates[CREATE] <= 1


# ------------------------------------------------------------------------------------------- the hook


async def test_on_retry_is_called_before_each_further_attempt(plaid):
    """It receives operation, attempts, reason, status, request ID and wait; it isn't called after the last attempt."""
    retries: list[Retry] = []
    plaid.fail(
        Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1),
        Fault(path=CREATE, status=400, times=1),
    )
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_retry=retries.append) as client:
        with pytest.raises(PlaidRelayError):
            await client.relay.create([plaid.add_report()], "p")
    (retry,) = retries
    assert (retry.operation, retry.attempts, retry.reason, retry.status) == (CREATE, 1, "RATE_LIMIT", 429)
    assert retry.request_id == plaid.requests[0].request_id
    assert 0.9 < retry.wait <= 1


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_an_on_retry_that_raises_ends_the_call(plaid, error):
    """The call fails with the error for which it was about to be repeated; the hook's error is its cause."""

    def broken(retry: Retry) -> None:
        raise error

    plaid.fail(Fault(path=CREATE, status=429))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_retry=broken) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert isinstance(caught.value.__cause__, error)
        assert caught.value.attempts == plaid.counts[CREATE] == 1
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"]))
    assert isinstance(result.failed[0].error, RateLimitError)


async def test_a_lost_creation_stays_unknown_if_on_retry_raises(plaid):
    """An error of the hook doesn't hide that the attempt may have been executed."""

    def broken(retry: Retry) -> None:
        raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    always = RetryPolicy(backoff=0.001, replay="always")
    async with RelayClient(OWNER, base_url=plaid.url, retry=always, on_retry=broken) as client:
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([plaid.add_report()], "p")
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_retry": _hook}, "on_retry must be a plain function"),
        ({"on_retry": 3}, "on_retry must be a plain function"),
        ({"rate_limiter": 50}, "rate_limiter must have a method"),
    ],
)
def test_hooks_are_checked_when_the_client_is_created(settings, words):
    """An async hook would never be awaited, and a number isn't a rate limiter."""
    with pytest.raises(ConfigurationError, match=words):
        RelayClient(OWNER, **settings)
