"""An ASGI application that passes webhooks to a receiver; it can be mounted in Starlette and FastAPI."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from plaid_relay_async.webhooks.errors import NotStoredReason, WebhookNotStoredError

if TYPE_CHECKING:
    from plaid_relay_async.webhooks.receiver import WebhookReceiver

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def asgi_app(receiver: WebhookReceiver, *resources: contextlib.AbstractAsyncContextManager[Any]) -> ASGIApp:
    """Return an ASGI application that responds to webhooks, on any path.

    A server that runs it alone enters `resources` and then the receiver, and leaves them at the end. An
    application in which it is mounted has to do that in its own lifespan, because ASGI passes the lifespan
    to the outer application only.

    Args:
        receiver: verifies and stores the webhooks.
        *resources: what the receiver needs, such as the client and the inbox.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await _handle_request(receiver, scope, receive, send)
            case "lifespan":
                await _run_lifespan([*resources, receiver], receive, send)
            case "websocket":
                await send({"type": "websocket.close"})

    return app


async def _handle_request(receiver: WebhookReceiver, scope: Scope, receive: Receive, send: Send) -> None:
    body = _Body(receive)
    response = await receiver.respond(scope["method"], scope["path"], scope["headers"], body.read_chunk)
    headers = [(b"content-length", b"0")]
    headers += [(name.encode(), value.encode()) for name, value in response.headers.items()]
    if response.close and scope.get("http_version", "1.1").startswith("1"):  # HTTP/2 has no such header
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class _Body:
    """The body of a request, which arrives in messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def read_chunk(self) -> bytes:
        """Return the next part that isn't empty; empty bytes are the end."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise WebhookNotStoredError.of(NotStoredReason.BODY_INCOMPLETE)
            self._more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                return bytes(chunk)
        return b""


async def _run_lifespan(
    managers: list[contextlib.AbstractAsyncContextManager[Any]], receive: Receive, send: Send
) -> None:
    """Enter the managers when the server starts, and leave them when it stops."""
    await receive()
    stage = "startup"
    try:
        async with contextlib.AsyncExitStack() as stack:
            for manager in managers:
                await stack.enter_async_context(manager)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            stage = "shutdown"
    except Exception as error:
        # The server logs the message, so it has no text of the exception, which may contain a secret.
        await send({"type": f"lifespan.{stage}.failed", "message": type(error).__name__})
        raise
    await send({"type": "lifespan.shutdown.complete"})
