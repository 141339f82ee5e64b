"""What a network, a middle box or Plaid may do to an attempt, as faults for the proxy."""

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

BEFORE, AFTER = False, True  # acting
MEGABYTE = b" " * 2**20
_TOKEN = re.compile(rb'"relay_token": "([^"]+)"')


# --------------------------------------------------------------------------------- messages, byte by byte


def build_response(status: int, body: bytes | str | object = b"", *headers: str) -> bytes:
    """An answer of its own; what isn't bytes or HTML is sent as JSON."""
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return _head(first, f"Content-Type: {kind}", f"Content-Length: {len(raw)}", *headers) + raw


def _head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _ok(*headers: str) -> bytes:
    return _head("HTTP/1.1 200 OK", "Content-Type: application/json", *headers)


def _body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def _without_length(answer: bytes) -> bytes:
    """The head of an answer without its Content-Length and its end."""
    return re.sub(rb"(?i)\r\ncontent-length: *\d+", b"", answer.partition(b"\r\n\r\n")[0])


def _split(body: bytes, *, behind: bool) -> int:
    """Where to cut a body: inside of its token, or behind it; where there is none, in the middle."""
    token = _TOKEN.search(body)
    if token is None:
        return len(body) // 2
    return token.end() if behind else sum(token.span(1)) // 2


def _with_token(answer: bytes) -> bytes:
    """The beginning of a JSON object, with the token if the answer has one."""
    token = _TOKEN.search(_body(answer))
    return b"{" + (token[0] + b", " if token else b"")


# --------------------------------------------------------------------------------------------- the faults


def closed(*, acts: bool) -> WireFault:
    """A FIN in place of an answer."""
    return WireFault(acts, no_response, "close")


def reset(*, acts: bool = BEFORE, reads: bool = True) -> WireFault:
    """An RST in place of an answer."""
    return WireFault(acts, no_response, "reset", reads=reads)


def stalled(*, acts: bool) -> WireFault:
    """Silence in place of an answer."""
    return WireFault(acts, no_response, "stall")


def then_stalling(fault: WireFault) -> WireFault:
    """The same bytes, and silence where the other hangs up."""
    return evolve(fault, then="stall")


def foreign_response(response: bytes, *, acts: bool, declines: bool = False) -> WireFault:
    """An answer that isn't Plaid's own, whole."""
    return WireFault(acts, lambda *_: [response], declines=declines)


def declined(answer: bytes) -> WireFault:
    """An answer that says that nothing was carried out, and is right."""
    return foreign_response(answer, acts=BEFORE, declines=True)


def truncated_status_line(*, acts: bool) -> WireFault:
    return WireFault(acts, lambda *_: [b"HTTP/1.1 20"], "close")


def truncated_headers(*, acts: bool) -> WireFault:
    return WireFault(acts, lambda *_: [b"HTTP/1.1 200 OK\r\nContent-Type: applic"], "close")


def truncated_body(*, after_token: bool) -> WireFault:
    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        yield answer[: len(answer) - len(body) + _split(body, behind=after_token)]

    return WireFault(AFTER, pieces, "close")


def truncated_body_without_length() -> WireFault:
    """Nothing but the end of the connection tells where the body ends, so that half of it looks whole."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        yield _without_length(answer) + b"\r\nConnection: close\r\n\r\n" + body[: _split(body, behind=False)]

    return WireFault(AFTER, pieces, "close")


def truncated_foreign_body() -> WireFault:
    return WireFault(BEFORE, lambda *_: [_ok("Content-Length: 100") + b'{"rela'], "close")


def truncated_chunks(*, after_token: bool, then: bytes = b"", in_one_packet: bool = True) -> WireFault:
    """The body in chunks, cut after one of them; `then` follows in the same packet, the head is in it or not."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        rest = _chunk(body[: _split(body, behind=after_token)]) + then
        head = _without_length(answer) + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield from [head + rest] if in_one_packet else [head, rest]

    return WireFault(AFTER, pieces, "close", pause=0.0 if in_one_packet else 0.02)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def truncated_gzip(*, after_token: bool, then: bytes = b"") -> WireFault:
    """A body that is zipped, unasked for, and whose zipping stops in the middle or turns into garbage."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _decompressed(answer)
        zipper = zlib.compressobj(wbits=31)
        half = zipper.compress(body[: _split(body, behind=after_token)]) + zipper.flush(zlib.Z_SYNC_FLUSH)
        length = len(half) + len(then or b"the other half")
        yield _ok(f"Content-Length: {length}", "Content-Encoding: gzip") + half + then

    return WireFault(AFTER, pieces, "keep" if then else "close")


def _decompressed(answer: bytes) -> bytes:
    body = _body(answer)
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def gzip_bomb(*, token: bool) -> WireFault:
    """Twenty megabytes in twenty kilobytes, with the token before them if there is one."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        start = _with_token(answer) if token else b"{"
        bomb = gzip.compress(start + 20 * MEGABYTE + b"}", compresslevel=1)
        yield _ok(f"Content-Length: {len(bomb)}", "Content-Encoding: gzip") + bomb

    return WireFault(AFTER, pieces)


def oversized_body(*, token: bool, megabytes: int | None = None) -> WireFault:
    """A body of so many megabytes, or without an end, with the token before them if there is one."""

    def pieces(_: bytes, answer: bytes) -> Iterator[bytes]:
        start = _with_token(answer) if token else b"{"
        if megabytes is None:
            yield _ok("Transfer-Encoding: chunked") + _chunk(start)
            yield from itertools.repeat(_chunk(MEGABYTE[: 2**16]))
        else:
            yield _ok(f"Content-Length: {len(start) + megabytes * 2**20 + 1}") + start
            yield from itertools.repeat(MEGABYTE, megabytes)
            yield b"}"

    return WireFault(AFTER, pieces)


def endless_head(start: bytes, line: bytes) -> WireFault:
    """A head that goes on and on."""

    def pieces(*_: bytes) -> Iterator[bytes]:
        yield start
        yield from itertools.repeat(line * (4096 // len(line)))

    return WireFault(AFTER, pieces)


def prefixed_response(prefix: bytes) -> WireFault:
    """The whole answer behind something else."""
    return WireFault(AFTER, lambda _, answer: [prefix + answer])


def slow_body(pause: float) -> WireFault:
    """The first bytes of the body come one by one."""

    def pieces(_: bytes, answer: bytes) -> Iterator[bytes]:
        start = len(answer) - len(_body(answer))
        yield answer[:start]
        yield from (answer[i : i + 1] for i in range(start, start + 15))
        yield answer[start + 15 :]

    return WireFault(AFTER, pieces, pause=pause)


def unexpected_json(*, token: bool) -> WireFault:
    """JSON that isn't what Plaid promises, whole, with the token in it if there is one."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        start = _with_token(answer) if token else b"{"
        yield build_response(200, start + b'"request_id": 7, "report": [], "removed": "yes"}')

    return WireFault(AFTER, pieces)


def echoed_request(build: Callable[[str], bytes], *, acts: bool, declines: bool = False) -> WireFault:
    """An answer that quotes the request, secret, token and all."""

    def pieces(request: bytes, _: bytes) -> Iterable[bytes]:
        said = " ".join(request.decode().split())
        assert "PLAID-SECRET" in said
        yield build(said)

    return WireFault(acts, pieces, "close", declines=declines)


def error_quoting(text: str, code: str) -> dict[str, Any]:
    """Plaid's error body, with a quotation in each of its fields."""
    fields = ("error_message", "display_message", "request_id", "documentation_url", "suggested_action")
    return {"error_type": "INVALID_INPUT" if code != "INTERNAL_SERVER_ERROR" else "API_ERROR"} | {
        "error_code": code,
        "causes": [{text: text}],
        **dict.fromkeys(fields, text),
    }


# ------------------------------------------------------------------------------------------------- series


def on_every_attempt(fault: WireFault) -> tuple[WireFault, ...]:
    """It strikes every attempt."""
    return (fault,)


def on_first_attempts(*faults: WireFault) -> tuple[WireFault, ...]:
    """They strike the first attempts, one each, and then all is well."""
    return (*faults, PASS)
