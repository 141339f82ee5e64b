"""The waits of an attempt before it is sent: for a pause, the rate limiter and a connection."""

from __future__ import annotations

import asyncio
import time

import pytest
from support import CREATE, MAINTENANCE, OWNER, QUICK, issued_tokens, throttle_of

from plaid_relay_async import (
    ClientClosedError,
    Credentials,
    NotSentError,
    RateLimitError,
    RelayClient,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.simulator import Fault

# -------------------------------------------------------------------------------------------------- pauses


async def test_a_pause_affects_only_its_operation(plaid, client):
    """While creations pause, removals continue."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    with pytest.raises(RateLimitError):
        await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert (await client.relay.remove(created.relay_token)).removed


async def test_a_pause_affects_every_call_of_its_operation(plaid, client):
    """A second call waits for the pause that the first one's 429 began, and then both succeed."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    first = asyncio.create_task(client.relay.create([report], "p"))
    while plaid.counts[CREATE] == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await client.relay.create([report], "q")
    assert time.monotonic() - started > 1
    await first
    assert plaid.counts[CREATE] == 3


async def test_concurrent_429s_are_one_pause(plaid):
    """Calls that are declined together wait together; their delays don't add up."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=5))
    policy = RetryPolicy(max_pause=1.5)
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(5)))
    assert len(plaid.ledger) == 5


async def test_a_pause_that_begins_while_a_call_queues_is_kept(plaid):
    """A call that gets a connection after the pause began waits like all others."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, connections=1) as client:
        calls = [asyncio.ensure_future(client.relay.create([report], f"p{n}")) for n in range(3)]
        await asyncio.sleep(0.5)
        assert plaid.counts[CREATE] == 1
        await asyncio.gather(*calls)
    assert (len(plaid.ledger), plaid.counts[CREATE]) == (3, 4)


async def test_a_pause_that_begins_while_credentials_are_fetched_is_kept(plaid):
    """A call that fetches its credentials when the circuit breaker opens waits for the pause to end."""
    slow, report = asyncio.Event(), plaid.add_report()
    first = True

    async def vault() -> Credentials:
        nonlocal first
        if not first:
            await slow.wait()
        first = False
        return OWNER

    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    async with RelayClient(vault, base_url=plaid.url) as client:
        refused = asyncio.create_task(client.relay.create([report], "p"))
        waiting = asyncio.create_task(client.relay.create([report], "q"))
        while not plaid.requests or plaid.requests[0].status is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        started = time.monotonic()
        slow.set()
        await waiting
        assert time.monotonic() - started > 1
        await refused
    assert plaid.counts[CREATE] == 3


# ---------------------------------------------------------------------------------------- the rate limiter


class Limiter:
    def __init__(self) -> None:
        self.acquired: list[str] = []
        self.rate_limited: list[tuple[str, float | None]] = []

    async def acquire(self, endpoint: str) -> None:
        self.acquired.append(endpoint)

    def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
        self.rate_limited.append((endpoint, retry_after))


async def test_a_limiter_sees_each_attempt_and_each_429(plaid):
    """The limiter receives each attempt's operation, and each 429 with its delay, but no maintenance."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    limiter = Limiter()
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert limiter.acquired == [CREATE] * 4
    assert limiter.rate_limited == [(CREATE, None), (CREATE, 0.0)]


async def test_the_wait_for_the_limiter_does_not_count_against_the_timeout(plaid):
    """A call's timeout starts when the limiter has granted its permit."""

    class Slow:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.sleep(0.6)

    plaid.fail(Fault(path=CREATE, status=429, times=1))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Slow()) as client:
        created = await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert issued_tokens(plaid) == [created.relay_token]
    no_end = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=no_end, rate_limiter=Slow()) as client:
        await client.relay.create([plaid.add_report()], "q")


async def test_an_error_of_the_limiter_leaves_the_request_unsent(plaid):
    """The error of the caller's limiter is the cause of the error, and nothing was sent."""

    class Broken:
        async def acquire(self, endpoint: str) -> None:
            raise ZeroDivisionError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised ZeroDivisionError") as caught:
            await client.relay.create([plaid.add_report()], "p")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert plaid.counts[CREATE] == 0


async def test_a_cancellation_inside_the_limiter_is_an_error(plaid):
    """A limiter that raises CancelledError doesn't make the call look cancelled."""

    class Cancelled:
        async def acquire(self, endpoint: str) -> None:
            raise asyncio.CancelledError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Cancelled()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised CancelledError"):
            await client.relay.create([plaid.add_report()], "p")


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "301"}])
async def test_an_error_of_the_rate_limit_hook_is_not_an_unknown_outcome(plaid, headers, error):
    """Plaid declined the attempt, so nothing was executed, even if the limiter's hook raises."""

    class Broken(Limiter):
        def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
            raise error

    plaid.fail(Fault(path=CREATE, status=429, headers=headers))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert isinstance(caught.value.__cause__, error)
        assert (caught.value.attempts, caught.value.sent) == (1, True)
        # The pause applies nevertheless.
        assert throttle_of(client, CREATE).breaker.pause_count == 1


async def test_closing_the_client_ends_a_queued_call(plaid):
    """A call that is queued when the client is closed is never sent."""
    release = asyncio.Event()

    class Gate:
        async def acquire(self, endpoint: str) -> None:
            await release.wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Gate()) as client:
        call = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(ClientClosedError) as caught:
        await call
    assert (caught.value.sent, plaid.counts[CREATE]) == (False, 0)


# --------------------------------------------------------------------------------------------- connections


async def test_the_wait_for_a_connection_does_not_count_against_the_timeout(plaid):
    """Forty calls share one connection, and each takes more than a fortieth of the timeout."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    report = plaid.add_report()
    timeouts = Timeouts(connect=0.3, slow_read=0.3, total=0.3)
    async with RelayClient(OWNER, base_url=plaid.url, connections=1, timeouts=timeouts) as client:
        created = await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(40)))
    assert sorted(issued_tokens(plaid)) == sorted(m.relay_token for m in created)
