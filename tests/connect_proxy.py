"""An HTTP proxy that tunnels to one server, and refuses when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl as tls


class ConnectProxy:
    """Listens on a free port of 127.0.0.1, and answers CONNECT.

    Args:
        port: where every tunnel leads, whatever host was asked for.
        status: of its answers.
        ssl: the context with which it speaks TLS, if it does.

    Attributes:
        heads: the requests that it received.
    """

    def __init__(self, port: int, status: int = 200, ssl: tls.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self._to = port
        self._status = status
        self._ssl = ssl
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task, writer in self._links.items():
            task.cancel()  # perhaps before it has begun
            writer.close()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links[asyncio.ensure_future(self._serve(reader, writer))] = writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: 0\r\n\r\n" % self._status)
            if self._status == 200:
                await self._tunnel(reader, writer)
        writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server, from_server = await asyncio.open_connection("127.0.0.1", self._to)
        with contextlib.closing(from_server):
            ways = [
                asyncio.ensure_future(_copy(reader, from_server)),
                asyncio.ensure_future(_copy(to_server, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
