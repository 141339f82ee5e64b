"""The audit log states for each call whether its caller received the complete response."""

from __future__ import annotations

import asyncio
import json
import socket
import termios

import pytest
from gateway_setup import GatewaySetup, caller_sockets, queued_bytes, running_gateway
from processes import wait_until_async
from raw_http import (
    CREATE,
    GET,
    HOST_PLACEHOLDER,
    Connection,
    build_head,
    build_request,
    exchange,
    raw_connection,
)

MEGABYTE = 2**20


def audit_records(audit: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Return the lines of the audit log."""
    return [json.loads(each.getMessage()) for each in audit.records if each.name.endswith(".audit")]


def has_read_everything(url: str) -> bool:
    """Return whether a gateway has accepted a connection and has read all that was sent over it."""
    return [queued_bytes(each, termios.FIONREAD) for each in caller_sockets(url)] == [0]


async def test_an_error_for_a_disconnected_caller_is_not_delivered(setup, audit):
    """The caller closed the connection in the middle of its body."""
    async with raw_connection(setup.gateway.url) as connection:
        lines = (f"Host: {HOST_PLACEHOLDER}", f"Authorization: Bearer {setup.keys['lender']}")
        kind = ("Content-Type: application/json", "Content-Length: 100")
        await connection.send(build_head(f"POST {CREATE} HTTP/1.1", *lines, *kind) + b"{")
        await wait_until_async(lambda: has_read_everything(setup.gateway.url))
        for _ in range(5):  # the request is handled in one of the next iterations of the event loop
            await asyncio.sleep(0)
    await wait_until_async(lambda: audit_records(audit))
    (entry,) = audit_records(audit)
    assert (entry["status"], entry["error_code"], entry["delivered"]) == (400, "INVALID_HTTP", False)


async def count_rejected(setup: GatewaySetup, connection: Connection, audit: pytest.LogCaptureFixture) -> int:
    """Send requests without a key over a connection with small buffers, and return how many were rejected before they filled up."""
    count = -1
    for each in caller_sockets(setup.gateway.url):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    connection.writer.write(
        build_request(close=False).replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1") * 1000
    )
    while count != len(audit_records(audit)):  # until none follow
        count = len(audit_records(audit))
        await asyncio.sleep(0.3)
    return count


@pytest.fixture
async def non_reading(setup):
    """A connection with small buffers, whose caller reads nothing."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    caller.setblocking(False)
    host, _, port = setup.gateway.url.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(caller, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=caller, limit=1)
    await wait_until_async(lambda: setup.gateway.open_connections)
    yield Connection(setup.gateway.url, reader, writer)
    writer.transport.abort()


async def test_an_error_is_recorded_once_it_was_sent(setup, non_reading, audit):
    """An error response that does not fit into the buffers is recorded only when its caller reads."""
    count = await count_rejected(setup, non_reading, audit)
    assert 0 < count < 1000
    assert all(each["delivered"] for each in audit_records(audit))
    reading = asyncio.ensure_future(non_reading.read_to_end())
    await wait_until_async(lambda: len(audit_records(audit)) > count)
    assert audit_records(audit)[count]["delivered"]
    non_reading.writer.transport.abort()
    await reading


async def test_an_error_that_waits_when_its_caller_disconnects(setup, non_reading, audit):
    """The wait ends when the connection is closed: this response isn't delivered, earlier ones are."""
    count = await count_rejected(setup, non_reading, audit)
    non_reading.writer.transport.abort()
    await wait_until_async(lambda: len(audit_records(audit)) > count)
    assert [each["delivered"] for each in audit_records(audit)][: count + 1] == [*[True] * count, False]


async def test_a_response_that_waits_when_its_caller_disconnects(audit):
    """A report that is larger than the buffers isn't delivered to a caller that reads nothing of it."""
    async with running_gateway() as setup:
        body = b" " * (16 * MEGABYTE)
        start = build_head(
            "HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"
        )
        setup.upstream.respond = lambda _: [start, body]
        async with raw_connection(setup.gateway.url, limit=1) as connection:
            await connection.send(build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]))
            await connection.reader.readexactly(1)  # the response has begun
            assert not audit_records(audit)
        await wait_until_async(lambda: audit_records(audit))
        (entry,) = audit_records(audit)
        assert (entry["status"], entry["error_code"], entry["delivered"]) == (200, None, False)


async def test_a_truncated_response_for_a_disconnected_caller(setup, audit):
    """Plaid's connection ends in the middle of the response, and the caller's ended before."""
    start = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", "Content-Length: 100")
    setup.upstream.respond, setup.upstream.ending, setup.upstream.pause = (
        lambda _: [start, b"{"],
        "close",
        0.3,
    )
    async with raw_connection(setup.gateway.url) as connection:
        await connection.send(build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]))
        await connection.reader.readexactly(1)
        connection.writer.transport.abort()
        await wait_until_async(lambda: not setup.gateway.open_connections)
        assert not audit_records(audit)  # the gateway still reads the response
    await wait_until_async(lambda: audit_records(audit))
    (entry,) = audit_records(audit)
    assert (entry["status"], entry["error_code"], entry["delivered"]) == (200, "UPSTREAM_LOST", False)


@pytest.mark.parametrize("frame", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_truncated_response_is_not_delivered(setup, audit, frame):
    """Plaid's connection ends in the middle of the response, so the caller gets part of a 200."""
    start = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", frame)
    setup.upstream.respond, setup.upstream.ending = lambda _: [start, b"5\r\n{    \r\n"], "close"
    call = build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"])
    (response,) = await exchange(setup.gateway.url, call)
    assert (response.status, response.complete) == (200, False)
    (entry,) = audit_records(audit)
    assert (entry["status"], entry["error_code"], entry["delivered"]) == (200, "UPSTREAM_LOST", False)
