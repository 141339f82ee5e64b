"""A rate limiter and the pauses of a server: each permit is used, and no burst follows a pause."""

from __future__ import annotations

import asyncio

import pytest
from limiter_harness import CASES, CASES_ABOVE_LIMIT, LATENCY, TEN, measure, measure_above
from rate_harness import CREATE
from support import OWNER, max_in_window
from virtual_clock import run_virtually

from plaid_relay_async import (
    Credentials,
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    WaitTooLongError,
)
from plaid_relay_async.limits import InProcessLimiter, RateLimit
from plaid_relay_async.simulator import Fault, Limit, Simulator


class Counting(InProcessLimiter):
    permits = 0

    async def acquire(self, endpoint: str, /) -> None:
        await super().acquire(endpoint)
        self.permits += 1


@pytest.mark.parametrize(("name", "count", "limit", "faults"), CASES, ids=[case[0] for case in CASES])
def test_a_429_wastes_no_permit(name, count, limit, faults):
    """A batch and a single call beside it take as long as the limiter and the pause require."""
    run = measure(count, limit, faults)
    assert run.created == count
    assert run.permits == run.attempts == count + 1 + len(faults)
    assert run.seconds < 21.5
    assert run.longest_gap < 2.5
    assert run.single_seconds < 2.5


def test_a_pause_is_kept_and_no_burst_follows():
    """After the pause there is one probe, and no window holds more than the limit and one unused permit."""
    run = measure(100, TEN, (Fault(status=429, times=1, headers={"Retry-After": "5"}),))
    assert run.permits == run.attempts == 102
    first, second, *_ = sorted(moment for moment in run.arrivals if moment > 1)
    assert first >= 5 + LATENCY
    assert second >= first + LATENCY
    assert max_in_window(run.arrivals, 2.0 - 1e-6) <= 10 + 1


@pytest.mark.parametrize(("allowed", "count", "per", "seconds"), CASES_ABOVE_LIMIT)
def test_a_limiter_above_the_servers_limit_costs_no_creations(allowed, count, per, seconds):
    """With a limiter slightly above the server's limit, as many tokens are created as without a limiter."""
    server = Limit(CREATE, allowed, per)
    created = measure_above(RateLimit(count, per), server, seconds=seconds)
    assert created >= 0.97 * measure_above(None, server, seconds=seconds)


def creations(*, faults=(), timeout=1.0, count=30, credentials=OWNER, extra=(), connections=100, limit=TEN):
    """Create concurrently behind a limiter, and return the outcomes by time, the permits and the attempts."""

    async def main():
        loop = asyncio.get_running_loop()
        limiter = Counting({CREATE: limit}, slack=0)

        async def create(number):
            try:
                return await client.relay.create(["report"], f"p{number}", timeout=timeout), loop.time()
            except PlaidRelayError as error:
                return error, loop.time()

        async with (
            Simulator(reports=["report"], faults=faults, latency=LATENCY, clock=loop.time) as plaid,
            RelayClient(
                credentials,
                base_url=plaid.url,
                rate_limiter=limiter,
                connections=connections,
                retry=RetryPolicy(backoff=0.01),
            ) as client,
        ):
            results = await asyncio.gather(*(create(number) for number in range(count)))
            return results, limiter.permits, plaid.counts[CREATE]

    return run_virtually(main())


def test_waits_for_the_limiter_do_not_count_against_the_timeout():
    """Calls with a timeout of a second wait four seconds for the limiter, through a 429, and all succeed."""
    results, permits, attempts = creations(faults=[Fault(status=429, times=1)])
    assert not [result for result, _ in results if isinstance(result, PlaidRelayError)]
    assert permits == attempts == 31
    assert max(time for _, time in results) > 4


def test_a_pause_beyond_the_deadline_ends_queued_calls():
    """Calls that waited for the limiter fail unsent if they would have to wait for the server as well."""
    results, permits, attempts = creations(faults=[Fault(status=429, times=1, headers={"Retry-After": "3"})])
    errors = [(result, time) for result, time in results if isinstance(result, PlaidRelayError)]
    assert len(errors) == 21
    assert [type(error) for error, _ in errors] == [RateLimitError] + [WaitTooLongError] * 20
    assert all(error.retry_after for error, _ in errors)
    assert [error.sent for error, _ in errors] == [True] + [False] * 20
    assert max(time for _, time in errors) < 2.1
    assert (permits, attempts) == (11, 10)


def test_a_pause_that_begins_while_the_permit_waits_for_a_connection_is_kept():
    """A call whose permit waits for a connection leaves after the pause, with the same permit."""
    faults = [Fault(status=429, times=1, headers={"Retry-After": "1"})]
    results, permits, attempts = creations(faults=faults, count=3, connections=1, timeout=10)
    assert not [result for result, _ in results if isinstance(result, PlaidRelayError)]
    assert permits == attempts == 4
    assert min(time for _, time in results) > 1 + LATENCY


def test_a_pause_that_begins_while_credentials_are_fetched_is_kept():
    """A call that fetches its credentials when a pause begins leaves after the pause, with the same permit."""
    delays = iter([0.1, 0.5])

    async def slowly() -> Credentials:
        await asyncio.sleep(next(delays, 0.0))
        return OWNER

    faults = [Fault(status=429, times=1, headers={"Retry-After": "1"})]
    results, permits, attempts = creations(faults=faults, count=2, credentials=slowly, timeout=10)
    assert not [result for result, _ in results if isinstance(result, PlaidRelayError)]
    assert permits == attempts == 3
    assert min(time for _, time in results) > 1 + LATENCY


def test_a_call_with_little_time_fails_behind_a_paused_batch():
    """A single call behind a batch that waits for the server fails when its own time is up."""

    async def main():
        loop = asyncio.get_running_loop()
        limiter = InProcessLimiter({CREATE: RateLimit(1, 2.0)}, slack=0)
        faults = [Fault(status=429, times=1, headers={"Retry-After": "30"})]
        async with (
            Simulator(reports=["report"], faults=faults, latency=2.5, clock=loop.time) as plaid,
            RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter) as client,
        ):
            rows = RelayCreateRequest.fan_out(["report"], ["a", "b", "c"])
            batch = asyncio.ensure_future(awaited(client.relay.create_many(rows)))
            await asyncio.sleep(2.2)  # the third of the batch waits for the limiter
            with pytest.raises(WaitTooLongError) as caught:
                await client.relay.create(["report"], "single", timeout=8)
            results = loop.time()
            result = await batch
        return caught.value, results, result

    error, results, result = run_virtually(main())
    assert (error.sent, error.attempts) == (False, 0)
    assert 6.5 < results < 9
    assert len(result.created) == 3


async def awaited(batch):
    return await batch
