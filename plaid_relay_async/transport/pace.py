"""When the next attempt at one operation may leave, as far as the server's refusals have taught.

Until the first 429 nothing is held back. After it there is the pause that the server asked for. Then one
attempt at a time goes to see whether the server takes one, and from the first that it takes on the operation
keeps to a rate: what the server allowed from the last refusal to this one, and a little less than what it
refused. While that rate is what holds the calls up it rises, slowly near the last refusal and then faster and
faster, until the server refuses again. What was learnt in a second is forgotten in seconds, what was learnt
in a minute in minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Our choices, made with the simulated limits of tests/test_rate.py.
_KEPT = 0.92  # of a rate that was refused
_STEP = 0.02  # how much the rate rises, as a part of itself: half of this in as long a time as taught it,
_FASTER = 1.5  # and so many times more in each such time that follows
_LONGEST = 60.0  # seconds of that time; Plaid's published limits are for a minute
_MEMORY = 300.0  # seconds after which what was let through counts for half, and pauses add up no more
_EACH = 10.0  # and for each attempt that taught it so many: one or two were chance
_STEPS = 100  # a rate that rose so often holds nobody up
_PROBE = 5.0  # seconds after which another attempt goes to see whether the pause is over, if none has ended
_IDLE = 5.0  # seconds without an attempt, though one might leave, after which the rate is measured anew


@define(eq=False)
class Pace:
    """One operation's pause and rate; all times are the event loop's, in seconds.

    Attributes:
        rate: attempts a second; infinite until the server refuses one.
        until: the end of the server's pause.
        total: the seconds of all pauses since an attempt was last let through, or none was made for long.
        streak: how many pauses those were.
        refused_at: when the server last refused; a turn that was given before that is void.
        waiting: how many are in line.
    """

    rate: float = math.inf
    until: float = 0.0
    total: float = 0.0
    streak: int = 0
    refused_at: float = -math.inf
    waiting: int = 0
    _hurried: int = 0
    _front: asyncio.Lock = field(factory=asyncio.Lock)
    _behind: asyncio.Lock = field(factory=asyncio.Lock)
    _over: asyncio.Event = field(factory=asyncio.Event)
    _next: float = -math.inf
    _probing: bool = False
    _went_first: float = -math.inf
    _limited: bool = False
    _base: float = math.inf
    _held_up: float = 0.0
    _lesson: float = _LONGEST
    _since: float = 0.0
    _passed: float = 0.0
    _seen: float = -math.inf

    # ------------------------------------------------------------------------------------- the line

    @contextlib.asynccontextmanager
    async def line(self, *, patient: bool) -> AsyncIterator[None]:
        """Stand in line until one is its head; whoever is patient lets those in a hurry go first."""
        self.waiting += 1
        self._hurried += not patient
        try:
            async with self._behind if patient else contextlib.nullcontext(), self._front:
                yield
        finally:
            self.waiting -= 1
            self._hurried -= not patient

    def is_clear(self, now: float) -> bool:
        """Whether an attempt may leave without standing in line."""
        return not self.waiting and self.wait(now) <= 0

    def wait(self, now: float) -> float:
        """How long the first in line has to wait."""
        return max(self.until, self._next) - now

    @property
    def ahead(self) -> int:
        """How many go before somebody in a hurry who joins the line: one of the others is at its head."""
        return self._hurried + (self.waiting > self._hurried)

    def expected(self, now: float, ahead: int = 0) -> float:
        """How long somebody with so many ahead in line will wait at least, as things stand."""
        if self._probing:
            return max(self.until - now, 0.0)
        return max(self.wait(now), 0.0) + ahead / self.rate

    async def sleep(self, seconds: float) -> None:
        """Wait at the head of the line, or until an attempt that went first is over."""
        self._over.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def leave(self, now: float) -> float:
        """Give the first in line its turn, which is known by its moment."""
        if now - self._seen > _IDLE + 1 / self.rate and not self._probing:
            self._since, self._passed = now, 0.0
        if now - max(self._seen, self.until) > _MEMORY:
            self.total, self.streak = 0.0, 0
        self._seen = now
        if self._probing:
            self._went_first = now
            self._next = now + _PROBE
        elif gap := 1 / self.rate:
            if now < self._next + gap:
                self._rise(gap)
            self._next = max(self._next + gap, now)
        return now

    def _rise(self, seconds: float) -> None:
        self._held_up += seconds
        steps = min(self._held_up / self._lesson, _STEPS)
        self.rate = self._base * (1 + _STEP * (_FASTER**steps - 1))

    # --------------------------------------------------------------------------------- what it is told

    def over(self, now: float, turn: float) -> None:
        """An attempt is over: if it was the last that went first, the next may go, but for another pause."""
        if self._probing and turn == self._went_first:
            self._next = now
            self._over.set()

    def is_news(self, turn: float) -> bool:
        """Whether the attempt with this turn left after the last refusal, and so tells more than that did."""
        return turn >= self.refused_at

    def refused(self, now: float, delay: float, *, limited: bool) -> None:
        """The server refused an attempt, and everybody waits; `limited` says that it was a 429."""
        if now >= self.until:
            self.streak += 1
        until = max(self.until, now + delay)
        self.total += until - max(self.until, now)
        self.until = until
        # An attempt that left only to see whether the pause is over says nothing of the rate; and of a pause
        # that is for maintenance as well, nobody knows how much is the limit's.
        self._limited = limited and (self._limited or not self._probing)
        self._probing, self.refused_at, self._seen = True, now, now

    def passed(self, now: float, turn: float) -> None:
        """The server took an attempt, whatever it answered."""
        if self.is_news(turn):
            self.total, self.streak = 0.0, 0
            if self._probing:
                self._go_on(now)
        self._passed += 1
        self._seen = now
        if now - self._since > _MEMORY:
            self._since, self._passed = (self._since + now) / 2, self._passed / 2

    def _go_on(self, now: float) -> None:
        self._probing = False
        if self._limited and self._passed:
            # To the pause's end, for after that perhaps nobody called for hours.
            lesson = max(self.until - self._since, 0.001)
            self.rate = self._base = min(_KEPT * self.rate, self._passed / lesson)
            self._held_up, self._lesson = 0.0, min(lesson, _LONGEST, _EACH * self._passed)
        self._next = now + 1 / self.rate
        self._since, self._passed = now, 0.0
