"""A receiver of webhooks on a free port."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from attrs import define, field, frozen


@frozen
class Received:
    """A webhook that a receiver has received, and the simulator's time at that moment."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["webhook_code"]

    @property
    def claims(self) -> Any:
        return json.loads(self._part(1))

    @property
    def key_id(self) -> str:
        return json.loads(self._part(0))["kid"]

    def _part(self, index: int) -> bytes:
        part = self.headers["Plaid-Verification"].split(".")[index]
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


async def respond_200() -> web.Response:
    return web.Response()


@define
class Receiver:
    """A server that records webhooks and responds as `respond` says."""

    clock: Callable[[], float]
    respond: Callable[[], Awaitable[web.StreamResponse]] = respond_200
    received: list[Received] = field(factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(Received(request.path, request.headers, body, self.clock()))
        return await self.respond()

    def respond_with(self, *responses: tuple[int, Mapping[str, str]]) -> None:
        """Respond with these statuses and headers, and then with 200."""
        rest = iter(responses)

        async def respond() -> web.Response:
            status, headers = next(rest, (200, {}))
            return web.Response(status=status, headers=headers)

        self.respond = respond

    @property
    def codes(self) -> list[str]:
        return [received.code for received in self.received]


@asynccontextmanager
async def running_receiver(clock: Callable[[], float]) -> AsyncIterator[Receiver]:
    receiver = Receiver(clock)
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/plaid"
        yield receiver
    finally:
        await runner.cleanup()
