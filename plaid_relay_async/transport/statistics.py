"""Statistics of a client: counters of attempts, retries, outcomes and waits."""

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

    from plaid_relay_async.transport.queueing import ExcludedTime


def _read_only(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(numbers))


@frozen(kw_only=True)
class Statistics:
    """An immutable snapshot of what a client has done since it was created, and of its current state.

    Attributes:
        attempts: attempts by how they ended: `"definitive"` (a response that shows the result),
            `"declined"` (a 429, planned maintenance, or a gateway that can't reach Plaid), `"not_sent"`,
            `"in_doubt"` (no response, or one that doesn't show the result), `"cancelled"`.
        retries: retries by reason: Plaid's `error_code`, or the name of the error's class.
        outcomes: calls by how they ended: `"succeeded"`, `"failed"`, `"unknown"`, `"cancelled"` and, in a
            batch, `"not_attempted"`. A call whose outcome a journal has already counts as well.
        in_flight: attempts in flight, including those that are still connecting.
        queued: calls that wait for a pause, a rate, a limiter or a connection.
        connections: the maximum number of connections; `None` for a borrowed pool without a limit.
        rates: attempts per second, for each operation that has had an adaptive rate since a 429.
        waits: the seconds that all calls together have waited, by reason: `"pause"` (the server's pause or
            the adaptive rate), `"limiter"`, `"connection"`, and `"backoff"`.
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
        # A mapping proxy can be neither pickled nor deep-copied, so dicts are passed to the constructor.
        values: dict[str, Any] = {a.name: getattr(self, a.name) for a in fields(type(self))}
        for name, value in values.items():
            values[name] = dict(value) if isinstance(value, Mapping) else value
        return partial(type(self), **values), ()


@define(eq=False)
class Counters:
    """The counters behind `Statistics`."""

    attempts: Counter[str] = field(factory=Counter)
    retries: Counter[str] = field(factory=Counter)
    waits: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    in_flight: int = 0
    queued: int = 0

    @contextlib.contextmanager
    def count_wait(self, reason: str) -> Iterator[None]:
        """Count a wait of a call, and its seconds, for a reason."""
        clock = asyncio.get_running_loop().time
        started = clock()
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            self.waits[reason] += clock() - started

    @contextlib.contextmanager
    def count_queue_wait(self, excluded_time: ExcludedTime) -> Iterator[None]:
        """Count the wait of a call in a queue: the waits of the head by reason, the rest as a pause."""
        clock = asyncio.get_running_loop().time
        started = clock()
        waits_before = excluded_time.by_reason(started)
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            now = clock()
            pause = now - started
            for reason, seconds in excluded_time.by_reason(now).items():
                wait = seconds - waits_before.get(reason, 0.0)
                self.waits[reason] += wait
                pause -= wait
            # What remains of the wait is due to the server.
            self.waits["pause"] += max(pause, 0.0)

    def snapshot(
        self, *, outcomes: Mapping[str, int], connections: int | None, rates: Mapping[str, float]
    ) -> Statistics:
        """Return the counters as an immutable snapshot."""
        return Statistics(
            attempts=self.attempts,
            retries=self.retries,
            outcomes=outcomes,
            in_flight=self.in_flight,
            queued=self.queued,
            connections=connections,
            rates=rates,
            waits=self.waits,
        )
