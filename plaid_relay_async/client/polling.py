"""Polling for a report, within Plaid's limit of 15 requests a minute for one report.

See https://plaid.com/docs/errors/rate-limit-exceeded/. Plaid doesn't publish a limit for shared reports, so
the same limit is assumed.

With an inbox of webhooks, the webhook that the report is ready, or has failed, ends a pause between two
requests. Polling continues without it, because Plaid may not send it, or it may not arrive.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve

from plaid_relay_async import telemetry
from plaid_relay_async.cancellation import wait_until_done
from plaid_relay_async.certainty import Certainty, certainty_of, error_of_call
from plaid_relay_async.errors import (
    NotSentError,
    PlaidRelayError,
    ReportNotReadyError,
    RequestValidationError,
)
from plaid_relay_async.models.fields import check_identifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from typing import TypeAlias

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.transport import Transport
    from plaid_relay_async.webhooks import Inbox

    WaitForWebhook: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

R = TypeVar("R")

_MIN_TIMEOUT = 0.001  # seconds: the timeout of a call must be above 0
_FIRST_INTERVALS: Final = (1.0, 2.0, 3.0, 4.0)
_INTERVAL: Final = 5.0
_INTERVAL_WITH_WEBHOOK: Final = 30.0


def poll_intervals() -> Iterator[float]:
    """Return the seconds between requests: few at first, because most reports are ready soon."""
    return itertools.chain(_FIRST_INTERVALS, itertools.repeat(_INTERVAL))


async def _wait_for_webhook(inbox: Inbox, asset_report_id: str) -> None:
    """Return when the inbox has the webhook of a report, or can't be read."""
    try:
        await inbox.wait_for_report(asset_report_id)
    except Exception as error:  # noqa: BLE001  # whatever the inbox raises, the report can be polled for
        # Only the class of the error: the text of a database's error may have parameters.
        text = "the inbox of webhooks raised %s, so the report is polled for without it"
        telemetry.CALLS.warning(text, type(error).__name__)


def webhook_waiter(inbox: Inbox | None, asset_report_id: str | None) -> WaitForWebhook | None:
    """Return a function that waits for the webhook of a report, or `None` without an inbox.

    Raises:
        RequestValidationError: the ID isn't valid, or there is one without an inbox.
    """
    if inbox is None:
        if asset_report_id is not None:
            raise RequestValidationError.of("inbox", "is required with asset_report_id")
        return None
    if asset_report_id is None:
        raise RequestValidationError.of("asset_report_id", "is required with inbox")
    check_identifier("asset_report_id", asset_report_id)
    return functools.partial(_wait_for_webhook, inbox, asset_report_id)


async def poll(
    send_request: Callable[[float], Awaitable[R]],
    *,
    seconds: float,
    max_failures: int,
    max_pause: float,
    clock: Callable[[], float],
    sleep: Callable[..., Awaitable[object]] = asyncio.sleep,
    webhook: asyncio.Future[None] | None = None,
) -> R:
    """Send requests until one returns the report.

    Args:
        send_request: sends one request, with a timeout in seconds.
        seconds: the timeout for all requests and the time between them.
        max_failures: the number of consecutive failed requests after which the last error is raised.
        max_pause: the longest pause that the server may request, in seconds, as in `RetryPolicy`.
        clock: returns a monotonic time in seconds.
        sleep: waits for a number of seconds and, with a second argument, at most until this future is done.
        webhook: a future that is done when a webhook has announced the report. It ends one pause.

    Raises:
        ReportNotReadyError: the report is still being generated, and there is no time for another request.
        RateLimitError: the server requests a longer pause than `max_pause`.
        WaitTooLongError: the rate limit would delay a request beyond the deadline.
        PlaidRelayError: the report can't be read.
    """
    deadline = clock() + seconds
    attempts, failures, sent, waits = 0, 0, False, poll_intervals()
    while True:
        expected = None if webhook is None or webhook.done() else webhook
        try:
            return await send_request(max(deadline - clock(), _MIN_TIMEOUT))
        except PlaidRelayError as error:
            failure = error
        attempts += failure.attempts
        sent |= failure.sent is True
        # A report that isn't ready is the expected response, and no failure.
        failures = 0 if isinstance(failure, ReportNotReadyError) else failures + 1
        delay = getattr(failure, "retry_after", None) or 0.0
        wait = max(_interval(next(waits), deadline - clock(), expected), delay)
        too_long = delay > max_pause or getattr(failure, "exceeds_max_pause", False)
        if too_long or failures >= max_failures or not _can_poll_again(failure) or clock() + wait >= deadline:
            raise error_of_call(failure, attempts=attempts, sent=sent)
        try:
            await _pause(sleep, wait, delay, expected)
        except PlaidRelayError as error:  # the client was closed
            raise error_of_call(error, attempts=attempts, sent=sent) from None


def _interval(interval: float, remaining: float, expected: asyncio.Future[None] | None) -> float:
    """Return the longer interval while a webhook is expected, if it leaves time for another request."""
    if expected is None or interval < _INTERVAL or remaining <= _INTERVAL_WITH_WEBHOOK + _INTERVAL:
        return interval
    return _INTERVAL_WITH_WEBHOOK


async def _pause(
    sleep: Callable[..., Awaitable[object]],
    seconds: float,
    delay: float,
    expected: asyncio.Future[None] | None,
) -> None:
    """Wait; an expected webhook ends this, but not before the delay that the server has requested."""
    if expected is None:
        await sleep(seconds)
        return
    if delay:
        await sleep(delay)
    await sleep(seconds - delay, expected)


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
    wait_for_webhook: WaitForWebhook | None,
) -> R:
    """Poll for a report, each time by a call with one attempt, so that retries stay within Plaid's limit."""
    seconds, policy = transport.resolve_settings(timeout, retry)
    single_attempt = evolve(policy, attempts=1)

    def send_request(timeout_left: float) -> Awaitable[R]:
        return transport.call(
            endpoint, request, timeout=timeout_left if seconds else None, retry=single_attempt
        )

    arrival = None if wait_for_webhook is None else asyncio.create_task(wait_for_webhook())
    try:
        return await poll(
            send_request,
            seconds=seconds or math.inf,
            max_failures=policy.attempts,
            max_pause=policy.max_pause,
            clock=asyncio.get_running_loop().time,
            sleep=transport.sleep,
            webhook=arrival,
        )
    finally:
        if arrival is not None:
            arrival.cancel()
            await wait_until_done(arrival)
