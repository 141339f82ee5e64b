"""Admission of attempts: the waits for the operation's throttle, the rate limiter, and a connection.

Concurrency is bounded here, before a connection is requested, so no timeout of the connection or the response
includes these waits. The waits for the rate limiter and for a connection don't count against a call's
deadline either. For an interactive call, the waits for Plaid's pauses and the adaptive rate do: if they would
exceed the deadline, the call fails immediately. For a bulk call they don't.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, field

from plaid_relay_async.certainty import error_of_call
from plaid_relay_async.codec import Endpoint, Idempotency
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.errors import ClientClosedError, PlaidRelayError, WaitTooLongError
from plaid_relay_async.session import SessionManager
from plaid_relay_async.telemetry import ObservedCall
from plaid_relay_async.transport.authentication import Authenticator, errors_as_not_sent
from plaid_relay_async.transport.protocols import AttemptGate, BodyWriter, RateLimiter
from plaid_relay_async.transport.statistics import Counters
from plaid_relay_async.transport.throttle import Throttle, Ticket

if TYPE_CHECKING:
    from plaid_relay_async.config import CredentialsSource
    from plaid_relay_async.transport.authentication import Authentication

R = TypeVar("R")


@define(eq=False, repr=False)
class CallState(Generic[R]):
    """The state of a call with all its attempts.

    Attributes:
        throttle: the throttle that all calls of the operation share.
        now: returns the event loop's time.
        deadline: the event loop's time at which the call ends; infinite for no limit. Waits that are
            excluded from it (see the module's docstring) move it.
        read_timeout: the seconds until a response begins, and between two chunks of it.
        response_reserve: the seconds before the deadline that are left for the connection and the response.
        observed: the call as the observer sees it.
        rounds: the number of rounds; a round is an admission and, if it succeeds, an attempt.
        uncounted_rounds: rounds of a bulk call that the server declined; they don't count as attempts.
        attempts: the number of attempts, including those that weren't sent.
        sent: whether one of them was sent; each error of the call reports it.
        ticket: the ticket of the current attempt.
        in_doubt_error: the error of an attempt that may have been executed.
        result_if_cancelled: what is known of the call if its task is cancelled: during a wait, the error of
            the last attempt; during an attempt, what that attempt has shown. `None` if nothing was sent.
        wait_scope: the timeout around the waits between attempts; closing the client makes it expire.
        cancellation: the cancellation of the task, which is raised at the end of the call.
    """

    endpoint: Endpoint[Any, R]
    request: Any
    policy: RetryPolicy
    throttle: Throttle
    now: Callable[[], float]
    gate: AttemptGate | None
    body_writer: BodyWriter | None
    deadline: float
    read_timeout: float
    response_reserve: float
    observed: ObservedCall
    rounds: int = 0
    uncounted_rounds: int = 0
    attempts: int = 0
    sent: bool = False
    in_doubt_error: PlaidRelayError | None = None
    result_if_cancelled: Any = None
    wait_scope: asyncio.Timeout | None = None
    cancellation: asyncio.CancelledError | None = None
    ticket: Ticket = field(init=False)

    @property
    def bulk(self) -> bool:
        """Whether this is a bulk call; see `AttemptGate.bulk`."""
        return self.gate is not None and self.gate.bulk

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may have been executed: of this call, or one that a journal recorded."""
        return self.in_doubt_error is not None or (self.gate is not None and self.gate.in_doubt)

    @property
    def counted_rounds(self) -> int:
        """The number of rounds that count as attempts for the retry policy."""
        return self.rounds - self.uncounted_rounds

    @property
    def remaining(self) -> float:
        """The seconds within which the waits before an attempt have to end."""
        return self.wait_deadline - self.now()

    @property
    def wait_deadline(self) -> float:
        """The time by which the waits for a retry, the queue, credentials and the journal have to end."""
        return self.deadline - self.response_reserve

    @property
    def is_safe(self) -> bool:
        """Whether the operation changes nothing, so that its outcome is never unknown."""
        return self.endpoint.idempotency is Idempotency.SAFE

    @property
    def reports_late_outcome(self) -> bool:
        """Whether a cancellation makes the outcome of the call a late one."""
        return self.sent and self.gate is None and not self.is_safe

    def error_of_call(self, error: PlaidRelayError) -> PlaidRelayError:
        """Return the error that the call ends with, from the error of its last attempt."""
        return error_of_call(error, in_doubt=self.in_doubt_error, attempts=self.attempts, sent=self.sent)


@define(eq=False, repr=False)
class Admission:
    """Admits attempts; one at a time while their operation has to wait, or if there is a rate limiter.

    Attributes:
        throttles: the throttle of each operation, by path.
        wait_scopes: the waits that end when the client is closed; see `while_open`.
        family: this object and those of other credentials with the same connection pool, while they are used.
    """

    session: SessionManager
    authenticator: Authenticator
    rate_limiter: RateLimiter | None
    counters: Counters
    throttles: defaultdict[str, Throttle] = field(factory=lambda: defaultdict(Throttle))
    wait_scopes: set[asyncio.Timeout] = field(factory=set, init=False)
    family: weakref.WeakSet[Admission] = field(factory=weakref.WeakSet, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.family.add(self)

    def with_credentials(self, credentials: CredentialsSource, rate_limiter: RateLimiter | None) -> Admission:
        """Return the admission of other credentials: it has the same connection slots, and no other state.

        Raises:
            ConfigurationError: they aren't credentials, or a gateway adds the credentials.
        """
        authenticator = self.authenticator.with_credentials(credentials)
        return Admission(self.session, authenticator, rate_limiter, self.counters, family=self.family)

    @contextlib.asynccontextmanager
    async def while_open(self) -> AsyncIterator[asyncio.Timeout]:
        """Yield a timeout around a wait; it expires when the client is closed.

        Raises:
            ClientClosedError: the client is closed, or was closed during the wait.
        """
        self.session.check_usable()
        # It has no deadline, and expires only when `end_waits` reschedules it.
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self.wait_scopes.add(scope)
                try:
                    yield scope
                finally:
                    self.wait_scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise ClientClosedError("this client was closed while the call waited") from None

    def rates(self) -> dict[str, float]:
        """Return the adaptive rate of each operation that has one, in attempts per second."""
        # A reader of metrics calls this from its thread, so the loop runs over a copy.
        rates = {path: throttle.rate.per_second for path, throttle in list(self.throttles.items())}
        return {path: rate for path, rate in rates.items() if math.isfinite(rate)}

    def end_waits(self) -> None:
        """End all waits for the connection pool, whatever their credentials, because the client is closed."""
        for admission in tuple(self.family):
            scopes, admission.wait_scopes = admission.wait_scopes, set()
            for scope in scopes:
                scope.reschedule(0.0)
            for throttle in admission.throttles.values():
                throttle.queue.wake_head()

    async def admit(self, call: CallState[Any]) -> Authentication:
        """Wait until an attempt may start, and return its credentials.

        The attempt holds a connection slot until `release`.

        Raises:
            WaitTooLongError: the wait for Plaid's pause or the adaptive rate is longer than the call allows.
            NotSentError: the limiter or the source of the credentials raised, or the latter took too long.
            ConfigurationError: the source of the credentials didn't return `Credentials`.
            ClientClosedError: the client was closed during a wait.
        """
        throttle, slots = call.throttle, self.session.slots
        while True:
            if self.rate_limiter is not None or not throttle.can_start(call.now()):
                await self._wait_in_queue(call)
            # The waits below may take long. If a pause begins during them, the ticket is void and the loop
            # starts again.
            call.ticket = throttle.issue_ticket(call.now())
            if self.rate_limiter is None:
                if slots.locked():
                    await self._wait_for_connection(call)
                else:
                    # A slot is free, so this doesn't wait, and can't be cancelled.
                    await slots.acquire()
            authentication = self.authenticator.fixed or await self._fetch_authentication(call)
            if throttle.breaker.is_current(call.ticket):
                return authentication
            # A pause began in the meantime. One unused permit is kept for the first attempt after it; more
            # would lead to a burst.
            throttle.queue.has_unused_permit = self.rate_limiter is not None
            self.release(call)

    def release(self, call: CallState[Any]) -> None:
        """Release the connection slot of an attempt that has ended."""
        self.session.slots.release()
        # Only the end of a probe lets another attempt start, so the throttle needn't know of other ends.
        if call.ticket.is_probe:
            call.throttle.attempt_ended(call.now(), call.ticket)

    async def _wait_for_connection(self, call: CallState[Any]) -> None:
        """Wait with a ticket for a connection slot; the wait doesn't count against the deadline."""
        started = call.now()
        try:
            with self.counters.count_wait("connection"):
                async with self.while_open():
                    await self.session.slots.acquire()
        except BaseException:
            # The attempt doesn't start. If it was to be a probe, the next one needn't wait for its end.
            call.throttle.attempt_ended(call.now(), call.ticket)
            raise
        call.deadline += call.now() - started

    async def _fetch_authentication(self, call: CallState[Any]) -> Authentication:
        """Return the credentials from their source. If that fails, the attempt has ended."""
        try:
            async with self.while_open():
                return await self.authenticator.authenticate(call.wait_deadline)
        except BaseException:
            self.release(call)
            raise

    async def _wait_in_queue(self, call: CallState[Any]) -> None:
        """Wait in the queue for the pause and the rate and, with a limiter, for a permit and a slot."""
        throttle = call.throttle
        if not throttle.can_start(call.now()):
            # Fail before joining the queue if it is known that the wait would be too long.
            _check_wait(call, throttle.queue.calls_ahead)
        queue_wait = _QueueWait(call)
        with self.counters.count_queue_wait(throttle.queue.time):
            try:
                async with queue_wait.timeout(), throttle.queue.head(bulk=call.bulk):
                    await self._wait_at_head(call, queue_wait)
            except TimeoutError:
                wait = throttle.expected_wait(call.now(), throttle.queue.calls_ahead)
                raise _wait_too_long_error(wait) from None
            finally:
                queue_wait.exclude_from_deadline()

    async def _wait_at_head(self, call: CallState[Any], queue_wait: _QueueWait) -> None:
        """Wait at the head of the queue.

        The limiter comes after the pause, and only the head of the queue calls it. So there is at most one
        unused permit when a pause begins, and it is kept for the first attempt after the pause.
        """
        throttle, queue = call.throttle, call.throttle.queue
        while True:
            while (wait := throttle.seconds_until_start(call.now())) > 0:
                self.session.check_usable()  # the client may have been closed during the wait
                queue_wait.exclude_from_deadline()
                _check_wait(call, 0)
                await queue.wait_at_head(wait)
            if self.rate_limiter is None:
                return
            if not queue.has_unused_permit:
                async with self.while_open():
                    with queue.time.measure("limiter", call.now), errors_as_not_sent("the rate limiter"):
                        await self.rate_limiter.acquire(call.endpoint.path)
                queue.has_unused_permit = True
                continue
            async with self.while_open():
                with queue.time.measure("connection", call.now):
                    await self.session.slots.acquire()
            if throttle.seconds_until_start(call.now()) <= 0:
                queue.has_unused_permit = False
                return
            # A pause began during the wait for the slot. Other operations can use the slot until it ends.
            self.session.slots.release()


def _check_wait(call: CallState[Any], ahead: int) -> None:
    """Raise WaitTooLongError if the wait of a call with a number of calls ahead is known to be too long."""
    now, throttle = call.now(), call.throttle
    wait = throttle.expected_wait(now, ahead)
    exceeds_max_pause = throttle.breaker.open_until - now > call.policy.max_pause
    # A bulk call has no deadline for this wait, but the policy limits every pause.
    if exceeds_max_pause or not (call.bulk or wait < call.remaining):
        raise _wait_too_long_error(wait, exceeds_max_pause=exceeds_max_pause)


def _wait_too_long_error(wait: float, *, exceeds_max_pause: bool = False) -> WaitTooLongError:
    return WaitTooLongError(
        "Plaid's limit requires a longer wait than this call allows",
        retry_after=wait,
        exceeds_max_pause=exceeds_max_pause,
    )


# The minimum number of seconds between two checks of a queued call's deadline. Waits that are excluded from
# the deadline move it, so one check may not be enough.
_CHECK_INTERVAL = 0.01


@define(eq=False)
class _QueueWait:
    """A call's wait in the queue of its operation.

    For a bulk call, all of it is excluded from the deadline. For an interactive call, the waits of the head
    of the queue for a pause or the adaptive rate count.
    """

    call: CallState[Any]
    _excluded_until: float = field(init=False)
    _timer: asyncio.TimerHandle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._excluded_until = self._excluded_clock()

    def _excluded_clock(self) -> float:
        """Return the seconds of a clock that runs only during waits that don't count against the deadline."""
        now = self.call.now()
        return now if self.call.bulk else self.call.throttle.queue.time.total_seconds(now)

    def exclude_from_deadline(self) -> None:
        """Move the deadline by what is excluded of the wait so far."""
        excluded_before, self._excluded_until = self._excluded_until, self._excluded_clock()
        self.call.deadline += self._excluded_until - excluded_before

    @contextlib.asynccontextmanager
    async def timeout(self) -> AsyncIterator[None]:
        """Raise TimeoutError when the call has no time left; excluded waits move the deadline."""
        if self.call.bulk or self.call.deadline == math.inf:
            yield
            return
        async with asyncio.timeout(None) as scope:
            self._schedule_check(scope)
            try:
                yield
            finally:
                self._timer.cancel()

    def _schedule_check(self, scope: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(self.call.remaining, _CHECK_INTERVAL), self._check_deadline, scope)

    def _check_deadline(self, scope: asyncio.Timeout) -> None:
        self.exclude_from_deadline()
        if self.call.remaining > 0.0:
            self._schedule_check(scope)
        else:
            scope.reschedule(self.call.now())
