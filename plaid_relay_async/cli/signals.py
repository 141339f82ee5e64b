"""What SIGINT, SIGTERM and SIGHUP do: one mechanism for all commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

_T = TypeVar("_T")

_HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
_HANDLED = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _HANG_UP)))


class Signals:
    """A context manager that handles signals; outside of the main thread it handles none.

    A signal raises KeyboardInterrupt, except in `run` and in `told`. Once `told` or the context manager has
    ended, signals are ignored: the results are known, and must not lose their exit status.

    What was ignored when the process started stays ignored, as `nohup` and shells expect, with the exception
    of SIGTERM. If SIGTERM were ignored too, only SIGKILL could stop a command, and would leave the outcomes
    of its calls in flight unknown.

    SIGHUP requests the same as the first of the other signals, and never counts as a second one: a terminal
    that closes may send it twice, and systemd may send it together with SIGTERM.

    Attributes:
        interrupted: whether a signal has raised KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.interrupted = False
        self._stops = 0
        self._hung_up = False
        self._react: Callable[[], object] = self._interrupt
        self._reload_due = False
        self._reload: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._reset()
        for number in _HANDLED:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                _handle(number, self._came)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._react = _ignore
        for number in _HANDLED:
            _handle(number, signal.SIG_IGN)

    @property
    def count(self) -> int:
        """How often the command was asked to stop."""
        return max(self._stops, self._hung_up)

    def _came(self, number: int, _frame: object) -> None:
        before = self.count
        if number == _HANG_UP:
            self._hung_up = True
        else:
            self._stops += 1
        if self.count > before:
            self._react()

    def _interrupt(self) -> NoReturn:
        self.interrupted = True
        raise KeyboardInterrupt

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in a new event loop.

        The first signal cancels it, and the second one doesn't wait for its cleanup. Where the coroutine is
        inside `told`, signals do neither.

        Raises:
            KeyboardInterrupt: a signal has ended it.
        """
        try:
            with _wakeup_socket() as woken, asyncio.Runner() as runner:
                if woken is not None:
                    runner.get_loop().add_reader(woken, woken.recv, 4096)
                return runner.run(self._cancellable(main))
        except asyncio.CancelledError:
            self._interrupt()
        finally:
            # If it was never started, Python would warn about it. A third signal leaves it in its cleanup,
            # which may need a loop.
            with contextlib.suppress(RuntimeError):
                main.close()

    async def _cancellable(self, main: Coroutine[Any, Any, _T]) -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one

        def cancel() -> None:
            if self._react == self._interrupt:  # otherwise `told` was entered, and reacts
                task.cancel()

        def react() -> None:
            self._react = self._interrupt
            loop.call_soon_threadsafe(cancel)

        self._react = react
        try:
            return await main
        finally:
            if self._react is react:
                self._react = self._interrupt

    @contextlib.contextmanager
    def told(self, react: Callable[[], object], reload: Callable[[], object] | None = None) -> Iterator[None]:
        """Call a function in the running event loop for each signal, including those that came before.

        Args:
            react: for each request to stop.
            reload: for SIGHUP after `reload_on_hang_up`.
        """
        loop = asyncio.get_running_loop()
        self._react = lambda: loop.call_soon_threadsafe(react)
        for _ in range(self.count):
            loop.call_soon(react)
        if reload is not None:
            self._reload = lambda: loop.call_soon_threadsafe(reload)
            if self._reload_due:
                loop.call_soon(reload)
        try:
            yield
        finally:
            self._react = _ignore
            self._reload = None

    def reload_on_hang_up(self) -> None:
        """Let SIGHUP request a reload instead of a stop from now on, even if it was ignored at the start."""
        if _HANG_UP is not None:  # pragma: no branch  # Windows has none
            _handle(_HANG_UP, self._reload_requested)

    def _reload_requested(self, _number: int, _frame: object) -> None:
        self._reload_due = True
        if self._reload is not None:
            self._reload()


def _ignore() -> None:
    """Ignore a signal."""


def _handle(number: int, handler: Any) -> None:
    with contextlib.suppress(ValueError):  # outside of the main thread handlers can't be set
        signal.signal(number, handler)


@contextlib.contextmanager
def _wakeup_socket() -> Iterator[socket.socket | None]:
    """Yield a socket that becomes readable at each signal, or None outside of the main thread.

    A handler runs only once the main thread continues. A signal that another thread receives, or that arrives
    just before the event loop begins to wait, doesn't end that wait by itself.
    """
    if os.name == "nt":  # pragma: no cover  # there the loop does this itself
        yield None
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        try:
            before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        except ValueError:  # outside of the main thread, which handles no signals
            yield None
            return
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(before)


signals = Signals()
"""The signals of this process."""
