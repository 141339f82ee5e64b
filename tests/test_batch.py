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
from support import OWNER, QUICK, RecordingJournal, timeout_when

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
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.batch import Batch, _DuplicateFilter
from plaid_relay_async.simulator import Fault, Simulator

CREATE = "/credit/relay/create"


def partners(count: int) -> list[str]:
    return [f"partner-{n}" for n in range(count)]


def requests(plaid: Simulator, count: int = 20):
    return RelayCreateRequest.fan_out([plaid.add_report()], partners(count))


def held(result) -> list:
    return [*result.created, *result.failed, *result.unknown]


def owners_of(plaid: Simulator) -> dict[str, str]:
    return {entry["relay_token"]: entry["secondary_client_id"] for entry in plaid.ledger}


def assert_nothing_lost(plaid: Simulator, outcomes: list) -> None:
    """Each token of the ledger is in an outcome for its partner, or its partner is unknown; no partner has two."""
    tokens = {o.relay_token: o.request.secondary_client_id for o in outcomes if isinstance(o, Created)}
    unknown = {o.request.secondary_client_id for o in outcomes if isinstance(o, Unknown)}
    seen = [o.request.secondary_client_id for o in outcomes]
    assert len(seen) == len(set(seen))
    for token, partner in owners_of(plaid).items():
        assert tokens.get(token) == partner or partner in unknown
    assert tokens.keys() <= owners_of(plaid).keys()
    assert len(set(owners_of(plaid).values())) == len(plaid.ledger)


# ------------------------------------------------------------------------------------ the two ways of use


async def test_awaited_a_batch_gives_a_token_for_each_partner(plaid, client):
    """Every partner has the token that Plaid made for it, and the result has them all."""
    result = await client.relay.create_many(requests(plaid, 200))
    assert {o.relay_token: o.request.secondary_client_id for o in result.created} == owners_of(plaid)
    assert sorted(owners_of(plaid).values()) == sorted(partners(200))
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


async def test_streamed_a_batch_hands_on_each_outcome(plaid, client):
    """The loop sees every outcome once; what it saw is counted in the result and not held there."""
    seen = []
    async with client.relay.create_many(requests(plaid, 200)) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)
    assert {o.relay_token: o.request.secondary_client_id for o in seen} == owners_of(plaid)
    assert len(seen) == outcomes.result.counts["created"] == 200
    assert held(outcomes.result) == []


async def test_a_stream_that_has_ended_has_its_time():
    """However slowly the loop reads: when its block has been left the result has the seconds that it took."""

    async def pause(steps):
        for _ in range(steps):
            await asyncio.sleep(0)

    for concurrency, work, reading in itertools.product((1, 2, 3), range(6), range(9)):

        async def create(request, permit, work=work):
            await pause(work)
            return RelayCreateResponse("token")

        rows = RelayCreateRequest.fan_out(["report"], partners(3))
        async with Batch(CREATIONS, rows, create, concurrency=concurrency, drain_timeout=1) as outcomes:
            async for _ in outcomes:
                await pause(reading)
        assert outcomes.result.elapsed > 0


async def test_outcomes_come_in_the_order_in_which_they_are_known(plaid, client):
    """A slow partner doesn't hold up the others."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="partner-0", latency=0.2))
    async with client.relay.create_many(requests(plaid, 10)) as outcomes:
        order = [o.request.secondary_client_id async for o in outcomes]
    assert order[-1] == "partner-0"
    assert len(order) == 10


async def test_an_outcome_tells_its_story(plaid, client):
    """Attempts, time, request id and the request itself are with the outcome; its repr has no token."""
    plaid.fail(Fault(path=CREATE, status=429, times=1))
    result = await client.relay.create_many(requests(plaid, 1))
    (made,) = result.created
    assert (made.attempts, made.journalled) == (2, False)
    assert made.elapsed > 0
    assert made.request_id == plaid.ledger[0]["request_id"]
    assert "sandbox" not in repr(made)
    assert "partner-0" in repr(made)


async def test_a_failing_partner_never_stops_the_others(plaid, client):
    """Refused, lost and created partners stand side by side, each with its own outcome."""
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="partner-3", status=400),
        Fault(path=CREATE, secondary_client_id="partner-5", close=True, when="after"),
    )
    result = await client.relay.create_many(requests(plaid))
    (failed,), (unknown,) = result.failed, result.unknown
    assert failed.request.secondary_client_id == "partner-3"
    assert isinstance(failed.error, InvalidRequestError)
    assert failed.request_id == failed.error.request_id is not None
    assert unknown.request.secondary_client_id == "partner-5"
    assert isinstance(unknown.error, OutcomeUnknownError)
    assert len(result.created) == 18
    assert result.error_codes == {"INVALID_FIELD": 1, "OutcomeUnknownError": 1}
    assert_nothing_lost(plaid, held(result))


async def test_failures_are_raised_as_a_group(plaid, client):
    """Failed and unknown alike are in the group, and what a loop has seen isn't forgotten."""
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="partner-3", status=400),
        Fault(path=CREATE, secondary_client_id="partner-5", close=True),
    )
    result = await client.relay.create_many(requests(plaid))
    with pytest.raises(ExceptionGroup, match="1 failed, 1 unknown") as caught:
        result.raise_for_failures()
    assert {type(error) for error in caught.value.exceptions} == {InvalidRequestError, OutcomeUnknownError}
    async with client.relay.create_many(requests(plaid)) as outcomes:
        async for _ in outcomes:
            pass
    with pytest.raises(ExceptionGroup) as caught:
        outcomes.result.raise_for_failures()
    assert "2 were received by the loop" in str(caught.value.exceptions[0])
    assert "INVALID_FIELD 1" in str(caught.value.exceptions[0])


# ------------------------------------------------------------------------------------------- the input


async def test_requests_may_come_from_an_async_iterable(plaid, client):
    """A database cursor, say, is read as its rows are needed."""

    async def rows():
        for request in requests(plaid, 30):
            await asyncio.sleep(0)
            yield request

    result = await client.relay.create_many(rows(), concurrency=4)
    assert len(result.created) == 30
    assert_nothing_lost(plaid, held(result))


async def test_the_input_is_read_no_further_than_needed(plaid, client):
    """A stream that nobody reads stops reading its input: memory grows with concurrency."""
    read = []

    def rows():
        for request in requests(plaid, 500):
            read.append(request)
            yield request

    async with client.relay.create_many(rows(), concurrency=5) as outcomes:
        await anext(aiter(outcomes))
        await asyncio.sleep(0.2)
        assert 5 <= len(read) <= 11
    assert len(held(outcomes.result)) + len(outcomes.result.not_attempted) == len(read) - 1


async def test_no_more_calls_than_the_concurrency_are_under_way(plaid):
    """The bound holds, and is reached."""
    under_way, most = 0, 0

    async def create(request, permit):
        nonlocal under_way, most
        await permit.start_attempt()
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(random.random() / 1000)
        under_way -= 1
        return RelayCreateResponse(f"token-{request.secondary_client_id}")

    result = await Batch(CREATIONS, requests(plaid, 100), create, concurrency=7, drain_timeout=1)
    assert most == 7
    assert len(result.created) == 100


async def test_a_pair_that_comes_again_is_failed(plaid, client):
    """The second of a pair is refused before it is sent; that is an outcome, and the batch goes on."""
    report = plaid.add_report()
    rows = list(RelayCreateRequest.fan_out([report], ["a", "b", "a", "c"]))
    rows += RelayCreateRequest.fan_out([plaid.add_report()], ["a"])
    result = await client.relay.create_many(rows)
    (again,) = result.failed
    assert again.request.secondary_client_id == "a"
    assert isinstance(again.error, DuplicateRequestError)
    assert again.error.sent is False
    assert again.attempts == 0
    assert result.error_codes == {"DuplicateRequestError": 1}
    assert len(plaid.ledger) == 4


async def test_duplicates_may_be_allowed(plaid, client):
    """Who wants two tokens for a pair gets them."""
    rows = list(RelayCreateRequest.fan_out([plaid.add_report()], ["a", "a"]))
    result = await client.relay.create_many(rows, allow_duplicates=True)
    assert len(result.created) == len(plaid.ledger) == 2


def test_remembering_a_pair_takes_little():
    """At most 128 bytes a request, whatever the length of its token and its partner's id."""
    pairs, count = _DuplicateFilter(CREATIONS.duplicate_key), 40_000
    tracemalloc.start()
    try:
        for number in range(count):
            assert not pairs.is_duplicate(
                RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{number:050}")
            )
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / count <= 128
    assert pairs.is_duplicate(RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{5:050}"))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_raises_ends_the_batch_in_order(plaid, client, asynchronous):
    """What is in flight is waited for, the error comes out as the cause, and the outcomes are with it."""
    plaid.fail(Fault(path=CREATE, latency=0.05))

    def rows():
        yield from requests(plaid, 3)
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
    assert_nothing_lost(plaid, held(batch.result))


async def test_an_input_that_raises_reaches_the_loop_behind_its_outcomes(plaid, client):
    """A stream hands on what there is before it raises."""

    def rows():
        yield from requests(plaid, 3)
        raise LookupError

    seen = []
    with pytest.raises(BatchStoppedError):
        async with client.relay.create_many(rows()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)
    assert len(seen) == 3


async def test_something_else_than_a_request_is_named(plaid, client):
    """A bare partner id isn't a request; the error says so."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(["partner"])
    assert "RelayCreateRequest" in str(caught.value.__cause__)


# ----------------------------------------------------------------------------------- leaving early


async def test_break_waits_for_what_is_in_flight(plaid, client):
    """After `break` nothing new is sent, and what was under way is in the result."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    async with client.relay.create_many(requests(plaid, 1000), concurrency=10) as outcomes:
        first = await anext(outcomes)
    sent = plaid.counts[CREATE]
    assert_nothing_lost(plaid, [first, *held(outcomes.result)])
    assert sent == len(plaid.ledger) < 40
    await asyncio.sleep(0.1)
    assert plaid.counts[CREATE] == sent


async def test_an_exception_in_the_loop_comes_out_as_it_is(plaid, client):
    """The caller's own error isn't wrapped, and nothing in flight is lost."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    seen = []
    with pytest.raises(ZeroDivisionError):
        async with client.relay.create_many(requests(plaid, 1000), concurrency=10) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)
                raise ZeroDivisionError
    assert_nothing_lost(plaid, [*seen, *held(outcomes.result)])


async def test_a_drain_that_takes_too_long_leaves_unknowns(plaid):
    """What doesn't answer within the drain time is unknown; nothing waits for it any longer."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="partner-1", stall=30, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as client:
        began = time.monotonic()
        async with client.relay.create_many(requests(plaid, 5)) as outcomes:
            async for outcome in outcomes:
                if outcome.request.secondary_client_id == "partner-4":
                    break
        assert time.monotonic() - began < 20
    (unknown,) = outcomes.result.unknown
    assert unknown.request.secondary_client_id == "partner-1"
    assert unknown.attempts == 1
    assert "the call was cancelled" in str(unknown.error)


async def test_a_call_that_tells_nothing_of_its_end_is_unknown(plaid):
    """What began, and was given up without a word of what became of it, may have been carried out."""

    async def create(request, permit):
        await permit.start_attempt()
        await asyncio.Event().wait()

    async with Batch(CREATIONS, requests(plaid, 1), create, concurrency=1, drain_timeout=0.02) as outcomes:
        await asyncio.sleep(0.01)
    (unknown,) = outcomes.result.unknown
    assert "the batch ended before a response" in str(unknown.error)


async def test_cancelled_an_awaited_batch_drains_and_its_result_stays(plaid, client):
    """The cancellation goes on its way; whoever kept the batch has its outcomes."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    batch = client.relay.create_many(requests(plaid, 1000), concurrency=10)

    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 25:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(batch.result.created) == len(plaid.ledger)
    assert_nothing_lost(plaid, held(batch.result))


@pytest.mark.parametrize("cancellations", [2, 3, 5])
async def test_further_cancellations_do_not_end_a_drain(plaid, client, cancellations):
    """However often a draining batch is cancelled, it waits for the calls in flight, and is cancelled then."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many(requests(plaid, 20), concurrency=10)

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
    assert_nothing_lost(plaid, held(batch.result))


@pytest.mark.parametrize("times", [1, 2])
async def test_an_abandoned_drain_does_not_wait(plaid, client, times):
    """`abandon()` ends a drain: what is in flight becomes unknown, and the cancellation is raised."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    batch = client.relay.create_many(requests(plaid, 20), concurrency=10)

    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while plaid.counts[CREATE] < 10:
        await asyncio.sleep(0.001)
    began = time.monotonic()
    task.cancel()
    await asyncio.sleep(0)
    for _ in range(times):
        batch.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 20
    assert len(batch.result.unknown) == 10
    assert_nothing_lost(plaid, held(batch.result))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_batch_can_be_abandoned_while_it_runs(plaid, client, streamed):
    """Nothing more is sent, what is in flight becomes unknown, and the batch ends as if its input had ended."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    rows, seen = requests(plaid, 20), []
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
    rows = requests(plaid, 3)
    batch = client.relay.create_many(rows)
    batch.abandon()
    assert (await batch).counts == {}
    assert (len([*rows]), plaid.counts[CREATE]) == (3, 0)


@pytest.mark.parametrize("way", ["break", "cancel", "callback"])
async def test_the_rest_of_an_async_generator_is_available_when_the_batch_is_left(plaid, client, way):
    """A read of the input that is in progress is waited for; its request is in `not_attempted`."""
    asked = asyncio.Event()

    async def rows():
        for n, row in enumerate(requests(plaid, 100)):
            if n == 1:
                asked.set()
                await asyncio.sleep(0.05)
            yield row

    source = rows()

    async def leave() -> None:
        async with client.relay.create_many(source, concurrency=2, on_outcome=raising) as outcomes:
            batches.append(outcomes)
            async for _ in outcomes:
                await asked.wait()
                if way == "break":
                    break
                if way == "cancel":
                    asyncio.current_task().cancel()

    def raising(_outcome) -> None:
        if way == "callback":
            raise OSError("the disk is full")

    batches: list[Batch] = []
    task = asyncio.create_task(leave())
    await asyncio.wait([task])
    if way == "callback":
        assert isinstance(task.exception(), BatchStoppedError)
    else:
        assert task.cancelled() == (way == "cancel")
    rest = [row async for row in source]
    left = [*batches[0].result.not_attempted, *rest]
    assert [r.secondary_client_id for r in left] == partners(100)[1:]
    assert (len(rest), plaid.counts[CREATE]) == (98, 1)


async def test_an_input_that_gives_nothing_is_waited_for_as_long_as_a_drain_lasts(plaid):
    """After the drain time, or once the batch is abandoned, the read is cancelled, and a generator cleans up."""
    ended, waiting = [], asyncio.Event()

    async def rows(name):
        try:
            for row in requests(plaid, 1):
                yield row
            waiting.set()
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.05)) as client:
        async with client.relay.create_many(rows("left")) as outcomes:
            async for _ in outcomes:
                break
        assert ended == ["left"]
        plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}))
        with pytest.raises(BatchStoppedError):
            await client.relay.create_many(rows("stopped"), on_outcome=lambda outcome: 1 / 0)
        assert ended == ["left", "stopped"]
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        waiting.clear()
        began = time.monotonic()
        batch = client.relay.create_many(rows("abandoned"))
        running = asyncio.ensure_future(batch)
        await waiting.wait()
        batch.abandon()
        await running
        assert time.monotonic() - began < 20
    assert ended == ["left", "stopped", "abandoned"]


async def test_a_batch_within_a_timeout(plaid, client):
    """`asyncio.timeout` around a batch is a cancellation like any other."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    batch = client.relay.create_many(requests(plaid, 10_000), concurrency=10)
    with pytest.raises(TimeoutError):
        async with timeout_when(lambda: plaid.counts[CREATE] > 20):
            await batch
    assert batch.result.created
    assert_nothing_lost(plaid, held(batch.result))


async def test_what_waits_for_a_pause_is_dropped_and_not_unknown(plaid, client):
    """A call that Plaid refused, and that waits to be repeated, surely made nothing when the batch is left."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "30"}))
    batch = client.relay.create_many(requests(plaid, 20), concurrency=4)
    task = asyncio.create_task(batch._run_to_result())
    while plaid.counts[CREATE] < 4:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)  # the responses arrive
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 20
    assert (len(batch.result.failed), batch.result.unknown, len(plaid.ledger)) == (4, [], 0)
    assert all(isinstance(o.error, RateLimitError) for o in batch.result.failed)


async def test_what_was_taken_and_not_sent_is_not_attempted(plaid):
    """A request that waited for the limiter when the batch was left is given back."""

    class Closed:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.Event().wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Closed()) as client:
        rows = requests(plaid, 20)
        async with client.relay.create_many(rows, concurrency=3) as outcomes:
            await asyncio.sleep(0.02)
        assert [r.secondary_client_id for r in outcomes.result.not_attempted] == partners(3)
        assert [r.secondary_client_id for r in rows] == partners(20)[3:]
    assert plaid.counts[CREATE] == 0


async def test_a_batch_that_is_left_while_credentials_are_fetched_sends_nothing(plaid):
    """A call that still waits for its secret has not been sent, and isn't."""
    fetching, go = asyncio.Event(), asyncio.Event()

    async def slowly() -> Credentials:
        fetching.set()
        await go.wait()
        return OWNER

    async with RelayClient(slowly, base_url=plaid.url) as client:
        async with client.relay.create_many(requests(plaid, 5), concurrency=2) as outcomes:
            await fetching.wait()
        go.set()
    assert (len(outcomes.result.not_attempted), plaid.counts[CREATE]) == (2, 0)


async def test_a_refused_call_that_is_about_to_leave_again_stays(plaid):
    """Left in the moment between a refusal and the next attempt, a call doesn't leave again."""
    told = asyncio.Event()

    async def create(request, permit):
        await permit.start_attempt()
        told.set()
        await asyncio.sleep(0.02)
        permit.prepare_retry(RateLimitError("no", status=429), never_executed=True)
        raise AssertionError("again() forbids the next attempt")

    async with Batch(CREATIONS, requests(plaid, 1), create, concurrency=1, drain_timeout=5) as outcomes:
        await told.wait()
    (failed,) = outcomes.result.failed
    assert isinstance(failed.error, RateLimitError)


async def test_a_call_that_comes_late_to_its_permit_stays(plaid):
    """Left in the moment before an attempt, a call gets no leave to send."""
    waiting = asyncio.Event()

    async def create(request, permit):
        waiting.set()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await permit.start_attempt()

    async with Batch(CREATIONS, requests(plaid, 1), create, concurrency=1, drain_timeout=5) as outcomes:
        await waiting.wait()
    assert len(outcomes.result.not_attempted) == 1


@pytest.mark.parametrize("way", ["break", "raise", "cancel"])
async def test_nothing_is_lost_at_whatever_moment_a_batch_is_left(way, rounds, subtests):
    """Left at random moments, with faults on: each token is in an outcome, or its partner is unknown."""
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
            requests(plaid, 2000), concurrency=draw.choice([1, 5, 50]), on_outcome=seen.append
        )
        if way == "cancel":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(moment):
                    await batch
            handed = []
        else:
            handed = await leave_the_loop(batch, way, moment)
        outcomes = [*handed, *held(batch.result)]
        assert_nothing_lost(plaid, outcomes)
        assert sorted(map(id, seen)) == sorted(map(id, outcomes))
        assert sum(batch.result.counts.values()) == len(outcomes)


async def leave_the_loop(batch: Batch, way: str, moment: float) -> list:
    handed, end = [], time.monotonic() + moment
    try:
        async with batch as outcomes:
            async for outcome in outcomes:
                handed.append(outcome)
                if time.monotonic() > end:
                    if way == "break":
                        break
                    raise ZeroDivisionError
    except ZeroDivisionError:
        assert way == "raise"
    return handed


# ------------------------------------------------------------------------------- errors that all share


@pytest.mark.parametrize(
    "body",
    [
        {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_ROUTE_ACCESS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_OF_TOMORROW"},
    ],
)
async def test_an_error_that_all_share_stops_the_batch(plaid, client, body):
    """After the first few, going on would only give everybody the same error; what wasn't read stays unread."""
    plaid.fail(Fault(path=CREATE, status=400, body=body, latency=0.01))
    rows = requests(plaid, 1000)
    result = await client.relay.create_many(rows, concurrency=10)
    assert result.stopped_by.error_code == body["error_code"]
    assert 3 <= len(result.failed) <= 20
    assert len(list(rows)) == 1000 - len(result.failed) - len(result.not_attempted)


async def test_used_up_credits_stop_the_batch(plaid, client):
    """A 429 that no waiting mends stops it as well."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": "CREDITS_EXHAUSTED"}))
    result = await client.relay.create_many(requests(plaid, 1000), concurrency=2)
    assert 3 <= len(result.failed) <= 5
    assert result.stopped_by.error_code == "CREDITS_EXHAUSTED"


async def test_shared_errors_with_successes_between_do_not_stop_it(plaid):
    """Credentials that fail now and then, while they are rotated, are each partner's own trouble."""
    number = 0

    async def rotating() -> Credentials:
        nonlocal number
        number += 1
        return Credentials("owner", OWNER.secret if number % 2 else "yesterdays-secret")

    async with Simulator(clients={"owner": OWNER.secret}) as strict:
        async with RelayClient(rotating, base_url=strict.url) as client:
            result = await client.relay.create_many(requests(strict, 20), concurrency=1)
    assert result.counts == {"created": 10, "failed": 10}
    assert result.stopped_by is None


def of_three_reports(plaid: Simulator, count: int, wrong: str = "assets-sandbox-mistyped"):
    """Requests for two good reports and a wrong one, in turn."""
    reports = (plaid.add_report(), wrong, plaid.add_report())
    for partner in partners(count):
        for report in reports:
            yield RelayCreateRequest([report], partner)


async def test_an_error_of_a_report_stops_the_requests_for_that_report(plaid, client):
    """After the first few the rest of them fail unsent, with the same error; the other reports are all shared."""
    async with client.relay.create_many(of_three_reports(plaid, 200), concurrency=10) as batch:
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
        assert "not sent after 3 errors of the same report: Plaid answered INVALID_ASSET" in str(each.error)
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
async def test_which_errors_are_those_of_a_report(plaid, client, body, stops):
    """A report that Plaid doesn't know, or can't provide, is the same for each partner; a partner's fault isn't."""
    plaid.fail(Fault(path=CREATE, status=400, body=body))
    result = await client.relay.create_many(requests(plaid, 20), concurrency=1)
    assert result.counts == {"failed": 20}
    assert len(plaid.requests) == (3 if stops else 20)


async def test_a_success_shows_that_an_error_is_not_the_reports(plaid, client):
    """Errors of a report with successes in between stop nothing."""
    body = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}
    for number in (0, 1, 3, 4, 6, 7):
        plaid.fail(Fault(path=CREATE, status=400, body=body, secondary_client_id=f"partner-{number}"))
    result = await client.relay.create_many(requests(plaid, 20), concurrency=1)
    assert result.counts == {"created": 14, "failed": 6}
    assert len(plaid.requests) == 20


async def test_a_report_goes_on_if_a_request_in_flight_succeeds():
    """A report that becomes ready while others fail is no longer stopped."""
    unsent, ready = asyncio.Event(), asyncio.Event()

    async def create(request, permit):
        await permit.start_attempt()
        if request.secondary_client_id in {"partner-1", "partner-2", "partner-3"}:
            raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")
        await unsent.wait()
        return RelayCreateResponse("token")

    async def rows():
        for partner in partners(5):
            yield RelayCreateRequest(["report"], partner)
        await ready.wait()
        yield RelayCreateRequest(["report"], "partner-5")

    def count(outcome):
        if isinstance(outcome, Created):
            ready.set()
        elif not outcome.attempts:
            unsent.set()

    result = await Batch(CREATIONS, rows(), create, concurrency=2, drain_timeout=1, on_outcome=count)
    assert [each.request.secondary_client_id for each in result.created] == ["partner-0", "partner-5"]
    assert [each.attempts for each in result.failed] == [1, 1, 1, 0]


async def test_several_reports_of_one_request_are_stopped_together(plaid, client):
    """Which of them is wrong isn't known, so requests with one of them alone go on; their order is no matter."""
    orders = (["good", "wrong"], ["wrong", "good"])
    both = [RelayCreateRequest(tokens, f"p{n}") for n in range(10) for tokens in orders]
    alone = RelayCreateRequest.fan_out([plaid.add_report("good")], partners(10))
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}, times=3))
    result = await client.relay.create_many([*both, *alone], concurrency=1, allow_duplicates=True)
    assert result.counts == {"created": 10, "failed": 20}
    assert len(plaid.requests) == 3 + 10


@pytest.mark.parametrize(
    ("error", "spared", "kind"),
    [
        (RateLimitError("later", status=429), True, Failed),
        (OutcomeUnknownError("lost"), False, Unknown),
    ],
    ids=["refused", "in doubt"],
)
async def test_a_call_that_is_about_to_leave_again_stays_if_its_report_is_stopped(error, spared, kind):
    """One that was refused for now fails with the report's error; one that may be done stays unknown."""
    stopped, ended = asyncio.Event(), []

    async def create(request, permit):
        await permit.start_attempt()
        if request.secondary_client_id == "partner-0":
            await stopped.wait()
            permit.prepare_retry(error, never_executed=spared)
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    def count(outcome):
        ended.append(outcome)
        if len(ended) == 3:
            stopped.set()

    rows = RelayCreateRequest.fan_out(["report"], partners(4))
    await Batch(CREATIONS, rows, create, concurrency=2, drain_timeout=1, on_outcome=count)
    (last,) = [each for each in ended if each.request.secondary_client_id == "partner-0"]
    assert (type(last), last.attempts, last.error.sent) == (kind, 1, True)
    assert "not sent after 3 errors" in str(last.error if kind is Failed else last.error.__cause__)


async def test_the_memory_of_stopped_reports_is_bounded():
    """Of very many wrong reports the last ones are remembered, without their tokens."""

    async def create(request, permit):
        await permit.start_attempt()
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    wrong = [RelayCreateRequest([f"report-{n}"], f"p{partner}") for n in range(600) for partner in range(3)]
    batch = Batch(CREATIONS, wrong, create, concurrency=1, drain_timeout=1)
    assert (await batch).counts == {"failed": 1800}
    assert len(batch._report_errors._errors) == 256
    assert batch.stopping_error(RelayCreateRequest(["report-0"], "p")) is None
    assert batch.stopping_error(RelayCreateRequest(["report-599"], "p")).status == 400
    assert "report-599" not in repr(batch._report_errors._errors)


async def test_pauses_are_queueing(plaid):
    """In a batch, refusals for now count against neither the attempts nor the time of a request."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=30))
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "3"}, times=1))
    impatient = RetryPolicy(attempts=1, backoff=0.001, max_backoff=0.002)
    async with RelayClient(OWNER, base_url=plaid.url, retry=impatient) as client:
        result = await client.relay.create_many(requests(plaid, 5), concurrency=2, timeout=2)
    assert len(result.created) == 5
    assert max(o.attempts for o in result.created) > 5


async def test_refusals_leave_a_request_its_attempts(plaid):
    """After many refusals for now, a try that never left is still worth another."""

    class Hiccup:
        tries = 0

        async def acquire(self, endpoint: str) -> None:
            self.tries += 1
            if self.tries == 5:
                raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=4))
    policy = RetryPolicy(attempts=2, backoff=0.001)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy, rate_limiter=Hiccup()) as client:
        result = await client.relay.create_many(requests(plaid, 1))
    assert result.created[0].attempts == 5


async def test_a_pause_that_is_too_long_ends_the_batch(plaid, client):
    """It isn't shortened: the request fails with the delay, and the rest isn't attempted."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "301"}))
    rows = requests(plaid, 100)
    result = await client.relay.create_many(rows, concurrency=1)
    (failed,) = result.failed
    assert isinstance(failed.error, RateLimitError)
    assert (failed.error.retry_after, failed.error.exceeds_max_pause) == (301.0, True)
    assert result.stopped_by is failed.error
    assert len(list(rows)) == 99
    again = await client.relay.create_many(requests(plaid, 100), concurrency=1)
    assert (len(again.failed), again.failed[0].attempts, plaid.counts[CREATE]) == (1, 0, 1)


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
async def test_a_delay_that_no_clock_can_hold_changes_no_outcome(plaid, client, headers):
    """Whatever a server writes into Retry-After and Date, a plain 400 is a failure."""
    plaid.fail(Fault(path=CREATE, status=400, headers=headers))
    result = await client.relay.create_many(requests(plaid, 3))
    assert result.counts == {"failed": 3}
    with pytest.raises(InvalidRequestError):
        await client.relay.create([plaid.add_report()], "p")


async def test_a_delay_in_seconds_that_is_too_large_is_as_large_as_can_be(plaid, client):
    """A 429 with an absurd delay fails with the largest number of seconds, and so does the next call."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "9" * 400}))
    for attempts in (1, 0):
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert caught.value.attempts == attempts
        assert caught.value.retry_after == pytest.approx(sys.float_info.max)


async def test_pauses_that_add_up_end_the_batch(plaid):
    """Many short pauses without one success between are a long one; Plaid's maintenance counts alike."""
    maintenance = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=503, body=maintenance))
    policy = RetryPolicy(backoff=0.02, max_backoff=0.02, max_pause=0.1)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        result = await client.relay.create_many(requests(plaid, 10), concurrency=2)
    assert isinstance(result.failed[0].error, RateLimitError)
    assert result.failed[0].error.error_code == "PLANNED_MAINTENANCE"
    assert plaid.counts[CREATE] > 5
    assert result.unknown == []


# ------------------------------------------------------------------------------------------- callbacks


async def test_callbacks_are_told_of_each_outcome(plaid, client):
    """`on_outcome` comes before anybody else, and progress adds up."""
    seen, progress = [], []
    async with client.relay.create_many(
        requests(plaid), on_outcome=seen.append, on_progress=progress.append
    ) as outcomes:
        async for outcome in outcomes:
            assert outcome in seen
    assert [p.done for p in progress] == list(range(1, 21))
    assert all(p.in_flight == p.taken - p.done for p in progress)
    assert (progress[-1].succeeded, progress[-1].failed, progress[-1].unknown) == (20, 0, 0)
    assert progress[-1].taken == 20
    assert progress[0].elapsed > 0
    assert outcomes.progress.in_flight == 0


@pytest.mark.parametrize("callback", ["on_outcome", "on_progress"])
async def test_a_callback_that_raises_ends_the_batch_in_order(plaid, client, callback):
    """No outcome is lost to a broken callback."""
    plaid.fail(Fault(path=CREATE, latency=0.01))

    def broken(_: object) -> None:
        raise ZeroDivisionError

    batch = client.relay.create_many(requests(plaid, 100), concurrency=5, **{callback: broken})
    with pytest.raises(BatchStoppedError) as caught:
        await batch
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert 5 <= len(batch.result.created) <= 10
    assert_nothing_lost(plaid, held(batch.result))


async def test_async_callbacks_are_refused(client):
    """They would never run."""

    async def later(_: object) -> None:
        raise AssertionError

    for name in ("on_outcome", "on_progress"):
        with pytest.raises(ConfigurationError, match="plain functions"):
            client.relay.create_many([], **{name: later})


@pytest.mark.parametrize("place", ["on_outcome", "limiter", "begin", "end", "input"])
async def test_a_cancellation_that_nobody_asked_for_loses_nothing(plaid, place):
    """A CancelledError out of somebody's code, with no task cancelled, is that code's error."""

    class Cancelled(Notes):
        async def acquire(self, endpoint: str) -> None:
            raise asyncio.CancelledError

        async def record_intent(self, request: RelayCreateRequest) -> None:
            self._raise("begin")

        async def record_outcome(self, outcome) -> None:
            self._raise("end")

        def _raise(self, where: str) -> None:
            if where == place:
                raise asyncio.CancelledError

    def told(_: object) -> None:
        if place == "on_outcome":
            raise asyncio.CancelledError

    async def rows():
        for number, request in enumerate(requests(plaid, 10)):
            if (place, number) == ("input", 4):
                raise asyncio.CancelledError
            yield request

    odd = Cancelled()
    limiter = odd if place == "limiter" else None
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client:
        batch = client.relay.create_many(rows(), concurrency=2, on_outcome=told, journal=odd)
        if place == "limiter":
            assert len((await batch).failed) == 10
        else:
            with pytest.raises(BatchStoppedError):
                await batch
    assert_nothing_lost(plaid, held(batch.result))


async def test_a_client_that_is_closed_under_a_batch_ends_it(plaid):
    """Every further request would fail alike, at once and without end."""

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
    assert_nothing_lost(plaid, held(result))


async def test_requests_that_fail_at_once_do_not_hold_the_loop(plaid):
    """A batch that never has to wait for anything can be cancelled all the same."""

    async def create(request, permit):
        raise RequestValidationError("x")

    report = plaid.add_report()
    endless = (RelayCreateRequest([report], f"p{n}") for n in itertools.count())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Batch(CREATIONS, endless, create, concurrency=3, drain_timeout=1)


async def test_a_nothing_among_the_requests_is_named(plaid, client):
    """None isn't taken for the end of the input."""
    report = plaid.add_report()
    rows = [RelayCreateRequest([report], "a"), None, RelayCreateRequest([report], "b")]
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(rows, concurrency=1)
    assert "not NoneType" in str(caught.value.__cause__)


@pytest.mark.parametrize("replay", ["safe", "always"])
async def test_a_token_that_arrived_before_the_end_of_the_drain_is_created(replay):
    """Left while an answer is coming in, the part that came is read: a whole token is a token."""

    async def slow(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"relay_token": "T-1", ')
        await writer.drain()
        written.set()
        await reader.read()
        writer.close()

    written = asyncio.Event()
    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    timeouts, policy = Timeouts(drain=0.1), RetryPolicy(replay=replay)
    async with server, RelayClient(OWNER, base_url=url, timeouts=timeouts, retry=policy) as client:
        rows = RelayCreateRequest.fan_out(["t"], ["p"])
        async with client.relay.create_many(rows) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # it arrives
    (made,) = outcomes.result.created
    assert made.relay_token == "T-1"


@pytest.mark.parametrize(("status", "kind"), [(400, "failed"), (500, "unknown")])
async def test_a_status_that_arrived_before_the_end_of_the_drain_tells(status, kind):
    """Left behind the status line, the status alone says whether anything was carried out."""

    async def slow(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 %d Oh\r\nContent-Length: 100\r\n\r\n{" % status)
        await writer.drain()
        written.set()
        await reader.read()
        writer.close()

    written = asyncio.Event()
    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.1)) as client:
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # it arrives
    (outcome,) = getattr(outcomes.result, kind)
    assert outcome.error.status == status


async def test_what_was_still_connecting_at_the_end_of_the_drain_never_left():
    """A handshake that nobody answers: nothing was sent, so nothing is unknown."""

    async def silence(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.1)) as client:
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await asyncio.sleep(0.05)
    assert (len(outcomes.result.not_attempted), held(outcomes.result)) == (1, [])


async def test_what_may_be_done_stays_unknown_whatever_comes_next(plaid, client):
    """With replay="always", a lost attempt and a next one that is forbidden leave an unknown with what was told."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    # A wait that doesn't fit into the call's time ends it; 30 seconds, of which a random part is waited, fit.
    always = RetryPolicy(replay="always", backoff=30, max_backoff=30)
    async with client.relay.create_many(requests(plaid, 1), retry=always) as outcomes:
        await wait_until_async(lambda: client.statistics().retries)
    (unknown,) = outcomes.result.unknown
    assert (unknown.error.status, unknown.request_id) == (500, plaid.ledger[0]["request_id"])

    class OnceOnly(Notes):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await super().record_intent(request)
            self._begin = 1

    always = RetryPolicy(replay="always", backoff=0.001)
    batch = client.relay.create_many(requests(plaid, 1), retry=always, journal=OnceOnly())
    with pytest.raises(BatchStoppedError):
        await batch
    assert len(batch.result.unknown) == 1


async def test_a_bug_in_the_middle_of_a_call_is_unknown(plaid):
    """Whatever is raised that nobody foresaw: nobody can tell what became of the call, and the others go on."""

    async def create(request, permit):
        await permit.start_attempt()
        if request.secondary_client_id == "partner-1":
            raise ZeroDivisionError
        return RelayCreateResponse("token")

    result = await Batch(CREATIONS, requests(plaid, 3), create, concurrency=1, drain_timeout=1)
    (unknown,) = result.unknown
    assert isinstance(unknown.error.__cause__, ZeroDivisionError)
    assert len(result.created) == 2


async def test_what_never_left_is_failed():
    """No server at all: each partner has an outcome, and none is unknown."""
    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK) as client:
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["t"], partners(5)))
    assert len(result.failed) == 5
    assert all(isinstance(o.error, NotSentError) for o in result.failed)


# ------------------------------------------------------------------------------------------ the journal


class Notes(RecordingJournal):
    """A journal in memory, which may break."""

    def __init__(self, *, breaks_at_begin: int = -1, breaks_at_end: int = -1) -> None:
        self.lines: list[tuple[str, str]] = []
        self._begin, self._end = breaks_at_begin, breaks_at_end

    async def record_intent(self, request: RelayCreateRequest) -> None:
        await asyncio.sleep(0)
        self._write("begun", request.secondary_client_id, self._begin)

    async def record_outcome(self, outcome) -> None:
        await asyncio.sleep(0)
        self._write(type(outcome).__name__, outcome.request.secondary_client_id, self._end)

    def _write(self, what: str, partner: str, breaks_at: int) -> None:
        if len(self.lines) == breaks_at:
            raise OSError(28, "No space left on device")
        self.lines.append((what, partner))


async def test_a_journal_is_written_before_and_after(plaid, client):
    """Each attempt is on record before it leaves, and each outcome before anybody is told."""
    notes = Notes()

    def told(outcome) -> None:
        assert ("Created", outcome.request.secondary_client_id) in notes.lines

    result = await client.relay.create_many(requests(plaid), journal=notes, on_outcome=told)
    assert all(o.journalled for o in result.created)
    for partner in partners(20):
        assert notes.lines.index(("begun", partner)) < notes.lines.index(("Created", partner))


async def test_a_journal_that_cannot_begin_keeps_the_request_here(plaid, client):
    """Without a record nothing leaves: sending stops, the error is the cause."""
    batch = client.relay.create_many(requests(plaid), journal=Notes(breaks_at_begin=4), concurrency=2)
    with pytest.raises(BatchStoppedError) as caught:
        await batch
    assert isinstance(caught.value.__cause__, OSError)
    assert len(batch.result.created) == len(plaid.ledger)
    assert batch.result.not_attempted
    assert_nothing_lost(plaid, held(batch.result))


async def test_a_journal_that_cannot_end_loses_no_token(plaid, client):
    """The outcome is delivered all the same, and says that it isn't in the journal."""
    batch = client.relay.create_many(requests(plaid), journal=Notes(breaks_at_end=3), concurrency=1)
    with pytest.raises(BatchStoppedError):
        await batch
    assert [o.journalled for o in batch.result.created] == [True, False]
    assert_nothing_lost(plaid, held(batch.result))


@pytest.fixture
async def hurried(plaid):
    """A client whose batches wait a moment only for what is in flight."""
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as opened:
        yield opened


async def test_what_is_on_record_as_begun_is_sent(plaid, client):
    """A batch that is left while its journal writes a beginning sends that request, and ends it."""

    class Slow(Notes):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.sleep(0.02)
            await super().record_intent(request)

    notes = Slow()
    async with client.relay.create_many(requests(plaid), journal=notes, concurrency=3) as outcomes:
        await asyncio.sleep(0.01)
    assert len(outcomes.result.created) == plaid.counts[CREATE] == 3
    assert sorted(what for what, _ in notes.lines) == ["Created"] * 3 + ["begun"] * 3


async def test_what_waits_for_its_record_when_time_is_up_was_never_sent(plaid, hurried):
    """Nothing leaves before it is on record, so nothing is unknown."""

    class Stuck(Notes):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.Event().wait()

    async with hurried.relay.create_many(requests(plaid), journal=Stuck(), concurrency=3) as outcomes:
        await asyncio.sleep(0.01)
    assert (len(outcomes.result.not_attempted), plaid.counts[CREATE]) == (3, 0)


async def test_a_token_that_waits_for_its_record_when_time_is_up_is_kept(plaid, hurried):
    """It is handed on, marked as not journalled."""

    class Stuck(Notes):
        async def record_outcome(self, outcome) -> None:
            await asyncio.Event().wait()

    async with hurried.relay.create_many(requests(plaid), journal=Stuck(), concurrency=3) as outcomes:
        await wait_until_async(lambda: len(plaid.ledger) == 3)
        await asyncio.sleep(0.1)  # the responses arrive
    assert [o.journalled for o in outcomes.result.created] == [False] * 3
    assert_nothing_lost(plaid, held(outcomes.result))


# ---------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("concurrency", [0, -1, 2.0, True, "5"])
async def test_a_concurrency_that_makes_no_sense_is_refused(client, concurrency):
    """It is refused when the batch is made, before anything is sent."""
    with pytest.raises(ConfigurationError, match="concurrency must be a whole number from 1"):
        client.relay.create_many([], concurrency=concurrency)


async def test_a_batch_is_run_once(plaid, client):
    """A second use would send everything twice."""
    batch = client.relay.create_many(requests(plaid, 1))
    await batch
    with pytest.raises(RuntimeError, match="has already run"):
        await batch
    with pytest.raises(RuntimeError, match="has already run"):
        async with batch:
            pass
    async with client.relay.create_many(requests(plaid, 1)) as streamed:
        with pytest.raises(RuntimeError, match="has already run"):
            await streamed


async def test_a_stream_is_read_inside_of_its_block(client):
    """Outside of `async with` nobody would wait for what is in flight."""
    batch = client.relay.create_many([])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(aiter(batch))
    await batch


async def test_a_batch_that_nobody_runs_is_warned_of(client):
    """A forgotten `await` doesn't pass for success."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.relay.create_many([])
        gc.collect()
    assert ["neither awaited nor streamed" in str(w.message) for w in caught] == [True]


async def test_an_empty_batch_is_a_batch(client):
    """No request, no outcome, no error."""
    result = await client.relay.create_many([])
    assert (held(result), result.not_attempted) == ([], [])
    result.raise_for_failures()
    async with client.relay.create_many(iter(())) as outcomes:
        assert [o async for o in outcomes] == []


def test_an_outcome_is_one_of_three():
    """The kinds of outcome have the same shape, but for the token or the error."""
    request = RelayCreateRequest(["t"], "p")
    shared = {"request": request, "attempts": 1, "elapsed": 0.1, "request_id": None}
    assert Created(relay_token="t", **shared).journalled is False
    assert Failed(error=PlaidRelayError("x"), **shared).journalled is False
    assert Unknown(error=OutcomeUnknownError("x"), **shared).journalled is False
