"""Waits that finish although their task is cancelled; the cancellation is raised afterwards.

asyncio cancels a task once for each `cancel()`. AnyIO, on which Starlette and FastAPI are built, cancels it
again at every `await` until its cancel scope is left. To catch those would keep a CPU busy; AnyIO's own
shield stops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

T = TypeVar("T")


def shield() -> contextlib.AbstractContextManager[object]:
    """Return a context manager that keeps AnyIO's cancellations out, if AnyIO is loaded."""
    scope: Any = getattr(sys.modules.get("anyio"), "CancelScope", None)
    return contextlib.nullcontext() if scope is None else scope(shield=True)


async def ended(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, whatever its result; raise a cancellation of this task only then."""
    interruption: asyncio.CancelledError | None = None
    with shield():
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                # The last one: an AnyIO scope must not take a later cancellation of the task for its own.
                interruption = error
    if interruption is not None:
        raise interruption


async def finish(work: Awaitable[T]) -> T:
    """Run something to its end in a task and return its result; raise a cancellation only after that."""
    future = asyncio.ensure_future(work)
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # a cancellation outweighs it
    await ended(future)
    return future.result()


class Drains:
    """The drains of a client that are in progress."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count a drain while it is in progress."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def all(self, seconds: float) -> None:
        """Wait until none is in progress, for a number of seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none.wait()
