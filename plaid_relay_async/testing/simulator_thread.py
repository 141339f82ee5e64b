"""A simulator that runs in a thread, so that a test may use any event loop, or none."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

T = TypeVar("T")


class SimulatorThread(Simulator):
    """A `Simulator` whose server runs on its own event loop in another thread.

    Use it as a plain context manager, with the arguments of `Simulator`. Its methods can be called from any
    thread, and `advance` can be awaited in any event loop of asyncio; in a synchronous test, call
    `asyncio.run(plaid.advance(60))`. A test that blocks its thread doesn't block the server.
    """

    _loop: asyncio.AbstractEventLoop
    _thread: threading.Thread

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="plaid-simulator", daemon=True)
        self._thread.start()
        try:
            self.run(self.start())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self.close())
        finally:
            self._end_thread()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the server, and return its result; block until then."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def advance(self, seconds: float = 0.0) -> None:
        """Move the simulator's time forward, as `Simulator.advance` does, from any event loop."""
        _ = self.url  # it raises an error if the server, and so the event loop, doesn't run
        # Receivers may run in the event loop of the caller, so this method must not block it.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(super().advance(seconds), self._loop))
