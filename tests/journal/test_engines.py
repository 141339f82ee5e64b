"""A journal on the caller's engine: how many connections it holds, and which pools are too small."""

from __future__ import annotations

import pytest
from journal_support import KEY, creation_requests, read_records
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, AsyncAdaptedQueuePool, NullPool, StaticPool

from plaid_relay_async import ConfigurationError
from plaid_relay_async.journal import Journal

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


@pytest.fixture
def create_engine(url):
    """Return a function that creates an engine for the database."""
    address = (
        url.replace("postgresql:", "postgresql+psycopg:") if "://" in url else f"sqlite+aiosqlite:///{url}"
    )
    return lambda **settings: create_async_engine(address, **settings)


@pytest.mark.parametrize(
    "pool",
    [
        {"pool_size": 5, "max_overflow": 0, "pool_timeout": 1},
        {"pool_size": 1, "max_overflow": 4, "pool_timeout": 1},
        {"pool_size": 0},
        {"pool_size": 1, "max_overflow": -1},
        {"poolclass": NullPool},
    ],
)
async def test_a_journal_holds_five_connections(client, report, create_engine, pool):
    """A pool of five is enough, and so is one without a limit; closing returns all connections."""
    engine = create_engine(**pool)
    async with Journal(engine, run="x", key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 20), journal=journal)
        assert result.counts == {"created": 20}
        assert await journal.rotate() == 0
        assert len(await read_records(journal, "x")) == 20
        removal = await client.relay.remove(result.created[0].relay_token, journal=journal)
        assert removal.removed
        if isinstance(engine.pool, AsyncAdaptedQueuePool):
            assert engine.pool.checkedout() == 5
    if isinstance(engine.pool, AsyncAdaptedQueuePool):
        assert engine.pool.checkedout() == 0
    await engine.dispose()


@pytest.mark.parametrize(
    "pool",
    [
        {"pool_size": 4, "max_overflow": 0},
        {"pool_size": 1, "max_overflow": 3},
        {"poolclass": StaticPool},
        {"poolclass": AssertionPool},
    ],
)
async def test_a_pool_that_is_too_small_is_rejected(create_engine, pool):
    """A pool that can't provide five connections is rejected when the journal is created."""
    with pytest.raises(
        ConfigurationError, match=r"holds 5 connections while it is open, and the engine's .*Pool"
    ):
        Journal(create_engine(**pool), key=KEY)
