"""Helpers for the tests of the journal."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections import Counter
from contextlib import aclosing, asynccontextmanager, closing

import aiohttp
import aiosqlite
import pytest
from attrs import define, field
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE

from plaid_relay_async import RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.database import Database
from plaid_relay_async.simulator import Fault

# They are constant, because they are parts of test ids.
KEY, OTHER_KEY, THIRD_KEY = (base64.urlsafe_b64encode(bytes([each]) * 32).decode() for each in b"abc")


def random_faults(times):
    """Return faults that lose creations before or after their execution, truncate responses, or decline."""
    return (
        Fault(path=CREATE, rate=0.05, times=times, close=True, when="after"),
        Fault(path=CREATE, rate=0.05, times=times, close=True),
        Fault(path=CREATE, rate=0.05, times=times, truncate=20),
        Fault(path=CREATE, rate=0.05, times=times, status=500, when="after"),
        Fault(path=CREATE, rate=0.05, times=times, status=429),
        Fault(path=CREATE, rate=0.05, times=times, status=400, body={"error_type": "ITEM_ERROR"}),
    )


def creation_requests(report, count=10):
    return RelayCreateRequest.fan_out([report], [f"p{n}" for n in range(count)])


def tokens_per_partner(plaid):
    return Counter(line["secondary_client_id"] for line in plaid.ledger)


@asynccontextmanager
async def engine_for_uri(path, uri):
    """Open an engine for a path that opens a URI of SQLite; wait until its connections are closed.

    SQLAlchemy doesn't wait for the threads of connections that it invalidates, and aiosqlite warns if a
    connection is garbage collected before its thread has closed it.
    """
    connections = []

    def connect():
        connections.append(aiosqlite.connect(uri, uri=True))
        return connections[-1]

    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", async_creator=connect)
    try:
        yield engine
    finally:
        await engine.dispose()
        while any(connection._connection is not None for connection in connections):
            await asyncio.sleep(0.01)


async def read_records(journal, run, **filters):
    async with aclosing(journal.records(run, **filters)) as records:
        return [record async for record in records]


async def execute(url, statement):
    """Execute a statement in the database of a journal, over another connection, and return its rows."""
    address = (
        str(url).replace("postgresql:", "postgresql+psycopg:")
        if "://" in str(url)
        else f"sqlite+aiosqlite:///{url}"
    )
    engine = create_async_engine(address)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(statement)
            return result.all() if result.returns_rows else []
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_database(url, lease=30.0):
    """Open a journal's database without the journal, and close it after the block."""
    database = Database(url, lease)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@define
class CapturingJournal:
    """A journal that keeps the recorders of its calls.

    Attributes:
        journal: the journal that creates the recorders.
        recorders: the recorders, in order.
    """

    journal: Journal
    recorders: list = field(factory=list)

    async def acquire_recorder(self, request, context):
        self.recorders.append(await self.journal.acquire_recorder(request, context))
        return self.recorders[-1]

    @property
    def writer(self):
        """The writer of the opened journal."""
        return self.recorders[-1].coordinator.writer


async def lease_expiry(postgres):
    """Return when the lease of the only worker expires."""
    ((expires_at,),) = await postgres.execute("SELECT expires_at FROM relay_holders")
    return expires_at


@asynccontextmanager
async def cancelled_before_sending(path, batch):
    """Lock the file, abandon the batch while its first intent waits, and release the file after the block."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running = asyncio.ensure_future(batch)
        await asyncio.sleep(0.5)  # its intent waits for the lock
        running.cancel()
        await asyncio.sleep(0.05)
        batch.abandon()
        await asyncio.sleep(0.05)
        yield
        other.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await running


@define(eq=False)
class ResponseGate:
    """Holds back responses that have arrived until the gate is opened.

    Attributes:
        session: the session whose responses are held back.
        gate: set to deliver the responses.
        held: set once a response has arrived.
    """

    session: aiohttp.ClientSession = field(init=False)
    gate: asyncio.Event = field(factory=asyncio.Event)
    held: asyncio.Event = field(factory=asyncio.Event)

    async def hold(self, *_):
        self.held.set()
        await self.gate.wait()


@asynccontextmanager
async def gated_responses():
    """Yield a gate, with a session whose responses it holds back."""
    responses, trace = ResponseGate(), aiohttp.TraceConfig()
    trace.on_request_end.append(responses.hold)
    async with aiohttp.ClientSession(trace_configs=[trace]) as responses.session:
        try:
            yield responses
        finally:
            responses.gate.set()


async def create_in_run(client, report, url, run, count=1, **settings):
    """Create in a run, and return the result and the status of the run."""
    async with Journal(url, run=run, key=KEY, **settings) as journal:
        result = await client.relay.create_many(creation_requests(report, count), journal=journal)
        return result, await journal.status(run)
