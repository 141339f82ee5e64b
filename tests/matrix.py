"""The fault matrix: the expected result of each fault for each operation, written by hand.

A cell has the caller's outcome, the number of requests that reached the server and, unless the operation is
safe, how often it was executed. tests/test_matrix.py compares the client with it, and `python tests/matrix.py`
writes its tables to docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from canaries import SERVER_TEXT
from fault_proxy import PASS, WireFault
from wire_faults import (
    EXECUTED,
    NOT_EXECUTED,
    build_response,
    closed,
    declined,
    echoed_request,
    endless_head,
    error_quoting,
    foreign_response,
    gzip_bomb,
    on_every_attempt,
    on_first_attempts,
    oversized_body,
    prefixed_response,
    reset,
    slow_body,
    stalled,
    then_stalling,
    truncated_body,
    truncated_body_without_length,
    truncated_chunks,
    truncated_foreign_body,
    truncated_gzip,
    truncated_headers,
    truncated_status_line,
    unexpected_json,
)

from plaid_relay_async import Timeouts

OPERATIONS = ("create", "get", "get_pdf", "refresh", "remove")


@frozen
class FaultRow:
    """One fault, and a cell for each operation.

    Attributes:
        name: the label of the fault.
        faults: the faults of the first attempts; the last one applies to all further attempts.
        settings: the client's settings.
        server: the kind of server to connect to.
        reuses_connection: whether the connection was used before.
        server_closes: whether the server closes that connection just before the call.
        min_seconds: the minimum duration of the call.
        retry_after: the expected `retry_after` of the error.
    """

    name: str
    faults: tuple[WireFault, ...]
    create: str
    get: str
    get_pdf: str
    refresh: str
    remove: str
    settings: Mapping[str, Any] = field(factory=dict, kw_only=True)
    server: str = field(default="http", kw_only=True)
    reuses_connection: bool = field(default=False, kw_only=True)
    server_closes: bool = field(default=False, kw_only=True)
    min_seconds: float = field(default=0.0, kw_only=True)
    retry_after: float | None = field(default=None, kw_only=True)


SHORT_CONNECT_TIMEOUT = {"timeouts": Timeouts(connect=0.1)}
SHORT_READ_TIMEOUT = {"timeouts": Timeouts(read=0.25, slow_read=0.25)}
# For faults whose response, or a part of it, has to arrive in time: a busy machine needs a while for that.
READ_TIMEOUT = {"timeouts": Timeouts(read=1, slow_read=1)}
FIVE_SECONDS = {"timeouts": Timeouts(total=5)}
# Long enough that a busy machine sends the request in the half that is not reserved for the response.
TWO_SECONDS = {"timeouts": Timeouts(total=2)}
NO_DEADLINE = {"timeouts": Timeouts(total=None)}
ONE_MEGABYTE = {"max_response_bytes": 2**20}

MAINTENANCE = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE", "error_message": SERVER_TEXT}
INTERNAL = {"error_type": "API_ERROR", "error_code": "INTERNAL_SERVER_ERROR", "error_message": SERVER_TEXT}
LIMIT = {"error_type": "RATE_LIMIT_EXCEEDED", "error_code": "RATE_LIMIT", "error_message": SERVER_TEXT}
UNREACHABLE = {
    "error_type": "GATEWAY_ERROR",
    "error_code": "UPSTREAM_UNREACHABLE",
    "error_message": SERVER_TEXT,
}
UPSTREAM_LOST = UNREACHABLE | {"error_code": "UPSTREAM_LOST"}
EXHAUSTED = LIMIT | {"error_code": "CREDITS_EXHAUSTED"}
NOON, SECOND_AFTER_NOON, MINUTE_AFTER_NOON = (
    f"Tue, 24 Nov 2026 12:0{end} GMT" for end in ("0:00", "0:01", "1:00")
)


def maintenance(*headers: str) -> WireFault:
    return declined(build_response(503, MAINTENANCE, *headers))


def unreachable() -> WireFault:
    return declined(build_response(503, UNREACHABLE))


def lost_by_gateway(*, executed: bool) -> WireFault:
    return foreign_response(build_response(502, UPSTREAM_LOST), executed=executed)


def rate_limited(*headers: str) -> WireFault:
    return declined(build_response(429, LIMIT, *headers))


def html_page(status: int, *, executed: bool) -> WireFault:
    return foreign_response(build_response(status, f"<html><h1>{SERVER_TEXT}</h1></html>"), executed=executed)


def internal_error(*, executed: bool) -> WireFault:
    return foreign_response(build_response(500, INTERNAL), executed=executed)


def redirect(status: int) -> WireFault:
    return declined(build_response(status, "", "Location: /elsewhere"))


# fmt: off
NEVER_LEFT = (
    FaultRow("connection refused: no process listens", on_every_attempt(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no server"),
    FaultRow("unknown host name", on_every_attempt(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no name"),
    FaultRow("the server speaks no TLS", on_every_attempt(WireFault(NOT_EXECUTED, lambda *_: [build_response(400, "no TLS")], "close", reads_request=False)),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no TLS"),
    FaultRow("the TLS handshake is never answered", on_every_attempt(WireFault(NOT_EXECUTED, lambda *_: [], "stall", reads_request=False)),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="no TLS", settings=SHORT_CONNECT_TIMEOUT),
    FaultRow("the certificate is for another host", on_every_attempt(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="another's TLS"),
    FaultRow("the certificate's authority isn't trusted", on_every_attempt(PASS),
        "unsent 0 0", "unsent 0", "unsent 0", "unsent 0 0", "unsent 0 0", server="distrusted TLS"),
)

NO_RESPONSE = (
    FaultRow("reset before the request was read", on_every_attempt(reset(reads_request=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(reset(reads_request=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    FaultRow("reset after the request was read, not executed", on_every_attempt(reset(executed=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(reset(executed=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    FaultRow("reset after it was executed", on_every_attempt(reset(executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("the same, the first time only", on_first_attempts(reset(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    FaultRow("closed (FIN) without a response, not executed", on_every_attempt(closed(executed=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(closed(executed=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    FaultRow("closed (FIN) without a response, executed", on_every_attempt(closed(executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("the same, the first time only", on_first_attempts(closed(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    FaultRow("closed without a response, over TLS, executed", on_every_attempt(closed(executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1", server="TLS"),
    FaultRow("the same, the first time only", on_first_attempts(closed(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", server="TLS"),
    FaultRow("closed without a response, executed; then 429 with a pause of an hour", (closed(executed=True), rate_limited("Retry-After: 3600")),
        "unknown 1 1", "limited 2", "limited 2", "unknown 1 1", "lost 2 1"),
    FaultRow("an idle connection is closed just before the call", on_every_attempt(PASS),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", reuses_connection=True, server_closes=True),
    FaultRow("the same over TLS", on_every_attempt(PASS),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", server="TLS", reuses_connection=True, server_closes=True),
    FaultRow("a reused connection is closed after the request was read, not executed", on_first_attempts(closed(executed=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1", reuses_connection=True),
    FaultRow("a reused connection is closed after the request was read, executed", on_first_attempts(closed(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", reuses_connection=True),
)

PARTIAL_RESPONSES = (
    FaultRow("half a status line, executed", on_every_attempt(truncated_status_line(executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("half a status line, not executed", on_every_attempt(truncated_status_line(executed=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    FaultRow("half the headers, executed", on_every_attempt(truncated_headers(executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("half the headers, not executed", on_every_attempt(truncated_headers(executed=False)),
        "unknown 1 0", "lost 4", "lost 4", "unknown 1 0", "lost 4 0"),
    FaultRow("half the body, with Content-Length, cut inside the token", on_every_attempt(truncated_body(after_token=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 2 1"),
    FaultRow("the same, the first time only", on_first_attempts(truncated_body(after_token=False)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    FaultRow("half the body, with Content-Length, cut after the token", on_every_attempt(truncated_body(after_token=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 2 1"),
    FaultRow("half the chunks, cut inside the token", on_every_attempt(truncated_chunks(after_token=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 2 1"),
    FaultRow("half the chunks, cut after the token", on_every_attempt(truncated_chunks(after_token=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 2 1"),
    # aiohttp doesn't end a wait for the next chunk after such an error, so it ends with the read timeout. A call that
    # can drain runs one iteration of the event loop later, and finds the connection closed.
    FaultRow("invalid bytes instead of a chunk, inside the token",
        on_every_attempt(truncated_chunks(after_token=False, suffix=b"zz\r\n", in_one_packet=False)),
        "unknown 1 1", "timeout 4", "timeout 4", "unknown 1 1", "lost 2 1", settings=READ_TIMEOUT),
    FaultRow("invalid bytes instead of a chunk, after the token",
        on_every_attempt(truncated_chunks(after_token=True, suffix=b"zz\r\n", in_one_packet=False)),
        "done 1 1", "timeout 4", "timeout 4", "done 1 1", "lost 2 1", settings=READ_TIMEOUT),
    # aiohttp drops all of a packet with invalid HTTP in it, including the status line.
    FaultRow("invalid bytes instead of a chunk, after the token, everything in one packet",
        on_every_attempt(truncated_chunks(after_token=True, suffix=b"zz\r\n")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("half the body, framed by the end of the connection", on_every_attempt(truncated_body_without_length()),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
    FaultRow("gzip that breaks off inside the token", on_every_attempt(truncated_gzip(after_token=False)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("gzip that breaks off after the token", on_every_attempt(truncated_gzip(after_token=True)),
        "done 1 1", "lost 4", "lost 4", "done 1 1", "lost 4 1"),
    FaultRow("gzip with invalid bytes inside the token", on_every_attempt(truncated_gzip(after_token=False, suffix=b"\7" * 40)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    # zlib returns nothing of a chunk that it can't decompress completely.
    FaultRow("gzip with invalid bytes after the token", on_every_attempt(truncated_gzip(after_token=True, suffix=b"\7" * 40)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
)

STALLS = (
    FaultRow("no response until the timeout, not executed", on_every_attempt(stalled(executed=False)),
        "unknown 1 0", "timeout 4", "timeout 4", "unknown 1 0", "timeout 4 0", settings=SHORT_READ_TIMEOUT),
    FaultRow("no response until the timeout, executed", on_every_attempt(stalled(executed=True)),
        "unknown 1 1", "timeout 4", "timeout 4", "unknown 1 1", "timeout 4 1", settings=SHORT_READ_TIMEOUT),
    FaultRow("the same, the first time only", on_first_attempts(stalled(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1", settings=READ_TIMEOUT),
    FaultRow("a stall within the status line, executed", on_every_attempt(then_stalling(truncated_status_line(executed=True))),
        "unknown 1 1", "timeout 4", "timeout 4", "unknown 1 1", "timeout 4 1", settings=SHORT_READ_TIMEOUT),
    FaultRow("a stall within the headers, not executed", on_every_attempt(then_stalling(truncated_headers(executed=False))),
        "unknown 1 0", "timeout 4", "timeout 4", "unknown 1 0", "timeout 4 0", settings=SHORT_READ_TIMEOUT),
    FaultRow("a stall within the headers, executed", on_every_attempt(then_stalling(truncated_headers(executed=True))),
        "unknown 1 1", "timeout 4", "timeout 4", "unknown 1 1", "timeout 4 1", settings=SHORT_READ_TIMEOUT),
    FaultRow("a stall within the body, not executed", on_every_attempt(then_stalling(truncated_foreign_body())),
        "unknown 1 0", "timeout 4", "timeout 4", "unknown 1 0", "timeout 4 0", settings=SHORT_READ_TIMEOUT),
    FaultRow("a stall within the body, inside the token", on_every_attempt(then_stalling(truncated_body(after_token=False))),
        "unknown 1 1", "timeout 4", "timeout 4", "unknown 1 1", "timeout 2 1", settings=READ_TIMEOUT),
    FaultRow("a stall within the body, after the token", on_every_attempt(then_stalling(truncated_body(after_token=True))),
        "done 1 1", "timeout 4", "timeout 4", "done 1 1", "timeout 2 1", settings=READ_TIMEOUT),
    FaultRow("one byte at a time, within the timeout", on_every_attempt(slow_body(0.02)),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1", settings=FIVE_SECONDS),
    FaultRow("one byte at a time, longer than the timeout", on_every_attempt(slow_body(0.4)),
        "unknown 1 1", "timeout 1", "timeout 1", "unknown 1 1", "timeout 1 1", settings=TWO_SECONDS),
)

UNUSUAL_RESPONSES = (
    FaultRow("204 without a body, executed", on_every_attempt(foreign_response(b"HTTP/1.1 204 No Content\r\n\r\n", executed=True)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
    FaultRow("204 without a body, not executed", on_every_attempt(foreign_response(b"HTTP/1.1 204 No Content\r\n\r\n", executed=False)),
        "unknown 1 0", "unreadable 1", "unreadable 1", "unknown 1 0", "unreadable 1 0"),
    FaultRow("JSON of the wrong shape, with a token in it", on_every_attempt(unexpected_json(token=True)),
        "done 1 1", "unreadable 1", "unreadable 1", "done 1 1", "unreadable 1 1"),
    FaultRow("JSON of the wrong shape, without a token", on_every_attempt(unexpected_json(token=False)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
    FaultRow("a body of 100 MB, with Content-Length", on_every_attempt(oversized_body(token=False, megabytes=100)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
    FaultRow("a body longer than the limit, after the token", on_every_attempt(oversized_body(token=True, megabytes=2)),
        "done 1 1", "unreadable 1", "unreadable 1", "done 1 1", "unreadable 1 1", settings=ONE_MEGABYTE),
    FaultRow("endless chunks, without a token", on_every_attempt(oversized_body(token=False)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1", settings=ONE_MEGABYTE),
    FaultRow("endless chunks, after the token", on_every_attempt(oversized_body(token=True)),
        "done 1 1", "unreadable 1", "unreadable 1", "done 1 1", "unreadable 1 1", settings=ONE_MEGABYTE),
    FaultRow("a gzip bomb, without a token", on_every_attempt(gzip_bomb(token=False)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1", settings=ONE_MEGABYTE),
    FaultRow("a gzip bomb, after the token", on_every_attempt(gzip_bomb(token=True)),
        "done 1 1", "unreadable 1", "unreadable 1", "done 1 1", "unreadable 1 1", settings=ONE_MEGABYTE),
    FaultRow("endless headers", on_every_attempt(endless_head(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("an endless header", on_every_attempt(endless_head(b"HTTP/1.1 200 OK\r\nX-More: ", b"and more")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("not HTTP", on_every_attempt(WireFault(EXECUTED, lambda *_: [b"220 mail.example ESMTP\r\n\r\n"], "close")),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("100 before the response", on_every_attempt(prefixed_response(b"HTTP/1.1 100 Continue\r\n\r\n")),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    FaultRow("103 before the response", on_every_attempt(prefixed_response(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    FaultRow("a thousand times 102 before the response", on_every_attempt(prefixed_response(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)),
        "done 1 1", "done 1", "done 1", "done 1 1", "done 1 1"),
    FaultRow("endless 100", on_every_attempt(endless_head(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
        "unknown 1 1", "timeout 1", "timeout 1", "unknown 1 1", "timeout 1 1", settings=TWO_SECONDS),
    FaultRow("101 instead of a response",
        on_every_attempt(WireFault(EXECUTED, lambda *_: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"], "close")),
        "unknown 1 1", "unexpected 4", "unexpected 4", "unknown 1 1", "unexpected 4 1"),
)

SERVER_ERRORS = (
    FaultRow("500, HTML, not executed", on_every_attempt(html_page(500, executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("500, HTML, executed", on_every_attempt(html_page(500, executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("502, HTML, not executed", on_every_attempt(html_page(502, executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("502, HTML, executed", on_every_attempt(html_page(502, executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("503, HTML, not executed", on_every_attempt(html_page(503, executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("503, HTML, executed", on_every_attempt(html_page(503, executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("504, HTML, not executed", on_every_attempt(html_page(504, executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("504, HTML, executed", on_every_attempt(html_page(504, executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("the same, the first time only", on_first_attempts(html_page(504, executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    FaultRow("Plaid's INTERNAL_SERVER_ERROR, not executed", on_every_attempt(internal_error(executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(internal_error(executed=False)),
        "unknown 1 0", "done 2", "done 2", "unknown 1 0", "done 2 1"),
    FaultRow("Plaid's INTERNAL_SERVER_ERROR, executed", on_every_attempt(internal_error(executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("the same, the first time only", on_first_attempts(internal_error(executed=True)),
        "unknown 1 1", "done 2", "done 2", "unknown 1 1", "inferred 2 1"),
    FaultRow("Plaid's PLANNED_MAINTENANCE", on_every_attempt(maintenance()),
        "server 4 0", "server 4", "server 4", "server 4 0", "server 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(maintenance()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    FaultRow("PLANNED_MAINTENANCE with a pause longer than the timeout", on_every_attempt(maintenance("Retry-After: 60")),
        "server 1 0", "server 1", "server 1", "server 1 0", "server 1 0", settings=FIVE_SECONDS, retry_after=60),
    FaultRow("this package's gateway couldn't reach Plaid", on_every_attempt(unreachable()),
        "server 4 0", "server 4", "server 4", "server 4 0", "server 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(unreachable()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    FaultRow("the response to this package's gateway was lost, not executed",
        on_every_attempt(lost_by_gateway(executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("the response to this package's gateway was lost, executed",
        on_every_attempt(lost_by_gateway(executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("PLANNED_MAINTENANCE with a pause longer than `max_pause`", on_every_attempt(maintenance("Retry-After: 301")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE, retry_after=301),
)

REDIRECTS = (
    FaultRow("301", on_every_attempt(redirect(301)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    FaultRow("302", on_every_attempt(redirect(302)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    FaultRow("303", on_every_attempt(redirect(303)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    FaultRow("307", on_every_attempt(redirect(307)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    FaultRow("308", on_every_attempt(redirect(308)), "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
)

LIMITS = (
    FaultRow("429 without Retry-After", on_every_attempt(rate_limited()),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("the same, the first time only", on_first_attempts(rate_limited()),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1"),
    FaultRow("429, Retry-After in seconds, the first time only", on_first_attempts(rate_limited("Retry-After: 1")),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1", min_seconds=1),
    FaultRow("429, Retry-After in seconds, longer than the timeout", on_every_attempt(rate_limited("Retry-After: 60")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=FIVE_SECONDS, retry_after=60),
    FaultRow("429, Retry-After as a date, the first time only",
        on_first_attempts(rate_limited(f"Date: {NOON}", f"Retry-After: {SECOND_AFTER_NOON}")),
        "done 2 1", "done 2", "done 2", "done 2 1", "done 2 1", min_seconds=1),
    FaultRow("429, Retry-After as a date, longer than the timeout",
        on_every_attempt(rate_limited(f"Date: {NOON}", f"Retry-After: {MINUTE_AFTER_NOON}")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=FIVE_SECONDS, retry_after=60),
    FaultRow("429, Retry-After as a date in the past", on_every_attempt(rate_limited(f"Date: {MINUTE_AFTER_NOON}", f"Retry-After: {NOON}")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0", retry_after=0),
    FaultRow("429, Retry-After: 0", on_every_attempt(rate_limited("Retry-After: 0")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0", retry_after=0),
    FaultRow("429, Retry-After: -5", on_every_attempt(rate_limited("Retry-After: -5")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("429, Retry-After: 1000000000000", on_every_attempt(rate_limited("Retry-After: 1000000000000")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE, retry_after=10**12),
    FaultRow("429, Retry-After with four hundred digits", on_every_attempt(rate_limited(f"Retry-After: {'9' * 400}")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE),
    FaultRow("429, Retry-After in the year 9999", on_every_attempt(rate_limited("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT")),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0", settings=NO_DEADLINE),
    FaultRow("429, Retry-After: soon", on_every_attempt(rate_limited("Retry-After: soon")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("429, empty Retry-After", on_every_attempt(rate_limited("Retry-After:")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("429, Retry-After: 1, 2", on_every_attempt(rate_limited("Retry-After: 1, 2")),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("429 from an intermediary, HTML", on_every_attempt(declined(build_response(429, f"<html>{SERVER_TEXT}</html>"))),
        "limited 4 0", "limited 4", "limited 4", "limited 4 0", "limited 4 0"),
    FaultRow("429 CREDITS_EXHAUSTED", on_every_attempt(declined(build_response(429, EXHAUSTED))),
        "limited 1 0", "limited 1", "limited 1", "limited 1 0", "limited 1 0"),
)

# The responses quote the request with its secret and its tokens, and none of these may show.
ECHOES = (
    FaultRow("400 that quotes the request", on_every_attempt(echoed_request(lambda quoted: build_response(400, error_quoting(quoted, "INVALID_FIELD")), executed=False, declines=True)),
        "rejected 1 0", "rejected 1", "rejected 1", "rejected 1 0", "rejected 1 0"),
    FaultRow("Plaid's 500 that quotes the request", on_every_attempt(echoed_request(lambda quoted: build_response(500, error_quoting(quoted, "INTERNAL_SERVER_ERROR")), executed=True)),
        "unknown 1 1", "server 4", "server 4", "unknown 1 1", "server 4 1"),
    FaultRow("502, HTML that quotes the request", on_every_attempt(echoed_request(lambda quoted: build_response(502, f"<html>{quoted}</html>"), executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("503 that quotes the request as its reason and in its headers",
        on_every_attempt(echoed_request(lambda quoted: build_response(503, "", f"Retry-After: {quoted}", f"X-Said: {quoted}").replace(b"Service Unavailable", quoted.encode()), executed=False)),
        "unknown 1 0", "server 4", "server 4", "unknown 1 0", "server 4 0"),
    FaultRow("302 that quotes the request in its Location", on_every_attempt(echoed_request(lambda quoted: build_response(302, "", f"Location: /?{quoted}"), executed=False, declines=True)),
        "redirect 1 0", "redirect 1", "redirect 1", "redirect 1 0", "redirect 1 0"),
    FaultRow("a broken header that quotes the request", on_every_attempt(echoed_request(lambda quoted: f"HTTP/1.1 200 OK\r\n{quoted}\r\n\r\n".replace(":", "").encode(), executed=True)),
        "unknown 1 1", "lost 4", "lost 4", "unknown 1 1", "lost 4 1"),
    FaultRow("200 of the wrong shape that quotes the request", on_every_attempt(echoed_request(lambda quoted: build_response(200, [{quoted: quoted}]), executed=True)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
    FaultRow("200 that isn't JSON and quotes the request", on_every_attempt(echoed_request(lambda quoted: build_response(200, f"<html>{quoted.replace('relay_token', 'token')}</html>"), executed=True)),
        "unknown 1 1", "unreadable 1", "unreadable 1", "unknown 1 1", "unreadable 1 1"),
)
# fmt: on

SECTIONS: dict[str, tuple[FaultRow, ...]] = {
    "The request is never sent": NEVER_LEFT,
    "No response": NO_RESPONSE,
    "Partial responses": PARTIAL_RESPONSES,
    "Stalls and slow responses": STALLS,
    "Malformed and unusual responses": UNUSUAL_RESPONSES,
    "Server errors": SERVER_ERRORS,
    "Redirects": REDIRECTS,
    "Rate limits": LIMITS,
    "Responses that quote the request": ECHOES,
}

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
MARK = "<!-- The rest is written by tests/matrix.py. -->\n"


def page_with_tables(page: str) -> str:
    """Return the page with new tables after its mark."""
    return page.partition(MARK)[0] + MARK + "".join(_format_table(*section) for section in SECTIONS.items())


def _format_table(title: str, rows: tuple[FaultRow, ...]) -> str:
    head = [
        f"## {title}",
        "",
        f"| fault | {' | '.join(OPERATIONS)} |",
        "|---" * (len(OPERATIONS) + 1) + "|",
    ]
    lines = [
        f"| {row.name} | {' | '.join(_format_cell(getattr(row, each)) for each in OPERATIONS)} |"
        for row in rows
    ]
    return "\n".join(["", *head, *lines, ""])


def _format_cell(cell: str) -> str:
    word, *counts = cell.split()
    return f"{word} {' · '.join(counts)}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
