"""The exceptions of webhooks, and the reasons for which a webhook is refused.

.. code-block:: text

    PlaidRelayError
    └── WebhookError
        ├── RawBodyRequiredError     the caller passed a parsed body: pass the bytes (also a TypeError)
        ├── InvalidHeadersError      the caller passed something else than headers (also a TypeError)
        ├── WebhookRefusedError      the webhook isn't authentic: see its `reason`
        ├── StaleWebhookError        the webhook is authentic, and older than the tolerance
        ├── WebhookKeyLookupError    the key couldn't be looked up, so nothing is known: try again
        ├── WebhookDecodeError       the event can't be read: report it (also a ResponseDecodeError)
        ├── ReportMismatchError      the token is that of another report: pass the right one
        └── WebhookNotStoredError    a receiver hasn't stored the webhook for another reason: see its `reason`

No text contains a part of the body, of the token or of its headers: an attacker chose them, or they are
confidential.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Self

from plaid_relay_async.errors import PlaidRelayError, ResponseDecodeError

if TYPE_CHECKING:
    from plaid_relay_async.webhooks.verified import VerifiedWebhook


class RefusalReason(enum.StrEnum):
    """The reason for which a webhook is refused; use it for metrics and logs, and not in the response."""

    NO_HEADER = "no_header"
    SEVERAL_HEADERS = "several_headers"
    HEADER_TOO_LONG = "header_too_long"
    MALFORMED_TOKEN = "malformed_token"  # noqa: S105  # the name of a reason
    WRONG_ALGORITHM = "wrong_algorithm"
    KEY_IN_HEADER = "key_in_header"
    KEY_URL_IN_HEADER = "key_url_in_header"
    CRITICAL_HEADER = "critical_header"
    INVALID_KEY_ID = "invalid_key_id"
    UNKNOWN_KEY = "unknown_key"
    UNSUITABLE_KEY = "unsuitable_key"
    INVALID_POINT = "invalid_point"
    EXPIRED_KEY = "expired_key"
    WRONG_SIGNATURE = "wrong_signature"
    MALFORMED_CLAIMS = "malformed_claims"
    MISSING_CLAIM = "missing_claim"
    INVALID_ISSUED_AT = "invalid_issued_at"
    INVALID_BODY_HASH = "invalid_body_hash"
    OTHER_BODY = "other_body"
    OTHER_ENVIRONMENT = "other_environment"
    ISSUED_IN_FUTURE = "issued_in_future"

    @property
    def explanation(self) -> str:
        """What is wrong with the webhook."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    RefusalReason.NO_HEADER: "it has no Plaid-Verification header",
    RefusalReason.SEVERAL_HEADERS: "it has more than one Plaid-Verification header",
    RefusalReason.HEADER_TOO_LONG: "its Plaid-Verification header is too long",
    RefusalReason.MALFORMED_TOKEN: "its Plaid-Verification header isn't a signed JSON Web Token",
    RefusalReason.WRONG_ALGORITHM: "its algorithm isn't ES256",
    RefusalReason.KEY_IN_HEADER: "its token contains a key of the sender's choice",
    RefusalReason.KEY_URL_IN_HEADER: "its token contains the URL of a key of the sender's choice",
    RefusalReason.CRITICAL_HEADER: "its token requires an extension that isn't supported",
    RefusalReason.INVALID_KEY_ID: "its token names no valid key ID",
    RefusalReason.UNKNOWN_KEY: "there is no key with the ID that its token names, in this environment",
    RefusalReason.UNSUITABLE_KEY: "its key isn't one of the curve P-256 for signatures with ES256",
    RefusalReason.INVALID_POINT: "its key isn't a point of its curve",
    RefusalReason.EXPIRED_KEY: "its key has expired",
    RefusalReason.WRONG_SIGNATURE: "its signature is wrong",
    RefusalReason.MALFORMED_CLAIMS: "its signed claims aren't a JSON object",
    RefusalReason.MISSING_CLAIM: "a claim is missing: iat or request_body_sha256",
    RefusalReason.INVALID_ISSUED_AT: "iat isn't a whole number of seconds of Unix time",
    RefusalReason.INVALID_BODY_HASH: "request_body_sha256 isn't a SHA-256 in lower-case hexadecimal digits",
    RefusalReason.OTHER_BODY: "the signature is for another body; the body must be the bytes as received",
    RefusalReason.OTHER_ENVIRONMENT: "it is for another environment of Plaid",
    RefusalReason.ISSUED_IN_FUTURE: "it was issued in the future; check this machine's clock",
}


class NotStoredReason(enum.StrEnum):
    """The reason for which a receiver hasn't stored a webhook, other than its signature and its age."""

    WRONG_METHOD = "wrong_method"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TOO_SLOW = "body_too_slow"
    BODY_INCOMPLETE = "body_incomplete"
    TOO_MANY = "too_many"
    TOO_SLOW = "too_slow"
    INBOX_FAILED = "inbox_failed"
    CLOSING = "closing"

    @property
    def response_status(self) -> int:
        """The HTTP status with which a receiver responds."""
        return _NOT_STORED[self][0]

    @property
    def explanation(self) -> str:
        """Why the webhook wasn't stored."""
        return _NOT_STORED[self][1]


_NOT_STORED = {
    NotStoredReason.WRONG_METHOD: (405, "the method of the request isn't POST"),
    NotStoredReason.WRONG_CONTENT_TYPE: (415, "the body isn't JSON, by its Content-Type"),
    NotStoredReason.BODY_TOO_LARGE: (413, "the body is longer than max_body_bytes"),
    NotStoredReason.BODY_TOO_SLOW: (408, "the body didn't arrive within time_limit"),
    NotStoredReason.BODY_INCOMPLETE: (400, "the connection was lost before the end of the body"),
    NotStoredReason.TOO_MANY: (429, "too many webhooks wait for the inbox"),
    NotStoredReason.TOO_SLOW: (503, "it was neither verified nor stored within time_limit"),
    NotStoredReason.INBOX_FAILED: (503, "the inbox failed"),
    NotStoredReason.CLOSING: (503, "the receiver is closing"),
}


class WebhookError(PlaidRelayError):
    """The base class of the errors of webhooks.

    Attributes:
        response_status: the HTTP status with which a receiver should respond. Plaid sends a webhook again
            after any status other than 200.
    """

    response_status: int = 500

    def __str__(self) -> str:
        # Without the details of the base class, which are about requests to Plaid.
        return f"{self.args[0]}. {self.advice}"


class RawBodyRequiredError(WebhookError, TypeError):
    """The body isn't bytes, usually because the framework has parsed it; the signature is for the bytes."""

    advice = (
        "Pass the bytes as received: `await request.read()` in aiohttp, `await request.body()` in Starlette "
        "and FastAPI, `request.body` in Django."
    )


class InvalidHeadersError(WebhookError, TypeError):
    """The headers aren't a mapping of strings, or pairs of strings or bytes."""

    advice = (
        "Pass the headers of the request: `request.headers` in aiohttp, Starlette, FastAPI and Django, "
        '`scope["headers"]` in ASGI. A header that occurs several times is several pairs, and not a list.'
    )


class WebhookRefusedError(WebhookError):
    """The webhook isn't authentic, or this can't be verified. Don't process it.

    Attributes:
        reason: why.
    """

    response_status = 400
    reason: RefusalReason = RefusalReason.NO_HEADER
    advice = "Respond with status 400, and don't process it."

    @classmethod
    def of(cls, reason: RefusalReason) -> Self:
        """Return the error for a reason."""
        return cls(f"the webhook is refused ({reason}): {reason.explanation}", reason=reason)


class StaleWebhookError(WebhookError):
    """The webhook is authentic, and older than the tolerance.

    It may be a late delivery by Plaid, whose retries continue for 24 hours, or a replay by an attacker. So
    process it only if a durable store shows that it wasn't processed before.

    Attributes:
        webhook: the verified webhook.
        age: its age in seconds.
        reason: `stale`, for metrics and logs.
    """

    reason = "stale"
    response_status = 400
    webhook: VerifiedWebhook
    age: float = 0.0
    advice = "Process it only if a durable store shows that it is new."

    @classmethod
    def of(cls, webhook: VerifiedWebhook, age: float) -> Self:
        """Return the error for a webhook and its age."""
        error = cls("the webhook is authentic, and older than the tolerance", age=age)
        error.webhook = webhook
        return error


class WebhookKeyLookupError(WebhookError):
    """The key of a webhook couldn't be looked up, so it isn't known whether the webhook is authentic.

    The `__cause__` is the error of the look-up. There is none if it wasn't tried, because too many look-ups
    have found no key.

    Attributes:
        reason: `key_lookup_failed`, for metrics and logs.
    """

    reason = "key_lookup_failed"
    response_status = 503
    advice = "Respond with status 503, so that Plaid sends it again, and don't process it."


class WebhookDecodeError(WebhookError, ResponseDecodeError):
    """The body of a webhook isn't a JSON object, or not that of the webhook's type and code.

    Attributes:
        path: the place of the first problem in the JSON, such as `$.asset_report_id`.
        body: the body, hidden.
    """

    sent = False  # no request was sent
    advice = (
        "Report the JSON path, but not the body, to this package's project. Store the `body` of this error, "
        "or respond with an error status so that Plaid sends the webhook again."
    )


class ReportMismatchError(WebhookError):
    """The token that was passed to `fetch_report` is that of another report than the event's.

    Attributes:
        asset_report_id: the ID of the token's report.
    """

    sent = True
    asset_report_id: str = ""
    advice = "Pass the token that was returned together with the event's `asset_report_id`."


class WebhookNotStoredError(WebhookError):
    """A receiver hasn't stored the webhook, for a reason other than its signature and its age.

    The `__cause__` is the error of the inbox, if there is one.

    Attributes:
        reason: why.
        response_status: that of the reason.
    """

    reason: NotStoredReason = NotStoredReason.INBOX_FAILED
    response_status = 503
    advice = "Respond with response_status."

    @classmethod
    def of(cls, reason: NotStoredReason) -> Self:
        """Return the error for a reason."""
        message = f"the webhook isn't stored ({reason}): {reason.explanation}"
        return cls(message, reason=reason, response_status=reason.response_status)
