"""The remedies in the journal's errors and in docs/journal.md: each test applies one and succeeds."""

from __future__ import annotations

import asyncio

import pytest
from journal_support import KEY, creation_requests, tokens_per_partner
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool
from support import CREATE, issued_tokens

from plaid_relay_async import BatchStoppedError, ConfigurationError, JournalError, OutcomeUnknownError
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_an_expired_lease_run_it_again(plaid, client, report, postgres):
    """The run resumes where it stopped, and each partner has one token in the end."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        async with client.relay.create_many(
            creation_requests(report, 50), journal=journal, concurrency=2
        ) as batch:
            with pytest.raises(BatchStoppedError) as caught:
                async for _ in batch:
                    await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        assert isinstance(caught.value.__cause__, JournalError)
        assert "Run again: the run resumes where it stopped" in str(caught.value.__cause__)
        assert 0 < len(plaid.ledger) < 50
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 50), journal=journal)
    assert result.counts == {"created": 50}
    assert set(tokens_per_partner(plaid).values()) == {1}


async def test_an_unknown_pair_share_a_new_report(plaid, client, report, url):
    """There must be no second token of the report, so the partner gets a token of another report."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    async with Journal(url, run="x", key=KEY) as journal:
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([report], "p", journal=journal)
        with pytest.raises(OutcomeUnknownError, match="retry_unknown=True"):
            await client.relay.create([report], "p", journal=journal)
        response = await client.relay.create([plaid.add_report()], "p", journal=journal)
    assert issued_tokens(plaid)[1:] == [response.relay_token]


async def test_a_journal_that_is_closed_open_it(client, report, url):
    """The call succeeds inside `async with`."""
    journal = Journal(url, run="x", key=KEY)
    with pytest.raises(JournalError, match=r"async with Journal\(...\)"):
        await client.relay.create([report], "p", journal=journal)
    async with journal:
        assert await client.relay.create([report], "p", journal=journal)


async def test_a_missing_run_list_the_runs(client, report, url):
    """`journal.runs()` returns the existing runs, and `status` succeeds with the name of one."""
    async with Journal(url, run="nov", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        with pytest.raises(JournalError, match=r"no run 'now'.*await journal.runs\(\)"):
            await journal.status("now")
        [run] = await journal.runs()
        assert (await journal.status(run.name)).counts == {"created": 1}


@pytest.mark.parametrize("pool", [{"pool_size": 5}, {"poolclass": NullPool}], ids=["pool_size", "NullPool"])
async def test_an_engine_with_too_few_connections_allow_more(client, report, tmp_path, pool):
    """The journal takes an engine with a larger pool, or with NullPool, and creates through it."""
    address = f"sqlite+aiosqlite:///{tmp_path / 'relay.db'}"
    with pytest.raises(ConfigurationError, match="raise its pool_size or max_overflow, or use NullPool"):
        Journal(create_async_engine(address, poolclass=StaticPool), run="x", key=KEY)
    engine = create_async_engine(address, **pool)
    async with Journal(engine, run="x", key=KEY) as journal:
        assert await client.relay.create([report], "p", journal=journal)
    await engine.dispose()


async def test_a_missing_folder_create_it(client, report, tmp_path):
    """The same journal can be opened then."""
    path = tmp_path / "folder" / "relay.db"
    with pytest.raises(JournalError, match="No such file or directory"):
        await Journal(path, run="x", key=KEY).open()
    await asyncio.to_thread(path.parent.mkdir)
    async with Journal(path, run="x", key=KEY) as journal:
        assert await client.relay.create([report], "p", journal=journal)
