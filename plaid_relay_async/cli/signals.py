"""Handles SIGINT, SIGTERM and SIGHUP in the same way for all commands."""

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

_SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
_HANDLED_SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _SIGHUP)))


class Signals:
    """A context manager that handles signals; outside of the main thread it handles none.

    A signal raises KeyboardInterrupt, except in `deferred`, `run` and `handled_by`. After `handled_by` or the
    context manager has ended, signals are ignored, because the outcomes are known and the exit status must
    report them.

    A signal that was ignored when the process started stays ignored, as `nohup` and shells expect. SIGTERM is
    the exception: if it were ignored too, only SIGKILL could stop a command, and the outcomes of its calls in
    flight would be unknown.

    SIGHUP requests the same as the first of the other signals, and never counts as a second one: a terminal
    that closes may send it twice, and systemd may send it together with SIGTERM.

    Attributes:
        interrupted: whether a signal has raised KeyboardInterrupt.
        delegated: whether signals are passed to the functions of `handled_by`.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.interrupted = False
        self.delegated = False
        self._stop_requests = 0
        self._hung_up = False
        self._on_stop: Callable[[], object] = self._raise_interrupt
        self._reload_due = False
        self._on_reload: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._reset()
        for number in _HANDLED_SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                _set_handler(number, self._receive_signal)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._on_stop = _ignore_signal
        for number in _HANDLED_SIGNALS:
            _set_handler(number, signal.SIG_IGN)

    @property
    def stop_count(self) -> int:
        """The number of requests to stop."""
        return max(self._stop_requests, self._hung_up)

    def _receive_signal(self, number: int, _frame: object) -> None:
        before = self.stop_count
        if number == _SIGHUP:
            self._hung_up = True
        else:
            self._stop_requests += 1
        if self.stop_count > before:
            self._on_stop()

    def _raise_interrupt(self) -> NoReturn:
        self.interrupted = True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for a signal only at the end of the block."""
        self._on_stop = _ignore_signal
        yield
        self._on_stop = self._raise_interrupt
        if self.stop_count:
            self._raise_interrupt()

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in a new event loop.

        The first signal cancels the coroutine. A second one ends the process's wait for its cleanup. While
        the coroutine is inside `handled_by`, signals do neither. If an earlier signal has raised
        KeyboardInterrupt and Python has ignored it, as it does in a finalizer, the coroutine isn't started.

        Returns:
            The result of the coroutine.

        Raises:
            KeyboardInterrupt: a signal has ended the coroutine, or the command before it.
        """
        try:
            if self.interrupted:
                self._raise_interrupt()
            with _wakeup_socket() as woken, asyncio.Runner() as runner:
                if woken is not None:
                    runner.get_loop().add_reader(woken, woken.recv, 4096)
                return runner.run(self._run_cancellable(main))
        except asyncio.CancelledError:
            self._raise_interrupt()
        finally:
            # Python warns about a coroutine that was never started. After a third signal the coroutine is
            # still in its cleanup; closing it resumes the cleanup, which may need the event loop and then
            # fails.
            with contextlib.suppress(RuntimeError):
                main.close()

    async def _run_cancellable(self, main: Coroutine[Any, Any, _T]) -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one

        def cancel() -> None:
            if self._on_stop == self._raise_interrupt:  # otherwise `handled_by` was entered meanwhile
                task.cancel()

        def request_cancel() -> None:
            self._on_stop = self._raise_interrupt
            loop.call_soon_threadsafe(cancel)

        self._on_stop = request_cancel
        try:
            return await main
        finally:
            if self._on_stop is request_cancel:
                self._on_stop = self._raise_interrupt

    @contextlib.contextmanager
    def handled_by(
        self, on_stop: Callable[[], object], on_reload: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Call functions in the running event loop for signals, including those that were received before.

        Args:
            on_stop: called for each request to stop.
            on_reload: called for each SIGHUP after `reload_on_sighup`.
        """
        loop = asyncio.get_running_loop()
        self._on_stop = lambda: loop.call_soon_threadsafe(on_stop)
        for _ in range(self.stop_count):
            loop.call_soon(on_stop)
        if on_reload is not None:
            self._on_reload = lambda: loop.call_soon_threadsafe(on_reload)
            if self._reload_due:
                loop.call_soon(on_reload)
        self.delegated = True
        try:
            yield
        finally:
            self.delegated = False
            self._on_stop = _ignore_signal
            self._on_reload = None

    def reload_on_sighup(self) -> None:
        """Make SIGHUP request a reload instead of a stop, even if it was ignored when the process started."""
        if _SIGHUP is not None:  # pragma: no branch  # Windows has none
            _set_handler(_SIGHUP, self._receive_reload)

    def _receive_reload(self, _number: int, _frame: object) -> None:
        self._reload_due = True
        if self._on_reload is not None:
            self._on_reload()


def _ignore_signal() -> None:
    """Ignore a signal."""


def _set_handler(number: int, handler: Any) -> None:
    with contextlib.suppress(ValueError):  # outside of the main thread handlers can't be set
        signal.signal(number, handler)


@contextlib.contextmanager
def _wakeup_socket() -> Iterator[socket.socket | None]:
    """Yield a socket that becomes readable at each signal, or None outside of the main thread.

    Python runs a signal handler in the main thread. A signal that another thread receives, or that arrives
    just before the event loop starts to wait, doesn't end that wait. The byte that Python writes to this
    socket does.
    """
    if os.name == "nt":  # pragma: no cover  # asyncio sets up its own socket there
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
