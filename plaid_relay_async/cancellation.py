"""Waits that run to completion although their task is cancelled; the cancellation is raised afterwards.

A drain needs them: a call in flight must be waited for, or its outcome would be unknown. asyncio's
cancellation is edge-triggered: a task is cancelled once for each `cancel()`. AnyIO, on which Starlette and
FastAPI are built, cancels it again at every `await` until its cancel scope is left (level-triggered).
Catching these in a loop would keep a CPU busy; AnyIO's own shield stops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")


def shield_from_anyio() -> contextlib.AbstractContextManager[object]:
    """Return a context manager that shields its body from AnyIO's cancellations, if AnyIO is loaded."""
    scope: Any = getattr(sys.modules.get("anyio"), "CancelScope", None)
    return contextlib.nullcontext() if scope is None else scope(shield=True)


async def wait_until_done(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, whatever its result; raise a cancellation of this task only then."""
    cancellation: asyncio.CancelledError | None = None
    with shield_from_anyio():
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                # Keep the last one. The first one may be that of an AnyIO scope, which catches it. If it were
                # raised, a later cancellation of the task would be lost.
                cancellation = error
    if cancellation is not None:
        raise cancellation


async def run_to_completion(work: Callable[[], Awaitable[T]]) -> T:
    """Call a function in a task and return its result; raise a cancellation of the caller only after that.

    Code that shuts down by cancelling all tasks, as `asyncio.run` does, cancels that task as well. The
    function is then called again, so it must be idempotent.
    """
    cancellation: asyncio.CancelledError | None = None
    while True:
        future = asyncio.ensure_future(work())
        try:
            await wait_until_done(future)
        except asyncio.CancelledError as error:
            cancellation = error
        if not future.cancelled():
            break
    if cancellation is not None:
        # The cancellation takes precedence. Retrieving the exception stops asyncio from reporting it as lost.
        future.exception()
        raise cancellation
    return future.result()


class ShieldedFuture:
    """A future-like object that is done when another future is. Cancelling it doesn't cancel that future.

    `asyncio.shield` does the same with another future, which takes one more iteration of the event loop. This
    object doesn't pass on the result of the other future: the code that awaits that future retrieves it.
    """

    __slots__ = ("_asyncio_future_blocking", "_callbacks", "_cancelled", "_future")
    _asyncio_future_blocking: bool  # by this attribute, a task recognizes what it can wait for

    def __init__(self, future: asyncio.Future[Any] | ShieldedFuture) -> None:
        future._asyncio_future_blocking = False  # noqa: SLF001  # as a task does with what it receives
        self._asyncio_future_blocking = True
        self._future = future
        self._callbacks: dict[Callable[[Any], object], tuple[Callable[[Any], object], Any]] = {}
        self._cancelled: asyncio.CancelledError | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the other future."""
        return self._future.get_loop()

    def done(self) -> bool:
        """Return whether the other future is done."""
        return self._future.done()

    def add_done_callback(
        self, function: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Call a function once the other future is done, or this object is cancelled."""
        callback = partial(self._run_callback, function)
        self._callbacks[function] = callback, context
        self._future.add_done_callback(callback, context=context)

    def remove_done_callback(self, function: Callable[[Any], object]) -> int:
        """Remove a callback, and return the number of times that it was registered."""
        callback, _ = self._callbacks.pop(function, (function, None))
        return self._future.remove_done_callback(callback)

    def cancel(self, msg: object = None) -> bool:
        """Cancel this object and not the other future; return whether a callback was waiting for it."""
        waiting = dict(self._callbacks)
        removed = [waiting[function] for function in waiting if self.remove_done_callback(function)]
        self._cancelled = asyncio.CancelledError(*(() if msg is None else (msg,)))
        for callback, context in removed:
            self.get_loop().call_soon(callback, None, context=context)
        return bool(removed)

    def result(self) -> None:
        """Raise the cancellation, if this object was cancelled."""
        if self._cancelled is not None:
            raise self._cancelled

    def _run_callback(self, function: Callable[[Any], object], _: object) -> None:
        function(self)


class DrainTracker:
    """Counts the drains of a client that are in progress, so that closing the client can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """Count a drain while it is in progress."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def wait_all(self, seconds: float) -> None:
        """Wait until no drain is in progress, for a number of seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
