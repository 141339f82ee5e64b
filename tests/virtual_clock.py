"""An event loop with a virtual clock, on which hours pass in seconds.

Its `time()` hardly advances while a callback or socket is ready, and jumps to the next timer otherwise.
`asyncio.sleep`, timeouts and all timers of aiohttp use it. So client and simulator, in one loop and over real
sockets, run through an hour of pauses without patches: `Simulator(clock=loop.time)`.

While a thread of the loop runs (`asyncio.to_thread`, a DNS lookup), the time doesn't jump. It does jump while
another process or thread is working, so those have no time to act while a timer is pending. `time.monotonic()`
returns the real time.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

# Bytes that the loop sent to itself arrive immediately on an idle machine, and a little later on a busy one.
_POLLS = 3
_GRACE = 0.001  # real seconds to wait for sockets before a long jump, which may be a timeout's
_LONG = 1.0
# Added in each iteration of the loop: without it, a wait for the rest of a rounding error would never end.
_TICK = 1e-9


class _LeapingSelector(selectors.DefaultSelector):
    """A selector that advances the time instead of waiting if no socket is ready."""

    now = 0.0
    threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout == 0:
            self.now += _TICK
            return super().select(0)
        if timeout is None or self.threads:
            return super().select(None)
        for _ in range(_POLLS):
            if events := super().select(0):
                return events
            time.sleep(0)
        if timeout >= _LONG and (events := super().select(_GRACE)):
            return events
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop; its time begins at 0."""

    def __init__(self) -> None:
        self._leaper = _LeapingSelector()
        super().__init__(self._leaper)

    def time(self) -> float:
        return self._leaper.now

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        # Its time limit for the threads is real time.
        self._leaper.threads += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._leaper.threads -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._leaper.threads += 1
        future.add_done_callback(self._thread_is_done)
        return future

    def _thread_is_done(self, _: object) -> None:
        self._leaper.threads -= 1


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as `asyncio.run` does, on the virtual clock; without the slow debug mode of asyncio."""
    with asyncio.Runner(loop_factory=VirtualLoop, debug=False) as runner:
        return runner.run(main)
