"""Event loops that end, or have all tasks cancelled, at random moments of a batch with a journal."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time

import aiohttp
import pytest
from attrs import define, field
from journal_support import KEY, creation_requests, read_records
from support import CREATE, OWNER, QUICK

from plaid_relay_async import RelayClient
from plaid_relay_async.journal import Journal
from plaid_relay_async.testing import Fault, SimulatorThread

pytestmark = [pytest.mark.may_block, pytest.mark.slow]  # psycopg's and SQLAlchemy's own

TOKEN = re.compile(rb'"relay_token": ?"([^"]+)"')
CLOSED_WITHIN = 60  # seconds, on a busy machine


@pytest.fixture(scope="module")
def plaid():
    """A simulator in a thread, with an event loop that outlives those of the test."""
    faults = [Fault(path=CREATE, latency=latency, rate=0.3, when="after") for latency in (0.001, 0.003, 0.01)]
    with SimulatorThread(faults=faults) as simulator:
        yield simulator


@define
class RecordingContent:
    """The content of a response, which records each token that is read from it."""

    content: aiohttp.StreamReader
    received: set[str]

    async def readany(self):
        return self.record_tokens(await self.content.readany())

    def read_nowait(self):
        return self.record_tokens(self.content.read_nowait())

    def record_tokens(self, piece):
        self.received.update(token.decode() for token in TOKEN.findall(piece))
        return piece

    def __getattr__(self, name):
        return getattr(self.content, name)


@define
class Interruption:
    """A batch that is interrupted some iterations of the event loop after a number of responses.

    Attributes:
        responses: the number of responses before the interruption.
        iterations: the number of iterations of the event loop after them.
        received: the tokens that the process has read.
        delivered: the tokens in outcomes of the batch.
        seconds: the seconds to close the journal, or to end the event loop.
    """

    plaid: SimulatorThread
    url: str
    run: str
    responses: int
    iterations: int
    received: set[str] = field(factory=set)
    delivered: set[str] = field(factory=set)
    seconds: float = 0.0

    @contextlib.asynccontextmanager
    async def client(self):
        received = self.received

        class RecordingResponse(aiohttp.ClientResponse):
            """A response whose tokens are recorded as they are read."""

            async def start(self, connection):
                await super().start(connection)
                self.content = RecordingContent(self.content, received)
                return self

        connector = aiohttp.TCPConnector(limit=10)
        async with aiohttp.ClientSession(connector=connector, response_class=RecordingResponse) as session:
            async with RelayClient(OWNER, base_url=self.plaid.url, retry=QUICK, session=session) as client:
                yield client

    async def batch(self, journal):
        async with self.client() as client:
            fanned = creation_requests(self.plaid.add_report(), 30)
            batch = client.relay.create_many(fanned, journal=journal, concurrency=10)
            try:
                await batch
            finally:
                self.delivered = {outcome.relay_token for outcome in batch.result.created}

    async def wait_for_moment(self, running):
        while len(self.received) < self.responses and not running.done():
            await asyncio.sleep(0)
        for _ in range(self.iterations):
            await asyncio.sleep(0)

    async def main_returns(self):
        """Let the end of `asyncio.run` cancel the task that closes the journal."""

        async def service():
            async with Journal(self.url, run=self.run, key=KEY) as journal:
                await self.batch(journal)

        running = asyncio.ensure_future(service())
        await self.wait_for_moment(running)
        self.seconds = -time.monotonic()
        return running

    async def all_tasks_are_cancelled(self):
        """Cancel all tasks, and close the journal afterwards."""
        async with Journal(self.url, run=self.run, key=KEY) as journal:
            running = asyncio.ensure_future(self.batch(journal))
            await self.wait_for_moment(running)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.seconds = -time.monotonic()

    async def nothing_is_closed(self, journal):
        """Let `asyncio.run` end without closing the journal."""
        await journal.open()
        running = asyncio.ensure_future(self.batch(journal))
        await self.wait_for_moment(running)
        self.seconds = -time.monotonic()
        return running

    async def tokens(self):
        async with Journal(self.url, run=self.run, key=KEY) as journal:
            if self.run not in {run.name for run in await journal.runs()}:
                return set()  # it was interrupted before it accepted a request
            return {record.relay_token for record in await read_records(journal, self.run)}


def run_interrupted(plaid, url, rng, number):
    """Interrupt a batch at a random moment, and check that each received token is recorded."""
    interruption = Interruption(plaid, url, f"run-{number}", rng.randrange(28), rng.randrange(60))
    if number % 2:
        asyncio.run(interruption.main_returns())
    else:
        asyncio.run(interruption.all_tasks_are_cancelled())
    interruption.seconds += time.monotonic()
    recorded = asyncio.run(interruption.tokens())
    assert interruption.received <= recorded, interruption
    assert interruption.delivered <= recorded, interruption
    assert interruption.seconds < CLOSED_WITHIN, interruption
    return len(interruption.received)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_received_tokens_are_recorded(plaid, tmp_path, kind, request, size):
    """Each token that the process has read is in the journal, and closing the journal ends."""
    url = str(tmp_path / "relay.db")
    if kind == "postgresql":
        postgres = request.getfixturevalue("postgres")
        asyncio.run(postgres.reset())
        url = postgres.url
    rng = random.Random(18)
    received = sum(run_interrupted(plaid, url, rng, number) for number in range(size(8, 500)))
    print(f"{kind}: {received} tokens were received, and all of them are recorded")  # noqa: T201
    assert received


def test_a_journal_that_is_never_closed(plaid, tmp_path, size):
    """Received tokens are recorded even if only the end of `asyncio.run` waits for it; no task remains."""
    url = str(tmp_path / "relay.db")
    rng = random.Random(19)
    for number in range(size(4, 100)):
        interruption = Interruption(plaid, url, f"run-{number}", rng.randrange(28), rng.randrange(60))
        journal = Journal(url, run=interruption.run, key=KEY)
        with asyncio.Runner() as runner:
            runner.run(interruption.nothing_is_closed(journal))
            loop = runner.get_loop()
        assert not asyncio.all_tasks(loop)
        recorded = asyncio.run(interruption.tokens())
        asyncio.run(journal.close())
        assert interruption.received <= recorded, interruption
