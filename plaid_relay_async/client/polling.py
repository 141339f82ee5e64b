"""Polling for a report, within Plaid's limit of 15 requests a minute for one report.

See https://plaid.com/docs/errors/rate-limit-exceeded/. Plaid doesn't publish a limit for shared reports, so
the same limit is assumed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from plaid_relay_async.certainty import Certainty, certainty_of, error_of_call
from plaid_relay_async.errors import NotSentError, PlaidRelayError, ReportNotReadyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.transport import Transport

R = TypeVar("R")

_MIN_TIMEOUT = 0.001  # seconds: the timeout of a call must be above 0


def poll_intervals() -> Iterator[float]:
    """Return the seconds between requests: few at first, because most reports are ready soon."""
    return itertools.chain((1.0, 2.0, 3.0, 4.0), itertools.repeat(5.0))


async def poll(
    send_request: Callable[[float], Awaitable[R]],
    *,
    seconds: float,
    max_failures: int,
    max_pause: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> R:
    """Send requests until one returns the report.

    Args:
        send_request: sends one request, with a timeout in seconds.
        seconds: the timeout for all requests and the time between them.
        max_failures: the number of consecutive failed requests after which the last error is raised.
        max_pause: the longest pause that the server may request, in seconds, as in `RetryPolicy`.
        clock: returns a monotonic time in seconds.
        sleep: waits for a number of seconds.

    Raises:
        ReportNotReadyError: the report is still being generated, and there is no time for another request.
        RateLimitError: the server requests a longer pause than `max_pause`.
        WaitTooLongError: the rate limit would delay a request beyond the deadline.
        PlaidRelayError: the report can't be read.
    """
    deadline = clock() + seconds
    attempts, failures, sent, waits = 0, 0, False, poll_intervals()
    while True:
        try:
            return await send_request(max(deadline - clock(), _MIN_TIMEOUT))
        except PlaidRelayError as error:
            failure = error
        attempts += failure.attempts
        sent |= failure.sent is True
        # A report that isn't ready is the expected response, and no failure.
        failures = 0 if isinstance(failure, ReportNotReadyError) else failures + 1
        delay = getattr(failure, "retry_after", None) or 0.0
        wait = max(next(waits), delay)
        too_long = delay > max_pause or getattr(failure, "exceeds_max_pause", False)
        if too_long or failures >= max_failures or not _can_poll_again(failure) or clock() + wait >= deadline:
            raise error_of_call(failure, attempts=attempts, sent=sent)
        try:
            await sleep(wait)
        except PlaidRelayError as error:  # the client was closed
            raise error_of_call(error, attempts=attempts, sent=sent) from None


def _can_poll_again(error: PlaidRelayError) -> bool:
    is_transient = isinstance(error, NotSentError | ReportNotReadyError)
    return is_transient or certainty_of(error) in {Certainty.DECLINED, Certainty.IN_DOUBT}


async def poll_until_ready(
    transport: Transport,
    endpoint: Endpoint[Any, R],
    request: object,
    *,
    timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
    retry: RetryPolicy | None,
) -> R:
    """Poll for a report, each time by a call with one attempt, so that retries stay within Plaid's limit."""
    seconds, policy = transport.resolve_settings(timeout, retry)
    single_attempt = evolve(policy, attempts=1)

    def send_request(timeout_left: float) -> Awaitable[R]:
        return transport.call(
            endpoint, request, timeout=timeout_left if seconds else None, retry=single_attempt
        )

    clock = asyncio.get_running_loop().time
    return await poll(
        send_request,
        seconds=seconds or math.inf,
        max_failures=policy.attempts,
        max_pause=policy.max_pause,
        clock=clock,
        sleep=transport.sleep,
    )
