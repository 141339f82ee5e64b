"""Journals of version 1: their migration, also while other processes have them open."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import journal_version_1 as version_1
import pytest
from journal_support import read_records
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from support import OWNER, python_process

from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.encryption import Digests

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own
OPEN = """
import asyncio, sys
from plaid_relay_async.journal import Journal

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with Journal(sys.argv[1], run="x") as journal:
        print((await journal.status("x")).counts["unknown"], flush=True)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)


@asynccontextmanager
async def version_1_process(url):
    """Create a journal of version 1, and yield the connection of a process that uses it."""
    kind = "postgresql" if "://" in url else "sqlite"
    address = url.replace("postgresql:", "postgresql+psycopg:")
    if kind == "sqlite":
        await asyncio.to_thread(Path(url).touch, 0o600)
        address = f"sqlite+aiosqlite:///{url}"
    engine = create_async_engine(address)
    try:
        async with engine.connect() as connection:
            for statement in version_1.tables(kind):
                await connection.execute(text(statement))
            await connection.commit()
            yield connection
    finally:
        await engine.dispose()


async def run_statement(connection, statement, **values):
    result = await connection.execute(text(statement), values)
    rows = result.mappings().all() if result.returns_rows else []
    await connection.commit()
    return rows


async def test_a_process_of_an_earlier_release_continues(plaid, client, report, url):
    """It records intents and outcomes, and reads pairs, after another process has migrated the tables."""
    host = plaid.url.partition("//")[2]
    digests = Digests(version_1.PAIR_KEY)
    pairs = [digests.pair_digest(f"{host} {OWNER.client_id}", [report], f"p{n}") for n in range(2)]
    async with version_1_process(url) as earlier:
        for number, pair in enumerate(pairs):
            values = {"id": number, "pair": pair, "partner": f"p{number}"}
            await run_statement(earlier, version_1.INSERT_INTENT, **values)
        await run_statement(earlier, version_1.UPDATE_OUTCOME, id=0, state="created", token="clear:old-token")
        async with Journal(url, run="x") as journal:
            assert (await journal.status("x")).counts == {"created": 1, "unknown": 1}
            record = await journal.record_retrieval(pairs[1])
            assert (record.run, record.secondary_client_id, record.outcome) == ("x", "p1", "unknown")
            (row,) = await run_statement(earlier, version_1.SELECT_PAIR, pair=pairs[1])
            assert (row["state"], "retrieved_at" in row) == ("begun", False)
            await run_statement(earlier, version_1.UPDATE_OUTCOME, id=1, state="unknown", token=None)
            values = {"id": 2, "pair": "c" * 32, "partner": "p2"}
            await run_statement(earlier, version_1.INSERT_INTENT, **values)
            assert (await journal.status("x")).unknown_with_token == 1
            assert [each.retrieved_at for each in await read_records(journal, "x")] == [
                None,
                record.retrieved_at,
                None,
            ]
    async with Journal(url, run="x", retry_unknown=True) as journal:
        created = await client.relay.create([report], "p0", journal=journal)
        assert created.relay_token == "old-token"
    assert not plaid.requests


async def test_two_processes_migrate_at_the_same_time(url):
    """One migrates, and the other one waits and finds the new tables."""
    async with version_1_process(url) as earlier:
        values = {"id": 1, "pair": "a" * 32, "partner": "p"}
        await run_statement(earlier, version_1.INSERT_INTENT, **values)
        async with python_process(OPEN, url) as one, python_process(OPEN, url) as other:
            for process in (one, other):
                assert await process.stdout.readline() == b"ready\n"
            outputs = await asyncio.gather(one.communicate(b"\n"), other.communicate(b"\n"))
            assert outputs == [(b"1\n", None), (b"1\n", None)]
            assert (one.returncode, other.returncode) == (0, 0)
        assert await run_statement(earlier, "SELECT version FROM relay_journal") == [{"version": 2}]
