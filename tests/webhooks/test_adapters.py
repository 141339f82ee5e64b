"""What the adapters for aiohttp and ASGI have in common, on real servers, with requests built byte by byte."""

from __future__ import annotations

import asyncio

import pytest
from processes import wait_until_async
from raw_http import build_head, build_request, encode_chunks, exchange, raw_connection
from webhook_receiving import PAIR, ready, serving_with_aiohttp, serving_with_uvicorn, signed, stored

from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver
from plaid_relay_async.webhooks.asgi import asgi_app

BODY = ready()


@pytest.fixture(params=["aiohttp", "asgi"])
async def url(request, client, inbox, reasons):
    receiver = WebhookReceiver(
        client.webhooks, inbox, max_body_bytes=1000, time_limit=0.5, on_refused=reasons.append
    )
    is_aiohttp = request.param == "aiohttp"
    server = serving_with_aiohttp(receiver) if is_aiohttp else serving_with_uvicorn(asgi_app(receiver))
    async with server as address:
        yield address


async def test_a_webhook_is_stored(url, inbox):
    """A signed webhook is answered with an empty 200, on any path, and its pair is stored."""
    for path in ("/plaid/", f"/plaid/x/{PAIR}", "/plaid/?query"):
        (response,) = await exchange(url, signed(BODY, path=path))
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
        (signed(BODY, method="PUT"), 405, "wrong_method"),
        (signed(BODY, method="GET"), 405, "wrong_method"),
        (signed(BODY, content_type="text/html"), 415, "wrong_content_type"),
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
    """A chunked body is refused at the limit, before its end, and the connection is closed."""
    head = build_head("POST /plaid/ HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    async with raw_connection(url) as connection:
        await connection.send(head, *[b"100\r\n" + b" " * 256 + b"\r\n"] * 5, pause=0.005)
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
