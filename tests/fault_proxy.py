"""A TCP proxy between client and simulator that injects faults, down to the exact byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Self

from attrs import frozen

if TYPE_CHECKING:
    import ssl as tls


def complete_response(_request: bytes, response: bytes) -> Iterable[bytes]:
    """Return the simulator's response unchanged."""
    return [response]


def no_response(_request: bytes, _response: bytes) -> Iterable[bytes]:
    """Return no bytes at all."""
    return []


@frozen
class WireFault:
    """What happens to one attempt.

    Attributes:
        executed: whether the proxy passes the request on to the simulator, which then executes it.
        response_pieces: a function that takes the request and the simulator's response, and returns the pieces to
            send to the client. The response is empty if the simulator didn't get the request.
        ending: what happens to the connection afterwards. A stall ends when the client closes the connection.
        pause: seconds between two pieces.
        reads_request: whether the proxy reads the whole request; if not, it reads only the first byte.
        declines: whether the response correctly says that the request was not executed.
    """

    executed: bool = True
    response_pieces: Callable[[bytes, bytes], Iterable[bytes]] = complete_response
    ending: Literal["keep", "close", "reset", "stall"] = "keep"
    pause: float = 0.0
    reads_request: bool = True
    declines: bool = False


PASS = WireFault()


class FaultProxy:
    """A proxy on a free port of 127.0.0.1.

    Args:
        upstream: the simulator's port.
        choose: a function that returns the fault of the next attempt.
        ssl: the server's TLS context if clients connect over TLS.

    Attributes:
        attempts: the number of attempts that reached the proxy: HTTP requests whose first byte it received.
    """

    def __init__(
        self, upstream: int, choose: Callable[[], WireFault], ssl: tls.SSLContext | None = None
    ) -> None:
        self.attempts = 0
        self._upstream = upstream
        self._choose = choose
        self._ssl = ssl
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection immediately, before the client's event loop can notice."""
        for writer in self._connections.values():
            writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            # These are the normal ends of a connection: the client closes it, or the test is over.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            del self._connections[task]
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # the client reads no more, and `close` would wait to flush
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
            while first := await reader.read(1):
                # Every request is a POST; a TLS handshake to a proxy without TLS starts with another byte.
                self.attempts += first == b"P"
                fault = self._choose()
                request = first + await read_message(reader) if fault.reads_request else b""
                response = b""
                if fault.executed:
                    upstream = upstream or await self._connect(stack)
                    upstream[1].write(request)
                    response = await read_message(upstream[0])
                await _send_pieces(writer, fault, request, response)
                if fault.ending != "keep":
                    await _finish(reader, writer, fault)
                    return

    async def _connect(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        stack.callback(writer.close)
        return reader, writer


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Read one HTTP message completely; a body must have a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


async def _send_pieces(
    writer: asyncio.StreamWriter, fault: WireFault, request: bytes, response: bytes
) -> None:
    for piece in fault.response_pieces(request, response):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(fault.pause)


async def _finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: WireFault) -> None:
    if fault.ending == "stall":
        await reader.read()
    elif fault.ending == "reset":
        # With SO_LINGER on and a time of zero, closing the socket sends RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
