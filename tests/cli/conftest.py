"""Fixtures: a simulator in a thread, and the command, run in this process or in another one."""

import asyncio
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from processes import SIGNALS

from plaid_relay_async.cli import main
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.simulator import Simulator

REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"


@contextmanager
def run_simulator(plaid: Simulator) -> Iterator[Simulator]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(plaid.start(), loop).result()
    try:
        yield plaid
    finally:
        asyncio.run_coroutine_threadsafe(plaid.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def default_signal_handlers() -> Iterator[None]:
    """Install Python's default signal handlers, and restore pytest's afterwards.

    The tests may run in the background, where signals are ignored. The command leaves signals ignored,
    because its process is about to exit.
    """
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    with default_signal_handlers():
        yield


@pytest.fixture(autouse=True)
def rescued(tmp_path_factory, monkeypatch) -> Callable[..., list[dict[str, Any]]]:
    """Set a state directory for this test; return a function that reads its rescue files."""
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))

    def rescued(*folders: Path) -> list[dict[str, Any]]:
        rows = []
        for folder in (state / "plaid_relay_async", *folders):
            for path in sorted(folder.glob("plaid-relay-rescued-*.jsonl")):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                rows += [json.loads(line) for line in path.read_bytes().splitlines()]
        return rows

    return rescued


@frozen
class CompletedCommand:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def count(self, name: str) -> int:
        """Return the number beside a name in the closing table."""
        rows = [line.split() for line in self.err.splitlines() if line.startswith(name)]
        return int(rows[-1][1])


@pytest.fixture
def start(monkeypatch) -> Iterator[Callable[..., Simulator]]:
    """Start a simulator, and set the environment variables that select it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Simulator:
            plaid = stack.enter_context(
                run_simulator(Simulator(**{"reports": [REPORT], "generation_delay": 0.0} | settings))
            )
            monkeypatch.setenv("PLAID_BASE_URL", plaid.url)
            monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
            monkeypatch.setenv("PLAID_SECRET", SECRET)
            monkeypatch.delenv("PLAID_ENV", raising=False)
            return plaid

        yield start


@pytest.fixture
def plaid(start) -> Simulator:
    return start()


@pytest.fixture
def run(capfd) -> Callable[..., CompletedCommand]:
    """Run the command in this process."""

    def run(*args: Any) -> CompletedCommand:
        with default_signal_handlers():
            status = main([str(word) for word in args])
        return CompletedCommand(status, *capfd.readouterr())

    return run


@pytest.fixture
def signal_when() -> Iterator[Callable[..., None]]:
    """Send a signal to this process once a condition holds; by default, once the command handles signals."""
    threads = []

    def signal_when(
        ready: Callable[[], object] = lambda: signals.delegated, number: int = signal.SIGINT
    ) -> None:
        def send() -> None:
            deadline = time.monotonic() + 60
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=send))
        threads[-1].start()

    yield signal_when
    for thread in threads:
        thread.join()


@pytest.fixture
def stdin(monkeypatch) -> Iterator[Callable[..., int]]:
    """Replace standard input with a pipe that holds some text; `closed=False` keeps its writing end open."""
    with ExitStack() as stack:

        def stdin(text: str, *, closed: bool = True) -> int:
            reading, writing = os.pipe()
            file = stack.enter_context(os.fdopen(reading))
            monkeypatch.setattr(sys, "stdin", file)
            os.write(writing, text.encode())
            if closed:
                os.close(writing)
            else:
                stack.callback(os.close, writing)
            return writing

        yield stdin


@pytest.fixture
def type_answer(monkeypatch) -> Iterator[Callable[[str], None]]:
    """Replace standard input with a terminal on which a text was typed."""
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:

        def type_answer(text: str) -> None:
            monkeypatch.setattr(sys, "stdin", stdin)
            os.write(keyboard, text.encode())

        yield type_answer
    os.close(keyboard)


COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the command in another process."""
    with ExitStack() as stack:

        def spawn(*args: Any, **settings: Any) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen([*COMMAND, *map(str, args)], text=True, **pipes | settings)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn


@pytest.fixture
def partners(tmp_path) -> Callable[..., Any]:
    """Create a CSV file with a number of partner IDs."""

    def partners(count: int) -> Any:
        path = tmp_path / "partners.csv"
        path.write_text("secondary_client_id\n" + "".join(f"p{n}\n" for n in range(count)))
        return path

    return partners
