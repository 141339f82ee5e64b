"""Cancels tasks at an exact point: the nth time that one of them waits for a future."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from typing import Any

from attrs import define, field

_current_point: contextvars.ContextVar[CancelPoint] = contextvars.ContextVar("current_point")


@define(eq=False)
class CancelPoint:
    """Counts how often a task and the tasks that it creates wait, and cancels at one of these points.

    Attributes:
        number: the number of the point, from 1.
        after_wait: whether to cancel just after the future is done; otherwise before the wait.
        all_tasks: whether to cancel all tasks, as when the event loop shuts down; otherwise only the first one.
        count: the number of waits until now.
        tasks: the tasks.
    """

    number: int
    after_wait: bool
    all_tasks: bool = False
    count: int = 0
    tasks: list[asyncio.Task[Any]] = field(factory=list)

    @property
    def reached(self) -> bool:
        return self.count >= self.number

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Create a task that is watched together with the tasks that it creates; the simulator's aren't watched."""
        asyncio.get_running_loop().set_task_factory(_task_factory)
        context = contextvars.copy_context()
        context.run(_current_point.set, self)
        return asyncio.get_running_loop().create_task(coroutine, context=context)

    def on_wait(self, future: asyncio.Future[Any] | None) -> None:
        self.count += 1
        if self.count != self.number:
            return
        if not self.after_wait:
            self._cancel()
        elif future is None:
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            future.add_done_callback(self._cancel)  # called before the callback that wakes the task

    def _cancel(self, _: object = None) -> None:
        for task in self.tasks if self.all_tasks else self.tasks[:1]:
            task.cancel()


def _task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    task_context = contextvars.copy_context() if context is None else context
    point = task_context.get(_current_point)
    if point is None:
        return asyncio.Task(coroutine, loop=loop, context=task_context)
    task = asyncio.Task(_WatchedCoroutine(coroutine, point), loop=loop, context=task_context)
    point.tasks.append(task)
    return task


@define(eq=False)
class _WatchedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that reports each wait to a `CancelPoint`."""

    coroutine: Coroutine[Any, Any, Any]
    point: CancelPoint

    def send(self, value: Any) -> Any:
        return self._report_wait(self.coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._report_wait(self.coroutine.throw(*error))

    def _report_wait(self, future: asyncio.Future[Any] | None) -> asyncio.Future[Any] | None:
        self.point.on_wait(future)
        return future

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()
