from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
import time
import tracemalloc
import warnings

import pytest
from processes import wait_until_async
from support import OWNER, QUICK, RecordingJournal, batch_of, timeout_when

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    Created,
    Credentials,
    DuplicateRequestError,
    Failed,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RequestValidationError,
    RetryPolicy,
    Timeouts,
    Unknown,
    WaitTooLongError,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.batch import Batch, LostRaceError
from plaid_relay_async.batch.input import DuplicateFilter
from plaid_relay_async.simulator import Fault, Simulator

CREATE = "/credit/relay/create"


def partner_names(count: int) -> list[str]:
    return [f"partner-{n}" for n in range(count)]


def create_requests(plaid: Simulator, count: int = 20):
    return RelayCreateRequest.fan_out([plaid.add_report()], partner_names(count))


def all_outcomes(result) -> list:
    return [*result.created, *result.failed, *result.unknown]


def partner_by_token(plaid: Simulator) -> dict[str, str]:
    return {entry["relay_token"]: entry["secondary_client_id"] for entry in plaid.ledger}


def assert_nothing_lost(plaid: Simulator, outcomes: list) -> None:
    """Check that each token of the ledger is in its partner's outcome, or that outcome is unknown; no partner has two."""
    tokens = {o.relay_token: o.request.secondary_client_id for o in outcomes if isinstance(o, Created)}
    unknown = {o.request.secondary_client_id for o in outcomes if isinstance(o, Unknown)}
    seen = [o.request.secondary_client_id for o in outcomes]
    assert len(seen) == len(set(seen))
    for token, partner in partner_by_token(plaid).items():
        assert tokens.get(token) == partner or partner in unknown
    assert tokens.keys() <= partner_by_token(plaid).keys()
    assert len(set(partner_by_token(plaid).values())) == len(plaid.ledger)


# ------------------------------------------------------------------------------------ the two ways of use


async def test_awaiting_a_batch_returns_a_token_for_each_partner(plaid, client):
    """Each partner has the token that Plaid issued for it, and the result contains all of them."""
    result = await client.relay.create_many(create_requests(plaid, 200))
    assert {o.relay_token: o.request.secondary_client_id for o in result.created} == partner_by_token(plaid)
    assert sorted(partner_by_token(plaid).values()) == sorted(partner_names(200))
    assert (result.counts["created"], result.failed, result.unknown, result.not_attempted) == (
        200,
        [],
        [],
        [],
    )
    assert result.stopped_by is None
    assert result.elapsed > 0
    assert repr(result) == "<BatchResult succeeded=200, failed=0, unknown=0, not_attempted=0>"
    result.raise_for_failures()


async def test_streaming_a_batch_yields_each_outcome_once(plaid, client):
    """The loop receives every outcome once; the result counts them and doesn't store them."""
    seen = []
    async with client.relay.create_many(create_requests(plaid, 200)) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)
    assert {o.relay_token: o.request.secondary_client_id for o in seen} == partner_by_token(plaid)
    assert len(seen) == outcomes.result.counts["created"] == 200
    assert all_outcomes(outcomes.result) == []


async def test_elapsed_is_set_when_a_stream_ends():
    """The result has the elapsed seconds as soon as the block is left, however slowly the loop reads."""

    async def pause(steps):
        for _ in range(steps):
            await asyncio.sleep(0)

    for concurrency, work, reading in itertools.product((1, 2, 3), range(6), range(9)):

        async def create(request, gate, work=work):
            await pause(work)
            return RelayCreateResponse("token")

        rows = RelayCreateRequest.fan_out(["report"], partner_names(3))
        async with batch_of(CREATIONS, rows, create, concurrency=concurrency, drain_timeout=1) as outcomes:
            async for _ in outcomes:
                await pause(reading)
        assert outcomes.result.elapsed > 0


async def test_outcomes_are_yielded_in_order_of_completion(plaid, client):
    """A slow partner doesn't delay the others."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="partner-0", latency=0.2))
    async with client.relay.create_many(create_requests(plaid, 10)) as outcomes:
        order = [o.request.secondary_client_id async for o in outcomes]
    assert order[-1] == "partner-0"
    assert len(order) == 10


async def test_an_outcome_has_its_attempts_and_request_id(plaid, client):
    """An outcome has its attempts, time, request ID and request; its repr doesn't show the token."""
    plaid.fail(Fault(path=CREATE, status=429, times=1))
    result = await client.relay.create_many(create_requests(plaid, 1))
    (created,) = result.created
    assert (created.attempts, created.journalled) == (2, False)
    assert created.elapsed > 0
    assert created.request_id == plaid.ledger[0]["request_id"]
    assert "sandbox" not in repr(created)
    assert "partner-0" in repr(created)


async def test_a_failing_partner_does_not_stop_the_others(plaid, client):
    """Rejected, lost and created requests of one batch each have their own outcome."""
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="partner-3", status=400),
        Fault(path=CREATE, secondary_client_id="partner-5", close=True, when="after"),
    )
    result = await client.relay.create_many(create_requests(plaid))
    (failed,), (unknown,) = result.failed, result.unknown
    assert failed.request.secondary_client_id == "partner-3"
    assert isinstance(failed.error, InvalidRequestError)
    assert failed.request_id == failed.error.request_id is not None
    assert unknown.request.secondary_client_id == "partner-5"
    assert isinstance(unknown.error, OutcomeUnknownError)
    assert len(result.created) == 18
    assert result.error_codes == {"INVALID_FIELD": 1, "OutcomeUnknownError": 1}
    assert_nothing_lost(plaid, all_outcomes(result))


async def test_failures_are_raised_as_a_group(plaid, client):
    """Failed and unknown outcomes are in the group; those that a loop received are counted."""
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="partner-3", status=400),
        Fault(path=CREATE, secondary_client_id="partner-5", close=True),
    )
    result = await client.relay.create_many(create_requests(plaid))
    with pytest.raises(ExceptionGroup, match="1 failed, 1 unknown") as caught:
        result.raise_for_failures()
    assert {type(error) for error in caught.value.exceptions} == {InvalidRequestError, OutcomeUnknownError}
    async with client.relay.create_many(create_requests(plaid)) as outcomes:
        async for _ in outcomes:
            pass
    with pytest.raises(ExceptionGroup) as caught:
        outcomes.result.raise_for_failures()
    assert "the loop received 2 of the failed and unknown outcomes" in str(caught.value.exceptions[0])
    assert "INVALID_FIELD 1" in str(caught.value.exceptions[0])


# ------------------------------------------------------------------------------------------- the input


async def test_requests_may_come_from_an_async_iterable(plaid, client):
    """An async iterable, such as a database cursor, is read only as its rows are needed."""

    async def rows():
        for request in create_requests(plaid, 30):
            await asyncio.sleep(0)
            yield request

    result = await client.relay.create_many(rows(), concurrency=4)
    assert len(result.created) == 30
    assert_nothing_lost(plaid, all_outcomes(result))


async def test_backpressure_limits_how_far_the_input_is_read(plaid, client):
    """A stream that isn't consumed stops reading its input, so memory grows only with the concurrency."""
    read = []

    def rows():
        for request in create_requests(plaid, 500):
            read.append(request)
            yield request

    async with client.relay.create_many(rows(), concurrency=5) as outcomes:
        await anext(aiter(outcomes))
        await asyncio.sleep(0.2)
        assert 5 <= len(read) <= 11
    assert len(all_outcomes(outcomes.result)) + len(outcomes.result.not_attempted) == len(read) - 1


async def test_the_concurrency_limits_the_calls_in_flight(plaid):
    """The number of calls in flight reaches the limit and doesn't exceed it."""
    in_flight, maximum = 0, 0

    async def create(request, gate):
        nonlocal in_flight, maximum
        await gate.start_attempt()
        in_flight += 1
        maximum = max(maximum, in_flight)
        await asyncio.sleep(random.random() / 1000)
        in_flight -= 1
        return RelayCreateResponse(f"token-{request.secondary_client_id}")

    result = await batch_of(CREATIONS, create_requests(plaid, 100), create, concurrency=7, drain_timeout=1)
    assert maximum == 7
    assert len(result.created) == 100


async def test_a_duplicate_pair_fails(plaid, client):
    """The second request for a pair fails without being sent, and the batch continues."""
    report = plaid.add_report()
    rows = list(RelayCreateRequest.fan_out([report], ["a", "b", "a", "c"]))
    rows += RelayCreateRequest.fan_out([plaid.add_report()], ["a"])
    result = await client.relay.create_many(rows)
    (duplicate,) = result.failed
    assert duplicate.request.secondary_client_id == "a"
    assert isinstance(duplicate.error, DuplicateRequestError)
    assert duplicate.error.sent is False
    assert duplicate.attempts == 0
    assert result.error_codes == {"DuplicateRequestError": 1}
    assert len(plaid.ledger) == 4


async def test_duplicates_may_be_allowed(plaid, client):
    """With allow_duplicates=True, both requests for a pair are sent."""
    rows = list(RelayCreateRequest.fan_out([plaid.add_report()], ["a", "a"]))
    result = await client.relay.create_many(rows, allow_duplicates=True)
    assert len(result.created) == len(plaid.ledger) == 2


def test_deduplication_needs_little_memory():
    """It takes at most 128 bytes a request, whatever the length of its token and its partner's id."""
    duplicates, count = DuplicateFilter(CREATIONS.identity), 40_000
    tracemalloc.start()
    try:
        for number in range(count):
            assert not duplicates.is_duplicate(
                RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{number:050}")
            )
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / count <= 128
    assert duplicates.is_duplicate(RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{5:050}"))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_raises_stops_the_batch(plaid, client, asynchronous):
    """Calls in flight are drained, and BatchStoppedError has the error as its cause and the outcomes."""
    plaid.fail(Fault(path=CREATE, latency=0.05))

    def rows():
        yield from create_requests(plaid, 3)
        raise LookupError("no row")

    async def later():
        for row in rows():
            yield row

    batch = client.relay.create_many(later() if asynchronous else rows())
    with pytest.raises(BatchStoppedError, match="raised LookupError") as caught:
        await batch
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.result is batch.result
    assert len(batch.result.created) == 3
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_an_input_that_raises_is_reported_after_the_outcomes(plaid, client):
    """A stream yields the outcomes that it has before it raises."""

    def rows():
        yield from create_requests(plaid, 3)
        raise LookupError

    seen = []
    with pytest.raises(BatchStoppedError):
        async with client.relay.create_many(rows()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)
    assert len(seen) == 3


async def test_an_item_of_another_type_is_rejected(plaid, client):
    """A plain partner id isn't a request; the error names the expected type."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(["partner"])
    assert "RelayCreateRequest" in str(caught.value.__cause__)


# ----------------------------------------------------------------------------------- leaving early


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


async def test_a_call_without_a_result_is_unknown(plaid):
    """An attempt that was started and cancelled without a result may have been executed."""

    async def create(request, gate):
        await gate.start_attempt()
        await asyncio.Event().wait()

    async with batch_of(
        CREATIONS, create_requests(plaid, 1), create, concurrency=1, drain_timeout=0.02
    ) as outcomes:
        await asyncio.sleep(0.01)
    (unknown,) = outcomes.result.unknown
    assert "the batch ended before a response" in str(unknown.error)


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


async def test_a_timeout_around_a_batch_drains_it(plaid, client):
    """`asyncio.timeout` around a batch has the effect of any other cancellation."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    batch = client.relay.create_many(create_requests(plaid, 10_000), concurrency=10)
    with pytest.raises(TimeoutError):
        async with timeout_when(lambda: plaid.counts[CREATE] > 20):
            await batch
    assert batch.result.created
    assert_nothing_lost(plaid, all_outcomes(batch.result))


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

    class Closed:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.Event().wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Closed()) as client:
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
        gate.prepare_retry(RateLimitError("no", status=429), never_executed=True)
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


# -------------------------------------------------------------------------------------- shared errors


@pytest.mark.parametrize(
    "body",
    [
        {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_ROUTE_ACCESS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_OF_TOMORROW"},
    ],
)
async def test_a_shared_error_stops_the_batch(plaid, client, body):
    """After a few errors that every request would get, the batch stops, and the rest of the input stays unread."""
    plaid.fail(Fault(path=CREATE, status=400, body=body, latency=0.01))
    rows = create_requests(plaid, 1000)
    result = await client.relay.create_many(rows, concurrency=10)
    assert result.stopped_by.error_code == body["error_code"]
    assert 3 <= len(result.failed) <= 20
    assert len(list(rows)) == 1000 - len(result.failed) - len(result.not_attempted)


async def test_the_cause_of_a_stop_is_in_the_result_at_once(plaid, client):
    """Callbacks and the caller's loop see it while the batch still drains, and not only at its end."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}, times=3))
    seen = []

    def on_outcome(_: object) -> None:
        seen.append(batch.result.stopped_by)

    batch = client.relay.create_many(create_requests(plaid, 10), concurrency=1, on_outcome=on_outcome)
    async with batch as outcomes:
        errors = [outcome.error async for outcome in outcomes]
    assert seen == [None, None, errors[2]]


async def test_exhausted_credits_stop_the_batch(plaid, client):
    """A 429 that doesn't end by waiting stops the batch, too."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": "CREDITS_EXHAUSTED"}))
    result = await client.relay.create_many(create_requests(plaid, 1000), concurrency=2)
    assert 3 <= len(result.failed) <= 5
    assert result.stopped_by.error_code == "CREDITS_EXHAUSTED"


async def test_shared_errors_with_successes_in_between_do_not_stop_the_batch(plaid):
    """Credentials that fail now and then, while they are rotated, fail only single requests."""
    number = 0

    async def rotating() -> Credentials:
        nonlocal number
        number += 1
        return Credentials("owner", OWNER.secret if number % 2 else "yesterdays-secret")

    async with Simulator(clients={"owner": OWNER.secret}) as strict:
        async with RelayClient(rotating, base_url=strict.url) as client:
            result = await client.relay.create_many(create_requests(strict, 20), concurrency=1)
    assert result.counts == {"created": 10, "failed": 10}
    assert result.stopped_by is None


def requests_for_three_reports(plaid: Simulator, count: int, wrong: str = "assets-sandbox-mistyped"):
    """Yield requests for a good, a wrong and another good report, alternately."""
    reports = (plaid.add_report(), wrong, plaid.add_report())
    for partner in partner_names(count):
        for report in reports:
            yield RelayCreateRequest([report], partner)


async def test_an_error_of_a_report_stops_the_requests_for_that_report(plaid, client):
    """After a few errors the other requests for the report fail unsent; requests for other reports are sent."""
    async with client.relay.create_many(requests_for_three_reports(plaid, 200), concurrency=10) as batch:
        outcomes = [outcome async for outcome in batch]
    wrong = [each for each in outcomes if each.request.report_tokens == ("assets-sandbox-mistyped",)]
    unsent = [each for each in wrong if not each.attempts]
    assert len(outcomes) == 600
    assert batch.result.counts == {"created": 400, "failed": 200}
    assert batch.result.error_codes == {"INVALID_ASSET_REPORT_TOKEN": 200}
    assert (batch.result.stopped_by, batch.result.not_attempted) == (None, [])
    assert 3 <= 200 - len(unsent) <= 3 + 10
    assert len(plaid.requests) == 400 + 200 - len(unsent)
    for each in unsent:
        assert isinstance(each.error, InvalidRequestError)
        assert (each.error.sent, each.error.attempts, each.error.status) == (False, 0, 400)
        assert each.request_id is each.error.request_id is None
        problem = "not sent after 3 errors of the same report: Plaid responded with INVALID_ASSET"
        assert problem in str(each.error)
        assert "mistyped" not in str(each.error)
    assert len({id(each.error) for each in unsent}) == len(unsent)


@pytest.mark.parametrize(
    ("body", "stops"),
    [
        ({"error_type": "INVALID_INPUT", "error_code": "INVALID_ASSET_REPORT_TOKEN"}, True),
        ({"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}, True),
        ({"error_type": "ASSET_REPORT_ERROR", "error_code": "DATA_UNAVAILABLE"}, True),
        ({"error_type": "ASSETS_ERROR", "error_code": "OF_TOMORROW"}, True),
        ({"error_type": "ITEM_ERROR", "error_code": "PRODUCT_NOT_READY"}, False),
        ({"error_type": "INVALID_INPUT", "error_code": "INVALID_RELAY_TOKEN"}, False),
        ({"error_type": "INVALID_REQUEST", "error_code": "INVALID_FIELD"}, False),
    ],
)
async def test_which_errors_stop_the_requests_for_a_report(plaid, client, body, stops):
    """An error of the report affects each partner; an error of the partner or the Item doesn't."""
    plaid.fail(Fault(path=CREATE, status=400, body=body))
    result = await client.relay.create_many(create_requests(plaid, 20), concurrency=1)
    assert result.counts == {"failed": 20}
    assert len(plaid.requests) == (3 if stops else 20)


async def test_a_success_resets_the_errors_of_a_report(plaid, client):
    """Errors of a report with successes in between stop nothing."""
    body = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}
    for number in (0, 1, 3, 4, 6, 7):
        plaid.fail(Fault(path=CREATE, status=400, body=body, secondary_client_id=f"partner-{number}"))
    result = await client.relay.create_many(create_requests(plaid, 20), concurrency=1)
    assert result.counts == {"created": 14, "failed": 6}
    assert len(plaid.requests) == 20


async def test_a_report_resumes_if_a_request_in_flight_succeeds():
    """A success after the report has stopped, as when it becomes ready, lifts the stop."""
    unsent, ready = asyncio.Event(), asyncio.Event()

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id in {"partner-1", "partner-2", "partner-3"}:
            raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")
        await unsent.wait()
        return RelayCreateResponse("token")

    async def rows():
        for partner in partner_names(5):
            yield RelayCreateRequest(["report"], partner)
        await ready.wait()
        yield RelayCreateRequest(["report"], "partner-5")

    def count(outcome):
        if isinstance(outcome, Created):
            ready.set()
        elif not outcome.attempts:
            unsent.set()

    result = await batch_of(CREATIONS, rows(), create, concurrency=2, drain_timeout=1, on_outcome=count)
    assert [each.request.secondary_client_id for each in result.created] == ["partner-0", "partner-5"]
    assert [each.attempts for each in result.failed] == [1, 1, 1, 0]


async def test_several_reports_of_one_request_are_stopped_together(plaid, client):
    """Which report is wrong isn't known, so requests with one of them alone are sent; their order doesn't matter."""
    orders = (["good", "wrong"], ["wrong", "good"])
    both = [RelayCreateRequest(tokens, f"p{n}") for n in range(10) for tokens in orders]
    alone = RelayCreateRequest.fan_out([plaid.add_report("good")], partner_names(10))
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}, times=3))
    result = await client.relay.create_many([*both, *alone], concurrency=1, allow_duplicates=True)
    assert result.counts == {"created": 10, "failed": 20}
    assert len(plaid.requests) == 3 + 10


@pytest.mark.parametrize(
    ("error", "never_executed", "kind"),
    [
        (NotSentError("no connection"), True, Failed),
        (RateLimitError("later", status=429), True, Failed),
        (OutcomeUnknownError("lost"), False, Unknown),
    ],
    ids=["not sent", "declined", "in doubt"],
)
async def test_no_retry_starts_after_the_report_has_stopped(error, never_executed, kind):
    """A call that may be attempted again fails with the report's error; a call in doubt stays unknown."""
    stopped, outcomes = asyncio.Event(), []

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id == "partner-0":
            await stopped.wait()
            gate.prepare_retry(error, never_executed=never_executed)
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    def count(outcome):
        outcomes.append(outcome)
        if len(outcomes) == 3:
            stopped.set()

    rows = RelayCreateRequest.fan_out(["report"], partner_names(4))
    await batch_of(CREATIONS, rows, create, concurrency=2, drain_timeout=1, on_outcome=count)
    (last,) = [each for each in outcomes if each.request.secondary_client_id == "partner-0"]
    sent = not isinstance(error, NotSentError)
    assert (type(last), last.attempts, last.error.sent) == (kind, 1, sent)
    message = f"not sent{' again' if sent else ''} after 3 errors"
    assert message in str(last.error if kind is Failed else last.error.__cause__)


async def test_the_memory_of_stopped_reports_is_bounded():
    """Of many wrong reports only the latest ones are remembered, without their tokens."""

    async def create(request, gate):
        await gate.start_attempt()
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    wrong = [RelayCreateRequest([f"report-{n}"], f"p{partner}") for n in range(600) for partner in range(3)]
    batch = batch_of(CREATIONS, wrong, create, concurrency=1, drain_timeout=1)
    assert (await batch).counts == {"failed": 1800}
    assert len(batch.sending.report_errors) == 256
    assert batch.sending.report_stop_cause(RelayCreateRequest(["report-0"], "p")) is None
    assert batch.sending.report_stop_cause(RelayCreateRequest(["report-599"], "p")).status == 400
    assert "report-599" not in repr(batch.sending.report_errors)


async def test_waiting_for_a_rate_limit_is_queueing(plaid):
    """In a batch, declined attempts count against neither the attempts nor the deadline of a request."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=30))
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "3"}, times=1))
    impatient = RetryPolicy(attempts=1, backoff=0.001, max_backoff=0.002)
    async with RelayClient(OWNER, base_url=plaid.url, retry=impatient) as client:
        result = await client.relay.create_many(create_requests(plaid, 5), concurrency=2, timeout=2)
    assert len(result.created) == 5
    assert max(o.attempts for o in result.created) > 5


async def test_declined_attempts_do_not_use_up_the_attempts(plaid):
    """After many declined attempts, an attempt that wasn't sent is still repeated."""

    class Hiccup:
        tries = 0

        async def acquire(self, endpoint: str) -> None:
            self.tries += 1
            if self.tries == 5:
                raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=4))
    policy = RetryPolicy(attempts=2, backoff=0.001)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy, rate_limiter=Hiccup()) as client:
        result = await client.relay.create_many(create_requests(plaid, 1))
    assert result.created[0].attempts == 5


async def test_a_pause_that_is_too_long_stops_the_batch(plaid, client):
    """The pause isn't shortened: the request fails with the delay, and the rest isn't attempted."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "301"}))
    rows = create_requests(plaid, 100)
    result = await client.relay.create_many(rows, concurrency=1)
    (failed,) = result.failed
    assert isinstance(failed.error, RateLimitError)
    assert (failed.error.retry_after, failed.error.exceeds_max_pause) == (301.0, True)
    assert result.stopped_by is failed.error
    assert len(list(rows)) == 99
    second = await client.relay.create_many(create_requests(plaid, 100), concurrency=1)
    assert (len(second.failed), second.failed[0].attempts, plaid.counts[CREATE]) == (1, 0, 1)
    assert isinstance(second.failed[0].error, WaitTooLongError)
    assert second.stopped_by is second.failed[0].error


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"Retry-After": "Mon, 01 Jan 2030 00:00:00 +99999999999999999999"},
        {
            "Retry-After": "Mon, 01 Jan 2030 00:00:00 GMT",
            "Date": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        },
        {"Retry-After": "9" * 400},
    ],
    ids=["year", "offset", "date", "seconds"],
)
async def test_an_absurd_retry_after_date_changes_no_outcome(plaid, client, headers):
    """Whatever a server sends in Retry-After and Date, a plain 400 is a failure."""
    plaid.fail(Fault(path=CREATE, status=400, headers=headers))
    result = await client.relay.create_many(create_requests(plaid, 3))
    assert result.counts == {"failed": 3}
    with pytest.raises(InvalidRequestError):
        await client.relay.create([plaid.add_report()], "p")


async def test_an_absurd_retry_after_in_seconds_is_capped(plaid, client):
    """A 429 with an absurd delay fails with the largest number of seconds, and so does the next call."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "9" * 400}))
    for attempts, cls in ((1, RateLimitError), (0, WaitTooLongError)):
        with pytest.raises(cls) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert caught.value.attempts == attempts
        assert caught.value.retry_after == pytest.approx(sys.float_info.max)


async def test_pauses_that_add_up_stop_the_batch(plaid):
    """Many short pauses without a success in between count as a long one; planned maintenance counts alike."""
    maintenance = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=503, body=maintenance))
    policy = RetryPolicy(backoff=0.02, max_backoff=0.02, max_pause=0.1)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        result = await client.relay.create_many(create_requests(plaid, 10), concurrency=2)
    assert isinstance(result.failed[0].error, RateLimitError)
    assert result.failed[0].error.error_code == "PLANNED_MAINTENANCE"
    assert plaid.counts[CREATE] > 5
    assert result.unknown == []


# ------------------------------------------------------------------------------------------- callbacks


async def test_callbacks_receive_each_outcome(plaid, client):
    """`on_outcome` is called before the loop receives the outcome, and the progress adds up."""
    seen, progress = [], []
    async with client.relay.create_many(
        create_requests(plaid), on_outcome=seen.append, on_progress=progress.append
    ) as outcomes:
        async for outcome in outcomes:
            assert outcome in seen
    assert [p.done for p in progress] == list(range(1, 21))
    assert all(p.pending == p.requests_read - p.done for p in progress)
    assert (progress[-1].succeeded, progress[-1].failed, progress[-1].unknown) == (20, 0, 0)
    assert progress[-1].requests_read == 20
    assert progress[0].elapsed > 0
    assert outcomes.progress.pending == 0


@pytest.mark.parametrize("callback", ["on_outcome", "on_progress"])
async def test_a_callback_that_raises_stops_the_batch(plaid, client, callback):
    """No outcome is lost if a callback raises."""
    plaid.fail(Fault(path=CREATE, latency=0.01))

    def broken(_: object) -> None:
        raise ZeroDivisionError

    batch = client.relay.create_many(create_requests(plaid, 100), concurrency=5, **{callback: broken})
    with pytest.raises(BatchStoppedError) as caught:
        await batch
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert 5 <= len(batch.result.created) <= 10
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_async_callbacks_are_rejected(client):
    """They would never be awaited."""

    async def later(_: object) -> None:
        raise AssertionError

    for name in ("on_outcome", "on_progress"):
        with pytest.raises(ConfigurationError, match="plain functions"):
            client.relay.create_many([], **{name: later})


@pytest.mark.parametrize("place", ["on_outcome", "limiter", "intent", "outcome", "input"])
async def test_a_stray_cancelled_error_loses_nothing(plaid, place):
    """A CancelledError from the caller's code, without a cancelled task, is an error of that code."""

    class Cancelled(BreakingJournal):
        async def acquire(self, endpoint: str) -> None:
            raise asyncio.CancelledError

        async def record_intent(self, request: RelayCreateRequest) -> None:
            self._raise("intent")

        async def record_outcome(self, outcome) -> None:
            self._raise("outcome")

        def _raise(self, where: str) -> None:
            if where == place:
                raise asyncio.CancelledError

    def on_outcome(_: object) -> None:
        if place == "on_outcome":
            raise asyncio.CancelledError

    async def rows():
        for number, request in enumerate(create_requests(plaid, 10)):
            if (place, number) == ("input", 4):
                raise asyncio.CancelledError
            yield request

    cancelled = Cancelled()
    limiter = cancelled if place == "limiter" else None
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client:
        batch = client.relay.create_many(rows(), concurrency=2, on_outcome=on_outcome, journal=cancelled)
        if place == "limiter":
            assert len((await batch).failed) == 10
        else:
            with pytest.raises(BatchStoppedError):
                await batch
    assert_nothing_lost(plaid, all_outcomes(batch.result))


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


async def test_requests_that_fail_immediately_do_not_block_the_loop(plaid):
    """A batch that never waits for anything can still be cancelled."""

    async def create(request, gate):
        raise RequestValidationError("x")

    report = plaid.add_report()
    endless = (RelayCreateRequest([report], f"p{n}") for n in itertools.count())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await batch_of(CREATIONS, endless, create, concurrency=3, drain_timeout=1)


async def test_none_among_the_requests_is_rejected(plaid, client):
    """None isn't mistaken for the end of the input."""
    report = plaid.add_report()
    rows = [RelayCreateRequest([report], "a"), None, RelayCreateRequest([report], "b")]
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(rows, concurrency=1)
    assert "not NoneType" in str(caught.value.__cause__)


@pytest.mark.parametrize("replay", ["safe", "always"])
async def test_a_token_that_arrives_before_the_drain_ends_is_created(replay):
    """The part of a response that arrived before the drain ended is read: a complete token is created."""

    async def respond_slowly(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"relay_token": "T-1", ')
        await writer.drain()
        written.set()
        await reader.read()
        writer.close()

    written = asyncio.Event()
    server = await asyncio.start_server(respond_slowly, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    timeouts, policy = Timeouts(drain=0.1), RetryPolicy(replay=replay)
    async with server, RelayClient(OWNER, base_url=url, timeouts=timeouts, retry=policy) as client:
        rows = RelayCreateRequest.fan_out(["t"], ["p"])
        async with client.relay.create_many(rows) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # the response arrives
    (created,) = outcomes.result.created
    assert created.relay_token == "T-1"


@pytest.mark.parametrize(("status", "kind"), [(400, "failed"), (500, "unknown")])
async def test_a_status_that_arrives_before_the_drain_ends_decides(status, kind):
    """Without a body, the status alone decides between failed and unknown."""

    async def respond_slowly(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 %d Oh\r\nContent-Length: 100\r\n\r\n{" % status)
        await writer.drain()
        written.set()
        await reader.read()
        writer.close()

    written = asyncio.Event()
    server = await asyncio.start_server(respond_slowly, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.1)) as client:
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # the response arrives
    (outcome,) = getattr(outcomes.result, kind)
    assert outcome.error.status == status


async def test_a_call_that_connects_when_the_drain_ends_is_not_attempted():
    """If the TLS handshake isn't answered, nothing was sent, so nothing is unknown."""

    async def stay_silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.1)) as client:
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await asyncio.sleep(0.05)
    assert (len(outcomes.result.not_attempted), all_outcomes(outcomes.result)) == (1, [])


async def test_an_attempt_in_doubt_stays_unknown_whatever_follows(plaid, client):
    """With replay="always", an attempt in doubt and a forbidden next one leave an unknown with the first error."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    # A backoff that exceeds the deadline would end the call; one of at most 30 s fits.
    always = RetryPolicy(replay="always", backoff=30, max_backoff=30)
    async with client.relay.create_many(create_requests(plaid, 1), retry=always) as outcomes:
        await wait_until_async(lambda: client.statistics().retries)
    (unknown,) = outcomes.result.unknown
    assert (unknown.error.status, unknown.request_id) == (500, plaid.ledger[0]["request_id"])

    class BreaksAtSecondIntent(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await super().record_intent(request)
            self._breaks_at_intent = 1

    always = RetryPolicy(replay="always", backoff=0.001)
    batch = client.relay.create_many(create_requests(plaid, 1), retry=always, journal=BreaksAtSecondIntent())
    with pytest.raises(BatchStoppedError):
        await batch
    assert len(batch.result.unknown) == 1


async def test_an_unexpected_error_during_a_call_is_unknown(plaid):
    """The call may have been executed, and the other requests continue."""

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id == "partner-1":
            raise ZeroDivisionError
        return RelayCreateResponse("token")

    result = await batch_of(CREATIONS, create_requests(plaid, 3), create, concurrency=1, drain_timeout=1)
    (unknown,) = result.unknown
    assert isinstance(unknown.error.__cause__, ZeroDivisionError)
    assert len(result.created) == 2


async def test_requests_that_were_never_sent_fail():
    """Without a server, each partner has an outcome, and none is unknown."""
    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK) as client:
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["t"], partner_names(5)))
    assert len(result.failed) == 5
    assert all(isinstance(o.error, NotSentError) for o in result.failed)


# ------------------------------------------------------------------------------------------ the journal


class BreakingJournal(RecordingJournal):
    """A journal in memory, which raises once it has a certain number of lines."""

    def __init__(self, *, breaks_at_intent: int = -1, breaks_at_outcome: int = -1) -> None:
        self.lines: list[tuple[str, str]] = []
        self._breaks_at_intent, self._breaks_at_outcome = breaks_at_intent, breaks_at_outcome

    async def record_intent(self, request: RelayCreateRequest) -> None:
        await asyncio.sleep(0)
        self._write("intent", request.secondary_client_id, self._breaks_at_intent)

    async def record_outcome(self, outcome) -> None:
        await asyncio.sleep(0)
        self._write(type(outcome).__name__, outcome.request.secondary_client_id, self._breaks_at_outcome)

    def _write(self, event: str, partner: str, breaks_at: int) -> None:
        if len(self.lines) == breaks_at:
            raise OSError(28, "No space left on device")
        self.lines.append((event, partner))


async def test_the_journal_is_written_before_and_after_each_attempt(plaid, client):
    """Each intent is recorded before the attempt starts, and each outcome before a callback receives it."""
    journal = BreakingJournal()

    def on_outcome(outcome) -> None:
        assert ("Created", outcome.request.secondary_client_id) in journal.lines

    result = await client.relay.create_many(create_requests(plaid), journal=journal, on_outcome=on_outcome)
    assert all(o.journalled for o in result.created)
    for partner in partner_names(20):
        assert journal.lines.index(("intent", partner)) < journal.lines.index(("Created", partner))


async def test_nothing_is_sent_if_the_journal_cannot_record_the_intent(plaid, client):
    """Sending stops, and the journal's error is the cause."""
    batch = client.relay.create_many(
        create_requests(plaid), journal=BreakingJournal(breaks_at_intent=4), concurrency=2
    )
    with pytest.raises(BatchStoppedError) as caught:
        await batch
    assert isinstance(caught.value.__cause__, OSError)
    assert len(batch.result.created) == len(plaid.ledger)
    assert batch.result.not_attempted
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_no_token_is_lost_if_the_journal_cannot_record_the_outcome(plaid, client):
    """The caller receives the outcome with `journalled=False`."""
    batch = client.relay.create_many(
        create_requests(plaid), journal=BreakingJournal(breaks_at_outcome=3), concurrency=1
    )
    with pytest.raises(BatchStoppedError):
        await batch
    assert [o.journalled for o in batch.result.created] == [True, False]
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_an_attempt_in_doubt_is_recorded_before_its_pair_is_looked_up_again(plaid, client):
    """If a retry loses the race for its pair, the first attempt is recorded as unknown, and nothing more is sent."""

    class LosesARace(BreakingJournal):
        recorded = None

        async def acquire_recorder(self, request, context):
            recorder = await super().acquire_recorder(request, context)
            recorder.recorded_outcome = self.recorded
            return recorder

        async def record_intent(self, request: RelayCreateRequest) -> None:
            if self.lines:
                raise LostRaceError
            await super().record_intent(request)

        async def record_outcome(self, outcome) -> None:
            await super().record_outcome(outcome)
            self.recorded = outcome

    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    always, journal = RetryPolicy(replay="always", backoff=0.001), LosesARace()
    result = await client.relay.create_many(create_requests(plaid, 1), retry=always, journal=journal)
    (unknown,) = result.unknown
    assert (unknown.error.status, plaid.counts[CREATE]) == (500, 1)
    assert journal.lines == [("intent", "partner-0"), ("Unknown", "partner-0")]


async def test_a_request_that_is_not_attempted_may_have_a_recorded_outcome(plaid, client):
    """A request of a stopped report is looked up if its pair was assumed to be new; without an outcome, it fails."""

    class AssumesNew(BreakingJournal):
        recorded = None
        not_attempted = 0

        async def acquire_recorder(self, request, context):
            recorder = await super().acquire_recorder(request, context)
            recorder.recorded_outcome, self.recorded = self.recorded, None
            return recorder

        async def record_outcome(self, outcome) -> None:
            if outcome is not None:
                return
            self.not_attempted += 1
            if self.not_attempted == 1:
                response = RelayCreateResponse("recorded")
                self.recorded = Created(
                    request=None, response=response, attempts=0, elapsed=0.0, request_id=None
                )
                raise LostRaceError

    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}))
    journal = AssumesNew()
    result = await client.relay.create_many(create_requests(plaid, 5), journal=journal, concurrency=1)
    assert [outcome.relay_token for outcome in result.created] == ["recorded"]
    assert [outcome.attempts for outcome in result.failed] == [1, 1, 1, 0]
    assert (journal.not_attempted, plaid.counts[CREATE]) == (2, 3)


@pytest.fixture
async def short_drain_client(plaid):
    """A client whose batches drain for a tenth of a second."""
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as opened:
        yield opened


async def test_a_request_whose_intent_is_being_recorded_is_sent(plaid, client):
    """A batch that is left while its journal records an intent sends that request and records its outcome."""

    class Slow(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.sleep(0.02)
            await super().record_intent(request)

    journal = Slow()
    async with client.relay.create_many(create_requests(plaid), journal=journal, concurrency=3) as outcomes:
        await asyncio.sleep(0.01)
    assert len(outcomes.result.created) == plaid.counts[CREATE] == 3
    assert sorted(event for event, _ in journal.lines) == ["Created"] * 3 + ["intent"] * 3


async def test_a_request_whose_intent_is_not_recorded_in_time_is_not_attempted(plaid, short_drain_client):
    """Nothing is sent before its intent is recorded, so nothing is unknown."""

    class Stuck(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.Event().wait()

    async with short_drain_client.relay.create_many(
        create_requests(plaid), journal=Stuck(), concurrency=3
    ) as outcomes:
        await asyncio.sleep(0.01)
    assert (len(outcomes.result.not_attempted), plaid.counts[CREATE]) == (3, 0)


async def test_a_token_that_is_not_recorded_in_time_is_returned(plaid, short_drain_client):
    """The caller receives it with `journalled=False`."""

    class Stuck(BreakingJournal):
        async def record_outcome(self, outcome) -> None:
            await asyncio.Event().wait()

    async with short_drain_client.relay.create_many(
        create_requests(plaid), journal=Stuck(), concurrency=3
    ) as outcomes:
        await wait_until_async(lambda: len(plaid.ledger) == 3)
        await asyncio.sleep(0.1)  # the responses arrive
    assert [o.journalled for o in outcomes.result.created] == [False] * 3
    assert_nothing_lost(plaid, all_outcomes(outcomes.result))


# ---------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("concurrency", [0, -1, 2.0, True, "5"])
async def test_an_invalid_concurrency_is_rejected(client, concurrency):
    """It is rejected when the batch is created, before anything is sent."""
    with pytest.raises(ConfigurationError, match="concurrency must be a whole number of 1 or more"):
        client.relay.create_many([], concurrency=concurrency)


async def test_an_unknown_option_is_rejected(client):
    """A misspelled argument is rejected with its name, and not ignored."""
    with pytest.raises(ConfigurationError, match="no option 'concurency'"):
        client.relay.create_many([], concurency=5)


async def test_a_batch_runs_once(plaid, client):
    """A second run would send every request again."""
    batch = client.relay.create_many(create_requests(plaid, 1))
    await batch
    with pytest.raises(RuntimeError, match="has already run"):
        await batch
    with pytest.raises(RuntimeError, match="has already run"):
        async with batch:
            pass
    async with client.relay.create_many(create_requests(plaid, 1)) as streamed:
        with pytest.raises(RuntimeError, match="has already run"):
            await streamed


async def test_a_stream_is_read_inside_its_block(client):
    """Outside `async with` the calls in flight would never be drained."""
    batch = client.relay.create_many([])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(aiter(batch))
    await batch


async def test_a_batch_that_never_runs_causes_a_warning(client):
    """A forgotten `await` doesn't pass for success."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.relay.create_many([])
        gc.collect()
    assert ["neither awaited nor streamed" in str(w.message) for w in caught] == [True]


async def test_an_empty_batch_succeeds(client):
    """It has no outcome and no error."""
    result = await client.relay.create_many([])
    assert (all_outcomes(result), result.not_attempted) == ([], [])
    result.raise_for_failures()
    async with client.relay.create_many(iter(())) as outcomes:
        assert [o async for o in outcomes] == []


def test_outcomes_share_their_attributes():
    """Created, Failed and Unknown differ only in the response and the error."""
    request = RelayCreateRequest(["t"], "p")
    shared = {"request": request, "attempts": 1, "elapsed": 0.1, "request_id": None}
    assert Created(response=RelayCreateResponse("t"), **shared).journalled is False
    assert Failed(error=PlaidRelayError("x"), **shared).journalled is False
    assert Unknown(error=OutcomeUnknownError("x"), **shared).journalled is False
