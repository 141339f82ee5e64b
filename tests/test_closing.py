"""A client that is closed waits for drains, and ends every other wait of its calls."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from cancellation_support import act_once_sent, listening
from support import CREATE, GET, OWNER, REMOVE, RecordingJournal

from plaid_relay_async import (
    ClientClosedError,
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    PlaidServerError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.simulator import Fault


async def test_close_waits_for_drains(plaid):
    """A client that is closed while calls and batches drain loses none of their tokens."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    async with listening(plaid) as (client, late):
        batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "in-a-batch")])
        tasks = [
            asyncio.ensure_future(client.relay.create([plaid.add_report()], "single")),
            asyncio.ensure_future(batch),
        ]
        while plaid.counts[CREATE] < 2:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.close()
        with pytest.raises(ClientClosedError):
            await client.relay.create(["report"], "partner")
        await asyncio.wait(tasks)
    assert (len(late), batch.result.counts) == (1, {"created": 1})
    assert {late[0].relay_token, batch.result.created[0].relay_token} == {
        entry["relay_token"] for entry in plaid.ledger
    }


async def test_close_waits_for_drains_for_the_drain_time_at_most(plaid):
    """A drain that waits for `close()` itself, because its input closes the client, ends."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    async with listening(plaid, timeouts=Timeouts(drain=0.2)) as (client, _):

        async def rows():
            yield RelayCreateRequest([plaid.add_report()], "partner")
            try:
                await asyncio.Event().wait()
            finally:
                await client.close()

        async with asyncio.timeout(30):
            async with client.relay.create_many(rows()) as outcomes:
                async for _ in outcomes:
                    break
        with pytest.raises(ClientClosedError):
            await client.relay.create(["report"], "partner")


async def hang(*_: object) -> Any:
    await asyncio.Event().wait()


class Hanging:
    acquire = staticmethod(hang)


@pytest.mark.parametrize(
    ("settings", "fault", "waits"),
    [
        ({"rate_limiter": Hanging()}, None, lambda numbers: numbers.queued == 2),
        ({"credentials": hang}, None, lambda numbers: True),
        (
            {"retry": RetryPolicy(backoff=100.0, max_backoff=100.0, max_pause=1e6)},
            Fault(path=GET, status=500),
            lambda numbers: sum(numbers.retries.values()) == 2,
        ),
        ({"connections": 1}, Fault(path=GET, stall=60), lambda numbers: numbers.queued == 1),
        ({}, Fault(path=GET, status=429, headers={"Retry-After": "60"}), lambda numbers: numbers.queued == 2),
    ],
    ids=["limiter", "credentials", "backoff", "connection", "pause"],
)
async def test_close_ends_waits(plaid, settings, fault, waits):
    """A call that waits for something other than its response fails immediately when the client is closed."""
    if fault is not None:
        plaid.fail(fault)
    async with RelayClient(**{"credentials": OWNER, "base_url": plaid.url} | settings) as client:
        tasks = [asyncio.ensure_future(client.relay.get("token")) for _ in range(2)]
        await asyncio.sleep(0.01)
        while not waits(client.statistics()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await client.close()
            await asyncio.wait(tasks)
    errors = {type(task.exception()) for task in tasks}
    assert ClientClosedError in errors
    assert errors <= {ClientClosedError, ConnectionLostError}
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize(
    ("operation", "fault", "error"),
    [
        ("create", Fault(path=CREATE, status=500, when="after"), OutcomeUnknownError),
        ("create", Fault(path=CREATE, status=500), OutcomeUnknownError),
        ("remove", Fault(path=REMOVE, status=500, when="after"), PlaidServerError),
        ("get", Fault(path=GET, status=500), ClientClosedError),
    ],
)
async def test_close_during_a_backoff_reports_the_attempt_in_doubt(plaid, operation, fault, error):
    """A call that may have been executed doesn't become an error that says that nothing was sent."""
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        token = (await client.relay.create([report], "earlier")).relay_token
    plaid.fail(fault)
    policy = RetryPolicy(backoff=100.0, max_backoff=100.0, max_pause=1e6, replay="always")
    arguments = ([report], "partner") if operation == "create" else (token,)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        call = asyncio.ensure_future(getattr(client.relay, operation)(*arguments))
        while not client.statistics().retries:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(error) as caught:
            await call
    assert (caught.value.sent, caught.value.attempts) == (True, 1)


async def test_close_ends_a_wait_for_a_report_and_for_the_client_id(plaid, client, tmp_path):
    """Neither the wait between two polls nor a journal that needs the client ID outlasts the client."""
    created = await client.relay.create([plaid.add_report()], OWNER.client_id)
    plaid.fail(
        Fault(path=GET, status=400, body={"error_code": "PRODUCT_NOT_READY"}, headers={"Retry-After": "60"})
    )

    class Asking(RecordingJournal):
        async def acquire_recorder(self, request, context):
            await context.get_client_id()

    async with (
        RelayClient(OWNER, base_url=plaid.url) as polling,
        RelayClient(hang, base_url=plaid.url) as other,
    ):
        tasks = [
            asyncio.ensure_future(polling.relay.wait_until_ready(created.relay_token)),
            asyncio.ensure_future(other.relay.create(["report"], "partner", journal=Asking())),
        ]
        await act_once_sent(plaid, GET, lambda: None)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            await polling.close()
            await other.close()
            await asyncio.wait(tasks)
    errors = [task.exception() for task in tasks]
    assert [type(error) for error in errors] == [ClientClosedError, ClientClosedError]
    assert [(error.sent, error.attempts) for error in errors] == [(True, 1), (False, 0)]


async def test_a_timeout_of_the_limiter_is_its_error(plaid):
    """A TimeoutError from the caller's code isn't mistaken for the closing of the client."""

    class Late:
        async def acquire(self, endpoint: str) -> None:
            raise TimeoutError

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Late()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised TimeoutError"):
            await client.relay.create([plaid.add_report()], "partner")


async def test_a_call_whose_client_is_closed_plans_no_further_attempt(plaid):
    """A call of a closed client fails with the error of its last attempt, without another one."""
    plaid.fail(Fault(path=GET, stall=60))
    retry = RetryPolicy(backoff=100.0, max_backoff=100.0, max_pause=1e6)
    async with RelayClient(OWNER, base_url=plaid.url, retry=retry) as client:
        task = asyncio.ensure_future(client.relay.get("token"))
        await act_once_sent(plaid, GET, lambda: None)
    async with asyncio.timeout(30):
        await asyncio.wait([task])
    assert isinstance(task.exception(), ConnectionLostError)
