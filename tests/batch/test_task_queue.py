"""A batch whose calls are made by a queue of tasks, with a queue in memory."""

from __future__ import annotations

import asyncio

import pytest
from batch_support import create_requests
from support import QUICK, RecordingJournal

from plaid_relay_async import (
    ConfigurationError,
    InvalidRequestError,
    RelayCreateResponse,
    RelayRemoveResponse,
)
from plaid_relay_async.batch import CREATE, REMOVE, Phase


class QueueInMemory(RecordingJournal):
    """A queue whose worker responds once the gate is open.

    Attributes:
        gate: set to let all calls end.
        sent: the operation and the request of each call.
        in_flight: the number of calls that wait for the gate.
    """

    run = "x"
    drain_seconds = 0.05

    def __init__(self, *, is_open=True):
        self.gate = asyncio.Event()
        self.sent = []
        self.in_flight = 0
        if is_open:
            self.gate.set()

    async def record_intent(self, request):
        raise AssertionError("only a worker records an intent")

    async def record_outcome(self, outcome):
        """Do nothing: the worker has recorded it."""

    async def send(self, operation, request, *, gate):
        self.sent.append((operation, request))
        gate.phase, gate.attempts = Phase.IN_FLIGHT, 7
        self.in_flight += 1
        await self.gate.wait()
        if operation is REMOVE:
            return RelayRemoveResponse(removed=True, request_id="r")
        if request.secondary_client_id == "partner-1":
            raise InvalidRequestError("no")
        return RelayCreateResponse(f"token-of-{request.secondary_client_id}", "r")


async def test_a_queue_makes_the_calls_of_a_batch(plaid, client):
    """Its responses and errors become outcomes, with its number of attempts, and the client sends nothing."""
    queue = QueueInMemory()
    created = await client.relay.create_many(create_requests(plaid, 3), task_queue=queue)
    removed = await client.relay.remove_many(["credit-relay-sandbox-1"], task_queue=queue)
    assert [operation for operation, _ in queue.sent] == [CREATE, CREATE, CREATE, REMOVE]
    assert created.counts == {"created": 2, "failed": 1}
    assert {each.relay_token for each in created.created} == {"token-of-partner-0", "token-of-partner-2"}
    assert {each.attempts for each in [*created.created, *created.failed, *removed.succeeded]} == {7}
    assert removed.counts == {"removed": 1}
    assert not plaid.requests


@pytest.mark.parametrize(("options", "expected"), [({}, 500), ({"concurrency": 3}, 3)])
async def test_more_calls_are_queued_than_a_client_makes_concurrently(plaid, client, options, expected):
    """By default, enough calls are queued for several workers."""
    queue = QueueInMemory(is_open=False)
    batch = client.relay.create_many(create_requests(plaid, 501), task_queue=queue, **options)
    running = asyncio.ensure_future(batch)
    while queue.in_flight < expected:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert queue.in_flight == expected
    queue.gate.set()
    assert (await running).counts.total() == 501


async def test_a_batch_drains_for_as_long_as_the_queue_says(plaid, client):
    """After that, the outcome of a call that a worker has begun is unknown."""
    queue = QueueInMemory(is_open=False)
    batch = client.relay.create_many(create_requests(plaid, 1), task_queue=queue)
    running = asyncio.ensure_future(batch)
    while not queue.in_flight:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert batch.result.counts == {"unknown": 1}


@pytest.mark.parametrize("argument", [{"journal": QueueInMemory}, {"timeout": 1.0}, {"retry": QUICK}])
async def test_what_the_queue_has_itself_is_rejected(plaid, client, argument):
    """A journal, a timeout or a retry policy would have no effect, so they are rejected before anything is sent."""
    queue = QueueInMemory()
    with pytest.raises(ConfigurationError, match="omit journal=, timeout= and retry="):
        client.relay.create_many([], task_queue=queue, **argument)
    assert not queue.sent
