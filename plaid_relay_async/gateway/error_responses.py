"""The error responses that the gateway creates itself, in the form of Plaid's errors.

Any client of Plaid can read them. Their `error_type` is GATEWAY_ERROR.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from aiohttp import web
from attrs import frozen

from plaid_relay_async.error_codes import GATEWAY_ERROR

# Plaid's responses may contain a token, and the gateway's own say what a key allows: no cache may store them.
NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "plaid-relay"}


@frozen
class ErrorReason:
    """The reason for an error response that the gateway creates.

    Attributes:
        status: the HTTP status. A 4xx means that nothing was sent to Plaid.
        code: the `error_code`.
        message: what happened.
        action: what to do, as the `suggested_action`.
        headers: additional response headers.
    """

    status: int
    code: str
    message: str
    action: str
    headers: Mapping[str, str] = {}


UNAUTHORIZED_KEY: Final = ErrorReason(
    401,
    "UNAUTHORIZED_KEY",
    "the request has no valid key of this gateway",
    "Check the key, or ask the operator of the gateway for one (`plaid-relay gateway keys add`). Send it as "
    "`Authorization: Bearer`, or as Plaid's secret.",
    {"WWW-Authenticate": "Bearer"},
)
UNAUTHORIZED_OPERATION: Final = ErrorReason(
    403,
    "UNAUTHORIZED_OPERATION",
    "this key, or this gateway, does not allow this operation",
    "Use a key that allows it, or ask the operator of the gateway for one.",
)
PARTNER_NOT_ALLOWED: Final = ErrorReason(
    403,
    "PARTNER_NOT_ALLOWED",
    "this key does not allow this secondary_client_id",
    "Check secondary_client_id, or ask the operator of the gateway for a key that allows this partner.",
)
UNAUTHORIZED_CREDENTIALS: Final = ErrorReason(
    403,
    "UNAUTHORIZED_CREDENTIALS",
    "the gateway does not have the Plaid credentials that this key is bound to",
    "Ask the operator of the gateway to add that set of credentials.",
)
HOST_NOT_ALLOWED: Final = ErrorReason(
    421,
    "HOST_NOT_ALLOWED",
    "the request does not name an allowed host of this gateway",
    "Use the gateway's own address, or start the gateway with `--name` and this host name.",
)
ORIGIN_NOT_ALLOWED: Final = ErrorReason(
    403,
    "ORIGIN_NOT_ALLOWED",
    "a browser sent this request for a page of another origin",
    "Call the gateway from a server, or from its own page.",
)
NOT_FOUND: Final = ErrorReason(
    404,
    "NOT_FOUND",
    "this path is not an operation",
    "Check the path: it is one of Plaid's, such as /credit/relay/create, without a query.",
)
METHOD_NOT_ALLOWED: Final = ErrorReason(
    405, "METHOD_NOT_ALLOWED", "operations are called with POST", "Use POST.", {"Allow": "POST"}
)
INVALID_HTTP: Final = ErrorReason(
    400, "INVALID_HTTP", "the request isn't well-formed HTTP", "Send it with a client for HTTP/1.1."
)
INVALID_HEADERS: Final = ErrorReason(
    400,
    "INVALID_HEADERS",
    "a header occurs twice, or has a value that the gateway does not support",
    "Send each header once, and send the body uncompressed with its Content-Length.",
)
INVALID_BODY: Final = ErrorReason(
    400,
    "INVALID_BODY",
    "the body isn't a JSON object in UTF-8 in which each name occurs once",
    "Send such an object. Numbers must not be NaN or Infinity.",
)
AMBIGUOUS_MEMBER: Final = ErrorReason(
    400,
    "AMBIGUOUS_MEMBER",
    "the name of a member is a variant spelling of one of Plaid's",
    "Write the names of members as in Plaid's documentation, such as secondary_client_id.",
)
UNSUPPORTED_MEDIA_TYPE: Final = ErrorReason(
    415,
    "UNSUPPORTED_MEDIA_TYPE",
    "the body must be uncompressed JSON",
    "Send `Content-Type: application/json`, and no Content-Encoding.",
)
BODY_TOO_LARGE: Final = ErrorReason(
    413,
    "BODY_TOO_LARGE",
    "the body is larger than 1 MiB",
    "Send a smaller body.",
)
BODY_TIMEOUT: Final = ErrorReason(
    408,
    "BODY_TIMEOUT",
    "the body did not arrive in time",
    "Send it without pauses, with its Content-Length.",
)
RATE_LIMIT: Final = ErrorReason(
    429,
    "RATE_LIMIT",
    "the rate limit of this key is exceeded",
    "Nothing was executed. Wait as long as Retry-After says.",
)
BUSY: Final = ErrorReason(
    429,
    "BUSY",
    "the gateway has reached its limit of calls in flight",
    "Nothing was executed. Wait as long as Retry-After says.",
    {"Retry-After": "1"},
)
CALLER_GONE: Final = ErrorReason(
    499,
    "CALLER_GONE",
    "the caller disconnected before anything was sent to Plaid",
    "This is only in the audit log, because the caller can't receive a response.",
)
INTERNAL_ERROR: Final = ErrorReason(
    500,
    "INTERNAL_ERROR",
    "the gateway had an unexpected error, and it is unknown whether Plaid was reached",
    "Treat the outcome of a creation as unknown, and see the gateway's log.",
)
UPSTREAM_UNREACHABLE: Final = ErrorReason(
    503,
    "UPSTREAM_UNREACHABLE",
    "the gateway could not send anything to Plaid",
    "Nothing was executed, so it is safe to try again.",
)
UPSTREAM_LOST: Final = ErrorReason(
    502,
    "UPSTREAM_LOST",
    "the gateway sent the request to Plaid, and lost the response",
    "It may have been executed. Repeat a read; treat the outcome of a creation as unknown.",
)
UPSTREAM_ENCODING: Final = ErrorReason(
    502,
    "UPSTREAM_ENCODING",
    "the gateway sent the request to Plaid, and can't decode the Content-Encoding of the response",
    "It may have been executed. Repeat a read; treat the outcome of a creation as unknown.",
)
UPSTREAM_TIMEOUT: Final = ErrorReason(
    504,
    "UPSTREAM_TIMEOUT",
    "the gateway sent the request to Plaid, and no response arrived in time",
    "It may have been executed. Repeat a read; treat the outcome of a creation as unknown.",
)

ERROR_REASONS: Final[tuple[ErrorReason, ...]] = (
    UNAUTHORIZED_KEY,
    UNAUTHORIZED_OPERATION,
    PARTNER_NOT_ALLOWED,
    UNAUTHORIZED_CREDENTIALS,
    HOST_NOT_ALLOWED,
    ORIGIN_NOT_ALLOWED,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    INVALID_HTTP,
    INVALID_HEADERS,
    INVALID_BODY,
    AMBIGUOUS_MEMBER,
    UNSUPPORTED_MEDIA_TYPE,
    BODY_TOO_LARGE,
    BODY_TIMEOUT,
    RATE_LIMIT,
    BUSY,
    CALLER_GONE,
    INTERNAL_ERROR,
    UPSTREAM_UNREACHABLE,
    UPSTREAM_LOST,
    UPSTREAM_ENCODING,
    UPSTREAM_TIMEOUT,
)


class GatewayError(Exception):
    """Ends a request with an error response of the gateway.

    Attributes:
        reason: the reason, which determines the response.
        headers: response headers besides those of the reason.
        closes_connection: whether the connection is closed as well. Then the rest of the request is not read.
    """

    def __init__(
        self,
        reason: ErrorReason,
        *,
        headers: Mapping[str, str] | None = None,
        closes_connection: bool = False,
    ) -> None:
        super().__init__(reason.code)
        self.reason = reason
        self.headers = headers or {}
        self.closes_connection = closes_connection


def error_response(
    reason: ErrorReason, request_id: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the response for a reason, as JSON in the form of Plaid's errors."""
    content = {
        "error_type": GATEWAY_ERROR,
        "error_code": reason.code,
        "error_message": reason.message,
        "display_message": None,
        "request_id": request_id,
        "suggested_action": reason.action,
    }
    return web.Response(
        status=reason.status,
        body=json.dumps(content).encode(),
        content_type="application/json",
        headers={**NO_STORE, **reason.headers, **(headers or {})},
    )
