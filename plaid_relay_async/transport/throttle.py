"""The throttle of one operation: a circuit breaker, an adaptive rate and a queue.

Until an attempt is declined, nothing is delayed. A declined attempt (a 429, planned maintenance, or this
package's gateway if it can't reach Plaid) opens the circuit breaker for the pause that the server requests,
or for a backoff if it requests none or less than a second. After the pause the breaker is half-open: one
attempt at a time is sent as a probe. The first accepted probe closes the breaker. An attempt is accepted if
its response is definitive (see `certainty`), also if that is an error such as a 400. An attempt that ends in
another way, such as with a 500, is neither accepted nor declined.

After a 429 the operation keeps to an adaptive rate, in the manner of AIMD (additive increase, multiplicative
decrease). The first rate is what the server accepted before the 429. Each further 429 decreases it to a
little less than the declined rate, or to what the server accepted in the meantime if that is less. While the
rate delays calls it increases, slowly at first and then faster, until the next 429. How fast depends on the
time over which the rate was measured: a rate that was measured within seconds grows within seconds, one that
was measured over a minute grows within minutes. A few isolated 429s don't change the rate.

All times are the event loop's, in seconds, and are passed in. The constants were chosen by simulation, with
the rate limits of tests/rate_harness.py; `adaptation` has those of the adaptive rate.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from plaid_relay_async.transport.adaptation import (
    IDLE_TIME,
    MAX_PERIOD,
    IsolatedBudget,
    decreased_rate,
    increase,
    period_of,
)
from plaid_relay_async.transport.queueing import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

# ------------------------------------------------------------------------------------ the circuit breaker

# Seconds. A server's delay that is shorter is raised to the client's own backoff, because a batch would
# otherwise repeat its requests as fast as the network allows.
_MIN_SERVER_DELAY = 1.0

# Seconds after which another probe is sent although the last one has not ended: its response may be lost.
_PROBE_INTERVAL = 5.0

# Seconds without an attempt after which earlier pauses no longer add up: a call that is declined each night
# must not use up the `max_pause` of a batch.
_PAUSES_MEMORY = 300.0


class BreakerState(enum.Enum):
    """The states of a circuit breaker.

    A declined attempt opens it from any state, the first probe makes an open breaker half-open, and an
    accepted probe closes it.
    """

    CLOSED = "closed"  # attempts start as the adaptive rate allows
    OPEN = "open"  # no attempt starts before the end of the pause
    HALF_OPEN = "half-open"  # one attempt at a time is sent as a probe


@frozen(eq=False)
class Ticket:
    """What an attempt receives when it passes the throttle, and presents with its result.

    Attributes:
        issued_at: the time at which the attempt passed the throttle.
        declines: the number of attempts that the server had declined by then. Once it has declined another
            one, the ticket is void: its attempt may not start any more, or its result is older than that.
        is_probe: whether the attempt is a probe.
    """

    issued_at: float
    declines: int
    is_probe: bool = False


@define(eq=False)
class Trip:
    """What is known about the limit that opened the circuit breaker.

    Attributes:
        declined_at: the time of the response that opened it.
        ticket: the ticket of that attempt.
        rate_limited: whether all attempts that were declined since then got a 429.
        own_pause: whether the client chose the pause: no response requested one, and no probe was declined.
        contradicted: whether the server accepted an attempt that had started after the declined one.
    """

    declined_at: float
    ticket: Ticket
    rate_limited: bool
    own_pause: bool
    contradicted: bool = False


@define(eq=False)
class CircuitBreaker:
    """The pauses of an operation, and the probes after them.

    Attributes:
        state: closed, open, or half-open.
        next_start: the earliest time of the next attempt, as far as the breaker is concerned.
        open_until: the end of the pause.
        total_pause: the seconds of all pauses since the breaker was last closed, or since the last time
            without an attempt of `_PAUSES_MEMORY`.
        pause_count: the number of these pauses.
        declines: the number of attempts that the server has declined.
    """

    state: BreakerState = BreakerState.CLOSED
    next_start: float = 0.0
    open_until: float = 0.0
    total_pause: float = 0.0
    pause_count: int = 0
    declines: int = 0
    _latest_probe: Ticket | None = None
    _trip: Trip = field(init=False)  # set when the breaker opens

    def is_current(self, ticket: Ticket) -> bool:
        """Return whether the server has declined no attempt since the ticket was issued.

        While the breaker isn't closed, only a probe can have a current ticket: the attempt that opened it
        made all earlier tickets void, and only probes have been issued tickets since.
        """
        return ticket.declines == self.declines

    def issue_probe(self, now: float) -> Ticket:
        """Let a probe pass. The next one follows when it has ended, or after `_PROBE_INTERVAL`."""
        if now - self.next_start > _PAUSES_MEMORY:
            self.total_pause, self.pause_count = 0.0, 0
        self.state, self.next_start = BreakerState.HALF_OPEN, now + _PROBE_INTERVAL
        self._latest_probe = Ticket(now, self.declines, is_probe=True)
        return self._latest_probe

    def attempt_ended(self, now: float, ticket: Ticket) -> None:
        """Note that an attempt has ended. If it was the latest probe, the next one may start."""
        if ticket is self._latest_probe:
            self.next_start = max(now, self.open_until)

    def record_declined(
        self,
        now: float,
        ticket: Ticket,
        retry_after: float | None,
        own_delay: Callable[[int], float],
        *,
        rate_limited: bool,
    ) -> float:
        """Open the breaker, or prolong its pause, and return the delay; see `Throttle.record_declined`."""
        is_current, delay = self.is_current(ticket), retry_after or 0.0
        # An attempt that started before the last declined one ended says nothing new: no backoff is added.
        if is_current and delay < _MIN_SERVER_DELAY:
            delay = max(delay, own_delay(self.pause_count + 1))
        if now >= self.open_until:  # also if it ended so late that the pause is over
            self.pause_count += 1
        # Pauses that overlap count once.
        pause_end = max(self.open_until, now + delay)
        self.total_pause += pause_end - max(self.open_until, now)
        self.open_until, self.next_start = pause_end, max(self.next_start, pause_end)
        if self.state is BreakerState.CLOSED:
            self._trip = Trip(now, ticket, rate_limited, own_pause=not retry_after)
        else:
            # If a pause is for maintenance as well, its length says nothing about the limit.
            self._trip.rate_limited &= rate_limited
            self._trip.own_pause &= not is_current and not retry_after
        self.state = BreakerState.OPEN
        self.declines += 1
        return delay

    def record_accepted(self, ticket: Ticket) -> Trip | None:
        """Note that an attempt was accepted while the breaker wasn't closed.

        If it is a probe that started after the last pause, close the breaker and return its trip.
        """
        if not self.is_current(ticket):
            # It may have started after the declined one, and before the response to that arrived. Then the
            # limit isn't used up.
            self._trip.contradicted |= ticket.issued_at > self._trip.ticket.issued_at
            return None
        self.state, self.next_start, self._latest_probe = BreakerState.CLOSED, self.open_until, None
        self.total_pause, self.pause_count = 0.0, 0
        return self._trip


# -------------------------------------------------------------------------------------- the adaptive rate

# After this number of periods, the rate is too high to delay any call.
_MAX_STEPS = 100

# Seconds. When the measurement has lasted this long, its time and its count are halved, so that recent
# attempts weigh more than old ones.
_MEASUREMENT_MEMORY = 300.0


@define(eq=False)
class AdaptiveRate:
    """The rate of an operation, which increases while it delays calls and decreases after a 429.

    Attributes:
        per_second: attempts per second; infinite until the first 429.
        next_start: the earliest time of the next attempt, as far as the rate is concerned.
    """

    per_second: float = math.inf
    _base: float = math.inf  # the rate after the last decrease, from which it increases
    _period: float = MAX_PERIOD
    next_start: float = field(default=-math.inf, init=False)
    _delayed_seconds: float = field(default=0.0, init=False)
    _last_activity: float = field(default=-math.inf, init=False)
    _measured_since: float = field(default=0.0, init=False)
    _accepted: float = field(default=0.0, init=False)
    _isolated_budget: IsolatedBudget = field(factory=IsolatedBudget, init=False)

    def start_attempt(self, now: float) -> None:
        """Note that an attempt starts while the circuit breaker is closed."""
        gap = 1 / self.per_second
        if now - self._last_activity > IDLE_TIME + gap:
            self._measured_since, self._accepted = now, 0.0
        self._last_activity = now
        if gap:
            # The rate increases only while it is what delays the calls.
            if now < self.next_start + gap:
                self._increase(gap)
            # An attempt that starts late is made up for, because timers are late and would lower the rate;
            # but at most one is.
            self.next_start = max(self.next_start + gap, now)

    def count_accepted(self, now: float) -> None:
        """Count an accepted attempt."""
        self._last_activity = now
        self._accepted += 1
        self._isolated_budget.count_accepted()
        if now - self._measured_since > _MEASUREMENT_MEMORY:
            self._measured_since, self._accepted = (self._measured_since + now) / 2, self._accepted / 2

    def count_declined(self) -> None:
        """Count a declined attempt."""
        self._isolated_budget.count_declined()

    def resume(self, now: float, trip: Trip, open_until: float) -> None:
        """Continue after the circuit breaker has closed.

        Decrease the rate if a rate limit had opened the breaker, unless that 429 is isolated.
        """
        # A 429 is isolated if the server accepted an attempt that started after the declined one, or if it
        # requested no pause and accepted the next attempt.
        accepts_more = trip.contradicted or trip.own_pause
        is_isolated = trip.rate_limited and accepts_more and not self._isolated_budget.is_exceeded
        if not is_isolated:
            if trip.rate_limited:
                # A pause that the client chose says nothing about the server, so it isn't part of the
                # measurement.
                self._decrease(trip.declined_at, trip.declined_at if trip.own_pause else open_until)
            self._measured_since, self._accepted = now, 0.0
        self.next_start = now + 1 / self.per_second

    def _increase(self, seconds: float) -> None:
        """Increase the rate after it has delayed an attempt by a number of seconds."""
        self._delayed_seconds += seconds
        steps = min(self._delayed_seconds / self._period, _MAX_STEPS)
        self.per_second = self._base * increase(steps)

    def _decrease(self, declined_at: float, pause_end: float) -> None:
        """Decrease the rate after a 429.

        The pause counts as time of the measurement, because the server accepts nothing in it: fifty attempts
        and a pause until the end of the minute mean fifty a minute.
        """
        # Without an accepted attempt nothing is known about the limit: other clients may have used it up.
        if not self._accepted:
            return
        seconds = max(pause_end - self._measured_since, 0.001)
        self._base = decreased_rate(
            self.per_second, accepted=self._accepted, seconds=seconds, pause=pause_end - declined_at
        )
        self._period = period_of(seconds, self._accepted)
        self.per_second, self._delayed_seconds = self._base, 0.0
        self._isolated_budget.reset()


# ------------------------------------------------------------------------------------------- the throttle


@define(eq=False)
class Throttle:
    """What an attempt of one operation passes before it starts, and what its result is reported to.

    Attributes:
        breaker: the circuit breaker.
        rate: the adaptive rate.
        queue: the calls that wait for either of them, or for the rate limiter.
    """

    breaker: CircuitBreaker = field(factory=CircuitBreaker)
    rate: AdaptiveRate = field(factory=AdaptiveRate)
    queue: Queue = field(factory=Queue)

    def can_start(self, now: float) -> bool:
        """Return whether an attempt may start without waiting in the queue."""
        return now >= self.rate.next_start and now >= self.breaker.next_start and not self.queue.length

    def seconds_until_start(self, now: float) -> float:
        """Return the seconds until the head of the queue may start; 0 or less means immediately."""
        return max(self.rate.next_start, self.breaker.next_start) - now

    def expected_wait(self, now: float, ahead: int = 0) -> float:
        """Return the minimum seconds that a call with a number of calls ahead will wait, as known now."""
        # The first accepted probe ends the wait of all calls.
        if self.breaker.state is not BreakerState.CLOSED:
            return max(self.breaker.open_until - now, 0.0)
        return max(self.seconds_until_start(now), 0.0) + ahead / self.rate.per_second

    def issue_ticket(self, now: float) -> Ticket:
        """Let an attempt pass, and return its ticket."""
        if self.breaker.state is not BreakerState.CLOSED:
            return self.breaker.issue_probe(now)
        self.rate.start_attempt(now)
        return Ticket(now, self.breaker.declines)

    def attempt_ended(self, now: float, ticket: Ticket) -> None:
        """Note that an attempt has ended, whatever its result. If it was a probe, the next one may start."""
        self.breaker.attempt_ended(now, ticket)
        self.queue.wake_head()

    def record_declined(
        self,
        now: float,
        ticket: Ticket,
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
        self.rate.count_declined()
        return self.breaker.record_declined(now, ticket, retry_after, own_delay, rate_limited=rate_limited)

    def record_accepted(self, now: float, ticket: Ticket) -> None:
        """Note that the server accepted an attempt: its response was definitive."""
        if self.breaker.state is not BreakerState.CLOSED:
            trip = self.breaker.record_accepted(ticket)
            if trip is not None:
                self.rate.resume(now, trip, self.breaker.open_until)
        self.rate.count_accepted(now)
