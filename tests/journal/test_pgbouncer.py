"""A journal behind PgBouncer, which may run each transaction on another connection to PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
from journal_support import (
    KEY,
    create_in_run,
    creation_requests,
    open_database,
    read_records,
    tokens_per_partner,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from plaid_relay_async.journal import Journal

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_all_operations_in_transaction_mode(plaid, client, report, pgbouncer):
    """Two journals use each operation more often than psycopg's prepare threshold."""
    async with (
        Journal(pgbouncer.url, run="x", key=KEY) as one,
        Journal(pgbouncer.url, run="y", key=KEY) as two,
    ):
        results = await asyncio.gather(
            *(
                client.relay.create_many(creation_requests(report, 100), journal=journal)
                for journal in (one, two)
            )
        )
        assert [result.counts for result in results] == [{"created": 100}, {"created": 100}]
        for outcome in results[0].created[:10]:
            assert (await client.relay.remove(outcome.relay_token, journal=two)).removed
        assert len(await read_records(one, "x")) == 100
        assert await one.rotate() == 0
        assert set(tokens_per_partner(plaid).values()) == {1}
    async with Journal(pgbouncer.url, key=KEY) as journal:
        await journal.forget("x")
        assert not any(record.relay_token for record in await read_records(journal, "x") if record.own)


async def test_a_callers_engine_keeps_its_prepare_threshold(client, report, pgbouncer, postgres):
    """The journal prepares no statement on an engine's connections, and restores the setting."""
    engine = create_async_engine(pgbouncer.url.replace("postgresql:", "postgresql+psycopg:"))
    async with Journal(engine, run="x", key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 100), journal=journal)
        assert result.counts == {"created": 100}
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver.prepare_threshold == 5
    await engine.dispose()


async def test_no_statement_is_prepared(postgres):
    """Without a pooler as well, a session has no prepared statement after many transactions."""
    await postgres.reset()
    query = text("SELECT count(*) FROM pg_prepared_statements")
    async with open_database(postgres.url) as database:
        connection = database.new_connection()
        counts = [
            await database.run_transaction(connection, lambda c: c.execute(query).scalar_one(), 0.0)
            for _ in range(20)
        ]
    assert counts == [0] * 20


@pytest.mark.parametrize("which", ["pooler", "server"])
async def test_a_restart_is_waited_for(plaid, client, report, pgbouncer, postgres, which):
    """A call waits for a pooler, or for the server behind it, that was killed and is restarted."""
    killed = pgbouncer if which == "pooler" else postgres
    async with Journal(pgbouncer.url, run="x", key=KEY, lease=30) as journal:
        await client.relay.create([report], "p", journal=journal)
        await killed.kill()
        waiting = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await killed.start()
        await waiting
    assert tokens_per_partner(plaid) == {"p": 1, "q": 1}


async def test_sessions_that_the_pooler_ends(plaid, client, report, pgbouncer):
    """A client that PgBouncer disconnects between two transactions connects again."""
    async with Journal(pgbouncer.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        await pgbouncer.command("KILL postgres")
        await pgbouncer.command("RESUME postgres")
        await client.relay.create([report], "q", journal=journal)
        assert (await journal.status("x")).counts == {"created": 2}
    assert tokens_per_partner(plaid) == {"p": 1, "q": 1}


async def test_a_transaction_that_is_interrupted_is_repeated(plaid, client, report, pgbouncer, postgres):
    """A server process that ends during a transaction (08P01) is a lost connection."""
    async with Journal(pgbouncer.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        async with postgres.transaction("LOCK TABLE relay_entries IN SHARE MODE"):
            creating = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
            await postgres.wait_for_waiting()
            await postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        await creating
    assert tokens_per_partner(plaid) == {"p": 1, "q": 1}
    result, status = await create_in_run(client, report, pgbouncer.url, "x")
    assert (result.counts, status.counts) == ({"created": 1}, {"created": 3})
