"""A TCP proxy between client and simulator that injects faults, down to the exact byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from attrs import frozen
from tcp_proxy import TcpProxy

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


class FaultProxy(TcpProxy):
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
        super().__init__(ssl)
        self.attempts = 0
        self._upstream = upstream
        self._choose = choose

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
