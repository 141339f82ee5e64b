"""Who may call just now: the keys, read anew as their file changes, and what is left of each one's rate."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from plaid_relay_async.config import check_type
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.error_responses import GatewayError
from plaid_relay_async.gateway.keys import Key, KeyFile
from plaid_relay_async.limits import InProcessLimiter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.limits import RateLimit

_log = logging.getLogger(__name__)

_FILE_POLL_SECONDS = 0.5  # seconds between two looks at the file


class Callers:
    """The keys as they are now, and what is left of each one's rate.

    Attributes:
        keys: of those who may call.
        trouble: why nobody may.
    """

    def __init__(self, keys: KeyFile | Iterable[Key]) -> None:
        self._file = keys if isinstance(keys, KeyFile) else None
        self.keys: tuple[Key, ...] = () if isinstance(keys, KeyFile) else tuple(keys)
        for key in self.keys:
            check_type("each of keys", key, Key)
        self.problem: str | None = None
        self._fingerprint: object = None
        self._limiters: dict[tuple[str, RateLimit], InProcessLimiter] = {}

    def check_ready(self) -> None:
        """Raise `ConfigurationError` where nobody may call."""
        if self.problem is not None:
            raise ConfigurationError(self.problem)

    async def watch_file(self) -> None:
        """Look at the file for as long as this runs; without, what is revoked would go on."""
        try:
            while True:
                await asyncio.sleep(_FILE_POLL_SECONDS)
                await self.reload_if_changed()
        except Exception as error:
            _log.error("nobody may call any more: looking at the keys ended in %s", type(error).__name__)
            raise
        finally:
            self.keys, self.problem = (), "the gateway is closing"

    def request_reload(self) -> None:
        """Let the next look read the file even if it seems unchanged."""
        # There is only one reader: a second, slower one could put back the keys of an earlier file.
        self._fingerprint = object()

    async def reload_if_changed(self) -> None:
        """Read the file if it has changed."""
        if self._file is None:
            return
        stamp = await asyncio.to_thread(self._file.read_fingerprint)
        if stamp == self._fingerprint:
            return
        self._fingerprint = stamp
        try:
            self.keys, self.problem = await asyncio.to_thread(self._file.read), None
        except ConfigurationError as error:
            self.keys, self.problem = (), str(error.args[0])
            _log.error("nobody may call: %s", self.problem)
        else:
            _log.info("%d keys", len(self.keys))

    def acquire_permit(self, key: Key) -> None:
        """Count a call against the key's rate.

        Raises:
            RefusedError: RATE_LIMIT.
        """
        if key.rate is None:
            return
        limiter = self._limiters.get((key.name, key.rate))
        if limiter is None:
            limiter = self._limiters[key.name, key.rate] = InProcessLimiter({"/": key.rate}, slack=0.0)
        if (wait := limiter.try_acquire("/")) > 0:
            raise GatewayError(error_responses.RATE_LIMIT, headers={"Retry-After": str(math.ceil(wait))})
