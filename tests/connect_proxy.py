"""An HTTP proxy that tunnels every CONNECT request to one server, or rejects it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tcp_proxy import TcpProxy

if TYPE_CHECKING:
    import ssl as tls


class ConnectProxy(TcpProxy):
    """A proxy on a free port of 127.0.0.1 that answers CONNECT requests.

    Args:
        port: the port on 127.0.0.1 that every tunnel leads to, whatever host the client asks for.
        status: the status of every response; the proxy opens a tunnel only with 200.
        ssl: the server's TLS context if clients connect to the proxy over TLS.

    Attributes:
        heads: the request heads received.
    """

    def __init__(self, port: int, status: int = 200, ssl: tls.SSLContext | None = None) -> None:
        super().__init__(ssl)
        self.heads: list[bytes] = []
        self._server_port = port
        self._status = status

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: 0\r\n\r\n" % self._status)
        if self._status == 200:
            await self._tunnel(reader, writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        with contextlib.closing(server_writer):
            directions = [
                asyncio.ensure_future(_copy(reader, server_writer)),
                asyncio.ensure_future(_copy(server_reader, writer)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in directions:
                    task.cancel()
                await asyncio.gather(*directions, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
