"""Processes and servers of a run on a task queue are killed or suspended: no second and no lost token."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal

import pytest
from attrs import evolve
from journal_support import random_faults, read_records, tokens_per_partner
from processes import read_until, wait_until_async
from support import CREATE
from temporal_processes import Run, run_follower, run_submission, run_submitter, run_worker, running
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue as TaskQueueName
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import ActivityExecutionStatus, ActivityFailureError, PendingActivityState

from plaid_relay_async import batch
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal.tasks import CREATE_ACTIVITY

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def a_run(plaid, report, temporal_server, task_queue, journal_url, tmp_path):
    return Run(plaid.url, temporal_server.address, task_queue, journal_url, report, tmp_path)


@contextlib.asynccontextmanager
async def kept_running(process, **options):
    """Start a process again each time that it ends, until the end of the block; yield the task that does so."""
    task = asyncio.create_task(process.keep_running(**options))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def submit_once(run, target=run_submitter):
    """Run a submitter to its end, and return all outcomes so far."""
    async with running(target, run) as submitter:
        assert await submitter.wait() == 0
    return run.outcomes()


async def run_to_end(run):
    """Run submitters until no creation has failed, and return the outcomes."""
    for _ in range(8):
        outcomes = await submit_once(run)
        if all(name != "Failed" for name, _, _ in outcomes.values()):
            return outcomes
    raise AssertionError(outcomes)


async def wait_for_polls(run, workers=1):
    """Wait until the server has seen a number of workers poll the task queue; killed workers count, too."""
    client = await run.connect()
    request = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueueName(name=run.task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    await read_until(
        lambda: client.workflow_service.describe_task_queue(request),
        lambda response: len(response.pollers) >= workers,
    )


async def describe_activities(run, repetition=0):
    """Return the description of the activity of each pair that has one with this number of the repetition."""
    descriptions = []
    async with run.opened() as (_, queue):
        if not await queue._journal.runs():  # the submitter has recorded no pair yet
            return []
        async for pair in queue._journal.pair_ids("x"):
            handle = queue._handle(CREATE_ACTIVITY, pair, repetition)
            # Only a missing activity is `None`. Any other error of the server is repeated or raised.
            if (description := await queue.requests.repeat(handle.describe)) is not None:
                descriptions.append(description)
    return descriptions


async def wait_for_activity(run, status, repetition=0):
    """Wait until an activity has a status, such as `TIMED_OUT`, or a state of a running one, such as `STARTED`."""
    await read_until(
        lambda: describe_activities(run, repetition),
        # Not `in`: a status and a state of different types are equal if their numbers are.
        lambda activities: any(status is each.status or status is each.run_state for each in activities),
    )


async def wait_for_token(run, partner):
    """Wait until the journal has the token of a partner."""
    async with run.journal() as journal:
        await read_until(lambda: read_records(journal, "x", outcomes={"created"}, partner=partner))


async def check_outcomes(run, plaid, outcomes):
    """Check that ledger, journal and outcomes agree and no creation has failed; return the unknown partners."""
    assert outcomes.keys() == {f"p{number}" for number in range(run.partners)}
    async with run.journal() as journal:
        recorded = {
            each.secondary_client_id: (each.outcome, each.relay_token)
            for each in await read_records(journal, "x")
        }
    assert recorded == {partner: (name.lower(), token) for partner, (name, token, _) in outcomes.items()}
    unknown = {partner for partner, (name, _, _) in outcomes.items() if name == "Unknown"}
    issued = {line["secondary_client_id"]: line["relay_token"] for line in plaid.ledger}
    for partner, (name, token, _) in outcomes.items():
        assert name in {"Created", "Unknown"}
        assert partner in unknown or token == issued[partner]
    return unknown


@pytest.mark.timeout(3600)
async def test_everything_is_killed(a_run, plaid, temporal_server, postgres, size):
    """Three workers are killed in turn, the submitter three times, and each server once, with faults.

    No pair has two tokens. Only pairs that were in flight at a kill, or whose response a fault has lost, are
    unknown.
    """
    # On a busy machine, no call exceeds these limits.
    run = evolve(a_run, partners=size(200, 5_000), start_to_close=12.0, lease=5.0)
    lost_responses = max(2, run.partners // 100)
    plaid.fail(*random_faults(lost_responses), Fault(latency=0.1, when="after"))
    kills = size(4, 25)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(running(run_worker, run)) for _ in range(3)]
        submitter = await stack.enter_async_context(running(run_submitter, run))
        for worker in workers:
            await stack.enter_async_context(kept_running(worker))
        submitted = await stack.enter_async_context(kept_running(submitter, until_success=True))
        for number in range(kills):
            issued = run.partners * (number + 1) // (kills + 2)
            await wait_until_async(lambda issued=issued: len(plaid.ledger) >= issued, 600)
            workers[number % 3].send_signal(signal.SIGKILL)
            if number in {0, kills // 2, kills - 1}:
                submitter.send_signal(signal.SIGKILL)
            if number == 1:
                await temporal_server.kill()
                await temporal_server.start()
            if number == kills // 2:
                await postgres.kill()
                await postgres.start()
        await submitted
        outcomes = await run_to_end(run)
    assert set(tokens_per_partner(plaid).values()) == {1}
    unknown = await check_outcomes(run, plaid, outcomes)
    # A kill of a worker leaves its calls in doubt, the restart of PostgreSQL those of all three workers, and
    # four of the random faults the call that they hit.
    assert len(unknown) <= (kills + 3) * run.concurrency + 4 * lost_responses


# ----------------------------------------------------------------------------------- suspended workers


@pytest.mark.slow
async def test_a_suspended_worker_begins_a_lost_activity(a_run, plaid):
    """A worker receives an activity while it is suspended, and begins it when another one has made the call.

    That call is in doubt. `retry_unknown` would permit the suspended worker to repeat it, but it doesn't.
    """
    run = evolve(a_run, partners=1, concurrency=1, retry_unknown=True)
    plaid.fail(Fault(path=CREATE, times=1, close=True, when="after"))
    async with running(run_worker, run) as suspended:
        await wait_for_polls(run)
        suspended.send_signal(signal.SIGSTOP)
        async with running(run_submitter, run) as submitter:
            await wait_for_activity(run, PendingActivityState.STARTED)
            async with running(run_worker, run):
                assert await submitter.wait() == 0
        assert run.outcomes() == {"p0": ("Unknown", None, True)}
        suspended.send_signal(signal.SIGCONT)
        # Only this worker is left, and it makes one call at a time. So when it has made that of the second
        # pair, it has ended the lost activity.
        other = evolve(run, partners=2, retry_unknown=False)
        outcomes = await submit_once(other)
    assert tokens_per_partner(plaid) == {"p0": 1, "p1": 1}
    assert await check_outcomes(other, plaid, outcomes) == {"p0"}


@pytest.mark.slow
async def test_a_worker_is_suspended_beyond_its_lease(a_run, plaid):
    """The pair is unknown until the worker continues: it records the token, which replaces that outcome."""
    run = evolve(a_run, partners=1)
    plaid.fail(Fault(path=CREATE, latency=1.0, when="after"))
    async with running(run_worker, run) as suspended, running(run_submitter, run) as submitter:
        await wait_until_async(lambda: plaid.ledger)
        suspended.send_signal(signal.SIGSTOP)
        assert await submitter.wait() == 0
        assert run.outcomes() == {"p0": ("Unknown", None, True)}
        suspended.send_signal(signal.SIGCONT)
        await wait_for_token(run, "p0")
        outcomes = await submit_once(run)
        assert not await describe_activities(run, repetition=1)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert tokens_per_partner(plaid) == {"p0": 1}


@pytest.mark.slow
async def test_a_worker_is_suspended_within_its_lease(a_run, plaid):
    """The activity times out, but the submitter waits for the worker, which records the token."""
    run = evolve(a_run, partners=1, lease=60.0)
    plaid.fail(Fault(path=CREATE, latency=1.0, when="after"))
    async with running(run_worker, run) as suspended, running(run_submitter, run) as submitter:
        await wait_until_async(lambda: plaid.ledger)
        suspended.send_signal(signal.SIGSTOP)
        await wait_for_activity(run, ActivityExecutionStatus.TIMED_OUT)
        suspended.send_signal(signal.SIGCONT)
        assert await submitter.wait() == 0
        assert not await describe_activities(run, repetition=1)
    assert await check_outcomes(run, plaid, run.outcomes()) == set()
    assert tokens_per_partner(plaid) == {"p0": 1}


@pytest.mark.slow
async def test_a_repetition_while_a_worker_is_suspended(a_run, plaid):
    """The call of a suspended worker is repeated with `retry_unknown`, and a third token is never created."""
    run = evolve(a_run, partners=1)
    retrying = evolve(run, retry_unknown=True)
    plaid.fail(Fault(path=CREATE, latency=1.0, times=1, when="after"))
    async with running(run_worker, run) as suspended, running(run_submitter, run) as submitter:
        await wait_until_async(lambda: plaid.ledger)
        suspended.send_signal(signal.SIGSTOP)
        assert await submitter.wait() == 0
        assert run.outcomes() == {"p0": ("Unknown", None, True)}
        async with running(run_worker, run):
            repeated = await submit_once(retrying)
            assert repeated["p0"][0] == "Created"
            suspended.send_signal(signal.SIGCONT)
            other = evolve(retrying, partners=20)
            outcomes = await submit_once(other)
    assert tokens_per_partner(plaid) == {f"p{number}": 1 + (number == 0) for number in range(20)}
    assert await check_outcomes(other, plaid, outcomes) == set()


@pytest.mark.slow
async def test_a_worker_is_killed_in_flight(a_run, plaid):
    """The pair is unknown. With `retry_unknown`, only a later submitter repeats its call."""
    run = evolve(a_run, partners=1, retry_unknown=True)
    plaid.fail(Fault(path=CREATE, latency=1.0, times=1, when="after"))
    async with running(run_worker, run) as worker, running(run_submitter, run) as submitter:
        await wait_until_async(lambda: plaid.ledger)
        await worker.kill()
        async with running(run_worker, run):
            assert await submitter.wait() == 0
            assert await check_outcomes(run, plaid, run.outcomes()) == {"p0"}
            assert tokens_per_partner(plaid) == {"p0": 1}
            assert await check_outcomes(run, plaid, await submit_once(run)) == set()
    assert tokens_per_partner(plaid) == {"p0": 2}


@pytest.mark.slow
async def test_a_repetition_is_lost(a_run, plaid):
    """A suspended worker receives the repetition of a call in doubt; another worker makes it, and only once."""
    run = evolve(a_run, partners=1, concurrency=1, retry_unknown=True)
    plaid.fail(Fault(path=CREATE, times=1, close=True, when="after"))
    async with running(run_worker, run):
        assert (await submit_once(run))["p0"][0] == "Unknown"
    async with running(run_worker, run) as suspended:
        await wait_for_polls(run, workers=2)
        suspended.send_signal(signal.SIGSTOP)
        async with running(run_submitter, run) as submitter:
            await wait_for_activity(run, PendingActivityState.STARTED, repetition=1)
            async with running(run_worker, run):
                assert await submitter.wait() == 0
        suspended.send_signal(signal.SIGCONT)
        other = evolve(run, partners=2)
        outcomes = await submit_once(other)
    assert tokens_per_partner(plaid) == {"p0": 2, "p1": 1}
    assert await check_outcomes(other, plaid, outcomes) == set()


async def test_a_worker_is_suspended_before_its_intent(a_run, plaid, postgres):
    """Another worker makes the call; the suspended one has lost its lease and sends nothing."""
    run = evolve(a_run, partners=1, concurrency=1, retry_unknown=True)
    async with running(run_submitter, run) as submitter:
        await read_until(lambda: describe_activities(run))
        async with running(run_worker, run) as suspended:
            # The worker's intent waits for the lock, which also keeps the submitter from repeating the
            # activity meanwhile.
            async with postgres.transaction("LOCK TABLE relay_entries IN SHARE MODE"):
                await postgres.wait_for_waiting()
                suspended.send_signal(signal.SIGSTOP)
            async with running(run_worker, run):
                assert await submitter.wait() == 0
            suspended.send_signal(signal.SIGCONT)
            other = evolve(run, partners=5)
            outcomes = await submit_once(other)
    assert set(tokens_per_partner(plaid).values()) == {1}
    assert await check_outcomes(other, plaid, outcomes) == set()


@pytest.mark.slow
async def test_workers_are_suspended_at_random(a_run, plaid, size):
    """Two workers are suspended in turn beyond each limit: no pair has two tokens."""
    suspensions = size(3, 30)
    run = evolve(a_run, partners=50 * suspensions, start_to_close=3.0, retry_unknown=True)
    plaid.fail(Fault(path=CREATE, latency=0.3))
    rng = random.Random(run.partners)
    async with (
        running(run_worker, run) as first,
        running(run_worker, run) as second,
        running(run_submitter, run) as submitter,
    ):
        for number in range(suspensions):
            worker = (first, second)[number % 2]
            sent = len(plaid.requests)
            await wait_until_async(lambda sent=sent: len(plaid.requests) > sent or submitter.has_ended)
            # The worker is suspended at a random moment, and for longer than each limit.
            await asyncio.sleep(rng.uniform(0, 0.5))
            worker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(run.start_to_close + run.lease)
            worker.send_signal(signal.SIGCONT)
        assert await submitter.wait() == 0
        assert set(tokens_per_partner(plaid).values()) == {1}
        outcomes = await run_to_end(evolve(run, retry_unknown=False))
    assert set(tokens_per_partner(plaid).values()) == {1}
    unknown = await check_outcomes(run, plaid, outcomes)
    assert len(unknown) <= suspensions * run.concurrency


async def test_a_response_after_start_to_close(a_run, plaid):
    """A call ends before its activity does, and is unknown; its late response isn't waited for."""
    run = evolve(a_run, partners=1, start_to_close=4.0)
    plaid.fail(Fault(path=CREATE, latency=6.0, when="after"))
    async with running(run_worker, run):
        assert await submit_once(run) == {"p0": ("Unknown", None, True)}
        assert [each.status for each in await describe_activities(run)] == [ActivityExecutionStatus.COMPLETED]
    assert tokens_per_partner(plaid) == {"p0": 1}


# --------------------------------------------------------------------------------------------- recovery


@pytest.mark.slow
async def test_a_killed_submission_is_repeated(a_run, plaid, postgres):
    """A submission that is killed is run again, and starts no second activity; a follower has all outcomes."""
    run = evolve(a_run, partners=100, start_to_close=60.0)
    async with running(run_submission, run) as submission:
        await read_until(lambda: describe_activities(run))
        await read_until(
            lambda: postgres.execute("SELECT count(*) FROM relay_entries"), lambda rows: rows[0][0] >= 20
        )
        await submission.kill()
    started = len(await describe_activities(run))
    assert 1 <= started < run.partners
    async with run.opened() as (client, queue):
        submitted = await queue.submit(client, run.requests())
        assert submitted.pending >= started
        assert submitted.pending + submitted.started == run.partners
        assert (await queue.submit(client, run.requests())).pending == run.partners
    async with running(run_worker, run):
        outcomes = await submit_once(run, run_follower)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert set(tokens_per_partner(plaid).values()) == {1}
    assert len(await describe_activities(run)) == run.partners
    assert not await describe_activities(run, repetition=1)
    async with run.opened() as (client, queue):
        assert (await queue.submit(client, run.requests())).recorded == run.partners
        # The server refuses to start an activity that has ended, also if the journal is behind.
        request = next(iter(run.requests()))
        recorder = await queue.acquire_recorder(request, client.call_context())
        _, state = await queue.start(queue._task(batch.CREATE, request, recorder), 0)
        assert state == "ended"
        recorder.release()


async def test_a_killed_submitter_is_run_again(a_run, plaid):
    """It waits for the activities that are on the queue, and starts only the others."""
    run = evolve(a_run, partners=60, start_to_close=60.0)
    plaid.fail(Fault(path=CREATE, latency=0.2))
    async with running(run_worker, run):
        async with running(run_submitter, run) as submitter:
            await wait_until_async(lambda: len(plaid.ledger) >= 10)
            await submitter.kill()
        assert len(run.outcomes()) < run.partners
        outcomes = await submit_once(run)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert set(tokens_per_partner(plaid).values()) == {1}
    assert not await describe_activities(run, repetition=1)


async def test_an_unknown_pair_is_created_again(a_run, plaid):
    """With `retry_unknown`, once; after that, it has a token."""
    run = evolve(a_run, partners=5)
    plaid.fail(Fault(path=CREATE, secondary_client_id="p3", times=1, close=True, when="after"))
    async with running(run_worker, run):
        assert (await submit_once(run))["p3"] == ("Unknown", None, True)
        assert (await submit_once(run))["p3"] == ("Unknown", None, True)
        assert tokens_per_partner(plaid)["p3"] == 1
        retrying = evolve(run, retry_unknown=True)
        for _ in range(2):
            outcomes = await submit_once(retrying)
            assert await check_outcomes(run, plaid, outcomes) == set()
    assert tokens_per_partner(plaid) == {f"p{number}": 1 + (number == 3) for number in range(5)}


@pytest.mark.slow
async def test_a_cancelled_run_is_continued(a_run, plaid):
    """Cancelled calls are taken off the queue, and a later run makes them."""
    run = evolve(a_run, partners=20)
    async with running(run_submission, run) as submission:
        assert await submission.wait() == 0
    async with run.opened() as (_, queue):
        assert await queue.cancel() == run.partners
        assert await queue.cancel() == 0
    statuses = [each.status for each in await describe_activities(run)]
    assert statuses == [ActivityExecutionStatus.CANCELED] * run.partners
    async with running(run_worker, run):
        outcomes = await submit_once(run)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert set(tokens_per_partner(plaid).values()) == {1}


# ------------------------------------------------------------------------------------------ the journal


async def test_the_journal_is_down_when_the_response_arrives(a_run, plaid, postgres):
    """The token can't be recorded: the submitter receives it, and the worker continues afterwards."""
    run = evolve(a_run, partners=1, start_to_close=20.0)
    plaid.fail(Fault(path=CREATE, latency=4.0, times=1, when="after"))
    async with running(run_worker, run), running(run_submitter, run) as submitter:
        await wait_until_async(lambda: plaid.ledger)
        await postgres.kill()
        try:
            assert await submitter.wait() == 1  # it can't record the token either, and has written it
        finally:
            await postgres.start()
        (line,) = plaid.ledger
        assert run.outcomes() == {"p0": ("Created", line["relay_token"], False)}
        run = evolve(run, partners=5)
        outcomes = await submit_once(run)
    assert outcomes["p0"] == ("Created", line["relay_token"], True)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert len(plaid.ledger) == 5


@pytest.mark.slow
async def test_a_token_is_kept_until_the_journal_is_back(a_run, plaid, postgres):
    """The journal is down until the call's activity has timed out and another one has failed: no token is lost."""
    # The activity of the second pair begins while the journal is down: within the lease of the worker, and it
    # times out soon enough for the test.
    run = evolve(a_run, partners=2, concurrency=1, start_to_close=16.0, lease=13.0)
    plaid.fail(Fault(path=CREATE, latency=4.0, times=1, when="after"))
    async with running(run_worker, run), running(run_submitter, run):
        await wait_until_async(lambda: plaid.ledger)
        async with run.opened() as (_, queue):
            handles = [queue._handle(CREATE_ACTIVITY, pair, 0) async for pair in queue._journal.pair_ids("x")]
        assert len(handles) == 2
        await postgres.kill()
        try:
            for handle in handles:
                with pytest.raises(ActivityFailureError):
                    await handle.result()
        finally:
            await postgres.start()
        await wait_for_token(run, next(iter(plaid.ledger))["secondary_client_id"])
        outcomes = await submit_once(run)
    assert await check_outcomes(run, plaid, outcomes) == set()
    assert tokens_per_partner(plaid) == {"p0": 1, "p1": 1}
