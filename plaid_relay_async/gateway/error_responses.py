"""The gateway's own answers, in the form of Plaid's errors, so that any client of Plaid's can read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from aiohttp import web
from attrs import frozen

ERROR_TYPE: Final = "GATEWAY_ERROR"
# What comes from Plaid may hold a token, and what comes from here tells who may do what.
NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "plaid-relay"}


@frozen
class ErrorReason:
    """Why the gateway answers by itself.

    Attributes:
        status: of HTTP. A 4xx says that nothing was sent to Plaid.
        code: in the place of Plaid's `error_code`.
        message: what happened.
        action: the way out.
        headers: that go with it.
    """

    status: int
    code: str
    message: str
    action: str
    headers: Mapping[str, str] = {}


UNAUTHORIZED_KEY: Final = ErrorReason(
    401,
    "UNAUTHORIZED_KEY",
    "the request has no key of this gateway that is known",
    "Send a key that `plaid-relay gateway keys add` gave: as `Authorization: Bearer`, or as Plaid's secret.",
    {"WWW-Authenticate": "Bearer"},
)
UNAUTHORIZED_OPERATION: Final = ErrorReason(
    403,
    "UNAUTHORIZED_OPERATION",
    "this key, or this gateway as a whole, isn't for this operation",
    "Ask whoever runs the gateway for a key with that operation.",
)
PARTNER_NOT_ALLOWED: Final = ErrorReason(
    403,
    "PARTNER_NOT_ALLOWED",
    "this key isn't for this secondary_client_id",
    "Ask whoever runs the gateway for a key with that partner.",
)
UNAUTHORIZED_CREDENTIALS: Final = ErrorReason(
    403,
    "UNAUTHORIZED_CREDENTIALS",
    "the gateway lacks the Plaid credentials that this key is bound to",
    "Ask whoever runs the gateway to give it that set of credentials.",
)
HOST_NOT_ALLOWED: Final = ErrorReason(
    421,
    "HOST_NOT_ALLOWED",
    "the Host header names no host that this gateway answers to",
    "Call it by its own name, or start it with `--name` for that one.",
)
ORIGIN_NOT_ALLOWED: Final = ErrorReason(
    403,
    "ORIGIN_NOT_ALLOWED",
    "a page of another origin made this request",
    "Call the gateway from a server, or from its own page.",
)
NOT_FOUND: Final = ErrorReason(
    404,
    "NOT_FOUND",
    "there is no such operation",
    "Check the path: it is Plaid's, such as /credit/relay/create, without a query.",
)
METHOD_NOT_ALLOWED: Final = ErrorReason(
    405, "METHOD_NOT_ALLOWED", "operations are called by POST", "Use POST.", {"Allow": "POST"}
)
INVALID_HTTP: Final = ErrorReason(
    400, "INVALID_HTTP", "the request isn't well-formed HTTP", "Send it by a client that speaks HTTP/1.1."
)
INVALID_HEADERS: Final = ErrorReason(
    400,
    "INVALID_HEADERS",
    "a header came twice, or says what nobody here can do",
    "Send each once, and the body as it is, with its Content-Length.",
)
INVALID_BODY: Final = ErrorReason(
    400,
    "INVALID_BODY",
    "the body isn't a JSON object in UTF-8 in which each name comes once",
    "Send one, with plain numbers.",
)
AMBIGUOUS_MEMBER: Final = ErrorReason(
    400,
    "AMBIGUOUS_MEMBER",
    "a member's name is another spelling of one that Plaid knows",
    "Write the names of members as Plaid's documentation does, such as secondary_client_id.",
)
UNSUPPORTED_MEDIA_TYPE: Final = ErrorReason(
    415,
    "UNSUPPORTED_MEDIA_TYPE",
    "the body must be plain JSON",
    "Send `Content-Type: application/json`, and no Content-Encoding.",
)
BODY_TOO_LARGE: Final = ErrorReason(
    413, "BODY_TOO_LARGE", "the body has more than 1 MiB", "Send less: Plaid's operations need little."
)
BODY_TIMEOUT: Final = ErrorReason(
    408, "BODY_TIMEOUT", "the body didn't arrive in time", "Send it at once, with its Content-Length."
)
RATE_LIMIT: Final = ErrorReason(
    429, "RATE_LIMIT", "this key's rate is used up", "Wait as long as Retry-After says."
)
BUSY: Final = ErrorReason(
    429,
    "BUSY",
    "the gateway has as many calls under way as it may",
    "Wait as long as Retry-After says.",
    {"Retry-After": "1"},
)
CALLER_GONE: Final = ErrorReason(
    499,
    "CALLER_GONE",
    "the caller left before anything was sent to Plaid",
    "This stands in the audit log alone: nobody was there to take the answer.",
)
INTERNAL_ERROR: Final = ErrorReason(
    500,
    "INTERNAL_ERROR",
    "the gateway met a bug of its own, and can't tell whether Plaid was reached",
    "Treat what makes something as unknown, and look into the gateway's log.",
)
UPSTREAM_UNREACHABLE: Final = ErrorReason(
    503,
    "UPSTREAM_UNREACHABLE",
    "the gateway could send nothing to Plaid",
    "Nothing was carried out, so it is safe to try again.",
)
UPSTREAM_LOST: Final = ErrorReason(
    502,
    "UPSTREAM_LOST",
    "the gateway sent the request to Plaid, and no answer came back",
    "It may have been carried out: repeat what only reads, and treat what makes something as unknown.",
)
UPSTREAM_ENCODING: Final = ErrorReason(
    502,
    "UPSTREAM_ENCODING",
    "the gateway sent the request to Plaid, and can't decode the Content-Encoding of the response",
    "It may have been carried out: repeat what only reads, and treat what makes something as unknown.",
)
UPSTREAM_TIMEOUT: Final = ErrorReason(
    504,
    "UPSTREAM_TIMEOUT",
    "the gateway sent the request to Plaid, and no answer came in time",
    "It may have been carried out: repeat what only reads, and treat what makes something as unknown.",
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
    """Ends a request with an answer of the gateway's own."""

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
        self.closes_connection = (
            closes_connection  # the connection as well: the rest of the request isn't worth waiting for
        )


def error_response(
    reason: ErrorReason, request_id: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Give the reason as an answer."""
    told = {
        "error_type": ERROR_TYPE,
        "error_code": reason.code,
        "error_message": reason.message,
        "display_message": None,
        "request_id": request_id,
        "suggested_action": reason.action,
    }
    return web.Response(
        status=reason.status,
        body=json.dumps(told).encode(),
        content_type="application/json",
        headers={**NO_STORE, **reason.headers, **(headers or {})},
    )
