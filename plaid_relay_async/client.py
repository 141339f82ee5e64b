"""`RelayClient`: one typed method for each of Plaid's operations, in namespaces."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from plaid_relay_async import codec
from plaid_relay_async.batch import Batch
from plaid_relay_async.config import (
    CredentialsSource,
    Environment,
    RetryPolicy,
    Timeouts,
    check_count,
    check_type,
    resolve_base_url,
    resolve_identity,
)
from plaid_relay_async.errors import ConfigurationError, sealed, sealed_init
from plaid_relay_async.models import (
    AssetReportCreateOptions,
    AssetReportCreateRequest,
    AssetReportCreateResponse,
    AssetReportGetRequest,
    AssetReportGetResponse,
    ItemPublicTokenExchangeRequest,
    ItemPublicTokenExchangeResponse,
    PdfResponse,
    RelayCreateRequest,
    RelayCreateResponse,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRefreshResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
    SandboxPublicTokenCreateRequest,
    SandboxPublicTokenCreateResponse,
)
from plaid_relay_async.session import SessionManager
from plaid_relay_async.transport import RateLimiter, Transport

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable, Coroutine, Iterable
    from types import TracebackType
    from typing import TypeAlias

    import aiohttp

    from plaid_relay_async.batch import Journal, Outcome, Progress, Requests
    from plaid_relay_async.transport import Permit

    T = TypeVar("T")
    Call: TypeAlias = Coroutine[Any, Any, T]

# The methods below are plain functions that give a coroutine: the frame that holds a token as an argument has
# returned by the time that anything can go wrong on the wire, so that no traceback shows it.


class _Operations:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport


class Relay(_Operations):
    """`client.relay`: share reports, and read what was shared."""

    def __init__(self, transport: Transport, timeouts: Timeouts) -> None:
        super().__init__(transport)
        self._drain = timeouts.drain

    @sealed
    def create(
        self,
        report_tokens: Iterable[str],
        secondary_client_id: str,
        *,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayCreateResponse]:
        """Share a report with one partner; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelaycreate, `credit_relay_create` in plaid-python.
        If the task is cancelled while the call is under way, nobody can tell whether there is a token.

        Args:
            report_tokens: one asset report token, in a list.
            secondary_client_id: the partner's client id at Plaid.
            webhook: an http(s) URL to which Plaid tells that the partner fetched the report.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            InvalidRequestError: an argument can't pass (`sent` is False), or Plaid refused it.
            OutcomeUnknownError: there may be a token that nobody holds.
            PlaidRelayError: there is no token; see the class.
        """
        request = RelayCreateRequest(report_tokens, secondary_client_id, webhook)
        return self._transport.call(codec.RELAY_CREATE, request, timeout=timeout, retry=retry)

    def create_many(
        self,
        requests: Requests,
        *,
        concurrency: int = 50,
        journal: Journal | None = None,
        on_outcome: Callable[[Outcome], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch:
        """Create a relay token for each request, many at a time; called by the report's owner.

        Await what this gives for a `BatchResult`, or stream the outcomes as they come with `async with` and
        `async for`. Keep a reference to it if the task may be cancelled: its `result` then has what there is.

        Args:
            requests: any iterable or async iterable, read as it is needed; see `RelayCreateRequest.fan_out`.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            journal: where to write down what is begun and what became of it.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: create for a pair of report and partner each time that it comes. Otherwise the
                second is a `Failed`, and some 100 bytes are kept for each request.
            timeout: seconds for each creation, all its attempts together; pauses that Plaid asks for and
                queueing aren't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            BatchStoppedError: in the end, if the input, the journal or a callback raised; it has the result.
        """
        check_count("concurrency", concurrency)
        self._transport.checked(timeout, retry)
        if inspect.iscoroutinefunction(on_outcome) or inspect.iscoroutinefunction(on_progress):
            raise ConfigurationError("on_outcome and on_progress must be plain functions, not async ones")

        def create(request: RelayCreateRequest, permit: Permit) -> Call[RelayCreateResponse]:
            return self._transport.call(
                codec.RELAY_CREATE, request, timeout=timeout, retry=retry, permit=permit
            )

        return Batch(
            requests,
            create,
            concurrency=concurrency,
            drain=self._drain,
            journal=journal,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
        )

    @sealed
    def get(
        self,
        relay_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report that was shared with you; called by the partner, with its own credentials.

        https://plaid.com/docs/api/products/assets/#creditrelayget, `credit_relay_get` in plaid-python.

        Args:
            relay_token: as the owner handed it over.
            include_insights: with categories and merchants.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a report.
            PlaidRelayError: see the class.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights)
        return self._transport.call(codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @sealed
    def get_pdf(
        self, relay_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[PdfResponse]:
        """Read a report that was shared with you, as a PDF; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelaypdfget (beta), `credit_relay_pdf_get` in
        plaid-python.

        Args:
            relay_token: as the owner handed it over.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            PlaidRelayError: see the class.
        """
        request = RelayPdfGetRequest(relay_token)
        return self._transport.call(codec.RELAY_PDF_GET, request, timeout=timeout, retry=retry)

    @sealed
    def refresh(
        self,
        relay_token: str,
        *,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayRefreshResponse]:
        """Have the report made anew, with recent data; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelayrefresh, `credit_relay_refresh` in
        plaid-python. Each call makes a new report, and so it is repeated as carefully as `create`.

        Args:
            relay_token: as the owner handed it over.
            webhook: an http(s) URL to which Plaid tells that the new report is ready.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a new report.
            PlaidRelayError: there is none; see the class.
        """
        request = RelayRefreshRequest(relay_token, webhook=webhook)
        return self._transport.call(codec.RELAY_REFRESH, request, timeout=timeout, retry=retry)

    @sealed
    def remove(
        self, relay_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[RelayRemoveResponse]:
        """Take a relay token back; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelayremove, `credit_relay_remove` in plaid-python.
        If an attempt got no answer and the next was told that there is no such token, the answer says
        `removed=True, inferred=True`.

        Args:
            relay_token: as `create` gave it.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = RelayRemoveRequest(relay_token)
        return self._transport.call(codec.RELAY_REMOVE, request, timeout=timeout, retry=retry)


class AssetReports(_Operations):
    """`client.asset_report`: the reports to share."""

    @sealed
    def create(
        self,
        access_tokens: Iterable[str],
        days_requested: int,
        *,
        client_report_id: str | None = None,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportCreateResponse]:
        """Have a report made, which takes seconds to a minute; partners are known to share it before.

        https://plaid.com/docs/api/products/assets/#asset_reportcreate, `asset_report_create` in plaid-python.

        Args:
            access_tokens: 1 to 99, one for each Item.
            days_requested: days of history, 0 to 731.
            client_report_id: a name of your own.
            webhook: an http(s) URL to which Plaid tells that the report is ready.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a report that nobody holds the token of.
            PlaidRelayError: there is none; see the class.
        """
        named = client_report_id is not None or webhook is not None
        options = (
            AssetReportCreateOptions(client_report_id=client_report_id, webhook=webhook) if named else None
        )
        request = AssetReportCreateRequest(access_tokens, days_requested, options)
        return self._transport.call(codec.ASSET_REPORT_CREATE, request, timeout=timeout, retry=retry)

    @sealed
    def get(
        self,
        asset_report_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report of one's own.

        https://plaid.com/docs/api/products/assets/#asset_reportget, `asset_report_get` in plaid-python.

        Args:
            asset_report_token: as `create` gave it.
            include_insights: with categories and merchants.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a report.
            PlaidRelayError: see the class.
        """
        request = AssetReportGetRequest(asset_report_token, include_insights=include_insights)
        return self._transport.call(codec.ASSET_REPORT_GET, request, timeout=timeout, retry=retry)


class Sandbox(_Operations):
    """`client.sandbox`: test data, in the sandbox alone."""

    @sealed
    def create_public_token(
        self,
        institution_id: str = "ins_109508",
        initial_products: Iterable[str] = ("assets",),
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[SandboxPublicTokenCreateResponse]:
        """Make a test Item and give its public token.

        https://plaid.com/docs/api/sandbox/#sandboxpublic_tokencreate, `sandbox_public_token_create` in
        plaid-python.

        Args:
            institution_id: Plaid's test bank, First Platypus Bank, unless told otherwise.
            initial_products: what the Item is for.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = SandboxPublicTokenCreateRequest(institution_id, initial_products)
        return self._transport.call(codec.SANDBOX_PUBLIC_TOKEN_CREATE, request, timeout=timeout, retry=retry)


class Items(_Operations):
    """`client.item`: connections to a bank."""

    @sealed
    def exchange_public_token(
        self, public_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[ItemPublicTokenExchangeResponse]:
        """Turn the public token that Link or the sandbox gave into an access token; it lives 30 minutes.

        https://plaid.com/docs/api/items/#itempublic_tokenexchange, `item_public_token_exchange` in
        plaid-python.

        Args:
            public_token: as Link or `client.sandbox.create_public_token` gave it.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = ItemPublicTokenExchangeRequest(public_token)
        return self._transport.call(codec.ITEM_PUBLIC_TOKEN_EXCHANGE, request, timeout=timeout, retry=retry)


@sealed_init
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
        connections: how many connections an owned pool holds at most.
        ssl: an `ssl.SSLContext`, such as one with your own CA bundle.
        proxy: a proxy's URL.
        trust_env: take a proxy from the environment, as aiohttp does.

    Attributes:
        relay: share reports, and read what was shared.
        asset_report: the reports to share.
        sandbox: test data.
        item: connections to a bank.

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
        connections: int = 100,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
    ) -> None:
        if credentials_in not in {"headers", "body"}:
            raise ConfigurationError(f"credentials_in must be 'headers' or 'body', not {credentials_in!r}")
        timeouts = Timeouts() if timeouts is None else timeouts
        retry = RetryPolicy() if retry is None else retry
        check_type("timeouts", timeouts, Timeouts)
        check_type("retry", retry, RetryPolicy)
        self._base_url = resolve_base_url(base_url, environment)
        self._session = SessionManager(
            session, connections=connections, ssl=ssl, proxy=proxy, trust_env=trust_env
        )
        transport = Transport(
            self._session,
            base_url=self._base_url,
            identity=resolve_identity(credentials, gateway_key),
            credentials_in=credentials_in,
            timeouts=timeouts,
            retry=retry,
            rate_limiter=rate_limiter,
        )
        self.relay = Relay(transport, timeouts)
        self.asset_report = AssetReports(transport)
        self.sandbox = Sandbox(transport)
        self.item = Items(transport)

    async def open(self) -> None:
        """Open the pool inside the running loop; `async with` does it.

        Raises:
            ClientClosedError: it was opened before.
        """
        await self._session.open()

    async def close(self) -> None:
        """Close the pool, if it is the client's own; `async with` does it. More than once is harmless."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<RelayClient for {self._base_url}>"
