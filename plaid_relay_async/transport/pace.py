"""When the next attempt at one operation may leave, as far as the server's refusals have taught.

Until the first 429 nothing is held back. After it there is the pause that the server asked for. Then one
attempt at a time goes to see whether the server takes one, and from the first that it takes on the operation
keeps to a rate: at first what the server allowed until then, and with each refusal a little less than what it
refused, or what it allowed meanwhile. While that rate is what holds the calls up it rises, slowly at first
and then faster and faster, until the server refuses again. What was learnt in a second is forgotten in
seconds, what was learnt in a minute in minutes. Stray refusals teach nothing, as long as they are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Our choices, made with the simulated limits of tests/rate.py.
_KEPT = 0.92  # of a rate that was refused
_SHORT = 5.0  # seconds of a pause for which a rate falls by half at most
_STEP = 0.02  # how much the rate rises, as a part of itself: half of this in as long as it was learnt,
_FASTER = 1.5  # and so many times more in each such time that follows
_LONGEST = 60.0  # seconds of that time; Plaid's published limits are for a minute
_EACH = 10.0  # and for each attempt that taught it so many: one or two were chance
_STEPS = 100  # a rate that rose so often holds nobody up
_MEMORY = 300.0  # seconds after which what was let through counts for half, and pauses add up no more
_BRIEF = 1.0  # seconds; a shorter delay of the server's is never less than our own
_STRAY = 0.03  # of what is let through: so many refusals may be strays,
_STRAYS = 10  # and so many in a row
_PROBE = 5.0  # seconds after which another attempt goes to see whether the pause is over, if none has ended
_IDLE = 5.0  # seconds without an attempt, though one might leave, after which the rate is measured anew


@define(eq=False)
class Rate:
    """So many attempts a second; infinite until a refusal has taught otherwise.

    Attributes:
        a_second: what it is now.
        base: what it was when it was learnt; it rises from there.
        strays: how many refusals may still be strays.
    """

    a_second: float = math.inf
    base: float = math.inf
    strays: float = _STRAYS
    _time: float = _LONGEST
    _held_up: float = 0.0
    _since: float = 0.0
    _passed: float = 0.0

    def measure(self, now: float) -> None:
        """Count what is let through from now on."""
        self._since, self._passed = now, 0.0

    def passed(self, now: float) -> None:
        """One more was let through."""
        self._passed += 1
        self.strays = min(self.strays + _STRAY, _STRAYS)
        if now - self._since > _MEMORY:
            self._since, self._passed = (self._since + now) / 2, self._passed / 2

    def rise(self, seconds: float) -> None:
        """The rate has held somebody up for so long."""
        self._held_up += seconds
        steps = min(self._held_up / self._time, _STEPS)
        self.a_second = self.base * (1 + _STEP * (_FASTER**steps - 1))

    def learn(self, refused: float, until: float) -> None:
        """The server refused at the one time, and had everybody pause until the other."""
        if not self._passed:
            return
        seconds = max(until - self._since, 0.001)
        self.base = min(_KEPT * self.a_second, self._passed / seconds)
        if until - refused < _SHORT and math.isfinite(self.a_second):
            self.base = max(self.base, self.a_second / 2)
        self.a_second, self._held_up, self.strays = self.base, 0.0, _STRAYS
        self._time = min(seconds, _LONGEST, _EACH * self._passed)


@define(eq=False)
class _Refusal:
    """The first of those for which everybody pauses.

    Attributes:
        at: when it came.
        turn: that of the refused attempt.
        limited: whether it was for a limit, and so were those that followed.
        ours: whether the pause was our own idea, and nothing was refused after it.
        contradicted: whether the server took an attempt that left later.
    """

    at: float
    turn: float
    limited: bool
    ours: bool
    contradicted: bool = False


@define(eq=False)
class Queueing:
    """The seconds that the head of a line has waited for anything but the server, by what it waited for.

    Each call in the line waits for it as well, and none of it counts against a deadline.
    """

    _seconds: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    _waits_for: str | None = None
    _since: float = 0.0

    @contextlib.contextmanager
    def wait(self, what: str, clock: Callable[[], float]) -> Iterator[None]:
        """Count the time in which the head of the line waits."""
        self._waits_for, self._since = what, clock()
        try:
            yield
        finally:
            self._seconds[what] += clock() - self._since
            self._waits_for = None

    def seconds(self, now: float) -> dict[str, float]:
        """Return the seconds so far, including a wait that has not ended."""
        seconds = self._seconds.copy()
        if self._waits_for is not None:
            seconds[self._waits_for] += now - self._since
        return seconds

    def total(self, now: float) -> float:
        """Return the sum of these seconds."""
        return sum(self.seconds(now).values())


@define(eq=False)
class Pace:
    """One operation's pause and rate; all times are the event loop's, in seconds.

    Attributes:
        rate: what it keeps to.
        until: the end of the server's pause.
        total: the seconds of all pauses since an attempt was last let through.
        streak: how many pauses those were.
        refused_at: when the server last refused; a turn that was given before that is void.
        waiting: how many are in line.
        queueing: how long the head of the line has waited for anything but the server.
        permit: whether the rate limiter has granted a permit that no attempt has used yet.
    """

    rate: Rate = field(factory=Rate)
    until: float = 0.0
    total: float = 0.0
    streak: int = 0
    refused_at: float = -math.inf
    waiting: int = 0
    queueing: Queueing = field(factory=Queueing)
    permit: bool = False
    _hurried: int = 0
    _front: asyncio.Lock = field(factory=asyncio.Lock)
    _behind: asyncio.Lock = field(factory=asyncio.Lock)
    _over: asyncio.Event = field(factory=asyncio.Event)
    _refusal: _Refusal | None = None
    _next: float = -math.inf
    _went_first: float = -math.inf
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
        if self._refusal is not None:
            return max(self.until - now, 0.0)
        return max(self.wait(now), 0.0) + ahead / self.rate.a_second

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
        gap = 1 / self.rate.a_second
        if now - self._seen > _IDLE + gap and self._refusal is None:
            self.rate.measure(now)
        if now - max(self._seen, self.until) > _MEMORY:
            self.total, self.streak = 0.0, 0
        self._seen = now
        if self._refusal is not None:
            self._went_first = now
            self._next = now + _PROBE
        elif gap:
            if now < self._next + gap:
                self.rate.rise(gap)
            self._next = max(self._next + gap, now)
        return now

    # --------------------------------------------------------------------------------- what it is told

    def over(self, now: float, turn: float) -> None:
        """An attempt is over: if it was the last that went first, the next may go, but for another pause."""
        if self._refusal is not None and turn == self._went_first:
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
            own: gives the delay if it didn't, or a very brief one, for the pause of this number.
            limited: whether it was a 429.

        Returns:
            the delay.
        """
        news = self.is_news(turn)
        delay = asked or 0.0
        if news and delay < _BRIEF:
            delay = max(delay, own(self.streak + 1))
        if now >= self.until:
            self.streak += 1
        until = max(self.until, now + delay)
        self.total += until - max(self.until, now)
        self.until, self.refused_at, self._seen = until, now, now
        self._recall(_Refusal(now, turn, limited, not asked), news=news)
        return delay

    def _recall(self, refusal: _Refusal, *, news: bool) -> None:
        self.rate.strays -= 1
        if self._refusal is None:
            self._refusal = refusal
            return
        # Of a pause that is for maintenance as well, nobody knows how much is the limit's.
        self._refusal.limited &= refusal.limited
        self._refusal.ours &= not news and refusal.ours

    def passed(self, now: float, turn: float) -> None:
        """The server took an attempt, whatever it answered."""
        refusal, self._seen = self._refusal, now
        if self.is_news(turn):
            self.total, self.streak = 0.0, 0
            if refusal is not None:
                self._go_on(now, refusal)
        elif refusal is not None and turn > refusal.turn:
            refusal.contradicted = True
        self.rate.passed(now)

    def _go_on(self, now: float, refusal: _Refusal) -> None:
        self._refusal = None
        if not self._is_stray(refusal):
            if refusal.limited:
                self.rate.learn(refusal.at, refusal.at if refusal.ours else self.until)
            self.rate.measure(now)
        self._next = now + 1 / self.rate.a_second

    def _is_stray(self, refusal: _Refusal) -> bool:
        # The server took what left behind the refused attempt, or asked for no pause and took the next one.
        told = refusal.contradicted or refusal.ours
        return refusal.limited and told and self.rate.strays >= 0
