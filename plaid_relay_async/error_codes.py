"""The meaning of Plaid's error codes: which exception an error is, and what it says about other requests.

Plaid adds codes at any time. A code that isn't listed has the meaning of its `error_type`, or of the status.
See https://plaid.com/docs/errors/.
"""

from __future__ import annotations

import re
from typing import Final

from plaid_relay_async.errors import (
    AssetReportError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    CursorExpiredError,
    InvalidRequestError,
    ItemError,
    NotSentError,
    PlaidAPIError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    ReportNotReadyError,
)

GATEWAY_ERROR: Final = "GATEWAY_ERROR"
"""The `error_type` of the errors that this package's gateway creates."""

# The class of an error response, chosen as Plaid advises: by error_code first, then by error_type, then by
# the status (https://plaid.com/docs/errors/). A type that no operation of this package is documented to
# return stays a plain PlaidAPIError. It is listed all the same, so that a test can detect types that are new.
_BY_TYPE_AND_CODE: dict[tuple[str, str], type[PlaidAPIError]] = {
    # With this type, the code is about an Item, and waiting for a report doesn't help.
    ("ITEM_ERROR", "PRODUCT_NOT_READY"): ItemError,
}
_BY_CODE: dict[str, type[PlaidAPIError]] = {
    "PRODUCT_NOT_READY": ReportNotReadyError,
    "INVALID_API_KEYS": AuthenticationError,
    "UNAUTHORIZED_ENVIRONMENT": AuthenticationError,
    "UNAUTHORIZED_ROUTE_ACCESS": AuthenticationError,
    "INVALID_PRODUCT": AuthenticationError,
    "INSIGHTS_NOT_ENABLED": AuthenticationError,
    "USER_PERMISSION_REVOKED": ItemError,
    "ADDITIONAL_CONSENT_REQUIRED": ItemError,
    "WEBHOOK_EVENTS_CURSOR_EXPIRED": CursorExpiredError,
}
_BY_TYPE: dict[str, type[PlaidAPIError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "INVALID_INPUT": InvalidRequestError,
    "INVALID_RESULT": InvalidRequestError,
    "SANDBOX_ERROR": InvalidRequestError,
    "IDEMPOTENCY_ERROR": InvalidRequestError,
    "OAUTH_ERROR": AuthenticationError,
    "PARTNER_ERROR": AuthenticationError,
    "RATE_LIMIT_EXCEEDED": RateLimitError,
    "ASSET_REPORT_ERROR": AssetReportError,
    "ASSETS_ERROR": AssetReportError,
    "ITEM_ERROR": ItemError,
    "INSTITUTION_ERROR": ItemError,
    "API_ERROR": PlaidServerError,
    **dict.fromkeys(
        (
            "BANK_TRANSFER_ERROR",
            "BASE_REPORT_ERROR",
            "CHECK_REPORT_ERROR",
            "CONSUMER_REPORT_ERROR",
            "CRA_MONITORING_ERROR",
            "CRA_PARTNER_INSIGHTS_ERROR",
            "CRA_REPORT_ERROR",
            "CREDIT_PROFILE_REPORT_ERROR",
            "ENCOMPASS_ERROR",
            "ENRICH_ERROR",
            "FRAUD_INSIGHTS_ERROR",
            "FREDDIE_MAC_ERROR",
            "INCOME_VERIFICATION_ERROR",
            "LINK_DELIVERY_ERROR",
            "MICRODEPOSITS_ERROR",
            "PAYMENT_ERROR",
            "PROFILE_ERROR",
            "RECAPTCHA_ERROR",
            "RECURRING_TRANSACTIONS_ERROR",
            "SIGNAL_ERROR",
            "STATEMENTS_ERROR",
            "TRANSACTIONS_ERROR",
            "TRANSACTION_ERROR",
            "TRANSFER_ERROR",
            "TRANSFER_RECURRING_ERROR",
            "TRANSFER_REFUND_ERROR",
            "USER_ERROR",
        ),
        PlaidAPIError,
    ),
}
_BY_STATUS: dict[int, type[PlaidAPIError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    429: RateLimitError,
}

# Advice on codes for which that of the error's class is too general.
ADVICE: Final = {
    "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE": (
        "Plaid lists the webhooks of the last 7 days. "
        "Pass a later start_time, or none to begin with the oldest."
    ),
}

# The codes of errors that every other request of a batch would get, too; see `affects_all_requests`.
SHARED_CODES: Final = frozenset(
    {"INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ROUTE_ACCESS", "CREDITS_EXHAUSTED"}
)
# The 503s that prove that nothing was executed: Plaid's own, and the one of this package's gateway for a
# request that never left it. A 503 from any other intermediary proves nothing.
DECLINED_CODES: Final = frozenset(
    {("API_ERROR", "PLANNED_MAINTENANCE"), (GATEWAY_ERROR, "UPSTREAM_UNREACHABLE")}
)
# The codes of 429s for which waiting doesn't help (https://plaid.com/docs/errors/rate-limit-exceeded/).
PERMANENT_LIMITS: Final = frozenset({"CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"})
# Plaid would respond to the same request with the same error again.
PERMANENT_ERRORS: Final = (InvalidRequestError, AssetReportError)
_INVALID_TOKEN_CODE = re.compile("INVALID_.*TOKEN")


def error_class_for(error_type: str | None, error_code: str | None, status: int) -> type[PlaidAPIError]:
    """Return the exception class for an error response: by code, then by type, then by HTTP status."""
    by_type_and_code = _BY_TYPE_AND_CODE.get((error_type or "", error_code or ""))
    error_class = by_type_and_code or _BY_CODE.get(error_code or "") or _BY_TYPE.get(error_type or "")
    if error_class is not None:
        return error_class
    if status >= 500:
        return PlaidServerError
    return _BY_STATUS.get(status, InvalidRequestError if status >= 400 else PlaidAPIError)


def is_declined(error: PlaidAPIError) -> bool:
    """Return whether the server didn't act on the request, and may do so later.

    That is a 429, unless an allocation is used up; Plaid's `PLANNED_MAINTENANCE`; and the error of this
    package's gateway for a request that it couldn't forward.
    """
    if (error.error_type, error.error_code) in DECLINED_CODES:
        return True
    return error.status == 429 and error.error_code not in PERMANENT_LIMITS


def is_token_not_found(error: PlaidAPIError) -> bool:
    """Return whether an error means that the token doesn't exist.

    Plaid's code for a relay token isn't published; the codes for other tokens are `INVALID_…_TOKEN`. For a
    removed Item it may also be ITEM_NOT_FOUND (https://plaid.com/docs/errors/item/#item_not_found).
    """
    if error.error_code == "ITEM_NOT_FOUND":
        return True
    return error.error_type == "INVALID_INPUT" and bool(_INVALID_TOKEN_CODE.fullmatch(error.error_code or ""))


def affects_all_requests(error: PlaidRelayError) -> bool:
    """Return whether every other request of a batch would get this error as well."""
    if isinstance(error, ClientClosedError | ConfigurationError):
        return True
    if isinstance(error, NotSentError):
        return error.shared
    return isinstance(error, PlaidAPIError) and (
        error.error_code in SHARED_CODES or (error.error_code or "").startswith("UNAUTHORIZED_")
    )


def affects_report(error: PlaidRelayError) -> bool:
    """Return whether every other creation for the same report would get this error as well."""
    if isinstance(error, AssetReportError | ReportNotReadyError):
        return True
    return isinstance(error, PlaidAPIError) and error.error_code == "INVALID_ASSET_REPORT_TOKEN"
