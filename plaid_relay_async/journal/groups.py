"""Group commit: what comes while one group is under way makes the next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
R = TypeVar("R")

# Waiters of a large group would go on all at once, and meet again at the next one. But where groups come one
# upon the other all the time, nobody waits for longer in a large one.
_SMALL, _LARGE = 24, 1024
_MANY = 16  # groups in a row


class Groups(Generic[T, R]):
    """Takes items one by one, and has them seen to in groups, one group after the other.

    Args:
        see_to: gives what became of each item of a group, in their order.
    """

    def __init__(self, see_to: Callable[[list[T]], Awaitable[list[R]]]) -> None:
        self._see_to = see_to
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._running: asyncio.Task[None] | None = None
        self._in_a_row = 0

    def put(self, item: T) -> asyncio.Future[R]:
        """Take an item; what this gives is done once it has been seen to, and fails if its group does.

        Whoever stops waiting doesn't take the item back.
        """
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return done

    async def drain(self) -> None:
        """Wait until all items were seen to."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                most = _SMALL if self._in_a_row < _MANY else _LARGE
                group, self._waiting = self._waiting[:most], self._waiting[most:]
                self._in_a_row += 1
                await self._run_one(group)
        finally:
            self._running = None
            self._in_a_row //= 2  # a moment without any is no sign of leisure yet

    async def _run_one(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._see_to([item for item, _ in group])
        except Exception as error:  # noqa: BLE001  # told to each who waits
            for _, done in group:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # not everybody waits
            return
        for (_, done), result in zip(group, results, strict=True):
            if not done.done():
                done.set_result(result)
