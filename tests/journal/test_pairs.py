"""Webhooks with a pair ID in their URLs, and retrievals by partners, which prove that a token exists."""

from __future__ import annotations

import pytest
from journal_support import KEY
from raw_http import build_response
from recorder import Recorder
from support import OWNER

from plaid_relay_async import (
    BatchStoppedError,
    RelayClient,
    RelayCreateRequest,
    RequestValidationError,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.webhooks.inbox import read_pair_id

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own
WEBHOOK = "https://lender.example/relay/{pair}"


# ------------------------------------------------------------------------------------- pair IDs in URLs


async def test_each_pair_has_its_own_url(url):
    """It stays the same in other calls and runs, and outcomes have the request of the caller."""
    async with Recorder() as upstream, RelayClient(OWNER, base_url=upstream.url) as client:
        requests = list(RelayCreateRequest.fan_out(["report"], ["p0", "p1"], webhook=WEBHOOK))
        upstream.respond = lambda _: [build_response(500, b"{}")]
        async with Journal(url, run="x", key=KEY) as journal:
            result = await client.relay.create_many(requests, journal=journal, concurrency=1)
            assert [outcome.request for outcome in result.unknown] == requests
            upstream.respond = upstream.creation_response
            retried = await client.relay.create_many(
                requests, journal=journal, concurrency=1, allow_duplicates=True
            )
            assert retried.counts == {"unknown": 2}
        async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
            await client.relay.create(["report"], "p0", webhook=WEBHOOK, journal=journal)
        sent = [upstream.body(number)["webhook"] for number in range(3)]
    first, second = (read_pair_id(each) for each in sent[:2])
    assert sent == [WEBHOOK.replace("{pair}", each) for each in (first, second, first)]
    assert first != second


async def test_a_pair_id_requires_a_journal(plaid, client, report):
    """Without one, nothing is sent: a single call raises the error, and a batch stops."""
    with pytest.raises(RequestValidationError, match=r"webhook contains {pair}.*journal=") as caught:
        await client.relay.create([report], "p", webhook=WEBHOOK)
    assert caught.value.field == "webhook"
    requests = list(RelayCreateRequest.fan_out([report], ["p0", "p1"], webhook=WEBHOOK))
    batch = client.relay.create_many(requests)
    with pytest.raises(BatchStoppedError) as stopped:
        await batch
    assert stopped.value.__cause__.field == "webhook"
    assert set(batch.result.not_attempted) <= set(requests)
    assert batch.result.not_attempted
    assert not plaid.requests
