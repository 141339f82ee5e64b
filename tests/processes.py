"""Subprocesses of tests: the signals that they inherit, their end, and bounded waits for what they do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def reset_signals() -> None:
    """Stop ignoring and blocking signals, so that tests start as a program does that is started at a terminal.

    A process inherits ignored and blocked signals from its parent, and a shell starts a background job with
    SIGINT ignored.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ignoring_signals(*numbers: int) -> Iterator[None]:
    """Start processes in the block with exactly these of `SIGNALS` ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A new program inherits an ignored signal; a signal with a handler is reset to its default.
        signal.signal(number, signal.SIG_IGN if number in numbers else signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running_process(command: Any, **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program, and kill it if it is still running at the end of the block."""
    with subprocess.Popen(command, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def running_process_async(*command: Any, **settings: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program without blocking the event loop, and kill it if it still runs at the end of the block."""
    process = await asyncio.create_subprocess_exec(*command, **settings)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Block until a condition holds.

    Raises:
        AssertionError: the condition doesn't hold after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


async def wait_until_async(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds, without blocking the event loop.

    Raises:
        TimeoutError: the condition doesn't hold after `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def read_until(
    read: Callable[[], Awaitable[T]], condition: Callable[[T], object] = bool, seconds: float = 60
) -> T:
    """Call an async function until a condition holds for its result, and return that result.

    Raises:
        TimeoutError: the condition doesn't hold after `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition(result := await read()):
            await asyncio.sleep(0.02)
    return result


def open_files(pid: int | str = "self") -> list[str]:
    """Return the targets of a process's open file descriptors, such as `socket:[1234]`.

    The list is empty on a system without /proc.
    """
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has been closed since the listing
            targets.append(str(descriptor.readlink()))
    return targets


def waits_in_kernel(pid: int, name: str) -> Callable[[], bool]:
    """Return a function that checks whether a process handles signals, and waits in a function of the kernel.

    Some kernels hide this function. There, its main thread must have used no CPU time for a second.
    """
    last_time, last_change = "", 0.0

    def waits() -> bool:
        nonlocal last_time, last_change
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        if not int(caught[1], 16) >> signal.SIGTERM - 1 & 1:
            return False
        user_and_system = " ".join(
            Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        )
        if user_and_system != last_time:
            last_time, last_change = user_and_system, time.monotonic()
        return name in Path(f"/proc/{pid}/wchan").read_text() or time.monotonic() - last_change > 1

    return waits


def read_terminal(screen: int) -> bytes:
    """Return what programs write to a pseudoterminal until the last one closes it, and close this side."""
    shown = b""
    with contextlib.suppress(OSError):  # how Linux reports the end
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    return shown


def unread_bytes(pipe: Any) -> int:
    """Return the number of bytes in a pipe that have not been read."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
