"""What a client tells about its work: a snapshot of numbers, and a word before each further attempt."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs.exceptions import FrozenInstanceError
from processes import wait_until_async
from support import OWNER, QUICK

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

CREATE, GET = "/credit/relay/create", "/credit/relay/get"


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
    told = client.statistics()
    assert told.attempts == {"definitive": 2, "declined": 1, "in_doubt": 2}
    assert told.outcomes == {"succeeded": 1, "unknown": 1, "failed": 1}
    assert told.retries == {"RATE_LIMIT": 1, "ConnectionLostError": 1}
    assert sum(told.attempts.values()) == sum(plaid.counts.values())
    assert (told.in_flight, told.queued, told.connections) == (0, 0, 100)


async def test_what_never_left_and_what_was_cancelled_is_counted(plaid):
    """A connection that can't be made is an attempt; a call that is given up is neither failed nor unknown."""
    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK) as client:
        with pytest.raises(PlaidRelayError):
            await client.relay.create(["t"], "p")
        assert client.statistics().attempts == {"not_sent": 4}
        assert client.statistics().retries == {"NotSentError": 3}
    plaid.fail(Fault(path=CREATE, stall=30))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        under_way = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        while not plaid.requests:
            await asyncio.sleep(0.001)
        assert client.statistics().in_flight == 1
        under_way.cancel()
        await asyncio.wait([under_way])
        told = client.statistics()
    assert (told.attempts, told.outcomes, told.in_flight) == ({"cancelled": 1}, {"cancelled": 1}, 0)


async def test_an_attempt_whose_report_is_given_up_while_it_is_read_is_counted(plaid):
    """A long report is read in a thread; the attempt was made, though nobody waits for the record any more."""
    busy, only = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(only)
    only.submit(busy.wait, 60)
    plaid.fail(Fault(path=GET, status=200, body=" " * 300_000))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
        reading = asyncio.create_task(client.relay.get("t"))
        while not plaid.counts[GET] or client.statistics().in_flight:
            await asyncio.sleep(0.001)
        reading.cancel()
        await asyncio.wait([reading])
        busy.set()
        told = client.statistics()
    assert (told.attempts, told.outcomes) == ({"cancelled": 1}, {"cancelled": 1})


async def test_waits_are_counted_by_what_was_waited_for(plaid):
    """Seconds at the limiter, for a connection, for the server's pause and before a repeat, each apart."""

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
        two = [client.relay.create([report], "q"), client.relay.get("t")]
        running = [asyncio.create_task(each) for each in two]
        await wait_until_async(lambda: client.statistics().queued == 1)
        await asyncio.gather(*running, return_exceptions=True)
        waits = client.statistics().waits
    assert waits["pause"] >= 0.9  # a pause runs from when the answer came
    assert waits["limiter"] >= 0.08
    assert waits["connection"] > 0.03
    assert waits["backoff"] > 0


async def test_a_snapshot_no_longer_changes(plaid, client):
    """What was told stays as it was, and can't be written to."""
    before = client.statistics()
    await client.relay.create([plaid.add_report()], "p")
    assert before.outcomes == {}
    assert client.statistics().outcomes == {"succeeded": 1}
    with pytest.raises(FrozenInstanceError):
        before.in_flight = 3  # type: ignore[misc]  # the mistake that is meant
    with pytest.raises(TypeError):
        before.attempts["definitive"] = 3  # type: ignore[index]  # the same


async def test_a_snapshot_can_be_pickled_and_copied(plaid, client):
    """A copy equals the snapshot, and can't be written to either."""
    await client.relay.create([plaid.add_report()], "p")
    snapshot = client.statistics()
    for again in (pickle.loads(pickle.dumps(snapshot)), copy.copy(snapshot), copy.deepcopy(snapshot)):
        assert again == snapshot
        assert again.outcomes == {"succeeded": 1}
        with pytest.raises(TypeError):
            again.attempts["definitive"] = 3


async def test_a_rate_is_told_once_there_is_one(plaid, client):
    """An operation that was never refused has no rate."""
    report = plaid.add_report()
    await client.relay.create([report], "p")
    assert client.statistics().rates == {}
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    await client.relay.create([report], "q")
    assert client.statistics().rates.keys() == {CREATE}
    assert 0 < client.statistics().rates[CREATE] <= 1


# ------------------------------------------------------------------------------------------- the hook


async def test_a_hook_is_told_of_each_further_attempt(plaid):
    """Operation, attempts, reason, status, request id and wait; none for the attempt that is the last."""
    told: list[Retry] = []
    plaid.fail(
        Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1),
        Fault(path=CREATE, status=400, times=1),
    )
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_retry=told.append) as client:
        with pytest.raises(PlaidRelayError):
            await client.relay.create([plaid.add_report()], "p")
    (retry,) = told
    assert (retry.operation, retry.attempts, retry.reason, retry.status) == (CREATE, 1, "RATE_LIMIT", 429)
    assert retry.request_id == plaid.requests[0].request_id
    assert 0.9 < retry.wait <= 1


async def test_a_hook_that_raises_ends_the_call(plaid):
    """The error is the one that the call was about to be repeated for, and the hook's own is its cause."""

    def broken(retry: Retry) -> None:
        raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_retry=broken) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert caught.value.attempts == plaid.counts[CREATE] == 1
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"]))
    assert isinstance(result.failed[0].error, RateLimitError)


async def test_a_lost_creation_stays_unknown_though_the_hook_raises(plaid):
    """What may have been carried out is not forgotten over a mistake in the hook."""

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
def test_what_cannot_be_called_is_refused_at_once(settings, words):
    """An async hook would never be awaited, and a number of attempts a minute is no limiter."""
    with pytest.raises(ConfigurationError, match=words):
        RelayClient(OWNER, **settings)
