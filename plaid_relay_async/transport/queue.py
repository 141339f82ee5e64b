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
from plaid_relay_async.transport.pace import Pace
from plaid_relay_async.transport.protocols import Permit, RateLimiter, Sink
from plaid_relay_async.transport.signing import Signer, of_the_caller
from plaid_relay_async.transport.statistics import Tally

if TYPE_CHECKING:
    from plaid_relay_async.transport.signing import Signature

R = TypeVar("R")


@define(eq=False, repr=False)
class Call(Generic[R]):
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
    permit: Permit | None
    into: Sink | None
    deadline: float | None
    spare: float = 0.0
    tries: int = 0
    refusals: int = 0
    attempts: int = 0
    sent: bool = False
    turn: float = 0.0
    gave_up: bool = False
    perhaps_done: PlaidRelayError | None = None
    known: Any = None
    sleep: asyncio.Timeout | None = None
    interruption: asyncio.CancelledError | None = None

    @property
    def patient(self) -> bool:
        """Whether pauses are queueing, as in a batch."""
        return self.permit is not None and self.permit.patient

    @property
    def doubted(self) -> bool:
        """Whether an attempt may have been carried out, in this call or in an earlier life of it."""
        return self.perhaps_done is not None or (self.permit is not None and self.permit.doubted)

    @property
    def counted(self) -> int:
        """The tries that the policy bounds."""
        return self.tries - self.refusals

    def has_time_for(self, wait: float) -> bool:
        """Whether an attempt may follow after so many seconds."""
        return wait < self.remaining

    @property
    def remaining(self) -> float:
        """The seconds within which an attempt has to leave."""
        return math.inf if self.latest is None else self.latest - self.now()

    @property
    def latest(self) -> float | None:
        """The moment before which whoever waits has to leave."""
        return None if self.deadline is None else self.deadline - self.spare

    def postpone(self, seconds: float) -> None:
        """Don't count these seconds against the deadline."""
        if self.deadline is not None:
            self.deadline += seconds

    def verdict(self, error: PlaidRelayError) -> PlaidRelayError:
        """What to raise: an attempt that may have been carried out outweighs what a later one was told."""
        if self.perhaps_done is not None:
            self.perhaps_done.attempts = self.attempts
            return self.perhaps_done
        if self.sent:
            error.sent = True
        if self.gave_up:
            told = RateLimitError(str(error.args[0]), **vars(error), gave_up_waiting=True)
            told.__cause__ = error.__cause__
            return told
        return error


@define(eq=False, repr=False)
class Queue:
    """Lets attempts go, one turn for each.

    Attributes:
        waits: those that end when the client is closed; see `while_open`.
    """

    session: SessionManager
    signer: Signer
    limiter: RateLimiter | None
    tally: Tally
    paces: defaultdict[str, Pace] = field(factory=lambda: defaultdict(Pace))
    waits: set[asyncio.Timeout] = field(factory=set, init=False)

    @contextlib.asynccontextmanager
    async def while_open(self) -> AsyncIterator[asyncio.Timeout]:
        """Yield a timeout around a wait, which ends when the client is closed.

        Raises:
            ClientClosedError: it is closed.
        """
        self.session.get()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self.waits.add(wait)
                try:
                    yield wait
                finally:
                    self.waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            raise ClientClosedError("this client was closed while the call waited") from None

    def wake(self) -> None:
        """End all waits: the client is closed."""
        waits, self.waits = self.waits, set()
        for wait in waits:
            wait.reschedule(0.0)
        for pace in self.paces.values():
            pace.wake()

    def pace(self, call: Call[Any]) -> Pace:
        """What all calls of the same operation share."""
        return self.paces[call.endpoint.path]

    async def enter(self, call: Call[Any]) -> Signature:
        """Wait for an attempt's turn; from then on it holds a connection, until it leaves.

        Raises:
            RateLimitError: Plaid's limit makes it wait longer than it may.
            NotSentError: the limiter or the source of the credentials raised, or the latter took too long.
        """
        pace = self.pace(call)
        while True:
            if self.limiter is not None or not pace.is_clear(call.now()):
                await self._line_up(call, pace)
            call.turn = pace.leave(call.now())
            if self.limiter is None:
                if self.session.slots.locked():
                    await self._wait_for_connection(call, pace)
                else:
                    await self.session.slots.acquire()  # without a wait, so that it can't be cancelled
            try:
                if callable(self.signer.who):
                    async with self.while_open():
                        signature = await self.signer.sign(call.latest)
                else:
                    signature = await self.signer.sign(call.latest)
            except BaseException:
                self.leave(call)
                raise
            if pace.is_news(call.turn):
                return signature
            # A pause began meanwhile. One permit is kept across it: more of them would lead to a burst.
            pace.permit = self.limiter is not None
            self.leave(call)

    def leave(self, call: Call[Any]) -> None:
        """The attempt is over."""
        self.session.slots.release()
        self.pace(call).over(call.now(), call.turn)

    async def _line_up(self, call: Call[Any], pace: Pace) -> None:
        """Wait in line for the server's pause and rate and, with a limiter, for a permit and a connection."""
        if not pace.is_clear(call.now()):
            self._check(call, pace, pace.expected(call.now(), pace.ahead))
        stay = _Stay(call, pace)
        with self.tally.line(pace.queueing):
            try:
                async with stay.timeout(), pace.line(patient=call.patient):
                    await self._lead(stay)
            except TimeoutError:
                raise self._too_long(call, pace.expected(call.now(), pace.ahead)) from None
            finally:
                stay.postpone()

    async def _lead(self, stay: _Stay) -> None:
        """Wait at the head of the line.

        The limiter comes after the pause, and only the head of the line asks it. So there is one permit at
        most when a pause begins, and it is kept for the first attempt that leaves after the pause.
        """
        call, pace = stay.call, stay.pace
        while True:
            while (wait := pace.wait(call.now())) > 0:
                self.session.get()  # it may be closed by now
                stay.postpone()
                self._check(call, pace, pace.expected(call.now()))
                await pace.sleep(wait)
            if self.limiter is None:
                return
            if not pace.permit:
                await self._limit(call, pace, self.limiter)
                continue
            async with self.while_open():
                with pace.queueing.wait("connection", call.now):
                    await self.session.slots.acquire()
            if pace.wait(call.now()) <= 0:
                pace.permit = False
                return
            self.session.slots.release()

    def _check(self, call: Call[Any], pace: Pace, wait: float) -> None:
        gave_up = pace.until - call.now() > call.policy.max_pause
        if gave_up or not (call.patient or call.has_time_for(wait)):
            raise self._too_long(call, wait, gave_up=gave_up)

    def _too_long(self, call: Call[Any], wait: float, *, gave_up: bool = False) -> RateLimitError:
        return RateLimitError(
            "Plaid's limit makes calls of this operation wait longer than this call may wait",
            sent=call.sent,
            retry_after=wait,
            gave_up_waiting=gave_up,
        )

    async def _limit(self, call: Call[Any], pace: Pace, limiter: RateLimiter) -> None:
        async with self.while_open():
            with pace.queueing.wait("limiter", call.now), of_the_caller("the rate limiter"):
                await limiter.acquire(call.endpoint.path)
        pace.permit = True

    async def _wait_for_connection(self, call: Call[Any], pace: Pace) -> None:
        since = call.now()
        try:
            with self.tally.wait("connection"):
                async with self.while_open():
                    await self.session.slots.acquire()
        except BaseException:
            pace.over(call.now(), call.turn)
            raise
        call.postpone(call.now() - since)


# Seconds between two checks of a call whose time is nearly up, but doesn't run while it waits.
_GRAIN = 0.01


@define(eq=False)
class _Stay:
    """A call's stay in the line of its operation.

    For a patient call all of it is queueing; for any other call, the waits for the server aren't.
    """

    call: Call[Any]
    pace: Pace
    _postponed: float = field(init=False)
    _timer: asyncio.TimerHandle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._postponed = self._clock()

    def _clock(self) -> float:
        now = self.call.now()
        return now if self.call.patient else self.pace.queueing.total(now)

    def postpone(self) -> None:
        """Don't count the queueing so far against the deadline."""
        before, self._postponed = self._postponed, self._clock()
        self.call.postpone(self._postponed - before)

    @contextlib.asynccontextmanager
    async def timeout(self) -> AsyncIterator[None]:
        """Raise TimeoutError when the call has no time left; queueing postpones that moment."""
        if self.call.patient or self.call.deadline is None:
            yield
            return
        async with asyncio.timeout(None) as limit:
            self._look_later(limit)
            try:
                yield
            finally:
                self._timer.cancel()

    def _look_later(self, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(self.call.remaining, _GRAIN), self._look, limit)

    def _look(self, limit: asyncio.Timeout) -> None:
        self.postpone()
        if self.call.has_time_for(0.0):
            self._look_later(limit)
        else:
            limit.reschedule(self.call.now())
