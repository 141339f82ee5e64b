"""A server that responds to requests for the list of sent webhooks with given pages."""

from __future__ import annotations

import contextlib
import json

from aiohttp import web
from canaries import CREDENTIALS
from support import QUICK

from plaid_relay_async import RelayClient

LIST = "/beta/webhook_events/list"
EXPIRED = {"error_type": "INVALID_INPUT", "error_code": "WEBHOOK_EVENTS_CURSOR_EXPIRED"}
UNAVAILABLE = {"error_type": "INVALID_REQUEST", "error_code": "NOT_FOUND"}


def event_of(number=1, **changes):
    """Return a webhook as Plaid lists it."""
    return {
        "webhook_message_id": f"message-{number}",
        "webhook_type": "ASSETS",
        "webhook_code": "PRODUCT_READY",
        "item_id": None,
        "sent_time": "2026-11-30T12:00:00.125Z",
        "payload": {"webhook_type": "ASSETS", "canary": "canary-of-a-person", "number": number},
        "destination_url": "https://lender.example/relay/canary-pair",
        "delivery_status": "DELIVERED",
        "last_http_status_code": 200,
        "attempt_count": 1,
        "last_attempt_time": "2026-11-30T12:00:00.25Z",
        **changes,
    }


def page_of(*events, cursor, has_more=False):
    """Return a page of the list."""
    return {"webhook_events": events, "has_more": has_more, "next_cursor": cursor, "request_id": "r"}


@contextlib.asynccontextmanager
async def listing(*responses):
    """Yield a client of a server that sends these responses in order, and the bodies of its requests."""
    requests, remaining = [], iter(responses)

    async def respond(request: web.Request) -> web.Response:
        assert request.path == LIST
        requests.append(await request.json())
        response = next(remaining)
        status = 400 if "error_code" in response else 200
        return web.json_response(response, status=status, dumps=json.dumps)

    app = web.Application()
    app.router.add_post(LIST, respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with RelayClient(CREDENTIALS, base_url=url, retry=QUICK) as client:
            yield client, requests
    finally:
        await runner.cleanup()
    assert next(remaining, None) is None, "a response wasn't requested"
