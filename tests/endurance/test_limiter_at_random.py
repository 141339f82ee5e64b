"""Random 429 responses behind a rate limiter: no permit is lost, no pause is shortened, no burst follows one."""

from __future__ import annotations

import asyncio
import random

import pytest
from rate_harness import CREATE
from support import OWNER, max_in_window
from virtual_clock import run_virtually

from plaid_relay_async import (
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    WaitTooLongError,
)
from plaid_relay_async.limits import InProcessLimiter, RateLimit
from plaid_relay_async.simulator import Fault, Simulator

LIMIT = RateLimit(10, 2.0)
MAX_TRANSIT = 0.01  # seconds that an attempt may take from the client to the simulator

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


class ObservedLimiter(InProcessLimiter):
    """A limiter that counts permits, and records for each 429 when it came and when its pause ends."""

    def __init__(self) -> None:
        super().__init__({CREATE: LIMIT}, slack=0)
        self.permits = 0
        self.pauses: list[tuple[float, float]] = []

    async def acquire(self, endpoint: str, /) -> None:
        await super().acquire(endpoint)
        self.permits += 1

    def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
        now = asyncio.get_running_loop().time()
        self.pauses.append((now, now + (retry_after or 0.0)))


async def run_scenario(seed: int) -> None:
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    random.seed(seed)
    limiter, arrivals = ObservedLimiter(), []

    def latency() -> float:
        arrivals.append(loop.time())
        return rng.uniform(0.01, 0.6)

    async def inject_rate_limits() -> None:
        for count in range(1, 9):
            await asyncio.sleep(rng.uniform(0.2, 8))
            delay = rng.choice([None, "1", "2", "3"])
            headers = {} if delay is None else {"Retry-After": delay}
            plaid.fail(Fault(path=CREATE, status=429, times=1, headers=headers))
            while len(limiter.pauses) < count:
                await asyncio.sleep(0.1)

    async def create(number: int) -> object:
        await asyncio.sleep(rng.uniform(0, 10))
        try:
            return await client.relay.create(["report"], f"single-{number}", timeout=rng.uniform(2, 20))
        except (RateLimitError, WaitTooLongError) as error:
            return error

    async with (
        Simulator(reports=["report"], latency=latency, clock=loop.time) as plaid,
        RelayClient(
            OWNER,
            base_url=plaid.url,
            rate_limiter=limiter,
            connections=rng.choice([1, 5, 100]),
            retry=RetryPolicy(backoff=0.1),
        ) as client,
    ):
        injector = asyncio.create_task(inject_rate_limits())
        singles = asyncio.gather(*(create(number) for number in range(10)))
        rows = RelayCreateRequest.fan_out(["report"], [f"partner-{number}" for number in range(60)])
        result = await client.relay.create_many(rows, concurrency=rng.choice([1, 20, 60]))
        single_results = await singles
        injector.cancel()
        assert len(result.created) == 60
        assert len(plaid.ledger) == 60 + sum(not isinstance(item, PlaidRelayError) for item in single_results)
        assert len(arrivals) == plaid.counts[CREATE]
        assert limiter.permits - len(arrivals) in {0, 1}  # one may be reserved for the next attempt
    for since, until in limiter.pauses:
        assert not [moment for moment in arrivals if since + MAX_TRANSIT < moment < until - MAX_TRANSIT]
    # Each pause may delay one attempt that already has its permit, so that it adds to a later window.
    delayed = max_in_window([since for since, _ in limiter.pauses], 2.0) if limiter.pauses else 0
    assert max_in_window(arrivals, 2.0 - MAX_TRANSIT) <= LIMIT.count + delayed


def test_random_rate_limits_waste_no_permit(size):
    """Batches and single calls behind a limiter get a 429 at random, and each permit leads to an attempt."""
    for seed in range(size(10, 1_000)):
        run_virtually(run_scenario(seed))
