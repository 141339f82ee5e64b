"""Plaid's refusals: a status, a type, a code and a sentence for each, and the body that carries them.

Statuses and codes: https://plaid.com/docs/errors/. The sentences are ours: Plaid declares its own unsafe for
programmatic use.
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

_DOCUMENTATION = "https://plaid.com/docs/?ref=error#"


@frozen
class _Kind:
    status: int
    error_type: str
    message: str


_INVALID_REQUEST = "INVALID_REQUEST"
_INVALID_INPUT = "INVALID_INPUT"

_KINDS: Mapping[str, _Kind] = {
    "NOT_FOUND": _Kind(404, _INVALID_REQUEST, "there is no such endpoint, or it does not take this method"),
    "INVALID_HEADERS": _Kind(400, _INVALID_REQUEST, "the Content-Type header must be application/json"),
    "INVALID_BODY": _Kind(400, _INVALID_REQUEST, "the body must be one JSON object"),
    # The code is listed among INVALID_REQUEST; which versions it is given for is our reading.
    "INCOMPATIBLE_API_VERSION": _Kind(
        400, _INVALID_REQUEST, "the Plaid-Version header names no known version"
    ),
    "MISSING_FIELDS": _Kind(400, _INVALID_REQUEST, "required fields are missing"),
    "UNKNOWN_FIELDS": _Kind(400, _INVALID_REQUEST, "the body holds fields that this endpoint does not know"),
    "INVALID_FIELD": _Kind(400, _INVALID_REQUEST, "a field holds a value that is not allowed"),
    "INVALID_API_KEYS": _Kind(400, _INVALID_INPUT, "invalid client_id or secret provided"),
    "INVALID_INSTITUTION": _Kind(400, _INVALID_INPUT, "there is no institution of this institution_id"),
    "INVALID_PUBLIC_TOKEN": _Kind(400, _INVALID_INPUT, "the public_token is unknown, or has expired"),
    "INVALID_ACCESS_TOKEN": _Kind(400, _INVALID_INPUT, "the access_token is unknown, or was removed"),
    "INVALID_ASSET_REPORT_TOKEN": _Kind(
        400, _INVALID_INPUT, "the asset_report_token is unknown, or was removed"
    ),
    # Plaid publishes no code for a relay token that is unknown, removed or another's: ours.
    "INVALID_RELAY_TOKEN": _Kind(
        400, _INVALID_INPUT, "the relay_token is unknown, was removed, or is not yours"
    ),
    "PRODUCT_NOT_READY": _Kind(
        400,
        "ASSET_REPORT_ERROR",
        "the report is still being generated: ask again later, or provide a webhook",
    ),
    "PRODUCT_NOT_ENABLED": _Kind(
        400, "ASSET_REPORT_ERROR", "an Item of this report was not initialised with the product 'assets'"
    ),
    "RATE_LIMIT": _Kind(
        429, "RATE_LIMIT_EXCEEDED", "too many requests for this endpoint, please try again later"
    ),
    "INTERNAL_SERVER_ERROR": _Kind(500, "API_ERROR", "an unexpected error occurred"),
    "PLANNED_MAINTENANCE": _Kind(503, "API_ERROR", "the API is down for planned maintenance"),
}

_CODE_BY_STATUS: Mapping[int, str] = {404: "NOT_FOUND", 429: "RATE_LIMIT", 503: "PLANNED_MAINTENANCE"}

_ANCHORS: Mapping[str, str] = {
    # Recorded from the sandbox; that the others follow the same pattern is ours.
    "ASSET_REPORT_ERROR": "asset-report-errors-and-warnings",
    "RATE_LIMIT_EXCEEDED": "rate-limit-exceeded-errors",
}


class Refusal(Exception):  # noqa: N818  named for what it is: a refusal is no error of the simulator
    """A request that Plaid would refuse.

    Args:
        code: Plaid's `error_code`.
        message: What is wrong; without it, the code's own sentence.
    """

    def __init__(self, code: str, message: str | None = None) -> None:
        kind = _KINDS[code]
        super().__init__(code)
        self.status = kind.status
        self.error_type = kind.error_type
        self.error_code = code
        self.error_message = message or kind.message

    def body(self, request_id: str) -> dict[str, Any]:
        """Every field of Plaid's error body, in its recorded order."""
        anchor = _ANCHORS.get(self.error_type) or f"{self.error_type.lower().replace('_', '-')}-errors"
        return {
            "display_message": None,
            "documentation_url": _DOCUMENTATION + anchor,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "error_type": self.error_type,
            "request_id": request_id,
            "suggested_action": None,
        }


def fitting(status: int) -> Refusal:
    """The refusal that Plaid would most likely send with an HTTP status of 400 or more."""
    return Refusal(_CODE_BY_STATUS.get(status, "INVALID_FIELD" if status < 500 else "INTERNAL_SERVER_ERROR"))
