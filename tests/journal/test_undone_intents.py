"""Intents that are undone because no attempt was executed: what the journal shows then."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import aiohttp
import pytest
from attrs import evolve
from journal_support import (
    KEY,
    cancelled_before_sending,
    create_in_run,
    creation_requests,
    read_records,
    tokens_per_partner,
)
from processes import wait_until_async
from support import CREATE, MAINTENANCE, OWNER, QUICK

from plaid_relay_async import RelayClient
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def create_with_an_undone_intent(plaid, report, journal, *, run="x", before_undo=lambda: None):
    """Create for p0 to p3, whose report can't be used, and decline the attempt for p0 once the others failed.

    The requests for the report have stopped by then, so p0 isn't attempted again and its intent is undone;
    `before_undo` is called before that.

    Returns:
        The result of the batch, and the status of the run before the intent was undone.
    """
    others_failed = asyncio.Event()
    failed, statuses = [], []

    def on_outcome(outcome):
        failed.append(outcome)
        if len(failed) == 3:
            others_failed.set()

    async def hold_declined(_session, _context, exchange):
        if exchange.response.status == 429:
            await others_failed.wait()
            statuses.append(await journal.status(run))
            before_undo()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(hold_declined)
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=429, headers={"Retry-After": "1"}))
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}))
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, session=session) as client,
    ):
        result = await client.relay.create_many(
            creation_requests(report, 4), journal=journal, concurrency=4, on_outcome=on_outcome
        )
    (status,) = statuses
    assert (result.counts.total(), status.counts["in_flight"]) == (4, 1)
    return result, status


async def test_an_undone_intent_is_not_counted_as_an_outcome(plaid, report, url):
    """The time of the last outcome, and the rate, are those of the outcomes that were recorded before."""
    async with Journal(url, run="x", key=KEY) as journal:
        _, before = await create_with_an_undone_intent(plaid, report, journal)
        after = await journal.status("x")
    assert after.counts == {"failed": 3, "not_attempted": 1}
    assert (after.last_at, after.rate) == (before.last_at, before.rate)


async def test_a_batch_ends_once_its_intents_are_undone(plaid, report, tmp_path):
    """While another process holds the lock, the batch waits, and afterwards no request is shown as in flight."""
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
            batch = asyncio.ensure_future(
                create_with_an_undone_intent(
                    plaid, report, journal, before_undo=lambda: other.execute("BEGIN IMMEDIATE")
                )
            )
            await wait_until_async(lambda: other.in_transaction)
            done, _ = await asyncio.wait([batch], timeout=0.5)
            assert not done
            other.execute("COMMIT")
            await batch
            assert (await journal.status("x")).counts == {"failed": 3, "not_attempted": 1}


async def test_an_undone_intent_restores_the_failure_before_it(plaid, client, report, url):
    """A pair that had failed, and isn't sent again, stays failed, with its error."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_type": "ITEM_ERROR", "error_code": "ITEM_LOCKED"}))
    _, before = await create_in_run(client, report, url, "x")
    plaid.clear_faults()
    async with Journal(url, run="x", key=KEY) as journal:
        (failed,) = await read_records(journal, "x")
        await create_with_an_undone_intent(plaid, report, journal)
        assert (await read_records(journal, "x"))[0] == failed
        assert (failed.outcome, failed.error_code, failed.attempts) == ("failed", "ITEM_LOCKED", 1)
        counts = (await journal.status("x")).counts
    assert (before.counts, counts) == ({"failed": 1}, {"failed": 4})


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
async def test_an_undone_intent_restores_the_doubt_before_it(plaid, client, report, url, run):
    """A pair whose outcome was unknown is shown as before, and still isn't created without `retry_unknown`."""
    plaid.fail(Fault(path=CREATE, status=500, when="after", body={"request_id": "r1"}))
    await create_in_run(client, report, url, "x")
    plaid.clear_faults()
    async with Journal(url, run=run, key=KEY, retry_unknown=True) as journal:
        (unknown,) = await read_records(journal, "x")
        await create_with_an_undone_intent(plaid, report, journal, run=run)
        for name in {"x", run}:
            (record,) = await read_records(journal, name, partner="p0")
            assert evolve(record, own=True) == unknown
            assert record.own is (name == "x")
    plaid.clear_faults()
    for later in ("x", "y", "z"):
        result, _ = await create_in_run(client, report, url, later)
        assert result.counts == {"unknown": 1}
    assert len(plaid.ledger) == 1


async def test_a_call_that_was_cancelled_before_sending_is_undone(plaid, client, report, tmp_path):
    """Its intent is undone. Otherwise other calls would wait for its outcome."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 3), journal=journal)
        ):
            pass
        assert len(plaid.requests) == 1
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
        assert result.counts == {"created": 3}
    assert set(tokens_per_partner(plaid).values()) == {1}


async def test_an_intent_is_undone_before_the_next_call_starts(plaid, client, report, tmp_path):
    """The next call of this process uses the same row, and its own intent isn't undone."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, status=503, body=MAINTENANCE))
    short = evolve(QUICK, max_pause=0.001)
    async with Journal(path, run="x", key=KEY) as x, Journal(path, run="y", key=KEY) as y:
        await client.relay.create_many(creation_requests(report, 1), journal=x, retry=short)
        plaid.clear_faults()
        plaid.fail(Fault(path=CREATE, latency=0.3))
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 1), journal=x)
        ):
            sent = len(plaid.requests)
            following = asyncio.ensure_future(client.relay.create([report], "p0", journal=x))
            await asyncio.sleep(0.1)
        while len(plaid.requests) == sent:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        response = await client.relay.create([report], "p0", journal=y)
        assert (await following).relay_token == response.relay_token
    assert len(plaid.ledger) == 1
