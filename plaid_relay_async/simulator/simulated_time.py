"""The simulator's time, which a program can move forward, and its relation to Unix time."""

import time
from collections.abc import Callable

_MAX_DRIFT = 1.0  # seconds


class SimulatedTime:
    """A clock that can be moved forward.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moved = 0.0
        self._unix_offset = time.time() - self()

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._clock() + self._moved

    def move_to(self, moment: float) -> None:
        """Move the clock forward to a moment; do nothing if it has passed."""
        self._moved += max(0.0, moment - self())

    def to_unix(self, moment: float) -> float:
        """Return a moment in seconds of Unix time.

        The present is always the present of other programs, which can't be moved. So a webhook that was
        signed an hour ago by this clock is an hour old for its receiver, however the hour has passed.
        """
        offset = time.time() - self()
        # As long as neither clock is moved, the same moment is the same Unix time.
        if abs(offset - self._unix_offset) > _MAX_DRIFT:
            self._unix_offset = offset
        return moment + self._unix_offset
