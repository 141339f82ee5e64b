"""Measure how a client adapts to an unknown rate limit: the harness, and a table of figures.

`python tests/rate_harness.py --seeds 3` measures all conditions on the virtual clock and prints one line for each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen
from support import CREATE, OWNER
from virtual_clock import run_virtually

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.simulator import Limit, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plaid_relay_async import RateLimiter

MINUTE = 60.0


@frozen
class Condition:
    """A rate limit, and the latency of requests in seconds: a constant, or a function for each request."""

    window: str = "sliding"
    count: int = 50
    latency: float | Callable[[], float] = 0.3
    retry_after: bool = True

    def limit(self) -> Limit:
        return Limit(CREATE, self.count, MINUTE, self.window, self.retry_after)

    def __str__(self) -> str:
        retry_after = "Retry-After" if self.retry_after else "no Retry-After"
        return f"{self.window}, {self.count} a minute, {self.latency} s, {retry_after}"


CONDITIONS = tuple(
    Condition(*each)
    for each in itertools.product(("sliding", "fixed"), (50, 1_000), (0.02, 0.3, 2.0), (True, False))
)


@frozen
class Figures:
    """The results of a run.

    Attributes:
        refused: the share of the attempts after the first minute that the limit declined.
        used: the creations, as a share of what the limit allows.
        refusals: the number of attempts that the limit declined in the complete run.
    """

    refused: float
    used: float
    refusals: int


def measure(
    condition: Condition,
    *,
    seed: int = 0,
    minutes: int = 10,
    limiter: Callable[[], RateLimiter] | None = None,
) -> Figures:
    """Run an endless batch against the limit for some virtual minutes.

    Args:
        condition: the limit and the latency.
        seed: the seed of the client's jitter, and of the time in a fixed window at which the run begins.
        minutes: the duration of the run.
        limiter: returns the client's rate limiter; by default it has none.
    """
    random.seed(seed)
    return run_virtually(_run_condition(condition, minutes, limiter))


async def _run_condition(
    condition: Condition, minutes: int, limiter: Callable[[], RateLimiter] | None
) -> Figures:
    loop = asyncio.get_running_loop()
    limits, latency = [condition.limit()], condition.latency
    async with (
        Simulator(reports=["report"], limits=limits, latency=latency, clock=loop.time) as plaid,
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter and limiter()) as client,
    ):
        await asyncio.sleep(random.uniform(0, MINUTE))
        running = asyncio.create_task(_create_without_end(client))
        await asyncio.sleep(MINUTE)
        early_created, early_refusals = len(plaid.ledger), plaid.rate_limited[CREATE]
        await asyncio.sleep((minutes - 1) * MINUTE)
        created, refusals = len(plaid.ledger), plaid.rate_limited[CREATE]
        if not running.cancel():
            await running  # it must not end by itself; this raises its error
        await asyncio.wait([running])
    late_declined = refusals - early_refusals
    return Figures(
        late_declined / (late_declined + created - early_created),
        created / (minutes * condition.count),
        refusals,
    )


async def _create_without_end(client: RelayClient) -> None:
    requests = RelayCreateRequest.fan_out(["report"], _partners())
    async with client.relay.create_many(requests) as outcomes:
        async for _ in outcomes:
            pass
    outcomes.result.raise_for_failures()
    raise AssertionError("the batch stopped")


def _partners() -> Iterator[str]:
    return (f"partner-{number}" for number in itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how the client adapts to unknown rate limits.")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs of each condition")
    parser.add_argument("--minutes", type=int, default=10, help="virtual minutes of each run")
    parser.add_argument("--only", default="", help="only conditions whose line contains this")
    options = parser.parse_args()
    sys.stdout.write(f"{'worst of the seeds':48} {'refused':>8} {'used':>7}\n")
    for condition in CONDITIONS:
        if options.only in str(condition):
            runs = [measure(condition, seed=seed, minutes=options.minutes) for seed in range(options.seeds)]
            refused, used = max(run.refused for run in runs), min(run.used for run in runs)
            sys.stdout.write(f"{condition!s:48} {refused:8.2%} {used:7.1%}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
