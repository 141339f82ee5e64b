"""An attempt that continues although its task is cancelled, for as long as a drain may last."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from plaid_relay_async.cancellation import ShieldedFuture, shield_from_anyio

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from plaid_relay_async.cancellation import DrainTracker

T = TypeVar("T")


class Drainable(Protocol):
    """What a drain has to know about an attempt."""

    @property
    def in_flight(self) -> bool:
        """Whether it has left, and its time is not up."""
        ...


class Draining(Generic[T]):
    """An awaitable that runs an attempt, and keeps a cancellation of the task until a sent attempt has ended.

    It runs in the task of its caller, as a `yield from` would: a task for each attempt would take longer, and
    a program that cancels all of its tasks would cancel that one as well.

    Args:
        work: makes the attempt.
        attempt: cancellations are kept while it is `in_flight`. When its time is up, the watch cancels the
            task as well, and that cancellation isn't kept.
        seconds: from the first cancellation to the end of the drain, when the attempt is cancelled.
        drains: the client's drains, of which this may become one.

    Attributes:
        interruption: the cancellation that was kept. The caller has to raise it in the end.
    """

    __slots__ = (
        "_attempt",
        "_drain",
        "_drains",
        "_expired",
        "_expiring",
        "_seconds",
        "_task",
        "_timer",
        "_work",
        "deferred_cancellation",
    )

    def __init__(
        self, work: Coroutine[Any, None, T], attempt: Drainable, seconds: float, drains: DrainTracker
    ) -> None:
        self.deferred_cancellation: asyncio.CancelledError | None = None
        self._work = work
        self._attempt = attempt
        self._seconds = seconds
        self._drains = drains
        self._drain: contextlib.ExitStack | None = None
        self._expired = self._expiring = False
        self._task: asyncio.Task[Any]
        self._timer: asyncio.TimerHandle | None = None

    def __await__(self) -> Generator[Any, None, T]:
        """Run the attempt to its end, or to the end of the drain."""
        work, task = self._work, asyncio.current_task()
        assert task is not None  # noqa: S101  # as in the span of the attempt
        self._task, before = task, task.cancelling()
        error: BaseException | None = None
        try:
            while True:
                # A traceback with locals quotes the error of a future, which may quote the request.
                waited = None
                waited = work.send(None) if error is None else work.throw(error)
                if self.deferred_cancellation is not None:
                    error = yield from self._wait_on(waited, None)
                    continue
                try:
                    error = yield waited and ShieldedFuture(waited)
                except asyncio.CancelledError as cancelled:
                    error = yield from self._wait_on(waited, cancelled)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            work.close()
            if self._drain is not None:
                self._drain.close()
            if task.cancelling() <= before:
                self.deferred_cancellation = (
                    None  # it came from inside the attempt, as from a middleware's timeout
                )

    def _wait_on(
        self, waited: asyncio.Future[Any] | None, error: asyncio.CancelledError | None
    ) -> Generator[Any, None, asyncio.CancelledError | None]:
        """Wait for what the attempt waits for, and return the error to raise in it."""
        while error is None or self._defer(error):
            if waited is not None and waited.done():
                return None
            try:
                with shield_from_anyio():
                    yield waited and ShieldedFuture(waited)
            except asyncio.CancelledError as another:
                error = another
            else:
                return None
        # With its arguments, by which an AnyIO scope recognizes its own.
        if waited is None or not waited.cancel(*error.args):
            return error
        if self._timer is not None:
            self._timer.cancel()
        # A future is cancelled immediately; a task may take some turns of the event loop.
        while not waited.done():
            with shield_from_anyio(), contextlib.suppress(asyncio.CancelledError):
                yield ShieldedFuture(waited)
        return None

    def _defer(self, error: asyncio.CancelledError) -> bool:
        if self._expiring:
            # Done before the attempt goes on: a timeout inside it checks whether the task is being cancelled.
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
