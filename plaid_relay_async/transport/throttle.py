"""The throttle of one operation: a circuit breaker and an adaptive rate.

Until an attempt is declined, nothing is delayed. A declined attempt (a 429, planned maintenance, or a gateway
that can't reach Plaid) opens the circuit breaker for the pause that the server requests, or for a backoff if
it requests none or less than a second. After the pause the breaker is half-open: one attempt at a time is
sent as a probe. The first accepted probe closes the breaker.

After a 429 the operation keeps to an adaptive rate, in the manner of AIMD (additive increase, multiplicative
decrease). The first rate is what the server accepted before the 429. Each further 429 decreases it to a
little less than the declined rate, or to what the server accepted in the meantime if that is less. While the
rate delays calls it increases, slowly at first and then faster, until the next 429. How fast depends on the
time over which the rate was measured: a rate that was measured within seconds grows within seconds, one that
was measured over a minute grows within minutes. A few isolated 429s don't change the rate.
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

# The values were chosen by simulation, with the rate limits of tests/rate_harness.py. Times are in seconds.

# The new rate is at most this share of the declined rate. After a pause shorter than `_SHORT_PAUSE`, it is at
# least half of the declined rate.
_DECREASE_FACTOR = 0.92
_SHORT_PAUSE = 5.0

# After n periods the rate is base * (1 + _INCREASE_STEP * (_INCREASE_GROWTH**n - 1)), so it is 1 % higher
# after the first period. After `_MAX_STEPS` periods it is too high to delay any call.
_INCREASE_STEP = 0.02
_INCREASE_GROWTH = 1.5
_MAX_STEPS = 100

# The period is the time over which the rate was measured, but at most `_MAX_PERIOD`, the minute of Plaid's
# published limits. A rate that was measured from only a few accepted attempts may be due to chance, so the
# period is also at most `_PERIOD_PER_ATTEMPT` times their number.
_MAX_PERIOD = 60.0
_PERIOD_PER_ATTEMPT = 10.0

# Accepted attempts older than this count for half, and pauses older than this aren't added to new ones.
_MEMORY_SECONDS = 300.0

# A `Retry-After` that is shorter than this is raised to the client's own backoff.
_MIN_SERVER_DELAY = 1.0

# An isolated 429 is no sign of a limit (see `Throttle._is_isolated`). There is a budget of them, of at most
# `_MAX_ISOLATED`: a declined attempt takes 1 from it, and an accepted attempt adds `_ISOLATED_SHARE`.
_ISOLATED_SHARE = 0.03
_MAX_ISOLATED = 10

# The time after which another probe is sent although the last one has not ended.
_PROBE_INTERVAL = 5.0

# The measurement restarts if an attempt could have started, and none did for this time.
_IDLE_SECONDS = 5.0


@define(eq=False)
class AdaptiveRate:
    """The rate of an operation, which increases while it delays calls and decreases after a 429.

    Attributes:
        per_second: attempts per second; infinite until the first 429.
        base: the rate after the last decrease, from which it increases.
        isolated_budget: the number of 429s that may still count as isolated.
    """

    per_second: float = math.inf
    base: float = math.inf
    isolated_budget: float = _MAX_ISOLATED
    _period: float = _MAX_PERIOD
    _delayed_seconds: float = 0.0
    _measured_since: float = 0.0
    _accepted: float = 0.0

    def start_measurement(self, now: float) -> None:
        """Restart the measurement of accepted attempts."""
        self._measured_since, self._accepted = now, 0.0

    def count_accepted(self, now: float) -> None:
        """Count an accepted attempt."""
        self._accepted += 1
        self.isolated_budget = min(self.isolated_budget + _ISOLATED_SHARE, _MAX_ISOLATED)
        # Halving both the time and the count makes recent attempts weigh more than old ones.
        if now - self._measured_since > _MEMORY_SECONDS:
            self._measured_since, self._accepted = (self._measured_since + now) / 2, self._accepted / 2

    def increase(self, seconds: float) -> None:
        """Increase the rate after it has delayed an attempt by a number of seconds."""
        self._delayed_seconds += seconds
        steps = min(self._delayed_seconds / self._period, _MAX_STEPS)
        self.per_second = self.base * (1 + _INCREASE_STEP * (_INCREASE_GROWTH**steps - 1))

    def decrease(self, declined_at: float, pause_end: float) -> None:
        """Decrease the rate after a 429.

        The pause counts as time of the measurement, because the server accepts nothing in it: fifty attempts
        and a pause until the end of the minute mean fifty a minute.

        Args:
            declined_at: the time of the 429.
            pause_end: the end of the server's pause; `declined_at` if the server requested none.
        """
        # Without an accepted attempt nothing is known about the limit: other clients may have used it up.
        if not self._accepted:
            return
        seconds = max(pause_end - self._measured_since, 0.001)
        self.base = min(_DECREASE_FACTOR * self.per_second, self._accepted / seconds)
        if pause_end - declined_at < _SHORT_PAUSE and math.isfinite(self.per_second):
            self.base = max(self.base, self.per_second / 2)
        self.per_second, self._delayed_seconds, self.isolated_budget = self.base, 0.0, _MAX_ISOLATED
        self._period = min(seconds, _MAX_PERIOD, _PERIOD_PER_ATTEMPT * self._accepted)


@define(eq=False)
class _Trip:
    """The opening of the circuit breaker by a declined attempt.

    Attributes:
        at: the time of the response.
        ticket: the ticket of the declined attempt.
        rate_limited: whether it and all attempts declined since then got a 429.
        own_pause: whether the pause is only the client's own choice: no response requested one, and no
            declined probe has confirmed that it is needed.
        contradicted: whether the server accepted an attempt that started later.
    """

    at: float
    ticket: float
    rate_limited: bool
    own_pause: bool
    contradicted: bool = False


@define(eq=False)
class QueueingTime:
    """The seconds that the head of a queue has waited for the rate limiter or a slot, by reason.

    All calls in the queue wait for its head, and none of this time counts against a deadline.
    """

    _seconds: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    _reason: str | None = None
    _since: float = 0.0

    @contextlib.contextmanager
    def measure(self, reason: str, clock: Callable[[], float]) -> Iterator[None]:
        """Measure a wait of the head of the queue."""
        self._reason, self._since = reason, clock()
        try:
            yield
        finally:
            self._seconds[reason] += clock() - self._since
            self._reason = None

    def by_reason(self, now: float) -> dict[str, float]:
        """Return the seconds by reason, including a wait that has not ended."""
        seconds = self._seconds.copy()
        if self._reason is not None:
            seconds[self._reason] += now - self._since
        return seconds

    def total_seconds(self, now: float) -> float:
        """Return the seconds for all reasons together."""
        return sum(self.by_reason(now).values())


@define(eq=False)
class Throttle:
    """The circuit breaker, the adaptive rate and the queue of one operation.

    All times are the event loop's, in seconds. A ticket is the time at which an attempt passed the throttle.

    Attributes:
        rate: the adaptive rate.
        open_until: the end of the server's pause; the circuit breaker is open until then.
        total_pause: the seconds of all pauses since the last accepted attempt.
        pause_count: the number of these pauses.
        declined_at: the time at which the server last declined an attempt; older tickets are void.
        queue_length: the number of calls in the queue.
        queueing_time: the time that the head of the queue has waited for the rate limiter or a slot.
        has_unused_permit: whether the rate limiter has granted a permit that no attempt has used yet.
    """

    rate: AdaptiveRate = field(factory=AdaptiveRate)
    open_until: float = 0.0
    total_pause: float = 0.0
    pause_count: int = 0
    declined_at: float = -math.inf
    queue_length: int = 0
    queueing_time: QueueingTime = field(factory=QueueingTime)
    has_unused_permit: bool = False
    # The queue: a bulk call takes the bulk lock before the head lock, an interactive call only the head lock.
    _interactive_count: int = 0
    _head_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _bulk_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _wake_event: asyncio.Event = field(factory=asyncio.Event)
    # The circuit breaker: set from the first declined attempt until a probe is accepted.
    _trip: _Trip | None = None
    # The earliest time of the next attempt, by the rate or by the interval of probes.
    _next_start: float = -math.inf
    _probe_ticket: float = -math.inf
    _last_activity: float = -math.inf

    # ------------------------------------------------------------------------------------- the queue

    @contextlib.asynccontextmanager
    async def queue(self, *, bulk: bool) -> AsyncIterator[None]:
        """Wait in the queue until the call is its head; interactive calls go before bulk calls."""
        self.queue_length += 1
        self._interactive_count += not bulk
        try:
            # Only one bulk call at a time waits for the head lock, so an interactive call waits for at most
            # one of them.
            async with self._bulk_lock if bulk else contextlib.nullcontext(), self._head_lock:
                yield
        finally:
            self.queue_length -= 1
            self._interactive_count -= not bulk

    def can_start(self, now: float) -> bool:
        """Return whether an attempt may start without queueing."""
        return not self.queue_length and self.seconds_until_start(now) <= 0

    def seconds_until_start(self, now: float) -> float:
        """Return the seconds until the head of the queue may start; 0 or less means immediately."""
        return max(self.open_until, self._next_start) - now

    @property
    def calls_ahead(self) -> int:
        """The number of calls before an interactive call that joins now: one bulk call may be the head."""
        return self._interactive_count + (self.queue_length > self._interactive_count)

    def expected_wait(self, now: float, ahead: int = 0) -> float:
        """Return the minimum seconds that a call with a number of calls ahead will wait, as known now."""
        if self._trip is not None:
            return max(self.open_until - now, 0.0)
        return max(self.seconds_until_start(now), 0.0) + ahead / self.rate.per_second

    async def wait_at_head(self, seconds: float) -> None:
        """Wait at the head of the queue for some seconds, or until the probe ends or the client is closed."""
        self._wake_event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake_event.wait()

    def wake_head(self) -> None:
        """Make the head of the queue check again whether it has to wait."""
        self._wake_event.set()

    def issue_ticket(self, now: float) -> float:
        """Let an attempt pass, and return its ticket, which is the current time."""
        gap = 1 / self.rate.per_second
        # After an idle time the attempts before it say nothing about the limit.
        if now - self._last_activity > _IDLE_SECONDS + gap and self._trip is None:
            self.rate.start_measurement(now)
        if now - max(self._last_activity, self.open_until) > _MEMORY_SECONDS:
            self.total_pause, self.pause_count = 0.0, 0
        self._last_activity = now
        if self._trip is not None:
            self._probe_ticket = now
            self._next_start = now + _PROBE_INTERVAL
        elif gap:
            # The rate increases only while it is what delays the calls.
            if now < self._next_start + gap:
                self.rate.increase(gap)
            self._next_start = max(self._next_start + gap, now)
        return now

    # ----------------------------------------------------------------------------- results of attempts

    def attempt_ended(self, now: float, ticket: float) -> None:
        """Note that an attempt has ended. If it was the latest probe, the next one may start."""
        if self._trip is not None and ticket == self._probe_ticket:
            self._next_start = now
            self._wake_event.set()

    def is_current(self, ticket: float) -> bool:
        """Return whether the attempt with this ticket started after the last declined one ended.

        Only then is its result newer information than that decline.
        """
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
        """Open the circuit breaker after the server declined an attempt.

        Args:
            now: the current time.
            ticket: the attempt's ticket.
            retry_after: the server's delay in seconds, if the response had one.
            own_delay: returns the seconds of the nth pause if the server's delay is missing or very short.
            rate_limited: whether the response was a 429.

        Returns:
            The delay in seconds.
        """
        is_current = self.is_current(ticket)
        delay = retry_after or 0.0
        # An attempt that started before the last declined one ended belongs to the same pause: no backoff is
        # added.
        if is_current and delay < _MIN_SERVER_DELAY:
            delay = max(delay, own_delay(self.pause_count + 1))
        if now >= self.open_until:
            self.pause_count += 1
        # Pauses that overlap count once.
        pause_end = max(self.open_until, now + delay)
        self.total_pause += pause_end - max(self.open_until, now)
        self.open_until, self.declined_at, self._last_activity = pause_end, now, now
        self._trip_breaker(_Trip(now, ticket, rate_limited, not retry_after), is_current=is_current)
        return delay

    def _trip_breaker(self, trip: _Trip, *, is_current: bool) -> None:
        self.rate.isolated_budget -= 1
        if self._trip is None:
            self._trip = trip
            return
        # If a pause is for maintenance as well, its length says nothing about the limit.
        self._trip.rate_limited &= trip.rate_limited
        self._trip.own_pause &= not is_current and trip.own_pause

    def record_accepted(self, now: float, ticket: float) -> None:
        """Note that the server accepted an attempt: its response was definitive."""
        trip, self._last_activity = self._trip, now
        if self.is_current(ticket):
            self.total_pause, self.pause_count = 0.0, 0
            if trip is not None:
                self._close_breaker(now, trip)
        # The attempt started after the declined one, and before the response to that arrived. So the limit
        # isn't used up.
        elif trip is not None and ticket > trip.ticket:
            trip.contradicted = True
        self.rate.count_accepted(now)

    def _close_breaker(self, now: float, trip: _Trip) -> None:
        self._trip = None
        if not self._is_isolated(trip):
            if trip.rate_limited:
                # A pause that the client chose says nothing about the server, so it isn't part of the
                # measurement.
                self.rate.decrease(trip.at, trip.at if trip.own_pause else self.open_until)
            self.rate.start_measurement(now)
        self._next_start = now + 1 / self.rate.per_second

    def _is_isolated(self, trip: _Trip) -> bool:
        # The server accepted an attempt that started after the declined one, or it requested no pause and
        # accepted the next attempt.
        accepts_more = trip.contradicted or trip.own_pause
        return trip.rate_limited and accepts_more and self.rate.isolated_budget >= 0
