"""What the tests rely on to start processes: signals as at a terminal, and an end whatever happens."""

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


def test_signals_that_were_ignored_or_blocked_at_the_start():
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
    """A test that fails leaves no process, which would fail the next one."""
    with pytest.raises(ZeroDivisionError), running_process(SLEEP) as process:
        1 / 0  # noqa: B018
    assert process.returncode < 0


async def test_a_process_beside_the_event_loop_ends_with_its_block():
    """The same for asyncio's processes, with all of their pipes."""
    pipe = asyncio.subprocess.PIPE
    with pytest.raises(ZeroDivisionError):
        async with running_process_async(*SLEEP, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            1 / 0  # noqa: B018
    assert process.returncode < 0


def test_open_files():
    """A descriptor that is closed while the list is read is left out of it."""
    reading, writing = os.pipe()
    targets = {each for each in open_files() if each.startswith("pipe:")}
    os.close(reading)
    os.close(writing)
    assert len(targets - {each for each in open_files() if each.startswith("pipe:")}) == 1
