"""Credentials, as they go onto a request; they come in here, below the retries."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field

from plaid_relay_async.config import Credentials, GatewayKey, Identity
from plaid_relay_async.errors import ConfigurationError, Hidden, NotSentError, ordinary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@define(eq=False, repr=False)
class Signature:
    """What tells who calls: headers or fields of the body, and the secret in them.

    Attributes:
        to: addresses of requests with these headers, by path, for whoever makes many of them.
    """

    headers: dict[str, str]
    fields: Hidden[dict[str, str]]
    secret: Hidden[str]
    to: dict[str, Any] = field(factory=dict)


@contextlib.contextmanager
def of_the_caller(what: str) -> Iterator[None]:
    """Whatever the caller's own code raises before an attempt: nothing was sent."""
    try:
        yield
    except BaseException as error:
        if not ordinary(error):
            raise
        raise NotSentError(f"{what} raised {type(error).__name__}") from error


@define(eq=False, repr=False)
class Signer:
    """Gives a signature for each attempt."""

    who: Identity
    credentials_in: Literal["headers", "body"]
    _same: Signature | None = field(default=None, init=False)

    @property
    def headers(self) -> frozenset[str]:
        """The names of the headers that contain the credentials."""
        if isinstance(self.who, GatewayKey):
            return frozenset({"Authorization"})
        return frozenset({"PLAID-CLIENT-ID", "PLAID-SECRET"} if self.credentials_in == "headers" else ())

    async def sign(self, deadline: float | None) -> Signature:
        """Fetch the credentials if they have to be, and make a signature of them.

        Raises:
            NotSentError: they can't be had, or not in time.
            ConfigurationError: their source gave something else.
        """
        if self._same is not None:
            return self._same
        if not callable(self.who):
            self._same = self._signature(self.who)
            return self._same
        return self._signature(await self._asked(self.who, deadline))

    async def client_id(self, deadline: float | None) -> str | None:
        """Return the client id, or `None` where a gateway has it. Raises as `sign` does."""
        if isinstance(self.who, GatewayKey):
            return None
        who = await self._asked(self.who, deadline) if callable(self.who) else self.who
        return _credentials(who).client_id

    async def _asked(self, source: Callable[[], Awaitable[Credentials]], deadline: float | None) -> object:
        with of_the_caller("the source of the credentials"):
            async with asyncio.timeout_at(deadline):
                who = await source()
        # A source that blocks the event loop can't be interrupted.
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise NotSentError("the credentials came too late: too little time was left for a response")
        return who

    def _signature(self, who: object) -> Signature:
        nothing: Hidden[dict[str, str]] = Hidden({})
        if isinstance(who, GatewayKey):
            key = Hidden(who.gateway_key)
            return Signature({"Authorization": f"Bearer {key.reveal()}"}, nothing, key)
        who = _credentials(who)
        secret = Hidden(who.secret)
        if self.credentials_in == "body":
            return Signature({}, Hidden({"client_id": who.client_id, "secret": who.secret}), secret)
        return Signature({"PLAID-CLIENT-ID": who.client_id, "PLAID-SECRET": who.secret}, nothing, secret)


def _credentials(who: object) -> Credentials:
    if not isinstance(who, Credentials):
        raise ConfigurationError(f"credentials gave {type(who).__name__}, not Credentials")
    return who
