"""The records that the client passes to its callbacks, without secrets and tokens."""

from __future__ import annotations

import re
from typing import Final

from attrs import field, frozen

from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.redaction import REDACTED, redact_credentials, redact_identifier

_IDENTIFIER: Final = re.compile(r"[\w.:-]*", re.ASCII)


def redact_name(value: str | None) -> str | None:
    """Return an identifier that the caller has chosen; hide it if it may be a token."""
    return None if value is None else escape_unprintable(redact_identifier(value))


def redact_id(value: str | None) -> str | None:
    """Return an identifier that a server has sent; hide a text, because it may quote the request."""
    if value is None or _IDENTIFIER.fullmatch(value):
        return redact_name(value)
    return REDACTED


def redact_run(value: str | None) -> str | None:
    """Return a run name with tokens redacted; keep names such as `nightly-production-2026`."""
    return None if value is None else escape_unprintable(redact_credentials(value))


@frozen(kw_only=True)
class AttemptEnd:
    """The end of an attempt, as `RelayClient(on_attempt=...)` receives it.

    It contains no secret and no token.

    Attributes:
        operation: the path of the operation, such as `/credit/relay/create`.
        call_id: the identifier of the call, as in the log. In a batch, it is that of the batch, a hyphen, and
            the position of the request in the input, from 1.
        batch_id: the identifier of the batch; `None` for a single call.
        run: the run name of the journal; `None` without a journal.
        partner: the `secondary_client_id` of a creation; `None` for other operations.
        attempt: the number of the attempt in its call, from 1.
        status: the HTTP status of the response; `None` if no response arrived.
        error_code: Plaid's `error_code`, or the name of the error's class; `None` without an error.
        request_id: Plaid's ID of the request.
        certainty: what the end of the attempt proves: `not_sent`, `declined`, `definitive`, `in_doubt`, or
            `cancelled`.
        duration: seconds that the attempt took.
        retry_after: the delay that the server requested, in seconds; `None` if it requested none.
    """

    operation: str
    call_id: str
    batch_id: str | None
    run: str | None = field(converter=redact_run)
    partner: str | None = field(converter=redact_name)
    attempt: int
    status: int | None
    error_code: str | None = field(converter=redact_id)
    request_id: str | None = field(converter=redact_id)
    certainty: str
    duration: float
    retry_after: float | None = None


@frozen(kw_only=True)
class CallEnd:
    """The end of a call, as `RelayClient(on_call_end=...)` receives it.

    It contains no secret and no token.

    Attributes:
        operation: the path of the operation, such as `/credit/relay/create`.
        call_id: the identifier of the call, as in the log. In a batch, it is that of the batch, a hyphen, and
            the position of the request in the input, from 1.
        batch_id: the identifier of the batch; `None` for a single call.
        run: the run name of the journal; `None` without a journal.
        partner: the `secondary_client_id` of a creation; `None` for other operations.
        attempts: the number of attempts of the call, including those that weren't sent; 0 if the journal had
            the outcome.
        status: the HTTP status of the response, if the call failed.
        error_code: Plaid's `error_code`, or the name of the error's class; `None` without an error.
        request_id: Plaid's ID of the request.
        outcome: how the call ended: `succeeded`, `failed`, `unknown`, `cancelled`, or, in a batch,
            `not_attempted`.
        duration: seconds that the call took.
    """

    operation: str
    call_id: str
    batch_id: str | None
    run: str | None = field(converter=redact_run)
    partner: str | None = field(converter=redact_name)
    attempts: int
    status: int | None
    error_code: str | None = field(converter=redact_id)
    request_id: str | None = field(converter=redact_id)
    outcome: str
    duration: float
