"""What the end of an attempt proves about its execution, and what its call ends with.

Plaid has no idempotency key. So retries, outcomes and the journal depend on one question about each attempt:
may it have been executed? `certainty_of` answers it. If a call had several attempts, `error_of_call` says
which of their errors counts.
"""

from __future__ import annotations

import enum
from typing import Any, TypeVar

from plaid_relay_async.error_codes import is_declined
from plaid_relay_async.errors import (
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    PlaidServerError,
    ResponseDecodeError,
    WaitTooLongError,
)

E = TypeVar("E", bound=PlaidRelayError)


class Certainty(enum.StrEnum):
    """What the end of an attempt proves about its execution."""

    NOT_SENT = "not_sent"
    """No server can have acted on the request: its body wasn't sent, or the TLS handshake was rejected."""
    DECLINED = "declined"
    """The server didn't execute it, and a later attempt may succeed; see `error_codes.is_declined`."""
    DEFINITIVE = "definitive"
    """The response is final: a success, readable or not, or an error that proves that it wasn't executed."""
    IN_DOUBT = "in_doubt"
    """The attempt may have been executed, and no response says whether it was."""


def certainty_of(error: PlaidRelayError) -> Certainty:
    """Return what an error proves about the attempt that it ended.

    A redirect proves that nothing was executed, and so does a 4xx, unless its `error_type` is `API_ERROR`. So
    does a success response which says that a token wasn't removed.
    """
    if isinstance(error, OutcomeUnknownError | ConnectionLostError):
        return Certainty.IN_DOUBT
    # After `error_of_call`, `sent` is also True if only an earlier attempt was sent. These two classes show
    # that the last attempt wasn't. A ClientClosedError or a ConfigurationError with such a `sent` is classed
    # as DEFINITIVE, which has the same effect as NOT_SENT, because neither is retried.
    # `sent` is None only in an OutcomeUnknownError, and in errors that aren't those of an attempt.
    if isinstance(error, NotSentError | WaitTooLongError) or not error.sent:
        return Certainty.NOT_SENT
    # In most cases a ResponseDecodeError: the attempt was executed, and a repeat can't show more.
    # `BatchOperation.outcome_error` makes an `Unknown` of it where the operation changes something.
    if not isinstance(error, PlaidAPIError):
        return Certainty.DEFINITIVE
    if is_declined(error):
        return Certainty.DECLINED
    # An API_ERROR is a PlaidServerError even if its status is a 4xx: such an error proves nothing. The status
    # is a 2xx if the response says that a token wasn't removed. Only an error that a program has created,
    # such as a test, has no status.
    is_final = error.status is None or 200 <= error.status < 500
    is_final &= not isinstance(error, PlaidServerError)
    return Certainty.DEFINITIVE if is_final else Certainty.IN_DOUBT


def leaves_unknown(error: PlaidRelayError) -> bool:
    """Return whether the result of a call that changes something is unknown if it ends with an error."""
    # An unreadable success response proves that Plaid executed the request, but doesn't show the result.
    return certainty_of(error) is Certainty.IN_DOUBT or isinstance(error, ResponseDecodeError)


def outcome_of(result: object, *, is_safe: bool) -> str:
    """Return how a call ended, from its response or its error: `succeeded`, `failed` or `unknown`.

    This is the rule for log records, callbacks, traces and `Statistics`, and for the outcomes of a batch.
    """
    if not isinstance(result, PlaidRelayError):
        # Plaid's response to a removal may say that the token wasn't removed.
        return "succeeded" if getattr(result, "removed", True) else "failed"
    return "unknown" if leaves_unknown(result) and not is_safe else "failed"


def error_of_call(
    error: PlaidRelayError, *, in_doubt: PlaidRelayError | None = None, attempts: int, sent: bool = False
) -> PlaidRelayError:
    """Return the error that a call ends with, and note in it what is known of all attempts.

    An attempt that may have been executed outweighs a later error: that a later attempt was rejected,
    declined or not sent proves nothing about the earlier one.

    Args:
        error: the error of the last attempt, or of what prevented it.
        in_doubt: the error of an attempt in doubt, if there was one.
        attempts: the number of attempts of the call, including those that weren't sent.
        sent: whether one of them was sent.
    """
    decisive = error
    if in_doubt is not None and certainty_of(error) is not Certainty.IN_DOUBT:
        decisive = in_doubt
        decisive.__cause__ = error
    for each in (error, decisive):
        each.attempts, each.sent = attempts, sent or each.sent
    return decisive


def reclassify(error: PlaidRelayError, cls: type[E], *, message: str | None = None, **changes: Any) -> E:
    """Return a copy of an error as an instance of `cls`, with another message or other attributes if passed.

    Attributes that `cls` doesn't declare are left out.
    """
    attributes = {name: value for name, value in vars(error).items() if hasattr(cls, name)}
    return cls(message or str(error.args[0]), **attributes | changes)
