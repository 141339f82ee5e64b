"""A simulator in a thread of its own, and the command run in this process or in another."""

import asyncio
import json
import os
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
def running(plaid: Simulator) -> Iterator[Simulator]:
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
def own_handlers() -> Iterator[None]:
    """Begin with no signal ignored, as the tests may run in the background, and put pytest's handlers back.

    The command leaves signals ignored, for its process is about to end.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    with own_handlers():
        yield


@pytest.fixture(autouse=True)
def rescued(tmp_path_factory, monkeypatch) -> Callable[..., list[dict[str, Any]]]:
    """A state directory for this test, and a function that returns the rows of the rescue files in folders."""
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
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def count(self, name: str) -> int:
        """The number beside a name in the table."""
        rows = [line.split() for line in self.err.splitlines() if line.startswith(name)]
        return int(rows[-1][1])


@pytest.fixture
def start(monkeypatch) -> Iterator[Callable[..., Simulator]]:
    """Start a simulator, and point the environment to it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Simulator:
            plaid = stack.enter_context(
                running(Simulator(**{"reports": [REPORT], "generation_delay": 0.0} | settings))
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
def run(capfd) -> Callable[..., Done]:
    """Run the command in this process."""

    def run(*words: Any) -> Done:
        with own_handlers():
            status = main([str(word) for word in words])
        return Done(status, *capfd.readouterr())

    return run


@pytest.fixture
def signal_when() -> Iterator[Callable[..., None]]:
    """Send this process a signal once a condition holds: by default, once the command's event loop takes it."""
    threads = []

    def listening() -> bool:
        return signals._on_stop.__qualname__.startswith("Signals.handled_by")

    def signal_when(ready: Callable[[], object] = listening, number: int = signal.SIGINT) -> None:
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
    """Make standard input a pipe that holds some text; `closed=False` keeps it open for more."""
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


COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the command in a process of its own."""
    with ExitStack() as stack:

        def spawn(*words: Any, **settings: Any) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen([*COMMAND, *map(str, words)], text=True, **pipes | settings)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn


@pytest.fixture
def partners(tmp_path) -> Callable[..., Any]:
    """A file of bare partner ids."""

    def partners(count: int) -> Any:
        path = tmp_path / "partners.csv"
        path.write_text("secondary_client_id\n" + "".join(f"p{n}\n" for n in range(count)))
        return path

    return partners
