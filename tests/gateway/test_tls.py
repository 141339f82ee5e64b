"""A gateway with a certificate: callers without a TLS handshake get nothing and don't block others."""

from __future__ import annotations

import contextlib
import logging
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
    """Yield a gateway with a certificate, and a context that trusts it; it is checked to be still serving at the end."""
    server_ssl, client_ssl = tls_contexts()
    async with running_gateway(
        connections=50, caller_timeout=1.0, ssl=server_ssl, client_ssl=client_ssl
    ) as setup:
        yield setup, client_ssl


async def exchange_tls(setup: GatewaySetup, client_ssl: ssl.SSLContext, *pieces: bytes):
    """Send a valid request, or these pieces, over TLS."""
    async with raw_connection(setup.gateway.url, ssl=client_ssl) as connection:
        await connection.send(*(pieces or [build_request(key=setup.keys["lender"])]))
        return parse_responses(await connection.read_to_end())


async def test_plain_http_gets_no_response_with_tls(tls):
    """A key that is sent unencrypted isn't accepted."""
    setup, _ = tls
    assert setup.gateway.url.startswith("https://")
    assert await exchange(setup.gateway.url, build_request(key=setup.keys["lender"])) == []
    setup.assert_upstream_requests()


async def test_missing_handshakes_do_not_block_callers(tls):
    """300 connections send nothing or part of a ClientHello: valid calls succeed, and those connections are closed."""
    setup, client_ssl = tls
    async with contextlib.AsyncExitStack() as stack:
        for number in range(300):
            connection = await stack.enter_async_context(raw_connection(setup.gateway.url))
            await connection.send(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        for _ in range(3):
            assert [each.status for each in await exchange_tls(setup, client_ssl)] == [200]
        assert setup.gateway.open_connections <= 50  # connections without a TLS handshake count as well
        assert await connection.read_to_end(60) == b""  # the handshake has timed out


@pytest.mark.parametrize(
    "received", [b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x80\x2e\x01\x00\x02", b"\x15\x03\x01\0\2\2\0"]
)
async def test_an_invalid_handshake_does_no_harm(tls, caplog, received):
    """Invalid data ends only its connection, and the log doesn't quote it."""
    setup, client_ssl = tls
    assert await exchange(setup.gateway.url, received) == []
    assert [each.status for each in await exchange_tls(setup, client_ssl)] == [200]


async def test_old_versions_of_tls_are_rejected(tls):
    """A caller with TLS 1.1 or older gets no connection."""
    setup, _ = tls
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await exchange_tls(setup, old)


async def test_requests_before_the_end_of_tls_are_dropped(tls, caplog):
    """Nothing is sent for a caller that ends TLS after its requests and keeps its socket open.

    Nothing is logged for it.
    """
    setup, client_ssl = tls
    caplog.set_level(logging.INFO)
    for count in (1, 3):
        async with raw_connection(setup.gateway.url, ssl=client_ssl) as connection:
            # The gateway shares this event loop, so both are in its socket before it reads either.
            connection.writer.write(
                build_request(key=setup.keys["lender"], host="127.0.0.1", close=False) * count
            )
            connection.writer.close()
            assert await connection.read_to_end() == b""
    setup.assert_upstream_requests()
    assert not caplog.messages
