"""`client.webhooks`: webhooks that Plaid sends to this application."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from plaid_relay_async.models.fields import check_identifier
from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import TypeAlias

    from plaid_relay_async.client.asset_report import AssetReports
    from plaid_relay_async.client.operations import Call
    from plaid_relay_async.client.webhook_events import WebhookEvents
    from plaid_relay_async.client.webhook_verification_key import WebhookVerificationKeys
    from plaid_relay_async.config import Environment, RetryPolicy
    from plaid_relay_async.models import (
        AssetReportGetResponse,
        JWKPublicKey,
        WebhookEventsListResponse,
    )
    from plaid_relay_async.webhooks import (
        AssetsProductReadyWebhook,
        Inbox,
        Recovery,
        VerifiedWebhook,
        WebhookEvent,
    )
    from plaid_relay_async.webhooks.lookup import KeyCache
    from plaid_relay_async.webhooks.token import HeaderPairs
    from plaid_relay_async.webhooks.verification import VerificationSettings

    Headers: TypeAlias = Mapping[str, str] | HeaderPairs

# Plaid waits ten seconds for the response to a webhook
# (https://plaid.com/docs/api/webhooks/).
_LOOKUP_TIMEOUT = 5.0


class Webhooks:
    """`client.webhooks`: webhooks that Plaid sends to this application. It requires the extra `webhooks`.

    The keys are looked up with this client, and cached. They belong to its environment.
    """

    def __init__(
        self,
        keys: WebhookVerificationKeys,
        events: WebhookEvents,
        reports: AssetReports,
        environment: Environment | None,
    ) -> None:
        self._keys = keys
        self._events = events
        self._environment = environment
        self._reports = reports
        self._cache: KeyCache | None = None

    @strip_traceback
    def unwrap(
        self,
        body: bytes,
        headers: Mapping[str, str] | HeaderPairs,
        *,
        tolerance: float = 300.0,
        skew: float = 60.0,
    ) -> Call[WebhookEvent]:
        """Verify a webhook, and return its event.

        https://plaid.com/docs/api/webhooks/webhook-verification/

        Args:
            body: the body of the request, as received.
            headers: the headers of the request: a mapping such as those of aiohttp, Starlette and Django, or
                pairs of a name and a value.
            tolerance: the age in seconds from which a webhook is stale.
            skew: how many seconds in the future it may have been issued, if this machine's clock is slow.

        Raises:
            WebhookRefusedError: the webhook isn't authentic; `reason` says why.
            StaleWebhookError: it is authentic, and older than `tolerance`.
            WebhookKeyLookupError: its key couldn't be looked up.
            RawBodyRequiredError: the body isn't bytes.
            InvalidHeadersError: the headers are neither a mapping of strings nor pairs of strings or bytes.
            WebhookDecodeError: the webhook is authentic, and differs from Plaid's specification.
            ConfigurationError: `tolerance` or `skew` is invalid.
            ModuleNotFoundError: the extra `webhooks` isn't installed.
        """
        return self._unwrap(*_check_arguments(body, headers, self._environment, tolerance, skew))

    @strip_traceback
    def verify(
        self,
        body: bytes,
        headers: Mapping[str, str] | HeaderPairs,
        *,
        tolerance: float = 300.0,
        skew: float = 60.0,
    ) -> Call[VerifiedWebhook]:
        """Verify a webhook, and return it without parsing its body.

        Args:
            body: as of `unwrap`.
            headers: as of `unwrap`.
            tolerance: as of `unwrap`.
            skew: as of `unwrap`.

        Raises:
            PlaidRelayError: as of `unwrap`, except for `WebhookDecodeError`.
        """
        return self._verify(*_check_arguments(body, headers, self._environment, tolerance, skew))

    def recover(
        self,
        inbox: Inbox,
        *,
        url_prefix: str = "",
        count: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[Recovery]:
        """Add to an inbox the webhooks of Plaid's list that it doesn't have. The list is in beta at Plaid.

        https://plaid.com/docs/api/webhooks/webhook-events/. The webhooks are read from the position at which
        the previous recovery ended, or else those of the last 7 days. The position is stored in the inbox
        after each page, so a recovery that was interrupted continues there. Handlers run for the added
        webhooks as for any other. If Plaid delivers such a webhook later, it is a duplicate.

        Args:
            inbox: the inbox.
            url_prefix: only webhooks that were sent to a URL with this beginning are added. Pass it if other
                applications receive webhooks of the same account.
            count: the maximum number of webhooks that are read with one request, 1 to 100; Plaid's default is
                100.
            timeout: seconds for all attempts of one request; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.

        Returns:
            What was read and added.

        Raises:
            RequestValidationError: `count` is invalid.
            PlaidRelayError: a request failed; see the class of the error. Call again to continue.
            ModuleNotFoundError: the extra `webhooks` isn't installed.
        """
        from plaid_relay_async.webhooks.recovery import recover_webhooks

        sent = self._events.list(count=count, timeout=timeout, retry=retry)

        def list_pages(cursor: str | None) -> AsyncIterator[WebhookEventsListResponse]:
            sent.cursor = cursor
            return sent.pages()

        return recover_webhooks(list_pages, inbox, url_prefix)

    @strip_traceback
    def fetch_report(
        self,
        event: AssetsProductReadyWebhook,
        asset_report_token: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read the report that an event says is ready: the fast version, if the event is about that one.

        It waits as `client.asset_report.wait_until_ready` does, because Plaid doesn't say whether a report
        can always be read at the moment at which its webhook arrives.

        Args:
            event: the event.
            asset_report_token: the token that was returned together with the event's `asset_report_id`.
            timeout: seconds for all requests; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.

        Raises:
            ReportMismatchError: the token is that of another report.
            PlaidRelayError: as of `wait_until_ready`.
        """
        check_identifier("asset_report_token", asset_report_token)
        return self._fetch_report(event, Hidden(asset_report_token), timeout, retry)

    async def _fetch_report(
        self,
        event: AssetsProductReadyWebhook,
        token: Hidden[str],
        timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
        retry: RetryPolicy | None,
    ) -> AssetReportGetResponse:
        from plaid_relay_async.models import AssetReportType
        from plaid_relay_async.webhooks import ReportMismatchError

        fast = event.report_type == AssetReportType.FAST
        response = await self._reports.wait_until_ready(
            token.reveal(), fast_report=fast, timeout=timeout, retry=retry
        )
        report_id = response.report.asset_report_id
        if report_id != event.asset_report_id:
            raise ReportMismatchError("the token is that of another report", asset_report_id=report_id)
        return response

    async def _unwrap(
        self, body: Hidden[bytes], headers: Hidden[Headers], settings: VerificationSettings
    ) -> WebhookEvent:
        from plaid_relay_async.webhooks import parse

        return parse((await self._verify(body, headers, settings)).body)

    async def _verify(
        self, body: Hidden[bytes], headers: Hidden[Headers], settings: VerificationSettings
    ) -> VerifiedWebhook:
        from plaid_relay_async.webhooks.lookup import KeyCache
        from plaid_relay_async.webhooks.token import read_token
        from plaid_relay_async.webhooks.verification import verify_token

        if self._cache is None:
            self._cache = KeyCache(self._fetch_key)
        token = read_token(headers.reveal())
        key = await self._cache.get(token.key_id)
        return verify_token(body.reveal(), token, key, settings, time.time())

    async def _fetch_key(self, key_id: str) -> JWKPublicKey:
        return (await self._keys.get(key_id, timeout=_LOOKUP_TIMEOUT)).key


def _check_arguments(
    body: bytes, headers: Headers, environment: Environment | None, tolerance: float, skew: float
) -> tuple[Hidden[bytes], Hidden[Headers], VerificationSettings]:
    """Return body and headers, hidden so that no traceback shows them, and the settings."""
    from plaid_relay_async.webhooks.verification import VerificationSettings, check_body

    check_body(body)
    return Hidden(body), Hidden(headers), VerificationSettings(environment, tolerance, skew)
