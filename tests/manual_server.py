"""A server that holds its responses back until the test writes them, so that it is known what has arrived."""

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
        answered: the loop's time at which its response was written, and so lay in the client's socket.
        missed: whether the client had closed the connection by then.
        reset: whether the client closed the connection with unread bytes; `None` while it is open.
    """

    partner: str
    writer: asyncio.StreamWriter
    responded_at: float | None = None
    client_gone: bool = False
    reset_by_client: bool | None = None

    def respond(self, data: bytes | None = None) -> None:
        self.client_gone = self.writer.is_closing() or self._is_readable()
        if not self.client_gone:
            # asyncio hands to the socket what it can right here, and the loopback device delivers immediately.
            self.writer.write(response_for(self.partner) if data is None else data)
        self.responded_at = asyncio.get_running_loop().time()

    def _is_readable(self) -> bool:
        # The client sends nothing before its response, so this can only be the end of the connection.
        return bool(select.select([self.writer.get_extra_info("socket")], [], [], 0)[0])


@define(eq=False)
class ManualServer:
    """The server; while `holds` is false, it answers immediately."""

    url: str = ""
    holds_responses: bool = True
    requests: list[ReceivedRequest] = Factory(list)
    _arrived: asyncio.Event = Factory(asyncio.Event)

    async def wait_for_requests(self, count: int) -> list[ReceivedRequest]:
        """Wait for the requests that are held."""
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
                sent = json.loads(await reader.readexactly(length))
                request = ReceivedRequest(sent["secondary_client_id"], writer)
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
    """TLS contexts of a server and of a client that trusts it."""
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(server)
    AUTHORITY.configure_trust(client)
    return server, client


@contextlib.asynccontextmanager
async def manual_server(*, tls: bool) -> AsyncIterator[tuple[ManualServer, dict[str, Any]]]:
    """Run such a server; yields it and what a client has to be created with."""
    ours, theirs = tls_contexts() if tls else (None, None)
    held = ManualServer()
    server = await asyncio.start_server(held.serve, "127.0.0.1", 0, ssl=ours)
    held.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield held, {"base_url": held.url, "ssl": theirs}
    finally:
        server.close()
        for request in held.requests:
            request.writer.transport.abort()
        await asyncio.sleep(0.01)


def end_drain(batch: Batch[Any]) -> None:
    """Cancel a batch's calls in flight, as the end of its drain does."""
    assert batch._runner is not None
    batch.abandon()
