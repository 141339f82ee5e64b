"""The helpers that start processes for tests: default signal handling, and no process outlives its block."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import open_files, running_process, running_process_async

RESET = """
import signal
from processes import reset_signals
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
reset_signals()
print([signal.getsignal(each).__name__ for each in (signal.SIGINT, signal.SIGPIPE) if callable(signal.getsignal(each))])
print([signal.getsignal(each).name for each in (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
SLEEP = [sys.executable, "-Ic", "import time; time.sleep(600)"]


def test_signal_handling_is_reset():
    """Tests start with SIGINT, SIGHUP and SIGCHLD handled as usual, and with no signal blocked."""
    command = f"trap '' INT HUP CHLD; exec {shlex.quote(sys.executable)} -c {shlex.quote(RESET)}"
    shown = subprocess.run(
        ["sh", "-c", command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == [
        "['default_int_handler']",
        "['SIG_DFL', 'SIG_DFL', 'SIG_IGN']",
        "set()",
    ]


def test_a_process_ends_with_its_block():
    """A failing test leaves no process that would affect the next test."""
    with pytest.raises(ZeroDivisionError), running_process(SLEEP) as process:
        1 / 0  # noqa: B018
    assert process.returncode < 0


async def test_an_asyncio_process_ends_with_its_block():
    """The same holds for asyncio's processes and all of their pipes."""
    pipe = asyncio.subprocess.PIPE
    with pytest.raises(ZeroDivisionError):
        async with running_process_async(*SLEEP, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            1 / 0  # noqa: B018
    assert process.returncode < 0


def test_open_files():
    """A file descriptor that is closed while the list is read isn't in the list."""
    reading, writing = os.pipe()
    targets = {each for each in open_files() if each.startswith("pipe:")}
    os.close(reading)
    os.close(writing)
    assert len(targets - {each for each in open_files() if each.startswith("pipe:")}) == 1
