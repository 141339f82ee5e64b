"""Fixtures for the tests on Temporal: a server, a client, a journal in PostgreSQL, and the command that uses them."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from attrs import define, field
from journal_support import KEY
from processes import SIGNALS, ignoring_signals, running_process
from temporal_command import COMMAND, REPORT, CompletedCommand
from temporal_server import TemporalServer
from temporal_support import open_queue, running_worker
from temporalio.client import Client

from plaid_relay_async.cli import main
from plaid_relay_async.temporal import data_converter
from plaid_relay_async.testing import SimulatorThread


@pytest.fixture(scope="session")
def temporal_server():
    """A Temporal server that all tests share; a test that stops it starts it again."""
    server = TemporalServer()
    with ThreadPoolExecutor(1) as thread:  # pytest may already run an event loop in the main thread
        try:
            thread.submit(lambda: asyncio.run(server.start())).result()
            yield server
        finally:
            thread.submit(lambda: asyncio.run(server.remove())).result()


@pytest.fixture(autouse=True)
def _signal_handlers():
    """Restore the handlers of signals after each test, because the command leaves signals ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
async def temporal_client(temporal_server):
    return await Client.connect(temporal_server.address, data_converter=data_converter(KEY))


@pytest.fixture
def task_queue():
    """The name of a task queue that no other test uses."""
    return f"queue-{uuid.uuid4().hex}"


@pytest.fixture
async def journal_url(postgres):
    """The URL of a journal in an empty PostgreSQL database."""
    await postgres.reset()
    return postgres.url


@pytest.fixture
def run_worker(temporal_client, task_queue, client, journal_url):
    """Run a worker for the journal in this process, and drain it after the block."""
    return functools.partial(running_worker, temporal_client, task_queue, client, journal_url)


@pytest.fixture
async def worker(run_worker):
    async with run_worker() as task:
        yield task


@pytest.fixture
def open_run(temporal_client, task_queue, journal_url):
    """Open the journal for a run, and yield a task queue for the run and the journal."""
    return functools.partial(open_queue, temporal_client, task_queue, journal_url)


@pytest.fixture
async def run_x(open_run):
    """A task queue for the run `x`, and its journal."""
    async with open_run() as opened:
        yield opened


@pytest.fixture
def report(plaid):
    return plaid.add_report()


@pytest.fixture(scope="session")
def size(request):
    """A function that takes the sizes of a sample and of the full test, and returns the one to run."""
    full_size = request.config.getoption("--endurance")
    return lambda sample, full: full if full_size else sample


# -------------------------------------------------------------------------------------------- the command


@pytest.fixture
def no_settings(monkeypatch, tmp_path):
    """Use no setting of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PLAID_ENV", raising=False)


@pytest.fixture
def rate(no_settings, capfd):
    """Run `rate`, which only connects to Temporal, in this process."""

    def rate(*args):
        status = main(["rate", *args])
        return CompletedCommand(status, *capfd.readouterr())

    return rate


@define
class Arrivals:
    """The constant latency of a simulator; records when each request arrives, in the order of `requests`."""

    latency: float = 0.0
    times: list[float] = field(factory=list)

    def __call__(self):
        self.times.append(time.monotonic())
        return self.latency

    def between(self, start, end):
        return [each for each in self.times if start <= each < end]


@pytest.fixture
def arrivals():
    return Arrivals()


@pytest.fixture
def limits():
    """The rate limits of the simulator."""
    return []


@pytest.fixture
def simulator(monkeypatch, no_settings, temporal_server, journal_url, arrivals, limits):
    """A simulator, with the environment that selects it, a Temporal server and a journal."""
    with SimulatorThread(reports=[REPORT], latency=arrivals, limits=limits) as simulator:
        variables = {
            "PLAID_BASE_URL": simulator.url,
            "PLAID_CLIENT_ID": "owner",
            "PLAID_SECRET": "canary-secret",
            "PLAID_RELAY_KEY": KEY,
            "PLAID_RELAY_JOURNAL": journal_url,
            "TEMPORAL_ADDRESS": temporal_server.address,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield simulator


@pytest.fixture
def run(simulator, capfd):
    """Run the command in this process."""

    def run(*args):
        status = main([str(word) for word in args])
        return CompletedCommand(status, *capfd.readouterr())

    return run


@pytest.fixture
def start_worker(simulator, task_queue):
    """Start a worker process, and return it once it is ready."""
    with ExitStack() as stack:

        def start_worker(*args):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command = [*COMMAND, "worker", "--task-queue", task_queue, *map(str, args)]
            process = stack.enter_context(running_process(command, **pipes))
            assert (
                process.stdout.readline()
                == f"listening on {task_queue} at {os.environ['TEMPORAL_ADDRESS']}\n"
            )
            return process

        yield start_worker


@pytest.fixture
def bulk_arguments(task_queue, tmp_path):
    """A function that returns the arguments of `bulk` for a number of partners, on the task queue."""

    def bulk_arguments(count, *args):
        path = tmp_path / "partners.csv"
        path.write_text("secondary_client_id\n" + "".join(f"p{number}\n" for number in range(count)))
        options = ("--report-token", REPORT, "--task-queue", task_queue, "--run", "nov")
        return ("bulk", path, *options, *args)

    return bulk_arguments


@pytest.fixture
def bulk(run, bulk_arguments):
    """Run `bulk` in this process."""
    return lambda *args: run(*bulk_arguments(*args))


@pytest.fixture
def start():
    """Start the command in another process, and return it."""
    with ExitStack() as stack:

        def start(*args):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            # A command that has run in this process leaves signals ignored.
            with ignoring_signals():
                process = running_process([*COMMAND, *map(str, args)], **pipes)
                return stack.enter_context(process)

        yield start
