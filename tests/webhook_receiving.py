"""An inbox that fails on command, servers, and what else the tests of the receiver share."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from aiohttp import web
from processes import wait_until_async
from raw_http import build_request

from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import MemoryInbox, StoredWebhook
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler

PAIR = "0123456789abcdef" * 2

READY = {"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "environment": "sandbox"}


def ready(report: str = "canary-report-1", **fields: Any) -> bytes:
    """Return the body of a webhook that a report is ready."""
    return json.dumps({**READY, "asset_report_id": report, **fields}).encode()


def signed(body: bytes, path: str = "/plaid/", **options: Any) -> bytes:
    """Return a request with a signed webhook, byte by byte."""
    token = sign_webhook(body)["Plaid-Verification"]
    return build_request(path, body, f"Plaid-Verification: {token}", **options)


@asynccontextmanager
async def serving_with_aiohttp(receiver):
    """Run an aiohttp server with the handler, and yield its URL."""
    app = web.Application()
    app.router.add_route("*", "/plaid/{path:.*}", aiohttp_handler(receiver))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_with_uvicorn(app, **options):
    """Run uvicorn with an ASGI application, and yield its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, **{"lifespan": "on", **options})
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await wait_until_async(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class InboxError(Exception):
    """The error of an inbox, whose text has a canary."""

    def __init__(self) -> None:
        super().__init__("canary-payload of the inbox")


class FaultyInbox(MemoryInbox):
    """An inbox in memory whose methods fail, or take long.

    Attributes:
        failures: how often each method still fails, by its name.
        delays: how long each method waits first, by its name.
        calls: how often each method was called.
    """

    def __init__(self, *, durable: bool = False, lease_seconds: float = 60.0) -> None:
        super().__init__(lease_seconds=lease_seconds)
        self.durable = durable
        self.failures: Counter[str] = Counter()
        self.delays: dict[str, float] = {}
        self.calls: Counter[str] = Counter()

    async def _act(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.delays:
            await asyncio.sleep(self.delays[name])
        if self.failures[name] > 0:
            self.failures[name] -= 1
            raise InboxError

    async def add(self, webhook):
        await self._act("add")
        return await super().add(webhook)

    async def lease(self, limit):
        await self._act("lease")
        return await super().lease(limit)

    async def renew(self, lease):
        await self._act("renew")
        return await super().renew(lease)

    async def complete(self, lease):
        await self._act("complete")
        return await super().complete(lease)

    async def retry(self, lease, *, delay, error):
        await self._act("retry")
        return await super().retry(lease, delay=delay, error=error)


async def stored(inbox) -> list[StoredWebhook]:
    async with aclosing(inbox.webhooks()) as webhooks:
        return [each async for each in webhooks]
