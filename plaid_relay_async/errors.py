"""The exceptions of this package: one class for each decision that a caller can take.

.. code-block:: text

    PlaidRelayError
    ├── ConfigurationError       a setting of the client is invalid: fix it (also a ValueError)
    ├── RequestValidationError   a field of a request is invalid: fix it; nothing was sent (also a ValueError)
    ├── ClientClosedError        the client isn't open: open it (also a RuntimeError)
    ├── DuplicateRequestError    a duplicate in the batch or the journal: see `advice`
    ├── NotSentError             the request never left: try again (also a ConnectionError)
    ├── WaitTooLongError         a rate limit would delay the request for too long: wait, then try again
    ├── ConnectionLostError      an idempotent request got no response: try again (also a ConnectionError)
    │   └── ReadTimeoutError     the same, because of a timeout (also a TimeoutError)
    ├── OutcomeUnknownError      Plaid may have executed the request: find out before you try again
    ├── BatchStoppedError        the input, the journal or a callback raised: see its `result`
    ├── JournalError             the journal can't be opened, read or written: fix it, run again
    ├── InboxError               the inbox of webhooks can't be opened, read or written: fix it
    ├── ResponseDecodeError      a success response is unreadable: report it
    └── PlaidAPIError            the response is an error
        ├── InvalidRequestError  fix the request
        ├── AuthenticationError  fix the credentials, or ask Plaid for access
        ├── RateLimitError       wait
        ├── ReportNotReadyError  wait for the report
        ├── CursorExpiredError   read the list without the cursor
        ├── AssetReportError     the report can't be created or returned as requested
        ├── ItemError            the user, or the bank, has to act
        └── PlaidServerError     Plaid has a problem: try again later

The table in `error_codes` decides which class an error response becomes. `certainty` has what an error proves
about the attempt that it ended.

No error's text, arguments or repr contains a secret or a token.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.redaction import ExpectedError

if TYPE_CHECKING:
    from plaid_relay_async.redaction import Hidden


class PlaidRelayError(ExpectedError):
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

    advice = (
        "See the outcome of the first one. To send both, pass allow_duplicates=True to a batch, or "
        'on_existing="create" to the Journal of another run.'
    )


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


class WaitTooLongError(PlaidRelayError):
    """The request wasn't sent, because a rate limit would delay it for longer than this call may wait.

    The delay is a pause that Plaid requested, or follows from the adaptive rate. The limit is the call's
    timeout or the retry policy's `max_pause`. If `sent` is True, an earlier attempt was sent, and either the
    call is a read or Plaid didn't execute that attempt.

    Attributes:
        retry_after: the seconds to wait before the next call; an earlier call would fail in the same way.
        exceeds_max_pause: whether the pause is longer than the retry policy's `max_pause`.
    """

    retry_after: float | None = None
    exceeds_max_pause: bool = False
    advice = "Wait retry_after seconds before the next call of this operation."


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
    """The request was sent, Plaid may have executed it, and no response shows its result.

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
        "The request may have been executed, and Plaid has no call that lists or finds the result. "
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


class InboxError(PlaidRelayError):
    """The inbox of webhooks can't be opened, read or written."""

    advice = "Fix the cause. Plaid sends a webhook again if the response wasn't 200."

    def __str__(self) -> str:
        # Without the details of the base class, which are about requests to Plaid.
        return escape_unprintable(f"{self.args[0]}. {self.advice}")


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

    See https://plaid.com/docs/errors/rate-limit-exceeded/. Planned maintenance is this error as well if its
    pause is longer than `max_pause`.

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


class CursorExpiredError(PlaidAPIError):
    """The cursor of the list of sent webhooks is older than 7 days (`WEBHOOK_EVENTS_CURSOR_EXPIRED`).

    Webhooks that were sent after the cursor, and longer ago than that, can't be listed any more.
    """

    advice = "Read the list without the cursor: it begins with the oldest webhook that Plaid still has."


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


def reason_of(error: BaseException) -> str:
    """Return Plaid's `error_code`, or the name of the error's class if there is none."""
    return getattr(error, "error_code", None) or type(error).__name__


def is_ordinary_error(error: BaseException) -> bool:
    """Return whether an exception is an error, and doesn't end the task or the process.

    A `CancelledError` counts as an error if this task isn't being cancelled: then some code raised it.
    """
    task = asyncio.current_task()
    raised_by_code = isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
    return raised_by_code or isinstance(error, Exception)
