"""Calls whose outcome a worker couldn't record, because the journal had failed, and calls that it didn't make."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from journal_support import OTHER_KEY, creation_requests, read_records
from processes import wait_until_async
from support import CREATE
from temporal_support import (
    activity_handle,
    create_on_queue,
    delete_activity,
    open_queue,
    pair_of,
    running_worker,
    wait_for_requests,
)
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async import BatchStoppedError, ConfigurationError, JournalError
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal import data_converter

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own

# A role of PostgreSQL whose permission to write can be revoked, for the journals of workers.
CREATE_ROLE = (
    "DROP ROLE IF EXISTS worker",
    "CREATE ROLE worker LOGIN",
    "GRANT ALL ON SCHEMA public TO worker",
    "GRANT ALL ON ALL TABLES IN SCHEMA public TO worker",
    "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO worker",
)
BREAK = "ALTER TABLE relay_entries RENAME TO relay_elsewhere"
REPAIR = "ALTER TABLE relay_elsewhere RENAME TO relay_entries"


@contextlib.asynccontextmanager
async def worker_with_a_role(postgres, temporal_client, task_queue, client, journal_url):
    """Run a worker whose database user is `worker`; the journal exists."""
    await postgres.execute(*CREATE_ROLE)
    url = journal_url.replace("postgres@", "worker@")
    try:
        async with running_worker(temporal_client, task_queue, client, url, lease=1.0):
            yield
    finally:
        await postgres.execute("DROP OWNED BY worker", "DROP ROLE worker")


@pytest.mark.parametrize(
    ("effect", "kind"),
    [({}, "created"), ({"close": True}, "unknown"), ({"status": 400, "body": {}}, "failed")],
    ids=["created", "unknown", "failed"],
)
async def test_the_submitter_records_what_a_worker_cannot_record(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres, effect, kind, open_run
):
    """The outcome is journalled, as if the worker had recorded it."""
    plaid.fail(Fault(path=CREATE, latency=1.0, **effect))
    async with open_run() as (queue, journal):
        await queue.submit(client, [])
        async with worker_with_a_role(postgres, temporal_client, task_queue, client, journal_url):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
            await wait_for_requests(plaid, 1)
            await postgres.execute("REVOKE UPDATE ON relay_entries FROM worker")
            result = await running
            records = await read_records(journal, "x")
        again = await create_on_queue(queue, client, report, 1)
    (outcome,) = [*result.created, *result.failed, *result.unknown]
    assert result.counts == {kind: 1}
    assert (outcome.attempts, outcome.journalled) == (1, True)
    assert [(each.outcome, each.attempts) for each in records] == [(kind, 1)]
    assert [each.relay_token for each in records] == [getattr(outcome, "relay_token", None)]
    assert again.counts == {kind: 1}
    assert len(plaid.requests) == 1


async def test_a_token_that_no_process_can_record_is_delivered(
    client, plaid, report, postgres, open_run, run_worker
):
    """The batch stops, as with every journal that fails; the journal records the token if it works again."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with open_run() as (queue, journal):
        async with run_worker(lease=1.0):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 2))
            await wait_for_requests(plaid, 2)
            await postgres.execute(BREAK)
            with pytest.raises(BatchStoppedError) as raised:
                await running
        await postgres.execute(REPAIR)
        again = await create_on_queue(queue, client, report, 2)
        records = await read_records(journal, "x")
    tokens = {each["relay_token"] for each in plaid.ledger}
    assert isinstance(raised.value.__cause__, JournalError)
    delivered = raised.value.result.created
    assert {each.relay_token for each in delivered} == tokens
    assert {each.journalled for each in delivered} == {False}
    assert {each.relay_token for each in again.created} == {each.relay_token for each in records} == tokens
    assert len(plaid.requests) == 2


async def test_the_next_run_records_what_only_the_results_of_activities_have(
    client,
    plaid,
    report,
    temporal_server,
    temporal_client,
    task_queue,
    journal_url,
    postgres,
    open_run,
    run_worker,
):
    """It needs the same key. After that, the journal alone prevents a second token."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with open_run() as (queue, _):
        async with run_worker(lease=1.0):
            await queue.submit(client, creation_requests(report, 1))
            await wait_for_requests(plaid, 1)
            await postgres.execute(BREAK)
        # The worker has ended without having recorded the token.
    await postgres.execute(REPAIR)
    other = await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY))
    async with open_queue(other, task_queue, journal_url) as (queue, _):
        with pytest.raises(BatchStoppedError) as raised:
            await create_on_queue(queue, client, report, 1)
    async with open_run() as (queue, journal):
        before = await read_records(journal, "x")
        result = await create_on_queue(queue, client, report, 1)
        (record,) = await read_records(journal, "x")
        handle = activity_handle(queue, await pair_of(journal))
        await delete_activity(temporal_client, handle)
    async with open_run(retry_unknown=True) as (queue, _):
        again = await create_on_queue(queue, client, report, 1)
    (token,) = [each["relay_token"] for each in plaid.ledger]
    assert isinstance(raised.value.__cause__, ConfigurationError)
    assert [each.outcome for each in before] == ["unknown"]
    assert [(each.relay_token, each.journalled) for each in result.created] == [(token, True)]
    assert (record.outcome, record.relay_token) == ("created", token)
    assert [each.relay_token for each in again.created] == [token]
    assert len(plaid.requests) == 1


async def test_a_token_of_a_forgotten_pair_is_delivered_unrecorded(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres, open_run
):
    """Its row isn't in doubt any more, so the outcome says that the journal doesn't have the token."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with open_run() as (queue, _):
        await queue.submit(client, [])
        async with worker_with_a_role(postgres, temporal_client, task_queue, client, journal_url):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
            await wait_for_requests(plaid, 1)
            await postgres.execute("REVOKE UPDATE ON relay_entries FROM worker", "DELETE FROM relay_entries")
            (created,) = (await running).created
    assert (created.relay_token, created.journalled) == (plaid.ledger[0]["relay_token"], False)


# ------------------------------------------------------------------------------ activities without a result


def failing_worker(temporal_client, task_queue, error):
    """Return a worker of temporalio whose activities raise an error."""

    @activity.defn(name="plaid_relay.create")
    async def create(_task: dict) -> dict:
        raise error

    @activity.defn(name="plaid_relay.remove")
    async def remove(_task: dict) -> dict:
        raise error

    return ActivityWorker(temporal_client, task_queue=task_queue, activities=[create, remove])


async def test_an_unexpected_error_of_a_worker_stops_the_run(
    client, plaid, report, temporal_client, task_queue, open_run
):
    """The calls aren't queued again without end. The journal shows that no creation was attempted."""
    error = ApplicationError("unexpected error: TypeError", type="TypeError")
    async with (
        open_run() as (queue, journal),
        failing_worker(temporal_client, task_queue, error),
    ):
        created = await create_on_queue(queue, client, report, 5, concurrency=1)
        removed = await client.relay.remove_many(["credit-relay-sandbox-1"], task_queue=queue)
        records = await read_records(journal, "x")
    assert isinstance(created.stopped_by, ConfigurationError)
    assert created.counts == {"failed": 3}
    message = "a worker can't make the call: unexpected error: TypeError"
    assert {each.error.args[0] for each in [*created.failed, *removed.unknown]} == {message}
    assert {each.outcome for each in records} == {"not_attempted"}
    assert removed.counts == {"unknown": 1}
    assert not plaid.requests


async def test_a_call_that_a_worker_did_not_make_is_queued_again(
    client, plaid, report, temporal_client, task_queue, caplog, open_run, run_worker
):
    """One warning has the reason; another worker makes the calls."""
    error = ApplicationError("the journal can't be written", type="JournalError")
    # A worker that ends may lose an activity, which is queued again once it has timed out.
    async with open_run(start_to_close=3.0) as (queue, _):
        async with failing_worker(temporal_client, task_queue, error):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 3))
            await wait_until_async(lambda: caplog.records)
        async with run_worker():
            result = await running
    warning, *_ = [each for each in caplog.records if each.name == "plaid_relay_async.temporal"]
    assert warning.getMessage() == (
        "a worker didn't make a call, which is queued again: the journal can't be written"
    )
    assert result.counts == {"created": 3}
    assert len(plaid.requests) == 3


async def test_a_revoked_token_is_not_delivered_for_a_later_attempt_in_doubt(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres, open_run
):
    """The result of an earlier activity has the token, which the journal has recorded since, and removed."""
    plaid.fail(Fault(path=CREATE, latency=1.0, times=1))
    async with open_run() as (queue, _):
        await queue.submit(client, [])
        async with worker_with_a_role(postgres, temporal_client, task_queue, client, journal_url):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
            await wait_for_requests(plaid, 1)
            await postgres.execute("REVOKE UPDATE ON relay_entries FROM worker")
            (created,) = (await running).created
        async with running_worker(temporal_client, task_queue, client, journal_url):
            removed = await client.relay.remove_many([created.relay_token], task_queue=queue)
            plaid.fail(Fault(path=CREATE, close=True, times=1))
            unknown = await create_on_queue(queue, client, report, 1)
            again = await create_on_queue(queue, client, report, 1)
    async with (
        open_run(retry_unknown=True) as (queue, _),
        running_worker(temporal_client, task_queue, client, journal_url),
    ):
        repeated = await create_on_queue(queue, client, report, 1)
    assert created.journalled
    assert removed.counts == {"removed": 1}
    assert unknown.counts == again.counts == {"unknown": 1}
    assert repeated.counts == {"created": 1}
    assert [each.relay_token for each in repeated.created] != [created.relay_token]
