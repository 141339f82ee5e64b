"""Rate limits that are kept beforehand, in one process or by many; and those that Plaid publishes.

Both limiters remember the last grants at each endpoint, as many as its limit allows in a window, and give the
next one when the oldest of them is a window old. So no window holds more, wherever it begins. A leaky bucket,
such as aiolimiter's, lets nearly twice the count through in its first window.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, TypeGuard

from attrs import Attribute, field, frozen

from plaid_relay_async.config import check_count, check_type
from plaid_relay_async.errors import ConfigurationError, NotSentError, strip_init_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from redis.asyncio import Redis

# A thirtieth costs 3 % of the rate: 2 s of a minute, which a new connection and a lost packet fit in.
_SLACK_FRACTION = 1 / 30
# For a Redis that doesn't answer; in the URL, `socket_timeout` says otherwise.
_REDIS_TIMEOUT_SECONDS = 5.0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value < inf


def _validate_limit_count(_: object, attribute: Attribute[int], value: object) -> None:
    check_count(attribute.name, value)


def _validate_period(_: object, attribute: Attribute[float], value: object) -> None:
    if not _is_number(value) or value <= 0:
        raise ConfigurationError(f"{attribute.name} must be a number of seconds above 0, not {value!r}")


@frozen
class RateLimit:
    """So many attempts in any window of so many seconds.

    Raises:
        ConfigurationError: `count` isn't a whole number from 1, or `per` isn't above 0.
    """

    count: int = field(validator=_validate_limit_count)
    per: float = field(default=60.0, validator=_validate_period)


# https://plaid.com/docs/errors/rate-limit-exceeded/, as of 2026-03-07: those of a whole client. Plaid says
# that they differ between customers and may change, and lists none for relay.
PLAID_PRODUCTION: Final[Mapping[str, RateLimit]] = MappingProxyType(
    {
        "/asset_report/create": RateLimit(50),
        "/asset_report/get": RateLimit(1_000),
        "/asset_report/pdf/get": RateLimit(50),
        "/asset_report/refresh": RateLimit(50),
    }
)
"""What Plaid publishes for production."""

PLAID_SANDBOX: Final[Mapping[str, RateLimit]] = MappingProxyType(
    {
        "/asset_report/create": RateLimit(100),
        "/asset_report/get": RateLimit(1_000),
        "/asset_report/refresh": RateLimit(100),
    }
)
"""What Plaid publishes for the sandbox."""


class _Limiter(ABC):
    def __init__(self, limits: Mapping[str, RateLimit], slack: float | None) -> None:
        for endpoint, limit in limits.items():
            check_type(f"the limit of {endpoint}", limit, RateLimit)
            if not endpoint.startswith("/"):
                raise ConfigurationError(f"{endpoint!r} isn't a path such as '/credit/relay/create'")
        if slack is not None and (not _is_number(slack) or slack < 0):
            raise ConfigurationError(f"slack must be a number of seconds from 0, not {slack!r}")
        self._limits = dict(limits)
        self._slack = slack
        self._loop: asyncio.AbstractEventLoop | None = None
        # One in a line asks and sleeps, the others wait for their turn: a thousand of them cost nothing.
        self._queues = {endpoint: asyncio.Lock() for endpoint in self._limits}

    def _window_seconds(self, limit: RateLimit) -> float:
        return limit.per + (limit.per * _SLACK_FRACTION if self._slack is None else self._slack)

    async def acquire(self, endpoint: str, /) -> None:
        """Wait until one more attempt at the endpoint may be made; in the order of asking.

        Raises:
            ConfigurationError: it was used in another event loop before.
        """
        self._check_loop()
        limit = self._limits.get(endpoint)
        if limit is None:
            return
        async with self._queues[endpoint]:
            while (wait := await self._try_acquire(endpoint, limit)) > 0:  # noqa: ASYNC110  # time is what it waits for
                await asyncio.sleep(wait)

    def _check_loop(self) -> None:
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is not running:
            raise ConfigurationError("this limiter belongs to another event loop: make one for each")

    @abstractmethod
    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        """Take a grant and give 0, or give the seconds until there may be one."""


class InProcessLimiter(_Limiter):
    """Keeps limits among all that use this very object, in one event loop and by its clock.

    Args:
        limits: of each path; others pass at once.
        slack: seconds by which its windows are longer than a limit's `per`, as some attempts take longer than
            others to reach Plaid; by default a thirtieth of `per`.

    Raises:
        ConfigurationError: the limits or the slack make no sense.
    """

    def __init__(self, limits: Mapping[str, RateLimit], *, slack: float | None = None) -> None:
        super().__init__(limits, slack)
        self._permit_times = {
            endpoint: deque[float](maxlen=limit.count) for endpoint, limit in limits.items()
        }

    def try_acquire(self, endpoint: str) -> float:
        """Take a grant and give 0, or give the seconds until there may be one: for who doesn't wait in line.

        Raises:
            ConfigurationError: it was used in another event loop before.
        """
        self._check_loop()
        limit = self._limits.get(endpoint)
        return 0.0 if limit is None else self._take_permit(endpoint, limit)

    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        return self._take_permit(endpoint, limit)

    def _take_permit(self, endpoint: str, limit: RateLimit) -> float:
        granted, now = self._permit_times[endpoint], asyncio.get_running_loop().time()
        if len(granted) == limit.count and (wait := granted[0] + self._window_seconds(limit) - now) > 0:
            return wait
        granted.append(now)
        return 0.0


# By the clock of Redis, read where the grant is taken: those of the clients may differ, and a time that is
# read before the script runs may be older than the last grant. In microseconds, which a double holds exactly.
_TAKE_PERMIT = """
local time, window, count = redis.call('TIME'), tonumber(ARGV[1]), tonumber(ARGV[2])
local now = time[1] * 1000000 + time[2]
local oldest = redis.call('LINDEX', KEYS[1], -count)
if oldest and oldest + window > now then
    return oldest + window - now
end
redis.call('RPUSH', KEYS[1], now)
redis.call('LTRIM', KEYS[1], -count, -1)
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
return 0
"""


@strip_init_traceback
class RedisLimiter(_Limiter):
    """Keeps limits among all processes that share a Redis of version 5 or newer, by the clock of Redis.

    Args:
        limits: of each path, the same in all processes; others pass at once.
        redis: a client, which stays the caller's to close; or a URL such as `redis://:password@host:6379/0`,
            which shows nowhere. With a URL, use the limiter as an async context manager, or await `close`.
        name: of what is limited. Plaid counts for each client id, so give each a name of its own.
        slack: seconds by which its windows are longer than a limit's `per`, as some attempts take longer than
            others to reach Plaid; by default a thirtieth of `per`.

    Raises:
        ConfigurationError: an argument makes no sense, or the extra `redis` isn't installed.
    """

    def __init__(
        self,
        limits: Mapping[str, RateLimit],
        redis: Redis | str,
        *,
        name: str = "default",
        slack: float | None = None,
    ) -> None:
        super().__init__(limits, slack)
        self._owned = isinstance(redis, str)
        self._redis = _redis_from_url(redis) if isinstance(redis, str) else redis
        if not hasattr(self._redis, "aclose"):  # as the clients that aren't for asyncio
            raise ConfigurationError(f"redis must be a redis.asyncio.Redis, not {type(redis).__name__}")
        self._take_permit = self._redis.register_script(_TAKE_PERMIT)
        self._name = name

    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        window = round(self._window_seconds(limit) * 1e6)
        try:
            key = f"plaid_relay_async:{self._name}:{endpoint}"
            return float(await self._take_permit(keys=[key], args=[window, limit.count])) / 1e6
        except Exception as error:  # noqa: BLE001  # whatever it is; its text may name the server and a user
            problem = type(error).__name__
        raise NotSentError(f"Redis, which keeps the rate limit, couldn't be asked ({problem})")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to a URL; a client of the caller's stays open."""
        if self._owned:
            await self._redis.aclose()


def _redis_from_url(url: str) -> Redis:
    try:
        from redis.asyncio import Redis
    except ImportError:
        raise ConfigurationError(
            "RedisLimiter needs the extra: pip install 'plaid_relay_async[redis]'"
        ) from None
    try:
        return Redis.from_url(
            url, socket_timeout=_REDIS_TIMEOUT_SECONDS, socket_connect_timeout=_REDIS_TIMEOUT_SECONDS
        )
    except (ValueError, TypeError):
        problem = "redis isn't the URL of one, such as redis://host:6379/0"
    raise ConfigurationError(problem)
