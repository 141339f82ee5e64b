"""Cancels tasks at one exact point: the nth time that one of them waits for something."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from typing import Any

from attrs import define, field

_watched: contextvars.ContextVar[Watch] = contextvars.ContextVar("watched")


@define(eq=False)
class Watch:
    """Counts how often a task and those that it makes wait, and cancels at one point.

    Attributes:
        strike_at: the number of that point, from 1.
        late: the cancellation comes when what was waited for has just happened, and not before.
        whole: all of them are cancelled, as when the event loop shuts down, and not the first alone.
        seen: how many points there were.
    """

    strike_at: int
    late: bool
    whole: bool = False
    seen: int = 0
    tasks: list[asyncio.Task[Any]] = field(factory=list)

    @property
    def struck(self) -> bool:
        return self.seen >= self.strike_at

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Make a task of it; tasks that it makes are watched as well, and the simulator's aren't."""
        asyncio.get_running_loop().set_task_factory(_factory)
        context = contextvars.copy_context()
        context.run(_watched.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def waits_for(self, what: asyncio.Future[Any] | None) -> None:
        self.seen += 1
        if self.seen != self.strike_at:
            return
        if not self.late:
            self._strike()
        elif what is None:
            asyncio.get_running_loop().call_soon(self._strike)
        else:
            what.add_done_callback(self._strike)  # called before the task's own, and so before that wakes

    def _strike(self, _: object = None) -> None:
        for task in self.tasks if self.whole else self.tasks[:1]:
            task.cancel()


def _factory(
    loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    where = contextvars.copy_context() if context is None else context
    watch = where.get(_watched)
    if watch is None:
        return asyncio.Task(work, loop=loop, context=where)
    task = asyncio.Task(_Stepped(work, watch), loop=loop, context=where)
    watch.tasks.append(task)
    return task


@define(eq=False)
class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells the watch each time that it waits."""

    work: Coroutine[Any, Any, Any]
    watch: Watch

    def send(self, value: Any) -> Any:
        return self._waits(self.work.send(value))

    def throw(self, *error: Any) -> Any:
        return self._waits(self.work.throw(*error))

    def _waits(self, what: asyncio.Future[Any] | None) -> asyncio.Future[Any] | None:
        self.watch.waits_for(what)
        return what

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.work.__await__()
