"""Calls and batches that asyncio or AnyIO cancels drain: every request that was sent has an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import time
from functools import partial
from typing import Any

import aiohttp
import anyio
import pytest
from journal_support import KEY
from processes import wait_until_async
from support import OWNER, QUICK, RecordingJournal, python_process, timeout_when

from plaid_relay_async import (
    ClientClosedError,
    Completed,
    ConfigurationError,
    ConnectionLostError,
    Created,
    Failed,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    PlaidServerError,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    Removed,
    RetryPolicy,
    Timeouts,
    Unknown,
)
from plaid_relay_async.cancellation import Draining, DrainTracker, run_to_completion
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"


async def cancel_by_move_on_after(plaid, path, work) -> None:
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().create_task(act_once_sent(plaid, path, scope.cancel))
        await work()
    assert scope.cancelled_caught


async def cancel_by_fail_after(plaid, path, work) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(60) as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, path, lambda: set_deadline(scope)))
            await work()


def set_deadline(scope) -> None:
    scope.deadline = anyio.current_time()


async def cancel_by_task_group(plaid, path, work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await act_once_sent(plaid, path, group.cancel_scope.cancel)


async def cancel_task_often(plaid, path, work) -> None:
    task = asyncio.ensure_future(work())

    def cancel() -> None:
        for delay in range(20):
            asyncio.get_running_loop().call_later(delay / 200, task.cancel)

    await act_once_sent(plaid, path, cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def act_once_sent(plaid, path, act) -> None:
    while not plaid.counts[path]:
        await asyncio.sleep(0.001)
    act()


CANCELLATIONS = pytest.mark.parametrize(
    "cancelled", [cancel_by_move_on_after, cancel_by_fail_after, cancel_by_task_group, cancel_task_often]
)


# ------------------------------------------------------------------------------------------------ batches


async def await_batch(batch) -> None:
    await batch


async def stream_batch(batch) -> None:
    async with batch as outcomes:
        async for _ in outcomes:
            pytest.fail("the response arrives after the cancellation")


@CANCELLATIONS
@pytest.mark.parametrize("form", [await_batch, stream_batch])
async def test_a_cancelled_batch_drains(plaid, client, cancelled, form):
    """A response that arrives within the drain timeout makes the outcome `Created`, however the batch is cancelled."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    await cancelled(plaid, CREATE, lambda: form(batch))
    assert [created.relay_token for created in batch.result.created] == [
        e["relay_token"] for e in plaid.ledger
    ]
    assert batch.result.counts == {"created": 1}


@CANCELLATIONS
async def test_a_cancelled_batch_of_reads_drains(plaid, client, partner, cancelled):
    """Reports that are being read when the batch is cancelled are in its result."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=GET, when="after", latency=0.3))
    batch = partner.relay.get_many([created.relay_token])
    await cancelled(plaid, GET, lambda: await_batch(batch))
    assert batch.result.counts == {"fetched": 1}


@CANCELLATIONS
@pytest.mark.may_block
async def test_a_cancelled_call_with_a_journal_drains(plaid, client, tmp_path, cancelled):
    """A creation and a removal are recorded; the same creation again returns the token."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, CREATE, lambda: client.relay.create([report], "partner", journal=journal))
        plaid.clear_faults()
        again = await client.relay.create([report], "partner", journal=journal)
        assert [entry["relay_token"] for entry in plaid.ledger] == [again.relay_token]
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, REMOVE, lambda: client.relay.remove(again.relay_token, journal=journal))
        assert (await journal.status("default")).counts == {"removed": 1}


async def test_a_drain_uses_no_cpu_time(plaid):
    """Waiting for a response inside a cancelled AnyIO scope isn't a busy loop."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=5)) as client:
        batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
        started: list[float] = []

        def cancel() -> None:
            scope.cancel()
            started.append(time.process_time())

        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, cancel))
            await batch
        used = time.process_time() - started[0]
    assert used < 0.5
    assert batch.result.counts == {"unknown": 1}


async def test_timeouts_and_groups_around_a_drain_work_as_usual(plaid, client):
    """`asyncio.timeout` raises TimeoutError, a TaskGroup its error, and the task isn't left as cancelled."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    report = plaid.add_report()
    with pytest.raises(TimeoutError):
        async with timeout_when(lambda: plaid.counts[CREATE]):
            with anyio.move_on_after(60):
                async with asyncio.timeout(60):
                    await client.relay.create_many([RelayCreateRequest([report], "in-timeouts")])

    async def fail() -> None:
        await act_once_sent(plaid, CREATE, lambda: None)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await client.relay.create_many([RelayCreateRequest([report], "in-a-group")])
    assert asyncio.current_task().cancelling() == 0
    assert len(plaid.ledger) == 2


async def test_a_scope_does_not_swallow_a_cancellation_of_the_task_during_a_drain(plaid, client):
    """A scope swallows only its own cancellation; the cancellation of the task is raised outside the scope."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    passed = []

    async def run() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, scope.cancel))
            await batch
        passed.append(scope)

    task = asyncio.create_task(run())
    await act_once_sent(plaid, CREATE, lambda: None)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert passed == []
    assert batch.result.counts == {"created": 1}


@pytest.mark.parametrize("direct", [True, False])
async def test_a_scope_of_anyio_catches_the_cancellation_of_a_call_that_connects(direct):
    """A call without a connection is cancelled like any other `await`, and reports no outcome."""
    late: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scope.cancel()
        await reader.read()  # the handshake isn't answered
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, RelayClient(OWNER, base_url=url, direct=direct, on_late_outcome=late.append) as client:
        with anyio.CancelScope() as scope:
            await client.relay.create(["report"], "partner")
    assert scope.cancelled_caught
    assert late == []


# ---------------------------------------------------------------------------------------------- the helper


async def test_run_to_completion_returns_the_result_or_raises_the_error():
    """Without a cancellation, it returns what the function returns, and raises what it raises."""

    async def work(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    assert await run_to_completion(partial(work, None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await run_to_completion(partial(work, ZeroDivisionError()))


async def test_a_cancellation_takes_precedence_over_an_error():
    """The task is cancelled, and asyncio doesn't report the error as never retrieved."""
    go, reported = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def work() -> None:
        await go.wait()
        raise ZeroDivisionError

    task = asyncio.create_task(run_to_completion(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert reported == []


async def test_waiting_for_drains_has_a_timeout():
    """Waiting ends when no drain is in progress, or after the timeout."""
    drains = DrainTracker()
    await drains.wait_all(60)
    with drains.track():
        await drains.wait_all(0.01)
        with drains.track():
            pass
        waiting = asyncio.create_task(drains.wait_all(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


ALONE = """
import asyncio, sys
from plaid_relay_async.cancellation import run_to_completion

async def main():
    task = asyncio.create_task(run_to_completion(lambda: asyncio.sleep(0.1, "finished")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled(), "anyio" in sys.modules)

asyncio.run(main())
"""


async def test_anyio_is_optional():
    """Without AnyIO in the process, a wait runs to completion as well, and AnyIO isn't imported for it."""
    async with python_process(ALONE) as running, asyncio.timeout(30):
        output, _ = await running.communicate()
    assert "anyio" in sys.modules
    assert output.decode().split() == ["True", "False"]


# ------------------------------------------------------------------------------------------- single calls


@contextlib.asynccontextmanager
async def listening(plaid, **settings):
    """A client, and the late outcomes that it reports."""
    late: list[object] = []
    settings = {"base_url": plaid.url, "retry": QUICK, "on_late_outcome": late.append} | settings
    async with RelayClient(OWNER, **settings) as client:
        yield client, late


@CANCELLATIONS
@pytest.mark.parametrize("direct", [True, False])
async def test_a_cancelled_call_drains_and_its_outcome_is_reported(plaid, cancelled, direct):
    """A token that arrives after the cancellation goes to `on_late_outcome`, before the cancellation is raised."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    async with listening(plaid, direct=direct) as (client, late):
        report = plaid.add_report()
        await cancelled(plaid, CREATE, lambda: client.relay.create([report], "partner"))
        (outcome,) = late
        assert isinstance(outcome, Created)
        assert outcome.relay_token == plaid.ledger[0]["relay_token"]
        assert outcome.request == RelayCreateRequest([report], "partner")
        assert (outcome.attempts, outcome.journalled) == (1, False)
        assert outcome.elapsed >= 0.3
        assert client.statistics().outcomes == {"succeeded": 1}
        plaid.clear_faults()
        await client.relay.create([report], "another")
    assert asyncio.current_task().cancelling() == 0


async def test_the_drain_of_a_call_uses_no_cpu_time(plaid):
    """A call in a cancelled AnyIO scope waits without a busy loop, for as long as a drain lasts."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with listening(plaid, timeouts=Timeouts(drain=2)) as (client, late):
        started: list[float] = []

        def cancel() -> None:
            scope.cancel()
            started.append(time.process_time())

        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, cancel))
            await client.relay.create([plaid.add_report()], "partner")
        assert time.process_time() - started[0] < 0.1
        assert [type(outcome) for outcome in late] == [Unknown]
        assert scope.cancelled_caught


async def cancel_once_sent(plaid, path, work) -> None:
    task = asyncio.ensure_future(work)
    await act_once_sent(plaid, path, task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 400}, Failed),
        ({"status": 429, "times": 1}, Failed),
        ({"close": True}, Unknown),
        ({"status": 500}, Unknown),
        ({"truncate": 90}, Created),
        ({"truncate": 10}, Unknown),
    ],
)
async def test_each_kind_of_outcome_is_reported(plaid, fault, kind):
    """The response determines the outcome, and the call isn't repeated."""
    plaid.fail(Fault(path=CREATE, latency=0.1, when="after" if kind is not Failed else "before", **fault))
    async with listening(plaid) as (client, late):
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert [type(outcome) for outcome in late] == [kind]
    assert plaid.counts[CREATE] == 1


async def test_the_operations_whose_outcome_is_reported(plaid):
    """Every call that changes something reports its outcome; a read is cancelled immediately."""
    async with listening(plaid) as (client, late):
        report = plaid.add_report()
        created = await client.relay.create([report], OWNER.client_id)
        item = await client.sandbox.create_public_token()
        plaid.fail(Fault(when="after", latency=0.1))
        for path, kind, make in (
            ("/credit/relay/refresh", Refreshed, lambda: client.relay.refresh(created.relay_token)),
            ("/asset_report/refresh", Completed, lambda: client.asset_report.refresh(report)),
            ("/sandbox/public_token/create", Completed, client.sandbox.create_public_token),
            (
                "/item/public_token/exchange",
                Completed,
                lambda: client.item.exchange_public_token(item.public_token),
            ),
            (REMOVE, Removed, lambda: client.relay.remove(created.relay_token)),
        ):
            plaid.counts[path] = 0
            await cancel_once_sent(plaid, path, make())
            assert type(late[-1]) is kind, path
            assert late[-1].response.request_id == late[-1].request_id
        count = len(late)
        plaid.fail(Fault(path=GET, stall=60))
        await cancel_once_sent(plaid, GET, client.relay.get("token"))
        assert len(late) == count == 5


async def test_a_call_that_is_cancelled_before_it_is_sent_has_no_outcome(plaid):
    """A call is cancelled immediately while it waits for a limiter, and while it connects."""

    class Closed:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.Event().wait()

    async with listening(plaid, rate_limiter=Closed()) as (client, late):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), late) == (True, [])
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    context = ssl.create_default_context()
    address = f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent, listening(plaid, base_url=address, ssl=context) as (client, late):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        await wait_until_async(lambda: accepted)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), late) == (True, [])
        assert client.statistics().attempts == {"cancelled": 1}
        for writer in accepted:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("fault", "replay", "kind"),
    [
        (Fault(status=429, headers={"Retry-After": "30"}, times=1), "safe", Failed),
        (Fault(close=True, when="after", times=1), "always", Unknown),
    ],
)
async def test_a_call_that_is_cancelled_between_two_attempts_reports_the_first(plaid, fault, replay, kind):
    """A call between two attempts is cancelled immediately, with the outcome of the first."""
    plaid.fail(fault)
    retry = RetryPolicy(replay=replay, backoff=100.0, max_backoff=100.0, max_pause=1e6)
    async with listening(plaid, retry=retry) as (client, late):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        while not client.statistics().retries:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    (outcome,) = late
    assert (type(outcome), outcome.attempts) == (kind, 1)


async def test_the_deadline_of_a_call_ends_its_drain(plaid):
    """`timeout=` includes the drain: when it has passed, the outcome is unknown."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with listening(plaid, timeouts=Timeouts(drain=60)) as (client, late):
        created = client.relay.create([plaid.add_report()], "partner", timeout=2)
        async with asyncio.timeout(30):
            await cancel_once_sent(plaid, CREATE, created)
    assert [type(outcome) for outcome in late] == [Unknown]


async def test_a_timeout_within_a_session_is_not_a_cancellation_of_the_call(plaid):
    """A middleware's own timeout ends the attempt, not the task."""

    async def impatient(request, handler):
        async with asyncio.timeout(1):
            return await handler(request)

    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with (
        aiohttp.ClientSession(middlewares=(impatient,)) as session,
        listening(plaid, session=session, timeouts=Timeouts(drain=0.1)) as (client, late),
    ):
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([plaid.add_report()], "partner")
        assert late == []
        assert asyncio.current_task().cancelling() == 0


# --------------------------------------------------------------------------------- what becomes of late outcomes


def logged_warning(caplog) -> str:
    (record,) = [record for record in caplog.records if record.name == "plaid_relay_async"]
    assert record.levelname == "WARNING"
    return record.getMessage()


async def test_without_a_callback_a_late_outcome_is_logged(plaid, client, caplog):
    """The warning names the operation, the partner and the request ID, and contains no token."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    (entry,) = plaid.ledger
    assert f"{CREATE}, outcome=created, partner=partner, request_id={entry['request_id']}" in logged_warning(
        caplog
    )
    assert entry["relay_token"] not in caplog.text


async def test_the_log_of_a_late_outcome_is_one_line(plaid, client, caplog):
    """A request ID that a server chose can't add a line to the log, or act on a terminal."""
    body = {"relay_token": "credit-relay-late", "request_id": "r\nERROR root: \x1b[2J"}
    plaid.fail(Fault(path=CREATE, status=200, body=body, latency=0.1))
    await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert r"request_id=r\nERROR root: \x1b[2J;" in logged_warning(caplog)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_callback_that_raises_does_not_take_the_cancellation_away(plaid, caplog, error):
    """The outcome is logged in its place, with the class of the error and without its text."""

    def callback(outcome) -> None:
        raise error(outcome.relay_token)

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    async with listening(plaid, on_late_outcome=callback) as (client, _):
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert f"on_late_outcome raised {error.__name__}" in logged_warning(caplog)
    assert plaid.ledger[0]["relay_token"] not in caplog.text


@pytest.mark.parametrize("callback", [act_once_sent, "print"])
def test_the_callback_is_a_plain_function(callback):
    """An async function, or something that can't be called, is rejected when the client is created."""
    with pytest.raises(ConfigurationError, match="on_late_outcome must be a plain function"):
        RelayClient(OWNER, on_late_outcome=callback)


@pytest.mark.may_block
@pytest.mark.parametrize("breaks", [False, True])
async def test_a_late_outcome_of_a_call_with_a_journal(plaid, tmp_path, caplog, breaks):
    """A late outcome is reported as journalled or not, and logged only if the journal doesn't have it."""

    class Broken(RecordingJournal):
        async def record_intent(self, request) -> None: ...

        async def record_outcome(self, outcome) -> None:
            if breaks:
                raise JournalError("the disk is full")

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    report = plaid.add_report()
    async with listening(plaid) as (client, late):
        await cancel_once_sent(plaid, CREATE, client.relay.create([report], "partner", journal=Broken()))
    assert [(type(outcome), outcome.journalled) for outcome in late] == [(Created, not breaks)]
    plaid.counts.clear()
    async with listening(plaid, on_late_outcome=None) as (client, _):
        await cancel_once_sent(plaid, CREATE, client.relay.create([report], "another", journal=Broken()))
    assert ("outcome=created, partner=another" in caplog.text) == breaks


# ------------------------------------------------------------------------------------- closing the client


async def test_a_call_that_is_cancelled_before_its_intent_has_no_late_outcome(plaid):
    """While the journal looks the pair up, nothing can have been sent."""
    asked = asyncio.Event()

    class Asked(RecordingJournal):
        async def acquire_recorder(self, request, context):
            asked.set()
            await asyncio.Event().wait()

    async with listening(plaid) as (client, late):
        task = asyncio.ensure_future(client.relay.create(["report"], "partner", journal=Asked()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (late, plaid.counts[CREATE]) == ([], 0)


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


# -------------------------------------------------------------------------------------------- the mechanism


class Sent:
    def __init__(self, *, in_flight: bool) -> None:
        self.in_flight = in_flight


async def drained(work, *, in_flight: bool) -> str:
    draining = Draining(work, Sent(in_flight=in_flight), 10, DrainTracker())
    try:
        return await draining
    finally:
        if draining.deferred_cancellation is not None:
            raise draining.deferred_cancellation


@pytest.mark.parametrize("in_flight", [False, True])
async def test_an_attempt_that_yields_without_a_future_drains(in_flight):
    """An attempt that yields to the event loop without a future drains like one that waits."""
    ended = []

    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(True)

    task = asyncio.create_task(drained(work(), in_flight=in_flight))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == [True] * in_flight


async def test_an_attempt_that_is_cancelled_waits_for_its_own_task_to_end():
    """A task that the attempt awaits is cancelled, and its end is waited for."""
    ended = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def work() -> None:
        await asyncio.create_task(slow())

    task = asyncio.create_task(drained(work(), in_flight=False))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), ended) == (True, [True])


async def test_a_result_is_kept_if_a_cancellation_arrives_in_the_same_iteration():
    """A cancellation in the same iteration of the event loop doesn't discard a result."""
    future = asyncio.get_running_loop().create_future()

    async def work() -> str:
        results.append(await future)

    results: list[str] = []
    task = asyncio.create_task(drained(work(), in_flight=True))
    await asyncio.sleep(0)
    future.set_result("response")
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), results) == (True, ["response"])


# ------------------------------------------------------------------------------- the journal and files


@pytest.mark.may_block
@pytest.mark.parametrize("opened", [True, False])
async def test_a_journal_that_is_cancelled_closes_to_its_end(plaid, client, tmp_path, opened):
    """A journal closes even in a cancelled AnyIO scope: its worker has ended, and no lock file is left."""
    journal = Journal(tmp_path / "relay.db", key=KEY)
    with anyio.CancelScope() as scope:
        if opened:
            await journal.open()
            await client.relay.create([plaid.add_report()], "partner", journal=journal)
            assert [*tmp_path.glob("*.lock")]
            scope.cancel()
            await journal.close()
        else:
            scope.cancel()
            await journal.open()
    assert [*tmp_path.glob("*.lock")] == []
    with pytest.raises(JournalError, match="isn't open"):
        await journal.runs()
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        assert [status.counts for status in await journal.runs()] == [{"created": 1}] * opened


async def test_a_download_in_a_cancelled_scope_leaves_no_file(plaid, client, tmp_path):
    """What was written is removed before the cancellation is raised, under AnyIO too."""
    created = await client.relay.create([plaid.add_report()], OWNER.client_id)
    path = "/credit/relay/pdf/get"
    plaid.fail(Fault(path=path, stall=60, when="after"))
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().create_task(act_once_sent(plaid, path, scope.cancel))
        await client.relay.download_pdf(created.relay_token, tmp_path / "report.pdf")
    assert scope.cancelled_caught
    assert [*tmp_path.iterdir()] == []
