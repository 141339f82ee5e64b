"""A process that receives webhooks, with aiohttp or with FastAPI under uvicorn, for tests that kill it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import aiosqlite  # noqa: F401  # each service has it loaded
import psycopg  # noqa: F401
import uvicorn
from aiohttp import web
from attrs import asdict, define, frozen
from canaries import CREDENTIALS
from fastapi import FastAPI
from processes import running_process_async

from plaid_relay_async import InboxError, RelayClient
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.webhooks import Delivery, WebhookEvent, WebhookReceiver, WebhookRouter
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler
from plaid_relay_async.webhooks.asgi import asgi_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SAME = "same"
"""The label of webhooks that all have the same content."""
DEAD_LETTER, SLOW = 7, 13  # the remainders of the numbers of webhooks whose handlers always fail, or are slow
_PERIOD = 50
_FAILURE_RATE, _SLOW_RESPONSE_RATE = 0.1, 0.002
_SLOW_RESPONSE = 10.5  # seconds; Plaid waits ten


def always_fails(label: object) -> bool:
    """Return whether the handler always fails for the webhook with a label, while handlers may fail."""
    return isinstance(label, int) and label % _PERIOD == DEAD_LETTER


@frozen
class Settings:
    """What a service is started with.

    Attributes:
        kind: `aiohttp` or `fastapi`.
        port: the port on 127.0.0.1.
        base_url: that of the simulator.
        inbox: the address of the inbox.
        records: the file to which runs of handlers are appended, as JSON lines.
        reasons: the file to which the reasons of refusals are appended, as `on_refused` is called with them.
        log: the file to which all loggers write, at DEBUG.
        failing: whether handlers and responses may fail.
    """

    kind: str
    port: int
    base_url: str
    inbox: str
    records: str
    reasons: str
    log: str
    failing: bool = True


@define(eq=False)
class Service:
    """A service in a process of its own, which can be killed and restarted on the same port.

    Attributes:
        settings: those of the next start.
        starts: how often it was started.
    """

    settings: Settings
    _parent: asyncio.subprocess.Process
    _pid: int | None = None
    starts: int = 0

    async def start(self) -> None:
        """Start the process, and wait until it listens."""
        self._pid = await self._exchange({"start": asdict(self.settings)})
        self.starts += 1
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.settings.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """Kill the process with SIGKILL.

        Raises:
            AssertionError: it has ended before.
        """
        status = await self._exchange({"kill": self._pid})
        assert status == -signal.SIGKILL, "the service has ended: see its log"

    async def _exchange(self, message: dict[str, Any]) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(message).encode() + b"\n")
        return int(await self._parent.stdout.readline())


@contextlib.asynccontextmanager
async def running_service(settings: Settings) -> AsyncIterator[Service]:
    """Run a service; it is forked from a process that has loaded all modules, so that it starts quickly."""
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    async with running_process_async(sys.executable, __file__, **pipes) as parent:
        service = Service(settings, parent)
        await service.start()
        try:
            yield service
        finally:
            await service.kill()


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a file of several processes; it is on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(settings: Settings, **values: object) -> None:
    append_line(settings.records, json.dumps(values))


def _build_router(settings: Settings) -> WebhookRouter:
    router = WebhookRouter()

    @router.default
    async def handle(delivery: Delivery[WebhookEvent]) -> None:
        label = json.loads(delivery.body).get("number", SAME)
        _record(settings, key=delivery.idempotency_key, label=label, attempt=delivery.attempt)
        await asyncio.sleep(random.uniform(0, 0.03))
        if not settings.failing:
            return
        if label != SAME and label % _PERIOD == SLOW and delivery.attempt == 1:
            await asyncio.sleep(3600)  # until the time limit of handlers
        if always_fails(label) or random.random() < _FAILURE_RATE:
            raise LookupError("the handler fails")

    return router


@contextlib.asynccontextmanager
async def _open_receiver(settings: Settings) -> AsyncIterator[WebhookReceiver]:
    class RecordingInbox(SQLInbox):
        """An inbox that records when a webhook was marked as done."""

        async def complete(self, lease: Any) -> bool:
            valid = await super().complete(lease)
            if valid:
                _record(settings, done=lease.webhook.id)
            return valid

    inbox = RecordingInbox(settings.inbox, lease_seconds=2.0)
    await _open(inbox)
    async with (
        RelayClient(CREDENTIALS, base_url=settings.base_url) as client,
        WebhookReceiver(
            client.webhooks,
            inbox,
            _build_router(settings),
            on_refused=lambda reason: append_line(settings.reasons, reason),
            max_attempts=8,
            backoff=0.05,
            max_backoff=0.3,
            handler_timeout=0.5,
        ) as receiver,
    ):
        yield receiver


async def _open(inbox: SQLInbox) -> None:
    """Open an inbox, as soon as its database is available."""
    while True:
        try:
            await inbox.open()
        except InboxError:
            logging.getLogger(__name__).exception("the inbox isn't available")
            await asyncio.sleep(0.1)
        else:
            return


async def _delay_response(settings: Settings) -> None:
    if settings.failing and random.random() < _SLOW_RESPONSE_RATE:
        await asyncio.sleep(_SLOW_RESPONSE)


async def _serve_aiohttp(settings: Settings) -> None:
    async with _open_receiver(settings) as receiver:
        handler = aiohttp_handler(receiver)

        async def handle(request: web.Request) -> web.Response:
            response = await handler(request)
            await _delay_response(settings)
            return response

        app = web.Application()
        app.router.add_route("*", "/plaid/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", settings.port).start()
        await asyncio.Event().wait()


async def _serve_fastapi(settings: Settings) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncIterator[None]:
        async with _open_receiver(settings) as receiver:
            inner = asgi_app(receiver)

            async def app(scope: Any, receive: Any, send: Any) -> None:
                async def send_later(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        await _delay_response(settings)
                    await send(message)

                await inner(scope, receive, send_later)

            service.mount("/plaid", app)
            yield

    config = uvicorn.Config(
        FastAPI(lifespan=lifespan),
        host="127.0.0.1",
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
    )
    await uvicorn.Server(config).serve()


def _respond_to_lines() -> None:
    """Respond to each line of the standard input: start a service, or kill one."""
    for line in sys.stdin:
        match json.loads(line):
            case {"start": settings}:
                response = os.fork() or _run(Settings(**settings))
            case {"kill": pid}:
                os.kill(pid, signal.SIGKILL)  # until it is waited for, no other process has this ID
                response = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{response}\n")
        sys.stdout.flush()


def _run(settings: Settings) -> NoReturn:
    """Run a service in this process until it is killed; its output is in the log."""
    log = os.open(settings.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
    random.seed()
    try:
        asyncio.run({"aiohttp": _serve_aiohttp, "fastapi": _serve_fastapi}[settings.kind](settings))
    except BaseException:
        logging.getLogger(__name__).exception("the service has ended")
    finally:
        os._exit(1)


if __name__ == "__main__":
    _respond_to_lines()
