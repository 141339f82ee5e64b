"""When the next attempt at one operation may leave, as far as the server's refusals have taught.

Until the first 429 nothing is held back. After it there is the pause that the server asked for. Then one
attempt at a time goes to see whether the server takes one, and from the first that it takes on the operation
keeps to a rate: at first what the server allowed until then, and with each refusal a little less than what it
refused, or what it allowed meanwhile. While that rate is what holds the calls up it rises, slowly at first
and then faster and faster, until the server refuses again. What was learnt in a second is forgotten in
seconds, what was learnt in a minute in minutes. Stray refusals teach nothing, as long as they are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Our choices, made with the simulated limits of tests/rate_harness.py.
_DECREASE_FACTOR = 0.92  # of a rate that was refused
_SHORT_PAUSE = 5.0  # seconds of a pause for which a rate falls by half at most
_INCREASE_STEP = (
    0.02  # how much the rate rises, as a part of itself: half of this in as long as it was learnt,
)
_INCREASE_GROWTH = 1.5  # and so many times more in each such time that follows
_MAX_PERIOD = 60.0  # seconds of that time; Plaid's published limits are for a minute
_PERIOD_PER_ATTEMPT = 10.0  # and for each attempt that taught it so many: one or two were chance
_MAX_STEPS = 100  # a rate that rose so often holds nobody up
_MEMORY_SECONDS = 300.0  # seconds after which what was let through counts for half, and pauses add up no more
_MIN_SERVER_DELAY = 1.0  # seconds; a shorter delay of the server's is never less than our own
_STRAY_SHARE = 0.03  # of what is let through: so many refusals may be strays,
_MAX_STRAYS = 10  # and so many in a row
_PROBE_INTERVAL = (
    5.0  # seconds after which another attempt goes to see whether the pause is over, if none has ended
)
_IDLE_SECONDS = (
    5.0  # seconds without an attempt, though one might leave, after which the rate is measured anew
)


@define(eq=False)
class AdaptiveRate:
    """So many attempts a second; infinite until a refusal has taught otherwise.

    Attributes:
        a_second: what it is now.
        base: what it was when it was learnt; it rises from there.
        strays: how many refusals may still be strays.
    """

    per_second: float = math.inf
    base: float = math.inf
    stray_budget: float = _MAX_STRAYS
    _period: float = _MAX_PERIOD
    _delayed_seconds: float = 0.0
    _measured_since: float = 0.0
    _accepted: float = 0.0

    def start_measurement(self, now: float) -> None:
        """Count what is let through from now on."""
        self._measured_since, self._accepted = now, 0.0

    def count_accepted(self, now: float) -> None:
        """One more was let through."""
        self._accepted += 1
        self.stray_budget = min(self.stray_budget + _STRAY_SHARE, _MAX_STRAYS)
        if now - self._measured_since > _MEMORY_SECONDS:
            self._measured_since, self._accepted = (self._measured_since + now) / 2, self._accepted / 2

    def increase(self, seconds: float) -> None:
        """The rate has held somebody up for so long."""
        self._delayed_seconds += seconds
        steps = min(self._delayed_seconds / self._period, _MAX_STEPS)
        self.per_second = self.base * (1 + _INCREASE_STEP * (_INCREASE_GROWTH**steps - 1))

    def decrease(self, declined_at: float, until: float) -> None:
        """The server refused at the one time, and had everybody pause until the other."""
        if not self._accepted:
            return
        seconds = max(until - self._measured_since, 0.001)
        self.base = min(_DECREASE_FACTOR * self.per_second, self._accepted / seconds)
        if until - declined_at < _SHORT_PAUSE and math.isfinite(self.per_second):
            self.base = max(self.base, self.per_second / 2)
        self.per_second, self._delayed_seconds, self.stray_budget = self.base, 0.0, _MAX_STRAYS
        self._period = min(seconds, _MAX_PERIOD, _PERIOD_PER_ATTEMPT * self._accepted)


@define(eq=False)
class _Trip:
    """The first of those for which everybody pauses.

    Attributes:
        at: when it came.
        turn: that of the refused attempt.
        limited: whether it was for a limit, and so were those that followed.
        ours: whether the pause was our own idea, and nothing was refused after it.
        contradicted: whether the server took an attempt that left later.
    """

    at: float
    ticket: float
    rate_limited: bool
    own_pause: bool
    contradicted: bool = False


@define(eq=False)
class QueueingTime:
    """The seconds that the head of a line has waited for anything but the server, by what it waited for.

    Each call in the line waits for it as well, and none of it counts against a deadline.
    """

    _seconds: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    _reason: str | None = None
    _since: float = 0.0

    @contextlib.contextmanager
    def measure(self, reason: str, clock: Callable[[], float]) -> Iterator[None]:
        """Count the time in which the head of the line waits."""
        self._reason, self._since = reason, clock()
        try:
            yield
        finally:
            self._seconds[reason] += clock() - self._since
            self._reason = None

    def by_reason(self, now: float) -> dict[str, float]:
        """Return the seconds so far, including a wait that has not ended."""
        seconds = self._seconds.copy()
        if self._reason is not None:
            seconds[self._reason] += now - self._since
        return seconds

    def total_seconds(self, now: float) -> float:
        """Return the sum of these seconds."""
        return sum(self.by_reason(now).values())


@define(eq=False)
class Throttle:
    """One operation's pause and rate; all times are the event loop's, in seconds.

    Attributes:
        rate: what it keeps to.
        until: the end of the server's pause.
        total: the seconds of all pauses since an attempt was last let through.
        streak: how many pauses those were.
        refused_at: when the server last refused; a turn that was given before that is void.
        waiting: how many are in line.
        queueing: how long the head of the line has waited for anything but the server.
        permit: whether the rate limiter has granted a permit that no attempt has used yet.
    """

    rate: AdaptiveRate = field(factory=AdaptiveRate)
    open_until: float = 0.0
    total_pause: float = 0.0
    pause_count: int = 0
    declined_at: float = -math.inf
    queue_length: int = 0
    queueing_time: QueueingTime = field(factory=QueueingTime)
    has_unused_permit: bool = False
    _interactive_count: int = 0
    _head_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _bulk_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _wake_event: asyncio.Event = field(factory=asyncio.Event)
    _trip: _Trip | None = None
    _next_start: float = -math.inf
    _probe_ticket: float = -math.inf
    _last_activity: float = -math.inf

    # ------------------------------------------------------------------------------------- the line

    @contextlib.asynccontextmanager
    async def queue(self, *, bulk: bool) -> AsyncIterator[None]:
        """Stand in line until one is its head; whoever is patient lets those in a hurry go first."""
        self.queue_length += 1
        self._interactive_count += not bulk
        try:
            async with self._bulk_lock if bulk else contextlib.nullcontext(), self._head_lock:
                yield
        finally:
            self.queue_length -= 1
            self._interactive_count -= not bulk

    def can_start(self, now: float) -> bool:
        """Whether an attempt may leave without standing in line."""
        return not self.queue_length and self.seconds_until_start(now) <= 0

    def seconds_until_start(self, now: float) -> float:
        """How long the first in line has to wait."""
        return max(self.open_until, self._next_start) - now

    @property
    def calls_ahead(self) -> int:
        """How many go before somebody in a hurry who joins the line: one of the others is at its head."""
        return self._interactive_count + (self.queue_length > self._interactive_count)

    def expected_wait(self, now: float, ahead: int = 0) -> float:
        """How long somebody with so many ahead in line will wait at least, as things stand."""
        if self._trip is not None:
            return max(self.open_until - now, 0.0)
        return max(self.seconds_until_start(now), 0.0) + ahead / self.rate.per_second

    async def wait_at_head(self, seconds: float) -> None:
        """Wait at the head of the line, until an attempt that went first is over, or to be woken."""
        self._wake_event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake_event.wait()

    def wake_head(self) -> None:
        """Have the head of the line look again whether to wait."""
        self._wake_event.set()

    def issue_ticket(self, now: float) -> float:
        """Give the first in line its turn, which is known by its moment."""
        gap = 1 / self.rate.per_second
        if now - self._last_activity > _IDLE_SECONDS + gap and self._trip is None:
            self.rate.start_measurement(now)
        if now - max(self._last_activity, self.open_until) > _MEMORY_SECONDS:
            self.total_pause, self.pause_count = 0.0, 0
        self._last_activity = now
        if self._trip is not None:
            self._probe_ticket = now
            self._next_start = now + _PROBE_INTERVAL
        elif gap:
            if now < self._next_start + gap:
                self.rate.increase(gap)
            self._next_start = max(self._next_start + gap, now)
        return now

    # --------------------------------------------------------------------------------- what it is told

    def attempt_ended(self, now: float, ticket: float) -> None:
        """An attempt is over: if it was the last that went first, the next may go, but for another pause."""
        if self._trip is not None and ticket == self._probe_ticket:
            self._next_start = now
            self._wake_event.set()

    def is_current(self, ticket: float) -> bool:
        """Whether the attempt with this turn left after the last refusal, and so tells more than that did."""
        return ticket >= self.declined_at

    def record_declined(
        self,
        now: float,
        ticket: float,
        retry_after: float | None,
        own_delay: Callable[[int], float],
        *,
        rate_limited: bool,
    ) -> float:
        """The server refused an attempt, and everybody waits.

        Args:
            now: the time.
            turn: the attempt's.
            asked: the server's delay, if it gave one.
            own: gives the delay if it didn't, or a very brief one, for the pause of this number.
            limited: whether it was a 429.

        Returns:
            the delay.
        """
        news = self.is_current(ticket)
        delay = retry_after or 0.0
        if news and delay < _MIN_SERVER_DELAY:
            delay = max(delay, own_delay(self.pause_count + 1))
        if now >= self.open_until:
            self.pause_count += 1
        until = max(self.open_until, now + delay)
        self.total_pause += until - max(self.open_until, now)
        self.open_until, self.declined_at, self._last_activity = until, now, now
        self._trip_breaker(_Trip(now, ticket, rate_limited, not retry_after), is_current=news)
        return delay

    def _trip_breaker(self, trip: _Trip, *, is_current: bool) -> None:
        self.rate.stray_budget -= 1
        if self._trip is None:
            self._trip = trip
            return
        # Of a pause that is for maintenance as well, nobody knows how much is the limit's.
        self._trip.rate_limited &= trip.rate_limited
        self._trip.own_pause &= not is_current and trip.own_pause

    def record_accepted(self, now: float, ticket: float) -> None:
        """The server took an attempt, whatever it answered."""
        refusal, self._last_activity = self._trip, now
        if self.is_current(ticket):
            self.total_pause, self.pause_count = 0.0, 0
            if refusal is not None:
                self._close_breaker(now, refusal)
        elif refusal is not None and ticket > refusal.ticket:
            refusal.contradicted = True
        self.rate.count_accepted(now)

    def _close_breaker(self, now: float, trip: _Trip) -> None:
        self._trip = None
        if not self._is_stray(trip):
            if trip.rate_limited:
                self.rate.decrease(trip.at, trip.at if trip.own_pause else self.open_until)
            self.rate.start_measurement(now)
        self._next_start = now + 1 / self.rate.per_second

    def _is_stray(self, trip: _Trip) -> bool:
        # The server took what left behind the refused attempt, or asked for no pause and took the next one.
        told = trip.contradicted or trip.own_pause
        return trip.rate_limited and told and self.rate.stray_budget >= 0
