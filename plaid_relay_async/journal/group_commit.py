"""Group commit: the items that arrive while one group is processed form the next groups, of limited size.

A transaction costs the same for one row as for many, mostly for making it durable. So the rate of writes
grows with the number of concurrent calls.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
R = TypeVar("R")

# The callers of a large group all continue at the same time, and meet again in the next group, so that
# database and callers take turns instead of working concurrently. Small groups avoid that. Under a sustained
# load, when one group follows another without a pause, an item doesn't wait longer for one large group than
# for several small ones.
_SMALL_GROUP, _LARGE_GROUP = 24, 1024  # items
_GROUPS_BEFORE_LARGE = 16  # consecutive groups

_Group: TypeAlias = "list[tuple[T, asyncio.Future[R]]]"


class GroupExecutor(Generic[T, R]):
    """Accepts items one by one, and processes them in groups, one group at a time.

    Args:
        process: returns the results of a group's items, in their order. It is called again with the same
            items if its task is cancelled, so it must be idempotent.
        process_cancelled: whether an item must be processed even if its future was cancelled. If not, such
            items are dropped when the executor's task is cancelled.
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
        """Add an item, and return a future of its result, which fails with the error of the item's group."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._make_stop_error is not None:
            _set_exception(future, self._make_stop_error())
            return future
        self._pending.append((item, future))
        if self._task is None:
            self._start_task()
        return future

    @property
    def idle(self) -> bool:
        """Whether no item waits or is being processed."""
        return self._task is None

    async def drain(self) -> None:
        """Wait until each item was processed, or has failed."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def stop(self, make_error: Callable[[], Exception]) -> None:
        """Fail each item that wasn't processed yet, and each later one.

        Args:
            make_error: returns a new exception for each item.
        """
        self._make_stop_error = make_error
        if self._task is not None:
            self._task.cancel()

    def _start_task(self) -> None:
        self._task = asyncio.create_task(self._run_groups())
        # This is a callback, because a task that is cancelled before its first step runs none of its own
        # code.
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, _task: asyncio.Task[None]) -> None:
        self._task = None
        self._consecutive_groups //= 2  # a short pause doesn't end a sustained load
        if not self._process_cancelled:
            self._pending = [each for each in self._pending if not each[1].done()]
        if self._make_stop_error is not None:
            pending, self._pending = self._pending, []
            for _, future in pending:
                _set_exception(future, self._make_stop_error())
        elif self._pending:
            self._start_task()

    async def _run_groups(self) -> None:
        while self._pending:
            # While the database fails, all items form one group, because each group may take long to fail.
            size = (
                len(self._pending)
                if self._failing
                else _SMALL_GROUP
                if self._consecutive_groups < _GROUPS_BEFORE_LARGE
                else _LARGE_GROUP
            )
            group, self._pending = self._pending[:size], self._pending[size:]
            self._consecutive_groups += 1
            try:
                await self._run_group(group)
            except asyncio.CancelledError:
                # Code that shuts down by cancelling all tasks cancels this one, too. The next task repeats
                # the group.
                self._pending[:0] = group
                raise

    async def _run_group(self, group: _Group[T, R]) -> None:
        try:
            results = await self._process([item for item, _ in group])
        except Exception as error:  # noqa: BLE001  # each item's future gets it
            self._failing = True
            for _, future in group:
                _set_exception(future, error)
            return
        self._failing = False
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)


def _set_exception(future: asyncio.Future[R], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # so that asyncio doesn't report it if no caller waits
