"""From a call to its attempts: queueing, the wire, and whether to try again.

This is the one module that knows backoff.
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
    normalize_host,
)
from plaid_relay_async.errors import (
    Certainty,
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

# From so many bytes on a report is read in a thread: a megabyte would hold the event loop for some 20 ms.
_LARGE_BODY_BYTES = 256 * 1024
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
_COMMON_HEADERS = {"Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}


@frozen(kw_only=True)
class Retry:
    """An attempt ended, and another one is planned. It holds no secret and no token.

    Attributes:
        operation: such as `/credit/relay/create`.
        attempts: how many were made so far.
        reason: Plaid's `error_code`, or the class of the error.
        status: of the answer, where there was one.
        request_id: Plaid's, where the answer had one.
        wait: seconds until the next attempt at the earliest.
    """

    operation: str
    attempts: int
    reason: str
    status: int | None
    request_id: str | None
    wait: float


OnRetry: TypeAlias = Callable[[Retry], object]


class _RetrySignal(Exception):  # noqa: N818  # not an error: it tells backoff how long to wait
    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


def _waits_of_signals() -> Generator[float, Any, None]:
    again: _RetrySignal = yield 0.0
    while True:
        again = yield again.wait


class Transport:
    """Makes calls: one method, `call`, for all operations."""

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
        """Make the call, with as many attempts as the policy and safety allow.

        Args:
            endpoint: the operation.
            request: its record.
            timeout: seconds for the whole call, in place of the client's `Timeouts.total`.
            retry: in place of the client's policy.
            permit: a batch's; with a patient one, the server's pauses count against neither time nor
                attempts.
            into: where a success's body goes as it arrives; its record then knows its two ends alone.

        Raises:
            PlaidRelayError: see `plaid_relay_async.errors`; `attempts` says how many were made.
            CancelledError: the task was cancelled. Without a permit, and unless it is a read, an attempt that
                has left is waited for first, and `on_late` receives the outcome.
        """
        self._session.check_usable()
        total, policy = self.resolve_settings(timeout, retry)
        now = self._session.now
        started = now()
        deadline = None if total is None else started + total
        spare = self._response_reserve(endpoint, total)
        outcome = "cancelled"
        call = CallState(endpoint, request, policy, now, gate, body_writer, deadline, spare)
        try:
            response = await self._run_attempts(call)
            outcome = "succeeded"
            if call.deferred_cancellation is None:
                return response
            call.last_result = response
        except PlaidRelayError as error:
            lost = certainty_of(error) is Certainty.IN_DOUBT and endpoint.idempotency is not Idempotency.SAFE
            outcome = "unknown" if lost else "failed"
            if call.deferred_cancellation is None:
                raise
            call.last_result = error
        except asyncio.CancelledError as error:
            call.deferred_cancellation = call.deferred_cancellation or error
        finally:
            self._counters.outcomes[outcome] += 1
        return self._raise_deferred_cancellation(call, started)

    def _raise_deferred_cancellation(self, call: CallState[Any], started: float) -> NoReturn:
        known, call.last_result = call.last_result, None
        interruption, call.deferred_cancellation = call.deferred_cancellation, None
        assert interruption is not None  # noqa: S101  # the caller checks that
        try:
            if call.sent and call.gate is None and call.endpoint.idempotency is not Idempotency.SAFE:
                elapsed = call.now() - started
                self._on_late_outcome(
                    call.endpoint, call.request, known, attempts=call.attempts, elapsed=elapsed
                )
            raise interruption
        finally:
            del known, interruption  # their tracebacks hold this frame, so they would form a reference cycle

    def _response_reserve(self, endpoint: Endpoint[Any, Any], total: float | None) -> float:
        # A creation that leaves when its time is nearly up is unknown for nothing: it had better not leave.
        if total is None or endpoint.idempotency is not Idempotency.NON_IDEMPOTENT:
            return 0.0
        return min(total / 2, self._timeouts.slow_read if endpoint.slow else self._timeouts.read)

    def resolve_settings(
        self, timeout: float | None, retry: RetryPolicy | None
    ) -> tuple[float | None, RetryPolicy]:
        """Give a call's own settings, or the client's in their place.

        Raises:
            ConfigurationError: one of them isn't what it should be.
        """
        policy = self._retry if retry is None else retry
        check_type("retry", policy, RetryPolicy)
        return self._timeouts.with_total(timeout).total, policy

    async def client_id(self, timeout: float | None) -> str | None:  # noqa: ASYNC109  # as in `call`
        """Return the client id, or `None` where a gateway has it.

        Raises:
            NotSentError: the source of the credentials raised, or took longer than the timeout in seconds.
            ConfigurationError: the source returned something else.
        """
        deadline = None if timeout is None else self._session.now() + timeout
        async with self._admission.while_open():
            return await self._admission.authenticator.client_id(deadline)

    @property
    def host(self) -> str:
        """The host that calls go to, with its port unless it is the default one, in its normal spelling."""
        url = URL(self._base_url)
        normal = URL.build(scheme=url.scheme, host=normalize_host(url.raw_host or ""), port=url.explicit_port)
        return normal.host_port_subcomponent or self.host_as_typed

    @property
    def host_as_typed(self) -> str:
        """The same as it stands in the base URL."""
        return urlsplit(self._base_url).netloc

    def end_waits(self) -> None:
        """End the waits of calls, since the session is closed."""
        self._admission.end_waits()

    async def sleep(self, seconds: float) -> None:
        """Wait between two calls.

        Raises:
            ClientClosedError: the client is closed.
        """
        async with self._admission.while_open():
            await asyncio.sleep(seconds)

    def statistics(self) -> Statistics:
        """Give what was done so far, and where things stand."""
        rates = {path: pace.rate.per_second for path, pace in self._admission.throttles.items()}
        known = {path: rate for path, rate in rates.items() if math.isfinite(rate)}
        return self._counters.snapshot(connections=self._session.connections, rates=known)

    # --------------------------------------------------------------------------------- one attempt

    async def _run_attempts(self, call: CallState[R]) -> R:
        try:
            return await self._run_attempt(call)
        except _RetrySignal as again:
            waits = [again]
        async with self._admission.while_open() as call.wait_scope:
            return await self._repeat_attempts(call, waits)

    @backoff.on_exception(_waits_of_signals, _RetrySignal, jitter=None, logger=None)
    async def _repeat_attempts(self, call: CallState[R], waits: list[_RetrySignal]) -> R:
        # Most calls need one attempt, and never come here: by backoff each would take a twentieth longer.
        if waits:
            raise waits.pop()
        return await self._run_attempt(call)

    async def _run_attempt(self, call: CallState[R]) -> R:
        call.rounds += 1
        if call.wait_scope is not None:  # what follows isn't ended by closing the client
            self._admission.wait_scopes.discard(call.wait_scope)
            call.wait_scope.reschedule(None)
        before = call.attempts
        try:
            signature = await self._admission.admit(call)
            try:
                if call.gate is not None:
                    latest = math.inf if call.send_deadline is None else call.send_deadline
                    in_time = call.now() < latest
                    await call.gate.start_attempt()
                    if in_time and call.now() >= latest:
                        raise NotSentError(
                            "the journal took so long that too little time was left for a response"
                        )
                answer = await self._send_attempt(call, signature)
            finally:
                self._admission.release(call)
            read = partial(codec.read_response, call.endpoint, answer, call.request, signature.secret)
            # A creation's token must not get lost on the way to a thread and back, and its answer is short.
            reads_long = (
                len(answer.body) >= _LARGE_BODY_BYTES and call.endpoint.idempotency is Idempotency.SAFE
            )
            response = await _decode_in_thread(read, call.deadline) if reads_long else read()
        except PlaidRelayError as error:
            failure = error
        except BaseException:
            if call.attempts > before:
                self._counters.attempts["cancelled"] += 1
            raise
        else:
            self._count_attempt(call, Certainty.DEFINITIVE)
            return response
        if call.attempts == before:
            return self._retry_or_raise(call, failure, Certainty.NOT_SENT)
        self._count_attempt(call, certainty_of(failure))
        return self._retry_or_raise(call, failure, certainty_of(failure))

    def _count_attempt(self, call: CallState[Any], ending: Certainty) -> None:
        self._counters.attempts[ending.value] += 1
        call.sent |= ending is not Certainty.NOT_SENT
        if ending is Certainty.DEFINITIVE:
            self._admission.throttle_of(call).record_accepted(call.now(), call.ticket)

    async def _send_attempt(self, call: CallState[Any], signature: Authentication) -> RawResponse:
        exchange, endpoint = self._session.get_exchange(), call.endpoint
        attempt = wire.Attempt(
            prepared_request=self._prepare_request(exchange, endpoint, signature),
            body=Hidden(codec.encode_request(call.request, signature.fields)),
            idempotency=endpoint.idempotency,
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            deadline=self._session.deadline_timer.create_deadline(call.deadline),
            max_bytes=self._max_response_bytes
            if endpoint.returns_report
            else min(self._max_response_bytes, wire.MAX_SHORT_RESPONSE_BYTES),
            body_writer=call.body_writer,
            on_interrupted=partial(self._attempt_interrupted, call, signature),
        )
        call.attempts += 1
        self._counters.in_flight += 1
        try:
            if call.gate is not None or endpoint.idempotency is Idempotency.SAFE:
                return await wire.send_attempt(exchange, attempt)
            # If the task is cancelled, the attempt is waited for, as a batch waits for its own.
            draining = Draining(
                wire.send_attempt(exchange, attempt), attempt, self._timeouts.drain, self.drains
            )
            try:
                return await draining
            finally:
                call.deferred_cancellation = draining.deferred_cancellation
        finally:
            self._counters.in_flight -= 1

    def _prepare_request(
        self, exchange: Exchange, endpoint: Endpoint[Any, Any], signature: Authentication
    ) -> Any:
        if endpoint.path not in signature.prepared_requests:
            plain = wire.IDENTITY_ENCODING if endpoint.idempotency is Idempotency.NON_IDEMPOTENT else {}
            headers = _COMMON_HEADERS | signature.headers | plain
            signature.prepared_requests[endpoint.path] = exchange.prepare(
                self._base_url + endpoint.path, headers
            )
        return signature.prepared_requests[endpoint.path]

    def _attempt_interrupted(
        self,
        call: CallState[Any],
        signature: Authentication,
        answer: RawResponse | None,
        problem: PlaidRelayError,
    ) -> None:
        """Keep what is known about a call that is cancelled during an attempt, or pass it to its batch."""
        if call.gate is None and call.endpoint.idempotency is Idempotency.SAFE:
            return
        known: Any = problem
        if answer is not None:
            try:
                known = codec.read_response(call.endpoint, answer, call.request, signature.secret)
            except PlaidRelayError as error:
                known = error
        known = call.error_to_raise(known) if isinstance(known, PlaidRelayError) else known
        if call.gate is not None:
            call.gate.attempt_interrupted(known)
        elif not isinstance(known, NotSentError):
            call.last_result, call.sent = known, True

    # ------------------------------------------------------------------------------ and what follows

    def _retry_or_raise(self, call: CallState[R], error: PlaidRelayError, ending: Certainty) -> R:
        """Raise the verdict, or the wait before another attempt; a repeated removal may have its answer."""
        error.attempts = call.attempts
        if ending is Certainty.IN_DOUBT and call.endpoint.idempotency is not Idempotency.SAFE:
            call.error_in_doubt = error
        elif call.in_doubt and _already_removed(call.endpoint, error):
            gone: R = call.endpoint.response.gone()  # type: ignore[attr-defined]  # the answer to a removal has it
            return gone
        wait = self._wait_before_retry(call, error, ending)
        if wait is None or call.deferred_cancellation is not None or not self._session.is_open:
            raise call.error_to_raise(error)
        if call.wait_scope is not None:
            self._admission.wait_scopes.add(call.wait_scope)
        call.last_result = call.error_to_raise(error)
        if call.gate is not None:
            call.gate.prepare_retry(error, never_executed=call.error_in_doubt is None)
        self._report_retry(call, error, wait)
        if ending is Certainty.DECLINED:
            wait = 0.0  # the queue keeps it, for all calls together
        self._counters.waits["backoff"] += wait
        raise _RetrySignal(wait)

    def _wait_before_retry(
        self, call: CallState[Any], error: PlaidRelayError, ending: Certainty
    ) -> float | None:
        if ending is Certainty.DECLINED:
            return self._pause_operation(call, error)
        if not _is_retryable(error, call.policy) or call.counted_rounds >= call.policy.attempts:
            return None
        wait: float = getattr(error, "retry_after", None) or _backoff_delay(call.policy, call.counted_rounds)
        return wait if wait <= call.policy.max_pause and call.has_time_for(wait) else None

    def _pause_operation(self, call: CallState[Any], error: PlaidRelayError) -> float | None:
        """Have everybody who calls this operation wait, and tell how long this call has to, if it can."""
        pace, limited = self._admission.throttle_of(call), getattr(error, "status", None) == 429
        asked = getattr(error, "retry_after", None)
        delay = pace.record_declined(
            call.now(), call.ticket, asked, partial(_backoff_delay, call.policy), rate_limited=limited
        )
        call.exceeds_max_pause = max(delay, pace.total_pause) > call.policy.max_pause
        call.uncounted_rounds += call.bulk
        wait = pace.expected_wait(call.now(), 0 if call.bulk else pace.calls_ahead)
        fits = call.bulk or (call.counted_rounds < call.policy.attempts and call.has_time_for(wait))
        told = not limited or self._notify_rate_limiter(call, error, asked)
        return wait if fits and told and not call.exceeds_max_pause else None

    def _notify_rate_limiter(self, call: CallState[Any], error: PlaidRelayError, asked: float | None) -> bool:
        try:
            getattr(self._rate_limiter, "limited", _no_rate_limit_hook)(call.endpoint.path, asked)
        except Exception as broken:  # noqa: BLE001  # the caller's own: it goes out with what Plaid said
            error.__cause__ = broken
            return False
        return True

    def _report_retry(self, call: CallState[Any], error: PlaidRelayError, wait: float) -> None:
        reason = reason_of(error)
        self._counters.retries[reason] += 1
        if self._on_retry is None:
            return
        facts = {name: getattr(error, name, None) for name in ("status", "request_id")}
        told = Retry(operation=call.endpoint.path, attempts=call.attempts, reason=reason, wait=wait, **facts)
        try:
            self._on_retry(told)
        except Exception as broken:  # as with the limiter
            raise call.error_to_raise(error) from broken


async def _decode_in_thread(read: Callable[[], R], deadline: float | None) -> R:
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.to_thread(read)
    except TimeoutError as error:
        if isinstance(error, PlaidRelayError):  # what the response means
            raise
    raise ReadTimeoutError("the response arrived, and time ran out while it was decoded")


def _check_callables(on_retry: object, rate_limiter: object) -> None:
    if on_retry is not None and (not callable(on_retry) or inspect.iscoroutinefunction(on_retry)):
        raise ConfigurationError("on_retry must be a plain function, not an async one")
    if rate_limiter is not None and not callable(getattr(rate_limiter, "acquire", None)):
        raise ConfigurationError("rate_limiter must have a method `async acquire(endpoint)`")


def _backoff_delay(policy: RetryPolicy, nth: int) -> float:
    return backoff.full_jitter(min(policy.max_backoff, policy.backoff * 2.0 ** (nth - 1)))


def _is_retryable(error: PlaidRelayError, policy: RetryPolicy) -> bool:
    if isinstance(error, OutcomeUnknownError):
        return policy.replay == "always"
    return isinstance(error, NotSentError) or certainty_of(error) is Certainty.IN_DOUBT


def _already_removed(endpoint: Endpoint[Any, Any], error: PlaidRelayError) -> bool:
    return (
        endpoint.idempotency is Idempotency.IDEMPOTENT
        and isinstance(error, PlaidAPIError)
        and codec.is_unknown_token_error(error)
    )


def _no_rate_limit_hook(_endpoint: str, _retry_after: float | None) -> None:
    """Stand in for the `limited` of a limiter that has none."""
