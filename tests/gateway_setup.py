"""A gateway in front of an upstream that records its requests, and the checks that hold after every test."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trustme
from attrs import define
from raw_http import CREATE, REMOVE, Response, build_request, exchange
from recorder import Recorder

from plaid_relay_async import Credentials
from plaid_relay_async.gateway import RELAY_OPERATIONS, Gateway, Key
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

UPSTREAM_CREDENTIALS = {
    "default": Credentials("id-of-the-owner", "canary-upstream-of-the-owner"),
    "partner": Credentials("id-of-the-partner", "canary-upstream-of-the-partner"),
}
CALLERS: dict[str, dict[str, Any]] = {
    "lender": {},
    "creator": {"operations": [CREATE]},
    "remover": {"operations": [REMOVE]},
    "bound": {"partners": ["p1", "p2"]},
    "partner": {"credentials": "partner"},
    "lost": {"credentials": "nowhere"},
    "hasty": {"rate": RateLimit(2, 60)},
}


@define
class GatewaySetup:
    """A running gateway and all that a test needs to call it.

    Attributes:
        upstream: the server behind the gateway.
        keys: the callers' keys by their names in `CALLERS`.
        client_ssl: the client's TLS context, if the gateway serves HTTPS.
    """

    gateway: Gateway
    upstream: Recorder
    keys: dict[str, str]
    client_ssl: ssl.SSLContext | None = None

    async def exchange(self, *pieces: bytes, **options: Any) -> list[Response]:
        """Send the pieces over one connection, and return all responses."""
        return await exchange(self.gateway.url, *pieces, ssl=self.client_ssl, **options)

    async def exchange_one(self, *pieces: bytes, **options: Any) -> Response:
        """Send the pieces over one connection, check that it ends after one response, and return that."""
        (response,) = await self.exchange(*pieces, **options)
        return response

    async def call(self, path: str = CREATE, caller: str = "lender", **more: Any) -> Response:
        """Make a valid call."""
        return await self.exchange_one(build_request(path, **more, key=self.keys[caller]))

    def assert_upstream_requests(self, *, count: int = 0) -> None:
        """Check that exactly `count` requests reached the upstream."""
        assert len(self.upstream.requests) == count, self.upstream.requests

    def assert_upstream_is_clean(self) -> None:
        """Check each request to the upstream.

        It calls a relay operation, has one pair of upstream credentials, no header twice, and nothing of the
        caller's: no key, cookie, origin or transfer coding.
        """
        for number, request in enumerate(self.upstream.requests):
            assert request.split(b" ")[:2] in [[b"POST", path.encode()] for path in RELAY_OPERATIONS]
            fields = self.upstream.fields(number)
            names = [name for name, _ in fields]
            assert len(names) == len(set(names))
            pair = (dict(fields)["plaid-client-id"], dict(fields)["plaid-secret"])
            assert pair in [(each.client_id, each.secret) for each in UPSTREAM_CREDENTIALS.values()]
            assert not {"authorization", "cookie", "origin", "transfer-encoding"} & set(names)
            assert not any(key.encode() in request for key in self.keys.values())


async def wait_for_keys(gateway: Gateway, *names: str) -> None:
    """Wait until a gateway has loaded exactly the keys with these names from its file."""
    async with asyncio.timeout(60):
        while {key.name for key in gateway.keys} != set(names):
            await asyncio.sleep(0.01)


def caller_sockets(url: str) -> Iterator[socket.socket]:
    """Yield duplicates of the sockets of this process that a gateway uses for connections with its callers."""
    for path in Path("/proc/self/fd").iterdir():
        if not path.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(path.name))) as duplicate, contextlib.suppress(OSError):
            duplicate.getpeername()  # fails for a socket that listens
            if duplicate.family == socket.AF_INET and duplicate.getsockname()[1] == urlsplit(url).port:
                yield duplicate


def queued_bytes(connection: socket.socket, queue: int) -> int:
    """Return how many bytes the system queues for a socket: `FIONREAD`, unread ones; `TIOCOUTQ`, unsent ones."""
    return int.from_bytes(fcntl.ioctl(connection, queue, bytes(4)), sys.byteorder)


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server on 127.0.0.1 and of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@contextlib.asynccontextmanager
async def running_gateway(
    *, client_ssl: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[GatewaySetup]:
    """Run a gateway; after the block, check that it still serves and that every upstream request was clean."""
    created = {name: new_key(name, **permissions) for name, permissions in CALLERS.items()}
    records: Iterable[Key] = [key for key, _ in created.values()]
    keys = {name: key for name, (_, key) in created.items()}
    async with (
        Recorder() as upstream,
        Gateway(
            records, **{"upstream": upstream.url, "credentials": UPSTREAM_CREDENTIALS} | options
        ) as gateway,
    ):
        setup = GatewaySetup(gateway, upstream, keys, client_ssl)
        yield setup
        upstream.respond, upstream.ending, upstream.pause = upstream.creation_response, "keep", 0.0
        before = len(upstream.requests)
        response = await setup.call()
        assert (response.status, len(upstream.requests)) == (200, before + 1)
        assert response.json["relay_token"].startswith("credit-relay-sandbox-")
        setup.assert_upstream_is_clean()
