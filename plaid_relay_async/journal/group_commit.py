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
_SMALL_GROUP, _LARGE_GROUP = 24, 1024
_GROUPS_BEFORE_LARGE = 16  # groups in a row

_Group: TypeAlias = "list[tuple[T, asyncio.Future[R]]]"


class GroupExecutor(Generic[T, R]):
    """Takes items one by one, and has them seen to in groups, one group after the other.

    Args:
        see_to: returns the result for each item of a group, in their order. It is called again for the same
            group if its task is cancelled, so it must be safe to repeat.
        detached: whether an item is processed even if its future was cancelled.
    """

    def __init__(self, process: Callable[[list[T]], Awaitable[list[R]]], *, process_cancelled: bool) -> None:
        self._process = process
        self._process_cancelled = process_cancelled
        self._pending: _Group[T, R] = []
        self._task: asyncio.Task[None] | None = None
        self._consecutive_groups = 0
        self._failing = False
        self._make_stop_error: Callable[[], Exception] | None = None

    def submit(self, item: T) -> asyncio.Future[R]:
        """Add an item; return a future that is done once it was processed, and fails if its group does."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._make_stop_error is not None:
            _set_exception(done, self._make_stop_error())
            return done
        self._pending.append((item, done))
        if self._task is None:
            self._start_task()
        return done

    @property
    def idle(self) -> bool:
        """Whether every item was processed."""
        return self._task is None

    async def drain(self) -> None:
        """Wait until every item was processed."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def stop(self, make_error: Callable[[], Exception]) -> None:
        """Fail every item that wasn't processed yet, and every later one.

        Args:
            error: creates the exception, one for each item.
        """
        self._make_stop_error = make_error
        if self._task is not None:
            self._task.cancel()

    def _start_task(self) -> None:
        self._task = asyncio.create_task(self._run_groups())
        # A callback, because a task that is cancelled before its first step runs none of its own code.
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, _running: asyncio.Task[None]) -> None:
        self._task = None
        self._consecutive_groups //= 2  # a moment without any doesn't mean that few will come
        if not self._process_cancelled:
            self._pending = [each for each in self._pending if not each[1].done()]
        if self._make_stop_error is not None:
            waiting, self._pending = self._pending, []
            for _, done in waiting:
                _set_exception(done, self._make_stop_error())
        elif self._pending:
            self._start_task()

    async def _run_groups(self) -> None:
        while self._pending:
            # While the database fails, one attempt serves all that wait, because each may take long.
            most = (
                len(self._pending)
                if self._failing
                else _SMALL_GROUP
                if self._consecutive_groups < _GROUPS_BEFORE_LARGE
                else _LARGE_GROUP
            )
            group, self._pending = self._pending[:most], self._pending[most:]
            self._consecutive_groups += 1
            try:
                await self._run_group(group)
            except asyncio.CancelledError:
                # Code that shuts down by cancelling all tasks cancels this one too. The next task repeats it.
                self._pending[:0] = group
                raise

    async def _run_group(self, group: _Group[T, R]) -> None:
        try:
            results = await self._process([item for item, _ in group])
        except Exception as error:  # noqa: BLE001  # told to each who waits
            self._failing = True
            for _, done in group:
                _set_exception(done, error)
            return
        self._failing = False
        for (_, done), result in zip(group, results, strict=True):
            if not done.done():
                done.set_result(result)


def _set_exception(done: asyncio.Future[R], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # not everybody waits
