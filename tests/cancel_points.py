"""Cancels tasks at one exact point: the nth time that one of them waits for something."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from typing import Any

from attrs import define, field

_current_point: contextvars.ContextVar[CancelPoint] = contextvars.ContextVar("watched")


@define(eq=False)
class CancelPoint:
    """Counts how often a task and those that it makes wait, and cancels at one point.

    Attributes:
        strike_at: the number of that point, from 1.
        late: the cancellation comes when what was waited for has just happened, and not before.
        whole: all of them are cancelled, as when the event loop shuts down, and not the first alone.
        seen: how many points there were.
    """

    number: int
    after_wait: bool
    all_tasks: bool = False
    count: int = 0
    tasks: list[asyncio.Task[Any]] = field(factory=list)

    @property
    def reached(self) -> bool:
        return self.count >= self.number

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Make a task of it; tasks that it makes are watched as well, and the simulator's aren't."""
        asyncio.get_running_loop().set_task_factory(_task_factory)
        context = contextvars.copy_context()
        context.run(_current_point.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def on_wait(self, future: asyncio.Future[Any] | None) -> None:
        self.count += 1
        if self.count != self.number:
            return
        if not self.after_wait:
            self._cancel()
        elif future is None:
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            future.add_done_callback(self._cancel)  # called before the task's own, and so before that wakes

    def _cancel(self, _: object = None) -> None:
        for task in self.tasks if self.all_tasks else self.tasks[:1]:
            task.cancel()


def _task_factory(
    loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    where = contextvars.copy_context() if context is None else context
    watch = where.get(_current_point)
    if watch is None:
        return asyncio.Task(work, loop=loop, context=where)
    task = asyncio.Task(_WatchedCoroutine(work, watch), loop=loop, context=where)
    watch.tasks.append(task)
    return task


@define(eq=False)
class _WatchedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that tells the watch each time that it waits."""

    coroutine: Coroutine[Any, Any, Any]
    point: CancelPoint

    def send(self, value: Any) -> Any:
        return self._report_wait(self.coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._report_wait(self.coroutine.throw(*error))

    def _report_wait(self, what: asyncio.Future[Any] | None) -> asyncio.Future[Any] | None:
        self.point.on_wait(what)
        return what

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()
