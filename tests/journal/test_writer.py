"""Write commands: their results, and their repetition."""

from __future__ import annotations

import asyncio
import math

import pytest
from attrs import evolve
from journal_support import KEY, CapturingJournal, creation_requests, execute
from sqlalchemy import text
from support import CREATE, MAINTENANCE, QUICK

from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.writer import (
    IntentGranted,
    LeaseExpired,
    LostRace,
    RecordIntent,
    RecordRemovalIntent,
    outcome_command,
)
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_an_intent_on_a_changed_row_loses_the_race(client, report, url):
    """An intent isn't recorded if its row, or a row that it retires, isn't in the expected state."""
    async with Journal(url, run="x", key=KEY) as journal:
        capturing = CapturingJournal(journal)
        await client.relay.create([report], "p", journal=capturing)
        writer = capturing.writer
        ((pair,),) = await execute(url, text("SELECT pair FROM relay_entries"))
        row = (await writer.look_up_pair(pair)).holding
        changed = evolve(row, state=CreationState.UNKNOWN)
        for intent in (
            RecordIntent(writer.row_values(pair, "p", None), (changed,)),
            RecordIntent(writer.row_values(pair, "p", row)),
            RecordRemovalIntent(evolve(row, worker_id=0)),
        ):
            assert await writer.submit(intent) == LostRace()
        assert (await journal.status("x")).counts == {"created": 1}


async def test_an_intent_is_granted_with_the_remaining_lease(client, report, url):
    """A granted intent has the seconds that the lease has left: without a limit on SQLite."""
    async with Journal(url, run="x", key=KEY, lease=20) as journal:
        capturing = CapturingJournal(journal)
        await client.relay.create([report], "p", journal=capturing)
        writer = capturing.writer
        result = await writer.submit(RecordIntent(writer.row_values("pair", "q", None)))
    assert isinstance(result, IntentGranted)
    assert 0 < result.lease_remaining <= (20 if "://" in url else math.inf)
    assert math.isinf(result.lease_remaining) == ("://" not in url)


async def test_an_intent_after_the_lease_is_not_recorded(client, report, postgres):
    """The result says that the lease has expired, and no row is written; an outcome is still recorded."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        capturing = CapturingJournal(journal)
        await client.relay.create([report], "p", journal=capturing)
        ((row,),) = await postgres.execute("SELECT id FROM relay_entries")
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        writer = capturing.writer
        intent = RecordIntent(writer.row_values("pair", "q", None))
        outcome = outcome_command(row, CreationState.UNKNOWN)
        results = await asyncio.gather(writer.submit(intent), writer.submit(outcome))
        assert results == [LeaseExpired(), None]
        assert await postgres.execute("SELECT count(*) FROM relay_entries") == [(1,)]


async def test_an_outcome_that_is_written_twice_changes_no_later_outcome(plaid, client, report, url):
    """A write may be repeated after its confirmation was lost, when another worker has used the row."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="x", key=KEY) as y:
        plaid.fail(Fault(path=CREATE, status=503, body=MAINTENANCE))
        short = evolve(QUICK, max_pause=0.001)
        capturing = CapturingJournal(x)
        await client.relay.create_many(creation_requests(report, 1), journal=capturing, retry=short)
        plaid.clear_faults()
        ((row,),) = await execute(url, text("SELECT id FROM relay_entries"))
        response = await client.relay.create([report], "p0", journal=y)
        await capturing.writer.submit(outcome_command(row, CreationState.FAILED))
        await capturing.writer.submit(outcome_command(row, CreationState.UNKNOWN))
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == response.relay_token
