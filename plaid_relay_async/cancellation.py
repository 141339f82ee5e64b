"""Waits and attempts that finish although their task is cancelled; the cancellation is raised afterwards.

A drain needs them: an attempt in flight must be waited for, or its outcome would be unknown. asyncio's
cancellation is edge-triggered: a task is cancelled once for each `cancel()`. AnyIO, on which Starlette and
FastAPI are built, cancels it again at every `await` until its cancel scope is left (level-triggered).
Catching these in a loop would keep a CPU busy; AnyIO's own shield stops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

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


def wait_shielded(future: asyncio.Future[Any] | None) -> Generator[Any, None, None]:
    """Wait in a task until a future is done; `None` lets other tasks run, and continues afterwards.

    A cancellation of the task ends the wait and doesn't reach the future. `asyncio.shield` also passes on the
    result; here the code that awaits the future retrieves it.
    """
    if future is None:
        yield
        return
    future._asyncio_future_blocking = False  # noqa: SLF001  # as a task does with what it receives
    waiter = future.get_loop().create_future()
    end_wait = partial(_end_wait, waiter)
    future.add_done_callback(end_wait)
    try:
        yield from waiter
    finally:
        future.remove_done_callback(end_wait)
        del future  # a traceback with locals would show it with its error, which may quote the request


def _end_wait(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():  # otherwise it was cancelled
        waiter.set_result(None)


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


class Drainable(Protocol):
    """An attempt that a drain can wait for."""

    @property
    def in_flight(self) -> bool:
        """Whether the attempt was sent and its deadline has not passed."""
        ...


@define(eq=False, repr=False)
class Draining(Generic[T]):
    """An awaitable that runs an attempt, and defers a cancellation of its task while it is in flight.

    It runs in the task of its caller, as a `yield from` would: a task for each attempt would take longer, and
    a program that cancels all of its tasks would cancel that one as well.

    Args:
        work: the coroutine that makes the attempt.
        attempt: cancellations are deferred while it is `in_flight`. When its deadline passes, the deadline
            timer cancels the task as well, and that cancellation isn't deferred.
        seconds: the time from the first cancellation to the end of the drain, when the attempt is cancelled.
        drains: the client's drains; this object registers with them while it drains.

    Attributes:
        deferred_cancellation: the cancellation that was deferred. The caller has to raise it in the end.
    """

    _work: Coroutine[Any, None, T]
    _attempt: Drainable
    _seconds: float
    _drains: DrainTracker
    deferred_cancellation: asyncio.CancelledError | None = field(default=None, init=False)
    _task: Any = field(default=None, init=False)  # a local variable would show its result in tracebacks
    _drain: contextlib.ExitStack | None = field(default=None, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    # `_expired`: the drain has ended. `_expiring`: the cancellation that ends it hasn't reached the task.
    _expired: bool = field(default=False, init=False)
    _expiring: bool = field(default=False, init=False)

    def __await__(self) -> Generator[Any, None, T]:
        """Run the attempt to its end, or to the end of the drain."""
        work, self._task = self._work, asyncio.current_task()
        assert self._task is not None  # noqa: S101  # the deadline of the attempt requires a task as well
        cancelling_before = self._task.cancelling()
        error: BaseException | None = None
        try:
            while True:
                # Reset before each step: a traceback with locals would show the future with its error, which
                # may quote the request.
                awaited = None
                awaited = work.send(None) if error is None else work.throw(error)
                if self.deferred_cancellation is not None:
                    error = yield from self._wait_on(awaited, None)
                    continue
                try:
                    yield from wait_shielded(awaited)
                    error = None
                except asyncio.CancelledError as cancelled:
                    error = yield from self._wait_on(awaited, cancelled)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            work.close()
            if self._drain is not None:
                self._drain.close()
            if self._task.cancelling() <= cancelling_before:
                # The cancellation was that of a timeout inside the attempt, such as a middleware's.
                self.deferred_cancellation = None

    def _wait_on(
        self, awaited: asyncio.Future[Any] | None, error: asyncio.CancelledError | None
    ) -> Generator[Any, None, asyncio.CancelledError | None]:
        """Wait for the future that the attempt waits for, and return the error to raise in the attempt."""
        while error is None or self._defer(error):
            if awaited is not None and awaited.done():
                return None
            try:
                with shield_from_anyio():
                    yield from wait_shielded(awaited)
            except asyncio.CancelledError as another:
                error = another
            else:
                return None
        # As a task does, cancel what the attempt waits for, and let it raise from there. Pass the arguments
        # on: an AnyIO cancel scope recognizes its own cancellation by them.
        if awaited is None or not awaited.cancel(*error.args):
            return error
        if self._timer is not None:  # nothing would undo the cancellation by its expiry any more
            self._timer.cancel()
        # A future is cancelled immediately; a task may take some iterations of the event loop. A cancellation
        # that is suppressed meanwhile isn't lost: `Task.cancelling` counts it, and the first one is raised.
        while not awaited.done():
            with shield_from_anyio(), contextlib.suppress(asyncio.CancelledError):
                yield from wait_shielded(awaited)
        return None

    def _defer(self, error: asyncio.CancelledError) -> bool:
        """Return whether a cancellation is deferred; if it is the first one, start the drain."""
        if self._expiring:
            # The end of the drain has cancelled the task. That is undone before the attempt continues: a
            # timeout inside it checks whether the task is being cancelled.
            self._expiring = False
            self._task.uncancel()
        if self._expired or not self._attempt.in_flight:
            return False
        if self.deferred_cancellation is None:
            self._drain = contextlib.ExitStack()
            self._drain.enter_context(self._drains.track())
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
            self._drain.callback(self._timer.cancel)
        self.deferred_cancellation = error
        return True

    def _expire(self) -> None:
        self._expired = self._expiring = True
        self._task.cancel()
