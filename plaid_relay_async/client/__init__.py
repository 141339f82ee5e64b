"""`RelayClient`: a typed method for each of Plaid's operations, in groups."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from plaid_relay_async.batch import CallContext
from plaid_relay_async.cancellation import DrainTracker, run_to_completion
from plaid_relay_async.client.asset_report import AssetReports
from plaid_relay_async.client.item import Items
from plaid_relay_async.client.late_outcomes import LateOutcomes
from plaid_relay_async.client.relay import Relay
from plaid_relay_async.client.sandbox import Sandbox
from plaid_relay_async.client.webhook_events import SentWebhooks, WebhookEvents
from plaid_relay_async.client.webhook_verification_key import WebhookVerificationKeys
from plaid_relay_async.client.webhooks import Webhooks
from plaid_relay_async.config import (
    CredentialsSource,
    Environment,
    RetryPolicy,
    Timeouts,
    check_type,
    resolve_base_url,
    resolve_identity,
    resolve_user_agent,
)
from plaid_relay_async.errors import ClientClosedError, ConfigurationError
from plaid_relay_async.redaction import strip_init_traceback, strip_traceback
from plaid_relay_async.session import SessionManager, check_borrowed_session
from plaid_relay_async.telemetry import Observer, connect_client, log_to_stderr_if_requested
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
    from plaid_relay_async.telemetry import AttemptEnd, CallEnd, Telemetry

__all__ = [
    "AssetReports",
    "Items",
    "Relay",
    "RelayClient",
    "Sandbox",
    "SentWebhooks",
    "WebhookEvents",
    "WebhookVerificationKeys",
    "Webhooks",
]


@strip_init_traceback
class RelayClient:
    """A client of Plaid's credit relay.

    Open it with `async with`, inside the event loop that uses it, and keep it open as long as you need it: it
    has a connection pool.

    Args:
        credentials: `Credentials`, or an async callable that returns them for each attempt; the default is
            PLAID_CLIENT_ID and PLAID_SECRET from the environment.
        environment: the environment of Plaid; the default is PLAID_ENV, or else the sandbox.
        base_url: the URL of a gateway or simulator, instead of an environment of Plaid; the default is
            PLAID_BASE_URL, unless `environment` is passed.
        gateway_key: sent as `Authorization: Bearer` instead of credentials.
        credentials_in: whether credentials are sent in the `"headers"` or in the `"body"`.
        session: an `aiohttp.ClientSession` to borrow, with its settings and cookies. The caller closes it.
        timeouts: the timeouts of calls and attempts.
        retry: the retry policy.
        rate_limiter: an object with `async acquire(endpoint)`; see `RateLimiter`.
        on_retry: a function, not async, that is called with a `Retry` before each retry. If it raises an
            exception, the call isn't retried.
        on_late_outcome: a function, not async, that is called with the outcome of a single call whose task
            was cancelled after its request was sent, except for safe operations. The default logs a warning
            with the operation, the partner and the request ID, and without the token.
        on_attempt: a function, not async, that is called with an `AttemptEnd` at the end of each attempt.
        on_call_end: a function, not async, that is called with a `CallEnd` at the end of each call, also in a
            batch. An exception of it or of `on_attempt` is logged, and changes nothing.
        telemetry: settings of OpenTelemetry, with the extra `otel`. By default, its global providers receive
            traces and metrics, if the program has configured them.
        application: the name and the version of your application, such as `("loan-service", "1.4")`, which
            are added to the header User-Agent.
        max_response_bytes: the maximum size of a report, in bytes; a longer one is an error. Default: 64 MiB.
        connections: the maximum number of connections of an owned pool.
        ssl: an `ssl.SSLContext`, such as one with your own CA bundle.
        proxy: the URL of an HTTP proxy, which may contain a user and a password; an empty string means no
            proxy, even if the environment has one. Loopback addresses are never called through a proxy.
        trust_env: whether to take the proxy from HTTPS_PROXY or ALL_PROXY, and hosts that are called without
            it from NO_PROXY. A `.netrc` isn't read.
        direct: whether requests bypass aiohttp's `ClientSession` and use its connection pool, through methods
            that are public but not documented. It applies to an owned pool without a proxy. With the session
            each call takes 40 % more CPU time.
        tls_buffer: the size in bytes of asyncio's read buffer for each TLS connection, instead of 256 KB. It
            applies to all new connections of the process.

    Attributes:
        relay: share reports, and read shared reports.
        asset_report: create and read reports.
        sandbox: create test data.
        item: exchange public tokens, and remove Items. An Item is a connection to a bank.
        webhook_verification_key: keys that verify webhooks.
        webhook_events: list the webhooks that Plaid has sent; in beta at Plaid.
        webhooks: verify and recover the webhooks that Plaid sends, with the extra `webhooks`.

    Raises:
        ConfigurationError: an argument or an environment variable is missing, invalid or unsafe; the error
            names it.
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
        on_attempt: Callable[[AttemptEnd], object] | None = None,
        on_call_end: Callable[[CallEnd], object] | None = None,
        telemetry: Telemetry | None = None,
        application: tuple[str, str] | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        connections: int = 100,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        direct: bool = True,
        tls_buffer: int | None = None,
    ) -> None:
        if credentials_in not in ("headers", "body"):  # no set: the value may be unhashable
            raise ConfigurationError("credentials_in must be 'headers' or 'body'")
        log_to_stderr_if_requested()
        timeouts = Timeouts() if timeouts is None else timeouts
        retry = RetryPolicy() if retry is None else retry
        check_type("timeouts", timeouts, Timeouts)
        check_type("retry", retry, RetryPolicy)
        self._late_outcomes = LateOutcomes(on_late_outcome)
        self._base_url = resolve_base_url(base_url, environment)
        otel = connect_client(telemetry, self._base_url)
        observer = Observer(on_attempt, on_call_end, otel)
        authenticator = Authenticator(resolve_identity(credentials, gateway_key), credentials_in)
        if session is not None:
            check_borrowed_session(session, authenticator.header_names)
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
        transport = Transport(
            self._session,
            base_url=self._base_url,
            authenticator=authenticator,
            timeouts=timeouts,
            retry=retry,
            rate_limiter=rate_limiter,
            drains=DrainTracker(),
            observer=observer,
            on_late_outcome=self._late_outcomes.report_call,
            on_retry=on_retry,
            user_agent=resolve_user_agent(application),
            max_response_bytes=max_response_bytes,
        )
        self._use(transport, timeouts, is_original=True)

    def _use(self, transport: Transport, timeouts: Timeouts, *, is_original: bool) -> None:
        self._is_original = is_original
        self._transport = transport
        self._timeouts = timeouts
        self.relay = Relay(transport, timeouts, self._late_outcomes)
        self.asset_report = AssetReports(transport)
        self.sandbox = Sandbox(transport)
        self.item = Items(transport)
        self.webhook_verification_key = WebhookVerificationKeys(transport)
        self.webhook_events = WebhookEvents(transport)
        self.webhooks = Webhooks(
            self.webhook_verification_key,
            self.webhook_events,
            self.asset_report,
            Environment.from_url(self._base_url),
        )

    @strip_traceback
    def with_options(
        self,
        *,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        credentials: CredentialsSource | None = None,
        rate_limiter: RateLimiter | None = None,
    ) -> Self:
        """Return a client with other settings and the same connection pool.

        Use the new client while this one is open, and don't open or close it. Closing this client ends the
        calls of both. The new client has all other settings of this one, including the callbacks, and both
        have the same counters in `statistics()`.

        Without `credentials`, both clients also share the rate limiter, pauses and adaptive rates. With other
        credentials they share none of these. So keep the new client while you use the credentials.

        Args:
            timeouts: replaces all timeouts, except for `idle`. `close()` of this client waits for its own
                `drain`.
            retry: the retry policy.
            credentials: other credentials in the same environment: `Credentials`, or an async callable.
            rate_limiter: the rate limiter of these credentials; by default they have none.

        Raises:
            ConfigurationError: an argument is invalid, there is a rate limiter without credentials, or a
                gateway adds the credentials.
        """
        client = copy.copy(self)
        transport = self._transport.with_options(timeouts, retry, credentials, rate_limiter)
        client._use(transport, timeouts or self._timeouts, is_original=False)  # noqa: SLF001  # of this class
        return client

    def call_context(self) -> CallContext:
        """Return the context in which a journal records calls that others make for this client.

        A queue of tasks, such as `plaid_relay_async.temporal.TaskQueue`, needs it for the journal.
        """
        transport, total = self._transport, self._timeouts.total
        client_id = partial(transport.client_id, total)
        return CallContext(transport.host, client_id, total, transport.host_as_typed)

    async def open(self) -> None:
        """Open the connection pool inside the running event loop; `async with` does this.

        Raises:
            ClientClosedError: the client was opened or closed before, the borrowed session is closed, or the
                client is one of `with_options`.
            ConfigurationError: the borrowed session would send a login from `.netrc`, or would send plain
                http to a proxy on another machine.
        """
        self._check_original()
        await self._session.open()

    async def close(self) -> None:
        """Close the connection pool, unless it is borrowed; `async with` does this.

        After that no call starts, and calls that wait, such as for a rate limiter or for their next attempt,
        fail with `ClientClosedError`, or with the error of an attempt in doubt. This method waits for drains
        in progress, for at most `Timeouts.drain`. Other calls in flight are aborted. A cancellation of this
        method is raised after the client is closed. Closing a closed client does nothing.

        Raises:
            ClientClosedError: the client is one of `with_options`.
        """
        self._check_original()
        if self._session.start_closing():
            self._transport.end_waits()
            await run_to_completion(self._close)

    async def _close(self) -> None:
        await self._transport.drains.wait_all(self._timeouts.drain)
        await self._session.close()

    def _check_original(self) -> None:
        if not self._is_original:
            raise ClientClosedError(
                "this client shares the connections of another one, and isn't opened or closed",
                advice="Open and close the client whose `with_options` returned it.",
            )

    def statistics(self) -> Statistics:
        """Return a snapshot of what the client has done since it was created, and of its current state.

        The counters include the calls of all clients that share the pool; see `with_options`. The rates are
        those of the client's own credentials.
        """
        return self._transport.statistics()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<RelayClient for {self._base_url}>"
