"""Clients that disconnect from a web service on Starlette and uvicorn: no token is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random

import anyio
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from support import OWNER, QUICK

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.simulator import Fault, Simulator

pytestmark = pytest.mark.slow

PARTNERS = 20


class Service:
    """A web service that shares one report, with a single call or with a batch whose outcomes it streams."""

    def __init__(self, client: RelayClient, report: str, received: list[str]) -> None:
        self.client, self.report, self.received = client, report, received
        self.active = 0

    async def one(self, request: Request, name: str) -> dict[str, str]:
        """Create one token, in a cancel scope that ends when the visitor disconnects."""
        with self.handling():
            async with anyio.create_task_group() as group:
                group.start_soon(self.watch, request, group.cancel_scope)
                response = await self.client.relay.create([self.report], name)
                self.received.append(response.relay_token)
                group.cancel_scope.cancel()
        return {}

    async def watch(self, request: Request, scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def many(self, name: str) -> StreamingResponse:
        return StreamingResponse(self.lines(name), media_type="text/plain")

    async def lines(self, name: str):
        partners = [f"{name}-{number}" for number in range(PARTNERS)]
        batch = self.client.relay.create_many(
            RelayCreateRequest.fan_out([self.report], partners), concurrency=5
        )
        with self.handling():
            try:
                async with batch as outcomes:
                    async for outcome in outcomes:
                        self.received.append(outcome.relay_token)
                        yield f"{outcome.request.secondary_client_id}\n"
            finally:
                self.received.extend(outcome.relay_token for outcome in batch.result.created)
                assert not batch.result.unknown

    @contextlib.contextmanager
    def handling(self):
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


@contextlib.asynccontextmanager
async def serve(service: Service):
    app = FastAPI()
    app.get("/one/{name}")(service.one)
    app.get("/many/{name}")(service.many)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    )
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


@pytest.mark.may_block
@pytest.mark.parametrize("path", ["one", "many"])
async def test_a_disconnect_loses_no_token(size, path):
    """A disconnect cancels the handler at a random moment, and each token in the ledger is received."""
    rng = random.Random(7)
    received: list[str] = []
    late: list[object] = []
    count = size(5, 100)
    async with (
        Simulator(reports=["report"], faults=[Fault(latency=0.03, when="after")]) as plaid,
        RelayClient(
            OWNER,
            base_url=plaid.url,
            retry=QUICK,
            on_late_outcome=late.append,
        ) as client,
    ):
        service = Service(client, "report", received)
        async with serve(service) as port:
            for number in range(count):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET /{path}/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                request_count = len(plaid.requests)
                while len(plaid.requests) == request_count:
                    await asyncio.sleep(0.001)
                if path == "many":
                    await reader.readline()
                await asyncio.sleep(rng.uniform(0, 0.03))
                writer.transport.abort()
                while service.active:
                    await asyncio.sleep(0.001)
        received += [outcome.relay_token for outcome in late]
        assert sorted(received) == sorted(entry["relay_token"] for entry in plaid.ledger)
    if path == "one":
        assert len(late) > count / 2
    else:
        assert len(plaid.ledger) < count * PARTNERS
