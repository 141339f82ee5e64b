"""Who may call just now: the keys, read anew as their file changes, and what is left of each one's rate."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from plaid_relay_async.config import check_type
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import refusals
from plaid_relay_async.gateway.keys import Key, KeyFile
from plaid_relay_async.gateway.refusals import RefusedError
from plaid_relay_async.limits import InProcessLimiter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.limits import RateLimit

_log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.5  # seconds between two looks at the file


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
        self.trouble: str | None = None
        self._stamp: object = None
        self._rates: dict[tuple[str, RateLimit], InProcessLimiter] = {}

    def check(self) -> None:
        """Raise `ConfigurationError` where nobody may call."""
        if self.trouble is not None:
            raise ConfigurationError(self.trouble)

    async def watch(self) -> None:
        """Look at the file for as long as this runs; without, what is revoked would go on."""
        try:
            while True:
                await asyncio.sleep(_LOOK_AGAIN)
                await self.look()
        except Exception as error:
            _log.error("nobody may call any more: looking at the keys ended in %s", type(error).__name__)
            raise
        finally:
            self.keys, self.trouble = (), "the gateway is closing"

    def look_again(self) -> None:
        """Let the next look read the file even if it seems unchanged."""
        # There is only one reader: a second, slower one could put back the keys of an earlier file.
        self._stamp = object()

    async def look(self) -> None:
        """Read the file if it has changed."""
        if self._file is None:
            return
        stamp = await asyncio.to_thread(self._file.stamp)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.keys, self.trouble = await asyncio.to_thread(self._file.read), None
        except ConfigurationError as error:
            self.keys, self.trouble = (), str(error.args[0])
            _log.error("nobody may call: %s", self.trouble)
        else:
            _log.info("%d keys", len(self.keys))

    def take(self, key: Key) -> None:
        """Count a call against the key's rate.

        Raises:
            RefusedError: RATE_LIMIT.
        """
        if key.rate is None:
            return
        limiter = self._rates.get((key.name, key.rate))
        if limiter is None:
            limiter = self._rates[key.name, key.rate] = InProcessLimiter({"/": key.rate}, slack=0.0)
        if (wait := limiter.take("/")) > 0:
            raise RefusedError(refusals.RATE_LIMIT, headers={"Retry-After": str(math.ceil(wait))})
