"""Requests that a batch skips after errors of their report, in the journal."""

from __future__ import annotations

import pytest
from journal_support import KEY, create_in_run, creation_requests
from support import CREATE

from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


NOT_READY = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}


async def test_a_resumed_run_sends_skipped_requests(plaid, client, report, url):
    """Skipped requests stay not attempted, and are sent once the report is ready."""
    plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
    async with Journal(url, run="x", key=KEY) as journal:
        stopped = await client.relay.create_many(
            creation_requests(report, 30), journal=journal, concurrency=2
        )
        counts = (await journal.status("x")).counts
    unsent = [each for each in stopped.failed if not each.attempts]
    assert stopped.counts == {"failed": 30}
    assert counts == {"failed": 30 - len(unsent), "not_attempted": len(unsent)}
    assert 30 - len(unsent) == len(plaid.requests) <= 5
    assert not any(each.journalled for each in unsent)
    async with Journal(url, run="x", key=KEY) as journal:
        again = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert (again.counts, (await journal.status("x")).counts) == ({"failed": 30}, counts)
    plaid.clear_faults()
    resumed, status = await create_in_run(client, report, url, "x", count=30)
    assert resumed.counts == status.counts == {"created": 30}
    assert len(plaid.ledger) == 30


async def test_skipped_requests_hide_no_recorded_tokens(plaid, client, report, url):
    """Recorded tokens are returned, even behind very many new pairs, and hide no error of the report."""
    rows = [*creation_requests(report, 250)]
    recorded = [*rows[1:20:2], *rows[-20:]]
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(recorded, journal=journal)
        sent = len(plaid.requests)
        plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
        result = await client.relay.create_many(rows, journal=journal, concurrency=1)
        assert len(plaid.requests) == sent + 3
        assert result.counts == {"created": 30, "failed": 220}
        assert {each.request.secondary_client_id for each in result.created} == {
            each.secondary_client_id for each in recorded
        }
        assert (await journal.status("x")).counts == {"created": 30, "failed": 3, "not_attempted": 217}


async def test_unknown_pairs_of_skipped_requests_stay_unknown(plaid, client, report, url):
    """With `retry_unknown`, pairs that aren't sent are recorded as unknown, with the error as cause."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        await client.relay.create_many(creation_requests(report, 30), journal=journal)
        plaid.clear_faults()
        plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
        sent = len(plaid.requests)
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert result.counts == (await journal.status("x")).counts == {"unknown": 30}
        assert len(plaid.requests) <= sent + 5
        assert {each.error.__cause__.error_code for each in result.unknown} == {"PRODUCT_NOT_READY"}
        plaid.clear_faults()
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal)
        assert result.counts == (await journal.status("x")).counts == {"created": 30}
