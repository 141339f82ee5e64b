"""Canaries on the way of a webhook: from its creation over the receiver, the inbox and the journal to a handler."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import aclosing, closing

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from canaries import (
    CREDENTIALS,
    REPORT_TOKEN,
    SECRET,
    assert_error_is_clean,
    assert_no_canary,
    package_frames,
)
from journal_support import KEY
from support import CREATE, QUICK

from plaid_relay_async import Credentials, PlaidRelayError, RelayClient, RelayCreateRequest
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator, WebhookFault
from plaid_relay_async.webhooks import (
    NotStoredReason,
    RefusalReason,
    WebhookReceiver,
    WebhookRouter,
    WebhookState,
)
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler

pytestmark = pytest.mark.may_block  # SQLAlchemy's own
LOOKUP, LIST = "/webhook_verification_key/get", "/beta/webhook_events/list"
LOGGERS = (None, "aiohttp", "aiosqlite", "asyncio", "plaid_relay_async", "sqlalchemy.pool")
PERSON = {
    "webhook_type": "ASSETS",
    "webhook_code": "ERROR",
    "asset_report_id": "canary-report",
    "error": {"error_code": "X", "error_message": "canary-person of the error"},
    "account": ["canary-account", {"name": "canary-name"}],
}


@pytest.fixture
def logs(caplog):
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, logger=name)
    caplog.set_level(logging.INFO, logger="sqlalchemy.engine")  # at DEBUG, it logs each row as it is stored
    return caplog


def check_logs(logs, pair):
    """Check that no log, and no local variable of the package in a logged traceback, has a canary or a pair ID."""
    for record in logs.records:
        text = logging.Formatter().format(record)
        assert_no_canary(text)
        assert pair not in text
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            assert_error_is_clean(record.exc_info[1])
            assert pair not in package_frames(record.exc_info[1])


async def stored(inbox, state=None):
    async with aclosing(inbox.webhooks(state)) as webhooks:
        return [each async for each in webhooks]


async def test_no_canary_leaves_the_chain(logs, tmp_path):
    """Neither logs, errors, metrics nor files have tokens, secrets, pair IDs or what a payload says."""
    asyncio.get_running_loop().set_debug(True)
    path, reasons, deliveries, router = tmp_path / "relay.db", [], [], WebhookRouter()

    @router.default
    async def fail_once(delivery):
        deliveries.append(delivery)
        if delivery.event.webhook_code == "ERROR" or delivery.attempt == 1:
            raise LookupError("the handler fails")

    async with (
        Simulator(clients={"owner": SECRET, "p": "secret"}, reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url, retry=QUICK) as client,
        Journal(path, run="x", key=KEY) as journal,
        SQLInbox(path, key=KEY) as inbox,
        WebhookReceiver(
            client.webhooks,
            inbox,
            router,
            journal=journal,
            on_refused=reasons.append,
            max_attempts=2,
            backoff=0.01,
            time_limit=1.0,
        ) as receiver,
    ):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", aiohttp_handler(receiver))
        server = TestServer(app)
        await server.start_server(access_log=None)  # its lines contain URLs, and so pair IDs
        async with server:
            url = str(server.make_url("/relay/"))
            plaid.fail(Fault(path=CREATE, status=500, when="after"))
            (request,) = RelayCreateRequest.fan_out([REPORT_TOKEN], ["p"], webhook=f"{url}{{pair}}")
            assert (await client.relay.create_many([request], journal=journal)).counts == {"unknown": 1}
            plaid.clear_faults()
            async with RelayClient(Credentials("p", "secret"), base_url=plaid.url) as partner:
                await partner.relay.get(plaid.ledger[0]["relay_token"])
            await plaid.advance()
            (retrieval,) = plaid.sent_webhooks
            pair = retrieval["destination_url"].rpartition("/")[2]
            await refuse_some(plaid, client, f"{url}{pair}", path, reasons)
            plaid.world.webhooks.send("owner", f"{url}{pair}", PERSON)
            await plaid.advance(60)
            plaid.fail(WebhookFault(lose=True))
            plaid.world.webhooks.send("owner", url, {**PERSON, "owner": "canary-recovered"})
            await plaid.advance()
            plaid.fail(Fault(path=LIST, status=500, body={"error_message": f"{SECRET} {pair}"}, times=10))
            with pytest.raises(PlaidRelayError) as caught:
                await client.webhooks.recover(inbox, url_prefix=url)
            assert_error_is_clean(caught.value)
            plaid.clear_faults()
            assert (await client.webhooks.recover(inbox, url_prefix=url)).added == 1
            async with asyncio.timeout(30):
                while await stored(inbox, WebhookState.PENDING):
                    await asyncio.sleep(0.02)
        assert len(await stored(inbox, WebhookState.DEAD)) == 2
        assert len(await stored(inbox, WebhookState.DONE)) >= 1
        assert (await journal.status("x")).unknown_with_token == 1
        shown = repr(deliveries) + repr(await stored(inbox))
        assert_no_canary(shown)
        assert pair not in shown
        files = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert len(reasons) >= 6
    assert {*reasons} <= {*RefusalReason, *NotStoredReason, "key_lookup_failed", "stale"}
    assert_no_canary(files.decode("latin-1"))
    check_logs(logs, pair)


async def refuse_some(plaid, client, url, path, reasons):
    """Send what isn't stored: forgeries, and webhooks while the inbox or the key can't be read."""
    body = b'{"owner": "canary-forger"}'
    plaid.rotate_webhook_key()
    signed = plaid.sign_webhook(body)
    async with aiohttp.ClientSession() as session:

        async def post(body, headers, status):
            async with session.post(url, data=body, headers=headers) as response:
                assert (response.status, await response.read()) == (status, b"")

        plaid.fail(Fault(path=LOOKUP, status=500, body={"error_message": f"{SECRET} {url}"}, times=20))
        await post(body, signed, 503)
        plaid.clear_faults()
        await post(body + b"canary-body", signed, 400)
        await post(body, {"Plaid-Verification": "canary-token", "Content-Type": "application/json"}, 400)
        await post(body, {**signed, "Content-Type": "text/canary-type"}, 415)
        await post(b"canary-long" * 30_000, signed, 413)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await post(body, signed, 503)
            other.execute("ROLLBACK")
