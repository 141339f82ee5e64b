"""The handler of an aiohttp server that passes webhooks to a receiver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from plaid_relay_async.webhooks.errors import NotStoredReason, WebhookNotStoredError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.webhooks.receiver import WebhookReceiver


def aiohttp_handler(receiver: WebhookReceiver) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler for all methods, which responds to webhooks.

    .. code-block:: python

        app.router.add_route("*", "/plaid/{path:.*}", aiohttp_handler(receiver))

    Args:
        receiver: verifies and stores the webhooks. Its client and inbox must be open when a webhook arrives.
    """

    async def handle(request: web.Request) -> web.Response:
        async def read_chunk() -> bytes:
            try:
                return await request.content.readany()
            except (OSError, web.RequestPayloadError):
                raise WebhookNotStoredError.of(NotStoredReason.BODY_INCOMPLETE) from None

        result = await receiver.respond(request.method, request.path, request.headers.items(), read_chunk)
        response = web.Response(status=result.status, headers=result.headers)
        if result.close:
            response.force_close()
        return response

    return handle
