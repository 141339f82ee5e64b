"""Tokens that are recorded late, after their attempt had become unknown."""

from __future__ import annotations

import pytest
from journal_support import KEY, CapturingJournal, create_in_run, creation_requests, execute, read_records
from sqlalchemy import text
from support import CREATE

from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.writer import outcome_command
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_a_late_token_is_recorded_beside_another_one(plaid, client, report, url):
    """Its run returns it, although another run has created a token meanwhile."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        capturing = CapturingJournal(x)
        await client.relay.create_many(creation_requests(report, 1), journal=capturing)
        plaid.clear_faults()
        ((row,),) = await execute(url, text("SELECT id FROM relay_entries"))
        other = await client.relay.create([report], "p0", journal=y)
        late = plaid.ledger[0]["relay_token"]
        await capturing.writer.submit(outcome_command(row, CreationState.CREATED, token=Hidden(late)))
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == late != other.relay_token
        assert [record.relay_token for record in await read_records(x, "x")] == [late]
        assert [record.relay_token for record in await read_records(y, "y")] == [other.relay_token]


async def test_a_late_token_is_returned_instead_of_a_forgotten_one(plaid, client, report, url):
    """Before it arrived, other runs were rejected, because the journal couldn't return the pair's token."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x:
        capturing = CapturingJournal(x)
        await client.relay.create_many(creation_requests(report, 1), journal=capturing)
        plaid.clear_faults()
        ((row,),) = await execute(url, text("SELECT id FROM relay_entries"))
        await create_in_run(client, report, url, "y", retry_unknown=True)
        assert await x.forget("y") == 1
        assert (await create_in_run(client, report, url, "z"))[0].counts == {"failed": 1}
        late = plaid.ledger[0]["relay_token"]
        await capturing.writer.submit(outcome_command(row, CreationState.CREATED, token=Hidden(late)))
        assert (await create_in_run(client, report, url, "z"))[0].created[0].relay_token == late
    assert len(plaid.ledger) == 2


async def test_a_late_token_takes_precedence_over_an_unknown_attempt(plaid, client, report, postgres):
    """If the attempt that replaced it is unknown, every run gets the late token."""
    await postgres.reset()
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(postgres.url, run="x", key=KEY) as x:
        capturing = CapturingJournal(x)
        await client.relay.create_many(creation_requests(report, 1), journal=capturing)
        ((row,),) = await postgres.execute("SELECT id FROM relay_entries")
        again, _ = await create_in_run(client, report, postgres.url, "y", retry_unknown=True)
        assert again.counts == {"unknown": 1}
        plaid.clear_faults()
        late = plaid.ledger[0]["relay_token"]
        await capturing.writer.submit(outcome_command(row, CreationState.CREATED, token=Hidden(late)))
        for run in ("y", "z"):
            assert (await create_in_run(client, report, postgres.url, run))[0].created[0].relay_token == late
    assert len(plaid.ledger) == 2
