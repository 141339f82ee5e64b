"""The ASGI application, alone and mounted, under a real server."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvicorn
from canaries import CREDENTIALS
from fastapi import FastAPI
from processes import wait_until_async
from raw_http import build_head, build_request, encode_chunks, exchange, raw_connection
from starlette.applications import Starlette
from starlette.routing import Mount
from webhook_receiving import FaultyInbox, ready, stored

from plaid_relay_async import RelayClient
from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter, WebhookState
from plaid_relay_async.webhooks.asgi import asgi_app

PAIR = "0123456789abcdef" * 2
BODY = ready()


@contextlib.asynccontextmanager
async def serving(app, **options):
    """Run uvicorn, and yield its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, **{"lifespan": "on", **options})
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await wait_until_async(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def signed(body: bytes = BODY, path: str = "/plaid/", **options) -> bytes:
    token = sign_webhook(body)["Plaid-Verification"]
    return build_request(path, body, f"Plaid-Verification: {token}", **options)


@pytest.fixture
async def client(plaid):
    async with RelayClient(CREDENTIALS, base_url=plaid.url) as relay_client:
        yield relay_client


@pytest.fixture
def inbox():
    return FaultyInbox()


@pytest.fixture
def reasons():
    return []


@pytest.fixture
def receiver(client, inbox, reasons):
    return WebhookReceiver(
        client.webhooks, inbox, max_body_bytes=1000, time_limit=0.5, on_refused=reasons.append
    )


@pytest.fixture
async def url(receiver):
    async with serving(asgi_app(receiver)) as address:
        yield address


async def test_a_webhook_is_stored(url, inbox):
    """A signed webhook is answered with an empty 200, on any path, and its pair is stored."""
    for path in ("/", f"/plaid/{PAIR}"):
        (response,) = await exchange(url, signed(path=path))
        assert (response.status, response.body) == (200, b"")
    assert [each.pair for each in await stored(inbox)] == [None, PAIR]


async def test_a_chunked_webhook(url, inbox):
    """A body may arrive in several messages."""
    token = sign_webhook(BODY)["Plaid-Verification"]
    head = build_head(
        "POST /plaid/ HTTP/1.1",
        *("Host: x", "Transfer-Encoding: chunked", f"Plaid-Verification: {token}", "Connection: close"),
    )
    (response,) = await exchange(url, head, encode_chunks(BODY[:7], BODY[7:]), pause=0.05)
    assert response.status == 200
    assert (await stored(inbox))[0].body == BODY


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (build_request("/plaid/", BODY), 400, "no_header"),
        (signed(method="DELETE"), 405, "wrong_method"),
        (signed(content_type="text/html"), 415, "wrong_content_type"),
        (signed(ready(padding="x" * 1000)), 413, "body_too_large"),
    ],
)
async def test_a_refusal_has_an_empty_body(url, inbox, reasons, request_, status, reason):
    """A request that isn't a webhook gets its status, an empty body, and nothing about the reason."""
    (response,) = await exchange(url, request_)
    assert (response.status, response.body) == (status, b"")
    assert reason not in str(response.headers)
    assert response.headers.get("Allow") == ("POST" if status == 405 else None)
    assert reasons == [reason]


async def test_an_endless_body_is_cut_off(url, reasons):
    """A chunked body without an end is refused at the limit, and the connection is closed."""
    head = build_head("POST /plaid/ HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    (response,) = await exchange(url, head, *[b"100\r\n" + b" " * 256 + b"\r\n"] * 50, pause=0.005)
    assert response.status == 413
    assert reasons == ["body_too_large"]


async def test_a_slow_body_is_cut_off(url, reasons):
    """A body that doesn't arrive in time is refused, and the connection is closed."""
    async with raw_connection(url) as connection:
        await connection.send(build_head("POST /plaid/ HTTP/1.1", "Host: x", "Content-Length: 10"), b"123")
        assert b" 408 " in await connection.read_to_end(5)
    assert reasons == ["body_too_slow"]


async def test_a_connection_that_is_lost(url, inbox, reasons):
    """A request whose connection is lost before its end isn't stored."""
    async with raw_connection(url) as connection:
        await connection.send(build_head("POST /plaid/ HTTP/1.1", "Host: x", "Content-Length: 10"), b"123")
        await asyncio.sleep(0.05)
    await wait_until_async(lambda: reasons)
    assert reasons == ["body_incomplete"]
    assert await stored(inbox) == []


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
    async with serving(asgi_app(receiver, client)) as url:
        assert (await exchange(url, signed()))[0].status == 200
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
    async with serving(app, root_path="/proxy") as url:
        assert (await exchange(url, signed(path=f"/plaid/{PAIR}")))[0].status == 200
        assert (await exchange(url, signed(path="/other")))[0].status == 404
        await wait_until_async(lambda: handled)
    (webhook,) = await stored(inbox)
    assert (webhook.pair, webhook.state) == (PAIR, WebhookState.DONE)
