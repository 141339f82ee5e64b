"""Retries: the decision after a failed attempt whether its call makes another one, and when.

Unless the retry policy says `replay="always"`, a non-idempotent call is retried only if no attempt can have
been executed: each was not sent or was declined. The library `backoff` runs the retries, and only this module
uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import backoff
from attrs import define, frozen

from plaid_relay_async.certainty import Certainty, certainty_of, reclassify
from plaid_relay_async.codec import Endpoint, Idempotency
from plaid_relay_async.error_codes import is_token_not_found
from plaid_relay_async.errors import (
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    RateLimitError,
    reason_of,
)
from plaid_relay_async.transport.admission import Admission, CallState

if TYPE_CHECKING:
    from collections.abc import Generator

    from plaid_relay_async.config import RetryPolicy

R = TypeVar("R")


@frozen(kw_only=True)
class Retry:
    """A planned retry, as `RelayClient(on_retry=...)` receives it. It contains no secret and no token.

    Attributes:
        operation: the path of the operation, such as `/credit/relay/create`.
        attempts: the number of attempts so far.
        reason: Plaid's `error_code`, or the name of the error's class.
        status: the HTTP status of the response, if there was one.
        request_id: Plaid's ID of the request, if the response had one.
        wait: the seconds until the next attempt at the earliest.
    """

    operation: str
    attempts: int
    reason: str
    status: int | None
    request_id: str | None
    wait: float


OnRetry: TypeAlias = Callable[[Retry], object]


class RetrySignal(Exception):  # noqa: N818  # not an error: it carries the wait to backoff
    """Ends an attempt that is followed by another one after a wait in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


def _waits_of_signals() -> Generator[float, Any, None]:
    # backoff primes this generator, then sends each exception to it and waits for the seconds that it yields.
    signal: RetrySignal = yield 0.0
    while True:
        signal = yield signal.wait


repeat_on_signal: Final = backoff.on_exception(_waits_of_signals, RetrySignal, jitter=None, logger=None)
"""Decorates an async function that is called again, after the wait, when it raises `RetrySignal`."""


@define(eq=False, repr=False)
class Retries:
    """Decides whether a call is retried, from what its attempt proves, the policy, and the remaining time.

    Attributes:
        admission: has the rate limiter, the counters, and the waits that end when the client is closed.
        on_retry: the caller's function that is called before each retry, if there is one.
    """

    admission: Admission
    on_retry: OnRetry | None

    def retry_or_raise(self, call: CallState[R], error: PlaidRelayError, certainty: Certainty) -> R:
        """Raise the error of an attempt, or `RetrySignal` if another attempt follows.

        Return a response in one case only: if a removal may have been executed by an earlier attempt, and the
        token no longer exists, the removal has succeeded.
        """
        if certainty is Certainty.IN_DOUBT and call.endpoint.idempotency is not Idempotency.SAFE:
            # From now on no later error can prove that nothing was executed.
            call.in_doubt_error = error
        elif call.in_doubt and _already_removed(call.endpoint, error):
            removal: R = call.endpoint.response_type.already_removed()  # type: ignore[attr-defined]  # the response to a removal has it
            return removal
        declined = certainty is Certainty.DECLINED
        wait = self._pause_operation(call, error) if declined else _wait_before_retry(call, error)
        if wait is None or call.cancellation is not None or not self.admission.session.is_open:
            raise error
        if call.wait_scope is not None:  # from here to the next attempt, closing the client ends the wait
            self.admission.wait_scopes.add(call.wait_scope)
        # If the task is cancelled during the wait, this is the call's outcome.
        call.result_if_cancelled = call.error_of_call(error)
        if call.gate is not None:
            call.gate.prepare_retry(error, in_doubt_error=call.in_doubt_error)
        self._report_retry(call, error, wait)
        if declined:
            wait = 0.0  # the throttle applies it, to all calls of the operation
        self.admission.counters.waits["backoff"] += wait
        raise RetrySignal(wait)

    def _pause_operation(self, call: CallState[Any], error: PlaidRelayError) -> float | None:
        """Open the operation's circuit breaker, and report a 429 to the rate limiter.

        Return the seconds until this call may try again, or `None` if it isn't retried.

        Raises:
            RateLimitError: the pauses exceed the retry policy's `max_pause`.
            PlaidRelayError: the rate limiter raised, which ends the call.
        """
        throttle, rate_limited = call.throttle, getattr(error, "status", None) == 429
        retry_after = getattr(error, "retry_after", None)
        delay = throttle.record_declined(
            call.now(),
            call.ticket,
            retry_after,
            partial(_backoff_delay, call.policy),
            rate_limited=rate_limited,
        )
        # For a bulk call the pause is excluded from the deadline, and this round doesn't count as an attempt.
        call.uncounted_rounds += call.bulk
        hook_error = self._notify_rate_limiter(call, retry_after) if rate_limited else None
        if max(delay, throttle.breaker.total_pause) > call.policy.max_pause:
            # Planned maintenance becomes a RateLimitError as well: the remedy is to wait in both cases.
            raise reclassify(error, RateLimitError, exceeds_max_pause=True) from hook_error
        if hook_error is not None:
            raise error from hook_error
        wait = throttle.expected_wait(call.now(), 0 if call.bulk else throttle.queue.calls_ahead)
        fits = call.bulk or (call.counted_rounds < call.policy.attempts and wait < call.remaining)
        return wait if fits else None

    def _notify_rate_limiter(self, call: CallState[Any], retry_after: float | None) -> BaseException | None:
        """Report a 429 to the rate limiter; return the error that its method raised, if any."""
        hook = getattr(self.admission.rate_limiter, "on_rate_limited", None)
        try:
            if hook is not None:
                hook(call.endpoint.path, retry_after)
        # The hook isn't async, so a CancelledError is its own, too. It becomes the cause of Plaid's error.
        except (Exception, asyncio.CancelledError) as hook_error:  # noqa: BLE001  # the caller's code
            return hook_error
        return None

    def _report_retry(self, call: CallState[Any], error: PlaidRelayError, wait: float) -> None:
        reason = reason_of(error)
        self.admission.counters.retries[reason] += 1
        call.observed.retry_planned(error, attempts=call.attempts, wait=wait)
        if self.on_retry is None:
            return
        attributes = {name: getattr(error, name, None) for name in ("status", "request_id")}
        event = Retry(
            operation=call.endpoint.path, attempts=call.attempts, reason=reason, wait=wait, **attributes
        )
        try:
            self.on_retry(event)
        except (Exception, asyncio.CancelledError) as callback_error:  # the caller's code, as above
            raise error from callback_error


def _wait_before_retry(call: CallState[Any], error: PlaidRelayError) -> float | None:
    """Return the seconds until the next attempt at the earliest, or `None` if the call isn't retried."""
    if not _is_retryable(error, call.policy) or call.counted_rounds >= call.policy.attempts:
        return None
    wait: float = getattr(error, "retry_after", None) or _backoff_delay(call.policy, call.counted_rounds)
    return wait if wait <= call.policy.max_pause and wait < call.remaining else None


def _backoff_delay(policy: RetryPolicy, number: int) -> float:
    # Capped exponential backoff with full jitter, so that clients that failed together don't retry together.
    return backoff.full_jitter(min(policy.max_backoff, policy.backoff * 2.0 ** (number - 1)))


def _is_retryable(error: PlaidRelayError, policy: RetryPolicy) -> bool:
    # Plaid has no idempotency key, so only the caller may decide to repeat a non-idempotent call
    # after an attempt in doubt.
    if isinstance(error, OutcomeUnknownError):
        return policy.replay == "always"
    return isinstance(error, NotSentError) or certainty_of(error) is Certainty.IN_DOUBT


def _already_removed(endpoint: Endpoint[Any, Any], error: PlaidRelayError) -> bool:
    return (
        endpoint.idempotency is Idempotency.IDEMPOTENT
        and isinstance(error, PlaidAPIError)
        and is_token_not_found(error)
    )
