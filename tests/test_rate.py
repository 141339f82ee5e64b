"""Without a limiter the client adapts to an unknown rate limit; with one, no attempt is declined."""

from __future__ import annotations

import asyncio
import random

import pytest
from rate_harness import CONDITIONS, CREATE, Condition, measure
from support import OWNER, sampled
from virtual_clock import run_virtually

from plaid_relay_async import RelayClient
from plaid_relay_async.limits import PLAID_PRODUCTION, InProcessLimiter, RateLimit
from plaid_relay_async.simulator import Limit, Simulator

# Ten minutes at a thousand a minute are ten thousand creations.
pytestmark = pytest.mark.timeout(300)

# By default each kind of condition once; with more --rounds all conditions, with several seeds.
FEW = (
    Condition("sliding", 50, 0.3, retry_after=True),
    Condition("fixed", 50, 0.02, retry_after=False),
    Condition("fixed", 50, 2.0, retry_after=True),
)


def pytest_generate_tests(metafunc):
    if "condition" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("--rounds")
        few = rounds == 3
        metafunc.parametrize("condition", sampled(FEW, step=3) if few else CONDITIONS, ids=str)
        metafunc.parametrize("seed", range(1 if few else min(rounds, 5)))


def test_a_client_adapts_to_an_unknown_limit(condition, seed):
    """After the first minute hardly any attempt is declined, and nearly all of the limit is used."""
    run = measure(condition, seed=seed)
    refused, used = (0.03, 0.9) if condition.retry_after else (0.1, 0.8)
    assert run.refused < refused
    assert run.used >= used


def test_with_a_limiter_no_attempt_is_declined(condition, seed):
    """With a limiter no attempt is declined from the start, and nearly all of the limit is used."""
    run = measure(
        condition, seed=seed, limiter=lambda: InProcessLimiter({CREATE: RateLimit(condition.count)})
    )
    assert run.refusals == 0
    assert run.used >= 0.9


def test_with_the_presets_no_attempt_is_declined():
    """Of 175 concurrent PDF requests, at most 50 a minute reach Plaid."""

    async def main():
        loop = asyncio.get_running_loop()
        limits = [Limit(path, limit.count, limit.per) for path, limit in PLAID_PRODUCTION.items()]
        async with (
            Simulator(reports=["report"], limits=limits, latency=0.3, clock=loop.time) as plaid,
            RelayClient(OWNER, base_url=plaid.url, rate_limiter=InProcessLimiter(PLAID_PRODUCTION)) as client,
        ):
            started = loop.time()
            await asyncio.gather(*(client.asset_report.get_pdf("report") for _ in range(175)))
            assert not plaid.rate_limited
            return loop.time() - started

    assert 180 < run_virtually(main()) < 195


@pytest.mark.parametrize(("slack", "refuses"), [(None, False), (0.0, True)])
def test_the_slack_covers_varying_latency(slack, refuses):
    """With latencies of 0.1 s to 2 s, the default slack of 2 s a minute is enough, and no slack isn't."""
    condition = Condition(latency=lambda: random.uniform(0.1, 2.0))
    run = measure(condition, limiter=lambda: InProcessLimiter({CREATE: RateLimit(50)}, slack=slack))
    assert bool(run.refusals) == refuses
