"""A TCP proxy between client and simulator, which fails to the byte as it is told."""

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


def complete_response(_request: bytes, answer: bytes) -> Iterable[bytes]:
    """All of what the simulator said."""
    return [answer]


def no_response(_request: bytes, _answer: bytes) -> Iterable[bytes]:
    """Not a byte."""
    return []


@frozen
class WireFault:
    """What befalls one attempt.

    Attributes:
        acts: whether the request is passed on to the simulator, which then acts.
        says: gives the bytes for the client, piece by piece, from the request and the simulator's answer; that
            is empty where the simulator wasn't asked.
        then: what is done to the connection afterwards. A stall ends when the client hangs up.
        pause: seconds between two pieces.
        reads: whether the request is read; otherwise only its first byte is seen.
        refuses: whether it tells the client, and truly, that nothing was carried out.
    """

    acts: bool = True
    response_pieces: Callable[[bytes, bytes], Iterable[bytes]] = complete_response
    then: Literal["keep", "close", "reset", "stall"] = "keep"
    pause: float = 0.0
    reads: bool = True
    declines: bool = False


PASS = WireFault()


class FaultProxy:
    """Listens on a free port of 127.0.0.1.

    Args:
        upstream: the simulator's port.
        choose: gives the fault of the next attempt.
        ssl: the context with which it speaks TLS, if it does.

    Attributes:
        heard: how many attempts reached it: HTTP requests of which it saw the first byte.
    """

    def __init__(
        self, upstream: int, choose: Callable[[], WireFault], ssl: tls.SSLContext | None = None
    ) -> None:
        self.attempts = 0
        self._upstream = upstream
        self._choose = choose
        self._ssl = ssl
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection now, before the client's event loop can notice."""
        for writer in self._links.values():
            writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links[link] = writer
        try:
            # A client that hangs up, or is gone by now, ends its connection; so does the end of the test.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            del self._links[link]
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # nobody reads that any more
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
            while first := await reader.read(1):
                self.attempts += first == b"P"  # and not the first byte of a TLS handshake
                fault = self._choose()
                request = first + await read_message(reader) if fault.reads else b""
                answer = b""
                if fault.acts:
                    upstream = upstream or await self._connect(stack)
                    upstream[1].write(request)
                    answer = await read_message(upstream[0])
                await _send_pieces(writer, fault, request, answer)
                if fault.then != "keep":
                    await _finish(reader, writer, fault)
                    return

    async def _connect(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        stack.callback(writer.close)
        return reader, writer


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message to its last byte; a body has a Content-Length, here."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


async def _send_pieces(writer: asyncio.StreamWriter, fault: WireFault, request: bytes, answer: bytes) -> None:
    for piece in fault.response_pieces(request, answer):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(fault.pause)


async def _finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: WireFault) -> None:
    if fault.then == "stall":
        await reader.read()
    elif fault.then == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
