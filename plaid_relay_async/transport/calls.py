"""Calls and their attempts: admission, the HTTP exchange, and the decision whether to retry.

A call is one use of an operation, an attempt is one HTTP request of a call. Unless the retry policy says
`replay="always"`, a non-idempotent call is retried only if no attempt can have been executed: each was not
sent or was declined. The library `backoff` runs the retries, and only this module uses it.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar
from urllib.parse import urlsplit

import backoff
from attrs import frozen
from yarl import URL

from plaid_relay_async import codec
from plaid_relay_async.codec import Endpoint, Idempotency, RawResponse
from plaid_relay_async.config import (
    PLAID_VERSION,
    USER_AGENT,
    RetryPolicy,
    check_count,
    check_type,
)
from plaid_relay_async.errors import (
    Certainty,
    ClientClosedError,
    ConfigurationError,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    ReadTimeoutError,
    certainty_of,
    reason_of,
)
from plaid_relay_async.hosts import normalize_host
from plaid_relay_async.transport import wire
from plaid_relay_async.transport.admission import Admission, CallState
from plaid_relay_async.transport.draining import Draining
from plaid_relay_async.transport.statistics import Counters, Statistics

if TYPE_CHECKING:
    from collections.abc import Generator

    from plaid_relay_async.cancellation import DrainTracker
    from plaid_relay_async.config import Timeouts
    from plaid_relay_async.exchange import Exchange
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.transport.authentication import Authentication, Authenticator
    from plaid_relay_async.transport.protocols import AttemptGate, BodyWriter, RateLimiter

R = TypeVar("R")

# A report of at least this size is decoded in a thread: one megabyte would block the event loop for 20 ms.
_LARGE_BODY_BYTES = 256 * 1024
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
_COMMON_HEADERS = {"Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}


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


class _RetrySignal(Exception):  # noqa: N818  # not an error: it carries the wait to backoff
    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


def _waits_of_signals() -> Generator[float, Any, None]:
    # backoff primes this generator, then sends each exception to it and waits for the seconds that it yields.
    signal: _RetrySignal = yield 0.0
    while True:
        signal = yield signal.wait


class Transport:
    """The client's access to Plaid: `call` serves all operations.

    Args:
        drains: counts the client's drains, including those of batches.
        on_late_outcome: receives the outcomes of cancelled calls; see `LateOutcomes.report_call`.
    """

    def __init__(
        self,
        session: SessionManager,
        *,
        base_url: str,
        authenticator: Authenticator,
        timeouts: Timeouts,
        retry: RetryPolicy,
        rate_limiter: RateLimiter | None = None,
        drains: DrainTracker,
        on_late_outcome: Callable[..., object],
        on_retry: OnRetry | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        check_count("max_response_bytes", max_response_bytes)
        _check_callables(on_retry, rate_limiter)
        self._session = session
        self._base_url = base_url
        self._timeouts = timeouts
        self._retry = retry
        self._rate_limiter = rate_limiter
        self.drains: Final = drains
        self._on_late_outcome = on_late_outcome
        self._on_retry = on_retry
        self._max_response_bytes = max_response_bytes
        self._counters = Counters()
        self._admission = Admission(session, authenticator, rate_limiter, self._counters)

    async def call(
        self,
        endpoint: Endpoint[Any, R],
        request: object,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
        retry: RetryPolicy | None = None,
        gate: AttemptGate | None = None,
        body_writer: BodyWriter | None = None,
    ) -> R:
        """Make a call with as many attempts as the retry policy and the operation's idempotency allow.

        Args:
            endpoint: the operation.
            request: the operation's request record.
            timeout: seconds for all attempts of the call; `None` means the client's `Timeouts.total`.
            retry: the retry policy; `None` means the client's.
            gate: the gate of a batch; for its effect on the deadline and the attempts, see
                `AttemptGate.bulk`.
            body_writer: receives the body of a successful response as it arrives. The response then contains
                only the start and the end of the body.

        Raises:
            PlaidRelayError: see `plaid_relay_async.errors`; `attempts` is the number of attempts.
            CancelledError: the task was cancelled. Without a gate, and unless the operation is safe, the call
                first waits for an attempt in flight, and `on_late_outcome` receives the outcome.
        """
        self._session.check_usable()
        total, policy = self.resolve_settings(timeout, retry)
        now = self._session.now
        started = now()
        deadline = None if total is None else started + total
        reserve = self._response_reserve(endpoint, total)
        outcome = "cancelled"
        call = CallState(endpoint, request, policy, now, gate, body_writer, deadline, reserve)
        try:
            response = await self._run_attempts(call)
            outcome = "succeeded"
            if call.deferred_cancellation is None:
                return response
            # The task was cancelled while the attempt was in flight: the response becomes a late outcome, and
            # the cancellation is raised.
            call.last_result = response
        except PlaidRelayError as error:
            in_doubt = (
                certainty_of(error) is Certainty.IN_DOUBT and endpoint.idempotency is not Idempotency.SAFE
            )
            outcome = "unknown" if in_doubt else "failed"
            if call.deferred_cancellation is None:
                raise
            call.last_result = error
        except asyncio.CancelledError as error:
            call.deferred_cancellation = call.deferred_cancellation or error
        finally:
            self._counters.outcomes[outcome] += 1
        return self._raise_deferred_cancellation(call, started)

    def _raise_deferred_cancellation(self, call: CallState[Any], started: float) -> NoReturn:
        """Report the outcome of a cancelled call as a late outcome, and raise the cancellation."""
        result, call.last_result = call.last_result, None
        cancellation, call.deferred_cancellation = call.deferred_cancellation, None
        assert cancellation is not None  # noqa: S101  # the caller checks that
        try:
            if call.sent and call.gate is None and call.endpoint.idempotency is not Idempotency.SAFE:
                elapsed = call.now() - started
                self._on_late_outcome(
                    call.endpoint, call.request, result, attempts=call.attempts, elapsed=elapsed
                )
            raise cancellation
        finally:
            del result, cancellation  # their tracebacks hold this frame, so they would form a reference cycle

    def _response_reserve(self, endpoint: Endpoint[Any, Any], total: float | None) -> float:
        # A creation that is sent shortly before its deadline would probably end in doubt, so part of the time
        # is reserved for the response.
        if total is None or endpoint.idempotency is not Idempotency.NON_IDEMPOTENT:
            return 0.0
        # At most half of the timeout, so that a short timeout still allows an attempt.
        return min(total / 2, self._timeouts.slow_read if endpoint.slow else self._timeouts.read)

    def resolve_settings(
        self, timeout: float | None, retry: RetryPolicy | None
    ) -> tuple[float | None, RetryPolicy]:
        """Return a call's timeout in seconds and its retry policy; the client's are the defaults.

        Raises:
            ConfigurationError: one of them is invalid.
        """
        policy = self._retry if retry is None else retry
        check_type("retry", policy, RetryPolicy)
        return self._timeouts.with_total(timeout).total, policy

    async def client_id(self, timeout: float | None) -> str | None:  # noqa: ASYNC109  # as in `call`
        """Return the client ID, or `None` if a gateway adds it.

        Raises:
            NotSentError: the source of the credentials raised, or took longer than the timeout in seconds.
            ConfigurationError: the source didn't return `Credentials`.
            ClientClosedError: the client is closed, or was closed during the wait.
        """
        deadline = None if timeout is None else self._session.now() + timeout
        async with self._admission.while_open():
            return await self._admission.authenticator.client_id(deadline)

    @property
    def host(self) -> str:
        """The host of the base URL in its normalized form, with its port unless it is the default one."""
        url = URL(self._base_url)
        normalized = URL.build(
            scheme=url.scheme, host=normalize_host(url.raw_host or ""), port=url.explicit_port
        )
        return normalized.host_port_subcomponent or self.host_as_typed

    @property
    def host_as_typed(self) -> str:
        """The host and the port as the base URL has them."""
        return urlsplit(self._base_url).netloc

    def end_waits(self) -> None:
        """End the waits of all calls, because the client is closed."""
        self._admission.end_waits()

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds between two calls.

        Raises:
            ClientClosedError: the client was closed.
        """
        async with self._admission.while_open():
            await asyncio.sleep(seconds)

    def statistics(self) -> Statistics:
        """Return a snapshot of the counters, and of the state of pool and rates."""
        rates = {path: throttle.rate.per_second for path, throttle in self._admission.throttles.items()}
        finite_rates = {path: rate for path, rate in rates.items() if math.isfinite(rate)}
        return self._counters.snapshot(connections=self._session.connections, rates=finite_rates)

    # ------------------------------------------------------------------------------------- attempts

    async def _run_attempts(self, call: CallState[R]) -> R:
        try:
            return await self._run_attempt(call)
        except _RetrySignal as signal:
            first_signal = [signal]
        try:
            async with self._admission.while_open() as call.wait_scope:
                return await self._repeat_attempts(call, first_signal)
        except ClientClosedError as error:
            error.attempts = call.attempts
            raise call.error_to_raise(error) from None

    @backoff.on_exception(_waits_of_signals, _RetrySignal, jitter=None, logger=None)
    async def _repeat_attempts(self, call: CallState[R], first_signal: list[_RetrySignal]) -> R:
        # Most calls need one attempt, and would take 5 % longer with backoff. So the first one is made before
        # this method. Its signal is raised here once, and backoff applies the wait.
        if first_signal:
            raise first_signal.pop()
        return await self._run_attempt(call)

    async def _run_attempt(self, call: CallState[R]) -> R:
        call.rounds += 1
        if call.wait_scope is not None:  # closing the client ends waits, but not attempts
            self._admission.wait_scopes.discard(call.wait_scope)
            call.wait_scope.reschedule(None)
        attempts_before = call.attempts
        try:
            authentication = await self._admission.admit(call)
            try:
                if call.gate is not None:
                    send_deadline = math.inf if call.send_deadline is None else call.send_deadline
                    # A journal may take long to record the intent. If the send deadline passes during that
                    # wait, the attempt isn't sent. If it had passed before, the journal isn't the cause, and
                    # the attempt is sent, as it would be without a gate.
                    was_in_time = call.now() < send_deadline
                    await call.gate.start_attempt()
                    if was_in_time and call.now() >= send_deadline:
                        raise NotSentError(
                            "the journal took so long that too little time was left for a response"
                        )
                raw_response = await self._send_attempt(call, authentication)
            finally:
                self._admission.release(call)
            decode = partial(
                codec.read_response, call.endpoint, raw_response, call.request, authentication.secret
            )
            # Only responses to safe operations are decoded in a thread. Other responses are short, and a
            # token in one would be lost if the wait for the thread was cancelled.
            in_thread = (
                len(raw_response.body) >= _LARGE_BODY_BYTES and call.endpoint.idempotency is Idempotency.SAFE
            )
            response = await _decode_in_thread(decode, call.deadline) if in_thread else decode()
        except PlaidRelayError as error:
            error_of_attempt = error
        except BaseException:
            if call.attempts > attempts_before:
                self._counters.attempts["cancelled"] += 1
            raise
        else:
            self._count_attempt(call, Certainty.DEFINITIVE)
            return response
        # Without an HTTP request the error is that of the admission, the gate or the encoding.
        if call.attempts == attempts_before:
            return self._retry_or_raise(call, error_of_attempt, Certainty.NOT_SENT)
        self._count_attempt(call, certainty_of(error_of_attempt))
        return self._retry_or_raise(call, error_of_attempt, certainty_of(error_of_attempt))

    def _count_attempt(self, call: CallState[Any], certainty: Certainty) -> None:
        self._counters.attempts[certainty.value] += 1
        call.sent |= certainty is not Certainty.NOT_SENT
        # Only a definitive response shows that the server accepted the attempt.
        if certainty is Certainty.DEFINITIVE:
            self._admission.throttle_of(call).record_accepted(call.now(), call.ticket)

    async def _send_attempt(self, call: CallState[Any], authentication: Authentication) -> RawResponse:
        exchange, endpoint = self._session.get_exchange(), call.endpoint
        attempt = wire.Attempt(
            prepared_request=self._prepare_request(exchange, endpoint, authentication),
            body=Hidden(codec.encode_request(call.request, authentication.fields)),
            idempotency=endpoint.idempotency,
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            deadline=self._session.deadline_timer.create_deadline(call.deadline),
            max_bytes=self._max_response_bytes
            if endpoint.returns_report
            else min(self._max_response_bytes, wire.MAX_SHORT_RESPONSE_BYTES),
            body_writer=call.body_writer,
            on_interrupted=partial(self._attempt_interrupted, call, authentication),
        )
        # Counted before the request is sent, because an attempt that is cancelled counts as well.
        call.attempts += 1
        self._counters.in_flight += 1
        try:
            if call.gate is not None or endpoint.idempotency is Idempotency.SAFE:
                return await wire.send_attempt(exchange, attempt)
            # If the task is cancelled, the drain waits for the attempt, as a batch does for its attempts.
            draining = Draining(
                wire.send_attempt(exchange, attempt), attempt, self._timeouts.drain, self.drains
            )
            try:
                return await draining
            finally:
                # Set even if the attempt failed: `call` then raises the cancellation, and the error becomes a
                # late outcome.
                call.deferred_cancellation = draining.deferred_cancellation
        finally:
            self._counters.in_flight -= 1

    def _prepare_request(
        self, exchange: Exchange, endpoint: Endpoint[Any, Any], authentication: Authentication
    ) -> Any:
        # Prepared once, and reused for all requests of the operation with the same credentials.
        if endpoint.path not in authentication.prepared_requests:
            encoding = wire.IDENTITY_ENCODING if endpoint.idempotency is Idempotency.NON_IDEMPOTENT else {}
            headers = _COMMON_HEADERS | authentication.headers | encoding
            authentication.prepared_requests[endpoint.path] = exchange.prepare(
                self._base_url + endpoint.path, headers
            )
        return authentication.prepared_requests[endpoint.path]

    def _attempt_interrupted(
        self,
        call: CallState[Any],
        authentication: Authentication,
        response: RawResponse | None,
        problem: PlaidRelayError,
    ) -> None:
        """Keep the result of an attempt that is being cancelled, or pass it to the batch."""
        if call.gate is None and call.endpoint.idempotency is Idempotency.SAFE:
            return
        result: Any = problem
        if response is not None:
            try:
                result = codec.read_response(call.endpoint, response, call.request, authentication.secret)
            except PlaidRelayError as error:
                result = error
        if isinstance(result, PlaidRelayError):
            result.attempts = call.attempts
            result = call.error_to_raise(result)
        if call.gate is not None:
            call.gate.attempt_interrupted(result)
        # An attempt that was not sent adds nothing to what is known about the call.
        elif not isinstance(result, NotSentError):
            call.last_result, call.sent = result, True

    # -------------------------------------------------------------------------------------- retries

    def _retry_or_raise(self, call: CallState[R], error: PlaidRelayError, certainty: Certainty) -> R:
        """Raise the error of the call, or a `_RetrySignal` if another attempt follows.

        Return a response in one case only: if a removal may have been executed by an earlier attempt, and the
        token no longer exists, the removal has succeeded.
        """
        error.attempts = call.attempts
        if certainty is Certainty.IN_DOUBT and call.endpoint.idempotency is not Idempotency.SAFE:
            # From now on no later error can prove that nothing was executed.
            call.in_doubt_error = error
        elif call.in_doubt and _already_removed(call.endpoint, error):
            removal: R = call.endpoint.response_type.already_removed()  # type: ignore[attr-defined]  # the response to a removal has it
            return removal
        wait = self._wait_before_retry(call, error, certainty)
        if wait is None or call.deferred_cancellation is not None or not self._session.is_open:
            raise call.error_to_raise(error)
        if call.wait_scope is not None:  # from here to the next attempt, closing the client ends the wait
            self._admission.wait_scopes.add(call.wait_scope)
        # If the task is cancelled during the wait, this is the call's outcome.
        call.last_result = call.error_to_raise(error)
        if call.gate is not None:
            call.gate.prepare_retry(error, never_executed=call.in_doubt_error is None)
        self._report_retry(call, error, wait)
        if certainty is Certainty.DECLINED:
            wait = 0.0  # the throttle applies it, to all calls of the operation
        self._counters.waits["backoff"] += wait
        raise _RetrySignal(wait)

    def _wait_before_retry(
        self, call: CallState[Any], error: PlaidRelayError, certainty: Certainty
    ) -> float | None:
        """Return the seconds until the next attempt at the earliest, or `None` if the call isn't retried."""
        if certainty is Certainty.DECLINED:
            return self._pause_operation(call, error)
        if not _is_retryable(error, call.policy) or call.counted_rounds >= call.policy.attempts:
            return None
        wait: float = getattr(error, "retry_after", None) or _backoff_delay(call.policy, call.counted_rounds)
        return wait if wait <= call.policy.max_pause and call.has_time_for(wait) else None

    def _pause_operation(self, call: CallState[Any], error: PlaidRelayError) -> float | None:
        """Open the operation's circuit breaker, and report a 429 to the rate limiter.

        Return the seconds until this call may try again, or `None` if it isn't retried.
        """
        throttle, rate_limited = self._admission.throttle_of(call), getattr(error, "status", None) == 429
        retry_after = getattr(error, "retry_after", None)
        delay = throttle.record_declined(
            call.now(),
            call.ticket,
            retry_after,
            partial(_backoff_delay, call.policy),
            rate_limited=rate_limited,
        )
        call.exceeds_max_pause = max(delay, throttle.total_pause) > call.policy.max_pause
        # For a bulk call the pause is queueing, which doesn't count against the deadline, and this round
        # doesn't count as an attempt.
        call.uncounted_rounds += call.bulk
        wait = throttle.expected_wait(call.now(), 0 if call.bulk else throttle.calls_ahead)
        fits = call.bulk or (call.counted_rounds < call.policy.attempts and call.has_time_for(wait))
        notified = not rate_limited or self._notify_rate_limiter(call, error, retry_after)
        return wait if fits and notified and not call.exceeds_max_pause else None

    def _notify_rate_limiter(
        self, call: CallState[Any], error: PlaidRelayError, retry_after: float | None
    ) -> bool:
        """Report a 429 to the rate limiter; return False if its method raised, which ends the call."""
        try:
            getattr(self._rate_limiter, "on_rate_limited", _no_rate_limit_hook)(
                call.endpoint.path, retry_after
            )
        except Exception as hook_error:  # noqa: BLE001  # the caller's code: it becomes the cause of Plaid's error
            error.__cause__ = hook_error
            return False
        return True

    def _report_retry(self, call: CallState[Any], error: PlaidRelayError, wait: float) -> None:
        reason = reason_of(error)
        self._counters.retries[reason] += 1
        if self._on_retry is None:
            return
        attributes = {name: getattr(error, name, None) for name in ("status", "request_id")}
        event = Retry(
            operation=call.endpoint.path, attempts=call.attempts, reason=reason, wait=wait, **attributes
        )
        try:
            self._on_retry(event)
        except Exception as callback_error:  # the caller's code
            raise call.error_to_raise(error) from callback_error


async def _decode_in_thread(decode: Callable[[], R], deadline: float | None) -> R:
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.to_thread(decode)
    except TimeoutError as error:
        if isinstance(error, PlaidRelayError):  # a ReadTimeoutError of the response, which broke off
            raise
    raise ReadTimeoutError("the response arrived, and time ran out while it was decoded")


def _check_callables(on_retry: object, rate_limiter: object) -> None:
    if on_retry is not None and (not callable(on_retry) or inspect.iscoroutinefunction(on_retry)):
        raise ConfigurationError("on_retry must be a plain function, not an async one")
    if rate_limiter is not None and not callable(getattr(rate_limiter, "acquire", None)):
        raise ConfigurationError("rate_limiter must have a method `async acquire(endpoint)`")


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
        and codec.is_token_not_found_error(error)
    )


def _no_rate_limit_hook(_endpoint: str, _retry_after: float | None) -> None:
    """Do nothing: the default for a rate limiter without `on_rate_limited`."""
