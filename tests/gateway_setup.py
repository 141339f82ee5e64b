"""A gateway before an upstream that records, and what must be so after whatever was done to it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import trustme
from attrs import define
from raw_http import CREATE, REMOVE, Response, build_request, exchange
from recorder import Recorder

from plaid_relay_async import Credentials
from plaid_relay_async.gateway import RELAY_OPERATIONS, Gateway, Key
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

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
    """A gateway, its upstream, the keys of its callers by their names, and whom these trust where it speaks TLS."""

    gateway: Gateway
    upstream: Recorder
    keys: dict[str, str]
    client_ssl: ssl.SSLContext | None = None

    async def exchange(self, *pieces: bytes, **options: Any) -> list[Response]:
        """Send this over one connection, and give all answers."""
        return await exchange(self.gateway.url, *pieces, ssl=self.client_ssl, **options)

    async def exchange_one(self, *pieces: bytes, **options: Any) -> Response:
        """The same where there has to be one answer, and the connection ends."""
        (answer,) = await self.exchange(*pieces, **options)
        return answer

    async def call(self, path: str = CREATE, caller: str = "lender", **more: Any) -> Response:
        """A good call."""
        return await self.exchange_one(build_request(path, **more, key=self.keys[caller]))

    def assert_upstream_requests(self, *, count: int = 0) -> None:
        """No more than so many requests reached the upstream."""
        assert len(self.upstream.requests) == count, self.upstream.requests

    def assert_upstream_is_clean(self) -> None:
        """What reached the upstream are calls that it serves, with its credentials alone, and no caller's."""
        for number, came in enumerate(self.upstream.requests):
            assert came.split(b" ")[:2] in [[b"POST", path.encode()] for path in RELAY_OPERATIONS]
            fields = self.upstream.fields(number)
            names = [name for name, _ in fields]
            assert len(names) == len(set(names))
            who = (dict(fields)["plaid-client-id"], dict(fields)["plaid-secret"])
            assert who in [(each.client_id, each.secret) for each in UPSTREAM_CREDENTIALS.values()]
            assert not {"authorization", "cookie", "origin", "transfer-encoding"} & set(names)
            assert not any(key.encode() in came for key in self.keys.values())


async def wait_for_keys(gateway: Gateway, *names: str) -> None:
    """Wait until a gateway has noticed that its file has the keys of these names, and no other."""
    async with asyncio.timeout(60):
        while {key.name for key in gateway._callers.keys} != set(names):
            await asyncio.sleep(0.01)


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS context of a server on 127.0.0.1, and one that trusts it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


@contextlib.asynccontextmanager
async def running_gateway(
    *, client_ssl: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[GatewaySetup]:
    """A gateway that still serves, in the end, and of which the upstream has seen nothing that it mustn't."""
    made = {name: new_key(name, **bound) for name, bound in CALLERS.items()}
    records: Iterable[Key] = [key for key, _ in made.values()]
    keys = {name: key for name, (_, key) in made.items()}
    async with (
        Recorder() as upstream,
        Gateway(
            records, **{"upstream": upstream.url, "credentials": UPSTREAM_CREDENTIALS} | options
        ) as gateway,
    ):
        built = GatewaySetup(gateway, upstream, keys, client_ssl)
        yield built
        upstream.says, upstream.then, upstream.pause = upstream.created, "keep", 0.0
        before = len(upstream.requests)
        answer = await built.call()
        assert (answer.status, len(upstream.requests)) == (200, before + 1)
        assert answer.json["relay_token"].startswith("credit-relay-sandbox-")
        built.assert_upstream_is_clean()
