"""Rate limits like Plaid's: a number of requests of one client to one path in a window of time."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from attrs import Attribute, define, field, frozen

from plaid_relay_async.simulator.faults import check_path


def _check_count(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name}: must be an integer of at least 1")


def _check_per(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: must be a number of seconds above 0")


def _check_window(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in ("sliding", "fixed"):
        raise ValueError(f"{attribute.name}: must be 'sliding' or 'fixed'")


def _check_retry_after(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}: must be true or false")  # noqa: TRY004  an invalid limit is always a ValueError


@frozen
class Limit:
    """A rate limit; a request above it gets a 429 and doesn't count.

    Attributes:
        path: the path that it limits; None is every one of Plaid's paths, each counted separately.
        count: the maximum number of requests of one client_id in a window.
        per: the length of the window, in seconds of the simulator's clock.
        window: a `sliding` window ends at each request; a `fixed` one begins at a multiple of `per`.
        retry_after: whether a 429 has a `Retry-After` header, in whole seconds, rounded up.

    Raises:
        ValueError: a field is invalid; the message starts with its name.
    """

    path: str | None = field(default=None, validator=check_path)
    count: int = field(default=50, validator=_check_count)
    per: float = field(default=60.0, validator=_check_per)
    window: str = field(default="sliding", validator=_check_window)
    retry_after: bool = field(default=True, validator=_check_retry_after)


class _Window(Protocol):
    def seconds_to_wait(self, now: float) -> float:
        """Return the seconds until another request is within the limit; 0 if it is now."""
        ...

    def count_request(self, now: float) -> None:
        """Count one admitted request."""
        ...


@define
class _SlidingWindow:
    """The last `per` seconds before each request; it holds the times of at most `count` requests."""

    limit: Limit
    admitted_at: deque[float] = field(factory=deque)

    def seconds_to_wait(self, now: float) -> float:
        while self.admitted_at and self.admitted_at[0] + self.limit.per <= now:
            self.admitted_at.popleft()
        return 0.0 if len(self.admitted_at) < self.limit.count else self.admitted_at[0] + self.limit.per - now

    def count_request(self, now: float) -> None:
        self.admitted_at.append(now)


@define
class _FixedWindow:
    """Windows that begin at the clock's multiples of `per`; it holds one counter."""

    limit: Limit
    ends_at: float = -math.inf
    admitted: int = 0

    def seconds_to_wait(self, now: float) -> float:
        if now >= self.ends_at:
            self.ends_at, self.admitted = (now // self.limit.per + 1) * self.limit.per, 0
        return 0.0 if self.admitted < self.limit.count else self.ends_at - now

    def count_request(self, now: float) -> None:  # noqa: ARG002  only a sliding window needs the time
        self.admitted += 1


_WINDOWS: Mapping[str, Callable[[Limit], _Window]] = {"sliding": _SlidingWindow, "fixed": _FixedWindow}


class RateLimitedError(Exception):
    """A request exceeds a limit.

    Args:
        wait: seconds until a request is within the limits; None if no exceeded limit sends `Retry-After`.
    """

    def __init__(self, wait: float | None) -> None:
        super().__init__(wait)
        self.headers = {} if wait is None else {"Retry-After": str(math.ceil(wait))}


class RequestLimiter:
    """All limits, with the requests counted so far.

    Args:
        limits: the limits; a request must be within all those for its path.
        clock: returns monotonic time in seconds.
    """

    def __init__(self, limits: Iterable[Limit], clock: Callable[[], float]) -> None:
        self._limits = tuple(limits)
        self._clock = clock
        self._windows: dict[tuple[str, str | None], list[_Window]] = {}

    def admit(self, path: str, client_id: str | None) -> None:
        """Admit a request, and count it.

        Raises:
            RateLimitedError: the request exceeds a limit; no limit counts it.
        """
        limits = [limit for limit in self._limits if limit.path in (None, path)]
        if not limits:
            return
        now, windows = self._clock(), self._windows_for(limits, path, client_id)
        # All windows are checked before any counts, so that a rejected request counts in none.
        waits = [window.seconds_to_wait(now) for window in windows]
        if any(waits):
            delays = [wait for limit, wait in zip(limits, waits, strict=True) if wait and limit.retry_after]
            raise RateLimitedError(max(delays, default=None))
        for window in windows:
            window.count_request(now)

    def _windows_for(self, limits: Iterable[Limit], path: str, client_id: str | None) -> list[_Window]:
        if (path, client_id) not in self._windows:
            self._windows[path, client_id] = [_WINDOWS[limit.window](limit) for limit in limits]
        return self._windows[path, client_id]
