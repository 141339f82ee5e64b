"""Fixtures for the tests on Temporal: a server, a client with encrypted payloads, and a journal in PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from journal_support import KEY
from processes import SIGNALS
from temporal_server import TemporalServer
from temporalio.client import Client

from plaid_relay_async.temporal import data_converter


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
def report(plaid):
    return plaid.add_report()


@pytest.fixture(scope="session")
def size(request):
    """A function that takes the sizes of a sample and of the full proof, and returns the one to run."""
    full_size = request.config.getoption("--endurance")
    return lambda sample, full: full if full_size else sample
