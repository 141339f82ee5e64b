"""Group commit: what comes while one group is under way makes the next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
R = TypeVar("R")

# Waiters of a large group would go on all at once, and meet again at the next one. But where groups come one
# upon the other all the time, nobody waits for longer in a large one.
_SMALL, _LARGE = 24, 1024
_MANY = 16  # groups in a row

_Group: TypeAlias = "list[tuple[T, asyncio.Future[R]]]"


class Groups(Generic[T, R]):
    """Takes items one by one, and has them seen to in groups, one group after the other.

    Args:
        see_to: returns the result for each item of a group, in their order. It is called again for the same
            group if its task is cancelled, so it must be safe to repeat.
        detached: whether an item is processed even if its future was cancelled.
    """

    def __init__(self, see_to: Callable[[list[T]], Awaitable[list[R]]], *, detached: bool) -> None:
        self._see_to = see_to
        self._detached = detached
        self._waiting: _Group[T, R] = []
        self._running: asyncio.Task[None] | None = None
        self._in_a_row = 0
        self._failing = False
        self._stopped: Callable[[], Exception] | None = None

    def put(self, item: T) -> asyncio.Future[R]:
        """Add an item; return a future that is done once it was processed, and fails if its group does."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._stopped is not None:
            _fail(done, self._stopped())
            return done
        self._waiting.append((item, done))
        if self._running is None:
            self._start()
        return done

    @property
    def idle(self) -> bool:
        """Whether every item was processed."""
        return self._running is None

    async def drain(self) -> None:
        """Wait until every item was processed."""
        while self._running is not None:
            await asyncio.wait([self._running])

    def stop(self, error: Callable[[], Exception]) -> None:
        """Fail every item that wasn't processed yet, and every later one.

        Args:
            error: creates the exception, one for each item.
        """
        self._stopped = error
        if self._running is not None:
            self._running.cancel()

    def _start(self) -> None:
        self._running = asyncio.create_task(self._run())
        # A callback, because a task that is cancelled before its first step runs none of its own code.
        self._running.add_done_callback(self._ended)

    def _ended(self, _running: asyncio.Task[None]) -> None:
        self._running = None
        self._in_a_row //= 2  # a moment without any doesn't mean that few will come
        if not self._detached:
            self._waiting = [each for each in self._waiting if not each[1].done()]
        if self._stopped is not None:
            waiting, self._waiting = self._waiting, []
            for _, done in waiting:
                _fail(done, self._stopped())
        elif self._waiting:
            self._start()

    async def _run(self) -> None:
        while self._waiting:
            # While the database fails, one attempt serves all that wait, because each may take long.
            most = len(self._waiting) if self._failing else _SMALL if self._in_a_row < _MANY else _LARGE
            group, self._waiting = self._waiting[:most], self._waiting[most:]
            self._in_a_row += 1
            try:
                await self._run_one(group)
            except asyncio.CancelledError:
                # Code that shuts down by cancelling all tasks cancels this one too. The next task repeats it.
                self._waiting[:0] = group
                raise

    async def _run_one(self, group: _Group[T, R]) -> None:
        try:
            results = await self._see_to([item for item, _ in group])
        except Exception as error:  # noqa: BLE001  # told to each who waits
            self._failing = True
            for _, done in group:
                _fail(done, error)
            return
        self._failing = False
        for (_, done), result in zip(group, results, strict=True):
            if not done.done():
                done.set_result(result)


def _fail(done: asyncio.Future[R], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # not everybody waits
