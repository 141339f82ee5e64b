"""What each fault makes of each operation: written by hand, held against the client, shown in docs/faults.md.

A cell is what the caller gets, how many requests reached the server, and, where the operation changes
something, how many times that was carried out. `python tests/matrix.py` writes the tables into that page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from faults import (
    AFTER,
    BEFORE,
    dripping,
    echo,
    endless,
    every,
    first,
    first_this,
    gzip_bomb,
    half_a_body_of_nobodys,
    half_the_body,
    half_the_chunks,
    half_the_gzip,
    half_the_headers,
    half_the_status_line,
    half_until_the_end,
    hung_up,
    page,
    quoting,
    refusal,
    reset,
    says,
    stalled,
    stalling,
    too_long,
    wrong_shape,
)
from proxy import PASS, Fault

from plaid_relay_async import Timeouts

COLUMNS = ("create", "get", "get_pdf", "refresh", "remove")


@frozen
class Row:
    """One fault, and a cell for each operation.

    Attributes:
        name: what happens.
        faults: those of the first attempts, and of all that follow.
        settings: of the client.
        server: what there is to connect to.
        warm: whether the connection was used before.
        dying: whether the server closes that connection just before the call.
        waits: seconds that the call takes at least.
        told: the `retry_after` that the error has.
    """

    name: str
    faults: tuple[Fault, ...]
    create: str
    get: str
    get_pdf: str
    refresh: str
    remove: str
    settings: Mapping[str, Any] = field(factory=dict, kw_only=True)
    server: str = field(default="http", kw_only=True)
    warm: bool = field(default=False, kw_only=True)
    dying: bool = field(default=False, kw_only=True)
    waits: float = field(default=0.0, kw_only=True)
    told: float | None = field(default=None, kw_only=True)


NO_HANDSHAKE = {"timeouts": Timeouts(connect=0.1)}
HASTY = {"timeouts": Timeouts(read=0.25, slow_read=0.25)}
# Where an answer, or a part of it, is to be read in time: a busy machine needs a while to give it.
LESS_HASTY = {"timeouts": Timeouts(read=1, slow_read=1)}
FIVE_SECONDS = {"timeouts": Timeouts(total=5)}
HALF_A_SECOND = {"timeouts": Timeouts(total=0.5)}
NO_DEADLINE = {"timeouts": Timeouts(total=None)}
ONE_MEGABYTE = {"max_response_bytes": 2**20}

MAINTENANCE = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE", "error_message": "later"}
INTERNAL = {"error_type": "API_ERROR", "error_code": "INTERNAL_SERVER_ERROR", "error_message": "oh"}
LIMIT = {"error_type": "RATE_LIMIT_EXCEEDED", "error_code": "RATE_LIMIT", "error_message": "later"}
UNREACHABLE = {"error_type": "GATEWAY_ERROR", "error_code": "UPSTREAM_UNREACHABLE", "error_message": "down"}
UPSTREAM_LOST = UNREACHABLE | {"error_code": "UPSTREAM_LOST"}
EXHAUSTED = LIMIT | {"error_code": "CREDITS_EXHAUSTED"}
NOON, AND_A_SECOND, AND_A_MINUTE = (f"Tue, 24 Nov 2026 12:0{end} GMT" for end in ("0:00", "0:01", "1:00"))


def maintenance(*headers: str) -> Fault:
    return refusal(page(503, MAINTENANCE, *headers))


def unreachable() -> Fault:
    return refusal(page(503, UNREACHABLE))


def lost_by_the_gateway(*, acts: bool) -> Fault:
    return says(page(502, UPSTREAM_LOST), acts=acts)


def limited(*headers: str) -> Fault:
    return refusal(page(429, LIMIT, *headers))


def html(status: int, *, acts: bool) -> Fault:
    return says(page(status, "<html><h1>nginx</h1></html>"), acts=acts)


def internal(*, acts: bool) -> Fault:
    return says(page(500, INTERNAL), acts=acts)


def redirect(status: int) -> Fault:
    return refusal(page(status, "", "Location: /elsewhere"))


# fmt: off
NEVER_LEFT = (
    Row("nobody listens: connection refused", every(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="nobody"),
    Row("the name isn't known", every(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no name"),
    Row("the server speaks no TLS", every(Fault(BEFORE, lambda *_: [page(400, "no TLS")], "close", reads=False)),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no TLS"),
    Row("the TLS handshake is never answered", every(Fault(BEFORE, lambda *_: [], "stall", reads=False)),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no TLS", settings=NO_HANDSHAKE),
    Row("the certificate is another host's", every(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="another's TLS"),
    Row("the certificate is nobody's whom the client trusts", every(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="distrusted TLS"),
)

NO_ANSWER = (
    Row("reset before the request was read", every(reset(reads=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    Row("the same, the first time only", first(reset(reads=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    Row("reset after the request was read, not carried out", every(reset(acts=BEFORE)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    Row("the same, the first time only", first(reset(acts=BEFORE)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    Row("reset after it was carried out", every(reset(acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("the same, the first time only", first(reset(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    Row("closed (FIN) without an answer, not carried out", every(hung_up(acts=BEFORE)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    Row("the same, the first time only", first(hung_up(acts=BEFORE)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    Row("closed (FIN) without an answer, carried out", every(hung_up(acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("the same, the first time only", first(hung_up(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    Row("closed without an answer, over TLS, carried out", every(hung_up(acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1", server="TLS"),
    Row("the same, the first time only", first(hung_up(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", server="TLS"),
    Row("closed without an answer, carried out; then 429 with a pause of an hour", (hung_up(acts=AFTER), limited("Retry-After: 3600")),
        "unknown 1 1", "limited 2", "limited 2", "unknown 1 1", "lost 2 1"),
    Row("an idle connection is closed just before the call", every(PASS),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", warm=True, dying=True),
    Row("the same over TLS", every(PASS),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", server="TLS", warm=True, dying=True),
    Row("a used connection is closed once the request is read, not carried out", first(hung_up(acts=BEFORE)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1", warm=True),
    Row("a used connection is closed once the request is read, carried out", first(hung_up(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", warm=True),
)

HALF_AN_ANSWER = (
    Row("half a status line, carried out", every(half_the_status_line(acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("half a status line, not carried out", every(half_the_status_line(acts=BEFORE)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    Row("half the headers, carried out", every(half_the_headers(acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("half the headers, not carried out", every(half_the_headers(acts=BEFORE)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    Row("half the body, by its Content-Length, cut inside of the token", every(half_the_body(behind=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 2 1"),
    Row("the same, the first time only", first(half_the_body(behind=False)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    Row("half the body, by its Content-Length, cut behind the token", every(half_the_body(behind=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 2 1"),
    Row("half the chunks, cut inside of the token", every(half_the_chunks(behind=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 2 1"),
    Row("half the chunks, cut behind the token", every(half_the_chunks(behind=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 2 1"),
    # aiohttp doesn't tell whoever waits for the next chunk: that ends when the time for reading is over.
    Row("garbage in place of a chunk, inside of the token",
        every(half_the_chunks(behind=False, then=b"zz\r\n", at_once=False)),
        "unknown 1 1", "late 4", "late 4", "unknown 1 1", "late 2 1", settings=LESS_HASTY),
    Row("garbage in place of a chunk, behind the token",
        every(half_the_chunks(behind=True, then=b"zz\r\n", at_once=False)),
        "done 1 1", "late 4", "late 4", "done 1 1", "late 2 1", settings=LESS_HASTY),
    # aiohttp gives up what it read of a packet that isn't HTTP to its end, the status line included.
    Row("the same, all of it in one packet", every(half_the_chunks(behind=True, then=b"zz\r\n")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("half the body, its end told by the end of the connection", every(half_until_the_end()),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
    Row("gzip that breaks off inside of the token", every(half_the_gzip(behind=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("gzip that breaks off behind the token", every(half_the_gzip(behind=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 4 1"),
    Row("gzip that turns into garbage inside of the token", every(half_the_gzip(behind=False, then=b"\7" * 40)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    # zlib gives nothing of a piece that it can't read to its end.
    Row("gzip that turns into garbage behind the token", every(half_the_gzip(behind=True, then=b"\7" * 40)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
)

STALLS = (
    Row("silence, not carried out", every(stalled(acts=BEFORE)),
        "unknown 1 0", "late 4", "late 4", "unknown 1 0", "late 4 0", settings=HASTY),
    Row("silence, carried out", every(stalled(acts=AFTER)),
        "unknown 1 1", "late 4", "late 4", "unknown 1 1", "late 4 1", settings=HASTY),
    Row("the same, the first time only", first(stalled(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", settings=LESS_HASTY),
    Row("a stall within the status line, carried out", every(stalling(half_the_status_line(acts=AFTER))),
        "unknown 1 1", "late 4", "late 4", "unknown 1 1", "late 4 1", settings=HASTY),
    Row("a stall within the headers, not carried out", every(stalling(half_the_headers(acts=BEFORE))),
        "unknown 1 0", "late 4", "late 4", "unknown 1 0", "late 4 0", settings=HASTY),
    Row("a stall within the headers, carried out", every(stalling(half_the_headers(acts=AFTER))),
        "unknown 1 1", "late 4", "late 4", "unknown 1 1", "late 4 1", settings=HASTY),
    Row("a stall within the body, not carried out", every(stalling(half_a_body_of_nobodys())),
        "unknown 1 0", "late 4", "late 4", "unknown 1 0", "late 4 0", settings=HASTY),
    Row("a stall within the body, inside of the token", every(stalling(half_the_body(behind=False))),
        "unknown 1 1", "late 4", "late 4", "unknown 1 1", "late 2 1", settings=LESS_HASTY),
    Row("a stall within the body, behind the token", every(stalling(half_the_body(behind=True))),
        "done 1 1", "late 4", "late 4", "done 1 1", "late 2 1", settings=LESS_HASTY),
    Row("one byte at a time, within the deadline", every(dripping(0.02)),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", settings=FIVE_SECONDS),
    Row("one byte at a time, beyond the deadline", every(dripping(0.4)),
        "unknown 1 1", "late 1", "late 1", "unknown 1 1", "late 1 1", settings=HALF_A_SECOND),
)

STRANGE_ANSWERS = (
    Row("204 without a body, carried out", every(says(b"HTTP/1.1 204 No Content\r\n\r\n", acts=AFTER)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
    Row("204 without a body, not carried out", every(says(b"HTTP/1.1 204 No Content\r\n\r\n", acts=BEFORE)),
        "unknown 1 0", "garbled 1", "garbled 1", "unknown 1 0", "garbled 1 0"),
    Row("JSON of the wrong shape, with a token in it", every(wrong_shape(token=True)),
        "done 1 1", "garbled 1", "garbled 1", "done 1 1", "garbled 1 1"),
    Row("JSON of the wrong shape, without a token", every(wrong_shape(token=False)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
    Row("100 MB, by their Content-Length", every(too_long(token=False, megabytes=100)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
    Row("a body beyond the limit, behind the token", every(too_long(token=True, megabytes=2)),
        "done 1 1", "garbled 1", "garbled 1", "done 1 1", "garbled 1 1", settings=ONE_MEGABYTE),
    Row("chunks without an end, without a token", every(too_long(token=False)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1", settings=ONE_MEGABYTE),
    Row("chunks without an end, behind the token", every(too_long(token=True)),
        "done 1 1", "garbled 1", "garbled 1", "done 1 1", "garbled 1 1", settings=ONE_MEGABYTE),
    Row("a gzip bomb, without a token", every(gzip_bomb(token=False)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1", settings=ONE_MEGABYTE),
    Row("a gzip bomb, behind the token", every(gzip_bomb(token=True)),
        "done 1 1", "garbled 1", "garbled 1", "done 1 1", "garbled 1 1", settings=ONE_MEGABYTE),
    Row("headers without an end", every(endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("one header without an end", every(endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"and more")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("not HTTP", every(Fault(AFTER, lambda *_: [b"220 mail.example ESMTP\r\n\r\n"], "close")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("100 before the answer", every(first_this(b"HTTP/1.1 100 Continue\r\n\r\n")),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    Row("103 before the answer", every(first_this(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    Row("a thousand times 102 before the answer", every(first_this(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    Row("100 without an end", every(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
        "unknown 1 1", "late 1", "late 1", "unknown 1 1", "late 1 1", settings=HALF_A_SECOND),
    Row("101 in place of an answer",
        every(Fault(AFTER, lambda *_: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"], "close")),
        "unknown 1 1", "odd 4", "odd 4", "unknown 1 1", "odd 4 1"),
)

SERVER_ERRORS = (
    Row("500, HTML, not carried out", every(html(500, acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("500, HTML, carried out", every(html(500, acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("502, HTML, not carried out", every(html(502, acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("502, HTML, carried out", every(html(502, acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("503, HTML, not carried out", every(html(503, acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("503, HTML, carried out", every(html(503, acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("504, HTML, not carried out", every(html(504, acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("504, HTML, carried out", every(html(504, acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("the same, the first time only", first(html(504, acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    Row("Plaid's own INTERNAL_SERVER_ERROR, not carried out", every(internal(acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("the same, the first time only", first(internal(acts=BEFORE)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    Row("Plaid's own INTERNAL_SERVER_ERROR, carried out", every(internal(acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("the same, the first time only", first(internal(acts=AFTER)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    Row("Plaid's own PLANNED_MAINTENANCE", every(maintenance()),
        "server 4 0", "server 4", "server 4", "server 4 0", "server 4 0"),
    Row("the same, the first time only", first(maintenance()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    Row("PLANNED_MAINTENANCE with a pause beyond the deadline", every(maintenance("Retry-After: 60")),
        "server 1 0", "server 1", "server 1", "server 1 0", "server 1 0", settings=FIVE_SECONDS, told=60),
    Row("a gateway of ours that could send nothing on", every(unreachable()),
        "server 4 0", "server 4", "server 4", "server 4 0", "server 4 0"),
    Row("the same, the first time only", first(unreachable()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    Row("a gateway of ours whose own attempt was lost, not carried out",
        every(lost_by_the_gateway(acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("a gateway of ours whose own attempt was lost, carried out",
        every(lost_by_the_gateway(acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("PLANNED_MAINTENANCE with a pause beyond `max_pause`", every(maintenance("Retry-After: 301")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE, told=301),
)

REDIRECTS = (
    Row("301", every(redirect(301)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    Row("302", every(redirect(302)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    Row("303", every(redirect(303)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    Row("307", every(redirect(307)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    Row("308", every(redirect(308)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
)

LIMITS = (
    Row("429 without Retry-After", every(limited()),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("the same, the first time only", first(limited()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    Row("429, Retry-After in seconds, the first time only", first(limited("Retry-After: 1")),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1", waits=1),
    Row("429, Retry-After in seconds, beyond the deadline", every(limited("Retry-After: 60")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=FIVE_SECONDS, told=60),
    Row("429, Retry-After as a date, the first time only",
        first(limited(f"Date: {NOON}", f"Retry-After: {AND_A_SECOND}")),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1", waits=1),
    Row("429, Retry-After as a date, beyond the deadline",
        every(limited(f"Date: {NOON}", f"Retry-After: {AND_A_MINUTE}")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=FIVE_SECONDS, told=60),
    Row("429, Retry-After as a date that is past", every(limited(f"Date: {AND_A_MINUTE}", f"Retry-After: {NOON}")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0", told=0),
    Row("429, Retry-After: 0", every(limited("Retry-After: 0")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0", told=0),
    Row("429, Retry-After: -5", every(limited("Retry-After: -5")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("429, Retry-After: 1000000000000", every(limited("Retry-After: 1000000000000")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE, told=10**12),
    Row("429, Retry-After of four hundred digits", every(limited(f"Retry-After: {'9' * 400}")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE),
    Row("429, Retry-After in the year 9999", every(limited("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE),
    Row("429, Retry-After: soon", every(limited("Retry-After: soon")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("429, Retry-After is empty", every(limited("Retry-After:")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("429, Retry-After: 1, 2", every(limited("Retry-After: 1, 2")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("429 of a middle box, HTML", every(refusal(page(429, "<html>slowly</html>"))),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    Row("429 CREDITS_EXHAUSTED", every(refusal(page(429, EXHAUSTED))),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0"),
)

# What no canary may come out of: the answers quote the request, with its secret and its tokens.
ECHOES = (
    Row("400 that quotes the request", every(echo(lambda said: page(400, quoting(said, "INVALID_FIELD")), acts=BEFORE, refuses=True)),
        "refused 1 0", "refused 1", "refused 1", "refused 1 0", "refused 1 0"),
    Row("500 of Plaid's that quotes the request", every(echo(lambda said: page(500, quoting(said, "INTERNAL_SERVER_ERROR")), acts=AFTER)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    Row("502, HTML that quotes the request", every(echo(lambda said: page(502, f"<html>{said}</html>"), acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("503 that quotes the request as its reason and in its headers",
        every(echo(lambda said: page(503, "", f"Retry-After: {said}", f"X-Said: {said}").replace(b"Service Unavailable", said.encode()), acts=BEFORE)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    Row("302 that quotes the request in its Location", every(echo(lambda said: page(302, "", f"Location: /?{said}"), acts=BEFORE, refuses=True)),
        "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    Row("a broken header that quotes the request", every(echo(lambda said: f"HTTP/1.1 200 OK\r\n{said}\r\n\r\n".replace(":", "").encode(), acts=AFTER)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    Row("200 of the wrong shape that quotes the request", every(echo(lambda said: page(200, [{said: said}]), acts=AFTER)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
    Row("200 that isn't JSON and quotes the request", every(echo(lambda said: page(200, f"<html>{said.replace('relay_token', 'token')}</html>"), acts=AFTER)),
        "unknown 1 1", "garbled 1", "garbled 1", "unknown 1 1", "garbled 1 1"),
)
# fmt: on

SECTIONS: dict[str, tuple[Row, ...]] = {
    "The request never leaves": NEVER_LEFT,
    "No answer": NO_ANSWER,
    "Half an answer": HALF_AN_ANSWER,
    "Stalls and slowness": STALLS,
    "Strange answers": STRANGE_ANSWERS,
    "Errors of the server": SERVER_ERRORS,
    "Redirects": REDIRECTS,
    "Limits": LIMITS,
    "Answers that quote the request": ECHOES,
}

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
MARK = "<!-- What follows is written by tests/matrix.py. -->\n"


def page_with_tables(page: str) -> str:
    """The page with everything behind its mark made anew."""
    return page.partition(MARK)[0] + MARK + "".join(_table(*section) for section in SECTIONS.items())


def _table(title: str, rows: tuple[Row, ...]) -> str:
    head = [f"## {title}", "", f"| what happens | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines = [f"| {row.name} | {' | '.join(_shown(getattr(row, each)) for each in COLUMNS)} |" for row in rows]
    return "\n".join(["", *head, *lines, ""])


def _shown(cell: str) -> str:
    word, *counts = cell.split()
    return f"{word} {' · '.join(counts)}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
