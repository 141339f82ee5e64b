"""Rate limits as Plaid has them: so many requests of one client to one path in a window of time."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from attrs import Attribute, define, field, frozen

from plaid_relay_async.simulator.faults import check_path


def _check_count(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name}: must be an integer from 1")


def _check_per(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: must be a number of seconds above 0")


def _check_window(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in ("sliding", "fixed"):
        raise ValueError(f"{attribute.name}: must be 'sliding' or 'fixed'")


def _check_retry_after(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}: must be true or false")  # noqa: TRY004  one error for a bad limit


@frozen
class Limit:
    """How many requests a client may make to a path; what is more gets a 429 and doesn't count.

    A limit of which any part is nonsense raises ValueError, naming the field.

    Attributes:
        path: Which of Plaid's paths; None is every path, each counted on its own.
        count: So many requests of one client_id are let through in a window.
        per: The window's length, in seconds of the simulator's clock.
        window: `sliding` looks back from each request; `fixed` ones begin at the clock's multiples of `per`.
        retry_after: Whether a refusal says in `Retry-After`, in whole seconds rounded up, when to come again.
    """

    path: str | None = field(default=None, validator=check_path)
    count: int = field(default=50, validator=_check_count)
    per: float = field(default=60.0, validator=_check_per)
    window: str = field(default="sliding", validator=_check_window)
    retry_after: bool = field(default=True, validator=_check_retry_after)


class _Window(Protocol):
    def seconds_to_wait(self, now: float) -> float:
        """Seconds until there is room; 0 if there is."""
        ...

    def count_request(self, now: float) -> None:
        """Count one request."""
        ...


@define
class _SlidingWindow:
    limit: Limit
    entered: deque[float] = field(factory=deque)

    def seconds_to_wait(self, now: float) -> float:
        while self.entered and self.entered[0] + self.limit.per <= now:
            self.entered.popleft()
        return 0.0 if len(self.entered) < self.limit.count else self.entered[0] + self.limit.per - now

    def count_request(self, now: float) -> None:
        self.entered.append(now)


@define
class _FixedWindow:
    limit: Limit
    ends: float = -math.inf
    entered: int = 0

    def seconds_to_wait(self, now: float) -> float:
        if now >= self.ends:
            self.ends, self.entered = (now // self.limit.per + 1) * self.limit.per, 0
        return 0.0 if self.entered < self.limit.count else self.ends - now

    def count_request(self, now: float) -> None:  # noqa: ARG002  a fixed window counts and keeps no times
        self.entered += 1


_WINDOWS: Mapping[str, Callable[[Limit], _Window]] = {"sliding": _SlidingWindow, "fixed": _FixedWindow}


class RateLimitedError(Exception):
    """A request is one too many.

    Args:
        wait: Seconds until there is room; None where no limit says that.
    """

    def __init__(self, wait: float | None) -> None:
        super().__init__(wait)
        self.headers = {} if wait is None else {"Retry-After": str(math.ceil(wait))}


class RequestLimiter:
    """All limits, and what was let through.

    Args:
        limits: Each is kept for itself; a request needs room in all that concern it.
        clock: Seconds that only grow.
    """

    def __init__(self, limits: Iterable[Limit], clock: Callable[[], float]) -> None:
        self._limits = tuple(limits)
        self._clock = clock
        self._windows: dict[tuple[str, str | None], list[_Window]] = {}

    def admit(self, path: str, client_id: str | None) -> None:
        """Let a request through and count it.

        Raises:
            OverLimitError: There is no room for it, and it isn't counted.
        """
        limits = [limit for limit in self._limits if limit.path in (None, path)]
        if not limits:
            return
        now, windows = self._clock(), self._windows_for(limits, path, client_id)
        waits = [window.seconds_to_wait(now) for window in windows]
        if any(waits):
            told = [wait for limit, wait in zip(limits, waits, strict=True) if wait and limit.retry_after]
            raise RateLimitedError(max(told, default=None))
        for window in windows:
            window.count_request(now)

    def _windows_for(self, limits: Iterable[Limit], path: str, client_id: str | None) -> list[_Window]:
        if (path, client_id) not in self._windows:
            self._windows[path, client_id] = [_WINDOWS[limit.window](limit) for limit in limits]
        return self._windows[path, client_id]
