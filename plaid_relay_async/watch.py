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
TURNS: Final = 20


class Watch:
    """Ends what is not over in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._spans: set[Span] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._closed = False

    def span(self, deadline: float | None = None) -> Span:
        """Give a span of a task that has to be over at a time of the loop's clock."""
        return Span(self, math.inf if deadline is None else deadline)

    def close(self) -> None:
        """Leave no timer behind, once all is over that is under way."""
        self._closed = True
        if not self._spans:
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf

    def add(self, span: Span) -> None:
        """Look after a span, from when it begins."""
        self._spans.add(span)
        self.look_by(span.until)

    def discard(self, span: Span) -> None:
        """Forget it, once it is over."""
        self._spans.discard(span)
        if self._closed:
            self.close()

    def look_by(self, when: float) -> None:
        """Look whether something is late, then at the latest."""
        if when < self._due:
            self._stop()
            self._due = when
            self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        self._due, now = math.inf, self.loop.time()
        late = [span for span in self._spans if span.until <= now]
        self._process(late, TURNS)
        self.look_by(min((span.until for span in self._spans.difference(late)), default=math.inf))

    def _process(self, late: list[Span], turns: int) -> None:
        """Let the loop process what has arrived, for a number of turns, and then end what is late."""
        if turns:
            self.loop.call_soon(self._process, late, turns - 1)
        else:
            self._end(late)

    def _end(self, late: list[Span]) -> None:
        now = self.loop.time()
        for span in self._spans.intersection(late):
            if span.until <= now:
                span.end()
            else:
                self.look_by(span.until)


class Span:
    """A context manager that ends in a TimeoutError if it isn't over by its time, or can't begin before it.

    Attributes:
        until: that time, by the loop's clock.
    """

    __slots__ = ("_cancelling", "_deadline", "_late", "_task", "_watch", "until")

    def __init__(self, watch: Watch, deadline: float) -> None:
        self._watch = watch
        self._deadline = self.until = deadline
        self._late = False

    @property
    def late(self) -> bool:
        """Whether its time is up."""
        return self._late

    def allow(self, seconds: float) -> None:
        """Let it go on for so long from now, or to its deadline if that comes before."""
        self.until = min(self._deadline, self._watch.loop.time() + seconds)
        self._watch.look_by(self.until)

    def start(self, seconds: float) -> None:
        """Allow as `allow` does, for what starts only now.

        Raises:
            TimeoutError: the deadline passed while the event loop was blocked.
        """
        self.allow(seconds)
        if self.until == self._deadline <= self._watch.loop.time():
            raise TimeoutError

    def end(self) -> None:
        """Its time is up."""
        self._late, self.until = True, math.inf
        self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._watch.loop)
        assert task is not None  # noqa: S101  # nothing else can be cancelled, and nothing else awaits
        self._task, self._cancelling = task, task.cancelling()
        if self._watch.loop.time() >= self.until:
            raise TimeoutError
        self._watch.add(self)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._watch.discard(self)
        # As in asyncio.timeout: a cancellation of somebody else's stays one.
        if self._late and self._task.uncancel() <= self._cancelling and cls is asyncio.CancelledError:
            raise TimeoutError from error
