"""The ASGI application, alone and mounted, under a real server."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from canaries import CREDENTIALS
from fastapi import FastAPI
from processes import wait_until_async
from raw_http import exchange
from starlette.applications import Starlette
from starlette.routing import Mount
from webhook_receiving import PAIR, ready, serving_with_uvicorn, signed, stored

from plaid_relay_async import RelayClient
from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter, WebhookState
from plaid_relay_async.webhooks.asgi import asgi_app

BODY = ready()


@pytest.fixture
def receiver(client, inbox, reasons):
    return WebhookReceiver(
        client.webhooks, inbox, max_body_bytes=1000, time_limit=0.5, on_refused=reasons.append
    )


async def call(app, scope, *messages):
    """Call an application with messages, and return what it sends."""
    incoming, sent = iter(messages), []

    async def receive():
        return next(incoming)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_http_2_has_no_connection_header(receiver):
    """The header `Connection`, which HTTP/2 forbids, is sent with HTTP/1 only."""
    for version, expected in (("2", False), ("1.1", True), (None, True)):
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        scope |= {} if version is None else {"http_version": version}
        start, end = await call(asgi_app(receiver), scope, {"type": "http.request", "body": b" " * 1001})
        assert start["status"] == 413
        assert ((b"connection", b"close") in start["headers"]) is expected
        assert end == {"type": "http.response.body", "body": b""}


async def test_empty_messages(receiver, inbox):
    """A message without a body isn't the end, unless it says so."""
    headers = [(name.lower().encode(), value.encode()) for name, value in sign_webhook(BODY).items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    messages = [
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": BODY, "more_body": True},
        {"type": "http.request"},
    ]
    start, _ = await call(asgi_app(receiver), scope, *messages)
    assert start["status"] == 200


async def test_a_websocket_is_closed(receiver):
    """A WebSocket is rejected, and a type that ASGI may add later is ignored."""
    app = asgi_app(receiver)
    sent = await call(app, {"type": "websocket"}, {"type": "websocket.connect"})
    assert sent == [{"type": "websocket.close"}]
    assert await call(app, {"type": "another"}) == []


# ------------------------------------------------------------------------------------------ lifespan


async def test_alone_it_opens_what_it_needs(plaid, inbox):
    """Under a server, the application opens the client and the receiver, and closes them at the end."""
    router, handled = WebhookRouter(), []

    @router.default
    async def handle(delivery):
        await asyncio.sleep(0.05)
        handled.append(delivery.body)

    client = RelayClient(CREDENTIALS, base_url=plaid.url)
    receiver = WebhookReceiver(client.webhooks, inbox, router)
    async with serving_with_uvicorn(asgi_app(receiver, client)) as url:
        assert (await exchange(url, signed(BODY)))[0].status == 200
    (webhook,) = await stored(inbox)
    assert (handled, webhook.state) == ([BODY], WebhookState.DONE)


class Resource:
    """A resource that can't be opened, or can't be closed."""

    def __init__(self, *, opens: bool) -> None:
        self.opens = opens

    async def __aenter__(self):
        if not self.opens:
            raise OSError("canary-password")

    async def __aexit__(self, *_):
        raise OSError("canary-password")


@pytest.mark.parametrize("opens", [False, True])
async def test_a_failing_lifespan(receiver, opens):
    """What fails at the start or the end is reported to the server, by its class only."""
    sent = []

    async def receive():
        return {}

    async def send(message):
        sent.append(message)

    with pytest.raises(OSError, match="canary"):
        await asgi_app(receiver, Resource(opens=opens))({"type": "lifespan"}, receive, send)
    stage = "shutdown" if opens else "startup"
    assert sent[-1] == {"type": f"lifespan.{stage}.failed", "message": "OSError"}


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_mounted(client, inbox, framework):
    """Mounted in another application, it is open as long as that application says so."""
    router, handled = WebhookRouter(), []

    @router.default
    async def handle(delivery):
        handled.append(delivery.body)

    receiver = WebhookReceiver(client.webhooks, inbox, router)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with receiver:
            yield

    app = framework(lifespan=lifespan, routes=[Mount("/plaid", asgi_app(receiver))])
    async with serving_with_uvicorn(app, root_path="/proxy") as url:
        assert (await exchange(url, signed(BODY, path=f"/plaid/{PAIR}")))[0].status == 200
        assert (await exchange(url, signed(BODY, path="/other")))[0].status == 404
        await wait_until_async(lambda: handled)
    (webhook,) = await stored(inbox)
    assert (webhook.pair, webhook.state) == (PAIR, WebhookState.DONE)
