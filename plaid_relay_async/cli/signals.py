"""SIGINT and SIGTERM: from here on they are counted, and told to the loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """As a context manager it takes the place of the handlers; outside of the main thread it hears nothing.

    When it ends all is written, and what comes then is ignored: it must not take the exit status away.

    Attributes:
        count: how many came.
    """

    def __init__(self) -> None:
        self.count = 0
        self._tell: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in _HEEDED:
                signal.signal(number, self._came)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):
            for number in _HEEDED:
                signal.signal(number, signal.SIG_IGN)

    def _came(self, *_: object) -> None:
        self.count += 1
        if self._tell is not None:
            self._tell()

    @contextlib.contextmanager
    def told(self, react: Callable[[], object]) -> Iterator[None]:
        """Have the running loop call a function for each signal, those that came before included."""
        loop = asyncio.get_running_loop()
        self._tell = lambda: loop.call_soon_threadsafe(react)
        for _ in range(self.count):
            loop.call_soon(react)
        try:
            yield
        finally:
            self._tell = None
