"""The audit log says of each call whether its caller got the whole response."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from gateway_setup import GatewaySetup, running_gateway
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


def entries(audit: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The lines of the audit log."""
    return [json.loads(each.getMessage()) for each in audit.records if each.name.endswith(".audit")]


async def test_a_refusal_for_a_caller_that_left(held, audit):
    """Its body broke off because it closed the connection: the refusal isn't delivered."""
    async with raw_connection(held.gateway.url) as opened:
        lines = (f"Host: {HOST_PLACEHOLDER}", f"Authorization: Bearer {held.keys['lender']}")
        kind = ("Content-Type: application/json", "Content-Length: 100")
        await opened.send(build_head(f"POST {CREATE} HTTP/1.1", *lines, *kind) + b"{")
        await wait_until_async(lambda: held.gateway._listener.requests_count)
    await wait_until_async(lambda: entries(audit))
    (entry,) = entries(audit)
    assert (entry["status"], entry["error_code"], entry["delivered"]) == (400, "INVALID_HTTP", False)


async def refused(held: GatewaySetup, opened: Connection, audit: pytest.LogCaptureFixture) -> int:
    """Send requests without a key over a connection that takes few bytes, and return how many are refused by then."""
    count = -1
    (state,) = held.gateway._listener._states.values()
    state.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    opened.writer.write(build_request(close=False).replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1") * 1000)
    while count != len(entries(audit)):  # until no more follow
        count = len(entries(audit))
        await asyncio.sleep(0.3)
    return count


@pytest.fixture
async def deaf(held):
    """A connection whose caller reads nothing, and has room for little."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    caller.setblocking(False)
    host, _, port = held.gateway.url.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(caller, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=caller, limit=1)
    await wait_until_async(lambda: len(held.gateway._listener))
    yield Connection(held.gateway.url, reader, writer)
    writer.transport.abort()


async def test_a_refusal_is_recorded_once_it_was_sent(held, deaf, audit):
    """A refusal that the system has no room for has no line yet; it has one once its caller reads."""
    count = await refused(held, deaf, audit)
    assert 0 < count < 1000
    assert all(each["delivered"] for each in entries(audit))
    reading = asyncio.ensure_future(deaf.rest())
    await wait_until_async(lambda: len(entries(audit)) > count)
    assert entries(audit)[count]["delivered"]
    deaf.writer.transport.abort()
    await reading


async def test_a_refusal_that_waits_when_its_caller_leaves(held, deaf, audit):
    """The wait for room ends when the connection is closed: the refusal isn't delivered, those before it are."""
    count = await refused(held, deaf, audit)
    deaf.writer.transport.abort()
    await wait_until_async(lambda: len(entries(audit)) > count)
    assert [each["delivered"] for each in entries(audit)][: count + 1] == [*[True] * count, False]


async def test_a_response_that_waits_when_its_caller_leaves(audit):
    """A report that is too long for the buffers, of which its caller reads nothing, isn't delivered."""
    async with running_gateway() as held:
        body = b" " * (16 * MEGABYTE)
        start = build_head(
            "HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"
        )
        held.upstream.says = lambda _: [start, body]
        async with raw_connection(held.gateway.url, limit=1) as opened:
            await opened.send(build_request(GET, {"relay_token": "x"}, key=held.keys["lender"]))
            await opened.reader.readexactly(1)  # the response has begun
            assert not entries(audit)
        await wait_until_async(lambda: entries(audit))
        (entry,) = entries(audit)
        assert (entry["status"], entry["error_code"], entry["delivered"]) == (200, None, False)


@pytest.mark.parametrize("frame", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_response_that_breaks_off(held, audit, frame):
    """Plaid's connection ends in the middle of it: the caller gets part of a 200, which isn't delivered."""
    start = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", frame)
    held.upstream.says, held.upstream.then = lambda _: [start, b"5\r\n{    \r\n"], "close"
    call = build_request(GET, {"relay_token": "x"}, key=held.keys["lender"])
    (answer,) = await exchange(held.gateway.url, call)
    assert (answer.status, answer.complete) == (200, False)
    (entry,) = entries(audit)
    assert (entry["status"], entry["error_code"], entry["delivered"]) == (200, "UPSTREAM_LOST", False)
