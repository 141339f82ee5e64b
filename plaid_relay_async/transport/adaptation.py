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

# The growth in a period, and the factor by which it changes from each period to the next one.
_INCREASE_STEP = 0.02
_INCREASE_GROWTH = 1.5

# Seconds. A measurement restarts if an attempt could have started, and none did for this time: the attempts
# before say nothing about the limit.
IDLE_TIME = 5.0

# The budget of isolated 429s is at most `_MAX_ISOLATED`: a declined attempt takes 1 from it, and an accepted
# attempt adds `_ISOLATED_SHARE`.
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
    """Return the seconds of each step of the increase, after a measurement as of `decreased_rate`."""
    return min(seconds, MAX_PERIOD, _PERIOD_PER_ATTEMPT * accepted)


def increase(periods: float) -> float:
    """Return the factor by which a rate is higher than after its decrease; 1.01 after the first period."""
    growth: float = _INCREASE_GROWTH**periods - 1
    return 1 + _INCREASE_STEP * growth


@define(eq=False)
class IsolatedBudget:
    """The number of 429s that may still be isolated, which is no sign of a limit."""

    _left: float = _MAX_ISOLATED

    @property
    def is_exceeded(self) -> bool:
        """Whether there were more 429s than isolated ones."""
        return self._left < 0

    def count_accepted(self) -> None:
        """Count an accepted attempt."""
        self._left = min(self._left + _ISOLATED_SHARE, _MAX_ISOLATED)

    def count_declined(self) -> None:
        """Count a declined attempt."""
        self._left -= 1

    def reset(self) -> None:
        """Allow the full number again, after the rate has been decreased."""
        self._left = _MAX_ISOLATED
