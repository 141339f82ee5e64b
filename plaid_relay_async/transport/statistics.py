"""What a client has done so far, in numbers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import define, field, fields, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plaid_relay_async.transport.throttle import QueueingTime


def _read_only(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(numbers))


@frozen(kw_only=True)
class Statistics:
    """What a client has done since it was made, and where it stands: a snapshot that no longer changes.

    Attributes:
        attempts: HTTP requests by how they ended: `"answered"`, `"refused"` (a 429 or planned maintenance),
            `"not_sent"`, `"unknown"` (lost, or an answer that doesn't tell), `"cancelled"`.
        retries: how often which reason led to another attempt: Plaid's `error_code`, or the error's class.
        outcomes: calls by how they ended: `"succeeded"`, `"failed"`, `"unknown"`, `"cancelled"`.
        in_flight: attempts that are under way, each on a connection of its own.
        queued: calls that wait for a pause, a rate, a limiter or a connection.
        connections: how many the pool may have; `None` for a borrowed pool without a limit.
        rates: attempts a second, for each operation that keeps to a rate since Plaid refused some.
        waits: seconds that calls have waited, all together, for a `"pause"` or rate of the server's, the
            `"limiter"`, a `"connection"`, and before another attempt (`"backoff"`).
    """

    attempts: Mapping[str, int] = field(converter=_read_only)
    retries: Mapping[str, int] = field(converter=_read_only)
    outcomes: Mapping[str, int] = field(converter=_read_only)
    in_flight: int
    queued: int
    connections: int | None
    rates: Mapping[str, float] = field(converter=_read_only)
    waits: Mapping[str, float] = field(converter=_read_only)

    def __reduce__(self) -> tuple[Callable[[], Statistics], tuple[()]]:
        # A read-only mapping can be neither pickled nor deep-copied.
        values: dict[str, Any] = {a.name: getattr(self, a.name) for a in fields(type(self))}
        for name, value in values.items():
            values[name] = dict(value) if isinstance(value, Mapping) else value
        return partial(type(self), **values), ()


@define(eq=False)
class Counters:
    """The counters behind `Statistics`."""

    attempts: Counter[str] = field(factory=Counter)
    retries: Counter[str] = field(factory=Counter)
    outcomes: Counter[str] = field(factory=Counter)
    waits: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    in_flight: int = 0
    queued: int = 0

    @contextlib.contextmanager
    def count_wait(self, reason: str) -> Iterator[None]:
        """A call waits for something."""
        clock = asyncio.get_running_loop().time
        since = clock()
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            self.waits[reason] += clock() - since

    @contextlib.contextmanager
    def count_queue_wait(self, queueing_time: QueueingTime) -> Iterator[None]:
        """Count the wait of a call in line: what the head waits for, and the rest as the server's pause."""
        clock = asyncio.get_running_loop().time
        since = clock()
        before = queueing_time.by_reason(since)
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            now = clock()
            pause = now - since
            for what, seconds in queueing_time.by_reason(now).items():
                waited = seconds - before.get(what, 0.0)
                self.waits[what] += waited
                pause -= waited
            self.waits["pause"] += max(pause, 0.0)

    def snapshot(self, *, connections: int | None, rates: Mapping[str, float]) -> Statistics:
        """Give what was counted, as a record that no longer changes."""
        return Statistics(
            attempts=self.attempts,
            retries=self.retries,
            outcomes=self.outcomes,
            in_flight=self.in_flight,
            queued=self.queued,
            connections=connections,
            rates=rates,
            waits=self.waits,
        )
