"""Databases that don't respond, or reject transactions: each call and close() end in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
import time
import warnings
from contextlib import asynccontextmanager, closing

import pytest
from journal_support import KEY, creation_requests, open_database, read_records, tokens_per_partner
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE

from plaid_relay_async import BatchStoppedError, ConfigurationError, JournalError
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.database import Database
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

LEASE = 3
BOUND = 30  # seconds for what takes a lease and two attempts of 2 s, on a busy machine


class Gate:
    """A proxy between a journal and PostgreSQL that can stop forwarding, without closing a connection."""

    def __init__(self) -> None:
        self._links = []
        self._shut = False

    @asynccontextmanager
    async def in_front_of(self, server):
        self._port = server.port
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
            for link in self._links:
                link.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

    def drop(self):
        """Forward nothing more on the existing connections."""
        for link in self._links:
            link.silent.set()

    def shut(self):
        """Forward nothing more, on any connection."""
        self._shut = True
        self.drop()

    async def _serve(self, reader, writer):
        link = asyncio.current_task()
        link.silent = asyncio.Event()
        self._links.append(link)
        if self._shut:
            link.silent.set()
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._forward(link.silent, reader, to_server), self._forward(link.silent, from_server, writer)
            )
        for each in (writer, to_server):
            each.transport.abort()

    async def _forward(self, silent, reader, writer):
        with contextlib.suppress(ConnectionError):
            while (data := await reader.read(65536)) and not silent.is_set():
                writer.write(data)
                await writer.drain()
        if data:
            await asyncio.Event().wait()
        writer.close()


@asynccontextmanager
async def takes_less_than(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.fixture
async def gate(postgres):
    await postgres.reset()
    gate = Gate()
    async with gate.in_front_of(postgres) as gate.url:
        yield gate


# ------------------------------------------------------------------------------- a server that is silent


@pytest.mark.parametrize("engine", ["own", "the caller's"])
async def test_a_server_that_is_silent_before_a_call(plaid, client, report, gate, engine):
    """The call fails and sends nothing, and closing ends."""
    caller_engine = create_async_engine(gate.url.replace("postgresql", "postgresql+psycopg"))
    journal = Journal(caller_engine if engine == "the caller's" else gate.url, run="x", key=KEY, lease=LEASE)
    await journal.open()
    await client.relay.create([report], "p", journal=journal)
    gate.shut()
    async with takes_less_than(BOUND):
        with pytest.raises(JournalError, match=r"took longer than 2 s|the journal lease expired"):
            await client.relay.create([report], "q", journal=journal, timeout=5)
    async with takes_less_than(BOUND):
        await journal.close()
    await caller_engine.dispose()
    assert len(plaid.requests) == 1


async def test_a_server_that_falls_silent_during_a_batch(plaid, client, report, gate, postgres):
    """A response that arrives is returned even if it can't be recorded; nothing more is sent."""
    plaid.fail(Fault(path=CREATE, latency=0.5, when="after"))
    journal = Journal(gate.url, run="x", key=KEY, lease=LEASE)
    await journal.open()
    batch = client.relay.create_many(creation_requests(report, 100), journal=journal, concurrency=40)
    running = asyncio.ensure_future(batch)
    while len(plaid.requests) < 40:
        await asyncio.sleep(0.01)
    gate.shut()
    async with takes_less_than(BOUND):
        with pytest.raises(BatchStoppedError) as stopped:
            await running
    async with takes_less_than(BOUND):
        await journal.close()
    assert isinstance(stopped.value.__cause__, JournalError)
    assert len(batch.result.created) == len(plaid.ledger) == 40
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        assert (await journal.status("x")).counts["created"] < 40


async def test_a_server_that_is_silent_from_the_start(gate):
    """Opening a journal on a server that doesn't respond fails."""
    gate.shut()
    async with takes_less_than(BOUND):
        with pytest.raises(JournalError, match=r"took longer than|timeout expired"):
            await Journal(gate.url, key=KEY, lease=LEASE).open()


async def test_a_server_that_is_silent_while_the_journal_is_closed(plaid, client, report, gate):
    """Closing ends, even with a call in flight and another task that reads the journal."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="q", latency=1))
    journal = Journal(gate.url, run="x", key=KEY, lease=LEASE)
    await journal.open()
    await client.relay.create([report], "p", journal=journal)
    calling = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
    while len(plaid.requests) < 2:
        await asyncio.sleep(0.01)
    gate.shut()
    reading = asyncio.ensure_future(journal.runs())
    await asyncio.sleep(0.1)
    async with takes_less_than(BOUND):
        await journal.close()
    async with takes_less_than(BOUND):
        with pytest.raises(JournalError):
            await reading
        await asyncio.wait([calling])
    assert tokens_per_partner(plaid) == {"p": 1, "q": 1}


async def test_connections_that_are_dropped_silently(plaid, client, report, gate):
    """New connections replace those that were dropped, and a batch and the lease continue."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    async with Journal(gate.url, run="x", key=KEY, lease=9) as journal:
        await client.relay.create([report], "p", journal=journal)
        batch = client.relay.create_many(creation_requests(report, 100), journal=journal, concurrency=10)
        running = asyncio.ensure_future(batch)
        while len(plaid.requests) < 30:
            await asyncio.sleep(0.01)
        gate.drop()
        assert (await running).counts == {"created": 100}
        await asyncio.sleep(9)
        await client.relay.create([report], "late", journal=journal)
    assert len(plaid.ledger) == 102


async def test_a_read_from_a_silent_server_is_cancelled(gate):
    """A cancelled read ends immediately, and its connection isn't used again."""
    async with Journal(gate.url, key=KEY, lease=9) as journal:
        assert await journal.runs() == []
        gate.drop()
        reading = asyncio.ensure_future(journal.runs())
        await asyncio.sleep(0.2)
        async with takes_less_than(BOUND):
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await journal.runs() == []


async def test_a_lock_that_is_held(plaid, client, report, postgres):
    """A call that doesn't get a lock in time fails, and the server stops waiting for it, too."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY, lease=LEASE) as journal:
        await client.relay.create([report], "p", journal=journal)
        async with postgres.transaction("LOCK TABLE relay_entries IN ACCESS EXCLUSIVE MODE"):
            async with takes_less_than(BOUND):
                with pytest.raises(JournalError):
                    await client.relay.create([report], "q", journal=journal)
            while await postgres.execute("SELECT 1 FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.05)
    assert tokens_per_partner(plaid) == {"p": 1}


async def test_a_cancelled_transaction_is_repeated(client, report, postgres):
    """If only the task of a transaction is cancelled, the call isn't affected."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        reading = asyncio.ensure_future(journal.runs())
        cancelled = set()
        while not cancelled:
            await asyncio.sleep(0)
            tasks = asyncio.all_tasks()
            cancelled = {
                each for each in tasks if "_TaskConnection._transaction" in each.get_coro().__qualname__
            }
        cancelled.pop().cancel()
        assert await reading == []


# ------------------------------------------------------------------------- a server that refuses for a moment


@pytest.mark.parametrize("state", ["25006", "25P03", "57P01", "57P05", "08006", "40P01", "55P03"])
async def test_a_temporary_error_is_retried(plaid, client, report, postgres, state):
    """The transaction is repeated until it succeeds, within the lease."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        await reject_rows(postgres, state, times=3)
        assert (await client.relay.create_many(creation_requests(report), journal=journal)).counts == {
            "created": 10
        }
    assert len(plaid.ledger) == 11


async def test_a_permanent_error_is_not_retried(plaid, client, report, postgres):
    """The call fails with the reason, and sends nothing."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        await reject_rows(postgres, "53100", times=100)
        with pytest.raises(JournalError, match="refused"):
            await client.relay.create([report], "q", journal=journal)
        (refusals,) = await postgres.execute("SELECT last_value FROM refusals")
    assert refusals == (1,)
    assert len(plaid.requests) == 1


async def reject_rows(postgres, state, times):
    """Let the server reject the next rows with this SQLSTATE."""
    await postgres.execute(
        "CREATE SEQUENCE refusals",
        f"""
        CREATE FUNCTION reject_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('refusals') <= {times} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END
            IF; RETURN NULL;
        END $$
        """,
        "CREATE TRIGGER refuse BEFORE INSERT ON relay_entries EXECUTE FUNCTION reject_rows()",
    )


async def test_a_failover_is_survived(plaid, client, report, postgres):
    """A batch survives a failover: connections end, new ones are read-only, and later they can write."""
    await postgres.reset()
    writable = "SET default_transaction_read_only = off"
    plaid.fail(Fault(path=CREATE, latency=0.02))
    try:
        async with Journal(postgres.url, run="x", key=KEY) as journal:
            running = asyncio.ensure_future(
                client.relay.create_many(creation_requests(report, 100), journal=journal, concurrency=5)
            )
            while len(plaid.requests) < 20:
                await asyncio.sleep(0.01)
            await postgres.execute(
                "ALTER DATABASE postgres SET default_transaction_read_only = on",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            )
            await asyncio.sleep(2)
            assert not running.done()
            await postgres.execute(writable, "ALTER DATABASE postgres RESET default_transaction_read_only")
            assert (await running).counts == {"created": 100}
            assert len(await read_records(journal, "x")) == 100
    finally:
        await postgres.execute(writable, "ALTER DATABASE postgres RESET default_transaction_read_only")
    assert len(plaid.ledger) == 100


async def test_a_session_that_idled_in_a_transaction(postgres):
    """The server ends it; the transaction is repeated on another connection."""
    await postgres.reset()
    states = []

    def work(connection):
        if not states:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 50")
            states.append("idle")
            time.sleep(2)
        connection.exec_driver_sql("SELECT 1").close()
        states.append("done")

    async with open_database(postgres.url) as database:
        await database.run_transaction(database.new_connection(), work, BOUND)
    assert states == ["idle", "done"]


# ------------------------------------------------------------------------------------------------- SQLite


async def test_a_file_that_stays_locked(plaid, client, report, tmp_path):
    """A call fails once SQLite has waited for its timeout, and so does what is written while closing."""
    path = tmp_path / "relay.db"
    url = f"sqlite:///{path}?timeout=0.5"
    journal = Journal(url, run="x", key=KEY)
    await journal.open()
    await client.relay.create([report], "p", journal=journal)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with takes_less_than(BOUND):
            with pytest.raises(JournalError, match="locked"):
                await client.relay.create([report], "q", journal=journal)
            await journal.close()
    assert len(plaid.requests) == 1


async def test_a_disk_that_hangs(client, report, tmp_path):
    """A transaction fails after its time limit; later ones run in order once the disk responds."""
    hanging = threading.Event()
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with open_database(tmp_path / "relay.db") as database:
        line, query = database.new_connection(), text("SELECT name FROM relay_runs")
        with pytest.raises(JournalError, match=r"took longer than 0\.1 s"):
            await database.run_transaction(line, lambda connection: hanging.wait(BOUND), 0.0, 0.1)
        reading = asyncio.ensure_future(
            database.run_transaction(line, lambda connection: connection.execute(query).scalars().all(), 0.0)
        )
        await asyncio.sleep(0.1)
        assert not reading.done()
        hanging.set()
        assert await reading == ["x"]


async def test_a_disk_that_hangs_while_the_journal_is_closed(tmp_path):
    """Closing waits for the disk no longer than the time limit."""
    hanging = threading.Event()
    database = Database(f"sqlite:///{tmp_path / 'relay.db'}?timeout=0.1", 0.5)
    await database.open()
    line = database.new_connection()
    writing = asyncio.ensure_future(
        database.run_transaction(line, lambda connection: hanging.wait(BOUND), 0.0, BOUND)
    )
    await asyncio.sleep(0.1)
    async with takes_less_than(BOUND):
        await database.close()
    assert not writing.done()
    with pytest.raises(JournalError, match="closed in the meantime"):
        await database.run_transaction(line, lambda connection: None, 0.0)
    hanging.set()
    await writing
    # Nothing closes a connection whose thread was abandoned. Since Python 3.13 there is a warning about it,
    # which must not reach another test.
    del database, line, writing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_a_transaction_after_close_fails(postgres):
    """A closed journal opens no connection again."""
    await postgres.reset()
    async with open_database(postgres.url) as database:
        line = database.new_connection()
    with pytest.raises(JournalError, match="closed in the meantime"):
        await database.run_transaction(line, lambda connection: None, 0.0)


async def test_an_engine_for_a_file_that_is_not_a_database(tmp_path):
    """Opening fails, and no connection is left."""
    path = tmp_path / "relay.db"
    path.write_bytes(b"no database" * 1000)
    path.chmod(0o600)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    with pytest.raises(JournalError, match="not a database"):
        await Journal(engine, key=KEY).open()
    await engine.dispose()


async def test_a_driver_without_access_to_its_socket(client, report, tmp_path):
    """A cancelled transaction is abandoned, and closing the journal waits until its connection is closed."""
    path = tmp_path / "relay.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with Journal(engine, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(engine, run="y", key=KEY) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            forgetting = asyncio.ensure_future(journal.forget("x"))
            await asyncio.sleep(0.2)
            forgetting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forgetting
            other.execute("COMMIT")
        assert await journal.forget("x") == 1
    assert "_transaction" not in str(asyncio.all_tasks())
    await engine.dispose()


def test_a_timeout_that_is_not_a_number(tmp_path):
    """A timeout that isn't a number is rejected when the journal is created."""
    with pytest.raises(ConfigurationError, match="timeout in the database's address"):
        Journal(f"sqlite:///{tmp_path / 'relay.db'}?timeout=soon", key=KEY)
