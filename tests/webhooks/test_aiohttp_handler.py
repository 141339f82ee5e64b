"""The handler for aiohttp, on a real server, with requests built byte by byte."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from processes import wait_until_async
from raw_http import build_head, build_request, exchange, raw_connection
from webhook_receiving import ready, serving_with_aiohttp, signed, stored

from plaid_relay_async.simulator import sign_webhook
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter, WebhookState

BODY = ready()


@pytest.fixture
async def url(client, inbox, reasons):
    receiver = WebhookReceiver(
        client.webhooks, inbox, max_body_bytes=1000, time_limit=0.5, on_refused=reasons.append
    )
    async with serving_with_aiohttp(receiver) as address:
        yield address


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

    async with (
        WebhookReceiver(client.webhooks, inbox, router) as receiver,
        serving_with_aiohttp(receiver) as address,
    ):
        assert (await exchange(address, signed(BODY)))[0].status == 200
        assert handled == []
        responded.set()
        await wait_until_async(lambda: handled)
    (webhook,) = await stored(inbox)
    assert (handled, webhook.state) == ([BODY], WebhookState.DONE)


async def test_a_burst_beyond_the_limit(client, inbox):
    """With many concurrent webhooks, each is stored or refused with 429 and Retry-After; none is lost."""
    receiver = WebhookReceiver(client.webhooks, inbox, max_pending=5)
    inbox.delays["add"] = 0.05
    async with serving_with_aiohttp(receiver) as address:
        responses = await asyncio.gather(
            *(exchange(address, signed(ready(str(number)))) for number in range(30))
        )
    statuses = [response.status for (response,) in responses]
    assert {*statuses} == {200, 429}
    assert len(await stored(inbox)) == statuses.count(200)
    assert all(response.headers["Retry-After"] == "10" for (response,) in responses if response.status == 429)
