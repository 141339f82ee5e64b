"""The queue of one operation: the calls that its throttle or the rate limiter delays."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@define(eq=False)
class ExcludedTime:
    """The seconds that the head of a queue has waited for the rate limiter or a slot, by reason.

    All calls in the queue wait for its head, and this time is excluded from their deadlines.
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
class Queue:
    """The calls of an operation that wait; only the call at its head may start, or ask the rate limiter.

    Attributes:
        length: the number of calls in the queue, including its head.
        time: the time that the head has waited for the rate limiter or a slot.
        has_unused_permit: whether the rate limiter has granted a permit that no attempt has used yet.
    """

    length: int = 0
    time: ExcludedTime = field(factory=ExcludedTime)
    has_unused_permit: bool = False
    _interactive_count: int = 0
    # A bulk call takes the bulk lock before the head lock, an interactive call only the head lock.
    _head_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _bulk_lock: asyncio.Lock = field(factory=asyncio.Lock)
    _wake_event: asyncio.Event = field(factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def head(self, *, bulk: bool) -> AsyncIterator[None]:
        """Wait until the call is the head of the queue; interactive calls go before bulk calls."""
        self.length += 1
        self._interactive_count += not bulk
        try:
            # Only one bulk call at a time waits for the head lock, so an interactive call waits for at most
            # one of them.
            async with self._bulk_lock if bulk else contextlib.nullcontext(), self._head_lock:
                yield
        finally:
            self.length -= 1
            self._interactive_count -= not bulk

    @property
    def calls_ahead(self) -> int:
        """The number of calls before an interactive call that joins now: one bulk call may be the head."""
        return self._interactive_count + (self.length > self._interactive_count)

    async def wait_at_head(self, seconds: float) -> None:
        """Wait at the head of the queue for some seconds, or until the probe ends or the client is closed."""
        self._wake_event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake_event.wait()

    def wake_head(self) -> None:
        """Make the head of the queue check again whether it has to wait."""
        self._wake_event.set()
