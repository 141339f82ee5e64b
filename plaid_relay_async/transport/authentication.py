"""Credentials, as they go onto a request; they come in here, below the retries."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field

from plaid_relay_async.config import Credentials, GatewayKey, Identity
from plaid_relay_async.errors import ConfigurationError, Hidden, NotSentError, is_ordinary_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@define(eq=False, repr=False)
class Authentication:
    """What tells who calls: headers or fields of the body, and the secret in them.

    Attributes:
        to: addresses of requests with these headers, by path, for whoever makes many of them.
    """

    headers: dict[str, str]
    fields: Hidden[dict[str, str]]
    secret: Hidden[str]
    prepared_requests: dict[str, Any] = field(factory=dict)


@contextlib.contextmanager
def errors_as_not_sent(source: str) -> Iterator[None]:
    """Whatever the caller's own code raises before an attempt: nothing was sent."""
    try:
        yield
    except BaseException as error:
        if not is_ordinary_error(error):
            raise
        raise NotSentError(f"{source} raised {type(error).__name__}") from error


@define(eq=False, repr=False)
class Authenticator:
    """Gives a signature for each attempt."""

    identity: Identity
    credentials_in: Literal["headers", "body"]
    _cached: Authentication | None = field(default=None, init=False)

    @property
    def headers(self) -> frozenset[str]:
        """The names of the headers that contain the credentials."""
        if isinstance(self.identity, GatewayKey):
            return frozenset({"Authorization"})
        return frozenset({"PLAID-CLIENT-ID", "PLAID-SECRET"} if self.credentials_in == "headers" else ())

    async def authenticate(self, deadline: float | None) -> Authentication:
        """Fetch the credentials if they have to be, and make a signature of them.

        Raises:
            NotSentError: they can't be had, or not in time.
            ConfigurationError: their source gave something else.
        """
        if self._cached is not None:
            return self._cached
        if not callable(self.identity):
            self._cached = self._authentication_of(self.identity)
            return self._cached
        return self._authentication_of(await self._fetch_credentials(self.identity, deadline))

    async def client_id(self, deadline: float | None) -> str | None:
        """Return the client id, or `None` where a gateway has it. Raises as `sign` does."""
        if isinstance(self.identity, GatewayKey):
            return None
        who = (
            await self._fetch_credentials(self.identity, deadline)
            if callable(self.identity)
            else self.identity
        )
        return _checked_credentials(who).client_id

    async def _fetch_credentials(
        self, source: Callable[[], Awaitable[Credentials]], deadline: float | None
    ) -> object:
        with errors_as_not_sent("the source of the credentials"):
            async with asyncio.timeout_at(deadline):
                who = await source()
        # A source that blocks the event loop can't be interrupted.
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise NotSentError("the credentials came too late: too little time was left for a response")
        return who

    def _authentication_of(self, identity: object) -> Authentication:
        nothing: Hidden[dict[str, str]] = Hidden({})
        if isinstance(identity, GatewayKey):
            key = Hidden(identity.gateway_key)
            return Authentication({"Authorization": f"Bearer {key.reveal()}"}, nothing, key)
        identity = _checked_credentials(identity)
        secret = Hidden(identity.secret)
        if self.credentials_in == "body":
            return Authentication(
                {}, Hidden({"client_id": identity.client_id, "secret": identity.secret}), secret
            )
        return Authentication(
            {"PLAID-CLIENT-ID": identity.client_id, "PLAID-SECRET": identity.secret}, nothing, secret
        )


def _checked_credentials(who: object) -> Credentials:
    if not isinstance(who, Credentials):
        raise ConfigurationError(f"credentials gave {type(who).__name__}, not Credentials")
    return who
