"""What the services share: a function that creates a token, and the response to its errors."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from reports import find_report_token

from plaid_relay_async import (
    DuplicateRequestError,
    InvalidRequestError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RequestValidationError,
    WaitTooLongError,
)
from plaid_relay_async.journal import Journal

Create = Callable[[str, str], Awaitable[str]]


@asynccontextmanager
async def open_relay(**settings) -> AsyncIterator[Create]:
    """Open a client and a journal in this event loop, and yield a function that uses both."""

    async def create(report_id: str, partner_id: str) -> str:
        async with asyncio.timeout(45):
            tokens = [await find_report_token(report_id)]
            created = await client.relay.create(tokens, partner_id, journal=journal, timeout=40)
        return created.relay_token

    async with (
        RelayClient(**settings) as client,
        Journal(os.environ["RELAY_JOURNAL"], run="web") as journal,
    ):
        yield create


def error_response(error: PlaidRelayError | TimeoutError) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return the status, the headers and the JSON body of the response to a failed or unknown creation."""
    status, wait, outcome = 502, None, "failed"
    match error:
        case RateLimitError() | WaitTooLongError():
            status, wait = 503, error.retry_after or 60
        case NotSentError() | JournalError():
            status, wait = 503, 5
        case RequestValidationError() | InvalidRequestError():
            status = 422
        case DuplicateRequestError():
            status = 409
        case OutcomeUnknownError():
            outcome = "unknown"
        case TimeoutError():
            status, wait, outcome = 503, 5, "pending"
    headers = {} if wait is None else {"Retry-After": str(math.ceil(wait))}
    names = ("error_code", "request_id")
    details = {name: value for name in names if (value := getattr(error, name, None)) is not None}
    return status, headers, {"outcome": outcome, **details}
