"""Deadlines of attempts, with one event loop timer for all of them.

`asyncio.timeout` and aiohttp start a timer for each wait. An attempt changes its timeout several times, to
connect and then to read each piece of the response, so that would be several timers for each attempt.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, Self

from attrs import define, field

if TYPE_CHECKING:
    from types import TracebackType

# The number of event loop iterations between the time at which a deadline is due and its effect. A loop that
# was blocked, or whose process was suspended, runs its due timers before it reads its sockets. In these
# iterations it processes what arrived in time; a new connection needs some of them until it is ready.
GRACE_ITERATIONS: Final = 20


class DeadlineTimer:
    """Cancels the tasks whose deadlines have passed, with one event loop timer for all deadlines.

    Attributes:
        active: the deadlines that have been entered and not left.
        next_check: the time of the next check, by the event loop's clock; infinite if none is planned.
        closed: whether the timer stops as soon as no deadline is active.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.active: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.next_check = math.inf
        self.closed = False

    def close(self) -> None:
        """Stop the timer as soon as no deadline is active. Active deadlines still expire."""
        self.closed = True
        if not self.active:
            self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.next_check = None, math.inf

    def check_by(self, when: float) -> None:
        """Check the active deadlines at this time at the latest, by the event loop's clock."""
        if when < self.next_check:
            self._cancel_timer()
            self.next_check = when
            self._timer = self.loop.call_at(when, self._check_expired)

    def _check_expired(self) -> None:
        self.next_check, now = math.inf, self.loop.time()
        due_deadlines = [deadline for deadline in self.active if deadline.expires_at <= now]
        self._expire_after_iterations(due_deadlines, GRACE_ITERATIONS)
        self.check_by(
            min(
                (deadline.expires_at for deadline in self.active.difference(due_deadlines)),
                default=math.inf,
            )
        )

    def _expire_after_iterations(self, due_deadlines: list[Deadline], iterations: int) -> None:
        """Let the loop process what has arrived for some iterations, then apply the deadlines."""
        if iterations:
            self.loop.call_soon(self._expire_after_iterations, due_deadlines, iterations - 1)
        else:
            self._expire(due_deadlines)

    def _expire(self, due_deadlines: list[Deadline]) -> None:
        now = self.loop.time()
        for deadline in self.active.intersection(due_deadlines):
            # What was processed meanwhile may have ended the attempt, or postponed its deadline.
            if deadline.expires_at <= now:
                deadline.expire()
            else:
                self.check_by(deadline.expires_at)


@define(eq=False, repr=False)
class Deadline:
    """A context manager that cancels its task at a point in time, and turns that into a TimeoutError.

    Entering it after that point raises the TimeoutError immediately.

    Args:
        timer: the timer that checks it.
        final: the time at which it expires at the latest; infinite for no limit.
        timeout: the seconds of its first step, which starts when it is entered.

    Attributes:
        expires_at: the time at which it expires, by the event loop's clock.
        expired: whether it has expired.
    """

    _timer: DeadlineTimer
    _final: float = math.inf
    _timeout: float = math.inf
    expires_at: float = field(default=math.inf, init=False)
    expired: bool = field(default=False, init=False)
    _task: asyncio.Task[Any] = field(init=False)
    _cancelling: int = field(init=False)

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._timer.loop)
        assert task is not None  # noqa: S101  # only a task awaits, and only a task can be cancelled
        self._task, self._cancelling = task, task.cancelling()
        self.set_timeout(self._timeout, raise_if_over=True)
        self._timer.active.add(self)
        return self

    def set_timeout(self, seconds: float, *, raise_if_over: bool = False) -> None:
        """Start a step: expire after a number of seconds, or at the final deadline if that is earlier.

        If the final deadline has passed already, because the event loop was blocked, the timer ends the step
        some iterations later (`GRACE_ITERATIONS`), so that a response that has arrived is still read.

        Raises:
            TimeoutError: with `raise_if_over`, if the final deadline has passed.
        """
        now = self._timer.loop.time()
        if raise_if_over and now >= self._final:
            raise TimeoutError
        self.expires_at = min(self._final, now + seconds)
        if self.expires_at < self._timer.next_check:  # seldom so, because another deadline is due earlier
            self._timer.check_by(self.expires_at)

    def expire(self) -> None:
        """Cancel the task, because the deadline has passed."""
        self.expired, self.expires_at = True, math.inf
        self._task.cancel()

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.active.discard(self)
        if self._timer.closed:
            self._timer.close()
        # As in asyncio.timeout: a cancellation that comes from elsewhere stays a cancellation.
        if self.expired and self._task.uncancel() <= self._cancelling and cls is asyncio.CancelledError:
            raise TimeoutError from error
