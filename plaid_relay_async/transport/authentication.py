"""Credentials of an attempt. They are added below the retries, so no layer above has them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field

from plaid_relay_async.config import Credentials, GatewayKey, Identity, resolve_identity
from plaid_relay_async.errors import ConfigurationError, NotSentError, is_ordinary_error
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from plaid_relay_async.config import CredentialsSource


@define(eq=False, repr=False)
class Authentication:
    """The credentials of a request, as headers or as fields of the body.

    Attributes:
        headers: the headers with credentials; empty if they are in the body.
        fields: the fields of the body with credentials; empty if they are in the headers.
        secret: the secret in either of them, to be redacted in errors.
        prepared_requests: requests that were prepared with these headers, by path, for reuse.
    """

    headers: dict[str, str]
    fields: Hidden[dict[str, str]]
    secret: Hidden[str]
    prepared_requests: dict[str, Any] = field(factory=dict)


@contextlib.contextmanager
def errors_as_not_sent(source: str) -> Iterator[None]:
    """Raise the errors of the caller's own code, which runs before an attempt, as NotSentError."""
    try:
        yield
    except BaseException as error:
        if not is_ordinary_error(error):
            raise
        raise NotSentError(f"{source} raised {type(error).__name__}") from error


@define(eq=False, repr=False)
class Authenticator:
    """Adds credentials to each attempt.

    Attributes:
        identity: the credentials, their source, or a gateway key.
        credentials_in: where Plaid's credentials go.
        fixed: the credentials, the same for all attempts; `None` if they have a source.
    """

    identity: Identity
    credentials_in: Literal["headers", "body"]
    fixed: Authentication | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.fixed = None if callable(self.identity) else self._authentication_of(self.identity)

    @property
    def header_names(self) -> frozenset[str]:
        """The names of the headers that contain the credentials."""
        if isinstance(self.identity, GatewayKey):
            return frozenset({"Authorization"})
        return frozenset({"PLAID-CLIENT-ID", "PLAID-SECRET"} if self.credentials_in == "headers" else ())

    def with_credentials(self, credentials: CredentialsSource) -> Authenticator:
        """Return an authenticator that adds other credentials in the same way.

        Raises:
            ConfigurationError: they aren't credentials, or a gateway adds the credentials.
        """
        if isinstance(self.identity, GatewayKey):
            raise ConfigurationError("this client has a gateway_key: the gateway adds the credentials")
        return Authenticator(resolve_identity(credentials, None), self.credentials_in)

    async def authenticate(self, deadline: float) -> Authentication:
        """Return the credentials for one attempt, from the source if there is one.

        Args:
            deadline: the time by the event loop's clock by which the source must return; infinite: no limit.

        Raises:
            NotSentError: the source raised, or took too long.
            ConfigurationError: the source didn't return `Credentials`.
        """
        if callable(self.identity):
            return self._authentication_of(await self._fetch_credentials(self.identity, deadline))
        assert self.fixed is not None  # noqa: S101  # the identity isn't a source
        return self.fixed

    async def client_id(self, deadline: float) -> str | None:
        """Return the client ID, or `None` if a gateway adds it. Raises the errors of `authenticate`."""
        if isinstance(self.identity, GatewayKey):
            return None
        credentials = (
            await self._fetch_credentials(self.identity, deadline)
            if callable(self.identity)
            else self.identity
        )
        return _checked_credentials(credentials).client_id

    async def _fetch_credentials(
        self, source: Callable[[], Awaitable[Credentials]], deadline: float
    ) -> object:
        with errors_as_not_sent("the source of the credentials"):
            async with asyncio.timeout_at(deadline if math.isfinite(deadline) else None):
                credentials = await source()
        # A source that blocks the event loop can't be interrupted, so the time is checked again.
        if asyncio.get_running_loop().time() >= deadline:
            raise NotSentError("the credentials arrived too late: too little time was left for a response")
        return credentials

    def _authentication_of(self, identity: object) -> Authentication:
        no_fields: Hidden[dict[str, str]] = Hidden({})
        if isinstance(identity, GatewayKey):
            key = Hidden(identity.gateway_key)
            return Authentication({"Authorization": f"Bearer {key.reveal()}"}, no_fields, key)
        identity = _checked_credentials(identity)
        secret = Hidden(identity.secret)
        if self.credentials_in == "body":
            return Authentication(
                {}, Hidden({"client_id": identity.client_id, "secret": identity.secret}), secret
            )
        return Authentication(
            {"PLAID-CLIENT-ID": identity.client_id, "PLAID-SECRET": identity.secret}, no_fields, secret
        )


def _checked_credentials(credentials: object) -> Credentials:
    if not isinstance(credentials, Credentials):
        raise ConfigurationError(
            f"the source of the credentials returned {type(credentials).__name__}, not Credentials"
        )
    return credentials
