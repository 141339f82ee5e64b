"""A batch that its caller leaves, cancels or abandons stops sending, and drains the calls in flight."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from batch_support import (
    all_outcomes,
    assert_nothing_lost,
    batch_of,
    create_requests,
    create_tokens,
    partner_names,
)
from support import CREATE, GET, OWNER, QUICK, ClosedLimiter, timeout_when

from plaid_relay_async import (
    BatchStoppedError,
    Credentials,
    PdfResponse,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RelayGetRequest,
    Timeouts,
    Unknown,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.batch import GET as READS
from plaid_relay_async.batch import Batch
from plaid_relay_async.simulator import Fault, Simulator

# ----------------------------------------------------------------------------------------- leaving a batch


async def test_break_drains_the_calls_in_flight(plaid, client):
    """After `break` nothing new is sent, and the calls in flight are in the result."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    async with client.relay.create_many(create_requests(plaid, 1000), concurrency=10) as outcomes:
        first = await anext(outcomes)
    sent = plaid.counts[CREATE]
    assert_nothing_lost(plaid, [first, *all_outcomes(outcomes.result)])
    assert sent == len(plaid.ledger) < 40
    await asyncio.sleep(0.1)
    assert plaid.counts[CREATE] == sent


async def test_break_keeps_the_reports_that_arrive_in_the_drain(plaid, client, partner):
    """After `break`, the reports that still arrive are in the result."""
    tokens = await create_tokens(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.02))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        async for _ in outcomes:
            break
    counts = outcomes.result.counts
    assert len(outcomes.result.succeeded) == counts["fetched"] - 1
    assert counts["fetched"] == plaid.counts[GET] < 30


async def test_an_exception_in_the_loop_is_not_wrapped(plaid, client):
    """The caller's exception is raised unchanged, and no call in flight is lost."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    seen = []
    with pytest.raises(ZeroDivisionError):
        async with client.relay.create_many(create_requests(plaid, 1000), concurrency=10) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)
                raise ZeroDivisionError
    assert_nothing_lost(plaid, [*seen, *all_outcomes(outcomes.result)])


async def test_a_drain_timeout_leaves_unknown_outcomes(plaid):
    """A call without a response within the drain timeout is unknown, and the batch ends."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="partner-1", stall=30, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as client:
        started_at = time.monotonic()
        async with client.relay.create_many(create_requests(plaid, 5)) as outcomes:
            async for outcome in outcomes:
                if outcome.request.secondary_client_id == "partner-4":
                    break
        assert time.monotonic() - started_at < 20
    (unknown,) = outcomes.result.unknown
    assert unknown.request.secondary_client_id == "partner-1"
    assert (unknown.attempts, unknown.error.attempts) == (1, 1)
    assert "the call was cancelled" in str(unknown.error)


async def test_a_cancelled_batch_drains_and_keeps_its_result(plaid, client):
    """The cancellation is raised, and the batch object has the outcomes."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    batch = client.relay.create_many(create_requests(plaid, 1000), concurrency=10)

    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 25:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(batch.result.created) == len(plaid.ledger)
    assert_nothing_lost(plaid, all_outcomes(batch.result))


@pytest.mark.parametrize("cancellations", [2, 3, 5])
async def test_further_cancellations_do_not_end_a_drain(plaid, client, cancellations):
    """A draining batch waits for the calls in flight, however often it is cancelled, and is cancelled then."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many(create_requests(plaid, 20), concurrency=10)

    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 10:
        await asyncio.sleep(0.001)
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == cancellations
    assert batch.result.counts == {"created": 10}
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_a_timeout_around_a_batch_drains_it(plaid, client):
    """`asyncio.timeout` around a batch has the effect of any other cancellation."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    batch = client.relay.create_many(create_requests(plaid, 10_000), concurrency=10)
    with pytest.raises(TimeoutError):
        async with timeout_when(lambda: plaid.counts[CREATE] > 20):
            await batch
    assert batch.result.created
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_leaving_a_loop_with_unread_reports_does_not_block():
    """Calls in flight are drained; no sender waits for capacity, which is never released again."""

    async def read(request, gate):
        await gate.start_attempt()
        await asyncio.sleep(0.1 if request.relay_token == "slow" else 0)
        return PdfResponse(b"%PDF-")

    rows = [RelayGetRequest("quick"), RelayGetRequest("slow"), RelayGetRequest("never")]
    started_at = time.monotonic()
    async with batch_of(READS, rows, read, concurrency=2, drain_timeout=20) as outcomes:
        await asyncio.sleep(0.02)
    assert time.monotonic() - started_at < 15
    assert (outcomes.result.counts, outcomes.result.not_attempted) == ({"fetched": 2}, [])


async def test_closing_the_client_stops_its_batches(plaid):
    """Every further request would fail in the same way, immediately and without end."""

    def endless():
        report = plaid.add_report()
        number = 0
        while True:
            number += 1
            yield RelayCreateRequest([report], f"partner-{number}")

    async with RelayClient(OWNER, base_url=plaid.url) as client:
        batch = client.relay.create_many(endless(), concurrency=5)
        running = asyncio.ensure_future(batch)
        while plaid.counts[CREATE] < 20:
            await asyncio.sleep(0.001)
    result = await running
    assert "closed" in str(result.stopped_by)
    assert_nothing_lost(plaid, all_outcomes(result))


# -------------------------------------------------------------------------------------- abandoning a batch


@pytest.mark.parametrize("times", [1, 2])
async def test_an_abandoned_drain_does_not_wait(plaid, client, times):
    """`abandon()` ends a drain: calls in flight become unknown, and the cancellation is raised."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    batch = client.relay.create_many(create_requests(plaid, 20), concurrency=10)

    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 10:
        await asyncio.sleep(0.001)
    started_at = time.monotonic()
    task.cancel()
    await asyncio.sleep(0)
    for _ in range(times):
        batch.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started_at < 20
    assert len(batch.result.unknown) == 10
    assert_nothing_lost(plaid, all_outcomes(batch.result))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_batch_can_be_abandoned_while_it_runs(plaid, client, streamed):
    """Nothing more is sent, calls in flight become unknown, and the batch ends normally."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    rows, seen = create_requests(plaid, 20), []
    batch = client.relay.create_many(rows, concurrency=10)

    async def run() -> None:
        if streamed:
            async with batch as outcomes:
                seen.extend([outcome async for outcome in outcomes])
        else:
            seen.extend((await batch).unknown)

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 10:
        await asyncio.sleep(0.001)
    batch.abandon()
    await task
    assert [type(outcome) for outcome in seen] == [Unknown] * 10
    assert (len(batch.result.not_attempted), len([*rows]), plaid.counts[CREATE]) == (0, 10, 10)


async def test_a_batch_that_is_abandoned_before_it_starts_sends_nothing(plaid, client):
    """A batch that is abandoned before its start ends immediately, and its input isn't read."""
    rows = create_requests(plaid, 3)
    batch = client.relay.create_many(rows)
    batch.abandon()
    assert (await batch).counts == {}
    assert (len([*rows]), plaid.counts[CREATE]) == (3, 0)


# ----------------------------------------------------------------------------------- the rest of the input


@pytest.mark.parametrize("way", ["break", "cancel", "callback"])
async def test_the_rest_of_an_async_generator_is_available_when_the_batch_is_left(plaid, client, way):
    """A read of the input that is in progress is waited for, and its request is in `not_attempted`."""
    requested, left = asyncio.Event(), asyncio.Event()

    async def rows():
        for n, row in enumerate(create_requests(plaid, 100)):
            if n == 1:
                requested.set()
                await left.wait()
                await asyncio.sleep(0.05)
            yield row

    source = rows()

    async def stop_early() -> None:
        async with client.relay.create_many(source, concurrency=2, on_outcome=raising) as outcomes:
            batches.append(outcomes)
            async for _ in outcomes:
                await requested.wait()
                left.set()  # the rest of this iteration leaves the batch before the generator goes on
                if way == "break":
                    break
                if way == "cancel":
                    asyncio.current_task().cancel()

    def raising(_outcome) -> None:
        if way == "callback":
            left.set()
            raise OSError("the disk is full")

    batches: list[Batch] = []
    task = asyncio.create_task(stop_early())
    await asyncio.wait([task])
    if way == "callback":
        assert isinstance(task.exception(), BatchStoppedError)
    else:
        assert task.cancelled() == (way == "cancel")
    rest = [row async for row in source]
    unsent = [*batches[0].result.not_attempted, *rest]
    assert [r.secondary_client_id for r in unsent] == partner_names(100)[1:]
    assert (len(rest), plaid.counts[CREATE]) == (98, 1)


async def test_a_pending_read_of_the_input_is_cancelled_after_the_drain_time(plaid):
    """After the drain timeout, or once the batch is abandoned, the read is cancelled and a generator cleans up."""
    closed_inputs, waiting = [], asyncio.Event()

    async def rows(name):
        try:
            for row in create_requests(plaid, 1):
                yield row
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed_inputs.append(name)

    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.05)) as client:
        async with client.relay.create_many(rows("left")) as outcomes:
            async for _ in outcomes:
                break
        assert closed_inputs == ["left"]
        plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}))
        with pytest.raises(BatchStoppedError):
            await client.relay.create_many(rows("stopped"), on_outcome=lambda outcome: 1 / 0)
        assert closed_inputs == ["left", "stopped"]
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        waiting.clear()
        started_at = time.monotonic()
        batch = client.relay.create_many(rows("abandoned"))
        running = asyncio.ensure_future(batch)
        await waiting.wait()
        batch.abandon()
        await running
        assert time.monotonic() - started_at < 20
    assert closed_inputs == ["left", "stopped", "abandoned"]


# ------------------------------------------------------------------------------------- no further attempts


async def test_a_declined_call_that_waits_for_a_pause_fails_when_the_batch_is_left(plaid, client):
    """A call that Plaid declined, and that waits for its next attempt, certainly wasn't executed."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "30"}))
    batch = client.relay.create_many(create_requests(plaid, 20), concurrency=4)
    task = asyncio.ensure_future(batch)
    while plaid.counts[CREATE] < 4:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)  # the responses arrive
    started_at = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started_at < 20
    assert (len(batch.result.failed), batch.result.unknown, len(plaid.ledger)) == (4, [], 0)
    assert all(isinstance(o.error, RateLimitError) for o in batch.result.failed)


async def test_a_request_that_waits_for_the_limiter_is_not_attempted(plaid):
    """A request that waits for the rate limiter when the batch is left is in `not_attempted`."""
    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=ClosedLimiter()) as client:
        rows = create_requests(plaid, 20)
        async with client.relay.create_many(rows, concurrency=3) as outcomes:
            await asyncio.sleep(0.02)
        assert [r.secondary_client_id for r in outcomes.result.not_attempted] == partner_names(3)
        assert [r.secondary_client_id for r in rows] == partner_names(20)[3:]
    assert plaid.counts[CREATE] == 0


async def test_a_batch_that_is_left_while_credentials_are_fetched_sends_nothing(plaid):
    """A call that waits for its credentials when the batch is left isn't sent."""
    fetching, release = asyncio.Event(), asyncio.Event()

    async def fetch_slowly() -> Credentials:
        fetching.set()
        await release.wait()
        return OWNER

    async with RelayClient(fetch_slowly, base_url=plaid.url) as client:
        async with client.relay.create_many(create_requests(plaid, 5), concurrency=2) as outcomes:
            await fetching.wait()
        release.set()
    assert (len(outcomes.result.not_attempted), plaid.counts[CREATE]) == (2, 0)


async def test_no_retry_starts_after_the_batch_is_left(plaid):
    """If the batch is left between a declined attempt and the next one, there is no next one."""
    started = asyncio.Event()

    async def create(request, gate):
        await gate.start_attempt()
        started.set()
        await asyncio.sleep(0.02)
        gate.prepare_retry(RateLimitError("no", status=429), in_doubt_error=None)
        raise AssertionError("prepare_retry() forbids the next attempt")

    async with batch_of(
        CREATIONS, create_requests(plaid, 1), create, concurrency=1, drain_timeout=5
    ) as outcomes:
        await started.wait()
    (failed,) = outcomes.result.failed
    assert isinstance(failed.error, RateLimitError)


async def test_no_attempt_starts_after_the_batch_is_left(plaid):
    """If the batch is left just before an attempt, the gate forbids it."""
    waiting = asyncio.Event()

    async def create(request, gate):
        waiting.set()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await gate.start_attempt()

    async with batch_of(
        CREATIONS, create_requests(plaid, 1), create, concurrency=1, drain_timeout=5
    ) as outcomes:
        await waiting.wait()
    assert len(outcomes.result.not_attempted) == 1


# --------------------------------------------------------------------------------------- at random moments


@pytest.mark.parametrize("way", ["break", "raise", "cancel"])
async def test_no_token_is_lost_whenever_a_batch_is_left(way, rounds, subtests):
    """A batch is left at random moments, with faults: each token is in an outcome, or its partner is unknown."""
    for seed in range(rounds):
        with subtests.test(seed=seed):
            await leave_at_random(way, seed)


async def leave_at_random(way: str, seed: int) -> None:
    draw = random.Random(f"{way}-{seed}")
    faults = [
        Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, rate=0.03),
        Fault(path=CREATE, close=True, when="after", rate=0.02),
        Fault(path=CREATE, status=500, when="after", rate=0.02),
        Fault(path=CREATE, truncate=75, rate=0.02),
    ]
    moment, seen = draw.random() * 0.2, []
    async with (
        Simulator(seed=seed, latency=draw.random() * 0.01, faults=faults) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
    ):
        batch = client.relay.create_many(
            create_requests(plaid, 2000), concurrency=draw.choice([1, 5, 50]), on_outcome=seen.append
        )
        if way == "cancel":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(moment):
                    await batch
            received = []
        else:
            received = await leave_the_loop(batch, way, moment)
        outcomes = [*received, *all_outcomes(batch.result)]
        assert_nothing_lost(plaid, outcomes)
        assert sorted(map(id, seen)) == sorted(map(id, outcomes))
        assert sum(batch.result.counts.values()) == len(outcomes)


async def leave_the_loop(batch: Batch, way: str, moment: float) -> list:
    received, end = [], time.monotonic() + moment
    try:
        async with batch as outcomes:
            async for outcome in outcomes:
                received.append(outcome)
                if time.monotonic() > end:
                    if way == "break":
                        break
                    raise ZeroDivisionError
    except ZeroDivisionError:
        assert way == "raise"
    return received
