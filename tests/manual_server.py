"""A server that sends a response only when the test says so: the test then knows what the client has received."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import ssl
from typing import TYPE_CHECKING, Any

import trustme
from attrs import Factory, define

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.batch import Batch


def token_for(partner: str) -> str:
    return f"token-of-{partner}"


def response_for(partner: str, status: bytes = b"200 OK") -> bytes:
    body = json.dumps({"relay_token": token_for(partner), "request_id": "q"}).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@define(eq=False)
class ReceivedRequest:
    """A request that has reached the server.

    Attributes:
        responded_at: the loop's time at which the response was written, so that it was in the client's socket.
        client_gone: whether the client had closed the connection by then.
        reset_by_client: whether the client closed the connection with unread bytes; `None` while it is open.
    """

    partner: str
    writer: asyncio.StreamWriter
    responded_at: float | None = None
    client_gone: bool = False
    reset_by_client: bool | None = None

    def respond(self, data: bytes | None = None) -> None:
        self.client_gone = self.writer.is_closing() or self._is_readable()
        if not self.client_gone:
            # asyncio writes to the socket immediately if it can, and the loopback device delivers immediately.
            self.writer.write(response_for(self.partner) if data is None else data)
        self.responded_at = asyncio.get_running_loop().time()

    def _is_readable(self) -> bool:
        # The client sends nothing before it has a response, so this can only be the end of the connection.
        return bool(select.select([self.writer.get_extra_info("socket")], [], [], 0)[0])


@define(eq=False)
class ManualServer:
    """The server; while `holds_responses` is false, it responds immediately."""

    url: str = ""
    holds_responses: bool = True
    requests: list[ReceivedRequest] = Factory(list)
    _arrived: asyncio.Event = Factory(asyncio.Event)

    async def wait_for_requests(self, count: int) -> list[ReceivedRequest]:
        """Wait until `count` requests have been received, and return them."""
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request: ReceivedRequest | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                request = ReceivedRequest(body["secondary_client_id"], writer)
                if self.holds_responses:
                    self.requests.append(request)
                    self._arrived.set()
                else:
                    request.respond()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError) as error:
            if request is not None:
                request.reset_by_client = not isinstance(error, asyncio.IncompleteReadError)
        finally:
            writer.close()


AUTHORITY = trustme.CA()


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server and of a client that trusts it."""
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(server)
    AUTHORITY.configure_trust(client)
    return server, client


@contextlib.asynccontextmanager
async def manual_server(*, tls: bool) -> AsyncIterator[tuple[ManualServer, dict[str, Any]]]:
    """Run the server; yield it and the arguments of a client that connects to it."""
    server_context, client_context = tls_contexts() if tls else (None, None)
    manual = ManualServer()
    server = await asyncio.start_server(manual.serve, "127.0.0.1", 0, ssl=server_context)
    manual.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield manual, {"base_url": manual.url, "ssl": client_context}
    finally:
        server.close()
        for request in manual.requests:
            # Python 3.11.2 raises AttributeError if the TLS connection is closed already.
            with contextlib.suppress(AttributeError):
                request.writer.transport.abort()
        await asyncio.sleep(0.01)


def end_drain(batch: Batch[Any, Any]) -> None:
    """Cancel a batch's calls in flight, as the end of its drain does."""
    assert batch.progress.requests_read
    batch.abandon()
