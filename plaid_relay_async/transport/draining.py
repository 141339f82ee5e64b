"""Attempts that finish although their task is cancelled, within the drain timeout."""

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
    """An attempt that a drain can wait for."""

    @property
    def in_flight(self) -> bool:
        """Whether the attempt was sent and its deadline has not passed."""
        ...


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
        # `_expired`: the drain has ended. `_expiring`: the cancellation that ends it hasn't reached the task.
        self._expired = self._expiring = False
        self._task: asyncio.Task[Any]
        self._timer: asyncio.TimerHandle | None = None

    def __await__(self) -> Generator[Any, None, T]:
        """Run the attempt to its end, or to the end of the drain."""
        work, task = self._work, asyncio.current_task()
        assert task is not None  # noqa: S101  # the deadline of the attempt requires a task as well
        self._task, cancelling_before = task, task.cancelling()
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
                    error = yield awaited and ShieldedFuture(awaited)  # a task sends None: no error
                except asyncio.CancelledError as cancelled:
                    error = yield from self._wait_on(awaited, cancelled)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            work.close()
            if self._drain is not None:
                self._drain.close()
            if task.cancelling() <= cancelling_before:
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
                    yield awaited and ShieldedFuture(awaited)
            except asyncio.CancelledError as another:
                error = another
            else:
                return None
        # Pass the arguments on: an AnyIO cancel scope recognizes its own cancellation by them.
        if awaited is None or not awaited.cancel(*error.args):
            return error
        if self._timer is not None:
            self._timer.cancel()
        # A future is cancelled immediately; a task may take some iterations of the event loop.
        while not awaited.done():
            with shield_from_anyio(), contextlib.suppress(asyncio.CancelledError):
                yield ShieldedFuture(awaited)
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
