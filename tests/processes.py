"""Processes of tests: the signals that they start with, their end, and a bounded wait for what they do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def reset_signals() -> None:
    """Ignore and block no signal, as in a program that was started at a terminal.

    A program inherits both from its parent: a shell starts what runs in the background with SIGINT ignored.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ignoring_signals(*numbers: int) -> Iterator[None]:
    """Let processes that are started meanwhile begin with these signals ignored, and with no other of them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A new program inherits what is ignored; what has a handler is reset to its default.
        signal.signal(number, signal.SIG_IGN if number in numbers else signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running_process(command: Any, **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program, which is killed if it is still running at the end of the block, whatever ends the block."""
    with subprocess.Popen(command, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def running_process_async(*command: Any, **settings: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program beside the event loop; it is killed as in `running`."""
    process = await asyncio.create_subprocess_exec(*command, **settings)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


async def wait_until_async(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds, and let the event loop run meanwhile."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def open_files(pid: int | str = "self") -> list[str]:
    """Return what the open descriptors of a process lead to, such as `socket:[1234]`; nothing where it isn't shown."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            targets.append(str(descriptor.readlink()))
    return targets


def waits_in_kernel(pid: int, name: str) -> Callable[[], bool]:
    """Return a function that checks whether a process waits in a function of the kernel.

    A kernel may not show it; then the function waits for a while.
    """
    deadline = time.monotonic() + 10

    def waits() -> bool:
        return name in Path(f"/proc/{pid}/wchan").read_text() or time.monotonic() > deadline

    return waits


def unread_bytes(pipe: Any) -> int:
    """Return how many bytes a pipe holds."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
