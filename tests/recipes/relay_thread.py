import asyncio
import threading
from contextlib import AsyncExitStack

from relay import Create, open_relay


class RelayThread:
    """A client and a journal in the event loop of a thread, for callers that aren't async."""

    _create: Create | None = None

    def start(self) -> None:
        self._opening, self._resources = asyncio.Lock(), AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def create(self, report_id: str, partner_id: str) -> str:
        return self._run(self._open_and_create(report_id, partner_id))

    def close(self) -> None:
        self._run(self._resources.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open_and_create(self, report_id: str, partner_id: str) -> str:
        async with self._opening:
            if self._create is None:
                self._create = await self._resources.enter_async_context(open_relay())
        return await self._create(report_id, partner_id)

    def _run(self, coroutine):
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # such as SoftTimeLimitExceeded
            future.cancel()
            raise
