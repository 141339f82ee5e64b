"""The handler for aiohttp, on a real server, with requests built byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip

import pytest
from aiohttp import web
from canaries import CREDENTIALS
from processes import wait_until_async
from raw_http import build_head, build_request, encode_chunks, exchange, raw_connection
from webhook_receiving import FaultyInbox, ready, stored

from plaid_relay_async import RelayClient
from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter, WebhookState
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler

PAIR = "0123456789abcdef" * 2
BODY = ready()


@contextlib.asynccontextmanager
async def serving(receiver):
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
async def url(client, inbox, reasons):
    receiver = WebhookReceiver(
        client.webhooks, inbox, max_body_bytes=1000, time_limit=0.5, on_refused=reasons.append
    )
    async with serving(receiver) as address:
        yield address


def signed(body: bytes = BODY, path: str = "/plaid/", **options) -> bytes:
    token = sign_webhook(body)["Plaid-Verification"]
    return build_request(path, body, f"Plaid-Verification: {token}", **options)


async def test_a_webhook_is_stored(url, inbox):
    """A signed webhook is answered with an empty 200, on any path, and its pair is stored."""
    for path in ("/plaid/", f"/plaid/x/{PAIR}", "/plaid/?query"):
        (response,) = await exchange(url, signed(path=path))
        assert (response.status, response.body) == (200, b"")
    assert [each.pair for each in await stored(inbox)] == [None, PAIR]


async def test_a_chunked_webhook(url, inbox):
    """A body may arrive in chunks."""
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
        (signed(method="PUT"), 405, "wrong_method"),
        (signed(method="GET"), 405, "wrong_method"),
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
    assert await stored(inbox) == []


async def test_an_endless_body_is_cut_off(url, reasons):
    """A chunked body without an end is refused at the limit, and the connection is closed."""
    head = build_head("POST /plaid/ HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    async with raw_connection(url) as connection:
        await connection.send(head, *[b"100\r\n" + b" " * 256 + b"\r\n"] * 50, pause=0.005)
        response = await connection.read_response(5)
    assert (response.status, response.headers["Connection"]) == (413, "close")
    assert reasons == ["body_too_large"]


async def test_a_slow_body_is_cut_off(url, reasons):
    """A body that doesn't arrive in time is refused, and the connection is closed."""
    async with raw_connection(url) as connection:
        await connection.send(build_head("POST /plaid/ HTTP/1.1", "Host: x", "Content-Length: 10"), b"123")
        response = await connection.read_response(5)
    assert (response.status, response.headers["Connection"]) == (408, "close")
    assert reasons == ["body_too_slow"]


async def test_a_connection_that_is_lost(url, inbox, reasons):
    """A request whose connection is lost before its end isn't stored."""
    async with raw_connection(url) as connection:
        await connection.send(build_head("POST /plaid/ HTTP/1.1", "Host: x", "Content-Length: 10"), b"123")
        await asyncio.sleep(0.05)
    await wait_until_async(lambda: reasons)
    assert reasons == ["body_incomplete"]
    assert await stored(inbox) == []


@pytest.mark.parametrize(
    ("header", "body"),
    [("Transfer-Encoding: chunked", b"5\r\nabcXYZ\r\n"), ("Content-Encoding: gzip", b"not compressed")],
)
async def test_a_malformed_body(url, reasons, header, body):
    """A body that HTTP doesn't allow is refused, by aiohttp or by the receiver."""
    length = [] if "chunked" in header else [f"Content-Length: {len(body)}"]
    head = build_head("POST /plaid/ HTTP/1.1", "Host: x", "Connection: close", header, *length)
    async with raw_connection(url) as connection:
        await connection.send(head, body, pause=0.05)
        response = await connection.read_response(5)
    assert response.status in {400, 408}
    assert set(reasons) <= {"body_incomplete", "body_too_slow"}


async def test_a_compressed_body_is_bounded(url, inbox):
    """A compressed body is another one than was signed, and can't exceed the limit when decompressed."""
    for body, status in ((gzip.compress(BODY), 400), (gzip.compress(b" " * 10**7), 413)):
        token = sign_webhook(body)["Plaid-Verification"]
        request = build_request("/plaid/", body, f"Plaid-Verification: {token}", "Content-Encoding: gzip")
        assert (await exchange(url, request))[0].status == status
    assert await stored(inbox) == []


async def test_an_application_from_request_to_handler(plaid, client, inbox):
    """A webhook passes the server, the inbox and its handler, which runs after the response."""
    router, responded, handled = WebhookRouter(), asyncio.Event(), []

    @router.default
    async def handle(delivery):
        await responded.wait()
        handled.append(delivery.body)

    async with WebhookReceiver(client.webhooks, inbox, router) as receiver, serving(receiver) as address:
        assert (await exchange(address, signed()))[0].status == 200
        assert handled == []
        responded.set()
        await wait_until_async(lambda: handled)
    (webhook,) = await stored(inbox)
    assert (handled, webhook.state) == ([BODY], WebhookState.DONE)


async def test_a_burst_beyond_the_limit(client, inbox):
    """With many webhooks at once, each is stored or refused with 429 and Retry-After; none is lost."""
    receiver = WebhookReceiver(client.webhooks, inbox, max_pending=5)
    inbox.delays["add"] = 0.05
    async with serving(receiver) as address:
        responses = await asyncio.gather(
            *(exchange(address, signed(ready(str(number)))) for number in range(30))
        )
    statuses = [response.status for (response,) in responses]
    assert {*statuses} == {200, 429}
    assert len(await stored(inbox)) == statuses.count(200)
    assert all(response.headers["Retry-After"] == "10" for (response,) in responses if response.status == 429)
