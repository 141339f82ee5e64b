"""Requests to Temporal's server, which are repeated until it responds."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from attrs import define
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
T = TypeVar("T")

BACKOFF_SECONDS: Final = (0.1, 10.0)  # the first and the longest wait before something is repeated
_SECONDS_BETWEEN_WARNINGS: Final = 60.0
# Errors after which the same request may succeed.
_TRANSIENT: Final = frozenset(
    {
        RPCStatusCode.ABORTED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.UNKNOWN,
    }
)
_logger = logging.getLogger("plaid_relay_async.temporal")


@define(eq=False, repr=False)
class TemporalRequests:
    """Repeats the requests of a task queue, and warns of what its calls wait for.

    Hundreds of calls may wait for the same thing, so there is one warning a minute at most; the others are
    logged with the level INFO.

    Attributes:
        backoff: the seconds of the first and of the longest wait before a request is repeated.
    """

    backoff: tuple[float, float] = BACKOFF_SECONDS
    _next_warning: float = -math.inf

    async def repeat(self, request: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Make a request until the server responds, and return the response.

        Return `None` if the server doesn't have what is requested.

        Raises:
            ConfigurationError: Temporal rejects the request.
        """
        wait, longest_wait = self.backoff
        while True:
            is_namespace_missing = False
            try:
                return await request(*args, **kwargs)
            except asyncio.CancelledError:
                task: Any = asyncio.current_task()
                if task.cancelling():
                    raise
                # temporalio raises this, too, if the server cancels the request.
                status = RPCStatusCode.CANCELLED
            except RPCError as error:
                status = error.status
                details = error.grpc_status.details
                is_namespace_missing = any(each.Is(NamespaceNotFoundFailure.DESCRIPTOR) for each in details)
            if status is RPCStatusCode.NOT_FOUND and not is_namespace_missing:
                return None
            problem = "namespace not found" if is_namespace_missing else status.name.lower().replace("_", " ")
            if status not in _TRANSIENT:
                # The server's text isn't shown, because it may quote the request.
                raise ConfigurationError(
                    f"Temporal has rejected a request: {problem}",
                    advice="Check the namespace of Temporal's client, and its API key or certificate. The "
                    "server must be 1.32 or later.",
                )
            if wait < longest_wait:
                _logger.info("Temporal didn't respond (%s); trying again in %.1f s", problem, wait)
            else:
                self.warn("Temporal doesn't respond (%s); calls wait for it", problem)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest_wait)

    def warn(self, message: str, *args: object) -> None:
        """Log a message: with the level WARNING, or INFO if there was a warning in the last minute."""
        now = asyncio.get_running_loop().time()
        if now < self._next_warning:
            _logger.info(message, *args)
            return
        self._next_warning = now + _SECONDS_BETWEEN_WARNINGS
        _logger.warning(message, *args)
