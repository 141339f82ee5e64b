"""Iterates over parsed rows for a batch: those of a file or a list, or those of a pipe, without blocking."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from plaid_relay_async.cli.rows import BadInputError, InputProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_MAX_READ_AHEAD = 64


class FileRows(Generic[T]):
    """Iterates over the rows of a file or a list, without waiting.

    Attributes:
        total: the number of rows.
        problem: the problem that ended the iteration, if any.
        exhausted: whether the input was read to its end, or to that problem.
    """

    def __init__(self, parsed: Iterator[T | InputProblem], total: int) -> None:
        self.total: int | None = total
        self.problem: InputProblem | None = None
        self.exhausted = True
        self._parsed = parsed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self.problem is not None:
            raise StopIteration
        parsed = next(self._parsed)
        if isinstance(parsed, InputProblem):
            self.problem = parsed
            raise BadInputError
        return parsed

    def close(self) -> None:
        """Do nothing: reading a file doesn't wait."""


class PipedRows(Generic[T]):
    """Iterates over the rows of a pipe as a thread reads them. The attributes are those of `FileRows`."""

    def __init__(self, parsed: Iterator[T | InputProblem]) -> None:
        self.total: int | None = None
        self.problem: InputProblem | None = None
        self.exhausted = False
        self._parsed = parsed
        self._closed = False
        self._queue: asyncio.Queue[T | InputProblem | Exception | None] = asyncio.Queue()
        self._free_slots = threading.Semaphore(_MAX_READ_AHEAD)
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._thread is None:
            # Not a thread of the loop's executor: the loop would wait for it when it closes, and so for the
            # pipe.
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._read_in_thread, args=(loop,), daemon=True)
            self._thread.start()
        while not (self.exhausted or (self._closed and self._queue.empty())):
            parsed = await self._queue.get()
            if parsed is not None:
                self._free_slots.release()
                return self._unwrap(parsed)
        raise StopAsyncIteration

    def _unwrap(self, parsed: T | InputProblem | Exception) -> T:
        if not isinstance(parsed, InputProblem | Exception):
            return parsed
        self.exhausted = True
        if isinstance(parsed, InputProblem):
            self.problem = parsed
            raise BadInputError
        if isinstance(parsed, StopIteration):
            raise StopAsyncIteration
        raise parsed

    def _read_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no rows are needed any more
            while True:
                parsed = self._next_parsed()
                self._free_slots.acquire()  # backpressure: read only a few rows ahead of the batch
                loop.call_soon_threadsafe(self._queue.put_nowait, parsed)
                if isinstance(parsed, InputProblem | Exception):
                    return

    def _next_parsed(self) -> T | InputProblem | Exception:
        try:
            return next(self._parsed)
        except Exception as error:  # noqa: BLE001  # it is raised where the rows are awaited
            return error

    def close(self) -> None:
        """Stop waiting for more rows: the iteration ends after the rows that were read."""
        self._closed = True
        self._queue.put_nowait(None)
