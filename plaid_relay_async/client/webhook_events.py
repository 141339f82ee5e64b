"""`client.webhook_events`: the list of the webhooks that Plaid has sent to this account; in beta at Plaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import OperationGroup
from plaid_relay_async.errors import ResponseDecodeError
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
    from datetime import datetime

    from plaid_relay_async.client.operations import Call
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import SentWebhook, WebhookEventsListRequest, WebhookEventsListResponse


class SentWebhooks:
    """The webhooks that Plaid has sent to this account, oldest first; nothing is requested before it is used.

    `async for` yields each `SentWebhook`, and requests one page after the other. A later `async for` over the
    same object continues at `cursor`, so it yields webhooks that were sent since. `await` returns only the
    page at `cursor`, as a `WebhookEventsListResponse`, and doesn't change the cursor.

    Attributes:
        cursor: the position after the last page that was read completely; store it to continue later. It
            isn't a secret. A page counts as read when the loop requests what follows it.
    """

    def __init__(
        self,
        request: WebhookEventsListRequest,
        fetch: Callable[[WebhookEventsListRequest], Call[WebhookEventsListResponse]],
    ) -> None:
        self.cursor = request.cursor
        self._request = request
        self._fetch = fetch

    def __await__(self) -> Generator[Any, None, WebhookEventsListResponse]:
        return self._fetch_page().__await__()

    async def __aiter__(self) -> AsyncIterator[SentWebhook]:
        async for page in self.pages():
            for webhook in page.webhook_events:
                yield webhook

    async def pages(self) -> AsyncIterator[WebhookEventsListResponse]:
        """Yield each page from `cursor` on, also those without webhooks.

        Raises:
            CursorExpiredError: the cursor is older than 7 days.
            ResponseDecodeError: a response is invalid, or another page follows and has the same cursor.
            PlaidRelayError: a request failed; see the class of the error.
        """
        has_more = True
        while has_more:
            page = await self._fetch_page()
            yield page
            # Plaid doesn't say whether the cursor of an empty list may be empty, which is no position.
            position = page.next_cursor or self.cursor
            has_more = page.has_more
            if has_more and position == self.cursor:
                raise ResponseDecodeError(
                    "another page follows, but next_cursor hasn't changed at $.next_cursor",
                    path="$.next_cursor",
                    request_id=page.request_id,
                )
            self.cursor = position

    def _fetch_page(self) -> Call[WebhookEventsListResponse]:
        request = self._request
        if self.cursor is not None:  # Plaid ignores start_time then
            request = evolve(request, cursor=self.cursor, start_time=None)
        return self._fetch(request)


class WebhookEvents(OperationGroup):
    """`client.webhook_events`: the list of the webhooks that Plaid has sent to this account."""

    @strip_traceback
    def list(
        self,
        *,
        cursor: str | None = None,
        start_time: datetime | None = None,
        count: int | None = None,
        webhook_types: Iterable[str] | None = None,
        webhook_codes: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        delivery_statuses: Iterable[str] | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SentWebhooks:
        """List the webhooks that Plaid has sent in the last 7 days, delivered or not, oldest first.

        https://plaid.com/docs/api/webhooks/webhook-events/, `beta_webhook_events_list` in plaid-python. In
        beta at Plaid, which may change it incompatibly. Webhooks of the type `TRANSACTIONS` aren't listed.

        A webhook is listed if it matches one of the values of each filter that is passed.

        Args:
            cursor: the `cursor` of an earlier list, to continue after it.
            start_time: the earliest time of sending, with a time zone, within the last 7 days. Plaid ignores
                it if `cursor` is passed. Without both, the list begins with the oldest webhook.
            count: the maximum number of webhooks of a page, 1 to 100; Plaid's default is 100.
            webhook_types: a filter, such as `["ASSETS"]`.
            webhook_codes: a filter, such as `["PRODUCT_READY"]`.
            item_ids: a filter by the IDs of Items.
            delivery_statuses: a filter; see `WebhookDeliveryStatus`.
            timeout: seconds for all attempts of the request of a page; the default is the client's
                `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Returns:
            The webhooks, which `async for` requests page by page.

        Raises:
            RequestValidationError: an argument is invalid.
        """
        request = models.WebhookEventsListRequest(
            cursor=cursor,
            start_time=start_time,
            count=count,
            webhook_types=webhook_types,
            webhook_codes=webhook_codes,
            item_ids=item_ids,
            delivery_statuses=delivery_statuses,
            extra=extra,
        )

        def fetch(request: WebhookEventsListRequest) -> Call[WebhookEventsListResponse]:
            return self._transport.call(codec.WEBHOOK_EVENTS_LIST, request, timeout=timeout, retry=retry)

        return SentWebhooks(request, fetch)
