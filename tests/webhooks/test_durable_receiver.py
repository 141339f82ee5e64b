"""A receiver with a durable inbox: processes that share it, and a worker that is killed."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from processes import running_process_async
from webhook_receiving import ready, stored

from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter, WebhookState

pytestmark = pytest.mark.may_block  # SQLAlchemy's own

KEY = "A" * 43 + "="
WORKER = """
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter

router = WebhookRouter()

@router.default
async def handle(delivery):
    print(delivery.attempt, flush=True)
    await asyncio.sleep(600)

async def main(path, key):
    client = RelayClient(Credentials("a", "b"))
    async with SQLInbox(path, key=key, lease_seconds=1.0) as inbox:
        async with WebhookReceiver(client.webhooks, inbox, router):
            await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_worker_is_replaced(client, tmp_path):
    """A webhook that one process has stored, and whose worker is killed, is handled by another worker."""
    path, handled = tmp_path / "webhooks.db", asyncio.Queue()
    router = WebhookRouter()

    @router.default
    async def handle(delivery):
        handled.put_nowait((delivery.body, delivery.attempt))

    async with SQLInbox(path, key=KEY, lease_seconds=1.0) as inbox:
        assert await WebhookReceiver(client.webhooks, inbox).receive(ready(), sign_webhook(ready()), "/")
        arguments = (sys.executable, "-c", WORKER, str(path), KEY)
        async with running_process_async(*arguments, stdout=asyncio.subprocess.PIPE) as process:
            assert await process.stdout.readline() == b"1\n"
            process.kill()
            await process.wait()
        async with WebhookReceiver(client.webhooks, inbox, router):
            assert await handled.get() == (ready(), 2)
            while [each.state for each in await stored(inbox)] != [WebhookState.DONE]:
                await asyncio.sleep(0.01)


async def test_duplicates_and_replays_over_restarts(client, tmp_path):
    """A duplicate or a stale replay is recognized by another process, also after the webhook is done."""
    path, handled = tmp_path / "webhooks.db", []
    router = WebhookRouter()

    @router.default
    async def handle(delivery):
        handled.append(delivery.idempotency_key)

    for age in (0, 100, 400, 80_000):
        async with (
            SQLInbox(path, key=KEY) as inbox,
            WebhookReceiver(client.webhooks, inbox, router) as receiver,
        ):
            headers = sign_webhook(ready(), at=time.time() - age)
            assert await receiver.receive(ready(), headers, "/") is (age == 0)
            while [each.state for each in await stored(inbox)] != [WebhookState.DONE]:
                await asyncio.sleep(0.01)
    assert len(handled) == 1


async def test_a_closed_inbox(client, tmp_path):
    """A webhook that arrives when the inbox is closed is refused with 503, and Plaid sends it again."""
    inbox, reasons = SQLInbox(tmp_path / "webhooks.db", key=KEY), []
    receiver = WebhookReceiver(client.webhooks, inbox, on_refused=reasons.append)

    async def read_chunk() -> bytes:
        return chunks.pop()

    for is_open in (False, True, False):
        chunks = [b"", ready()]
        if is_open:
            await inbox.open()
        response = await receiver.respond("POST", "/", sign_webhook(ready()).items(), read_chunk)
        assert response.status == (200 if is_open else 503)
        if is_open:
            await inbox.close()
    assert reasons == ["inbox_failed"] * 2
