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
from proxy import PASS, Fault, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BEFORE, AFTER = False, True  # acting
MEGABYTE = b" " * 2**20
_TOKEN = re.compile(rb'"relay_token": "([^"]+)"')


# --------------------------------------------------------------------------------- messages, byte by byte


def page(status: int, body: bytes | str | object = b"", *headers: str) -> bytes:
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


def hung_up(*, acts: bool) -> Fault:
    """A FIN in place of an answer."""
    return Fault(acts, nothing, "close")


def reset(*, acts: bool = BEFORE, reads: bool = True) -> Fault:
    """An RST in place of an answer."""
    return Fault(acts, nothing, "reset", reads=reads)


def stalled(*, acts: bool) -> Fault:
    """Silence in place of an answer."""
    return Fault(acts, nothing, "stall")


def stalling(fault: Fault) -> Fault:
    """The same bytes, and silence where the other hangs up."""
    return evolve(fault, then="stall")


def says(answer: bytes, *, acts: bool, refuses: bool = False) -> Fault:
    """An answer that isn't Plaid's own, whole."""
    return Fault(acts, lambda *_: [answer], refuses=refuses)


def refusal(answer: bytes) -> Fault:
    """An answer that says that nothing was carried out, and is right."""
    return says(answer, acts=BEFORE, refuses=True)


def half_the_status_line(*, acts: bool) -> Fault:
    return Fault(acts, lambda *_: [b"HTTP/1.1 20"], "close")


def half_the_headers(*, acts: bool) -> Fault:
    return Fault(acts, lambda *_: [b"HTTP/1.1 200 OK\r\nContent-Type: applic"], "close")


def half_the_body(*, behind: bool) -> Fault:
    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        yield answer[: len(answer) - len(body) + _split(body, behind=behind)]

    return Fault(AFTER, pieces, "close")


def half_until_the_end() -> Fault:
    """Nothing but the end of the connection tells where the body ends, so that half of it looks whole."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        yield _without_length(answer) + b"\r\nConnection: close\r\n\r\n" + body[: _split(body, behind=False)]

    return Fault(AFTER, pieces, "close")


def half_a_body_of_nobodys() -> Fault:
    return Fault(BEFORE, lambda *_: [_ok("Content-Length: 100") + b'{"rela'], "close")


def half_the_chunks(*, behind: bool, then: bytes = b"", at_once: bool = True) -> Fault:
    """The body in chunks, cut after one of them; `then` follows in the same packet, the head is in it or not."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _body(answer)
        rest = _chunk(body[: _split(body, behind=behind)]) + then
        head = _without_length(answer) + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield from [head + rest] if at_once else [head, rest]

    return Fault(AFTER, pieces, "close", pause=0.0 if at_once else 0.02)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def half_the_gzip(*, behind: bool, then: bytes = b"") -> Fault:
    """A body that is zipped, unasked for, and whose zipping stops in the middle or turns into garbage."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        body = _unzipped(answer)
        zipper = zlib.compressobj(wbits=31)
        half = zipper.compress(body[: _split(body, behind=behind)]) + zipper.flush(zlib.Z_SYNC_FLUSH)
        length = len(half) + len(then or b"the other half")
        yield _ok(f"Content-Length: {length}", "Content-Encoding: gzip") + half + then

    return Fault(AFTER, pieces, "keep" if then else "close")


def _unzipped(answer: bytes) -> bytes:
    body = _body(answer)
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def gzip_bomb(*, token: bool) -> Fault:
    """Twenty megabytes in twenty kilobytes, with the token before them if there is one."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        start = _with_token(answer) if token else b"{"
        bomb = gzip.compress(start + 20 * MEGABYTE + b"}", compresslevel=1)
        yield _ok(f"Content-Length: {len(bomb)}", "Content-Encoding: gzip") + bomb

    return Fault(AFTER, pieces)


def too_long(*, token: bool, megabytes: int | None = None) -> Fault:
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

    return Fault(AFTER, pieces)


def endless(start: bytes, line: bytes) -> Fault:
    """A head that goes on and on."""

    def pieces(*_: bytes) -> Iterator[bytes]:
        yield start
        yield from itertools.repeat(line * (4096 // len(line)))

    return Fault(AFTER, pieces)


def first_this(prelude: bytes) -> Fault:
    """The whole answer behind something else."""
    return Fault(AFTER, lambda _, answer: [prelude + answer])


def dripping(pause: float) -> Fault:
    """The first bytes of the body come one by one."""

    def pieces(_: bytes, answer: bytes) -> Iterator[bytes]:
        start = len(answer) - len(_body(answer))
        yield answer[:start]
        yield from (answer[i : i + 1] for i in range(start, start + 15))
        yield answer[start + 15 :]

    return Fault(AFTER, pieces, pause=pause)


def wrong_shape(*, token: bool) -> Fault:
    """JSON that isn't what Plaid promises, whole, with the token in it if there is one."""

    def pieces(_: bytes, answer: bytes) -> Iterable[bytes]:
        start = _with_token(answer) if token else b"{"
        yield page(200, start + b'"request_id": 7, "report": [], "removed": "yes"}')

    return Fault(AFTER, pieces)


def echo(form: Callable[[str], bytes], *, acts: bool, refuses: bool = False) -> Fault:
    """An answer that quotes the request, secret, token and all."""

    def pieces(request: bytes, _: bytes) -> Iterable[bytes]:
        said = " ".join(request.decode().split())
        assert "PLAID-SECRET" in said
        yield form(said)

    return Fault(acts, pieces, "close", refuses=refuses)


def quoting(said: str, code: str) -> dict[str, Any]:
    """Plaid's error body, with a quotation in each of its fields."""
    fields = ("error_message", "display_message", "request_id", "documentation_url", "suggested_action")
    return {"error_type": "INVALID_INPUT" if code != "INTERNAL_SERVER_ERROR" else "API_ERROR"} | {
        "error_code": code,
        "causes": [{said: said}],
        **dict.fromkeys(fields, said),
    }


# ------------------------------------------------------------------------------------------------- series


def every(fault: Fault) -> tuple[Fault, ...]:
    """It strikes every attempt."""
    return (fault,)


def first(*faults: Fault) -> tuple[Fault, ...]:
    """They strike the first attempts, one each, and then all is well."""
    return (*faults, PASS)
