"""What a call waits for before an attempt: the operation's pace, the limiter, and a connection.

None of it is time spent on Plaid, so it runs no timeout down. Only what Plaid's own refusals make a call wait
counts for one that isn't patient: it had better fail at once than answer too late.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, field

from plaid_relay_async.codec import Endpoint
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.errors import ClientClosedError, PlaidRelayError, RateLimitError
from plaid_relay_async.session import SessionManager
from plaid_relay_async.transport.authentication import Authenticator, errors_as_not_sent
from plaid_relay_async.transport.protocols import AttemptGate, BodyWriter, RateLimiter
from plaid_relay_async.transport.statistics import Counters
from plaid_relay_async.transport.throttle import Throttle

if TYPE_CHECKING:
    from plaid_relay_async.transport.authentication import Authentication

R = TypeVar("R")


@define(eq=False, repr=False)
class CallState(Generic[R]):
    """A call with all its attempts.

    Attributes:
        now: gives the time by the event loop's clock.
        spare: seconds that have to be left for the answer if it waits before an attempt.
        tries: how often it was taken up, whether or not that led to an attempt.
        refusals: tries that were refused for now and don't count, for the call is patient.
        attempts: how many HTTP requests were made.
        sent: whether one of them left; each error of the call reports it.
        turn: the moment at which it was let go for the attempt under way.
        gave_up: the server's pauses became longer than the policy admits.
        perhaps_done: the error of an attempt that may have been carried out.
        known: the response or error of the last attempt, as far as one is known.
        sleep: the timeout around its waits between attempts, which closing the client ends.
        interruption: the cancellation that was kept until the attempt had ended.
    """

    endpoint: Endpoint[Any, R]
    request: Any
    policy: RetryPolicy
    now: Callable[[], float]
    gate: AttemptGate | None
    body_writer: BodyWriter | None
    deadline: float | None
    response_reserve: float = 0.0
    rounds: int = 0
    uncounted_rounds: int = 0
    attempts: int = 0
    sent: bool = False
    ticket: float = 0.0
    exceeds_max_pause: bool = False
    error_in_doubt: PlaidRelayError | None = None
    last_result: Any = None
    wait_scope: asyncio.Timeout | None = None
    deferred_cancellation: asyncio.CancelledError | None = None

    @property
    def bulk(self) -> bool:
        """Whether pauses are queueing, as in a batch."""
        return self.gate is not None and self.gate.bulk

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may have been carried out, in this call or in an earlier life of it."""
        return self.error_in_doubt is not None or (self.gate is not None and self.gate.in_doubt)

    @property
    def counted_rounds(self) -> int:
        """The tries that the policy bounds."""
        return self.rounds - self.uncounted_rounds

    def has_time_for(self, wait: float) -> bool:
        """Whether an attempt may follow after so many seconds."""
        return wait < self.remaining

    @property
    def remaining(self) -> float:
        """The seconds within which an attempt has to leave."""
        return math.inf if self.send_deadline is None else self.send_deadline - self.now()

    @property
    def send_deadline(self) -> float | None:
        """The moment before which whoever waits has to leave."""
        return None if self.deadline is None else self.deadline - self.response_reserve

    def extend_deadline(self, seconds: float) -> None:
        """Don't count these seconds against the deadline."""
        if self.deadline is not None:
            self.deadline += seconds

    def error_to_raise(self, error: PlaidRelayError) -> PlaidRelayError:
        """What to raise: an attempt that may have been carried out outweighs what a later one was told."""
        if self.error_in_doubt is not None:
            self.error_in_doubt.attempts = self.attempts
            return self.error_in_doubt
        if self.sent:
            error.sent = True
        if self.exceeds_max_pause:
            told = RateLimitError(str(error.args[0]), **vars(error), exceeds_max_pause=True)
            told.__cause__ = error.__cause__
            return told
        return error


@define(eq=False, repr=False)
class Admission:
    """Lets attempts go, one turn for each.

    Attributes:
        waits: those that end when the client is closed; see `while_open`.
    """

    session: SessionManager
    authenticator: Authenticator
    rate_limiter: RateLimiter | None
    counters: Counters
    throttles: defaultdict[str, Throttle] = field(factory=lambda: defaultdict(Throttle))
    wait_scopes: set[asyncio.Timeout] = field(factory=set, init=False)

    @contextlib.asynccontextmanager
    async def while_open(self) -> AsyncIterator[asyncio.Timeout]:
        """Yield a timeout around a wait, which ends when the client is closed.

        Raises:
            ClientClosedError: it is closed.
        """
        self.session.get_exchange()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self.wait_scopes.add(wait)
                try:
                    yield wait
                finally:
                    self.wait_scopes.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            raise ClientClosedError("this client was closed while the call waited") from None

    def end_waits(self) -> None:
        """End all waits: the client is closed."""
        waits, self.wait_scopes = self.wait_scopes, set()
        for wait in waits:
            wait.reschedule(0.0)
        for pace in self.throttles.values():
            pace.wake_head()

    def throttle_of(self, call: CallState[Any]) -> Throttle:
        """What all calls of the same operation share."""
        return self.throttles[call.endpoint.path]

    async def admit(self, call: CallState[Any]) -> Authentication:
        """Wait for an attempt's turn; from then on it holds a connection, until it leaves.

        Raises:
            RateLimitError: Plaid's limit makes it wait longer than it may.
            NotSentError: the limiter or the source of the credentials raised, or the latter took too long.
        """
        pace = self.throttle_of(call)
        while True:
            if self.rate_limiter is not None or not pace.can_start(call.now()):
                await self._wait_in_queue(call, pace)
            call.ticket = pace.issue_ticket(call.now())
            if self.rate_limiter is None:
                if self.session.slots.locked():
                    await self._wait_for_connection(call, pace)
                else:
                    await self.session.slots.acquire()  # without a wait, so that it can't be cancelled
            try:
                if callable(self.authenticator.identity):
                    async with self.while_open():
                        signature = await self.authenticator.authenticate(call.send_deadline)
                else:
                    signature = await self.authenticator.authenticate(call.send_deadline)
            except BaseException:
                self.release(call)
                raise
            if pace.is_current(call.ticket):
                return signature
            # A pause began meanwhile. One permit is kept across it: more of them would lead to a burst.
            pace.has_unused_permit = self.rate_limiter is not None
            self.release(call)

    def release(self, call: CallState[Any]) -> None:
        """The attempt is over."""
        self.session.slots.release()
        self.throttle_of(call).attempt_ended(call.now(), call.ticket)

    async def _wait_in_queue(self, call: CallState[Any], pace: Throttle) -> None:
        """Wait in line for the server's pause and rate and, with a limiter, for a permit and a connection."""
        if not pace.can_start(call.now()):
            self._check_wait(call, pace, pace.expected_wait(call.now(), pace.calls_ahead))
        stay = _QueueWait(call, pace)
        with self.counters.count_queue_wait(pace.queueing_time):
            try:
                async with stay.timeout(), pace.queue(bulk=call.bulk):
                    await self._wait_at_head(stay)
            except TimeoutError:
                raise self._wait_too_long_error(
                    call, pace.expected_wait(call.now(), pace.calls_ahead)
                ) from None
            finally:
                stay.exclude_from_deadline()

    async def _wait_at_head(self, queue_wait: _QueueWait) -> None:
        """Wait at the head of the line.

        The limiter comes after the pause, and only the head of the line asks it. So there is one permit at
        most when a pause begins, and it is kept for the first attempt that leaves after the pause.
        """
        call, pace = queue_wait.call, queue_wait.throttle
        while True:
            while (wait := pace.seconds_until_start(call.now())) > 0:
                self.session.get_exchange()  # it may be closed by now
                queue_wait.exclude_from_deadline()
                self._check_wait(call, pace, pace.expected_wait(call.now()))
                await pace.wait_at_head(wait)
            if self.rate_limiter is None:
                return
            if not pace.has_unused_permit:
                await self._acquire_permit(call, pace, self.rate_limiter)
                continue
            async with self.while_open():
                with pace.queueing_time.measure("connection", call.now):
                    await self.session.slots.acquire()
            if pace.seconds_until_start(call.now()) <= 0:
                pace.has_unused_permit = False
                return
            self.session.slots.release()

    def _check_wait(self, call: CallState[Any], pace: Throttle, wait: float) -> None:
        gave_up = pace.open_until - call.now() > call.policy.max_pause
        if gave_up or not (call.bulk or call.has_time_for(wait)):
            raise self._wait_too_long_error(call, wait, gave_up=gave_up)

    def _wait_too_long_error(
        self, call: CallState[Any], wait: float, *, gave_up: bool = False
    ) -> RateLimitError:
        return RateLimitError(
            "Plaid's limit makes calls of this operation wait longer than this call may wait",
            sent=call.sent,
            retry_after=wait,
            exceeds_max_pause=gave_up,
        )

    async def _acquire_permit(self, call: CallState[Any], pace: Throttle, limiter: RateLimiter) -> None:
        async with self.while_open():
            with pace.queueing_time.measure("limiter", call.now), errors_as_not_sent("the rate limiter"):
                await limiter.acquire(call.endpoint.path)
        pace.has_unused_permit = True

    async def _wait_for_connection(self, call: CallState[Any], pace: Throttle) -> None:
        since = call.now()
        try:
            with self.counters.count_wait("connection"):
                async with self.while_open():
                    await self.session.slots.acquire()
        except BaseException:
            pace.attempt_ended(call.now(), call.ticket)
            raise
        call.extend_deadline(call.now() - since)


# Seconds between two checks of a call whose time is nearly up, but doesn't run while it waits.
_CHECK_INTERVAL = 0.01


@define(eq=False)
class _QueueWait:
    """A call's stay in the line of its operation.

    For a patient call all of it is queueing; for any other call, the waits for the server aren't.
    """

    call: CallState[Any]
    throttle: Throttle
    _excluded_until: float = field(init=False)
    _timer: asyncio.TimerHandle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._excluded_until = self._queueing_clock()

    def _queueing_clock(self) -> float:
        now = self.call.now()
        return now if self.call.bulk else self.throttle.queueing_time.total_seconds(now)

    def exclude_from_deadline(self) -> None:
        """Don't count the queueing so far against the deadline."""
        before, self._excluded_until = self._excluded_until, self._queueing_clock()
        self.call.extend_deadline(self._excluded_until - before)

    @contextlib.asynccontextmanager
    async def timeout(self) -> AsyncIterator[None]:
        """Raise TimeoutError when the call has no time left; queueing postpones that moment."""
        if self.call.bulk or self.call.deadline is None:
            yield
            return
        async with asyncio.timeout(None) as limit:
            self._schedule_check(limit)
            try:
                yield
            finally:
                self._timer.cancel()

    def _schedule_check(self, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(self.call.remaining, _CHECK_INTERVAL), self._check_deadline, limit)

    def _check_deadline(self, limit: asyncio.Timeout) -> None:
        self.exclude_from_deadline()
        if self.call.has_time_for(0.0):
            self._schedule_check(limit)
        else:
            limit.reschedule(self.call.now())
