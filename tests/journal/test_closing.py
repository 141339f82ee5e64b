"""Cancelled tasks and a closed journal: each response that was received is recorded."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
from contextlib import asynccontextmanager, closing

import pytest
from journal_support import KEY, creation_requests, lease_expiry, read_records, tokens_per_partner
from support import CREATE, REMOVE

from plaid_relay_async import BatchStoppedError, JournalError
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


def cancel_tasks_since(before):
    """Cancel all newer tasks except the simulator's, as shutdown code does, and return them."""
    tasks = asyncio.all_tasks() - before
    tasks -= {task for task in tasks if task.get_coro().__qualname__ == "RequestHandler.start"}
    for task in tasks:
        task.cancel()
    return tasks


@asynccontextmanager
async def locked_by_another_process(path):
    """Hold a write lock on the file for the duration of the block."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


async def wait_for_requests(plaid, count):
    async with asyncio.timeout(60):
        while len(plaid.requests) < count:
            await asyncio.sleep(0.005)


async def read_outcomes(journal, run="x"):
    return {record.secondary_client_id: record.outcome for record in await read_records(journal, run)}


# ------------------------------------------------------------------------------------- all tasks cancelled


@pytest.mark.parametrize("state", [inspect.CORO_CREATED, inspect.CORO_SUSPENDED])
async def test_a_cancelled_group_is_repeated(plaid, client, report, url, state):
    """When all tasks are cancelled, each response that arrived is recorded, and `close()` ends."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        before = asyncio.all_tasks()
        batch = client.relay.create_many(creation_requests(report, 100), journal=journal, concurrency=10)
        running = asyncio.ensure_future(batch)

        def is_writing():
            coroutines = [task.get_coro() for task in asyncio.all_tasks() - before]
            groups = [
                coroutine for coroutine in coroutines if coroutine.__qualname__ == "GroupExecutor._run_groups"
            ]
            return state in map(inspect.getcoroutinestate, groups)

        while not (len(plaid.ledger) > 1 and is_writing()):
            await asyncio.sleep(0)
        await asyncio.wait(cancel_tasks_since(before))
        assert running.cancelled()
        response = await client.relay.create([report], "later", journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        recorded = {record.relay_token for record in await read_records(journal, "x")}
        outcomes = await read_outcomes(journal)
    assert response.relay_token in recorded
    assert {outcome.relay_token for outcome in batch.result.created} <= recorded
    started = {partner for partner, outcome in outcomes.items() if outcome in {"created", "unknown"}}
    assert set(tokens_per_partner(plaid)) <= started


async def test_a_token_behind_a_cancelled_group_is_recorded(plaid, client, report, tmp_path):
    """A token that waits behind another process's write is recorded even if all tasks are cancelled."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        plaid.fail(Fault(path=CREATE, secondary_client_id="p0", latency=0.4, when="after"))
        before = asyncio.all_tasks()
        calls = [asyncio.ensure_future(client.relay.create([report], "p0", journal=journal))]
        await wait_for_requests(plaid, 2)
        async with locked_by_another_process(path):
            calls.append(asyncio.ensure_future(client.relay.create([report], "p1", journal=journal)))
            while len(plaid.ledger) < 2 or client.statistics().in_flight:
                await asyncio.sleep(0.01)
            cancel_tasks_since(before)
            await asyncio.sleep(0.1)
        await asyncio.wait(calls)
    async with Journal(path, run="x", key=KEY) as journal:
        assert await read_outcomes(journal) == {"first": "created", "p0": "created", "p1": "not_attempted"}
    assert tokens_per_partner(plaid) == {"first": 1, "p0": 1}


async def test_a_lease_outlives_a_cancellation_of_all_tasks(plaid, client, report, postgres):
    """The lease is renewed as before, whenever all tasks are cancelled."""
    await postgres.reset()
    before = asyncio.all_tasks()
    async with Journal(postgres.url, run="x", key=KEY, lease=12) as journal:
        await client.relay.create([report], "p", journal=journal)
        moments = set()
        while len(moments) < 3:
            cancel_tasks_since(before)
            await asyncio.sleep(1)  # a busy machine has time for a heartbeat between two cancellations
            moments.add(await lease_expiry(postgres))
        await client.relay.create([report], "q", journal=journal)
    assert len(plaid.ledger) == 2


# ------------------------------------------------------------------------------------- closing a journal


async def test_close_waits_for_a_call_in_flight(plaid, client, report, url):
    """The outcome of a call in flight is recorded, and no further request is sent."""
    plaid.fail(Fault(path=CREATE, latency=1.5, when="after"))
    journal = Journal(url, run="x", key=KEY)
    await journal.open()
    batch = client.relay.create_many(creation_requests(report, 5), journal=journal, concurrency=2)
    running = asyncio.ensure_future(batch)
    await wait_for_requests(plaid, 2)
    await asyncio.gather(journal.close(), journal.close())
    with pytest.raises(BatchStoppedError) as stopped:
        await running
    assert isinstance(stopped.value.__cause__, JournalError)
    assert [outcome.journalled for outcome in batch.result.created] == [True, True]
    assert len(plaid.ledger) == 2
    async with Journal(url, run="x", key=KEY) as journal:
        assert (await journal.status("x")).counts["created"] == 2


async def test_close_waits_for_a_removal_in_flight(plaid, client, report, url):
    """The outcome of a removal in flight is recorded as well."""
    journal = Journal(url, run="x", key=KEY)
    await journal.open()
    response = await client.relay.create([report], "p", journal=journal)
    plaid.fail(Fault(path=REMOVE, latency=1.0, when="after"))
    running = asyncio.ensure_future(client.relay.remove(response.relay_token, journal=journal))
    await wait_for_requests(plaid, 2)
    await journal.close()
    assert (await running).removed
    async with Journal(url, run="x", key=KEY) as journal:
        assert await read_outcomes(journal) == {"p": "removed"}


async def test_an_outcome_after_close_is_not_journalled(plaid, client, report, postgres):
    """A late outcome has `journalled=False`, and no other process takes its pair before that."""
    await postgres.reset()
    plaid.fail(Fault(path=CREATE, latency=15, when="after", times=1))
    journal = Journal(postgres.url, run="x", key=KEY, lease=3)
    await journal.open()
    batch = client.relay.create_many(creation_requests(report, 1), journal=journal)
    running = asyncio.ensure_future(batch)
    await wait_for_requests(plaid, 1)
    await journal.close()
    assert not running.done()
    (row,) = await postgres.execute("SELECT ended FROM relay_holders")
    assert row == (False,)
    with pytest.raises(BatchStoppedError) as stopped:
        await running
    assert isinstance(stopped.value.__cause__, JournalError)
    assert [outcome.journalled for outcome in batch.result.created] == [False]
    async with Journal(postgres.url, run="x", key=KEY, lease=3) as journal:
        assert await read_outcomes(journal) == {"p0": "unknown"}


async def test_close_does_not_wait_for_a_call_between_two_attempts(plaid, client, report, url):
    """A call between two attempts isn't in flight, and isn't continued while the journal closes."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    journal = Journal(url, run="x", key=KEY)
    await journal.open()
    batch = client.relay.create_many(creation_requests(report, 1), journal=journal)
    running = asyncio.ensure_future(batch)
    await wait_for_requests(plaid, 1)
    await asyncio.sleep(0.2)
    await journal.close()
    with pytest.raises(BatchStoppedError):
        await running
    assert len(plaid.requests) == 1
    async with Journal(url, run="x", key=KEY) as journal:
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "created": 1
        }


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_close_closes_the_journal(plaid, client, report, tmp_path, times):
    """A cancelled `close()` closes the journal, and no process waits for a request that was never sent."""
    path = tmp_path / "relay.db"
    journal = Journal(path, run="x", key=KEY)
    await journal.open()
    await client.relay.create([report], "first", journal=journal)
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", latency=0.4, when="after"))
    calls = [asyncio.ensure_future(client.relay.create([report], "p0", journal=journal))]
    await wait_for_requests(plaid, 2)
    async with locked_by_another_process(path):
        calls.append(asyncio.ensure_future(client.relay.create([report], "p1", journal=journal)))
        await asyncio.sleep(0.6)
        ending = asyncio.ensure_future(journal.close())
        for _ in range(times):
            await asyncio.sleep(0.05)
            ending.cancel()
            assert not ending.done()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await asyncio.wait(calls)
    assert list(tmp_path.glob("*.lock")) == []
    async with Journal(path, run="x", key=KEY) as journal:
        assert (await client.relay.create_many(creation_requests(report, 2), journal=journal)).counts == {
            "created": 2
        }
    assert tokens_per_partner(plaid) == {"first": 1, "p0": 1, "p1": 1}


async def test_close_continues_when_all_tasks_are_cancelled(plaid, client, report, url):
    """The journal is closed, at whichever step the tasks are cancelled."""
    for turns in range(1, 60, 4):
        journal = Journal(url, run=f"run-{turns}", key=KEY)
        await journal.open()
        await client.relay.create([report], f"p{turns}", journal=journal)
        before = asyncio.all_tasks()
        ending = asyncio.ensure_future(journal.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        cancel_tasks_since(before)
        await asyncio.wait([ending])
        with pytest.raises(JournalError, match="isn't open"):
            await journal.runs()
    async with Journal(url, run="x", key=KEY) as journal:
        assert len(await journal.runs()) == 15
        for run in await journal.runs():
            assert await journal.forget(run.name) == 1


async def test_close_during_the_look_up_of_a_pair(plaid, client, report, postgres):
    """A call that is still looking up its pair when the journal is closed sends nothing."""
    await postgres.reset()
    journal = Journal(postgres.url, run="x", key=KEY)
    await journal.open()
    await client.relay.create([report], "first", journal=journal)
    async with postgres.transaction("LOCK TABLE relay_entries IN ACCESS EXCLUSIVE MODE"):
        waiting = asyncio.ensure_future(client.relay.create([report], "p0", journal=journal))
        await postgres.wait_for_waiting()
        closing = asyncio.ensure_future(journal.close())
        await asyncio.sleep(0)
    await closing
    with pytest.raises(JournalError, match="closed in the meantime"):
        await waiting
    assert len(plaid.requests) == 1


async def test_a_closed_journal_can_be_opened_again(client, report, url):
    """A journal that is opened again returns the tokens that it has recorded."""
    journal = Journal(url, run="x", key=KEY)
    tokens = []
    for _ in range(2):
        async with journal:
            tokens.append((await client.relay.create([report], "p", journal=journal)).relay_token)
    assert tokens[0] == tokens[1]
