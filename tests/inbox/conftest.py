"""Fixtures for the tests of inboxes: where one is stored, and an open inbox of each kind."""

from __future__ import annotations

import pytest
from inbox_support import open_memory_inbox, open_sql_inbox
from pgbouncer_server import PgBouncer


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        return tmp_path / "relay.db"
    server = request.getfixturevalue("postgres")
    await server.reset()
    return server.url


@pytest.fixture(params=["memory", "sqlite", "postgresql", "pgbouncer"])
async def tested(request, tmp_path):
    if request.param == "memory":
        async with open_memory_inbox() as tested:
            yield tested
        return
    if request.param == "sqlite":
        async with open_sql_inbox(tmp_path / "relay.db") as tested:
            yield tested
        return
    server = request.getfixturevalue("postgres")
    await server.reset()
    if request.param == "postgresql":
        async with open_sql_inbox(server.url) as tested:
            yield tested
        return
    pooler = PgBouncer(server)
    try:
        await pooler.start()
        async with open_sql_inbox(pooler.url) as tested:
            yield tested
    finally:
        await pooler.remove()


@pytest.fixture
def report(plaid):
    return plaid.add_report()


@pytest.fixture
def inbox(tested):
    return tested.inbox
