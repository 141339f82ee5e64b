"""HTTP over plain sockets: requests are built byte by byte, and every response is returned as it was received."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

CREATE, GET, PDF, REFRESH, REMOVE = (
    f"/credit/relay/{name}" for name in ("create", "get", "pdf/get", "refresh", "remove")
)
CREATE_BODY = {"report_tokens": ["assets-sandbox-x"], "secondary_client_id": "p1"}
TIMEOUT_SECONDS = 60.0
# `Connection.send` replaces it with the host and port that it is connected to.
HOST_PLACEHOLDER = "@here@"


@frozen
class Response:
    """One response as it was received.

    Attributes:
        complete: false if the connection ended in the middle of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> str | None:
        """The gateway's own error code; `None` for any other response."""
        try:
            content = self.json
        except ValueError:
            return None
        return (
            content["error_code"]
            if isinstance(content, dict) and content.get("error_type") == "GATEWAY_ERROR"
            else None
        )


class _UnclosableStream(io.BytesIO):
    """A stand-in for a socket, from which `http.client` reads several responses one after the other."""

    def makefile(self, *_: object) -> _UnclosableStream:
        return self

    def close(self) -> None:
        # http.client closes its file after each response; the next response is read from the same bytes.
        pass


def parse_responses(received: bytes) -> list[Response]:
    """Parse all bytes received on a connection; the last response may be incomplete."""
    source, responses = _UnclosableStream(received), []
    while source.tell() < len(received):
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]  # it needs only `makefile`
        response.begin()
        complete = True
        try:
            body = response.read()
        except http.client.IncompleteRead as error:
            body, complete = error.partial, False
        responses.append(Response(response.status, response.headers, body, complete))
    return responses


def build_head(start_line: str, *lines: str) -> bytes:
    return "\r\n".join([start_line, *lines, "", ""]).encode("latin-1")


def build_request(
    path: str = CREATE,
    body: object = CREATE_BODY,
    *headers: str,
    key: str | None = None,
    host: str | None = HOST_PLACEHOLDER,
    method: str = "POST",
    content_type: str | None = "application/json",
    close: bool = True,
) -> bytes:
    """Build a request with a Content-Length.

    Args:
        path: the request target, sent unchanged.
        body: bytes, or an object to encode as JSON.
        *headers: additional header lines.
        key: a bearer token for the Authorization header; `None` omits it.
        host: the value of the Host header; `None` omits it.
        method: the HTTP method.
        content_type: the value of the Content-Type header; `None` omits it.
        close: whether to ask the server to close the connection after its response.
    """
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"Host: {host}"] if host is not None else []
    lines += [f"Authorization: Bearer {key}"] if key is not None else []
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"Content-Length: {len(raw)}", *headers, *(["Connection: close"] if close else [])]
    return build_head(f"{method} {path} HTTP/1.1", *lines) + raw


def encode_chunks(*chunks: bytes) -> bytes:
    """Encode a body with chunked transfer coding, including the last chunk."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Connection:
    """One connection to a server."""

    def __init__(self, url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = urlsplit(url).netloc.encode()
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Send the pieces, `pause` seconds apart; stop without an error if the server closes the connection."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece.replace(HOST_PLACEHOLDER.encode(), self._host))
                await self.writer.drain()
                await asyncio.sleep(pause)

    async def read_to_end(self, seconds: float = TIMEOUT_SECONDS) -> bytes:
        """Read until the server closes the connection.

        Raises:
            TimeoutError: the connection is still open after `seconds`.
        """
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while piece := await self.reader.read(2**16):
                    received += piece
        return bytes(received)

    async def read_response(self, seconds: float = TIMEOUT_SECONDS) -> Response:
        """Read one response with a Content-Length or a chunked body, and leave the connection open."""
        async with asyncio.timeout(seconds):
            received = await self.reader.readuntil(b"\r\n\r\n")
            fields = http.client.parse_headers(io.BytesIO(received.partition(b"\r\n")[2]))
            if fields.get("Transfer-Encoding") == "chunked":
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    received += await self.reader.readuntil(b"\r\n")
            else:
                received += await self.reader.readexactly(int(fields.get("Content-Length", 0)))
        return parse_responses(received)[0]


@contextlib.asynccontextmanager
async def raw_connection(url: str, **options: Any) -> AsyncIterator[Connection]:
    """Open a connection to the host and port of a URL; abort it at the end of the block."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, **options)
    try:
        yield Connection(url, reader, writer)
    finally:
        writer.transport.abort()


async def exchange(
    url: str, *pieces: bytes, pause: float = 0.0, seconds: float = TIMEOUT_SECONDS, **options: Any
) -> list[Response]:
    """Send the pieces over a new connection, and return all responses received until the server closes it."""
    async with raw_connection(url, **options) as connection:
        # The server may respond, and close, before it has read everything: send and read concurrently.
        sending = asyncio.ensure_future(connection.send(*pieces, pause=pause))
        try:
            return parse_responses(await connection.read_to_end(seconds))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def build_response(status: int, body: bytes, *headers: str, reason: str = "OK") -> bytes:
    """Build a JSON response with a Content-Length."""
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return build_head(f"HTTP/1.1 {status} {reason}", *lines) + body


def header_fields(message: bytes) -> list[tuple[str, str]]:
    """Return the header fields of a message in order, with names in lower case; repeated fields stay separate."""
    lines = message.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs: Iterable[tuple[str, str, str]] = (line.partition(":") for line in lines)
    return [(name.lower(), value.strip()) for name, _, value in pairs]
