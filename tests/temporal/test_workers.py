"""Workers: what they refuse, what they open and close, and how they end."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from attrs import define
from journal_support import KEY, OTHER_KEY, creation_requests, read_records
from processes import read_until
from support import CREATE, OWNER, QUICK
from temporal_support import (
    LONG,
    OTHER_CALLS,
    activity_handle,
    create_on_queue,
    make_other_calls,
    open_queue,
    pair_of,
    running_worker,
    wait_for_requests,
)
from temporalio import activity
from temporalio.api.workflowservice.v1 import DeleteActivityExecutionRequest
from temporalio.client import ActivityFailureError, Client
from temporalio.exceptions import TimeoutError as TemporalTimeoutError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    Credentials,
    JournalError,
    RelayClient,
    RequestValidationError,
    Timeouts,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal import TaskQueue, Worker, data_converter
from plaid_relay_async.temporal.task_queue import retry_transient
from plaid_relay_async.temporal.tasks import TaskResult

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own


OPEN_JOURNALS = "SELECT 1 FROM relay_holders WHERE NOT ended"


# ------------------------------------------------------------------------- workers that don't fit the run


async def test_a_worker_of_another_lender_refuses_the_calls(
    plaid, client, report, temporal_client, task_queue, journal_url
):
    """Each call fails with an error that names the cause; nothing is sent, and nothing is recorded."""
    other = Credentials("other-lender", "secret-of-the-owner")
    async with (
        RelayClient(other, base_url=plaid.url, retry=QUICK) as other_client,
        running_worker(temporal_client, task_queue, other_client, journal_url),
        open_queue(temporal_client, task_queue, journal_url) as (queue, journal),
    ):
        result = await create_on_queue(queue, client, report, 5, concurrency=1)
        status = await journal.status("x")
    assert isinstance(result.stopped_by, ConfigurationError)
    assert (result.counts, len(plaid.requests)) == ({"failed": 3}, 0)
    assert "another journal or for another lender" in str(result.failed[0].error)
    assert {each.journalled for each in result.failed} == {False}
    assert status.counts == {"not_attempted": 3}


async def test_a_worker_with_another_journal_refuses_the_calls(
    plaid, client, report, temporal_client, task_queue, journal_url, postgres
):
    """It computes other names for the same pairs and tokens."""
    await postgres.execute("DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    async with (
        running_worker(temporal_client, task_queue, client, journal_url.rpartition("/")[0] + "/other"),
        open_queue(temporal_client, task_queue, journal_url) as (queue, _),
    ):
        created = await create_on_queue(queue, client, report, 1)
        removed = await client.relay.remove_many(["credit-relay-sandbox-1"], task_queue=queue)
    assert [type(each.error) for each in [*created.failed, *removed.failed]] == [ConfigurationError] * 2
    assert not plaid.requests


async def test_payloads_under_another_key_are_refused(
    plaid, client, report, temporal_server, temporal_client, task_queue, journal_url
):
    """A worker with another key returns nothing that the submitter can decrypt, so the call is unknown."""
    other = await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY))
    async with (
        open_queue(temporal_client, task_queue, journal_url) as (queue, _),
        running_worker(other, task_queue, client, journal_url),
    ):
        result = await create_on_queue(queue, client, report, 1)
    (unknown,) = result.unknown
    assert "no key" in str(unknown.error)
    assert not unknown.journalled
    assert not plaid.requests


async def test_a_task_of_a_later_release_is_refused(plaid, client, temporal_client, task_queue, journal_url):
    """The error names the version of the task and what to do."""
    async with running_worker(temporal_client, task_queue, client, journal_url):
        handle = await temporal_client.start_activity(
            "plaid_relay.create",
            {"version": 2, "task": "of tomorrow"},
            id=task_queue,
            task_queue=task_queue,
            start_to_close_timeout=timedelta(seconds=LONG),
        )
        with pytest.raises(ActivityFailureError) as raised:
            await handle.result()
    assert raised.value.cause.type == "ConfigurationError"
    assert "another release of this package wrote the task (version 2)" in raised.value.cause.message
    assert not plaid.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_queue": ""}, "the name of a task queue must be"),
        ({"task_queue": 5}, "the name of a task queue must be"),
        ({"concurrency": 0}, "concurrency must be a whole number of 1 or more"),
        ({"lease": 0}, "lease must be a finite number of seconds"),
        ({"namespace": ""}, "namespace must be a non-empty string"),
        ({"journal_url": "relay.db"}, "requires a journal in PostgreSQL"),
    ],
)
async def test_a_worker_with_an_invalid_argument_is_rejected(
    client, temporal_client, task_queue, journal_url, arguments, message
):
    """It is rejected when it is created, and not by its first call."""
    valid = {"task_queue": task_queue, "journal_url": journal_url, "key": KEY}
    with pytest.raises(ConfigurationError, match=message):
        Worker(temporal_client, client=client, **valid | arguments)


async def test_a_worker_ends_with_an_error_if_its_namespace_does_not_exist(
    temporal_server, client, task_queue, journal_url
):
    """It doesn't wait for calls that can't arrive."""
    temporal = await Client.connect(
        temporal_server.address, namespace="nowhere", data_converter=data_converter(KEY)
    )
    with pytest.raises(RuntimeError, match="nowhere"):
        await Worker(temporal, task_queue, client, journal_url, key=KEY).run()


# ------------------------------------------------------------------------------------ journals of a worker


async def test_a_worker_that_cannot_open_the_journal_leaves_the_call_to_another_one(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres
):
    """The call is repeated until a worker with a journal makes it, once."""
    await postgres.execute("DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    other_url = journal_url.rpartition("/")[0] + "/other"
    async with running_worker(temporal_client, task_queue, client, other_url, lease=1.0):
        # Once it has made a call, it has started, and opens another journal for another run.
        async with open_queue(temporal_client, task_queue, other_url, "started") as (queue, _):
            await create_on_queue(queue, client, report, 1)
        await postgres.execute("ALTER DATABASE other ALLOW_CONNECTIONS false")
        async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
            await queue.submit(client, creation_requests(report, 1))
            with pytest.raises(ActivityFailureError) as raised:
                await activity_handle(queue, await pair_of(journal)).result()
    async with (
        open_queue(temporal_client, task_queue, journal_url) as (queue, _),
        running_worker(temporal_client, task_queue, client, journal_url),
    ):
        result = await create_on_queue(queue, client, report, 1)
    assert raised.value.cause.type == "JournalError"
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 2


async def test_a_journal_whose_lease_has_expired_is_replaced(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres
):
    """The call whose intent it can't record is repeated, and then uses a journal with a new lease."""
    async with running_worker(temporal_client, task_queue, client, journal_url):
        async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
            await create_on_queue(queue, client, report, 1)
        # The journal of the submitter is closed, so the only lease is that of the worker.
        await postgres.execute("UPDATE relay_holders SET expires_at = expires_at - 3600")
        async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
            result = await create_on_queue(queue, client, report, 3)
            status = await journal.status("x")
    assert result.counts == status.counts == {"created": 3}
    assert len(plaid.ledger) == 3


async def test_the_journals_of_runs_that_have_ended_are_closed(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres
):
    """A worker keeps the journals of a few runs open, and closes them all at its end."""
    async with running_worker(temporal_client, task_queue, client, journal_url):
        for number in range(10):
            async with open_queue(
                temporal_client, task_queue, journal_url, f"run-{number}", on_existing="create"
            ) as (queue, _):
                assert (await create_on_queue(queue, client, report, 1)).counts == {"created": 1}
        journals = await read_until(lambda: postgres.execute(OPEN_JOURNALS), lambda rows: len(rows) <= 8)
    remaining = await postgres.execute(OPEN_JOURNALS)
    assert (len(journals), remaining) == (8, [])
    assert len(plaid.ledger) == 10


# --------------------------------------------------------------------------------------- the end of a worker


async def test_a_worker_drains(client, plaid, report, temporal_client, task_queue, journal_url):
    """The calls in flight end as usual, and another worker makes the others: none is lost, or made twice."""
    plaid.fail(Fault(path=CREATE, latency=0.5, times=4))
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 12))
        async with running_worker(temporal_client, task_queue, client, journal_url, concurrency=4):
            await wait_for_requests(plaid, 4)
        drained = len(plaid.ledger)
        async with running_worker(temporal_client, task_queue, client, journal_url):
            result = await running
    assert 4 <= drained <= 12
    assert {each.attempts for each in result.created} == {1}
    assert len(result.created) == len(plaid.ledger) == len(plaid.requests) == 12


async def test_a_second_cancellation_ends_a_worker_in_the_middle_of_a_call(
    client, plaid, report, temporal_client, task_queue, journal_url
):
    """It ends without waiting for Plaid, and the outcome of the call is unknown."""
    plaid.fail(Fault(path=CREATE, stall=LONG))
    async with (
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, timeouts=Timeouts(drain=0.1)) as worker_client,
        open_queue(temporal_client, task_queue, journal_url, start_to_close=3.0) as (queue, journal),
    ):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        worker = asyncio.create_task(
            Worker(temporal_client, task_queue, worker_client, journal_url, key=KEY, lease=1.0).run()
        )
        await wait_for_requests(plaid, 1)
        for _ in range(2):
            worker.cancel()
            await asyncio.sleep(0.2)  # nothing shows that its drain has begun
        with pytest.raises(asyncio.CancelledError):
            await worker
        result = await running
        records = await read_records(journal, "x")
    assert result.counts == {"unknown": 1}
    assert [each.outcome for each in records] == ["unknown"]
    assert len(plaid.requests) == 1


# ------------------------------------------------------------------------------ operators and their tools


@pytest.mark.parametrize("action", ["cancel", "terminate", "delete"])
async def test_a_call_that_an_operator_takes_off_the_queue_is_added_again(
    client, plaid, report, temporal_client, task_queue, journal_url, action
):
    """It hasn't been made, so the process that waits for it starts another activity."""
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        await asyncio.sleep(0.2)  # nothing shows that the process waits for the activity
        if action == "delete":
            await temporal_client.workflow_service.delete_activity_execution(
                DeleteActivityExecutionRequest(namespace="default", activity_id=handle.id)
            )
        else:
            await getattr(handle, action)()
        async with running_worker(temporal_client, task_queue, client, journal_url):
            result = await running
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1


@pytest.mark.parametrize(
    ("effect", "kind"), [({}, "created"), ({"close": True}, "unknown")], ids=["created", "unknown"]
)
async def test_a_call_in_flight_that_an_operator_terminates_has_its_outcome(
    client, plaid, report, temporal_client, task_queue, journal_url, effect, kind
):
    """The worker doesn't notice, and the process that waits reads the outcome from the journal."""
    plaid.fail(Fault(path=CREATE, latency=1.0, **effect))
    async with (
        running_worker(temporal_client, task_queue, client, journal_url),
        open_queue(temporal_client, task_queue, journal_url) as (queue, journal),
    ):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        await wait_for_requests(plaid, 1)
        await activity_handle(queue, await pair_of(journal)).terminate()
        result = await running
    assert result.counts == {kind: 1}
    assert [(each.attempts, each.journalled) for each in [*result.created, *result.unknown]] == [(1, True)]
    assert len(plaid.requests) == 1


async def test_an_outcome_that_cannot_be_read_is_unknown(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres
):
    """If the journal fails when it decides about a call, the batch stops; the next one has the token."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with running_worker(temporal_client, task_queue, client, journal_url):
        async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
            await wait_for_requests(plaid, 1)
            handle = activity_handle(queue, await pair_of(journal))
            await postgres.execute("ALTER TABLE relay_entries RENAME TO relay_elsewhere")
            await handle.terminate()
            with pytest.raises(BatchStoppedError) as raised:
                await running
            await postgres.execute("ALTER TABLE relay_elsewhere RENAME TO relay_entries")
        async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
            again = await create_on_queue(queue, client, report, 1)
    assert isinstance(raised.value.__cause__, JournalError)
    (unknown,) = raised.value.result.unknown
    assert "can't be read" in str(unknown.error)
    assert not unknown.journalled
    assert again.counts == {"created": 1}
    assert len(plaid.requests) == 1


async def test_a_token_that_the_journal_does_not_have_is_found_in_the_result(
    client, plaid, report, temporal_server, temporal_client, task_queue, journal_url, postgres
):
    """A worker whose journal fails returns the token, and the next run of the submitter finds it there."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 2))
        async with running_worker(temporal_client, task_queue, client, journal_url, lease=1.0):
            await wait_for_requests(plaid, 2)
            await postgres.execute("ALTER TABLE relay_entries RENAME TO relay_elsewhere")
            first = await running
        await postgres.execute("ALTER TABLE relay_elsewhere RENAME TO relay_entries")
    other = await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY))
    async with open_queue(other, task_queue, journal_url) as (queue, _):
        with pytest.raises(BatchStoppedError) as raised:
            await create_on_queue(queue, client, report, 2)
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
        second = await create_on_queue(queue, client, report, 2)
    tokens = {each["relay_token"] for each in plaid.ledger}
    assert (
        {each.relay_token for each in first.created}
        == {each.relay_token for each in second.created}
        == tokens
    )
    assert {each.journalled for each in [*first.created, *second.created]} == {False}
    assert isinstance(raised.value.__cause__, ConfigurationError)
    assert len(plaid.requests) == 2


async def test_an_intent_that_is_recorded_too_late_is_undone(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres
):
    """Once its activity has timed out, a worker sends nothing; a later activity makes the call."""
    async with open_queue(temporal_client, task_queue, journal_url, start_to_close=1.0) as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        async with running_worker(temporal_client, task_queue, client, journal_url):
            async with postgres.transaction("LOCK TABLE relay_entries IN EXCLUSIVE MODE"):
                await postgres.wait_for_waiting()
                with pytest.raises(ActivityFailureError) as raised:
                    await handle.result()
                sent = len(plaid.requests)
            result = await create_on_queue(queue, client, report, 1)
    assert isinstance(raised.value.cause, TemporalTimeoutError)
    assert sent == 0
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1


async def test_a_token_that_the_journal_does_not_have_is_unknown(
    client, report, temporal_client, task_queue, journal_url
):
    """A worker that claims to have recorded a token isn't believed."""

    @activity.defn(name="plaid_relay.create")
    async def claim(_task: dict) -> dict:
        return TaskResult(succeeded=True, attempts=1, request_id="r", journalled=True).to_payload()

    async with (
        open_queue(temporal_client, task_queue, journal_url) as (queue, _),
        ActivityWorker(temporal_client, task_queue=task_queue, activities=[claim]),
    ):
        result = await create_on_queue(queue, client, report, 1)
    assert "the journal doesn't have it" in str(result.unknown[0].error)


async def test_a_call_that_is_declined_is_repeated(
    plaid, client, report, temporal_client, task_queue, journal_url
):
    """A pause that is longer than a worker may wait ends an activity, and a later one makes the call."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"retry-after": "2"}, times=1))
    async with (
        running_worker(temporal_client, task_queue, client, journal_url),
        open_queue(temporal_client, task_queue, journal_url, start_to_close=3.0) as (queue, journal),
    ):
        result = await create_on_queue(queue, client, report, 1)
        first = await activity_handle(queue, await pair_of(journal)).result()
    assert first["error"][0] == "RateLimitError"
    assert result.counts == {"created": 1}
    assert len(plaid.ledger) == 1


async def test_a_call_that_an_operator_pauses_is_made_later(
    client, plaid, report, temporal_client, task_queue, journal_url
):
    """It stays on the queue until it is unpaused."""
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        await handle.pause()
        again = await queue.submit(client, creation_requests(report, 1))
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        async with running_worker(temporal_client, task_queue, client, journal_url):
            await make_other_calls(temporal_client, task_queue, journal_url, client, report)
            paused = len(plaid.requests) - OTHER_CALLS
            await handle.unpause()
            result = await running
    assert (again.pending, paused) == (1, 0)
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1 + OTHER_CALLS


# ------------------------------------------------------------------------------- a server that rejects


async def test_a_namespace_that_does_not_exist_is_an_error_of_each_use(
    client, plaid, report, temporal_server, task_queue, journal_url
):
    """It isn't mistaken for a run without calls."""
    temporal = await Client.connect(
        temporal_server.address, namespace="nowhere", data_converter=data_converter(KEY)
    )
    async with open_queue(temporal, task_queue, journal_url) as (queue, _):
        result = await create_on_queue(queue, client, report, 1)
        with pytest.raises(ConfigurationError, match="namespace not found"):
            await queue.submit(client, creation_requests(report, 1))
        with pytest.raises(BatchStoppedError) as raised:
            await queue.follow(client)
        with pytest.raises(ConfigurationError, match="namespace not found"):
            await queue.cancel()
    assert "namespace not found" in str(result.failed[0].error)
    assert not result.failed[0].journalled
    assert isinstance(raised.value.__cause__, ConfigurationError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "the name of a task queue must be"),
        ({"name": None}, "the name of a task queue must be"),
        ({"start_to_close": 0}, "start_to_close must be a finite number of seconds"),
        ({"start_to_close": 0.001}, "start_to_close must be from 1 to 86,400 seconds, not 0.001"),
        ({"start_to_close": 1e300}, "start_to_close must be from 1 to 86,400 seconds"),
    ],
)
async def test_a_task_queue_with_an_invalid_argument_is_rejected(
    temporal_client, task_queue, journal_url, arguments, message
):
    """It is rejected before anything is sent."""
    async with Journal(journal_url, key=KEY) as journal:
        valid = {"name": task_queue, "journal": journal}
        with pytest.raises(ConfigurationError, match=message):
            TaskQueue(temporal_client, **valid | arguments)


async def test_a_journal_in_a_file_is_rejected(temporal_client, task_queue, tmp_path):
    """Workers on other machines couldn't read it."""
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        with pytest.raises(ConfigurationError, match="requires a journal in PostgreSQL"):
            TaskQueue(temporal_client, task_queue, journal=journal)


async def test_an_invalid_submission_is_rejected(client, temporal_client, task_queue, journal_url):
    """The error of an argument or of the input is raised as it is."""
    async with open_queue(temporal_client, task_queue, journal_url) as (queue, _):
        with pytest.raises(ConfigurationError, match="concurrency must be a whole number of 1 or more"):
            await queue.submit(client, [], concurrency=0)
        with pytest.raises(RequestValidationError, match="must be a RelayCreateRequest"):
            await queue.submit(client, ["partner"])


# -------------------------------------------------------------------------------- requests to the server


@define
class Responses:
    """What a server responds to a request, one after another."""

    responses: list

    async def __call__(self):
        response = self.responses.pop(0)
        if isinstance(response, BaseException):
            raise response
        return response


def rpc_error(status):
    return RPCError("quotes the request", status, b"")


async def test_a_request_is_repeated_until_the_server_responds():
    """A server that is unavailable, or ends the request because it is stopped, is waited for."""
    request = Responses([rpc_error(RPCStatusCode.UNAVAILABLE), asyncio.CancelledError(), "response"])
    assert await retry_transient(request) == "response"


async def test_a_missing_object_is_not_an_error():
    """The response is `None` then."""
    assert await retry_transient(Responses([rpc_error(RPCStatusCode.NOT_FOUND)])) is None


async def test_a_request_without_permission_is_rejected():
    """The error says what to check, without the server's text, which may quote the request."""
    request = Responses([rpc_error(RPCStatusCode.PERMISSION_DENIED)])
    with pytest.raises(ConfigurationError, match="permission denied") as raised:
        await retry_transient(request)
    assert "API key" in raised.value.advice
    assert "quotes" not in str(raised.value)
