"""Waiting for a report, within what Plaid allows: 15 requests a minute for one report.

See https://plaid.com/docs/errors/rate-limit-exceeded/; whether a relayed report has the same limit isn't
published, and it is treated as if it had.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from plaid_relay_async.errors import (
    Certainty,
    NotSentError,
    PlaidRelayError,
    ReportNotReadyError,
    certainty_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.transport import Transport

R = TypeVar("R")

_MIN_TIMEOUT = 0.001  # seconds: a call wants some time


def poll_intervals() -> Iterator[float]:
    """Give the seconds between one request and the next: most reports are ready within the first few."""
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
    """Ask until there is a report.

    Args:
        ask: makes one attempt, within as many seconds as it is given.
        seconds: for all of it.
        patience: how many attempts may come to nothing, one after the other, before that is an error.
        max_pause: the longest delay, in seconds, that the server may ask for, as in `RetryPolicy`.
        clock: the time in seconds, which only grows.
        sleep: waits for so many seconds.

    Raises:
        ReportNotReadyError: there is no time to ask again, and the report is still being generated.
        RateLimitError: the server asks for a longer pause than `max_pause`.
        PlaidRelayError: it can't be had.
    """
    deadline = clock() + seconds
    attempts, failures, sent, waits = 0, 0, False, poll_intervals()
    while True:
        try:
            return await send_request(max(deadline - clock(), _MIN_TIMEOUT))
        except PlaidRelayError as error:
            last = error
        attempts = last.attempts = attempts + last.attempts
        sent = last.sent = sent or last.sent is True
        failures = 0 if isinstance(last, ReportNotReadyError) else failures + 1
        delay = getattr(last, "retry_after", None) or 0.0
        wait = max(next(waits), delay)
        too_long = delay > max_pause or getattr(last, "exceeds_max_pause", False)
        if too_long or failures >= max_failures or not _can_poll_again(last) or clock() + wait >= deadline:
            raise last
        await sleep(wait)


def _can_poll_again(error: PlaidRelayError) -> bool:
    passing = isinstance(error, NotSentError | ReportNotReadyError)
    return passing or certainty_of(error) in {Certainty.DECLINED, Certainty.IN_DOUBT}


async def poll_until_ready(
    transport: Transport,
    endpoint: Endpoint[Any, R],
    request: object,
    *,
    timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
    retry: RetryPolicy | None,
) -> R:
    """Poll for the report, with every attempt at its own time, those after a failure too."""
    seconds, policy = transport.resolve_settings(timeout, retry)
    once = evolve(policy, attempts=1)

    def ask(left: float) -> Awaitable[R]:
        return transport.call(endpoint, request, timeout=left if seconds else None, retry=once)

    clock = asyncio.get_running_loop().time
    return await poll(
        ask,
        seconds=seconds or math.inf,
        max_failures=policy.attempts,
        max_pause=policy.max_pause,
        clock=clock,
        sleep=transport.sleep,
    )
