"""A call: its settings, its request, and its journal."""

from __future__ import annotations

import asyncio

import pytest
from support import CREATE, OWNER, RecordingJournal

from plaid_relay_async import ConfigurationError, NotSentError, RelayClient, ReportNotReadyError


async def test_settings_of_a_call_are_checked(plaid, client):
    """A number is not a policy, and nothing is sent with it."""
    with pytest.raises(ConfigurationError, match="retry must be a RetryPolicy, not int"):
        await client.relay.create([plaid.add_report()], "p", retry=3)  # type: ignore[arg-type]  # the intended mistake
    with pytest.raises(ConfigurationError, match="total must be"):
        await client.relay.create([plaid.add_report()], "p", timeout=0)
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts, not int"):
        RelayClient(OWNER, timeouts=5)  # type: ignore[arg-type]  # the same
    assert plaid.counts[CREATE] == 0


async def test_a_creation_requests_an_uncompressed_response(plaid, client, partner):
    """A compressed response that breaks off couldn't be read; reports are large and are compressed."""
    created = await client.relay.create([plaid.add_report()], "partner")
    await partner.relay.get(created.relay_token)
    creation, reading = plaid.requests
    assert creation.headers["accept-encoding"] == "identity"
    assert "gzip" in reading.headers["accept-encoding"]


async def test_a_report_that_is_not_ready_has_its_own_error(plaid, client):
    """PRODUCT_NOT_READY has a class of its own, so that a caller can wait."""
    public = await client.sandbox.create_public_token()
    item = await client.item.exchange_public_token(public.public_token)
    report = await client.asset_report.create([item.access_token], 60, client_report_id="mine")
    with pytest.raises(ReportNotReadyError):
        await client.asset_report.get(report.asset_report_token)


async def test_a_journal_that_is_slow_leaves_the_request_unsent(plaid, client):
    """A creation isn't sent when the journal leaves too little time for the response."""

    class Slow(RecordingJournal):
        async def record_intent(self, request: object) -> None:
            await asyncio.sleep(0.6)

        async def record_outcome(self, outcome: object) -> None:
            """Record nothing."""

    with pytest.raises(NotSentError, match="the journal took so long") as caught:
        await client.relay.create([plaid.add_report()], "p", timeout=1, journal=Slow())
    assert (caught.value.sent, plaid.counts[CREATE]) == (False, 0)
