"""The event of a webhook, from its body."""

from __future__ import annotations

from attrs import frozen

from plaid_relay_async import codec, models
from plaid_relay_async.errors import ResponseDecodeError
from plaid_relay_async.redaction import Hidden, strip_traceback
from plaid_relay_async.webhooks.verification import check_body

_ADVICE = (
    "Report the JSON path, but not the body, to this package's project. The body is in `body`: store it, or "
    "respond with an error status so that Plaid sends it again."
)


@strip_traceback
def parse(body: bytes) -> models.WebhookEvent:
    """Return the event of a webhook. Verify the webhook first: this function doesn't.

    Args:
        body: the body of the request.

    Returns:
        The record of the webhook's type and code, or an `UnknownWebhook`.

    Raises:
        ResponseDecodeError: the body isn't a JSON object, or not that of the webhook's type and code; `path`
            is the place, and `body` has the body.
        RawBodyRequiredError: the body isn't bytes.
    """
    check_body(body)
    try:
        event = codec.from_json(body, models.UnknownWebhook)
        kind = (event.webhook_type or "", event.webhook_code or "")
        record = models.WEBHOOK_RECORDS.get(kind)
        return event if record is None else codec.from_json(body, record)
    except ResponseDecodeError as error:
        error.body, error.advice = Hidden(body), _ADVICE
        raise


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
    except ResponseDecodeError:
        pass
    try:
        return ParsedWebhook(codec.from_json(body, models.UnknownWebhook), documented=False)
    except ResponseDecodeError:
        return ParsedWebhook(models.UnknownWebhook(), documented=False)
