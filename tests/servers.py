"""Servers for one test: a TCP server that does what the test says, and an HTTP server that records requests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl


@contextlib.asynccontextmanager
async def serving(handle, scheme: str = "http"):
    """Run a bare TCP server; the test decides what it does with each connection."""
    connections = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()
        for writer in connections:
            writer.close()
        await server.wait_closed()


async def stay_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Read until the connection ends, without a response, not even to a TLS handshake."""
    await reader.read()


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    await reader.readexactly(length)


@contextlib.asynccontextmanager
async def echoing(tls: ssl.SSLContext | None = None):
    """Run a server that sets a cookie, records requests, and responds with the yielded status and headers."""
    requests = []
    settings = {"status": 200, "headers": {}}

    async def respond(request: web.Request) -> web.Response:
        requests.append((request.path_qs, dict(request.headers), await request.read()))
        response = web.json_response(
            {"removed": True, "request_id": "q"}, status=settings["status"], headers=settings["headers"]
        )
        response.set_cookie("tracking", "you")
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    port = runner.addresses[0][1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", requests, settings
    finally:
        await runner.cleanup()
