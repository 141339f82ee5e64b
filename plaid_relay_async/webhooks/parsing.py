"""The event of a webhook, from its body."""

from __future__ import annotations

from attrs import frozen

from plaid_relay_async import models
from plaid_relay_async.codec.records import DECODE_ERRORS, decode_record, describe_decode_error
from plaid_relay_async.redaction import Hidden, strip_traceback
from plaid_relay_async.webhooks.errors import WebhookDecodeError
from plaid_relay_async.webhooks.verification import check_body


@strip_traceback
def parse(body: bytes) -> models.WebhookEvent:
    """Return the event of a webhook. Verify the webhook first: this function doesn't.

    Args:
        body: the body of the request.

    Returns:
        The record of the webhook's type and code, or an `UnknownWebhook`.

    Raises:
        WebhookDecodeError: the body isn't a JSON object, or not that of the webhook's type and code; `path`
            is the place, and `body` has the body.
        RawBodyRequiredError: the body isn't bytes.
    """
    check_body(body)
    try:
        event = decode_record(body, models.UnknownWebhook)
        kind = (event.webhook_type or "", event.webhook_code or "")
        record = models.WEBHOOK_RECORDS.get(kind)
        return event if record is None else decode_record(body, record)
    except DECODE_ERRORS as error:
        problem, path = describe_decode_error(error, "it")
    raise WebhookDecodeError(f"the webhook can't be read: {problem} at {path}", path=path, body=Hidden(body))


@frozen
class ParsedWebhook:
    """The event of a verified webhook.

    Attributes:
        event: the event. One that isn't as Plaid documents it is an `UnknownWebhook` with its fields; there
            are none if the body isn't a JSON object.
        documented: whether it is as Plaid documents it.
    """

    event: models.WebhookEvent
    documented: bool


def parse_leniently(body: bytes) -> ParsedWebhook:
    """Return the event of a verified webhook, whatever it is."""
    try:
        return ParsedWebhook(parse(body), documented=True)
    except WebhookDecodeError:
        pass
    try:
        return ParsedWebhook(decode_record(body, models.UnknownWebhook), documented=False)
    except DECODE_ERRORS:
        return ParsedWebhook(models.UnknownWebhook(), documented=False)
