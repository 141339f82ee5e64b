"""Keeps an attempt going although its task is cancelled, for no longer than a drain lasts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from plaid_relay_async.cancellation import Wait, shield

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from plaid_relay_async.cancellation import Drains

T = TypeVar("T")


class InFlight(Protocol):
    """Something that is sent."""

    @property
    def in_flight(self) -> bool:
        """Whether it has left, and its time is not over."""
        ...


class Draining(Generic[T]):
    """Awaits an attempt. Once it has left, a cancellation of the task is kept until the attempt has ended.

    It runs in the task of its caller, as a `yield from` would: a task for each attempt would take longer, and
    a program that cancels all of its tasks would cancel that one as well.

    Args:
        work: makes the attempt.
        attempt: whether it is `in_flight` decides whether a cancellation is kept. When its time is over, the
            watch cancels the task as well.
        seconds: from the first cancellation to the end of the drain, when the attempt is cancelled.
        drains: those of the client.

    Attributes:
        interruption: the cancellation that was kept, which the caller has to raise in the end.
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
        "interruption",
    )

    def __init__(
        self, work: Coroutine[Any, None, T], attempt: InFlight, seconds: float, drains: Drains
    ) -> None:
        self.interruption: asyncio.CancelledError | None = None
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
                waited = work.send(None) if error is None else work.throw(error)
                if self.interruption is not None:
                    error = yield from self._wait_on(waited, None)
                    continue
                try:
                    error = yield waited and Wait(waited)
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
                self.interruption = None  # it came from within the attempt, as a timeout in a middleware does

    def _wait_on(
        self, waited: asyncio.Future[Any] | None, error: asyncio.CancelledError | None
    ) -> Generator[Any, None, asyncio.CancelledError | None]:
        """Wait for what the attempt waits for, and return the error to raise there."""
        while error is None or self._keep(error):
            if waited is not None and waited.done():
                return None
            try:
                with shield():
                    yield waited and Wait(waited)
            except asyncio.CancelledError as another:
                error = another
            else:
                return None
        # With its arguments, by which an AnyIO scope recognizes its own.
        if waited is None or not waited.cancel(*error.args):
            return error
        if self._timer is not None:
            self._timer.cancel()
        # A future is cancelled immediately, and a task takes its time.
        while not waited.done():
            with shield(), contextlib.suppress(asyncio.CancelledError):
                yield Wait(waited)
        return None

    def _keep(self, error: asyncio.CancelledError) -> bool:
        if self._expiring:
            # Before the attempt sees it: a timeout within the attempt looks whether the task is cancelled.
            self._expiring = False
            self._task.uncancel()
        if self._expired or not self._attempt.in_flight:
            return False
        if self.interruption is None:
            self._drain = contextlib.ExitStack()
            self._drain.enter_context(self._drains.one())
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
            self._drain.callback(self._timer.cancel)
        self.interruption = error
        return True

    def _expire(self) -> None:
        self._expired = self._expiring = True
        self._task.cancel()
