"""The exceptions of this package: one class for each decision that a caller can take.

.. code-block:: text

    PlaidRelayError
    ├── ConfigurationError       a setting of the client is invalid: fix it (also a ValueError)
    ├── RequestValidationError   a field of a request is invalid: fix it; nothing was sent (also a ValueError)
    ├── ClientClosedError        the client isn't open: open it (also a RuntimeError)
    ├── DuplicateRequestError    a duplicate in the batch or the journal: see `advice`
    ├── NotSentError             the request never left: try again (also a ConnectionError)
    ├── ConnectionLostError      an idempotent request got no response: try again (also a ConnectionError)
    │   └── ReadTimeoutError     the same, because of a timeout (also a TimeoutError)
    ├── OutcomeUnknownError      Plaid may have executed the request: find out before you try again
    ├── BatchStoppedError        the input, the journal or a callback raised: see its `result`
    ├── JournalError             the journal can't be opened, read or written: fix it, run again
    ├── ResponseDecodeError      a success response is unreadable: report it
    └── PlaidAPIError            the response is an error
        ├── InvalidRequestError  fix the request
        ├── AuthenticationError  fix the credentials, or ask Plaid for access
        ├── RateLimitError       wait
        ├── ReportNotReadyError  wait for the report
        ├── AssetReportError     the report can't be created or returned as requested
        ├── ItemError            the user, or the bank, has to act
        └── PlaidServerError     Plaid has a problem: try again later

A table decides which class an error response becomes (`error_class_for`). A second decision is what an error
proves about the attempt that it ended (`certainty_of`); retries, outcomes and the journal depend on it.

No error's text, arguments or repr contains a secret or a token.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

from plaid_relay_async.display import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Hidden(Generic[T]):
    """A secret value that only `reveal()` returns: no repr, log line or traceback with locals shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return "<hidden>"


class PlaidRelayError(Exception):
    """The base class of all errors of this package.

    Args:
        message: what happened; it contains no secret.
        **attributes: values for the attributes that the class declares.

    Attributes:
        sent: whether an HTTP request of the call left this machine, in any attempt: `True`, `False`, or
            `None` if that is unknown.
        attempts: the number of attempts of the call, including those that weren't sent.
        advice: what to do about it, in a sentence.

    Raises:
        TypeError: the class doesn't declare one of the attributes.
    """

    sent: bool | None = False
    attempts: int = 0
    advice: str = "See the documentation of this error's class."

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        fields = (f"{name}={value}" for name in _DISPLAYED_FIELDS if (value := getattr(self, name, None)))
        details = ", ".join((_SENT_LABELS[self.sent], *fields))
        return escape_unprintable(f"{self.args[0]} [{details}] {self.advice}")


_SENT_LABELS = {True: "sent", False: "not sent", None: "perhaps sent"}
_DISPLAYED_FIELDS = (
    "attempts",
    "status",
    "error_type",
    "error_code",
    "request_id",
    "retry_after",
    "documentation_url",
)


class ConfigurationError(PlaidRelayError, ValueError):
    """A setting of the client is invalid or unsafe.

    Nothing was sent, unless `sent` is True: then an earlier attempt was sent, and was a read or wasn't
    executed.

    Attributes:
        field: the name of the invalid field of a record such as `Credentials`, or `None`.
        problem: what is wrong with that field, or `None`.
    """

    field: str | None = None
    problem: str | None = None
    advice = "Fix the argument or the environment variable that is named."


class RequestValidationError(PlaidRelayError, ValueError):
    """A request is invalid. This package rejected it, and nothing was sent.

    Attributes:
        field: the name of the invalid field, with its place in a list, such as `report_tokens[0]`.
        problem: what is wrong with it, such as `is empty`; it quotes no value.
    """

    field: str = ""
    problem: str = ""
    advice = "Fix the field that is named."

    @classmethod
    def of(cls, field: str, problem: str) -> Self:
        """Return the error for a field and its problem, which together form the message."""
        return cls(f"{field} {problem}", field=field, problem=problem)


class ClientClosedError(PlaidRelayError, RuntimeError):
    """The client isn't open in this event loop, or was closed while the call waited.

    Nothing was sent, unless `sent` is True: then an earlier attempt was sent, and was a read or wasn't
    executed.
    """

    advice = "Use the client inside `async with RelayClient() as client:`."


class DuplicateRequestError(PlaidRelayError):
    """The batch has already read this pair or token, or the journal has a token that it doesn't return."""

    advice = "See the outcome of the first one; pass allow_duplicates=True to send both."


class NotSentError(PlaidRelayError, ConnectionError):
    """The request never left, because DNS, the connection, TLS, the rate limiter or the credentials failed.

    Another reason is that too little time was left for a response. If `sent` is True, an earlier attempt was
    sent, and either the call is a read or Plaid didn't execute that attempt.

    Attributes:
        errno: the operating system's error number, if there is one.
        shared: whether every other request would fail in the same way, because of TLS or the proxy.
    """

    shared: bool = False
    advice = "Nothing was executed, so it is safe to try again."


class ConnectionLostError(PlaidRelayError, ConnectionError):
    """The request was sent and no complete response arrived; the operation is idempotent.

    Attributes:
        errno: the operating system's error number, if there is one.
    """

    sent = True
    advice = "It is safe to try again."


class ReadTimeoutError(ConnectionLostError, TimeoutError):
    """The request was sent and its response didn't arrive in time; the operation is idempotent."""


class OutcomeUnknownError(PlaidRelayError):
    """Plaid may have executed the request, and no response says whether it did.

    Another attempt might execute it a second time, so the call is repeated only if the retry policy says
    `replay="always"`. `advice` says what to do. Each attribute is `None` if no response arrived, or if the
    response doesn't contain it.

    Attributes:
        status: the HTTP status.
        error_type: Plaid's category of the error.
        error_code: Plaid's code.
        error_message: Plaid's message.
        request_id: Plaid's identifier of the request; Plaid's support can look it up.
        documentation_url: Plaid's page about the error.
        retry_after: the server's delay, in seconds.
        body: the part of an unreadable success response that arrived, hidden, because it may contain a token.
    """

    sent = True
    status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    documentation_url: str | None = None
    retry_after: float | None = None
    body: Hidden[bytes] | None = None
    advice = (
        "It may have been executed, and Plaid has no call that lists or finds the result. "
        "Decide: call again and accept that there may be two, or ask Plaid's support."
    )


class ResponseDecodeError(PlaidRelayError):
    """A success response doesn't conform to Plaid's specification, or is longer than the client's limit.

    `from_json` and `structure` raise it, with `sent` False, for stored JSON that isn't the expected record.

    Attributes:
        path: the place of the first problem in the JSON, such as `$.report.items[0].accounts`.
        status: the HTTP status.
        request_id: Plaid's identifier of the request, if it could be read.
        body: the response body, hidden.
    """

    sent = True
    path: str = "$"
    status: int | None = None
    request_id: str | None = None
    body: Hidden[bytes] | None = None
    advice = (
        "Report the JSON path, but not the response, to this package's project. "
        "If the response isn't Plaid's, check base_url."
    )


class BatchStoppedError(PlaidRelayError):
    """A batch stopped because its input, its journal or a callback raised; that error is the `__cause__`.

    Attributes:
        result: the `BatchResult`, with every outcome that the caller's loop hasn't received.
    """

    sent = None
    result: Any = None
    advice = "The outcomes are in `result`; requests that weren't read are still in the input."


class JournalError(PlaidRelayError):
    """The journal can't be opened, read or written, or its lease expired. No unrecorded request was sent."""

    advice = "No unrecorded request was sent. Fix the cause and run again: the run resumes where it stopped."


class PlaidAPIError(PlaidRelayError):
    """Plaid, or an intermediary, responded with an error. See https://plaid.com/docs/errors/.

    Attributes:
        status: the HTTP status.
        error_type: Plaid's broad category, such as `INVALID_INPUT`; `None` if the response isn't Plaid's.
        error_code: Plaid's code, such as `INVALID_API_KEYS`.
        error_message: a message for developers; Plaid may change its wording.
        display_message: a message for end users, often `None`.
        request_id: Plaid's identifier of the request; Plaid's support can look it up.
        documentation_url: Plaid's page about the error.
        suggested_action: Plaid's advice, often `None`.
        causes: the errors of single Items, as Plaid sent them.
        retry_after: the server's delay in seconds, or `None`.
    """

    sent = True
    status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    display_message: str | None = None
    request_id: str | None = None
    documentation_url: str | None = None
    suggested_action: str | None = None
    causes: tuple[Any, ...] = ()
    retry_after: float | None = None
    advice = "See error_code and documentation_url, if the response had them."


class InvalidRequestError(PlaidAPIError):
    """Plaid rejected the request: a field, a token or an operation is invalid.

    What this package rejects before sending is a `RequestValidationError`.
    """

    advice = (
        "Fix the request: the same one will be rejected again. "
        "If the response has no error_code, check base_url."
    )


class AuthenticationError(PlaidAPIError):
    """The credentials are wrong, or aren't enabled for this operation."""

    advice = (
        "Check the client ID and the secret, and that the secret belongs to this environment. "
        "If they are right, ask Plaid to enable the operation."
    )


class RateLimitError(PlaidAPIError):
    """A rate limit was exceeded, or an allocation is used up (`CREDITS_EXHAUSTED`).

    See https://plaid.com/docs/errors/rate-limit-exceeded/. If `status` is `None`, the client raised it
    instead of sending an attempt: because of the pause that Plaid requested, or the adaptive rate, this call
    would wait longer than its timeout or `max_pause` allows.

    Attributes:
        retry_after: seconds to wait, if they are known; a call before their end would be declined again.
        exceeds_max_pause: whether the requested pauses are longer than the retry policy's `max_pause`.
    """

    exceeds_max_pause: bool = False
    advice = (
        "Wait retry_after seconds, or a minute if it isn't set, before the next call of this operation. "
        "Waiting doesn't help after CREDITS_EXHAUSTED or TRIAL_CONNECTION_LIMIT: see documentation_url."
    )


class ReportNotReadyError(PlaidAPIError):
    """The report is still being generated (`PRODUCT_NOT_READY`); it takes seconds to a minute."""

    advice = "Wait for the PRODUCT_READY webhook, or try again in a few seconds."


class AssetReportError(PlaidAPIError):
    """The report can't be created, or can't be returned as requested."""

    advice = (
        "See `causes` for the Items at fault, or documentation_url if there are none; "
        "create a new report once the problem is fixed."
    )


class ItemError(PlaidAPIError):
    """An Item or its institution is in a state that only the user, or the bank, can change."""

    advice = "Send the user through Link's update mode, or try again later if the bank is down."


class PlaidServerError(PlaidAPIError):
    """Plaid, or an intermediary, has a problem. The operation is idempotent, or it wasn't executed."""

    advice = "Try again later; see https://status.plaid.com."


def strip_traceback(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to drop the traceback of its errors, whose frames hold secrets as plain arguments.

    A traceback that is rendered with locals would otherwise show them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except PlaidRelayError as error:
            stripped = error.with_traceback(None)
        finally:
            del args, kwargs
        raise stripped

    return call


def strip_init_traceback(cls: type[T]) -> type[T]:
    """Decorate a record class so that creating an instance drops the traceback as `strip_traceback` does."""
    cls.__init__ = strip_traceback(cls.__init__)  # type: ignore[method-assign]  # attrs wrote it
    return cls


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

# Errors that every other request of a batch would get, too.
_SHARED_CODES = frozenset(
    {"INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ROUTE_ACCESS", "CREDITS_EXHAUSTED"}
)
# The 503s that prove that nothing was executed: Plaid's own, and the one of this package's gateway for a
# request that never left it. A 503 from any other intermediary proves nothing.
_DECLINED_CODES = frozenset({("API_ERROR", "PLANNED_MAINTENANCE"), ("GATEWAY_ERROR", "UPSTREAM_UNREACHABLE")})
# 429s that don't end by waiting (https://plaid.com/docs/errors/rate-limit-exceeded/).
_PERMANENT_LIMITS = frozenset({"CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"})


def error_class_for(error_type: str | None, error_code: str | None, status: int) -> type[PlaidAPIError]:
    """Return the exception class for an error response: by code, then by type, then by HTTP status."""
    by_type_and_code = _BY_TYPE_AND_CODE.get((error_type or "", error_code or ""))
    error_class = by_type_and_code or _BY_CODE.get(error_code or "") or _BY_TYPE.get(error_type or "")
    if error_class is not None:
        return error_class
    if status >= 500:
        return PlaidServerError
    return _BY_STATUS.get(status, InvalidRequestError if status >= 400 else PlaidAPIError)


class Certainty(enum.StrEnum):
    """What the end of an attempt proves about its execution."""

    NOT_SENT = "not_sent"
    """The request never left this machine."""
    DECLINED = "declined"
    """The server didn't execute it, and a later attempt may succeed; see `certainty_of`."""
    DEFINITIVE = "definitive"
    """The response is final: a success, or an error that proves that nothing was executed."""
    IN_DOUBT = "in_doubt"
    """The attempt may have been executed, and no response says whether it was."""


def certainty_of(error: PlaidRelayError) -> Certainty:
    """Return what an error proves about the attempt that it ended.

    A redirect proves that nothing was executed, and so does a 4xx, unless its `error_type` is `API_ERROR`.
    Plaid declines an attempt by a 429, unless an allocation is used up, or by `PLANNED_MAINTENANCE`; this
    package's gateway declines what it couldn't forward.
    """
    if not isinstance(error, PlaidAPIError):
        if isinstance(error, OutcomeUnknownError | ConnectionLostError):
            return Certainty.IN_DOUBT
        # `sent` may refer to an earlier attempt of the call, so a NotSentError is NOT_SENT in any case. For
        # a ClientClosedError or a ConfigurationError the difference has no effect: neither is retried.
        return (
            Certainty.DEFINITIVE if error.sent and not isinstance(error, NotSentError) else Certainty.NOT_SENT
        )
    if not error.sent:
        return Certainty.NOT_SENT
    declined = (error.error_type, error.error_code) in _DECLINED_CODES
    if declined or (error.status == 429 and error.error_code not in _PERMANENT_LIMITS):
        return Certainty.DECLINED
    # An API_ERROR is a PlaidServerError even if its status is a 4xx: such an error proves nothing. Only the
    # client's own RateLimitError has no status. If its `sent` is True, an earlier attempt was sent. That was
    # a read or wasn't executed, because otherwise the call would raise the error of that attempt.
    definitive = 300 <= (error.status or 300) < 500 and not isinstance(error, PlaidServerError)
    return Certainty.DEFINITIVE if definitive else Certainty.IN_DOUBT


def reason_of(error: PlaidRelayError) -> str:
    """Return Plaid's `error_code`, or the name of the error's class if there is none."""
    return getattr(error, "error_code", None) or type(error).__name__


def is_ordinary_error(error: BaseException) -> bool:
    """Return whether an exception is an error, and doesn't end the task or the process.

    A `CancelledError` counts as an error if this task isn't being cancelled: then some code raised it.
    """
    task = asyncio.current_task()
    raised_by_code = isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
    return raised_by_code or isinstance(error, Exception)


def affects_all_requests(error: PlaidRelayError) -> bool:
    """Return whether every other request of a batch would get this error as well."""
    if isinstance(error, ClientClosedError | ConfigurationError):
        return True
    if isinstance(error, NotSentError):
        return error.shared
    return isinstance(error, PlaidAPIError) and (
        error.error_code in _SHARED_CODES or (error.error_code or "").startswith("UNAUTHORIZED_")
    )


def affects_report(error: PlaidRelayError) -> bool:
    """Return whether every other creation for the same report would get this error as well."""
    if isinstance(error, AssetReportError | ReportNotReadyError):
        return True
    return isinstance(error, PlaidAPIError) and error.error_code == "INVALID_ASSET_REPORT_TOKEN"
