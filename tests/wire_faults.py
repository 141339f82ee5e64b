"""Everything that a network, an intermediary or Plaid may do to an attempt, as faults for the proxy."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from attrs import evolve
from fault_proxy import PASS, WireFault, no_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Values of `WireFault.executed`.
NOT_EXECUTED, EXECUTED = False, True
MEGABYTE = b" " * 2**20
_TOKEN = re.compile(rb'"relay_token": "([^"]+)"')


# --------------------------------------------------------------------------------- messages, byte by byte


def build_response(status: int, body: bytes | str | object = b"", *headers: str) -> bytes:
    """Build a response; a `str` body is HTML, bytes are sent unchanged, and anything else is encoded as JSON."""
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    content_type = "text/html" if isinstance(body, str) else "application/json"
    status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return _head(status_line, f"Content-Type: {content_type}", f"Content-Length: {len(raw)}", *headers) + raw


def _head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _ok(*headers: str) -> bytes:
    return _head("HTTP/1.1 200 OK", "Content-Type: application/json", *headers)


def _body(response: bytes) -> bytes:
    return response.partition(b"\r\n\r\n")[2]


def _without_length(response: bytes) -> bytes:
    """Return the head of a response without its Content-Length and without the empty line that ends it."""
    return re.sub(rb"(?i)\r\ncontent-length: *\d+", b"", response.partition(b"\r\n\r\n")[0])


def _split(body: bytes, *, after_token: bool) -> int:
    """Return where to cut a body: inside its token or right after it, or in the middle if it has no token."""
    token = _TOKEN.search(body)
    if token is None:
        return len(body) // 2
    return token.end() if after_token else sum(token.span(1)) // 2


def _with_token(response: bytes) -> bytes:
    """Return the start of a JSON object, with the token if the response has one."""
    token = _TOKEN.search(_body(response))
    return b"{" + (token[0] + b", " if token else b"")


# --------------------------------------------------------------------------------------------- the faults


def closed(*, executed: bool) -> WireFault:
    """Close the connection (FIN) instead of responding."""
    return WireFault(executed, no_response, "close")


def reset(*, executed: bool = False, reads_request: bool = True) -> WireFault:
    """Reset the connection (RST) instead of responding."""
    return WireFault(executed, no_response, "reset", reads_request=reads_request)


def stalled(*, executed: bool) -> WireFault:
    """Never respond, and keep the connection open."""
    return WireFault(executed, no_response, "stall")


def then_stalling(fault: WireFault) -> WireFault:
    """Send the same bytes as another fault, but keep the connection open afterwards."""
    return evolve(fault, ending="stall")


def foreign_response(response: bytes, *, executed: bool, declines: bool = False) -> WireFault:
    """Send a complete response that isn't Plaid's own."""
    return WireFault(executed, lambda *_: [response], declines=declines)


def declined(response: bytes) -> WireFault:
    """Send a response that says, correctly, that the request was not executed."""
    return foreign_response(response, executed=False, declines=True)


def truncated_status_line(*, executed: bool) -> WireFault:
    return WireFault(executed, lambda *_: [b"HTTP/1.1 20"], "close")


def truncated_headers(*, executed: bool) -> WireFault:
    return WireFault(executed, lambda *_: [b"HTTP/1.1 200 OK\r\nContent-Type: applic"], "close")


def truncated_body(*, after_token: bool) -> WireFault:
    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        body = _body(response)
        yield response[: len(response) - len(body) + _split(body, after_token=after_token)]

    return WireFault(EXECUTED, pieces, "close")


def truncated_body_without_length() -> WireFault:
    """Cut a body whose end only the end of the connection marks, so that half of it looks complete."""

    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        body = _body(response)
        head = _without_length(response) + b"\r\nConnection: close\r\n\r\n"
        yield head + body[: _split(body, after_token=False)]

    return WireFault(EXECUTED, pieces, "close")


def truncated_foreign_body() -> WireFault:
    """Cut a body that isn't from the simulator, which never gets the request."""
    return WireFault(NOT_EXECUTED, lambda *_: [_ok("Content-Length: 100") + b'{"rela'], "close")


def truncated_chunks(*, after_token: bool, suffix: bytes = b"", in_one_packet: bool = True) -> WireFault:
    """Send the body in chunks, and stop after one of them; `suffix` follows it in the same packet.

    With `in_one_packet`, the packet starts with the head; without it, the head is sent separately before.
    """

    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        body = _body(response)
        rest = _chunk(body[: _split(body, after_token=after_token)]) + suffix
        head = _without_length(response) + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield from [head + rest] if in_one_packet else [head, rest]

    return WireFault(EXECUTED, pieces, "close", pause=0.0 if in_one_packet else 0.02)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def truncated_gzip(*, after_token: bool, suffix: bytes = b"") -> WireFault:
    """Compress the body, though the client didn't ask for it, and stop in the middle or continue with `suffix`."""

    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        body = _decompressed(response)
        compressor = zlib.compressobj(wbits=31)
        start = compressor.compress(body[: _split(body, after_token=after_token)])
        # A sync flush makes all bytes so far readable without the end of the stream.
        start += compressor.flush(zlib.Z_SYNC_FLUSH)
        length = len(start) + len(suffix or b"the other half")
        yield _ok(f"Content-Length: {length}", "Content-Encoding: gzip") + start + suffix

    return WireFault(EXECUTED, pieces, "keep" if suffix else "close")


def _decompressed(response: bytes) -> bytes:
    body = _body(response)
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def gzip_bomb(*, token: bool) -> WireFault:
    """Send 20 megabytes compressed to 20 kilobytes, with the token before them if the response has one."""

    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        start = _with_token(response) if token else b"{"
        bomb = gzip.compress(start + 20 * MEGABYTE + b"}", compresslevel=1)
        yield _ok(f"Content-Length: {len(bomb)}", "Content-Encoding: gzip") + bomb

    return WireFault(EXECUTED, pieces)


def oversized_body(*, token: bool, megabytes: int | None = None) -> WireFault:
    """Send a body of `megabytes`, or an endless one, with the token before them if the response has one."""

    def pieces(_: bytes, response: bytes) -> Iterator[bytes]:
        start = _with_token(response) if token else b"{"
        if megabytes is None:
            yield _ok("Transfer-Encoding: chunked") + _chunk(start)
            yield from itertools.repeat(_chunk(MEGABYTE[: 2**16]))
        else:
            yield _ok(f"Content-Length: {len(start) + megabytes * 2**20 + 1}") + start
            yield from itertools.repeat(MEGABYTE, megabytes)
            yield b"}"

    return WireFault(EXECUTED, pieces)


def endless_head(start: bytes, line: bytes) -> WireFault:
    """Send a head that never ends: `start`, and then the same line over and over."""

    def pieces(*_: bytes) -> Iterator[bytes]:
        yield start
        yield from itertools.repeat(line * (4096 // len(line)))

    return WireFault(EXECUTED, pieces)


def prefixed_response(prefix: bytes) -> WireFault:
    """Send other bytes before the complete response."""
    return WireFault(EXECUTED, lambda _, response: [prefix + response])


def slow_body(pause: float) -> WireFault:
    """Send the first 15 bytes of the body one by one, `pause` seconds apart."""

    def pieces(_: bytes, response: bytes) -> Iterator[bytes]:
        start = len(response) - len(_body(response))
        yield response[:start]
        yield from (response[i : i + 1] for i in range(start, start + 15))
        yield response[start + 15 :]

    return WireFault(EXECUTED, pieces, pause=pause)


def unexpected_json(*, token: bool) -> WireFault:
    """Send complete JSON with fields of the wrong types, and with the token if the response has one."""

    def pieces(_: bytes, response: bytes) -> Iterable[bytes]:
        start = _with_token(response) if token else b"{"
        yield build_response(200, start + b'"request_id": 7, "report": [], "removed": "yes"}')

    return WireFault(EXECUTED, pieces)


def echoed_request(build: Callable[[str], bytes], *, executed: bool, declines: bool = False) -> WireFault:
    """Send a response that quotes the request, including its secret and tokens."""

    def pieces(request: bytes, _: bytes) -> Iterable[bytes]:
        text = " ".join(request.decode().split())
        assert "PLAID-SECRET" in text
        yield build(text)

    return WireFault(executed, pieces, "close", declines=declines)


def error_quoting(text: str, code: str) -> dict[str, Any]:
    """Return one of Plaid's error bodies, with a quotation in each of its fields."""
    fields = ("error_message", "display_message", "request_id", "documentation_url", "suggested_action")
    return {"error_type": "INVALID_INPUT" if code != "INTERNAL_SERVER_ERROR" else "API_ERROR"} | {
        "error_code": code,
        "causes": [{text: text}],
        **dict.fromkeys(fields, text),
    }


# ------------------------------------------------------------------------------------------------- series


def on_every_attempt(fault: WireFault) -> tuple[WireFault, ...]:
    """Inject the fault into every attempt."""
    return (fault,)


def on_first_attempts(*faults: WireFault) -> tuple[WireFault, ...]:
    """Inject one fault into each of the first attempts; later attempts pass."""
    return (*faults, PASS)
