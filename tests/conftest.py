"""Fixtures and options that all tests share."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

import hypothesis
import pytest
from blockbuster import blockbuster_ctx
from canaries import assert_no_canary
from specification import Specification
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import RelayClient
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgbouncer_server import PgBouncer
    from postgres_server import PostgresServer

# By default an example that takes more than 200 ms fails, which it may do on a busy machine.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# Plaid's client, Schemathesis, the browser and Temporal's client are installed only in the nox sessions that
# test with them.
collect_ignore = [
    "plaid_python",
    "testing/projects",  # test_projects.py runs their tests
    *([] if find_spec("schemathesis") else ["openapi"]),
    *([] if find_spec("playwright") else ["browser"]),
    *([] if find_spec("temporalio") else ["temporal"]),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=3, help="how often tests with random timing are repeated")
    parser.addoption("--partners", type=int, default=1_000, help="number of partners of a bulk run in a test")
    parser.addoption("--endurance", action="store_true", help="run the long proofs at their full size")
    parser.addoption(
        "--specification",
        help="path of Plaid's OpenAPI document; without it, the tests that need it are skipped",
    )


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test if the package makes a blocking call inside the event loop.

    The command line's tests are excluded: the command writes each line of its output file synchronously, before
    it continues.
    """
    if "cli" in request.path.parts or request.node.get_closest_marker("may_block"):
        yield
        return
    with blockbuster_ctx("plaid_relay_async") as detector:
        # If coverage measures threads too, it locks its own data, in any frame of the package.
        detector.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        yield


@pytest.fixture
async def plaid() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(plaid: Simulator) -> AsyncIterator[RelayClient]:
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as relay_client:
        yield relay_client


@pytest.fixture
async def partner(plaid: Simulator) -> AsyncIterator[RelayClient]:
    async with RelayClient(PARTNER, base_url=plaid.url, retry=QUICK) as relay_client:
        yield relay_client


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; a test calls its `reset` first for an empty database."""
    from postgres_server import PostgresServer

    server = PostgresServer()
    with ThreadPoolExecutor(1) as thread:  # pytest may already run an event loop in the main thread
        try:
            thread.submit(lambda: asyncio.run(server.create_cluster())).result()
            yield server
        finally:
            thread.submit(lambda: asyncio.run(server.remove())).result()


@pytest.fixture
async def pgbouncer(postgres: PostgresServer) -> AsyncIterator[PgBouncer]:
    """A PgBouncer in transaction pooling mode, in front of an empty database."""
    from pgbouncer_server import PgBouncer

    await postgres.reset()
    pooler = PgBouncer(postgres)
    try:
        await pooler.start()
        yield pooler
    finally:
        await pooler.remove()


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def openapi(request: pytest.FixtureRequest) -> Specification:
    """Plaid's OpenAPI document, which is not part of this repository."""
    path = request.config.getoption("--specification")
    if path is None:
        pytest.skip("needs --specification PATH, the path of Plaid's OpenAPI document")
    return Specification.load(path)


@pytest.fixture
def every_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, with the package's, aiohttp's, asyncio's and backoff's loggers at DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in ("aiohttp", "asyncio", "backoff", "plaid_relay_async"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.fixture
async def clean_logs(every_log: pytest.LogCaptureFixture) -> AsyncIterator[pytest.LogCaptureFixture]:
    """The log at DEBUG, in asyncio's debug mode; check after the test that it contains no canary."""
    asyncio.get_running_loop().set_debug(True)
    yield every_log
    records = every_log.get_records("call")  # `records` has those of the teardown
    assert_no_canary("\n".join(map(logging.Formatter().format, records)))
