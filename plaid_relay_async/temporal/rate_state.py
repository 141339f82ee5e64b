"""The stored state of a task queue's rate limit, and the setting that follows from it: arithmetic, no I/O."""

from __future__ import annotations

import math
from typing import Final

from attrs import evolve, field, frozen

from plaid_relay_async.transport.adaptation import (
    DECREASE_FACTOR,
    MAX_PERIOD,
    decreased_rate,
    increase,
    period_of,
)

# ------------------------------------------------------------------------------- the arithmetic of a setting

# Temporal divides a setting among the partitions of a task queue, 4 by default. Each has a bucket that
# contains the activities of one second, and dispatches one activity more than that (server 1.32,
# `simplelimiter`). So in any window of w seconds the queue dispatches at most setting * (w + 1) + 4: with 20
# a second, 44 in the first second. More calls may arrive at Plaid in w seconds: the first calls of a worker
# are late, because they open the journal of the run, and arrive together with later ones. If calls are up to
# 0.8 s late, the dispatches of w + 0.8 seconds may arrive in w seconds. So the setting for a rate is
# (rate * w - 4) / (w + 1.8).
#
# The window is 10 s: for 50 a second, the setting is 42. With a low rate the one activity of each partition
# matters more, so the window is the time in which 80 activities are allowed, if that is longer: then these
# activities are 5 % of the window's.
_PARTITIONS: Final = 4
_BURST: Final = 1.0  # seconds
_LATENESS: Final = 0.8  # seconds
_MIN_WINDOW: Final = 10.0  # seconds
_MIN_COUNT: Final = 80.0  # activities in a window


def setting_for(rate: float) -> float:
    """Return the setting with which a task queue dispatches at most `rate` per second in any window."""
    window = max(_MIN_WINDOW, _MIN_COUNT / rate)
    return (rate * window - _PARTITIONS) / (window + _BURST + _LATENESS)


# --------------------------------------------------------------------------------------- the stored state

_MIN_BASE: Final = 0.1
_MIN_PERIOD: Final = 1.0
# The number of periods after which the adaptive rate is no limit any more: it is then more than 300 times as
# high as after the decrease.
_MAX_STEPS: Final = 24


def _to_float(value: float | None) -> float | None:
    return None if value is None else float(value)


@frozen(kw_only=True)
class RateState:
    """What is stored with a setting. Rates are per second, and times in seconds since 1970.

    Attributes:
        allowed: the rate that the user allows; `None` is no limit.
        stopped: whether the user has paused the task queue.
        foreign: a setting that was made without this package, as an upper bound.
        until: the end of the pause after a 429.
        base: the setting after the last decrease; `None` before the first one.
        since: the time from which it increases.
        period: the seconds of each step by which it increases.
    """

    allowed: float | None = field(default=None, converter=_to_float)
    stopped: bool = field(default=False, converter=bool)
    foreign: float | None = field(default=None, converter=_to_float)
    until: float = field(default=0.0, converter=float)
    base: float | None = field(default=None, converter=_to_float)
    since: float = field(default=0.0, converter=float)
    period: float = field(default=MAX_PERIOD, converter=float)

    def adaptive(self, now: float) -> float:
        """Return the adaptive rate, or infinity. It changes in steps: all workers compute the same."""
        steps = max(now - self.since, 0.0) // self.period
        if self.base is None or steps >= _MAX_STEPS:
            return math.inf
        return self.base * increase(steps)

    def unpaused_setting(self, now: float) -> float:
        """Return the setting without regard to pauses; infinity is no limit."""
        allowed = math.inf if self.allowed is None else setting_for(self.allowed)
        return min(allowed, math.inf if self.foreign is None else self.foreign, self.adaptive(now))

    def setting(self, now: float) -> float:
        """Return the setting for the task queue: 0 in a pause, infinity without a limit."""
        return 0.0 if self.stopped or now < self.until else self.unpaused_setting(now)

    def paused(self, until: float) -> RateState:
        """Return the state with a pause that ends at this time, or later if the pause before does."""
        # A multiple of 0.2 s, so that most of the 429s that arrive together change nothing.
        return evolve(self, until=max(self.until, math.ceil(until * 5) / 5))

    def decreased(self, declined_at: float, *, admitted: float, measured_since: float) -> RateState:
        """Return the state with a lower adaptive rate, after an attempt was declined.

        Args:
            declined_at: the time of the 429.
            admitted: the number of activities that were dispatched since `measured_since`. The pause counts
                as time of the measurement, because the server accepts nothing in it.
            measured_since: the start of the measurement.
        """
        previous, end = self.unpaused_setting(declined_at), max(self.until, declined_at)
        seconds = max(end - measured_since, _MIN_PERIOD)
        base = decreased_rate(previous, accepted=admitted, seconds=seconds, pause=end - declined_at)
        if not math.isfinite(base):  # nothing is known about the limit
            return self
        # With a very low setting, Temporal's server would dispatch nothing for a long time after the pause.
        base = max(base, min(_MIN_BASE, DECREASE_FACTOR * previous))
        period = max(period_of(seconds, seconds * base), _MIN_PERIOD)
        return evolve(self, base=base, since=end, period=period)
