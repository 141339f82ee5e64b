"""What can go wrong, one class for each decision that a caller can take.

.. code-block:: text

    PlaidRelayError
    ├── ConfigurationError       the client was set up wrongly: fix the setting (also a ValueError)
    ├── RequestValidationError   a field of a request is invalid: fix it; nothing was sent (also a ValueError)
    ├── ClientClosedError        the client isn't open: open it (also a RuntimeError)
    ├── DuplicateRequestError    the same pair was met before in this batch: drop it
    ├── NotSentError             nothing left this machine: try again (also a ConnectionError)
    ├── ConnectionLostError      a read was sent and never answered: try again (also a ConnectionError)
    │   └── ReadTimeoutError     the same, because time ran out (also a TimeoutError)
    ├── OutcomeUnknownError      Plaid may or may not have acted: find out before you try again
    ├── BatchStoppedError        the input, the journal or a callback raised: see its `result`
    ├── JournalError             the journal can't be opened, read or written: mend it, run it again
    ├── ResponseDecodeError      Plaid answered something that can't be read: report it
    └── PlaidAPIError            Plaid answered with an error
        ├── InvalidRequestError  fix the request
        ├── AuthenticationError  mend the credentials or ask Plaid for access
        ├── RateLimitError       wait
        ├── ReportNotReadyError  wait for the report
        ├── AssetReportError     the report can't be made or read as asked
        ├── ItemError            the person, or their bank, has to act
        └── PlaidServerError     Plaid is in trouble: try again later

No error's text, arguments or repr holds a secret or a token.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import re
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Hidden(Generic[T]):
    """Something secret: shown by `reveal()` alone, never by a repr, a log line or a traceback's locals."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Give the thing itself."""
        return self._value

    def __repr__(self) -> str:
        return "<hidden>"


class PlaidRelayError(Exception):
    """The root of all errors of this package.

    Args:
        message: what happened; holds no secret.
        **facts: values for the attributes that the class declares.

    Attributes:
        sent: whether a request of the call left this machine, in any attempt: `True`, `False`, or `None` if
            that is unknown.
        attempts: how many HTTP requests were made for the call.
        advice: what to do about it, in a sentence.
    """

    sent: bool | None = False
    attempts: int = 0
    advice: str = "See the class of the error."

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        told = (f"{name}={value}" for name in _DISPLAYED_FIELDS if (value := getattr(self, name, None)))
        return escape_unprintable(
            f"{self.args[0]} [{', '.join((_SENT_LABELS[self.sent], *told))}] {self.advice}"
        )


_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]")
# Characters that are printable for Python but invisible on a terminal: fillers, joiners, variation selectors,
# and the empty Braille pattern.
_INVISIBLE_CHARACTERS = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def escape_unprintable(text: str) -> str:
    """Return a text as one line, with a backslash escape for each character that isn't visible.

    Use it to display texts from servers, files and the command line. A terminal acts on control characters, a
    line break or a bidirectional override makes a text look like another one, and no encoding can represent a
    lone surrogate.
    """
    return _NOT_PRINTABLE_ASCII.sub(_escape_character, text)


def _escape_character(character: re.Match[str]) -> str:
    one = character[0]
    return one if is_visible(one) else one.encode("unicode_escape").decode()


def is_visible(character: str) -> bool:
    """Return whether a terminal displays a character, and doesn't act on it."""
    return character.isprintable() and _INVISIBLE_CHARACTERS.match(character) is None


def escape_surrogates(text: str) -> str:
    """Return the text with each lone surrogate, which no encoding can write, as a backslash sequence."""
    return text.encode(errors="backslashreplace").decode()


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
    """The client was set up in a way that can't work or isn't safe. Nothing was sent.

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
    """The client isn't open in this event loop. Nothing was sent."""

    advice = "Use the client inside `async with RelayClient() as client:`."


class DuplicateRequestError(PlaidRelayError):
    """The same pair of report and partner, or the same relay token, came before in this batch."""

    advice = "The first one has the outcome; pass allow_duplicates=True if two are wanted."


class NotSentError(PlaidRelayError, ConnectionError):
    """The request never left: no connection, no name, no TLS, no leave to send, or no time for a response.

    If `sent` is True, an earlier attempt of the call was sent, and was a read or wasn't carried out.

    Attributes:
        errno: the operating system's number, where there is one.
        shared: whether every other request would fail in the same way, because of TLS or the proxy.
    """

    shared: bool = False
    advice = "Nothing was carried out, so it is safe to try again."


class ConnectionLostError(PlaidRelayError, ConnectionError):
    """The request was sent and no whole answer came; it is one that may safely be repeated.

    Attributes:
        errno: the operating system's number, where there is one.
    """

    sent = True
    advice = "It is safe to try again."


class ReadTimeoutError(ConnectionLostError, TimeoutError):
    """The request was sent and its answer didn't come in time; it may safely be repeated."""


class OutcomeUnknownError(PlaidRelayError):
    """Plaid may have carried the call out, and no answer arrived that tells.

    Attributes:
        status: the HTTP status of the answer, where one came.
        error_type: Plaid's, where the answer had one.
        error_code: Plaid's, where the answer had one.
        error_message: Plaid's, where the answer had one.
        request_id: Plaid's, where the answer had one; Plaid's support can look it up.
        documentation_url: Plaid's, where the answer had one.
        retry_after: the server's delay in seconds, where it gave one.
        body: what arrived of a success that can't be read, hidden: a token may be in it.
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
        "It may have been carried out, and Plaid can't be asked: it neither lists nor finds what was made. "
        "Decide: call again and accept that there may be two, or ask Plaid's support."
    )


class ResponseDecodeError(PlaidRelayError):
    """Plaid answered with success, and the answer isn't what its specification promises.

    Attributes:
        path: where in the JSON it went wrong, such as `$.report.items[0].accounts`.
        status: the HTTP status.
        request_id: Plaid's, where it could be read.
        body: the answer, hidden.
    """

    sent = True
    path: str = "$"
    status: int | None = None
    request_id: str | None = None
    body: Hidden[bytes] | None = None
    advice = "Please report it to this package, with the JSON path and without the answer."


class BatchStoppedError(PlaidRelayError):
    """A batch broke off: its input, its journal or a callback raised; that error is the `__cause__`.

    Attributes:
        result: the `BatchResult`, with every outcome that there was and that no loop was handed.
    """

    sent = None
    result: Any = None
    advice = "What was done is in `result`; what wasn't taken from the input is still there."


class JournalError(PlaidRelayError):
    """The journal can't be opened, read or written, or its lease lapsed. Nothing was begun without it."""

    advice = (
        "Nothing was begun that isn't on record. Mend the journal and run it again: it goes on from there."
    )


class PlaidAPIError(PlaidRelayError):
    """Plaid, or something on the way to it, answered with an error. See https://plaid.com/docs/errors/.

    Attributes:
        status: the HTTP status.
        error_type: Plaid's broad category, such as `INVALID_INPUT`; `None` if the answer wasn't Plaid's.
        error_code: Plaid's code, such as `INVALID_API_KEYS`.
        error_message: for developers; Plaid says that its wording may change.
        display_message: for users, often `None`.
        request_id: to be given to Plaid's support.
        documentation_url: Plaid's page about the error.
        suggested_action: Plaid's advice, often `None`.
        causes: the errors of single Items, as Plaid sent them.
        retry_after: the server's delay in seconds, where it gave one.
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


class InvalidRequestError(PlaidAPIError):
    """Plaid rejected the request: a field, a token or an operation is invalid.

    What this package rejects before sending is a `RequestValidationError`.
    """

    advice = "Fix the request: Plaid will reject the same one again."


class AuthenticationError(PlaidAPIError):
    """Plaid doesn't take these credentials, or they don't reach this far."""

    advice = (
        "Check the client id, the secret and that the secret belongs to this environment; "
        "ask Plaid to enable the operation if they are right."
    )


class RateLimitError(PlaidAPIError):
    """Plaid's limit was met, or an allocation is used up (`CREDITS_EXHAUSTED`).

    Without a `status` it is the client's own word: a pause that Plaid asked for, or the rate that it was seen
    to allow, would make this call wait longer than it may.

    Attributes:
        retry_after: seconds to wait, where the server said or the client knows; a call before that will be
            refused again.
        exceeds_max_pause: the pauses that were asked for are longer than the retry policy's `max_pause`.
    """

    exceeds_max_pause: bool = False
    advice = "Wait as long as retry_after says (or a minute) before the next call of this operation."


class ReportNotReadyError(PlaidAPIError):
    """The report is still being generated (`PRODUCT_NOT_READY`); it takes seconds to a minute."""

    advice = "Wait for the PRODUCT_READY webhook, or ask again in a few seconds."


class AssetReportError(PlaidAPIError):
    """The report can't be made, or not be given as asked."""

    advice = "See `causes` for the Items at fault; make a new report once they are mended."


class ItemError(PlaidAPIError):
    """An Item or its institution is in a state that only the person, or the bank, can change."""

    advice = "Let the person go through Link's update mode, or try later if the bank is down."


class PlaidServerError(PlaidAPIError):
    """Plaid, or a server before it, is in trouble. The call may be repeated, or it wasn't carried out."""

    advice = "Try again later; https://status.plaid.com says when."


def strip_traceback(function: Callable[P, T]) -> Callable[P, T]:
    """Keep secrets out of a rendered traceback: drop the frames that held them as plain arguments."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except PlaidRelayError as error:
            refusal = error.with_traceback(None)
        finally:
            del args, kwargs
        raise refusal

    return call


def strip_init_traceback(cls: type[T]) -> type[T]:
    """The same for the making of a record."""
    cls.__init__ = strip_traceback(cls.__init__)  # type: ignore[method-assign]  # the one attribute that attrs wrote itself
    return cls


# Which class says what, by Plaid's own advice: error_code first, then error_type, then the status
# (https://plaid.com/docs/errors/). A type that none of this package's operations is documented to
# give stays a plain PlaidAPIError.
_BY_TYPE_AND_CODE: dict[tuple[str, str], type[PlaidAPIError]] = {
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

# Errors that every partner of a batch would meet alike.
_SHARED_CODES = frozenset(
    {"INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ROUTE_ACCESS", "CREDITS_EXHAUSTED"}
)
# Who says of a 503 that nothing was carried out: Plaid, and our own gateway, from where nothing left. Another
# box on the way may say anything.
_DECLINED_CODES = frozenset({("API_ERROR", "PLANNED_MAINTENANCE"), ("GATEWAY_ERROR", "UPSTREAM_UNREACHABLE")})
# 429s that no waiting mends (https://plaid.com/docs/errors/rate-limit-exceeded/).
_PERMANENT_LIMITS = frozenset({"CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"})


def error_class_for(error_type: str | None, error_code: str | None, status: int) -> type[PlaidAPIError]:
    """Choose the exception for an error answer: by code, then by type, then by HTTP status."""
    by_pair = _BY_TYPE_AND_CODE.get((error_type or "", error_code or ""))
    found = by_pair or _BY_CODE.get(error_code or "") or _BY_TYPE.get(error_type or "")
    if found is not None:
        return found
    if status >= 500:
        return PlaidServerError
    return _BY_STATUS.get(status, InvalidRequestError if status >= 400 else PlaidAPIError)


class Certainty(enum.StrEnum):
    """How one attempt ended, as far as it tells what Plaid did."""

    NOT_SENT = "not_sent"
    """Nothing left this machine."""
    DECLINED = "refused"
    """Nothing was carried out, and a later try may pass: a 429, or a word from `_NOT_NOW`."""
    DEFINITIVE = "answered"
    """Plaid's answer tells: done, or a final no."""
    IN_DOUBT = "unknown"
    """It may have been carried out."""


def certainty_of(error: PlaidRelayError) -> Certainty:
    """Tell how the attempt ended that an error speaks of.

    HTTP and Plaid both say of a 3xx and a 4xx that nothing was carried out; Plaid says so of what it refused
    for now, which is a 429 (but for allocations that are used up) and its own `PLANNED_MAINTENANCE`, and this
    package's gateway of what it could not send on.
    """
    if not isinstance(error, PlaidAPIError):
        if isinstance(error, OutcomeUnknownError | ConnectionLostError):
            return Certainty.IN_DOUBT
        # An earlier attempt of the same call may have been sent.
        return (
            Certainty.DEFINITIVE if error.sent and not isinstance(error, NotSentError) else Certainty.NOT_SENT
        )
    if not error.sent:
        return Certainty.NOT_SENT
    not_now = (error.error_type, error.error_code) in _DECLINED_CODES
    if not_now or (error.status == 429 and error.error_code not in _PERMANENT_LIMITS):
        return Certainty.DECLINED
    tells = 300 <= (error.status or 300) < 500 and not isinstance(error, PlaidServerError)
    return Certainty.DEFINITIVE if tells else Certainty.IN_DOUBT


def reason_of(error: PlaidRelayError) -> str:
    """Give Plaid's code, or else the class of the error."""
    return getattr(error, "error_code", None) or type(error).__name__


def is_ordinary_error(error: BaseException) -> bool:
    """Tell an error from what ends a task; a CancelledError that nobody asked this task for is an error."""
    task = asyncio.current_task()
    stray = isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
    return stray or isinstance(error, Exception)


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
