"""HTTP by hand: requests to the byte, and all that comes back for them."""

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
    f"/credit/relay/{each}" for each in ("create", "get", "pdf/get", "refresh", "remove")
)
CREATE_BODY = {"report_tokens": ["assets-sandbox-x"], "secondary_client_id": "p1"}
TIMEOUT_SECONDS = 60.0
HOST_PLACEHOLDER = "@here@"


@frozen
class Response:
    """One answer as it came; `whole` is false where the connection ended before it did."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> str | None:
        """The gateway's own error code."""
        try:
            said = self.json
        except ValueError:
            return None
        return (
            said["error_code"]
            if isinstance(said, dict) and said.get("error_type") == "GATEWAY_ERROR"
            else None
        )


class _UnclosableStream(io.BytesIO):
    """What several answers are read from, one behind the other."""

    def makefile(self, *_: object) -> _UnclosableStream:
        return self

    def close(self) -> None:
        pass


def parse_responses(received: bytes) -> list[Response]:
    """The answers in what came over a connection, the last of them perhaps not whole."""
    source, answers = _UnclosableStream(received), []
    while source.tell() < len(received):
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]  # all that it uses of a socket
        response.begin()
        whole = True
        try:
            body = response.read()
        except http.client.IncompleteRead as error:
            body, whole = error.partial, False
        answers.append(Response(response.status, response.headers, body, whole))
    return answers


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
    """A request with a Content-Length; HERE stands for the address that it is sent to.

    Args:
        path: stands in the request line as it is.
        body: bytes, or what is written as JSON.
        *headers: more header lines.
        key: goes as a bearer.
        host: value of the Host header; None leaves it out.
        method: of HTTP.
        kind: value of Content-Type; None leaves it out.
        last: whether it asks that the connection be closed.
    """
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"Host: {host}"] if host is not None else []
    lines += [f"Authorization: Bearer {key}"] if key is not None else []
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"Content-Length: {len(raw)}", *headers, *(["Connection: close"] if close else [])]
    return build_head(f"{method} {path} HTTP/1.1", *lines) + raw


def encode_chunks(*chunks: bytes) -> bytes:
    """These as chunks, with their end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Connection:
    """One connection to a server."""

    def __init__(self, url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = urlsplit(url).netloc.encode()
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Write, as far as the other side takes it."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece.replace(HOST_PLACEHOLDER.encode(), self._host))
                await self.writer.drain()
                await asyncio.sleep(pause)

    async def read_to_end(self, seconds: float = TIMEOUT_SECONDS) -> bytes:
        """All that comes until the other side closes.

        Raises:
            TimeoutError: it doesn't.
        """
        came = bytearray()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while piece := await self.reader.read(2**16):
                    came += piece
        return bytes(came)

    async def read_response(self, seconds: float = TIMEOUT_SECONDS) -> Response:
        """One answer that has a Content-Length or chunks, and leave the connection open."""
        async with asyncio.timeout(seconds):
            came = await self.reader.readuntil(b"\r\n\r\n")
            fields = http.client.parse_headers(io.BytesIO(came.partition(b"\r\n")[2]))
            if fields.get("Transfer-Encoding") == "chunked":
                while not came.endswith(b"\r\n0\r\n\r\n"):
                    came += await self.reader.readuntil(b"\r\n")
            else:
                came += await self.reader.readexactly(int(fields.get("Content-Length", 0)))
        return parse_responses(came)[0]


@contextlib.asynccontextmanager
async def raw_connection(url: str, **options: Any) -> AsyncIterator[Connection]:
    """A connection to the host and port of an address."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, **options)
    try:
        yield Connection(url, reader, writer)
    finally:
        writer.transport.abort()


async def exchange(
    url: str, *pieces: bytes, pause: float = 0.0, seconds: float = TIMEOUT_SECONDS, **options: Any
) -> list[Response]:
    """Say it all on a connection of its own, and give every answer until the server closes."""
    async with raw_connection(url, **options) as opened:
        saying = asyncio.ensure_future(opened.send(*pieces, pause=pause))
        try:
            return parse_responses(await opened.read_to_end(seconds))
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)


def build_response(status: int, body: bytes, *headers: str, reason: str = "OK") -> bytes:
    """An answer with a Content-Length."""
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return build_head(f"HTTP/1.1 {status} {reason}", *lines) + body


def header_fields(message: bytes) -> list[tuple[str, str]]:
    """The header fields of a message, by their names in lower case, each as often as it is there."""
    lines = message.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs: Iterable[tuple[str, str, str]] = (each.partition(":") for each in lines)
    return [(name.lower(), value.strip()) for name, _, value in pairs]
