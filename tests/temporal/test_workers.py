"""Workers: what they refuse, what they open and close, and how they end."""

from __future__ import annotations

import asyncio
import re
import traceback

import pytest
from canaries import REPORT_TOKEN, assert_error_is_clean, package_frames
from journal_support import KEY, OTHER_KEY, creation_requests, read_records
from processes import read_until
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE, OWNER, QUICK
from temporal_support import (
    LONG,
    OTHER_CALLS,
    activity_handle,
    create_on_queue,
    delete_activity,
    make_other_calls,
    open_queue,
    pair_of,
    running_worker,
    start_create,
    wait_for_requests,
)
from temporalio import activity
from temporalio.client import ActivityFailureError, Client
from temporalio.exceptions import ApplicationError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError
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
from plaid_relay_async.temporal.tasks import TaskResult

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own


OPEN_JOURNALS = "SELECT 1 FROM relay_holders WHERE NOT ended"


# ------------------------------------------------------------------------- workers that don't fit the run


async def test_a_worker_of_another_lender_refuses_the_calls(
    plaid, client, report, temporal_client, task_queue, journal_url, open_run
):
    """Each call fails with an error that names the cause; nothing is sent, and nothing is recorded."""
    other = Credentials("other-lender", "secret-of-the-owner")
    async with (
        RelayClient(other, base_url=plaid.url, retry=QUICK) as other_client,
        running_worker(temporal_client, task_queue, other_client, journal_url),
        open_run() as (queue, journal),
    ):
        result = await create_on_queue(queue, client, report, 5, concurrency=1)
        status = await journal.status("x")
    assert isinstance(result.stopped_by, ConfigurationError)
    assert (result.counts, len(plaid.requests)) == ({"failed": 3}, 0)
    assert "another journal or for another lender" in str(result.failed[0].error)
    assert {each.journalled for each in result.failed} == {False}
    assert status.counts == {"not_attempted": 3}


async def test_a_worker_with_another_journal_refuses_the_calls(
    plaid, client, report, temporal_client, task_queue, journal_url, postgres, open_run
):
    """It computes other names for the same pairs and tokens."""
    await postgres.execute("DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    async with (
        running_worker(temporal_client, task_queue, client, journal_url.rpartition("/")[0] + "/other"),
        open_run() as (queue, _),
    ):
        created = await create_on_queue(queue, client, report, 1)
        removed = await client.relay.remove_many(["credit-relay-sandbox-1"], task_queue=queue)
    assert [type(each.error) for each in [*created.failed, *removed.failed]] == [ConfigurationError] * 2
    assert not plaid.requests


async def test_payloads_under_another_key_are_refused(
    plaid, client, report, temporal_server, task_queue, journal_url, open_run
):
    """A worker with another key returns nothing that the submitter can decrypt, so the call is unknown."""
    other = await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY))
    async with (
        open_run() as (queue, _),
        running_worker(other, task_queue, client, journal_url),
    ):
        result = await create_on_queue(queue, client, report, 1)
    (unknown,) = result.unknown
    assert "no key" in str(unknown.error)
    assert not unknown.journalled
    assert not plaid.requests


async def test_a_task_of_a_later_release_is_refused(plaid, temporal_client, task_queue, run_worker):
    """The error names the version of the task and what to do."""
    async with run_worker():
        task = {"version": 2, "task": "of tomorrow"}
        handle = await start_create(temporal_client, task_queue, task)
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


async def test_a_worker_says_that_it_has_started(
    client, plaid, report, temporal_client, task_queue, journal_url, open_run
):
    """`on_started` is called once the journal is checked, and then the worker makes calls."""
    started = asyncio.Event()
    worker = Worker(temporal_client, task_queue, client, journal_url, key=KEY)
    running = asyncio.create_task(worker.run(on_started=started.set))
    await asyncio.wait_for(started.wait(), LONG)
    async with open_run() as (queue, _):
        assert (await create_on_queue(queue, client, report, 1)).counts == {"created": 1}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_worker_without_a_journal_does_not_start(client, temporal_client, task_queue):
    """It ends with an error, and `on_started` isn't called."""
    started = asyncio.Event()
    url = "postgresql://user@127.0.0.1:1/none"
    worker = Worker(temporal_client, task_queue, client, url, key=KEY, lease=0.2)
    with pytest.raises(JournalError):
        await worker.run(on_started=started.set)
    assert not started.is_set()


# ------------------------------------------------------------------------------------ journals of a worker


async def test_a_worker_that_cannot_open_the_journal_leaves_the_call_to_another_one(
    client, plaid, report, temporal_client, task_queue, journal_url, postgres, open_run, run_worker
):
    """The call is repeated until a worker with a journal makes it, once."""
    await postgres.execute("DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    other_url = journal_url.rpartition("/")[0] + "/other"
    async with running_worker(temporal_client, task_queue, client, other_url, lease=1.0):
        # Once it has made a call, it has started, and opens another journal for another run.
        async with open_queue(temporal_client, task_queue, other_url, "started") as (queue, _):
            await create_on_queue(queue, client, report, 1)
        await postgres.execute("ALTER DATABASE other ALLOW_CONNECTIONS false")
        async with open_run() as (queue, journal):
            await queue.submit(client, creation_requests(report, 1))
            with pytest.raises(ActivityFailureError) as raised:
                await activity_handle(queue, await pair_of(journal)).result()
    async with (
        open_run() as (queue, _),
        run_worker(),
    ):
        result = await create_on_queue(queue, client, report, 1)
    assert raised.value.cause.type == "JournalError"
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 2


async def test_a_journal_whose_lease_has_expired_is_replaced(
    client, plaid, report, postgres, open_run, run_worker
):
    """The call whose intent it can't record is repeated, and then uses a journal with a new lease."""
    async with run_worker():
        async with open_run() as (queue, _):
            await create_on_queue(queue, client, report, 1)
        # The journal of the submitter is closed, so the only lease is that of the worker.
        await postgres.execute("UPDATE relay_holders SET expires_at = expires_at - 3600")
        async with open_run() as (queue, journal):
            result = await create_on_queue(queue, client, report, 3)
            status = await journal.status("x")
    assert result.counts == status.counts == {"created": 3}
    assert len(plaid.ledger) == 3


async def test_the_journals_of_runs_that_have_ended_are_closed(
    client, plaid, report, postgres, open_run, run_worker
):
    """A worker keeps the journals of a few runs open, and closes them all at its end."""
    async with run_worker():
        for number in range(10):
            async with open_run(f"run-{number}", on_existing="create") as (queue, _):
                assert (await create_on_queue(queue, client, report, 1)).counts == {"created": 1}
        journals = await read_until(lambda: postgres.execute(OPEN_JOURNALS), lambda rows: len(rows) <= 8)
    remaining = await postgres.execute(OPEN_JOURNALS)
    assert (len(journals), remaining) == (8, [])
    assert len(plaid.ledger) == 10


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_the_tokens_of_a_run_can_be_forgotten_while_a_worker_is_idle(
    client, report, journal_url, postgres, open_run, run_worker
):
    """A minute after its last call of the run, the worker has closed the journal, and runs on."""
    async with (
        run_worker(),
        Journal(journal_url, run="other", key=KEY) as journal,
    ):
        async with open_run() as (queue, _):
            await create_on_queue(queue, client, report, 3)
        with pytest.raises(JournalError, match="a process is working on the run"):
            await journal.forget("x")
        async with asyncio.timeout(90):
            while await postgres.execute(OPEN_JOURNALS):
                await asyncio.sleep(0.5)
        forgotten = await journal.forget("x")
        async with open_run("y", on_existing="create") as (queue, _):
            result = await create_on_queue(queue, client, report, 3)
    assert forgotten == 3
    assert result.counts == {"created": 3}


# ------------------------------------------------------------------------ calls that a worker can't make


def failures_of_activities(log):
    """Return the failures of activities that temporalio has logged."""
    errors = [each.exc_info[1] for each in log.get_records("call") if each.exc_info]
    return [each for each in errors if isinstance(each, ApplicationError)]


async def failed_activity(queue, journal, client, report):
    """Submit a call, and return the failure of its activity."""
    await queue.submit(client, creation_requests(report, 1))
    with pytest.raises(ActivityFailureError) as raised:
        await activity_handle(queue, await pair_of(journal)).result()
    return raised.value.cause


async def test_an_unexpected_error_is_logged_and_named(
    plaid, client, temporal_client, task_queue, journal_url, every_log, open_run
):
    """The worker's log has its traceback; the failure has only its class, and neither has a report token."""
    engine = create_async_engine(journal_url.replace("postgresql:", "postgresql+psycopg:"))

    def break_down(*_):
        raise LookupError("a bug of a hook")

    async with (
        running_worker(temporal_client, task_queue, client, engine),
        open_run("started") as (other_queue, _),
    ):
        await create_on_queue(other_queue, client, plaid.add_report(), 1)
        event.listen(engine.sync_engine, "before_cursor_execute", break_down)
        async with open_run() as (queue, journal):
            failure = await failed_activity(queue, journal, client, plaid.add_report(REPORT_TOKEN))
        event.remove(engine.sync_engine, "before_cursor_execute", break_down)
    await engine.dispose()
    assert (failure.type, failure.message) == ("LookupError", "unexpected error: LookupError")
    (record,) = [each for each in every_log.records if each.name == "plaid_relay_async.temporal"]
    error = record.exc_info[1]
    assert (record.levelname, str(error)) == ("ERROR", "a bug of a hook")
    assert "_make_call" in package_frames(error)
    assert "break_down" in "".join(traceback.format_exception(error))
    assert_error_is_clean(error)
    for each in failures_of_activities(every_log):
        assert_error_is_clean(each)
    assert len(plaid.requests) == 1


class WaitingLimiter:
    """A rate limiter that never permits an attempt."""

    def __init__(self):
        self.waiting = asyncio.Event()

    async def acquire(self, _endpoint):
        self.waiting.set()
        await asyncio.get_running_loop().create_future()


async def test_a_call_that_was_stopped_before_its_first_attempt_is_not_made(
    plaid, client, report, temporal_client, task_queue, journal_url, open_run
):
    """If a program cancels its tasks, the failure tells the submitter to queue the call again."""
    limiter = WaitingLimiter()
    async with (
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter) as worker_client,
        running_worker(temporal_client, task_queue, worker_client, journal_url),
        open_run() as (queue, journal),
    ):
        failing = asyncio.create_task(failed_activity(queue, journal, client, report))
        await limiter.waiting.wait()
        (batch,) = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Batch._run"]
        batch.cancel()
        failure = await failing
    assert failure.type == "CallNotMadeError"
    assert failure.message == "the worker was stopped before it could make the call"
    assert not plaid.requests


# --------------------------------------------------------------------------------------- the end of a worker


async def test_a_worker_drains(client, plaid, report, open_run, run_worker):
    """The calls in flight end as usual, and another worker makes the others: none is lost, or made twice."""
    plaid.fail(Fault(path=CREATE, latency=0.5, times=4))
    async with open_run() as (queue, _):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 12))
        async with run_worker(concurrency=4):
            await wait_for_requests(plaid, 4)
        drained = len(plaid.ledger)
        async with run_worker():
            result = await running
    assert 4 <= drained <= 12
    assert {each.attempts for each in result.created} == {1}
    assert len(result.created) == len(plaid.ledger) == len(plaid.requests) == 12


async def test_a_second_cancellation_ends_a_worker_in_the_middle_of_a_call(
    client, plaid, report, temporal_client, task_queue, journal_url, open_run
):
    """It ends without waiting for Plaid, and the outcome of the call is unknown."""
    plaid.fail(Fault(path=CREATE, stall=LONG))
    async with (
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, timeouts=Timeouts(drain=LONG)) as worker_client,
        open_run(start_to_close=3.0) as (queue, journal),
    ):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        worker = asyncio.create_task(
            Worker(temporal_client, task_queue, worker_client, journal_url, key=KEY, lease=LONG).run()
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
    client, plaid, report, temporal_client, action, open_run, run_worker
):
    """It hasn't been made, so the process that waits for it starts another activity."""
    async with open_run() as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        await asyncio.sleep(0.2)  # nothing shows that the process waits for the activity
        if action == "delete":
            await delete_activity(temporal_client, handle)
        else:
            await getattr(handle, action)()
        async with run_worker():
            result = await running
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1


@pytest.mark.parametrize(
    ("effect", "kind"), [({}, "created"), ({"close": True}, "unknown")], ids=["created", "unknown"]
)
async def test_a_call_in_flight_that_an_operator_terminates_has_its_outcome(
    client, plaid, report, effect, kind, open_run, run_worker
):
    """The worker doesn't notice, and the process that waits reads the outcome from the journal."""
    plaid.fail(Fault(path=CREATE, latency=1.0, **effect))
    async with (
        run_worker(),
        open_run() as (queue, journal),
    ):
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        await wait_for_requests(plaid, 1)
        await activity_handle(queue, await pair_of(journal)).terminate()
        result = await running
    assert result.counts == {kind: 1}
    assert [(each.attempts, each.journalled) for each in [*result.created, *result.unknown]] == [(1, True)]
    assert len(plaid.requests) == 1


async def test_an_outcome_that_cannot_be_read_is_unknown(
    client, plaid, report, postgres, open_run, run_worker
):
    """If the journal fails when it decides about a call, the batch stops; the next one has the token."""
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with run_worker():
        async with open_run() as (queue, journal):
            running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
            await wait_for_requests(plaid, 1)
            handle = activity_handle(queue, await pair_of(journal))
            await postgres.execute("ALTER TABLE relay_entries RENAME TO relay_elsewhere")
            await handle.terminate()
            with pytest.raises(BatchStoppedError) as raised:
                await running
            await postgres.execute("ALTER TABLE relay_elsewhere RENAME TO relay_entries")
        async with open_run() as (queue, _):
            again = await create_on_queue(queue, client, report, 1)
    assert isinstance(raised.value.__cause__, JournalError)
    (unknown,) = raised.value.result.unknown
    assert "can't be read" in str(unknown.error)
    assert not unknown.journalled
    assert again.counts == {"created": 1}
    assert len(plaid.requests) == 1


async def test_an_intent_that_is_recorded_too_late_is_undone(
    client, plaid, report, postgres, every_log, open_run, run_worker
):
    """Once its activity has timed out, a worker sends nothing; a later activity makes the call.

    The error says what to check, because a worker whose clock is fast would make no call. The journal is kept.
    """
    async with open_run(start_to_close=1.0) as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        async with run_worker():
            async with postgres.transaction("LOCK TABLE relay_entries IN EXCLUSIVE MODE"):
                await postgres.wait_for_waiting()
                with pytest.raises(ActivityFailureError) as raised:
                    await handle.result()
                sent = len(plaid.requests)
            result = await create_on_queue(queue, client, report, 1)
            open_journals = await postgres.execute(OPEN_JOURNALS)
    assert isinstance(raised.value.cause, TemporalTimeoutError)
    assert sent == 0
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1
    (failure,) = failures_of_activities(every_log)
    assert failure.type == "CallNotMadeError"
    assert re.fullmatch(
        r"the activity had timed out \d+\.\d s before the attempt could start; are the clocks of the worker "
        r"and of the Temporal server synchronized\?",
        failure.message,
    )
    assert len(open_journals) == 2  # the submitter's and the worker's


async def test_a_token_that_the_journal_does_not_have_is_unknown(
    client, report, temporal_client, task_queue, open_run
):
    """A worker that claims to have recorded a token isn't believed."""

    @activity.defn(name="plaid_relay.create")
    async def claim(_task: dict) -> dict:
        return TaskResult(succeeded=True, attempts=1, request_id="r", journalled=True).to_payload()

    async with (
        open_run() as (queue, _),
        ActivityWorker(temporal_client, task_queue=task_queue, activities=[claim]),
    ):
        result = await create_on_queue(queue, client, report, 1)
    assert "the journal doesn't have it" in str(result.unknown[0].error)


async def test_a_call_that_is_declined_is_repeated(plaid, client, report, open_run, run_worker):
    """A pause that is longer than a worker may wait ends an activity, and a later one makes the call."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"retry-after": "2"}, times=1))
    async with (
        run_worker(),
        open_run(start_to_close=3.0) as (queue, journal),
    ):
        result = await create_on_queue(queue, client, report, 1)
        first = await activity_handle(queue, await pair_of(journal)).result()
    assert first["error"]["class"] == "RateLimitError"
    assert result.counts == {"created": 1}
    assert len(plaid.ledger) == 1


async def test_a_repetition_that_is_declined_for_long_stays_unknown(
    plaid, client, report, open_run, run_worker
):
    """A worker can't wait for the end of the pause, so the pair is unknown; the next run creates once."""

    async def create(fault, **options):
        plaid.clear_faults()
        plaid.fail(fault)
        async with open_run(**options) as (queue, _):
            return (await create_on_queue(queue, client, report, 1)).counts

    async with run_worker():
        lost = await create(Fault(path=CREATE, close=True, when="after"))
        pause = Fault(path=CREATE, status=429, headers={"retry-after": "2"})
        declined = await create(pause, start_to_close=3.0, retry_unknown=True)
        repeated = await create(Fault(path=CREATE, latency=0.01), retry_unknown=True)
    assert [lost, declined, repeated] == [{"unknown": 1}, {"unknown": 1}, {"created": 1}]
    assert len(plaid.ledger) == 2


async def test_a_call_that_an_operator_pauses_is_made_later(client, plaid, report, open_run, run_worker):
    """It stays on the queue until it is unpaused."""
    async with open_run() as (queue, journal):
        await queue.submit(client, creation_requests(report, 1))
        handle = activity_handle(queue, await pair_of(journal))
        await handle.pause()
        again = await queue.submit(client, creation_requests(report, 1))
        running = asyncio.ensure_future(create_on_queue(queue, client, report, 1))
        async with run_worker():
            await make_other_calls(open_run, client, report)
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


async def test_an_invalid_submission_is_rejected(client, open_run):
    """The error of an argument or of the input is raised as it is."""
    async with open_run() as (queue, _):
        with pytest.raises(ConfigurationError, match="concurrency must be a whole number of 1 or more"):
            await queue.submit(client, [], concurrency=0)
        with pytest.raises(RequestValidationError, match="must be a RelayCreateRequest"):
            await queue.submit(client, ["partner"])
