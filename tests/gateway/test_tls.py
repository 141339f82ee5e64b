"""A gateway with a certificate: what doesn't speak TLS, or doesn't begin to, gets nothing and keeps nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from gateway_setup import running_gateway, tls_contexts
from raw_http import build_request, exchange, parse_responses, raw_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway_setup import GatewaySetup


@pytest.fixture
async def tls() -> AsyncIterator[tuple[GatewaySetup, ssl.SSLContext]]:
    """A gateway with a certificate for localhost, and a context that trusts it; it still serves in the end."""
    theirs, ours = tls_contexts()
    async with running_gateway(connections=50, caller_timeout=1.0, ssl=theirs, client_ssl=ours) as held:
        yield held, ours


async def ask(held: GatewaySetup, ours: ssl.SSLContext, *pieces: bytes):
    """Send a good request, or this, over TLS."""
    async with raw_connection(held.gateway.url, ssl=ours) as opened:
        await opened.send(*(pieces or [build_request(key=held.keys["lender"])]))
        return parse_responses(await opened.read_to_end())


async def test_plain_http_is_not_answered_with_tls_on(tls):
    """A key that is sent in the clear opens nothing."""
    held, _ = tls
    assert held.gateway.url.startswith("https://")
    assert await exchange(held.gateway.url, build_request(key=held.keys["lender"])) == []
    held.assert_upstream_requests()


async def test_handshakes_that_never_come_keep_nobody_out(tls):
    """Three hundred connections say nothing, or half of a hello: good calls pass, and those are given up."""
    held, ours = tls
    async with contextlib.AsyncExitStack() as stack:
        for number in range(300):
            opened = await stack.enter_async_context(raw_connection(held.gateway.url))
            await opened.send(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        for _ in range(3):
            assert [each.status for each in await ask(held, ours)] == [200]
        assert len(held.gateway._listener) <= 50  # those that don't agree on TLS are counted as well
        assert await opened.read_to_end(60) == b""  # it is given up in time


@pytest.mark.parametrize(
    "came", [b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x80\x2e\x01\x00\x02", b"\x15\x03\x01\0\2\2\0"]
)
async def test_a_broken_handshake_harms_nothing(tls, caplog, came):
    """Garbage in the place of a hello ends that connection, and quotes nothing in the log."""
    held, ours = tls
    assert await exchange(held.gateway.url, came) == []
    assert [each.status for each in await ask(held, ours)] == [200]


async def test_old_versions_of_tls_are_refused(tls):
    """A caller that speaks nothing newer than TLS 1.1 gets no connection."""
    held, _ = tls
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await ask(held, old)


async def test_requests_behind_the_end_of_a_connection_are_dropped(tls, caplog):
    """After a caller has closed its side of a TLS connection, the gateway forwards none of its queued calls.

    asyncio sends nothing more on such a connection, and logs a warning for each write.
    """
    setup, client_ssl = tls
    setup.upstream.pause = 0.5
    async with raw_connection(setup.gateway.url, ssl=client_ssl) as opened:
        await opened.send(build_request(key=setup.keys["lender"], close=False) * 50)
        async with asyncio.timeout(30):
            while not setup.upstream.requests:
                await asyncio.sleep(0.01)
        opened.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        forwarded = len(setup.upstream.requests)
        async with asyncio.timeout(30):
            while len(setup.gateway._listener):
                await asyncio.sleep(0.01)
    assert len(setup.upstream.requests) <= forwarded + 1  # one may have been in flight
    assert "SSL connection is closed" not in caplog.text
