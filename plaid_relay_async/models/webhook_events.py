"""Request and response records of `/beta/webhook_events/list`, which lists the webhooks that Plaid has sent.

The operation is in beta: Plaid may change it incompatibly.
See https://plaid.com/docs/api/webhooks/webhook-events/ and the models of plaid-python 46.0.0.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from attrs import field, frozen, validators

from plaid_relay_async.models import values
from plaid_relay_async.models.fields import (
    IsText,
    IsWholeNumber,
    are_identifiers,
    as_optional_tuple,
    is_aware_time,
    nullable_field,
    optional_field,
    unknown_fields,
)
from plaid_relay_async.models.request import PlaidRequest
from plaid_relay_async.redaction import strip_init_traceback


@strip_init_traceback
@frozen(kw_only=True)
class WebhookEventsListRequest(PlaidRequest):
    """A request for a page of the list of sent webhooks, oldest first.

    A webhook is listed if it matches one of the values of each filter that isn't `None`.

    Attributes:
        cursor: the `next_cursor` of the previous page.
        start_time: the earliest time of sending, with a time zone, within the last 7 days. Plaid ignores it
            if `cursor` is set. Without both, the list begins with the oldest webhook that Plaid still has.
        count: the maximum number of webhooks of a page, 1 to 100; Plaid's default is 100.
        webhook_types: a filter, such as `["ASSETS"]`.
        webhook_codes: a filter, such as `["PRODUCT_READY"]`.
        item_ids: a filter by the IDs of Items.
        delivery_statuses: a filter; see `WebhookDeliveryStatus`.
    """

    cursor: str | None = optional_field(IsText(max_length=512))
    start_time: datetime | None = optional_field(is_aware_time)
    count: int | None = optional_field(IsWholeNumber(1, 100))
    webhook_types: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )
    webhook_codes: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )
    item_ids: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )
    delivery_statuses: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )


@frozen
class SentWebhook:
    """A webhook that Plaid has sent, or tries to send, to a URL of this account.

    Attributes:
        webhook_message_id: Plaid's ID of the webhook. It stays the same in each list.
        webhook_type: such as `ASSETS`.
        webhook_code: such as `PRODUCT_READY`.
        sent_time: when Plaid sent it.
        payload: the JSON object that was sent. Numbers with a fraction or an exponent are Decimals.
        destination_url: the URL that it was sent to.
        delivery_status: see `WebhookDeliveryStatus`.
        attempt_count: how many times Plaid has tried to deliver it.
        item_id: the ID of its Item, or `None`.
        last_http_status_code: the status of the latest response, or `None`.
        last_attempt_time: when Plaid last tried to deliver it; `None` before the first attempt.
        additional_properties: other fields that Plaid sent.
    """

    webhook_message_id: str
    webhook_type: str
    webhook_code: str
    sent_time: datetime
    payload: dict[str, Any] = field(repr=False, hash=False)
    # A URL may contain the ID of a pair.
    destination_url: str = field(repr=False)
    delivery_status: Annotated[str, values.WebhookDeliveryStatus]
    attempt_count: int
    item_id: str | None = nullable_field()
    last_http_status_code: int | None = nullable_field()
    last_attempt_time: datetime | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class WebhookEventsListResponse:
    """A page of the list of sent webhooks.

    Attributes:
        webhook_events: the webhooks, oldest first.
        has_more: whether there is another page now.
        next_cursor: the position after this page. The next request with it returns later webhooks, also if
            `has_more` is false.
        request_id: Plaid's.
        additional_properties: other fields that Plaid sent.
    """

    webhook_events: tuple[SentWebhook, ...]
    has_more: bool
    next_cursor: str
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()
