"""Helpers for the tests on Temporal: workers in the test's process, and runs on a task queue."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import timedelta

import pytest
from journal_support import KEY, creation_requests
from processes import wait_until_async
from temporalio.api.workflowservice.v1 import DeleteActivityExecutionRequest
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async import RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.temporal import TaskQueue, Worker

INVALID = {"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}
LONG = 60.0  # seconds; a limit that no call of a test reaches
OTHER_CALLS = 24  # in 996 of 1,000 runs, each of the four partitions of a task queue gets one


@contextlib.asynccontextmanager
async def running_worker(temporal_client, task_queue, client, url, *, key=KEY, **options):
    """Run a worker in this process, and drain it after the block."""
    worker = Worker(temporal_client, task_queue, client, url, key=key, **options)
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def open_queue(temporal_client, task_queue, url, run="x", *, start_to_close=LONG, **settings):
    """Open a journal, and yield it with a task queue for its run."""
    async with Journal(url, run=run, key=KEY, **settings) as journal:
        yield TaskQueue(temporal_client, task_queue, journal=journal, start_to_close=start_to_close), journal


async def create_on_queue(queue, client, report, count=10, **options):
    """Create for some partners on a task queue, and return the result."""
    return await client.relay.create_many(creation_requests(report, count), task_queue=queue, **options)


async def start_create(temporal_client, task_queue, task):
    """Start an activity with any task, also one that no submitter has written, or that is of another activity."""
    return await temporal_client.start_activity(
        "plaid_relay.create",
        task,
        id=uuid.uuid4().hex,
        task_queue=task_queue,
        start_to_close_timeout=timedelta(seconds=LONG),
        result_type=dict,
    )


async def make_other_calls(open_run, client, report):
    """Wait until workers have made calls of another run: they could have begun all that was queued before."""
    requests = RelayCreateRequest.fan_out([report], [f"other-{number}" for number in range(OTHER_CALLS)])
    async with open_run("other") as (queue, _):
        result = await client.relay.create_many(requests, task_queue=queue)
    assert result.counts == {"created": OTHER_CALLS}


def activity_handle(queue, digest, repetition=0, activity="plaid_relay.create"):
    """Return the handle of the activity of a pair, or of the keyed hash of a token to remove."""
    return queue._handle(activity, digest, repetition)


def queued_calls():
    """Return the tasks of the calls on a queue that a batch in this process waits for."""
    return [task for task in asyncio.all_tasks() if "QueuedCall.run" in repr(task)]


async def delete_activity(temporal_client, handle):
    """Delete an activity that has ended, as the server does after the retention of the namespace."""
    await temporal_client.workflow_service.delete_activity_execution(
        DeleteActivityExecutionRequest(namespace="default", activity_id=handle.id)
    )
    with pytest.raises(RPCError) as caught:
        while True:  # it is deleted a moment later
            await handle.describe()
            await asyncio.sleep(0.05)
    assert caught.value.status is RPCStatusCode.NOT_FOUND


async def wait_for_requests(plaid, count):
    """Wait until a simulator has received a number of requests."""
    await wait_until_async(lambda: len(plaid.requests) >= count)


async def pair_of(journal, run="x"):
    """Return the ID of the only pair of a run."""
    (pair,) = [pair async for pair in journal.pair_ids(run)]
    return pair
