"""What a call waits for before an attempt: the operation's pace, the limiter, and a connection.

None of it is time spent on Plaid, so it runs no timeout down. Only what Plaid's own refusals make a call wait
counts for one that isn't patient: it had better fail at once than answer too late.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, field

from plaid_relay_async.codec import Endpoint
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.errors import PlaidRelayError, RateLimitError
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
        sent: whether one of them left.
        turn: the moment at which it was let go for the attempt under way.
        gave_up: the server's pauses became longer than the policy admits.
        perhaps_done: the error of an attempt that may have been carried out.
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
        latest = self.latest
        return latest is None or self.now() + wait < latest

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
        if self.gave_up:
            told = RateLimitError(str(error.args[0]), **vars(error), gave_up_waiting=True)
            told.__cause__ = error.__cause__
            return told
        return error


@define(eq=False, repr=False)
class Queue:
    """Lets attempts go, one turn for each."""

    session: SessionManager
    signer: Signer
    limiter: RateLimiter | None
    tally: Tally
    paces: defaultdict[str, Pace] = field(factory=lambda: defaultdict(Pace))

    def pace(self, call: Call[Any]) -> Pace:
        """What all calls of the same operation share."""
        return self.paces[call.endpoint.path]

    async def enter(self, call: Call[Any]) -> Signature:
        """Wait for an attempt's turn; from then on it holds a connection, until it leaves.

        Raises:
            RateLimitError: Plaid's limit makes it wait longer than it may.
            NotSentError: the limiter or the source of the credentials raised.
        """
        pace = self.pace(call)
        while True:
            if not pace.is_clear(call.now()):
                await self._line_up(call, pace)
            call.turn = pace.leave(call.now())
            try:
                if self.limiter is not None:
                    await self._limit(call, self.limiter)
                if self.session.slots.locked():
                    await self._wait_for_connection(call)
                else:
                    await self.session.slots.acquire()
            except BaseException:
                pace.over(call.now(), call.turn)
                raise
            try:
                signature = await self.signer.sign(call.deadline)
            except BaseException:
                self.leave(call)
                raise
            if pace.is_news(call.turn):
                return signature
            self.leave(call)

    def leave(self, call: Call[Any]) -> None:
        """The attempt is over."""
        self.session.slots.release()
        self.pace(call).over(call.now(), call.turn)

    async def _line_up(self, call: Call[Any], pace: Pace) -> None:
        since = call.now()
        self._check(call, pace, pace.expected(since, pace.ahead))
        with self.tally.wait("pause"):
            await self._stand_in_line(call, pace)
        if call.patient:
            call.postpone(call.now() - since)

    async def _stand_in_line(self, call: Call[Any], pace: Pace) -> None:
        try:
            async with (
                asyncio.timeout_at(None if call.patient else call.latest),
                pace.line(patient=call.patient),
            ):
                while (wait := pace.wait(call.now())) > 0:
                    self.session.get()  # it may be closed by now
                    self._check(call, pace, pace.expected(call.now()))
                    await pace.sleep(wait)
        except TimeoutError:
            raise self._too_long(call, pace.expected(call.now(), pace.ahead)) from None

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

    async def _limit(self, call: Call[Any], limiter: RateLimiter) -> None:
        since = call.now()
        with self.tally.wait("limiter"), of_the_caller("the rate limiter"):
            await limiter.acquire(call.endpoint.path)
        call.postpone(call.now() - since)

    async def _wait_for_connection(self, call: Call[Any]) -> None:
        since = call.now()
        with self.tally.wait("connection"):
            await self.session.slots.acquire()
        call.postpone(call.now() - since)
