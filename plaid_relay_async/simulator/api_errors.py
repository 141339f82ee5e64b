"""Plaid's errors: for each code the status, the type and a message, and the body of the response.

Statuses and codes are from https://plaid.com/docs/errors/. The messages are our own: Plaid says that its
messages may change, and that programs must not rely on them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

_DOCUMENTATION_URL = "https://plaid.com/docs/?ref=error#"


@frozen
class _ErrorKind:
    status: int
    error_type: str
    message: str


def _error_kinds(status: int, error_type: str, messages: Mapping[str, str]) -> Mapping[str, _ErrorKind]:
    return {code: _ErrorKind(status, error_type, message) for code, message in messages.items()}


_KIND_BY_CODE: Mapping[str, _ErrorKind] = {
    **_error_kinds(
        404,
        "INVALID_REQUEST",
        {
            "NOT_FOUND": "there is no such endpoint, or it does not take this method",
            "NO_LONGER_AVAILABLE": "this endpoint is no longer available",
        },
    ),
    **_error_kinds(
        400,
        "INVALID_REQUEST",
        {
            "INVALID_HEADERS": "the Content-Type header must be application/json",
            "INVALID_BODY": "the body must be one JSON object",
            # Plaid lists the code under INVALID_REQUEST. It doesn't say for which versions: our choice.
            "INCOMPATIBLE_API_VERSION": "the Plaid-Version header names no known version",
            "MISSING_FIELDS": "required fields are missing",
            "UNKNOWN_FIELDS": "the body holds fields that this endpoint does not know",
            "INVALID_FIELD": "a field holds a value that is not allowed",
            "INVALID_CONFIGURATION": "this client is not set up for the endpoint",
            "SANDBOX_ONLY": "this endpoint is available only in the sandbox",
        },
    ),
    **_error_kinds(
        400,
        "INVALID_INPUT",
        {
            "INVALID_API_KEYS": "invalid client_id or secret provided",
            "UNAUTHORIZED_ENVIRONMENT": "this client may not use this environment",
            "UNAUTHORIZED_ROUTE_ACCESS": "this client may not use this endpoint",
            "INVALID_PRODUCT": "this client may not use this product",
            "INVALID_INSTITUTION": "there is no institution with this institution_id",
            "INVALID_PUBLIC_TOKEN": "the public_token is unknown, or has expired",
            "INVALID_ACCESS_TOKEN": "the access_token is unknown, or was removed",
            "INVALID_ASSET_REPORT_TOKEN": "the asset_report_token is unknown, or was removed",
            # Plaid publishes no code for a relay token that is unknown, removed or another client's. This
            # one is our choice.
            "INVALID_RELAY_TOKEN": "the relay_token is unknown, was removed, or is not yours",
            "INVALID_AUDIT_COPY_TOKEN": "the audit_copy_token is unknown, or was removed",
            "INVALID_WEBHOOK_VERIFICATION_KEY_ID": "there is no key with this key_id in this environment",
            "WEBHOOK_EVENTS_CURSOR_EXPIRED": "the cursor is older than seven days",
            "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE": "start_time must be within the last seven days",
            "ADDITIONAL_CONSENT_REQUIRED": "the user has not consented to this product",
            "USER_PERMISSION_REVOKED": "the user has revoked the access",
        },
    ),
    **_error_kinds(
        400,
        "ASSET_REPORT_ERROR",
        {
            "PRODUCT_NOT_READY": (
                "the report is still being generated: try again later, or provide a webhook"
            ),
            "PRODUCT_NOT_ENABLED": ("an Item of this report was not initialised with the product 'assets'"),
            "DATA_UNAVAILABLE": "the data of an Item is not available: causes names the Item and the error",
            "ASSET_REPORT_GENERATION_FAILED": (
                "asset report is too large to be generated, try again with a shorter date range"
            ),
            "INVALID_PARENT": "the original of this report is missing, or was removed",
            "INSIGHTS_NOT_ENABLED": "insights are not enabled for this client",
            "INSIGHTS_PREVIOUSLY_NOT_ENABLED": (
                "insights were not enabled for this client when the report was created"
            ),
            "DATA_QUALITY_CHECK_FAILED": "the data of the institution is of poor quality",
        },
    ),
    **_error_kinds(
        400,
        "ITEM_ERROR",
        {
            "ITEM_LOGIN_REQUIRED": "the login details of this Item have changed",
            "ITEM_LOCKED": "the account at the institution is locked",
            "ITEM_NOT_FOUND": "the Item is unknown, or was removed",
            "ITEM_NOT_SUPPORTED": "this Item is not supported",
            "ITEM_CONCURRENTLY_DELETED": "this Item was removed during the request",
            "NO_ACCOUNTS": "there are no accounts for this Item",
            "PRODUCTS_NOT_SUPPORTED": "this institution does not support the product",
        },
    ),
    **_error_kinds(
        400,
        "INSTITUTION_ERROR",
        {
            "INSTITUTION_DOWN": "this institution is not available at the moment",
            "INSTITUTION_NOT_RESPONDING": "this institution does not respond at the moment",
            "INSTITUTION_NOT_AVAILABLE": "this institution is not available at the moment",
            "INSTITUTION_NO_LONGER_SUPPORTED": "this institution is no longer supported",
            "UNSUPPORTED_RESPONSE": "the institution's response is not supported",
        },
    ),
    **_error_kinds(
        400,
        "SANDBOX_ERROR",
        {
            "SANDBOX_PRODUCT_NOT_ENABLED": "the Item was not initialised with the product of this webhook",
            "SANDBOX_WEBHOOK_INVALID": "this Item has no webhook",
        },
    ),
    **_error_kinds(
        429,
        "RATE_LIMIT_EXCEEDED",
        {
            "RATE_LIMIT": "too many requests for this endpoint, please try again later",
            "INSTITUTION_RATE_LIMIT": "too many requests for this institution",
            "CREDITS_EXHAUSTED": "the free allocation is used up",
            "TRIAL_CONNECTION_LIMIT": "the limit of Items of a trial is reached",
        },
    ),
    **_error_kinds(500, "API_ERROR", {"INTERNAL_SERVER_ERROR": "an unexpected error occurred"}),
    **_error_kinds(503, "API_ERROR", {"PLANNED_MAINTENANCE": "the API is down for planned maintenance"}),
}

ITEM_ERROR_CODES = frozenset(
    code for code, kind in _KIND_BY_CODE.items() if kind.error_type in {"ITEM_ERROR", "INSTITUTION_ERROR"}
)
"""The error codes that an Item can have."""

_CODE_BY_STATUS: Mapping[int, str] = {404: "NOT_FOUND", 429: "RATE_LIMIT", 503: "PLANNED_MAINTENANCE"}

_ANCHORS: Mapping[str, str] = {
    # Recorded from the sandbox. That the other types follow the same pattern is our assumption.
    "ASSET_REPORT_ERROR": "asset-report-errors-and-warnings",
    "RATE_LIMIT_EXCEEDED": "rate-limit-exceeded-errors",
}


class ApiError(Exception):
    """A request to which Plaid would respond with an error.

    Args:
        code: Plaid's `error_code`.
        message: the `error_message`; None is the code's default message.
        causes: the errors of the Items that failed; only for the type ASSET_REPORT_ERROR.
    """

    def __init__(self, code: str, message: str | None = None, causes: Sequence[Any] = ()) -> None:
        kind = _KIND_BY_CODE[code]
        super().__init__(code)
        self.status = kind.status
        self.error_type = kind.error_type
        self.error_code = code
        self.error_message = message or kind.message
        self.causes = causes

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the error body, with every field that Plaid sends and in the recorded order."""
        anchor = _ANCHORS.get(self.error_type) or f"{self.error_type.lower().replace('_', '-')}-errors"
        causes = {"causes": list(self.causes)} if self.causes else {}
        return causes | {
            "display_message": None,
            "documentation_url": _DOCUMENTATION_URL + anchor,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "error_type": self.error_type,
            "request_id": request_id,
            "suggested_action": None,
        }


def item_cause(code: str, item_id: str) -> dict[str, Any]:
    """Return an Item's error in the form of Plaid's `causes` and warnings."""
    kind = _KIND_BY_CODE[code]
    return {
        "display_message": None,
        "error_code": code,
        "error_message": kind.message,
        "error_type": kind.error_type,
        "item_id": item_id,
    }


def error_for_status(status: int, code: object = None) -> ApiError:
    """Return the error of a known code; for any other code, the most likely error for the status."""
    if isinstance(code, str) and code in _KIND_BY_CODE:
        return ApiError(code)
    return ApiError(_CODE_BY_STATUS.get(status, "INVALID_FIELD" if status < 500 else "INTERNAL_SERVER_ERROR"))
