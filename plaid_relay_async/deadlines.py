"""A watch over attempts, with one timer for them all: asyncio and aiohttp start one for each single wait."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

# Turns of the event loop in which it processes what has arrived. A loop that was blocked, or a process that
# was stopped, finds its timers due before it has read its sockets; a connection that was made meanwhile is
# ready some turns later.
GRACE_ITERATIONS: Final = 20


class DeadlineTimer:
    """Ends what is not over in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._deadlines: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._closed = False

    def create_deadline(self, deadline: float | None = None) -> Deadline:
        """Give a span of a task that has to be over at a time of the loop's clock."""
        return Deadline(self, math.inf if deadline is None else deadline)

    def close(self) -> None:
        """Leave no timer behind, once all is over that is under way."""
        self._closed = True
        if not self._deadlines:
            self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, math.inf

    def add(self, span: Deadline) -> None:
        """Look after a span, from when it begins."""
        self._deadlines.add(span)
        self.check_by(span.expires_at)

    def discard(self, span: Deadline) -> None:
        """Forget it, once it is over."""
        self._deadlines.discard(span)
        if self._closed:
            self.close()

    def check_by(self, when: float) -> None:
        """Look whether something is late, then at the latest."""
        if when < self._timer_due:
            self._cancel_timer()
            self._timer_due = when
            self._timer = self.loop.call_at(when, self._check_expired)

    def _check_expired(self) -> None:
        self._timer_due, now = math.inf, self.loop.time()
        late = [span for span in self._deadlines if span.expires_at <= now]
        self._expire_after_iterations(late, GRACE_ITERATIONS)
        self.check_by(min((span.expires_at for span in self._deadlines.difference(late)), default=math.inf))

    def _expire_after_iterations(self, late: list[Deadline], iterations: int) -> None:
        """Let the loop process what has arrived, for a number of turns, and then end what is late."""
        if iterations:
            self.loop.call_soon(self._expire_after_iterations, late, iterations - 1)
        else:
            self._expire(late)

    def _expire(self, late: list[Deadline]) -> None:
        now = self.loop.time()
        for span in self._deadlines.intersection(late):
            if span.expires_at <= now:
                span.expire()
            else:
                self.check_by(span.expires_at)


class Deadline:
    """A context manager that ends in a TimeoutError if it isn't over by its time, or can't begin before it.

    Attributes:
        until: that time, by the loop's clock.
    """

    __slots__ = ("_cancelling", "_deadline", "_expired", "_task", "_timer", "expires_at")

    def __init__(self, watch: DeadlineTimer, deadline: float) -> None:
        self._timer = watch
        self._deadline = self.expires_at = deadline
        self._expired = False

    @property
    def expired(self) -> bool:
        """Whether its time is up."""
        return self._expired

    def set_timeout(self, seconds: float) -> None:
        """Let it go on for so long from now, or to its deadline if that comes before."""
        self.expires_at = min(self._deadline, self._timer.loop.time() + seconds)
        self._timer.check_by(self.expires_at)

    def start_phase(self, seconds: float) -> None:
        """Allow as `allow` does, for what starts only now.

        Raises:
            TimeoutError: the deadline passed while the event loop was blocked.
        """
        self.set_timeout(seconds)
        if self.expires_at == self._deadline <= self._timer.loop.time():
            raise TimeoutError

    def expire(self) -> None:
        """Its time is up."""
        self._expired, self.expires_at = True, math.inf
        self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._timer.loop)
        assert task is not None  # noqa: S101  # nothing else can be cancelled, and nothing else awaits
        self._task, self._cancelling = task, task.cancelling()
        if self._timer.loop.time() >= self.expires_at:
            raise TimeoutError
        self._timer.add(self)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._timer.discard(self)
        # As in asyncio.timeout: a cancellation of somebody else's stays one.
        if self._expired and self._task.uncancel() <= self._cancelling and cls is asyncio.CancelledError:
            raise TimeoutError from error
