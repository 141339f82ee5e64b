"""Measure how long a single 429 delays calls that wait for a rate limiter: harness and table of figures.

`python tests/limiter_harness.py` measures each case on the virtual clock and prints one line for it.
"""

from __future__ import annotations

import asyncio
import random
import sys
from itertools import pairwise

from attrs import field, frozen
from rate_harness import CREATE
from support import OWNER
from virtual_clock import run_virtually

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.limits import InProcessLimiter, RateLimit
from plaid_relay_async.simulator import Fault, Limit, Simulator

LATENCY = 0.1


@frozen
class Measurement:
    """The measurements of a batch, and of a single creation beside it.

    Attributes:
        created: the number of created tokens of the batch.
        seconds: the duration of the batch.
        longest_gap: the longest time in seconds without an outcome of the batch.
        permits: the number of permits that the limiter granted.
        attempts: the number of attempts that reached the simulator.
        single_seconds: the duration of the single creation.
        arrivals: the times at which attempts reached the simulator, in seconds from the start.
    """

    created: int
    seconds: float
    longest_gap: float
    permits: int
    attempts: int
    single_seconds: float
    arrivals: list[float] = field(repr=False)


class _Counting(InProcessLimiter):
    permits = 0

    async def acquire(self, endpoint: str, /) -> None:
        await super().acquire(endpoint)
        self.permits += 1


def measure(
    count: int, limit: RateLimit, faults: tuple[Fault, ...] = (), *, concurrency: int = 200, seed: int = 0
) -> Measurement:
    """Create this many tokens in a batch behind a limiter, and one more beside it after half a second."""
    random.seed(seed)
    return run_virtually(_run_batch(count, limit, faults, concurrency))


async def _run_batch(
    count: int, limit: RateLimit, faults: tuple[Fault, ...], concurrency: int
) -> Measurement:
    loop = asyncio.get_running_loop()
    limiter = _Counting({CREATE: limit}, slack=0)
    moments: list[float] = []
    arrivals: list[float] = []

    def latency() -> float:
        arrivals.append(loop.time() - started)
        return LATENCY

    async def single() -> float:
        await asyncio.sleep(0.5)
        before = loop.time()
        await client.relay.create(["report"], "single")
        return loop.time() - before

    async with (
        Simulator(reports=["report"], faults=faults, latency=latency, clock=loop.time) as plaid,
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter, connections=200) as client,
    ):
        started = loop.time()
        single_task = asyncio.create_task(single())
        result = await client.relay.create_many(
            RelayCreateRequest.fan_out(["report"], [f"partner-{number}" for number in range(count)]),
            concurrency=concurrency,
            on_outcome=lambda _: moments.append(loop.time()),
        )
        seconds = loop.time() - started
        waited = await single_task
        longest = max(later - earlier for earlier, later in pairwise([started, *moments]))
        return Measurement(
            len(result.created), seconds, longest, limiter.permits, plaid.counts[CREATE], waited, arrivals
        )


def measure_above(limit: RateLimit | None, server: Limit, *, seconds: float, seed: int = 0) -> int:
    """Create tokens for this long with a limiter, or without, and return how many were created."""
    random.seed(seed)
    return run_virtually(_count_created(limit, server, seconds))


async def _count_created(limit: RateLimit | None, server: Limit, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    limiter = InProcessLimiter({CREATE: limit}, slack=0) if limit else None
    async with (
        Simulator(reports=["report"], limits=[server], latency=LATENCY, clock=loop.time) as plaid,
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter) as client,
    ):
        batch = client.relay.create_many(
            RelayCreateRequest.fan_out(["report"], (f"partner-{number}" for number in range(100_000)))
        )
        running = asyncio.ensure_future(_await_batch(batch))
        await asyncio.sleep(seconds)
        created = len(plaid.ledger)
        running.cancel()
        await asyncio.wait([running])
        return created


async def _await_batch(batch: object) -> object:
    return await batch  # type: ignore[misc]  # a batch is awaitable


REFUSAL = Fault(status=429, times=1)
REFUSAL_WITH_DELAY = Fault(status=429, times=1, headers={"Retry-After": "1"})
TEN, TWENTY = RateLimit(10, 2.0), RateLimit(20, 2.0)
CASES = (
    ("100 at 10 per 2 s", 100, TEN, ()),
    ("100 at 10 per 2 s, one 429", 100, TEN, (REFUSAL,)),
    ("100 at 10 per 2 s, one 429 with a delay of 1 s", 100, TEN, (REFUSAL_WITH_DELAY,)),
    ("200 at 20 per 2 s", 200, TWENTY, ()),
    ("200 at 20 per 2 s, one 429", 200, TWENTY, (REFUSAL,)),
    ("200 at 20 per 2 s, one 429 with a delay of 1 s", 200, TWENTY, (REFUSAL_WITH_DELAY,)),
)
CASES_ABOVE_LIMIT = ((10, 11, 2.0, 40.0), (10, 12, 2.0, 40.0), (50, 55, 60.0, 240.0))


def main() -> None:
    write = sys.stdout.write
    write(f"{'':48} {'seconds':>8} {'longest':>8} {'single':>7} {'permits':>8} {'attempts':>9}\n")
    for name, count, limit, faults in CASES:
        run = measure(count, limit, faults)
        write(
            f"{name:48} {run.seconds:8.1f} {run.longest_gap:8.1f} {run.single_seconds:7.1f} {run.permits:8} {run.attempts:9}\n"
        )
    write(f"\n{'':48} {'limiter':>8} {'none':>8}\n")
    for server, mine, per, seconds in CASES_ABOVE_LIMIT:
        limit = Limit(CREATE, server, per)
        created = [measure_above(each, limit, seconds=seconds) for each in (RateLimit(mine, per), None)]
        name = f"{mine} per {per:.0f} s where {server} are allowed, {seconds:.0f} s"
        write(f"{name:48} {created[0]:8} {created[1]:8}\n")


if __name__ == "__main__":
    main()
