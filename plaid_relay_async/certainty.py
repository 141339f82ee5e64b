"""What the end of an attempt proves about its execution.

Plaid has no idempotency key. So retries, outcomes and the journal depend on one question about each attempt:
may it have been executed? `certainty_of` answers it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from plaid_relay_async.error_codes import is_declined
from plaid_relay_async.errors import (
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidServerError,
    WaitTooLongError,
)

if TYPE_CHECKING:
    from plaid_relay_async.errors import PlaidRelayError


class Certainty(enum.StrEnum):
    """What the end of an attempt proves about its execution."""

    NOT_SENT = "not_sent"
    """The request never left this machine."""
    DECLINED = "declined"
    """The server didn't execute it, and a later attempt may succeed; see `error_codes.is_declined`."""
    DEFINITIVE = "definitive"
    """The response is final: a success, or an error that proves that nothing was executed."""
    IN_DOUBT = "in_doubt"
    """The attempt may have been executed, and no response says whether it was."""


def certainty_of(error: PlaidRelayError) -> Certainty:
    """Return what an error proves about the attempt that it ended.

    A redirect proves that nothing was executed, and so does a 4xx, unless its `error_type` is `API_ERROR`.
    """
    if isinstance(error, OutcomeUnknownError | ConnectionLostError):
        return Certainty.IN_DOUBT
    # `sent` may refer to an earlier attempt of the call, which was a read or wasn't executed. For a
    # ClientClosedError or a ConfigurationError the difference has no effect: neither is retried.
    if isinstance(error, NotSentError | WaitTooLongError) or not error.sent:
        return Certainty.NOT_SENT
    if not isinstance(error, PlaidAPIError):
        return Certainty.DEFINITIVE
    if is_declined(error):
        return Certainty.DECLINED
    # An API_ERROR is a PlaidServerError even if its status is a 4xx: such an error proves nothing.
    definitive = 300 <= (error.status or 300) < 500 and not isinstance(error, PlaidServerError)
    return Certainty.DEFINITIVE if definitive else Certainty.IN_DOUBT
