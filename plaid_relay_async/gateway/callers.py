"""The keys that are valid now, reloaded when their file changes, and a rate limit for each key."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from plaid_relay_async.config import check_type
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.error_responses import GatewayError
from plaid_relay_async.gateway.key_file import KeyFile
from plaid_relay_async.gateway.keys import Key
from plaid_relay_async.limits import InProcessLimiter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.limits import RateLimit

_log = logging.getLogger(__name__)

_FILE_POLL_SECONDS = 0.5  # between two checks of the file


class Callers:
    """The valid keys and their rate limits.

    Attributes:
        keys: the keys of the admitted callers; empty while the file can't be used.
        problem: why no caller is admitted, or None.
    """

    def __init__(self, keys: KeyFile | Iterable[Key]) -> None:
        self._file = keys if isinstance(keys, KeyFile) else None
        self.keys: tuple[Key, ...] = () if isinstance(keys, KeyFile) else tuple(keys)
        for key in self.keys:
            check_type("each of keys", key, Key)
        self.problem: str | None = None
        self._fingerprint: object = None
        # One reader at a time: a second, slower one could restore the keys of an earlier version.
        self._reading = asyncio.Lock()
        self._limiters: dict[tuple[str, RateLimit], InProcessLimiter] = {}

    async def reload(self) -> None:
        """Read the file even if it seems unchanged.

        Raises:
            ConfigurationError: the file can't be used, or is no longer watched; no caller is admitted.
        """
        self._fingerprint = object()
        await self._reload_if_changed()
        if self.problem is not None:
            raise ConfigurationError(self.problem)

    async def watch_file(self) -> None:
        """Reload the file when it changes, until cancelled.

        When this ends for any reason, no caller is admitted: without it, revoked keys would stay valid.
        """
        try:
            while True:
                await asyncio.sleep(_FILE_POLL_SECONDS)
                await self._reload_if_changed()
        except Exception as error:
            _log.error("no caller is admitted: checking the key file failed with %s", type(error).__name__)
            raise
        finally:
            self._file, self.keys, self.problem = None, (), "the gateway is closing"

    async def _reload_if_changed(self) -> None:
        async with self._reading:
            if self._file is None:
                return
            fingerprint = await asyncio.to_thread(self._file.read_fingerprint)
            if fingerprint == self._fingerprint:
                return
            # The fingerprint is taken before the file is read: a change in between is noticed by the next
            # check.
            self._fingerprint = fingerprint
            try:
                self.keys, self.problem = await asyncio.to_thread(self._file.read), None
            except ConfigurationError as error:
                self.keys, self.problem = (), str(error.args[0])
                _log.error("no caller is admitted: %s", self.problem)
            else:
                _log.info("read the key file: %d keys", len(self.keys))

    def acquire_permit(self, key: Key) -> None:
        """Count a call against the key's rate limit.

        Raises:
            GatewayError: RATE_LIMIT, with Retry-After in seconds.
        """
        if key.rate is None:
            return
        # A limiter belongs to a name and a rate. A key that is added again with another rate gets a new one.
        limiter = self._limiters.get((key.name, key.rate))
        if limiter is None:
            # Slack allows for different transit times to Plaid. Here the calls are counted on arrival.
            limiter = self._limiters[key.name, key.rate] = InProcessLimiter({"/": key.rate}, slack=0.0)
        if (wait := limiter.try_acquire("/")) > 0:
            raise GatewayError(error_responses.RATE_LIMIT, headers={"Retry-After": str(math.ceil(wait))})
