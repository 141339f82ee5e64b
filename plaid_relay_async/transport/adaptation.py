"""How a rate adapts to 429s: the arithmetic of `throttle`, and of the rate that the workers of a run share.

The constants were chosen by simulation, with the rate limits of tests/rate_harness.py.
"""

from __future__ import annotations

import math

from attrs import define

# A share. The new rate is at most this share of the declined rate.
DECREASE_FACTOR = 0.92

# Seconds, and a share. After a pause that is shorter than `_SHORT_PAUSE`, the new rate is at least this share
# of the declined rate: a limit that permits attempts again so soon isn't far below it.
_SHORT_PAUSE = 5.0
_MIN_SHARE_AFTER_SHORT_PAUSE = 0.5

# Seconds. The period is the time over which the rate was measured, but at most `MAX_PERIOD`, the minute of
# Plaid's published limits. A rate that was measured from only a few accepted attempts may be due to chance,
# so the period is also at most `_PERIOD_PER_ATTEMPT` times their number.
MAX_PERIOD = 60.0
_PERIOD_PER_ATTEMPT = 10.0

# After n periods, a rate has grown by the share _INCREASE_STEP * (_INCREASE_GROWTH**n - 1): by 1 % after the
# first one, and in each period by _INCREASE_GROWTH times as much as in the one before.
_INCREASE_STEP = 0.02
_INCREASE_GROWTH = 1.5

# Seconds. A measurement restarts if an attempt could have started, and none did for this time: the attempts
# before say nothing about the limit.
IDLE_TIME = 5.0

# The `IsolatedBudget` is at most `_MAX_ISOLATED`: a declined attempt takes 1 from it, and an accepted attempt
# adds `_ISOLATED_SHARE`.
_ISOLATED_SHARE = 0.03
_MAX_ISOLATED = 10.0


def decreased_rate(rate: float, *, accepted: float, seconds: float, pause: float) -> float:
    """Return the rate after a 429, per second; infinity if nothing is known about the limit.

    Args:
        rate: the rate that was declined; infinity if there was none.
        accepted: the number of attempts that the server accepted in the measurement.
        seconds: the time of the measurement.
        pause: the seconds of the pause after the 429.
    """
    decreased = min(DECREASE_FACTOR * rate, accepted / seconds if accepted else math.inf)
    if pause < _SHORT_PAUSE and math.isfinite(rate):
        return max(decreased, _MIN_SHARE_AFTER_SHORT_PAUSE * rate)
    return decreased


def period_of(seconds: float, accepted: float) -> float:
    """Return the seconds of each step of the increase; see `decreased_rate` for the arguments."""
    return min(seconds, MAX_PERIOD, _PERIOD_PER_ATTEMPT * accepted)


def increase(periods: float) -> float:
    """Return the factor by which a rate is higher than after its decrease, after a number of periods."""
    growth: float = _INCREASE_GROWTH**periods - 1
    return 1 + _INCREASE_STEP * growth


@define(eq=False)
class IsolatedBudget:
    """The number of 429s that may still be isolated. An isolated 429 is no sign of a limit."""

    _remaining: float = _MAX_ISOLATED

    @property
    def is_exceeded(self) -> bool:
        """Whether there were more 429s than may be isolated."""
        return self._remaining < 0

    def count_accepted(self) -> None:
        """Count an accepted attempt."""
        self._remaining = min(self._remaining + _ISOLATED_SHARE, _MAX_ISOLATED)

    def count_declined(self) -> None:
        """Count a declined attempt."""
        self._remaining -= 1

    def reset(self) -> None:
        """Allow the full number again, after the rate has been decreased."""
        self._remaining = _MAX_ISOLATED
