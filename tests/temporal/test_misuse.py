"""What users and operators may do wrong: a run ends with an error that names the cause, and creates nothing twice."""

from __future__ import annotations

import pytest
from journal_support import creation_requests
from support import CREATE
from temporal_support import (
    INVALID,
    activity_handle,
    create_on_queue,
    delete_activity,
    open_queue,
    pair_of,
    start_create,
)
from temporalio import activity
from temporalio.client import ActivityFailureError
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async import ConfigurationError, RelayCreateRequest, RequestValidationError
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [2_000_000, 5_000_000], ids=["2 MB", "5 MB"])
async def test_a_request_that_is_too_large_for_temporal_fails(
    client, plaid, report, length, open_run, run_worker
):
    """The server says of the larger one that its resources are exhausted, which isn't repeated for ever."""
    requests = [RelayCreateRequest([report], "p", extra={"text": "x" * length})]
    async with run_worker(), open_run() as (queue, _):
        result = await client.relay.create_many(requests, task_queue=queue)
        with pytest.raises(RequestValidationError, match="too large for a task queue"):
            await queue.submit(client, requests)
    assert result.counts == {"failed": 1}
    assert isinstance(result.failed[0].error, RequestValidationError)
    assert not plaid.requests


@pytest.mark.timeout(60)
async def test_the_largest_request_is_accepted(client, report, open_run):
    """The limit is below that of the server, also after encryption."""
    requests = [RelayCreateRequest([report], "p", extra={"text": "x" * 1_490_000})]
    async with open_run() as (queue, _):
        assert (await queue.submit(client, requests)).started == 1


@activity.defn(name="other")
async def other_activity():
    """Do nothing."""


@pytest.mark.timeout(60)
async def test_a_worker_of_another_program_on_the_task_queue_is_an_error(
    client, report, temporal_client, task_queue, open_run
):
    """It fails each call without making it, so the batch stops, and doesn't add the call again for ever."""
    async with (
        ActivityWorker(temporal_client, task_queue=task_queue, activities=[other_activity]),
        open_run() as (queue, _),
    ):
        result = await create_on_queue(queue, client, report, 5, concurrency=1)
    assert isinstance(result.stopped_by, ConfigurationError)
    assert "plaid_relay.create" in str(result.stopped_by)


@pytest.mark.timeout(60)
async def test_a_run_that_is_on_another_task_queue_is_an_error(
    client, plaid, report, temporal_client, task_queue, journal_url, open_run, run_worker
):
    """Its calls would be waited for without end if no worker polls the other task queue."""
    other = f"{task_queue}-mistyped"
    async with run_worker():
        async with open_queue(temporal_client, other, journal_url) as (queue, _):
            await queue.submit(client, creation_requests(report, 3))
        async with open_run() as (queue, _):
            result = await create_on_queue(queue, client, report, 3)
            assert isinstance(result.stopped_by, ConfigurationError)
            assert other in str(result.stopped_by)
            with pytest.raises(ConfigurationError, match=other):
                await queue.submit(client, creation_requests(report, 3))
            assert await queue.cancel() == 3
            moved = await create_on_queue(queue, client, report, 3)
    assert moved.counts == {"created": 3}
    assert len(plaid.requests) == 3


@pytest.mark.timeout(60)
async def test_a_setting_of_a_later_release_is_refused(plaid, temporal_client, task_queue, run_worker):
    """A worker that doesn't know it can't keep it."""
    async with run_worker():
        settings = {"run": "x", "on_existing": "reuse", "retry_unknown": False, "retry_failed": False}
        task = {
            "version": 1,
            "request": '{"report_tokens": ["t"], "secondary_client_id": "p"}',
            "digest": "n",
            "settings": settings | {"retry_tomorrow": True},
        }
        handle = await start_create(temporal_client, task_queue, task)
        with pytest.raises(ActivityFailureError) as raised:
            await handle.result()
    assert raised.value.cause.type == "ConfigurationError"
    assert "another release" in raised.value.cause.message
    assert not plaid.requests


@pytest.mark.timeout(60)
@pytest.mark.parametrize("long", ["run", "task queue"])
async def test_a_name_that_is_too_long_is_an_error_that_says_so(
    client, report, temporal_client, task_queue, journal_url, long
):
    """Temporal has limits for the values of search attributes and for names."""
    run, name = ("r" * 10_000, task_queue) if long == "run" else ("x", "q" * 10_000)
    async with open_queue(temporal_client, name, journal_url, run=run) as (queue, _):
        result = await create_on_queue(queue, client, report, 1)
    assert result.counts == {"failed": 1}
    assert "too long" in str(result.failed[0].error)


@pytest.mark.timeout(60)
async def test_a_task_that_is_handed_out_twice_repeats_an_unknown_creation_once(
    client, plaid, report, temporal_client, task_queue, open_run, run_worker
):
    """`retry_unknown` permits to replace the attempt that was in doubt, and not the one that replaced it."""
    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    async with run_worker():
        async with open_run() as (queue, journal):
            pair = (await create_on_queue(queue, client, report, 1)) and await pair_of(journal)
        async with open_run(retry_unknown=True) as (queue, _):
            repeated = await create_on_queue(queue, client, report, 1)
            sent = len(plaid.requests)
            for repetition in range(2):
                handle = activity_handle(queue, pair, repetition)
                (task,) = await (await handle.describe(include_input=True)).input()
                again = await start_create(temporal_client, task_queue, task)
                assert (await again.result())["error"]["class"] == "OutcomeUnknownError"
    assert (repeated.counts, sent) == ({"unknown": 1}, 2)
    assert len(plaid.requests) == 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("setting", ["retry_unknown", "retry_failed"])
async def test_a_repetition_after_many_new_pairs(client, plaid, report, setting, open_run, run_worker):
    """After many new pairs, a pair that isn't new is repeated all the same if that is permitted."""
    effect = {"close": True} if setting == "retry_unknown" else {"status": 400, "body": INVALID}
    plaid.fail(Fault(path=CREATE, times=1, **effect))
    requests = [*creation_requests(report, 121)][::-1]
    async with run_worker():
        async with open_run() as (queue, _):
            first = await client.relay.create_many(requests[-1:], task_queue=queue)
        async with open_run(**{setting: True}) as (queue, _):
            result = await client.relay.create_many(requests, task_queue=queue, concurrency=1)
    assert first.counts.keys() == {setting.removeprefix("retry_")}
    assert result.counts == {"created": 121}


@pytest.mark.timeout(60)
async def test_a_repetition_is_found_after_the_first_activity_was_deleted(
    client, plaid, report, temporal_client, open_run
):
    """Temporal deletes ended activities; a pending one with a higher number is followed and cancelled."""
    async with open_run() as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        first = activity_handle(queue, await pair_of(journal))
        await first.cancel()
        await queue.submit(client, creation_requests(report, 1))
        await delete_activity(temporal_client, first)
        requests = [request async for request in queue._read_requests()]
        assert [request.secondary_client_id for request in requests] == ["p0"]
        assert await queue.cancel() == 1
    assert not plaid.requests
