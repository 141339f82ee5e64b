"""An event loop on which hours pass in seconds, for what keeps to the loop's clock.

Its `time()` all but stands still while anything is ready, and jumps to the next timer when nothing is. `asyncio.sleep`,
timeouts, and all timers of aiohttp follow, so client and simulator live through an hour of pauses in one loop,
over real sockets, with nothing patched: `Simulator(clock=loop.time)`.

A thread that the loop started (`asyncio.to_thread`, a name being looked up) holds the time up until it is done.
Nothing else outside of the loop does: another process, or a thread of one's own, has no time at all to act in
while a timer is pending, and `time.monotonic()` is as real as ever.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

# What the loop sent to itself is there at once on an idle machine, and a moment later on one that is not.
_POLLS = 3
_GRACE = 0.001  # real seconds, before a jump so long that a timeout may be at its end
_LONG = 1.0
# For each turn of the loop: whoever waits for what is left by a rounding error would otherwise wait for ever.
_TICK = 1e-9


class _LeapingSelector(selectors.DefaultSelector):
    """Finds the sockets that are ready; if there are none, it lets the time pass instead of waiting."""

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
    """Run it as `asyncio.run` does, on the virtual clock; without asyncio's debug mode, ten times as slow."""
    with asyncio.Runner(loop_factory=VirtualLoop, debug=False) as runner:
        return runner.run(main)
