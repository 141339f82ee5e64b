"""Running a batch: awaited or streamed, with bounded concurrency, and with callbacks."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import warnings

import pytest
from batch_support import (
    BreakingJournal,
    all_outcomes,
    assert_nothing_lost,
    batch_of,
    create_requests,
    create_tokens,
    partner_by_token,
    partner_names,
)
from support import CREATE, GET, OWNER, PDF, QUICK

from plaid_relay_async import (
    AssetReportGetResponse,
    BatchStoppedError,
    InvalidRequestError,
    OutcomeUnknownError,
    PdfResponse,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RequestValidationError,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.simulator import Fault

# ------------------------------------------------------------------------------------- the two ways of use


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


async def test_an_empty_batch_succeeds(client):
    """It has no outcome and no error."""
    result = await client.relay.create_many([])
    assert (all_outcomes(result), result.not_attempted) == ([], [])
    result.raise_for_failures()
    async with client.relay.create_many(iter(())) as outcomes:
        assert [o async for o in outcomes] == []


# ---------------------------------------------------------------------------------------------- the bounds


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


async def test_reads_reach_the_concurrency(plaid, client, partner):
    """The limit is reached: reading isn't slower than necessary."""
    tokens = await create_tokens(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.1))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        await anext(outcomes)
        assert plaid.counts[GET] == 5
        async for _ in outcomes:
            pass
    assert outcomes.result.counts == {"fetched": 30}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [("get_many", GET), ("get_pdf_many", PDF)])
async def test_a_slow_loop_keeps_no_more_reports_than_the_concurrency(plaid, client, partner, name, path):
    """Calls in flight and unread reports together don't exceed the limit, and no more are requested."""
    tokens = await create_tokens(client, plaid, 40)
    kind = AssetReportGetResponse if name == "get_many" else PdfResponse
    concurrency, received, maximum = 4, 0, 0
    before = count_instances(kind)  # those of other tests
    async with getattr(partner.relay, name)(tokens, concurrency=concurrency) as outcomes:
        async for outcome in outcomes:
            received += 1
            await asyncio.sleep(0.02)  # enough time to fetch whatever is allowed
            assert plaid.counts[path] - received <= concurrency
            del outcome
            maximum = max(maximum, count_instances(kind) - before)
    assert (received, maximum) == (40, concurrency)


def count_instances(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_requests_that_fail_immediately_do_not_block_the_loop(plaid):
    """A batch that never waits for anything can still be cancelled."""

    async def create(request, gate):
        raise RequestValidationError("x")

    report = plaid.add_report()
    endless = (RelayCreateRequest([report], f"p{n}") for n in itertools.count())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await batch_of(CREATIONS, endless, create, concurrency=3, drain_timeout=1)


# ----------------------------------------------------------------------------------------------- callbacks


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


# -------------------------------------------------------------------------------------------------- misuse


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
