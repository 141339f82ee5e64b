"""Calls and their attempts: admission, the HTTP exchange, and the result of the call.

A call is one use of an operation, an attempt is one HTTP request of a call. `retries` decides whether another
attempt follows.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from yarl import URL

from plaid_relay_async import codec, telemetry, watching
from plaid_relay_async.cancellation import Draining
from plaid_relay_async.certainty import Certainty, certainty_of, outcome_of
from plaid_relay_async.codec import Endpoint, Idempotency, RawResponse
from plaid_relay_async.config import PLAID_VERSION, RetryPolicy, Timeouts, check_count, check_type
from plaid_relay_async.deadlines import Deadline
from plaid_relay_async.errors import ConfigurationError, NotSentError, PlaidRelayError, ReadTimeoutError
from plaid_relay_async.hosts import normalize_host
from plaid_relay_async.transport import wire
from plaid_relay_async.transport.admission import Admission, CallState
from plaid_relay_async.transport.retries import Retries, RetrySignal, repeat_on_signal
from plaid_relay_async.transport.statistics import Counters, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from plaid_relay_async.cancellation import DrainTracker
    from plaid_relay_async.config import CredentialsSource
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.telemetry import Observer
    from plaid_relay_async.transport.authentication import Authentication, Authenticator
    from plaid_relay_async.transport.protocols import AttemptGate, BodyWriter, RateLimiter
    from plaid_relay_async.transport.retries import OnRetry

R = TypeVar("R")

# A report of at least this size is decoded in a thread: one megabyte would block the event loop for 20 ms.
_LARGE_BODY_BYTES = 256 * 1024
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024


class Transport:
    """The client's access to Plaid: `call` serves all operations.

    Args:
        drains: counts the client's drains, including those of batches.
        observer: receives what happens to calls.
        on_late_outcome: receives the outcomes of cancelled calls; see `LateOutcomes.report_call`.

    Attributes:
        throttles: the throttle of each operation, by path.
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
        observer: Observer,
        on_late_outcome: Callable[..., object],
        on_retry: OnRetry | None = None,
        user_agent: str,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        check_count("max_response_bytes", max_response_bytes)
        _check_callables(on_retry, rate_limiter)
        self._session = session
        self._base_url = base_url
        self.drains: Final = drains
        self.observer: Final = observer
        self._on_late_outcome = on_late_outcome
        self._common_headers = {"Plaid-Version": PLAID_VERSION, "User-Agent": user_agent}
        self._max_response_bytes = max_response_bytes
        self._counters = Counters()
        self._on_retry = on_retry
        self._use(timeouts, retry, Admission(session, authenticator, rate_limiter, self._counters))

    def _use(self, timeouts: Timeouts, retry: RetryPolicy, admission: Admission) -> None:
        self._timeouts = timeouts
        self._retry = retry
        self._admission = admission
        self.throttles = admission.throttles
        if self.observer.otel is not None:
            self.observer.otel.add_rate_source(admission)
        self._retries = Retries(admission, self._on_retry)

    def with_options(
        self,
        timeouts: Timeouts | None,
        retry: RetryPolicy | None,
        credentials: CredentialsSource | None,
        rate_limiter: RateLimiter | None,
    ) -> Transport:
        """Return a transport with the same connection pool and counters; `None` leaves a setting as it is.

        With other credentials, neither throttles nor the rate limiter are shared.

        Raises:
            ConfigurationError: a setting is invalid, there is a rate limiter without credentials, or a
                gateway adds the credentials.
        """
        if timeouts is not None:
            check_type("timeouts", timeouts, Timeouts)
        if retry is not None:
            check_type("retry", retry, RetryPolicy)
        _check_callables(None, rate_limiter)
        if credentials is not None:
            admission = self._admission.with_credentials(credentials, rate_limiter)
        elif rate_limiter is None:
            admission = self._admission
        else:
            raise ConfigurationError("rate_limiter= needs credentials=: it is a limit of other credentials")
        transport = copy.copy(self)
        transport._use(timeouts or self._timeouts, retry or self._retry, admission)  # noqa: SLF001  # of this class
        return transport

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
            gate: permits or forbids each attempt; for its effect on the deadline and the attempts, see
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
        throttle, now = self.throttles[endpoint.path], self._session.now
        started = now()
        deadline = math.inf if total is None else started + total
        read_timeout = self._timeouts.slow_read if endpoint.slow else self._timeouts.read
        # A creation that is sent shortly before its deadline would probably end in doubt, so part of the
        # time is reserved for the response: at most half of it, so that a short one allows an attempt.
        is_repeatable = endpoint.idempotency is not Idempotency.NON_IDEMPOTENT
        reserve = 0.0 if is_repeatable or total is None else min(total / 2, read_timeout)
        call = CallState(
            endpoint,
            request,
            policy,
            throttle,
            now,
            gate,
            body_writer,
            deadline,
            read_timeout,
            reserve,
            self.observer.start_call(endpoint.path, request) if gate is None else gate.observed,
        )
        signals: list[RetrySignal] = []
        result: Any = None
        try:
            try:
                result = await self._run_attempt(call)
            except RetrySignal as signal:
                signals.append(signal)
            if signals:  # outside of the handler, so that later errors don't have the signal as their context
                async with self._admission.while_open() as call.wait_scope:
                    result = await self._repeat_attempts(call, signals)
        except PlaidRelayError as error:
            result = call.error_of_call(error)
        except asyncio.CancelledError as error:
            call.cancellation = call.cancellation or error
            result = call.result_if_cancelled
        except BaseException as error:
            if gate is None:
                _report_end(call, error, started)
            raise
        try:
            if gate is None:
                _report_end(call, result, started)
            if call.cancellation is not None:
                self._raise_cancellation(call, result, started)
            if isinstance(result, PlaidRelayError):
                raise result
            response: R = result
            return response
        finally:
            del result  # the traceback of an error holds this frame, so they would form a reference cycle

    def _raise_cancellation(self, call: CallState[Any], result: Any, started: float) -> NoReturn:
        """Report the outcome of a cancelled call as a late outcome, and raise the cancellation."""
        call.result_if_cancelled = None
        cancellation, call.cancellation = call.cancellation, None
        assert cancellation is not None  # noqa: S101  # the caller checks that
        try:
            if call.reports_late_outcome:
                elapsed = call.now() - started
                self._on_late_outcome(
                    call.observed, call.endpoint, result, attempts=call.attempts, elapsed=elapsed
                )
            raise cancellation
        finally:
            del result, cancellation  # their tracebacks hold this frame, so they would form a reference cycle

    def resolve_settings(
        self, timeout: float | None, retry: RetryPolicy | None
    ) -> tuple[float | None, RetryPolicy]:
        """Return a call's timeout in seconds and its retry policy; the client's are the defaults.

        Raises:
            ConfigurationError: one of them is invalid.
        """
        if retry is not None:
            check_type("retry", retry, RetryPolicy)
        total = self._timeouts.total if timeout is None else self._timeouts.with_total(timeout).total
        return total, self._retry if retry is None else retry

    async def client_id(self, timeout: float | None) -> str | None:  # noqa: ASYNC109  # as in `call`
        """Return the client ID, or `None` if a gateway adds it.

        Raises:
            NotSentError: the source of the credentials raised, or took longer than the timeout in seconds.
            ConfigurationError: the source didn't return `Credentials`.
            ClientClosedError: the client is closed, or was closed during the wait.
        """
        deadline = math.inf if timeout is None else self._session.now() + timeout
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

    async def sleep(self, seconds: float, until: asyncio.Future[Any] | None = None) -> None:
        """Wait for a number of seconds between two calls, or until a future is done.

        Raises:
            ClientClosedError: the client was closed.
        """
        async with self._admission.while_open():
            if until is None:
                await asyncio.sleep(seconds)
            else:
                await asyncio.wait([until], timeout=seconds)

    def statistics(self) -> Statistics:
        """Return a snapshot of the counters, and of the state of pool and rates."""
        return self._counters.snapshot(
            outcomes=self.observer.outcomes,
            connections=self._session.connections,
            rates=self._admission.rates(),
        )

    # ------------------------------------------------------------------------------------- attempts

    @repeat_on_signal
    async def _repeat_attempts(self, call: CallState[R], signals: list[RetrySignal]) -> R:
        # Most calls need one attempt, and would take 5 % longer with backoff. So the first one is made before
        # this method is called. Its signal is raised here once, and backoff applies the wait.
        if signals:
            raise signals.pop()
        assert call.wait_scope is not None  # noqa: S101  # `call` sets it first
        # The wait for this attempt is over. Closing the client ends waits, but not attempts, so this scope
        # must not expire any more, even if that is scheduled. The waits of `admit` have their own.
        self._admission.wait_scopes.discard(call.wait_scope)
        call.wait_scope.reschedule(None)
        return await self._run_attempt(call)

    async def _run_attempt(self, call: CallState[R]) -> R:
        call.rounds += 1
        observed = call.observed
        detailed = observed.detailed
        attempts_before, started = call.attempts, 0.0
        status: int | None = None
        result: R | PlaidRelayError
        try:
            waiting_since = call.now() if detailed else 0.0
            authentication = await self._admission.admit(call)
            observed.secret = authentication.secret
            if detailed:
                observed.attempt_admitted(call.now() - waiting_since)
            try:
                if call.gate is not None:
                    await _wait_for_gate(call, call.gate)
                started = call.now() if detailed else 0.0
                raw_response = await self._send_attempt(call, authentication)
            finally:
                self._admission.release(call)
            status = raw_response.status
            decode = partial(
                codec.read_response, call.endpoint, raw_response, call.request, authentication.secret
            )
            # Only responses to safe operations are decoded in a thread. Other responses are short, and a
            # token in one would be lost if the wait for the thread was cancelled.
            in_thread = len(raw_response.body) >= _LARGE_BODY_BYTES and call.is_safe
            result = await _decode_in_thread(decode, call.deadline) if in_thread else decode()
            certainty = Certainty.DEFINITIVE
        except PlaidRelayError as error:
            result, certainty = error, certainty_of(error)
        except BaseException:
            if call.attempts > attempts_before:
                self._counters.attempts["cancelled"] += 1
                _report_attempt(call, "cancelled", started=started, status=status)
            raise
        # Without an HTTP request the error is that of the admission, the gate or the encoding.
        if call.attempts > attempts_before:
            self._counters.attempts[certainty.value] += 1
            call.sent |= certainty is not Certainty.NOT_SENT
            # Only a definitive response shows that the server accepted the attempt.
            if certainty is Certainty.DEFINITIVE:
                call.throttle.record_accepted(call.now(), call.ticket)
            if detailed:
                _report_attempt(call, certainty.value, result, started=started, status=status)
        if isinstance(result, PlaidRelayError):
            return self._retries.retry_or_raise(call, result, certainty)
        return result

    def _prepare_request(
        self,
        endpoint: Endpoint[Any, Any],
        authentication: Authentication,
        trace_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Any:
        return self._session.exchange.prepare(
            self._base_url + endpoint.path,
            {**self._common_headers, **authentication.headers, **endpoint.headers, **trace_headers},
        )

    async def _send_attempt(self, call: CallState[Any], authentication: Authentication) -> RawResponse:
        self._session.check_usable()  # the client may have been closed during a wait
        exchange, endpoint = self._session.exchange, call.endpoint
        # Prepared once, and reused for all requests of the operation with the same credentials.
        if endpoint.path not in authentication.prepared_requests:
            authentication.prepared_requests[endpoint.path] = self._prepare_request(endpoint, authentication)
        attempt = wire.Attempt(
            prepared_request=authentication.prepared_requests[endpoint.path],
            body=codec.encode_request(call.request, authentication.fields),
            idempotency=endpoint.idempotency,
            read_timeout=call.read_timeout,
            deadline=Deadline(self._session.deadline_timer, call.deadline, self._timeouts.connect),
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
            if call.observed.detailed:
                self._start_observed_attempt(call, authentication, attempt)
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
                call.cancellation = draining.deferred_cancellation
        finally:
            self._counters.in_flight -= 1
            if call.observed.detailed:
                call.observed.response_received()

    def _start_observed_attempt(
        self, call: CallState[Any], authentication: Authentication, attempt: wire.Attempt
    ) -> None:
        """Report the start of an attempt, and add the headers that continue its trace, if there are any."""
        if headers := call.observed.attempt_started(call.attempts):
            attempt.prepared_request = self._prepare_request(call.endpoint, authentication, headers)

    def _attempt_interrupted(
        self,
        call: CallState[Any],
        authentication: Authentication,
        response: RawResponse | None,
        problem: PlaidRelayError,
    ) -> None:
        """Keep the result of an attempt that is being cancelled, or pass it to the gate."""
        if call.gate is None and call.is_safe:
            return
        result: Any = problem
        if response is not None:
            try:
                result = codec.read_response(call.endpoint, response, call.request, authentication.secret)
            except PlaidRelayError as error:
                result = error
        if isinstance(result, PlaidRelayError):
            result = call.error_of_call(result)
        if call.gate is not None:
            call.gate.attempt_interrupted(result)
        # An attempt that was not sent adds nothing to what is known about the call.
        elif not isinstance(result, NotSentError):
            call.result_if_cancelled, call.sent = result, True


def _report_attempt(
    call: CallState[Any],
    certainty: str,
    result: Any = None,
    *,
    started: float,
    status: int | None,
) -> None:
    """Report the end of an attempt to the observer.

    Args:
        call: the call.
        certainty: what the end of the attempt proves, or `cancelled`.
        result: the response or the error; `None` if the attempt was cancelled.
        started: the event loop's time at which the attempt started.
        status: the status of the response, if there is one.
    """
    fields = telemetry.error_fields(result if isinstance(result, PlaidRelayError) else None)
    fields["status"] = status or fields.get("status")
    request_id, secret = getattr(result, "request_id", None), call.observed.secret
    if request_id is not None and secret is not None:
        fields["request_id"] = codec.redact_request_secrets(request_id, call.request, secret)
    retry_after = getattr(result, "retry_after", None)
    call.observed.attempt_ended(
        call.attempts, certainty, duration=call.now() - started, retry_after=retry_after, **fields
    )


def _report_end(call: CallState[Any], result: Any, started: float) -> None:
    """Report the end of a call without a gate to the observer.

    Args:
        call: the call.
        result: its response, its error, or any other exception that ended it. If the call was cancelled, its
            late response or error; `None` if there is none.
        started: the event loop's time at which the call started.
    """
    outcome = outcome_of(result, is_safe=call.endpoint.idempotency is Idempotency.SAFE)
    if call.cancellation is not None and not call.reports_late_outcome:
        outcome = "cancelled"
    elif isinstance(result, BaseException) and not isinstance(result, PlaidRelayError):
        # No code expects such an error, so an attempt may have been executed.
        outcome = "unknown" if call.attempts and not call.is_safe else "failed"
    call.observed.ended(outcome, result, call.attempts, started)
    if (watcher := watching.watcher) is not None and call.cancellation is None:
        watcher.add_received(result)


async def _wait_for_gate(call: CallState[Any], gate: AttemptGate) -> None:
    # A journal may take long to record the intent. If the send deadline passes during that wait, the attempt
    # isn't sent. If it had passed before, the journal isn't the cause, and the attempt is sent, as it would
    # be without a gate.
    was_in_time = call.now() < call.wait_deadline
    await gate.start_attempt()
    if was_in_time and call.now() >= call.wait_deadline:
        raise NotSentError("the journal took so long that too little time was left for a response")


async def _decode_in_thread(decode: Callable[[], R], deadline: float) -> R:
    try:
        async with asyncio.timeout_at(deadline if math.isfinite(deadline) else None):
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
