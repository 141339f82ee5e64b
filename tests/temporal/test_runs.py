"""Runs on a task queue: one process starts the calls, and workers make them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from decimal import Decimal

import aiohttp
import pytest
from attrs import define
from google.protobuf.duration_pb2 import Duration
from journal_support import KEY, create_in_run, creation_requests, read_records, tokens_per_partner
from processes import read_until, wait_until_async
from support import CREATE, OWNER, QUICK, REMOVE, issued_tokens
from temporal_support import (
    INVALID,
    OTHER_CALLS,
    activity_handle,
    create_on_queue,
    delete_activity,
    make_other_calls,
    open_queue,
    pair_of,
    queued_calls,
    running_worker,
    wait_for_requests,
)
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, Interceptor, OutboundInterceptor, PendingActivityState
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async import (
    AssetReportError,
    AuthenticationError,
    DuplicateRequestError,
    InvalidRequestError,
    ItemError,
    OutcomeUnknownError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal import TaskQueue, data_converter

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own

# An outcome that the journal permits to repeat, with the setting for it.
REPETITIONS = pytest.mark.parametrize(
    ("fault", "setting", "kind"),
    [
        (Fault(path=CREATE, times=1, status=400, body=INVALID), "retry_failed", "failed"),
        (Fault(path=CREATE, times=1, close=True, when="after"), "retry_unknown", "unknown"),
    ],
    ids=["failed", "unknown"],
)


# ---------------------------------------------------------------------------------------------- outcomes


async def test_a_run_has_the_outcomes_of_a_local_one(client, plaid, report, worker, run_x):
    """Each pair has its token, in the outcome and in the journal."""
    queue, journal = run_x
    result = await create_on_queue(queue, client, report)
    records = await read_records(journal, "x")
    assert queue.run == "x"
    assert result.counts == {"created": 10}
    assert {each.relay_token for each in result.created} == {line["relay_token"] for line in plaid.ledger}
    assert {each.relay_token for each in records} == {each.relay_token for each in result.created}
    assert {(each.attempts, each.journalled) for each in result.created} == {(1, True)}
    assert {each.request_id for each in result.created} == {each.request_id for each in records}
    assert set(tokens_per_partner(plaid).values()) == {1}


async def test_each_kind_of_outcome_is_returned_and_recorded(client, plaid, report, worker, run_x):
    """A failed and an unknown creation have their error, with its attributes, as after a local call."""
    queue, journal = run_x
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="p1", status=400, body={"error_type": "ITEM_ERROR"}),
        Fault(path=CREATE, secondary_client_id="p2", close=True, when="after"),
        Fault(path=CREATE, secondary_client_id="p3", status=500, when="before"),
        Fault(path=CREATE, secondary_client_id="p4", status=429, times=1),
    )
    result = await create_on_queue(queue, client, report, 5)
    records = {each.secondary_client_id: each for each in await read_records(journal, "x")}
    (failed,), (lost, broken) = (
        result.failed,
        sorted(result.unknown, key=lambda each: each.request.secondary_client_id),
    )
    assert {each.request.secondary_client_id: each.attempts for each in result.created} == {"p0": 1, "p4": 2}
    assert isinstance(failed.error, ItemError)
    assert (failed.error.status, failed.error.error_type, failed.error.sent) == (400, "ITEM_ERROR", True)
    assert failed.request_id == failed.error.request_id is not None
    assert (lost.error.sent, lost.error.status, broken.error.status) == (True, None, 500)
    assert lost.error.advice == OutcomeUnknownError.advice
    assert all(each.journalled for each in (failed, lost, broken))
    assert {name: (each.outcome, each.attempts) for name, each in records.items()} == {
        "p0": ("created", 1),
        "p1": ("failed", 1),
        "p2": ("unknown", 1),
        "p3": ("unknown", 1),
        "p4": ("created", 2),
    }
    assert result.stopped_by is None


async def test_a_call_that_is_always_declined_fails_as_declined(client, plaid, report, open_run, run_worker):
    """An allocation that is used up isn't waited for: the batch stops after a few such errors, as a local one."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": "CREDITS_EXHAUSTED"}))
    async with run_worker(), open_run() as (queue, journal):
        result = await create_on_queue(queue, client, report, 5, concurrency=1)
        status = await journal.status("x")
    assert isinstance(result.stopped_by, RateLimitError)
    assert (result.counts, len(result.not_attempted)) == ({"failed": 3}, 0)
    assert status.counts == {"failed": 3}
    assert len(plaid.requests) == 3


async def test_the_request_arrives_as_it_would_from_a_local_run(
    plaid, report, temporal_client, task_queue, journal_url, open_run
):
    """The fields of `extra` are sent with all digits of their numbers, and the webhook with the ID of its pair."""
    bodies, trace = [], aiohttp.TraceConfig()

    async def keep_body(_session, _context, sent):
        bodies.append(sent.chunk)

    trace.on_request_chunk_sent.append(keep_body)
    extra = {"rate": Decimal("0.10"), "other": [None, 1.5, "ü"]}
    request = RelayCreateRequest([report], "p", webhook="https://lender.example/{pair}", extra=extra)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, session=session) as client,
        running_worker(temporal_client, task_queue, client, journal_url),
    ):
        async with open_run() as (queue, journal):
            await client.relay.create_many([request], task_queue=queue)
            pair = await pair_of(journal)
        async with Journal(journal_url, run="local", key=KEY, on_existing="create") as journal:
            await client.relay.create_many([request], journal=journal)
    on_queue, local = bodies
    assert on_queue == local
    assert b'"rate":0.10' in local.replace(b" ", b"")
    assert json.loads(local)["webhook"] == f"https://lender.example/{pair}"


async def test_fields_that_plaid_adds_are_in_the_response(client, plaid, report, worker, run_x):
    """They are as exact as in a local run, unless they are too large for the result of an activity."""
    queue, _ = run_x
    bodies = [
        {
            "relay_token": f"credit-relay-sandbox-{name}",
            "request_id": name,
            "added": {"rate": 0.1, "name": text},
        }
        for name, text in (("small", "Ünïcode"), ("large", "x" * 200_000))
    ]
    plaid.fail(*[Fault(path=CREATE, times=1, status=200, body=body) for body in bodies])
    result = await create_on_queue(queue, client, report, 2, concurrency=1)
    small, large = [each.response for each in result.created]
    assert small.additional_properties == {"added": {"rate": Decimal("0.1"), "name": "Ünïcode"}}
    assert (small.relay_token, small.request_id) == ("credit-relay-sandbox-small", "small")
    assert (large.additional_properties, large.relay_token) == ({}, "credit-relay-sandbox-large")


async def test_a_request_that_occurs_twice_is_sent_once(client, plaid, report, worker, run_x):
    """The second request for a pair fails as a duplicate; if duplicates are allowed, it gets the same token."""
    queue, _ = run_x
    twice = [*creation_requests(report, 1)] * 2
    result = await client.relay.create_many(twice, task_queue=queue)
    allowed = await client.relay.create_many(twice, task_queue=queue, allow_duplicates=True)
    assert isinstance(result.failed[0].error, DuplicateRequestError)
    assert [each.relay_token for each in allowed.created] == issued_tokens(plaid) * 2


# -------------------------------------------------------------------------------------- recorded outcomes


async def test_a_pair_with_a_token_is_not_sent_to_the_workers(client, plaid, report, journal_url, open_run):
    """The same run, and another one, get the recorded tokens without a worker."""
    local, _ = await create_in_run(client, report, journal_url, "x", 3)
    async with open_run() as (queue, _):
        same = await create_on_queue(queue, client, report, 3)
    async with open_run("y") as (queue, journal):
        other = await create_on_queue(queue, client, report, 3)
        status = await journal.status("y")
    tokens = {each.relay_token for each in local.created}
    assert (
        {each.relay_token for each in same.created} == {each.relay_token for each in other.created} == tokens
    )
    assert {(each.attempts, each.journalled) for each in [*same.created, *other.created]} == {(0, True)}
    assert (len(plaid.ledger), status.counts) == (3, {"created": 3})


async def test_a_pair_of_another_run_is_refused_or_created_again(
    client, plaid, report, journal_url, worker, open_run
):
    """The journal's setting for pairs of other runs applies to the workers, too."""
    await create_in_run(client, report, journal_url, "x", 1)
    async with open_run("y", on_existing="refuse") as (queue, _):
        refused = await create_on_queue(queue, client, report, 1)
    async with open_run("z", on_existing="create") as (queue, _):
        created = await create_on_queue(queue, client, report, 1)
    assert isinstance(refused.failed[0].error, DuplicateRequestError)
    assert created.created[0].relay_token == issued_tokens(plaid)[1]
    assert len(plaid.ledger) == 2


@REPETITIONS
async def test_a_repetition_needs_the_permission_of_the_journal(
    client, plaid, report, worker, fault, setting, kind, open_run
):
    """A failed or unknown pair is recorded as such, and created again only with the setting for it."""
    plaid.fail(fault)
    results = []
    for settings in ({}, {}, {setting: True}):
        async with open_run(**settings) as (queue, _):
            results.append(await create_on_queue(queue, client, report, 1))
    assert [each.counts for each in results] == [{kind: 1}, {kind: 1}, {"created": 1}]
    assert len(plaid.requests) == 2
    assert [each.attempts for each in results[2].created] == [1]


async def test_a_failure_that_may_pass_is_repeated_by_the_next_run(client, plaid, report, worker, open_run):
    """The next run starts another activity for a pair whose activity has ended."""
    plaid.fail(Fault(path=CREATE, times=1, status=400, body={"error_type": "ITEM_ERROR"}))
    counts = []
    for _ in range(2):
        async with open_run() as (queue, _):
            counts.append((await create_on_queue(queue, client, report, 1)).counts)
    assert counts == [{"failed": 1}, {"created": 1}]


# ------------------------------------------------------------------------------- errors that several share


async def test_errors_that_every_request_gets_stop_the_batch(client, plaid, report, worker, run_x):
    """After three of them, no further request is added to the queue."""
    queue, journal = run_x
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}))
    result = await create_on_queue(queue, client, report, concurrency=1)
    status = await journal.status("x")
    assert isinstance(result.stopped_by, AuthenticationError)
    assert (result.counts, status.counts, len(plaid.requests)) == ({"failed": 3}, {"failed": 3}, 3)


async def test_errors_of_one_report_stop_only_its_requests(client, plaid, report, worker, run_x):
    """After three of them, the report's other pairs aren't attempted, and another report is shared."""
    queue, journal = run_x
    other = plaid.add_report()
    plaid.fail(Fault(path=CREATE, times=3, status=400, body={"error_type": "ASSET_REPORT_ERROR"}))
    requests = [*creation_requests(report, 5), RelayCreateRequest([other], "q")]
    result = await client.relay.create_many(requests, task_queue=queue, concurrency=1)
    status = await journal.status("x")
    assert (result.counts, len(plaid.requests)) == ({"failed": 5, "created": 1}, 4)
    assert {type(each.error) for each in result.failed} == {AssetReportError}
    assert status.counts == {"failed": 3, "created": 1, "not_attempted": 2}


# -------------------------------------------------------------------------------------------- removals


async def test_a_call_that_was_queued_with_another_setting(
    client, plaid, report, task_queue, open_run, journal_url, run_worker
):
    """A worker serves the token of another run; a run that is followed with `create` gets one of its own."""
    async with open_run() as (queue, _):
        assert (await queue.submit(client, creation_requests(report, 1))).started == 1
    async with Journal(journal_url, run="other", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 1), journal=journal)
    async with run_worker(), open_run(on_existing="create") as (queue, _):
        result = await create_on_queue(queue, client, report, 1)
    assert (result.counts, result.created[0].attempts) == ({"created": 1}, 1)
    assert [each["relay_token"] for each in plaid.ledger][1] == result.created[0].relay_token


async def test_tokens_are_removed_by_workers(client, plaid, report, worker, run_x):
    """The removal of a recorded token is recorded, that of another token isn't, and a removed one isn't sent."""
    queue, journal = run_x
    unrecorded = await client.relay.create([report], "q")
    created = await create_on_queue(queue, client, report, 2)
    tokens = [each.relay_token for each in created.created]
    result = await client.relay.remove_many([*tokens, unrecorded.relay_token], task_queue=queue)
    sent = len(plaid.requests)
    again = await client.relay.remove_many(tokens, task_queue=queue)
    status = await journal.status("x")
    assert result.counts == {"removed": 3}
    assert {each.request.relay_token: each.journalled for each in result.succeeded} == {
        **dict.fromkeys(tokens, True),
        unrecorded.relay_token: False,
    }
    assert {each.attempts for each in result.succeeded} == {1}
    assert (again.counts, len(plaid.requests)) == ({"removed": 2}, sent)
    assert status.counts == {"removed": 2}


async def test_a_removal_that_failed_is_repeated(client, plaid, report, worker, run_x):
    """The next call starts another activity, and an earlier removal in doubt is taken into account."""
    queue, journal = run_x
    (created,) = (await create_on_queue(queue, client, report, 1)).created
    plaid.fail(
        Fault(path=REMOVE, times=1, status=400, body=INVALID),
        Fault(path=REMOVE, times=4, close=True),
    )
    failed, unknown, removed = [
        await client.relay.remove_many([created.relay_token], task_queue=queue) for _ in range(3)
    ]
    status = await journal.status("x")
    assert isinstance(failed.failed[0].error, InvalidRequestError)
    assert [(each.attempts, each.journalled) for each in unknown.unknown] == [(4, True)]
    assert [(each.attempts, each.journalled) for each in removed.succeeded] == [(1, True)]
    assert not removed.succeeded[0].response.inferred
    assert status.counts == {"removed": 1}


# ----------------------------------------------------------------------------------- detached retries


@contextlib.asynccontextmanager
async def queued_retry(client, plaid, report, open_run, run_worker, fault, setting):
    """Submit a retry of the only pair of the run `x`, and yield a task queue without permission to retry."""
    requests = [*creation_requests(report, 1)]
    plaid.fail(fault)
    async with run_worker(), open_run() as (queue, _):
        await create_on_queue(queue, client, report, 1)
    async with open_run(**{setting: True}) as (queue, _):
        assert (await queue.submit(client, requests)).started == 1
    async with open_run() as (queue, journal):
        assert (await queue.submit(client, requests)).pending == 1
        yield queue, journal


@REPETITIONS
async def test_a_detached_retry_is_followed(
    client, plaid, report, fault, setting, kind, open_run, run_worker
):
    """The outcome is that of the retry, not the recorded one, and the retry isn't repeated."""
    async with queued_retry(client, plaid, report, open_run, run_worker, fault, setting) as (queue, journal):
        running = asyncio.ensure_future(queue.follow(client))
        await wait_until_async(queued_calls)
        async with run_worker():
            result = await running
            again = await queue.follow(client)
        status = await journal.status("x")
    assert result.counts == again.counts == status.counts == {"created": 1}
    assert [each.journalled for each in result.created] == [True]
    assert len(plaid.requests) == 2


@pytest.mark.parametrize("kind", ["failed", "unknown"])
async def test_a_detached_retry_that_does_not_create_is_followed(
    client, plaid, report, kind, open_run, run_worker
):
    """The outcome is the new one, which the journal has as well."""
    first = Fault(path=CREATE, times=1, status=400, body=INVALID)
    async with queued_retry(client, plaid, report, open_run, run_worker, first, "retry_failed") as (queue, _):
        faults = {
            "failed": Fault(path=CREATE, status=400, body=INVALID | {"error_code": "UNKNOWN_FIELDS"}),
            "unknown": Fault(path=CREATE, close=True, when="after"),
        }
        plaid.fail(faults[kind])
        running = asyncio.ensure_future(queue.follow(client))
        await wait_until_async(queued_calls)
        async with run_worker():
            result = await running
            again = await queue.follow(client)
    assert result.counts == again.counts == {kind: 1}
    assert [each.error.error_code for each in result.failed] == ["UNKNOWN_FIELDS"] * (kind == "failed")
    assert len(plaid.requests) == 2


@REPETITIONS
@pytest.mark.parametrize("by", ["another process", "its own process"])
async def test_a_detached_retry_is_cancelled(
    client, plaid, report, fault, setting, kind, by, open_run, run_worker
):
    """The process that follows it has the recorded outcome, and no worker makes the call."""
    async with queued_retry(client, plaid, report, open_run, run_worker, fault, setting) as (queue, journal):
        following = queue.follow(client)
        running = asyncio.ensure_future(following)
        await wait_until_async(queued_calls)
        if by == "another process":
            assert await queue.cancel() == 1
            await running
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert await queue.count_pending() == 0
        async with run_worker():
            await make_other_calls(open_run, client, report)
        status = await journal.status("x")
    assert following.result.counts == status.counts == {kind: 1}
    assert len(plaid.requests) == 1 + OTHER_CALLS


async def test_a_detached_retry_is_left_on_the_queue(client, plaid, report, open_run, run_worker):
    """A process that follows it can be left, and a worker that starts later makes the call."""
    fault = Fault(path=CREATE, times=1, status=400, body=INVALID)
    async with queued_retry(client, plaid, report, open_run, run_worker, fault, "retry_failed") as (queue, _):
        following = queue.follow(client)
        running = asyncio.ensure_future(following)
        await wait_until_async(queued_calls)
        following.abandon()
        abandoned = await running
        async with run_worker():
            followed = await queue.follow(client)
    assert (abandoned.counts, followed.counts) == ({"unknown": 1}, {"created": 1})
    assert len(plaid.ledger) == 1


async def test_a_detached_retry_is_followed_after_the_retention_of_its_first_activity(
    client, plaid, report, temporal_client, open_run, run_worker
):
    """The first activity, which the server has deleted, isn't started again."""
    fault = Fault(path=CREATE, times=1, status=400, body=INVALID)
    async with queued_retry(client, plaid, report, open_run, run_worker, fault, "retry_failed") as (
        queue,
        journal,
    ):
        first = activity_handle(queue, await pair_of(journal))
        await delete_activity(temporal_client, first)
        running = asyncio.ensure_future(queue.follow(client))
        await wait_until_async(queued_calls)
        async with run_worker():
            result = await running
        with pytest.raises(RPCError) as caught:
            await first.describe()
    assert caught.value.status is RPCStatusCode.NOT_FOUND
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 2


# ------------------------------------------------------------------------- leaving, cancelling, abandoning


async def test_leaving_the_stream_takes_the_queued_calls_off_the_queue(
    client, plaid, report, open_run, run_worker
):
    """Calls that a worker has begun are drained; the others aren't attempted, now or by a later worker."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", latency=1.0))
    async with open_run() as (queue, journal):
        async with (
            run_worker(concurrency=1),
            client.relay.create_many(creation_requests(report, 8), task_queue=queue) as outcomes,
        ):
            async for _ in outcomes:
                break
        result = outcomes.result
        async with run_worker():
            await make_other_calls(open_run, client, report)
        status = await journal.status("x")
    created = result.counts["created"]
    assert 1 <= created < 8
    assert len(result.not_attempted) == 8 - created
    assert len(plaid.ledger) == created + OTHER_CALLS
    assert status.counts == {"created": created, "not_attempted": 8 - created}
    assert result.counts.total() == created


async def test_a_cancelled_batch_drains(client, plaid, report, open_run, run_worker):
    """The call that a worker has begun has its outcome once the cancellation is raised."""
    plaid.fail(Fault(path=CREATE, latency=0.5))
    async with run_worker(), open_run() as (queue, _):
        batch = client.relay.create_many(creation_requests(report, 1), task_queue=queue)
        running = asyncio.ensure_future(batch)
        await wait_for_requests(plaid, 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert batch.result.counts == {"created": 1}


async def test_an_abandoned_batch_does_not_know_what_workers_have_begun(
    client, plaid, report, open_run, run_worker
):
    """Its calls are unknown, because a worker makes them; the run can be followed, and then has their tokens."""
    plaid.fail(Fault(path=CREATE, latency=0.5))
    async with run_worker(), open_run() as (queue, _):
        batch = client.relay.create_many(creation_requests(report, 2), task_queue=queue)
        running = asyncio.ensure_future(batch)
        await wait_for_requests(plaid, 2)
        batch.abandon()
        abandoned = await running
        followed = await queue.follow(client)
    assert abandoned.counts == {"unknown": 2}
    assert {each.journalled for each in abandoned.unknown} == {False}
    assert followed.counts == {"created": 2}
    assert len(plaid.ledger) == 2


async def test_an_abandoned_batch_leaves_its_calls_on_the_queue(client, plaid, report, open_run, run_worker):
    """A process that follows a run can be left, and workers that start later make its calls."""
    async with open_run() as (queue, _):
        await queue.submit(client, creation_requests(report, 2))
        following = queue.follow(client)
        running = asyncio.ensure_future(following)
        await wait_until_async(lambda: len(queued_calls()) == 2)
        following.abandon()
        abandoned = await running
    async with run_worker():
        await wait_until_async(lambda: len(plaid.ledger) == 2)
    assert abandoned.counts == {"unknown": 2}


async def test_an_outcome_that_arrives_together_with_the_end_is_kept(
    client, plaid, report, open_run, run_worker
):
    """A batch that stops after a call has ended, and before it has noticed that, has the outcome of the call."""
    async with (
        run_worker(),
        open_run() as (queue, _),
    ):
        batch = client.relay.create_many(creation_requests(report, 1), task_queue=queue)
        running = asyncio.ensure_future(batch)
        await wait_until_async(queued_calls)
        (call,) = queued_calls()
        # To await the call would take longer than the batch needs to notice its end.
        while not call.done():
            await asyncio.sleep(0)
        batch.sending.stop(None)
        result = await running
    assert result.counts == {"created": 1}


async def test_a_call_that_is_stopped_while_it_is_added_to_the_queue_is_taken_off_it(
    client, plaid, report, temporal_server, task_queue, journal_url
):
    """It isn't attempted, also if the server adds it to the queue after the batch has stopped."""

    class Held(OutboundInterceptor):
        async def start_activity(self, input):  # noqa: A002  # as the base class names it
            held.set()
            await gate.wait()
            return await super().start_activity(input)

    class Holding(Interceptor):
        def intercept_client(self, next):  # noqa: A002
            return Held(next)

    held, gate = asyncio.Event(), asyncio.Event()
    temporal = await Client.connect(
        temporal_server.address, data_converter=data_converter(KEY), interceptors=[Holding()]
    )
    async with open_queue(temporal, task_queue, journal_url) as (queue, _):
        batch = client.relay.create_many(creation_requests(report, 1), task_queue=queue)
        running = asyncio.ensure_future(batch)
        await held.wait()
        running.cancel()
        await wait_until_async(lambda: batch.sending.stopped)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        remaining = await queue.cancel()
    assert remaining == 0


async def test_a_drain_is_ended_by_abandoning_the_batch(client, plaid, report, open_run, run_worker):
    """A call that a worker has begun and that isn't waited for is unknown."""
    plaid.fail(Fault(path=CREATE, latency=2.0))
    async with (
        run_worker(),
        open_run() as (queue, journal),
    ):
        batch = client.relay.create_many(creation_requests(report, 1), task_queue=queue)
        running = asyncio.ensure_future(batch)
        await wait_for_requests(plaid, 1)
        running.cancel()
        handle = activity_handle(queue, await pair_of(journal))
        await read_until(
            handle.describe, lambda activity: activity.run_state is PendingActivityState.CANCEL_REQUESTED
        )
        batch.abandon()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert batch.result.counts == {"unknown": 1}


# ----------------------------------------------------------------------------------- submit, follow, cancel


async def test_a_run_is_submitted_in_one_process_and_followed_in_another(
    client, plaid, report, open_run, run_worker
):
    """Each call is added to the queue once, and the outcomes are those of a batch."""
    requests = [*creation_requests(report, 5)]
    async with open_run() as (queue, journal):
        first = await queue.submit(client, requests[:3])
        second = await queue.submit(client, requests)
        status = await journal.status("x")
    async with open_run() as (queue, _), run_worker():
        result = await queue.follow(client)
        third = await queue.submit(client, requests)
    assert (first.started, first.pending, first.recorded) == (3, 0, 0)
    assert (second.started, second.pending, second.recorded) == (2, 3, 0)
    assert (third.started, third.pending, third.recorded) == (0, 0, 5)
    assert status.counts == {"not_attempted": 5}
    assert {each.relay_token for each in result.created} == set(issued_tokens(plaid))
    assert [each.request for each in sorted(result.created, key=lambda e: e.request.secondary_client_id)] == [
        *requests
    ]


async def test_only_what_was_submitted_is_followed(client, report, journal_url, worker, open_run):
    """The request of a pair that was created in another way can't be read, and the journal has its outcome."""
    await create_in_run(client, report, journal_url, "x", 2)
    async with open_run() as (queue, journal):
        await queue.submit(client, creation_requests(report, 3))
        result = await queue.follow(client)
        status = await journal.status("x")
    assert [each.request.secondary_client_id for each in result.created] == ["p2"]
    assert status.counts == {"created": 3}


async def test_pairs_whose_requests_are_deleted_are_counted(
    client, report, temporal_client, task_queue, journal_url, worker, caplog
):
    """A run that is followed after the retention has no outcomes of them, and a warning says how many."""
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
        await create_on_queue(queue, client, report, 5)
        pairs = [pair async for pair in journal.pair_ids("x")]
        assert (await queue.follow(client)).counts == {"created": 5}
        assert not caplog.records
        for pair in pairs[1:4]:
            await delete_activity(temporal_client, activity_handle(queue, pair))
        assert (await queue.follow(client)).counts == {"created": 2}
        (record,) = caplog.records
    assert (record.name, record.levelname) == ("plaid_relay_async.temporal", "WARNING")
    assert record.getMessage().startswith("3 pairs of the run aren't followed")
    assert "plaid-relay export" in record.getMessage()


async def test_an_outcome_that_is_recorded_during_a_submission_counts_as_recorded(
    client, plaid, report, temporal_client, task_queue, worker, open_run
):
    """Another process may have made the call between the look-up of a pair and the start of its activity."""

    @define
    class SlowJournal:
        """A journal after whose look-up another process creates."""

        journal: Journal

        def __getattr__(self, name):
            return getattr(self.journal, name)

        async def acquire_recorder(self, request, context):
            recorder = await self.journal.acquire_recorder(request, context)
            async with open_run() as (other, _):
                await client.relay.create_many([request], task_queue=other)
            return recorder

    async with open_run() as (_, journal):
        queue = TaskQueue(temporal_client, task_queue, journal=SlowJournal(journal))
        submitted = await queue.submit(client, creation_requests(report, 1))
    assert (submitted.started, submitted.pending, submitted.recorded) == (0, 0, 1)
    assert len(plaid.requests) == 1


async def test_the_error_of_a_missing_search_attribute_names_it(
    client, plaid, report, temporal_server, temporal_client, task_queue, journal_url
):
    """A namespace without it can be used without it."""
    await temporal_client.workflow_service.register_namespace(
        RegisterNamespaceRequest(
            namespace=task_queue, workflow_execution_retention_period=Duration(seconds=86_400)
        )
    )
    temporal = await Client.connect(
        temporal_server.address, namespace=task_queue, data_converter=data_converter(KEY)
    )
    async with Journal(journal_url, run="x", key=KEY) as journal:
        async with asyncio.timeout(60):
            while True:  # the server needs some seconds for a new namespace
                queue = TaskQueue(temporal, task_queue, journal=journal)
                result = await create_on_queue(queue, client, report, 1)
                if "search attribute PlaidRelayRun" in str(result.failed[0].error):
                    break
        queue = TaskQueue(temporal, task_queue, journal=journal, search_attribute=False)
        async with running_worker(temporal, task_queue, client, journal_url):
            created = await create_on_queue(queue, client, report, 1)
    assert "search_attribute=False" in str(result.failed[0].error)
    assert created.counts == {"created": 1}


async def test_many_new_pairs_are_submitted_without_a_look_up_of_each(client, report, open_run):
    """A pair that the journal has assumed to be new, without a look-up, is submitted all the same."""
    async with open_run() as (queue, journal):
        submitted = await queue.submit(client, creation_requests(report, 105), concurrency=3)
        status = await journal.status("x")
    assert submitted.started == 105
    assert status.counts == {"not_attempted": 105}


async def test_a_cancelled_run_is_not_created_by_workers(client, plaid, report, open_run, run_worker):
    """Calls that are taken off the queue stay off it until the requests are submitted again."""
    requests = [*creation_requests(report, 3)]
    async with open_run() as (queue, _):
        await queue.submit(client, requests)
        cancelled = await queue.cancel()
        remaining = await queue.cancel()
        async with run_worker():
            await make_other_calls(open_run, client, report)
            sent = len(plaid.requests) - OTHER_CALLS
            again = await queue.submit(client, requests)
            result = await queue.follow(client)
    assert (cancelled, sent, again.started, remaining) == (3, 0, 3, 0)
    assert result.counts == {"created": 3}


@REPETITIONS
async def test_a_repetition_is_cancelled(client, plaid, report, fault, setting, kind, open_run, run_worker):
    """A creation that is queued again, with the permission of the journal, keeps its recorded outcome."""
    plaid.fail(fault)
    async with run_worker(), open_run() as (queue, _):
        await create_on_queue(queue, client, report, 1)
    async with open_run(**{setting: True}) as (queue, journal):
        submitted = await queue.submit(client, creation_requests(report, 1))
        cancelled = await queue.cancel()
        status = await journal.status("x")
    assert (submitted.started, cancelled, status.counts) == (1, 1, {kind: 1})


async def test_a_pair_that_is_created_again_after_its_removal(
    client, plaid, report, temporal_client, task_queue, journal_url
):
    """It is queued, followed and cancelled once, although the journal has its removed token as well."""
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
        async with running_worker(temporal_client, task_queue, client, journal_url):
            (created,) = (await create_on_queue(queue, client, report, 1)).created
            await client.relay.remove_many([created.relay_token], task_queue=queue)
        assert await queue.count_pending() == 0
        await queue.submit(client, creation_requests(report, 1))
        assert [await queue.count_pending(partner=partner) for partner in (None, "p0", "q")] == [1, 1, 0]
        assert await queue.cancel() == 1
        assert await queue.count_pending() == 0
        async with running_worker(temporal_client, task_queue, client, journal_url):
            await create_on_queue(queue, client, report, 1)
            followed = await queue.follow(client)
        pairs = [pair async for pair in journal.pair_ids("x")]
    assert (followed.counts, len(pairs), len(plaid.ledger)) == ({"created": 1}, 1, 2)


async def test_second_tokens_are_counted_and_cancelled(client, plaid, report, open_run, run_worker):
    """A run that has reused the tokens of another one may create its own, as long as they are on the queue."""
    requests = [*creation_requests(report, 2)]
    async with run_worker():
        for run in "xy":
            async with open_run(run) as (queue, _):
                assert (await create_on_queue(queue, client, report, 2)).counts == {"created": 2}
    async with open_run("y", on_existing="create") as (queue, _):
        submitted = await queue.submit(client, requests)
        pending = await queue.count_pending()
        cancelled = await queue.cancel()
        remaining = await queue.count_pending()
    async with run_worker():
        await make_other_calls(open_run, client, report)
    assert (submitted.started, pending, cancelled, remaining) == (2, 2, 2, 0)
    assert len(plaid.ledger) == 2 + OTHER_CALLS


async def test_a_call_that_a_worker_has_begun_is_not_cancelled(
    client, plaid, report, temporal_client, task_queue, journal_url
):
    """It is completed, and doesn't count as cancelled."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", latency=1.0))
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
        async with running_worker(temporal_client, task_queue, client, journal_url, concurrency=1):
            await queue.submit(client, creation_requests(report, 1))
            await wait_for_requests(plaid, 1)
            cancelled = await queue.cancel()
        result = await queue.follow(client)
    assert (cancelled, result.counts) == (0, {"created": 1})
