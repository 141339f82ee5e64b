"""A simulator in a thread, which any event loop and any thread may use."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiohttp import web
from support import OWNER

from plaid_relay_async import RelayClient
from plaid_relay_async.testing import SimulatorThread


def test_the_time_can_be_moved_from_any_event_loop():
    """advance() can be awaited in another event loop, which may be that of the receiver."""
    received = []

    async def receive(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response()

    async def main(plaid: SimulatorThread) -> None:
        app = web.Application()
        app.router.add_post("/", receive)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with RelayClient(OWNER, base_url=plaid.url) as client:
            public = await client.sandbox.create_public_token()
            item = await client.item.exchange_public_token(public.public_token)
            await client.asset_report.create([item.access_token], 30, webhook=url)
        await plaid.advance(60)
        await runner.cleanup()

    with SimulatorThread(generation_delay=30) as plaid:
        asyncio.run(main(plaid))
    assert [body["webhook_code"] for body in received] == ["PRODUCT_READY"]


def test_the_thread_ends_with_the_block():
    """The thread ends with the block, and also if the server can't be started."""
    with SimulatorThread() as plaid:
        port = int(plaid.url.rpartition(":")[2])
        assert "plaid-simulator" in [thread.name for thread in threading.enumerate()]
        with pytest.raises(OSError, match=str(port)), SimulatorThread(port=port):
            pass
    assert "plaid-simulator" not in [thread.name for thread in threading.enumerate()]


def test_the_time_of_a_simulator_that_is_not_started():
    """advance() raises the simulator's error before the block and after it."""
    plaid = SimulatorThread()
    with pytest.raises(RuntimeError, match="not started"):
        asyncio.run(plaid.advance(60))
    with plaid:
        asyncio.run(plaid.advance(60))
    with pytest.raises(RuntimeError, match="not started"):
        asyncio.run(plaid.advance(60))
