"""When the next attempt at one operation may leave, as far as the server's refusals have taught.

Until the first 429 nothing is held back. After it there is the pause that the server asked for. Then one
attempt at a time goes to see whether the server takes one, and from the first that it takes on the operation
keeps to a rate: at first what the server allowed until then, and with each refusal a little less than what it
refused, or what it allowed meanwhile. Stray refusals, for which the server asks no pause and after which it goes
on as before, change no rate as long as they are few. While that rate is what holds the calls up it rises, slowly at
first and then faster and faster, until the server refuses again. What was learnt in a second is forgotten in
seconds, what was learnt in a minute in minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# Our choices, made with the simulated limits of tests/rate.py.
_KEPT = 0.92  # of a rate that was refused
_SHORT = 5.0  # seconds of a pause for which a rate falls by half at most
_STEP = 0.02  # how much the rate rises, as a part of itself: half of this in as long as it was learnt,
_FASTER = 1.5  # and so many times more in each such time that follows
_LONGEST = 60.0  # seconds of that time; Plaid's published limits are for a minute
_STEPS = 100  # a rate that rose so often holds nobody up
_STRAY = 0.02  # of what is let through: so many refusals may be strays,
_STRAYS = 3  # and so many in a row
_PROBE = 5.0  # seconds after which another attempt goes to see whether the pause is over, if none has ended
_IDLE = 5.0  # seconds without an attempt after which what was allowed is measured anew


@define(eq=False)
class Pace:
    """One operation's pause and rate; all times are the event loop's, in seconds.

    Attributes:
        rate: attempts a second; infinite until the server refuses one.
        until: the end of the server's pause.
        total: the seconds of all pauses since an attempt was last let through.
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
    _time: float = _LONGEST
    _stopped: float = 0.0
    _ours: bool = False
    _strays: float = _STRAYS
    _first: float = -math.inf
    _contradicted: bool = False
    _since: float = 0.0
    _passed: int = 0
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
        """Wait at the head of the line, until an attempt that went first is over, or to be woken."""
        self._over.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def wake(self) -> None:
        """Have the head of the line look again whether to wait."""
        self._over.set()

    def leave(self, now: float) -> float:
        """Give the first in line its turn, which is known by its moment."""
        if now - self._seen > _IDLE and not self._probing:
            self._since, self._passed = now, 0
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
        steps = min(self._held_up / self._time, _STEPS)
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

    def refused(
        self, now: float, turn: float, asked: float | None, own: Callable[[int], float], *, limited: bool
    ) -> float:
        """The server refused an attempt, and everybody waits.

        Args:
            now: the time.
            turn: the attempt's.
            asked: the server's delay, if it gave one.
            own: gives the delay if it didn't, for the pause of this number.
            limited: whether it was a 429.

        Returns:
            the delay.
        """
        news = self.is_news(turn)
        delay = asked or (own(self.streak + 1) if news else 0.0)
        if now >= self.until:
            self.streak += 1
        until = max(self.until, now + delay)
        self.total += until - max(self.until, now)
        self.until = until
        if not self._probing:
            self._stopped, self._limited, self._ours = now, limited, not asked
            self._first, self._contradicted = turn, False
        elif news:
            self._ours = False
        self._strays -= 1
        self._probing, self._seen = True, now
        self.refused_at = now
        return delay

    def passed(self, now: float, turn: float) -> None:
        """The server took an attempt, whatever it answered."""
        if self.is_news(turn):
            self.total, self.streak = 0.0, 0
            if self._probing:
                self._go_on(now)
        elif turn > self._first:
            self._contradicted = True
        self._passed += 1
        self._strays = min(self._strays + _STRAY, _STRAYS)
        self._seen = now

    def _go_on(self, now: float) -> None:
        self._probing = False
        if self._limited and self._passed and not self._was_stray:
            self._learn(self._stopped - self._since, 0.0 if self._ours else now - self._stopped)
            self._strays = _STRAYS
        self._next = now + 1 / self.rate
        self._since, self._passed = now, 0

    @property
    def _was_stray(self) -> bool:
        # The server took what left behind the refused attempt. Or the pause was our own idea and long enough,
        # and there is no rate yet: a limit that is used up takes none.
        told = self._contradicted or (self._ours and math.isinf(self.rate))
        return told and self._strays >= 0

    def _learn(self, went: float, paused: float) -> None:
        seconds = max(went + paused, 0.001)
        allowed = self._passed / seconds
        self._base = min(_KEPT * self.rate, allowed)
        if paused < _SHORT and math.isfinite(self.rate):
            self._base = max(self._base, self.rate / 2)
        self.rate, self._held_up = self._base, 0.0
        self._time = min(seconds, _LONGEST)
