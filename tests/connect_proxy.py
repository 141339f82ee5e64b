"""An HTTP proxy that tunnels every CONNECT request to one server, or rejects it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import trustme
from servers import echoing
from tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "canary-of-the-proxy"


class ConnectProxy(TcpProxy):
    """A proxy on a free port of 127.0.0.1 that answers CONNECT requests.

    Args:
        port: the port on 127.0.0.1 that every tunnel leads to, whatever host the client asks for.
        status: the status of every response; the proxy opens a tunnel only with 200.
        tls: the server's TLS context if clients connect to the proxy over TLS.

    Attributes:
        heads: the request heads received.
    """

    def __init__(self, port: int, status: int = 200, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
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


@contextlib.asynccontextmanager
async def server_behind_proxy(
    status: int = 200, *, tls: bool = False
) -> AsyncIterator[tuple[ConnectProxy, str, ssl.SSLContext, list]]:
    """Run a server for plaid.example behind a proxy; yield the proxy, its URL, a context that trusts both, and requests."""
    authority, ours = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(ours)
    theirs, proxies = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert("plaid.example").configure_cert(theirs)
    authority.issue_cert("127.0.0.1").configure_cert(proxies)
    async with echoing(theirs) as (url, received, _):
        async with ConnectProxy(int(url.rpartition(":")[2]), status, proxies if tls else None) as proxy:
            yield proxy, f"{'https' if tls else 'http'}://me:{SECRET}@127.0.0.1:{proxy.port}", ours, received
