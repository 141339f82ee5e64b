"""The database of a journal: versions, unusable files, locks, leases and lost connections."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import ExitStack, closing, contextmanager, nullcontext

import pytest
from journal_support import (
    KEY,
    CapturingJournal,
    creation_requests,
    engine_for_uri,
    execute,
    lease_expiry,
    open_database,
    read_records,
    tokens_per_partner,
)
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE, OWNER

from plaid_relay_async import BatchStoppedError, JournalError, RelayClient, Timeouts
from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.journal.group_commit import GroupExecutor
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.writer import outcome_command
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_a_journal_of_a_later_release_is_rejected(url):
    """A journal with newer tables is an error, and isn't changed."""
    async with Journal(url, key=KEY):
        pass
    await execute(url, schema.journals.update().values(version=99))
    with pytest.raises(JournalError, match="version 99 of its tables"):
        await Journal(url, key=KEY).open()


def test_a_journal_of_an_earlier_release_is_migrated(tmp_path):
    """Each migration runs once, in order."""
    engine = create_engine(f"sqlite:///{tmp_path / 'relay.db'}")
    done = []
    steps = [lambda _: done.append("two"), lambda _: done.append("three")]
    with engine.begin() as connection:
        assert schema.create_or_migrate(connection, "key", ()) == "key"
    for _ in range(2):
        with engine.begin() as connection:
            assert schema.create_or_migrate(connection, "another", steps) == "key"
    assert done == ["two", "three"]
    engine.dispose()


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + os.urandom(4096)])
async def test_a_corrupt_file_is_rejected(tmp_path, content):
    """The error says what is wrong, and the file isn't changed."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"can't be read or written: (file is not a database|.*malformed)"):
        await Journal(path, key=KEY).open()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("address_of", "problem"),
    [
        (lambda path: engine_for_uri(path, f"{path.as_uri()}?mode=ro"), "readonly database"),
        (lambda path: nullcontext(f"sqlite:///{path}?timeout=0.2"), "database is locked"),
    ],
    ids=["read-only", "locked"],
)
async def test_a_file_that_cannot_be_written(plaid, client, report, tmp_path, address_of, problem):
    """A journal that is read-only, or locked by another connection, is an error, and nothing is sent."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with address_of(path) as address:
            with pytest.raises(JournalError, match=problem):
                async with Journal(address, key=KEY) as journal:
                    await client.relay.create([report], "p", journal=journal)
    assert not plaid.requests


@pytest.fixture
def file_without_wal(tmp_path):
    """Create a database that has no write-ahead log, and yield its path and a connection to it."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE another (id INTEGER)")
        yield path, other


async def test_opening_waits_for_another_writer(file_without_wal):
    """A file is opened after another process has written to it, also if it has no write-ahead log yet."""
    path, other = file_without_wal
    other.execute("BEGIN IMMEDIATE")
    journal = Journal(path, key=KEY)
    opening = asyncio.ensure_future(journal.open())
    done, _ = await asyncio.wait([opening], timeout=0.3)
    other.execute("COMMIT")
    await opening
    await journal.close()
    assert not done


@pytest.mark.parametrize(
    "lock", [["BEGIN IMMEDIATE"], ["BEGIN", "SELECT id FROM another"]], ids=["writer", "reader"]
)
async def test_a_file_without_wal_that_stays_locked(file_without_wal, lock):
    """A file can't get a write-ahead log while others use it: after the time limit of locks, it is an error."""
    path, other = file_without_wal
    for statement in lock:
        other.execute(statement).fetchall()
    with pytest.raises(JournalError, match="database is locked"):
        await Journal(f"sqlite:///{path}?timeout=0.2", key=KEY).open()


async def test_a_read_only_file_without_wal(file_without_wal):
    """It can't get a write-ahead log, which is an error immediately."""
    path, _ = file_without_wal
    async with engine_for_uri(path, f"{path.as_uri()}?mode=ro") as engine:
        with pytest.raises(JournalError, match="readonly database"):
            await Journal(engine, key=KEY).open()


async def test_a_file_that_is_locked_during_a_batch(plaid, client, report, tmp_path):
    """The batch stops, nothing is sent without a recorded intent, and received outcomes are returned."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with Journal(f"sqlite:///{path}?timeout=0.2", key=KEY) as journal:
        batch = client.relay.create_many(creation_requests(report, 10), journal=journal, concurrency=2)
        running = asyncio.ensure_future(batch)
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BatchStoppedError):
                await running
        assert (await journal.status("default")).counts["in_flight"] == 2
        sent = len(plaid.requests)
        again = await client.relay.create_many(creation_requests(report, 2), journal=journal)
        assert (again.counts, len(plaid.requests)) == ({"created": 2}, sent)
    assert {o.relay_token for o in batch.result.created} == {line["relay_token"] for line in plaid.ledger}
    assert [o.journalled for o in batch.result.created] == [False, False]
    assert "database is locked" in str(batch.result.stopped_by)


async def create_under_a_lock(plaid, client, report, path, partner, journal, *, stack):
    """Create, and lock the file before the response arrives; the lock is released when the stack closes."""
    sent = len(plaid.requests)
    running = asyncio.ensure_future(client.relay.create([report], partner, journal=journal))
    while len(plaid.requests) == sent:
        await asyncio.sleep(0.005)
    other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
    other.execute("BEGIN IMMEDIATE")
    return await running


async def test_a_pending_outcome_is_written_later(plaid, client, report, tmp_path):
    """It is written after a delay, without another call, and on closing; then other processes continue."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=1.0))
    async with Journal(path, run="y", key=KEY) as y:
        for partner, meanwhile in (("p0", True), ("p1", False)):
            async with Journal(f"sqlite:///{path}?timeout=0.1", run="x", key=KEY) as x:
                with ExitStack() as stack:
                    response = await create_under_a_lock(plaid, client, report, path, partner, x, stack=stack)
                    with pytest.raises(JournalError, match="database is locked"):
                        await client.relay.create([report], partner, journal=x)
                if meanwhile:
                    other = await client.relay.create([report], partner, journal=y)
                    assert other.relay_token == response.relay_token
        other = await client.relay.create([report], partner, journal=y)
        assert other.relay_token == response.relay_token
    assert tokens_per_partner(plaid) == {"p0": 1, "p1": 1}


async def test_an_outcome_that_cannot_be_written_is_unknown(plaid, client, report, tmp_path):
    """Closing doesn't fail for it, because the call has returned the outcome."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=1.0))
    with ExitStack() as stack:
        async with Journal(f"sqlite:///{path}?timeout=0.1", run="x", key=KEY) as journal:
            await create_under_a_lock(plaid, client, report, path, "p", journal, stack=stack)
    async with Journal(path, run="x", key=KEY) as journal:
        assert (await journal.status("x")).counts == {"unknown": 1}


async def test_the_longest_request_counts(plaid, report, url):
    """The recorded request time is the longest of all clients that have used the journal."""
    query = text("SELECT request_seconds FROM relay_holders")
    async with Journal(url, key=KEY) as journal:
        for total, longest in ((5.0, 5.0), (9.0, 9.0), (3.0, 9.0)):
            async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=total)) as client:
                await client.relay.create([report], f"p{total}", journal=journal)
            assert await execute(url, query) == [(longest,)]


async def test_a_value_that_cannot_be_read_is_not_quoted(client, report, tmp_path):
    """The database's message could contain a part of the value, which may be a token."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        broken = text("UPDATE relay_entries SET token = CAST('canary' || x'ff' AS TEXT)")
        await execute(path, broken)
        with pytest.raises(JournalError, match="Could not decode to UTF-8") as caught:
            await read_records(journal, "x")
    assert "canary" not in str(caught.value)


async def test_a_callers_engine_reads_what_others_commit(postgres):
    """A transaction of the journal is READ COMMITTED, and the engine's own setting doesn't change."""
    await postgres.reset()
    address = postgres.url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_async_engine(address, isolation_level="REPEATABLE READ")
    query = text("SHOW transaction_isolation")
    async with open_database(engine) as database:
        line = database.new_connection()
        isolation = await database.run_transaction(line, lambda c: c.execute(query).scalar_one(), 0.0)
        assert isolation == "read committed"
    async with engine.connect() as connection:
        assert (await connection.execute(query)).scalar_one() == "repeatable read"
    await engine.dispose()


async def test_a_missing_folder_is_an_error(tmp_path):
    """The error has the operating system's reason."""
    with pytest.raises(JournalError, match="No such file or directory"):
        await Journal(tmp_path / "nowhere" / "relay.db", key=KEY).open()


@contextmanager
def page_limit(count):
    """Limit the size of the databases of SQLite that are opened in the block, as a full disk does."""

    def set_limit(connection, _record):
        connection.execute(f"PRAGMA max_page_count={count}").close()

    event.listen(Engine, "connect", set_limit)
    try:
        yield
    finally:
        event.remove(Engine, "connect", set_limit)


async def test_a_full_disk_stops_the_run_and_loses_no_token(plaid, client, report, tmp_path):
    """Nothing is sent without a recorded intent, and received tokens are returned with `journalled=False`."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
    ((pages,),) = await execute(path, text("PRAGMA page_count"))
    with page_limit(pages + 2):
        async with Journal(path, run="x", key=KEY) as journal:
            batch = client.relay.create_many(creation_requests(report, 500), journal=journal, concurrency=5)
            with pytest.raises(BatchStoppedError) as caught:
                await batch
            assert isinstance(caught.value.__cause__, JournalError)
            assert "database or disk is full" in str(caught.value.__cause__)
    tokens = {o.relay_token for o in batch.result.created}
    assert tokens | {plaid.ledger[0]["relay_token"]} == {line["relay_token"] for line in plaid.ledger}
    assert batch.result.not_attempted or not all(o.journalled for o in batch.result.created)
    with sqlite3.connect(path) as connection:
        recorded = {row[0] for row in connection.execute("SELECT partner FROM relay_entries")}
    connection.close()
    assert set(tokens_per_partner(plaid)) <= recorded


async def test_an_expired_lease_stops_intents_and_keeps_outcomes(plaid, client, report, postgres):
    """A worker with an expired lease records its outcomes and no intent; others wait for a bounded time."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        plaid.fail(Fault(path=CREATE, latency=1.0))
        late = asyncio.ensure_future(client.relay.create([report], "p", journal=journal))
        while not plaid.requests:
            await asyncio.sleep(0.005)
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        assert (await journal.status("x")).counts == {"unknown": 1}
        with pytest.raises(JournalError, match="the journal lease expired"):
            await client.relay.create([report], "q", journal=journal)
        async with Journal(postgres.url, run="x", key=KEY, retry_unknown=True) as other:
            # It waits for the remaining time of the request, and returns the token that arrived meanwhile.
            response = await client.relay.create([report], "p", journal=other)
        assert response.relay_token == (await late).relay_token
    assert tokens_per_partner(plaid) == {"p": 1}


async def test_a_lease_is_renewed(plaid, client, report, postgres):
    """The lease is renewed for as long as the process runs."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY, lease=12) as journal:
        await client.relay.create([report], "p", journal=journal)
        before = await lease_expiry(postgres)
        while await lease_expiry(postgres) == before:
            await asyncio.sleep(0.1)
        await client.relay.create([report], "q", journal=journal)
    assert len(plaid.ledger) == 2


async def test_an_intent_that_outlasts_the_lease_is_not_sent(plaid, client, report, postgres):
    """An intent whose transaction ends after the lease isn't sent."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        # The lease has five seconds left, and ends before the next heartbeat.
        await postgres.execute("UPDATE relay_holders SET expires_at = expires_at - 25")
        expired = "SELECT 1 FROM relay_holders WHERE expires_at < extract(epoch FROM clock_timestamp())"
        async with postgres.transaction("LOCK TABLE relay_entries IN SHARE MODE"):
            creating = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
            while not await postgres.execute(expired):
                await asyncio.sleep(0.05)
        with pytest.raises(JournalError, match="the journal lease expired"):
            await creating
    assert tokens_per_partner(plaid) == {"p": 1}
    async with Journal(postgres.url, key=KEY) as journal:
        assert (await journal.status("x")).counts == {"created": 1, "not_attempted": 1}


async def test_a_late_token_and_a_concurrent_intent(plaid, client, report, postgres):
    """Both are recorded, although the unique index first rejects the token's transaction."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as opened:
        journal = CapturingJournal(opened)
        await client.relay.create([report], "p", journal=journal)
        await postgres.execute("UPDATE relay_entries SET claim = false, state = 'unknown', token = NULL")
        (row,) = (await postgres.execute("SELECT id FROM relay_entries"))[0]
        columns = "run_id, partner, attempts, holder_id"
        insert = f"INSERT INTO relay_entries (id, pair, state, current, claim, {columns})"
        other = f"{insert} SELECT 7, pair, 'begun', false, true, {columns} FROM relay_entries"
        late = outcome_command(row, CreationState.CREATED, token=Hidden("late"))
        async with postgres.transaction(other):
            writing = asyncio.ensure_future(journal.writer.submit(late))
            await postgres.wait_for_waiting()
        await writing
        rows = await postgres.execute("SELECT state, claim FROM relay_entries ORDER BY state")
    assert rows == [("begun", False), ("created", True)]


async def test_a_server_that_is_killed_and_restarted(plaid, client, report, postgres):
    """The journal connects again; if the server stays away, the call fails and sends nothing."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY, lease=20) as journal:
        await client.relay.create([report], "p", journal=journal)
        await postgres.kill()
        waiting = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await postgres.start()
        await waiting
    assert tokens_per_partner(plaid) == {"p": 1, "q": 1}
    async with Journal(postgres.url, run="x", key=KEY, lease=2) as journal:
        await client.relay.create([report], "r", journal=journal)
        await postgres.kill()
        with pytest.raises(JournalError, match="can't be read or written"):
            await client.relay.create([report], "s", journal=journal)
    await postgres.start()
    assert "s" not in tokens_per_partner(plaid)


async def test_cancelled_items_of_a_group_are_processed(tmp_path):
    """Each item is processed, even if its future was cancelled; the other futures get a failure."""
    processed = []

    async def process(items):
        await asyncio.sleep(0.01)
        processed.extend(items)
        if "bad" in items:
            raise OSError
        return items

    groups = GroupExecutor(process, process_cancelled=True)
    cancelled = groups.submit("gone")
    cancelled.cancel()
    await groups.drain()
    bad, also_cancelled = groups.submit("bad"), groups.submit("lost")
    also_cancelled.cancel()
    await groups.drain()
    assert processed == ["gone", "bad", "lost"]
    with pytest.raises(OSError):
        await bad
