"""The frame of a TCP proxy: it listens, and serves each connection in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl as tls


class TcpProxy(ABC):
    """A proxy on a free port of 127.0.0.1.

    Args:
        ssl: the server's TLS context if clients connect over TLS.

    Attributes:
        port: the port, once the proxy listens.
        accepted: the number of connections that clients have opened.
    """

    def __init__(self, ssl: tls.SSLContext | None = None) -> None:
        self.port = 0
        self.accepted = 0
        self._ssl = ssl
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop`, on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and close all connections."""
        self._server.close()
        for task, writer in self._connections.items():
            # A task that is cancelled before its first step never runs, so its connection is closed here.
            task.cancel()
            _close(writer)
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._connections.clear()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection immediately, before the client's event loop can notice."""
        for writer in self._connections.values():
            writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which is closed afterwards."""

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._serve_and_close(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve_and_close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # These are the normal ends of a connection: the client closes it, or the test is over.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            _close(writer)


def _close(writer: asyncio.StreamWriter) -> None:
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()  # the client reads no more, and `close` would wait to flush
    writer.close()
