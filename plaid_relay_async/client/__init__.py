"""`RelayClient`: one typed method for each of Plaid's operations, in namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from plaid_relay_async.cancellation import DrainTracker, run_to_completion
from plaid_relay_async.client.asset_report import AssetReports
from plaid_relay_async.client.item import Items
from plaid_relay_async.client.late_outcomes import LateOutcomes
from plaid_relay_async.client.relay import Relay
from plaid_relay_async.client.sandbox import Sandbox
from plaid_relay_async.client.webhook_verification_key import WebhookVerificationKeys
from plaid_relay_async.config import (
    CredentialsSource,
    Environment,
    RetryPolicy,
    Timeouts,
    check_type,
    resolve_base_url,
    resolve_identity,
)
from plaid_relay_async.errors import ConfigurationError, strip_init_traceback
from plaid_relay_async.session import SessionManager, check_borrowed_session
from plaid_relay_async.transport import (
    MAX_RESPONSE_BYTES,
    Authenticator,
    RateLimiter,
    Retry,
    Statistics,
    Transport,
)

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable
    from types import TracebackType

    import aiohttp

    from plaid_relay_async.outcomes import LateOutcome

__all__ = ["AssetReports", "Items", "Relay", "RelayClient", "Sandbox", "WebhookVerificationKeys"]


@strip_init_traceback
class RelayClient:
    """A client of Plaid's credit relay.

    Open it with `async with`, inside the event loop that uses it, and keep it as long as you need it: it
    holds a pool of connections.

    Args:
        credentials: `Credentials`, or an async callable that gives them for each attempt; without,
            PLAID_CLIENT_ID and PLAID_SECRET.
        environment: where to call; without, PLAID_ENV, and without that the sandbox.
        base_url: a gateway's or the simulator's address, in place of an environment's; without, and with no
            environment named, PLAID_BASE_URL.
        gateway_key: sent as `Authorization: Bearer` in place of credentials.
        credentials_in: whether credentials go in `"headers"` or in the `"body"`.
        session: an `aiohttp.ClientSession` to borrow; it stays the caller's, with its settings and cookies.
        timeouts: how long to wait for what.
        retry: when and how often to repeat.
        rate_limiter: anything with `async acquire(endpoint)`.
        on_retry: a plain function that is called with a `Retry` before each further attempt.
        on_late_outcome: a plain function that is called with the outcome of a single call whose task was
            cancelled after its request had left. Reads have none. Without it, a warning is logged that names
            the operation, the partner and the request id, and no token.
        max_response_bytes: longer answers aren't read to their end; what can be long is a report.
        connections: how many connections an owned pool holds at most.
        ssl: an `ssl.SSLContext`, such as one with your own CA bundle.
        proxy: the URL of an HTTP proxy, which may hold a user and a password; an empty string for none,
            whatever the environment says. Loopback addresses are always called directly.
        trust_env: whether the environment may name the proxy, by HTTPS_PROXY or ALL_PROXY, and hosts to call
            without one, by NO_PROXY. A `.netrc` isn't read.
        direct: use an owned pool, where it has no proxy, without aiohttp's `ClientSession`, by methods that
            are public but not documented. By the session each call takes two fifths longer.
        tls_buffer: bytes that asyncio sets aside for reading from each TLS connection, in place of its 256
            KB, for the whole process and for connections that are made from then on.

    Attributes:
        relay: share reports, and read what was shared.
        asset_report: the reports to share.
        sandbox: test data.
        item: connections to a bank.
        webhook_verification_key: the keys that webhooks are signed with.

    Raises:
        ConfigurationError: an argument or a variable is missing, wrong or unsafe; it is named.
    """

    def __init__(
        self,
        credentials: CredentialsSource | None = None,
        *,
        environment: Environment | str | None = None,
        base_url: str | None = None,
        gateway_key: str | None = None,
        credentials_in: Literal["headers", "body"] = "headers",
        session: aiohttp.ClientSession | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        rate_limiter: RateLimiter | None = None,
        on_retry: Callable[[Retry], object] | None = None,
        on_late_outcome: Callable[[LateOutcome], object] | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        connections: int = 100,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        direct: bool = True,
        tls_buffer: int | None = None,
    ) -> None:
        if credentials_in not in {"headers", "body"}:
            raise ConfigurationError(f"credentials_in must be 'headers' or 'body', not {credentials_in!r}")
        timeouts = Timeouts() if timeouts is None else timeouts
        retry = RetryPolicy() if retry is None else retry
        check_type("timeouts", timeouts, Timeouts)
        check_type("retry", retry, RetryPolicy)
        late = LateOutcomes(on_late_outcome)
        self._drain = timeouts.drain
        self._base_url = resolve_base_url(base_url, environment)
        signer = Authenticator(resolve_identity(credentials, gateway_key), credentials_in)
        if session is not None:
            check_borrowed_session(session, signer.headers)
        self._session = SessionManager(
            session,
            base_url=self._base_url,
            connections=connections,
            idle=timeouts.idle,
            ssl=ssl,
            proxy=proxy,
            trust_env=trust_env,
            direct=direct,
            tls_buffer=tls_buffer,
        )
        self._transport = transport = Transport(
            self._session,
            base_url=self._base_url,
            authenticator=signer,
            timeouts=timeouts,
            retry=retry,
            rate_limiter=rate_limiter,
            drains=DrainTracker(),
            on_late_outcome=late.report_call,
            on_retry=on_retry,
            max_response_bytes=max_response_bytes,
        )
        self.relay = Relay(transport, timeouts, late)
        self.asset_report = AssetReports(transport)
        self.sandbox = Sandbox(transport)
        self.item = Items(transport)
        self.webhook_verification_key = WebhookVerificationKeys(transport)

    async def open(self) -> None:
        """Open the pool inside the running loop; `async with` does it.

        Raises:
            ClientClosedError: it was opened before.
            ConfigurationError: the borrowed session would send a login from `.netrc`.
        """
        await self._session.open()

    async def close(self) -> None:
        """Close the pool, if it is the client's own; `async with` does it. More than once is harmless.

        No call starts any more, and those that wait, such as for a rate limiter or for their next attempt,
        fail with `ClientClosedError`. Drains that are in progress are waited for, for `Timeouts.drain` at
        most. Other calls in flight are cut off. A cancellation is raised once the client is closed.
        """
        if self._session.start_closing():
            self._transport.end_waits()
            await run_to_completion(self._close)

    async def _close(self) -> None:
        await self._transport.drains.wait_all(self._drain)
        await self._session.close()

    def statistics(self) -> Statistics:
        """Give what was done since the client was made, and where it stands, in numbers."""
        return self._transport.statistics()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<RelayClient for {self._base_url}>"
