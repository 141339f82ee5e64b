"""Client-side rate limiters, for one process or shared by many, and the rate limits that Plaid publishes.

Both limiters use a sliding window log: they store the times of the latest permits of each endpoint, as many
as its limit allows in a window, and grant the next permit when the oldest of them is a window old. So no
window contains more permits than the limit, wherever it starts. A leaky bucket, such as aiolimiter's, allows
nearly twice the count in its first window.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from attrs import Attribute, field, frozen

from plaid_relay_async.config import check_count, check_seconds, check_type
from plaid_relay_async.errors import ConfigurationError, NotSentError
from plaid_relay_async.redaction import strip_init_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from redis.asyncio import Redis

# The default slack as a fraction of the window. It costs 3 % of the rate: 2 s of a minute, enough time for a
# new connection and a lost packet.
_SLACK_FRACTION = 1 / 30
# For a Redis that doesn't respond; `socket_timeout` in the URL replaces it.
_REDIS_TIMEOUT_SECONDS = 5.0


def _validate_limit_count(_: object, attribute: Attribute[int], value: object) -> None:
    check_count(attribute.name, value)


def _validate_period(_: object, attribute: Attribute[float], value: object) -> None:
    check_seconds(attribute.name, value)


@frozen
class RateLimit:
    """A maximum number of attempts in any window of a given length.

    Attributes:
        count: the number of attempts.
        per: the length of the window, in seconds.

    Raises:
        ConfigurationError: `count` isn't a whole number of 1 or more, or `per` isn't above 0.
    """

    count: int = field(validator=_validate_limit_count)
    per: float = field(default=60.0, validator=_validate_period)


# https://plaid.com/docs/errors/rate-limit-exceeded/, as of 2026-03-07: the limits for each client ID. Plaid
# says that they differ between customers and may change. It publishes none for relay.
PLAID_PRODUCTION: Final[Mapping[str, RateLimit]] = MappingProxyType(
    {
        "/asset_report/create": RateLimit(50),
        "/asset_report/get": RateLimit(1_000),
        "/asset_report/pdf/get": RateLimit(50),
        "/asset_report/refresh": RateLimit(50),
    }
)
"""The rate limits that Plaid publishes for production."""

PLAID_SANDBOX: Final[Mapping[str, RateLimit]] = MappingProxyType(
    {
        "/asset_report/create": RateLimit(100),
        "/asset_report/get": RateLimit(1_000),
        "/asset_report/refresh": RateLimit(100),
    }
)
"""The rate limits that Plaid publishes for the sandbox."""


class _Limiter(ABC):
    def __init__(self, limits: Mapping[str, RateLimit], slack: float | None) -> None:
        for endpoint, limit in limits.items():
            check_type(f"the limit of {endpoint}", limit, RateLimit)
            if not endpoint.startswith("/"):
                raise ConfigurationError(f"{endpoint!r} isn't a path such as '/credit/relay/create'")
        if slack is not None:
            check_seconds("slack", slack, zero_allowed=True)
        self._limits = dict(limits)
        self._slack = slack
        self._loop: asyncio.AbstractEventLoop | None = None
        # asyncio.Lock is a FIFO queue. Only its head asks for a permit and sleeps, so a thousand waiting
        # calls cause no more work than one.
        self._queues = {endpoint: asyncio.Lock() for endpoint in self._limits}

    def _window_seconds(self, limit: RateLimit) -> float:
        return limit.per + (limit.per * _SLACK_FRACTION if self._slack is None else self._slack)

    async def acquire(self, endpoint: str, /) -> None:
        """Wait for a permit for one attempt; waiting calls get their permits in order of arrival.

        Args:
            endpoint: the path, such as `/credit/relay/create`. A path without a limit never waits.

        Raises:
            ConfigurationError: the limiter was used in another event loop before.
            NotSentError: Redis, which stores the permits of a `RedisLimiter`, is unavailable.
        """
        self._check_loop()
        limit = self._limits.get(endpoint)
        if limit is None:
            return
        async with self._queues[endpoint]:
            while (wait := await self._try_acquire(endpoint, limit)) > 0:  # noqa: ASYNC110  # only time makes a permit available
                await asyncio.sleep(wait)

    def _check_loop(self) -> None:
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is not running:
            raise ConfigurationError("this limiter belongs to another event loop: create one for each loop")

    @abstractmethod
    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        """Take a permit and return 0, or return the seconds until one may be available."""


class InProcessLimiter(_Limiter):
    """A rate limiter for all clients that share this object, in one event loop and by its clock.

    Args:
        limits: the limit of each path. Paths without a limit never wait.
        slack: seconds by which windows are longer than a limit's `per`, because some attempts take longer
            than others to reach Plaid; default: 1/30 of `per`.

    Raises:
        ConfigurationError: a limit or the slack is invalid.
    """

    def __init__(self, limits: Mapping[str, RateLimit], *, slack: float | None = None) -> None:
        super().__init__(limits, slack)
        self._permit_times = {
            endpoint: deque[float](maxlen=limit.count) for endpoint, limit in limits.items()
        }

    def try_acquire(self, endpoint: str) -> float:
        """Take a permit and return 0, or return the seconds until one may be available, without waiting.

        Raises:
            ConfigurationError: the limiter was used in another event loop before.
        """
        self._check_loop()
        limit = self._limits.get(endpoint)
        return 0.0 if limit is None else self._take_permit(endpoint, limit)

    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        return self._take_permit(endpoint, limit)

    def _take_permit(self, endpoint: str, limit: RateLimit) -> float:
        times, now = self._permit_times[endpoint], asyncio.get_running_loop().time()
        if len(times) == limit.count and (wait := times[0] + self._window_seconds(limit) - now) > 0:
            return wait
        times.append(now)  # a full deque drops its oldest time, which is outside the window
        return 0.0


# A permit is taken by a script, which Redis runs atomically. The clock is that of Redis, because the clients'
# clocks may differ, and the script reads it, because a time that is read before may be older than the latest
# permit. Times are in microseconds, which a Lua number (a double) represents exactly.
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
    """A rate limiter for all processes that share a Redis (version 5 or newer), by the clock of Redis.

    Args:
        limits: the limit of each path, the same in all processes. Paths without a limit never wait.
        redis: a client, which the caller closes; or a URL such as `redis://:password@host:6379/0`, which no
            message shows. With a URL, use the limiter as an async context manager, or await `close`.
        name: the name under which limiters share limits. Plaid counts the requests of each client ID, so use
            another name for each client ID.
        slack: seconds by which windows are longer than a limit's `per`, because some attempts take longer
            than others to reach Plaid; default: 1/30 of `per`.

    Raises:
        ConfigurationError: an argument is invalid, or the extra `redis` isn't installed.
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
        if not hasattr(self._redis, "aclose"):  # redis-py's blocking clients lack it
            raise ConfigurationError(f"redis must be a redis.asyncio.Redis, not {type(redis).__name__}")
        self._take_permit = self._redis.register_script(_TAKE_PERMIT)
        self._name = name

    async def _try_acquire(self, endpoint: str, limit: RateLimit) -> float:
        window = round(self._window_seconds(limit) * 1e6)
        try:
            key = f"plaid_relay_async:{self._name}:{endpoint}"
            return float(await self._take_permit(keys=[key], args=[window, limit.count])) / 1e6
        except Exception as error:  # noqa: BLE001  # of any kind; its text may name the server and a user
            problem = type(error).__name__
        raise NotSentError(f"Redis, which stores the rate limit, is unavailable ({problem})")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client that was created from a URL; a client that the caller passed stays open."""
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
        problem = "redis isn't a URL of Redis, such as redis://host:6379/0"
    # Raised outside the handler, because the text of the original error may contain the password.
    raise ConfigurationError(problem)
