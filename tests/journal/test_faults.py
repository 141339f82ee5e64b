"""Faults of a journal's database: a full disk, a connection that is cut anywhere, a damaged file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, closing

import pytest
from journal_support import KEY
from processes import running_process_async
from support import CREATE

from plaid_relay_async import BatchStoppedError, Created, JournalError, RelayCreateRequest, Unknown
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block


def partner_names(count, first="p"):
    return [f"{first}{number}" for number in range(count)]


async def create_each(client, report, url, partners, concurrency=3, **settings):
    """Create for each partner; return the delivered outcomes, and the error that stopped the run."""
    outcomes = []
    try:
        async with Journal(url, run="x", key=KEY, **settings) as journal:
            await client.relay.create_many(
                RelayCreateRequest.fan_out([report], partners),
                journal=journal,
                concurrency=concurrency,
                on_outcome=outcomes.append,
            )
    except BatchStoppedError as stopped:
        return outcomes, stopped.__cause__
    except JournalError as error:
        return outcomes, error
    return outcomes, None


async def check_tokens(plaid, url, outcomes, partners):
    """Check that no pair has two tokens, and that each token is recorded, in doubt, or was delivered."""
    issued = {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}
    assert len(issued) == len(plaid.ledger)
    delivered = {outcome.relay_token for outcome in outcomes if isinstance(outcome, Created)}
    async with Journal(url, run="x", key=KEY) as journal:
        runs = await journal.runs()
        records = {each.secondary_client_id: each async for each in journal.records("x")} if runs else {}
    recorded = {record.relay_token for record in records.values()}
    for partner in issued.keys() & set(partners):
        assert records[partner].outcome in {"created", "unknown"}
        assert issued[partner] in delivered | recorded
    return records


# ------------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a disk of one megabyte, and a function that makes the disk larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", *options, "tmpfs", folder], check=False
        ).returncode

    if os.geteuid() != 0 or mount("size=1m"):
        pytest.skip(
            "only root may mount a small disk; test_a_limit_on_the_file_size_stops_the_run needs no root"
        )
    try:
        yield folder, lambda: mount("remount,size=64m")
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
async def test_a_full_disk_stops_the_run(plaid, client, report, small_disk):
    """The error has the reason, received tokens are delivered, and a repeat finishes with more space."""
    folder, grow = small_disk
    path, partners = folder / "relay.db", partner_names(4_000)
    outcomes, error = await create_each(client, report, path, partners, concurrency=20)
    assert "full" in str(error) or "I/O" in str(error)
    assert 0 < len(plaid.ledger) < 4_000
    assert grow() == 0
    await check_tokens(plaid, path, outcomes, partners)
    again, error = await create_each(client, report, path, partners, concurrency=20)
    assert (error, len(again)) == (None, 4_000)
    await check_tokens(plaid, path, [*outcomes, *again], partners)
    assert sum(isinstance(outcome, Unknown) for outcome in again) <= 20


LIMITED_PROGRAM = """
import asyncio, os, resource, sys
from plaid_relay_async import BatchStoppedError, Created, Credentials, RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal

async def main(url, report, path, key):
    async with RelayClient(Credentials("owner", "o" * 30), base_url=url) as client:
        async with Journal(path, run="x", key=key) as journal:
            hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard_limit))
            requests = RelayCreateRequest.fan_out([report], [f"p{n}" for n in range(4_000)])
            try:
                await client.relay.create_many(
                    requests, concurrency=20, journal=journal, on_outcome=write_token
                )
            except BatchStoppedError as error:
                sys.stderr.write(str(error.__cause__))

def write_token(outcome):
    os.write(1, f"{outcome.relay_token}\\n".encode() if isinstance(outcome, Created) else b"")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_a_limit_on_the_file_size_stops_the_run(plaid, client, report, tmp_path):
    """A process that has a limit on the size of files, such as a quota, behaves as with a full disk."""
    path, partners = tmp_path / "relay.db", partner_names(4_000)
    command = (sys.executable, "-c", LIMITED_PROGRAM, plaid.url, report, path, KEY)
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    async with running_process_async(*command, **pipes) as process:
        tokens, error = await process.communicate()
    assert b"the journal can't be read or written" in error
    assert 0 < len(plaid.ledger) < 4_000
    records = await check_tokens(plaid, path, [], [])
    for entry in plaid.ledger:
        assert records[entry["secondary_client_id"]].outcome in {"created", "unknown"}
        assert entry["relay_token"] in tokens.decode().split()
    outcomes, error = await create_each(client, report, path, partners, concurrency=20)
    assert (error, len(outcomes)) == (None, 4_000)
    await check_tokens(plaid, path, outcomes, [])


# ------------------------------------------------------------------------------ damaged or locked files


async def test_a_damaged_file_is_reported(plaid, client, report, tmp_path):
    """The error says that the file is damaged, and nothing is sent."""
    path, partners = tmp_path / "relay.db", partner_names(300)
    await create_each(client, report, path, partners)
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(path.stat().st_size - 4096 * 3))
    sent = len(plaid.requests)
    _, error = await create_each(client, report, path, partners)
    assert "malformed" in str(error) or "corrupt" in str(error)
    assert len(plaid.requests) == sent


async def test_a_short_lock_is_waited_for(plaid, client, report, tmp_path):
    """A batch continues after another process has locked the file for a short time."""
    path, partners = tmp_path / "relay.db", partner_names(50)
    plaid.fail(Fault(path=CREATE, latency=0.02))
    running = asyncio.ensure_future(create_each(client, report, path, partners))
    while len(plaid.requests) < 5:
        await asyncio.sleep(0.001)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.5)
        assert not running.done()
        other.execute("ROLLBACK")
    outcomes, error = await running
    assert (error, len(outcomes)) == (None, 50)


# ----------------------------------------------------------------------------------------- lock files


def lock_files(path):
    return sorted(path.parent.glob(f"{path.name}-*.lock"))


async def test_a_failed_registration_leaves_no_lock_file(client, report, tmp_path):
    """A process that can't register as a worker leaves no file beside the journal."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY):
        with closing(sqlite3.connect(path)) as other:
            other.execute("ALTER TABLE relay_holders RENAME TO gone")
    async with Journal(path, key=KEY) as journal:
        with pytest.raises(JournalError, match="relay_holders"):
            await client.relay.create([report], "p", journal=journal)
    assert lock_files(path) == []


async def test_a_failed_registration_on_a_server_is_an_error(plaid, client, report, postgres):
    """On PostgreSQL there is no lock file, and nothing is sent."""
    await postgres.reset()
    async with Journal(postgres.url, key=KEY) as journal:
        await postgres.execute("ALTER TABLE relay_holders RENAME TO gone")
        with pytest.raises(JournalError, match="relay_holders"):
            await client.relay.create([report], "p", journal=journal)
    assert not plaid.requests


KILLED_PROGRAM = """
import asyncio, os, signal, sys
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.journal import Journal

async def main(address, report, path, key):
    async with RelayClient(Credentials("owner", "secret-of-the-owner"), base_url=address) as client:
        async with Journal(path, key=key) as journal:
            await client.relay.create([report], "p", journal=journal)
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_lock_files_of_dead_workers_are_deleted(plaid, client, report, tmp_path):
    """The next worker on the file deletes them; those of live workers stay."""
    path = tmp_path / "relay.db"
    for _ in range(2):
        async with running_process_async(
            sys.executable, "-c", KILLED_PROGRAM, plaid.url, report, path, KEY
        ) as process:
            assert await process.wait() == -signal.SIGKILL
    async with Journal(path, run="living", key=KEY) as live:
        await client.relay.create([report], "q", journal=live)
        (mine,) = lock_files(path)
        async with Journal(path, run="other", key=KEY) as other:
            await client.relay.create([report], "r", journal=other)
            assert len(lock_files(path)) == 2
            with pytest.raises(JournalError, match="a process is working on the run"):
                await other.forget("living")
        assert lock_files(path) == [mine]
    assert lock_files(path) == []


async def test_a_lock_file_that_cannot_be_deleted_does_not_prevent_closing(client, report, tmp_path):
    """The journal is closed, and its worker counts as dead."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        (mine,) = lock_files(path)
        mine.unlink()
        mine.mkdir()
    async with Journal(path, key=KEY) as journal:
        assert await journal.forget("default") == 1


# ---------------------------------------------------------------------------- a connection that is cut


class CuttingProxy:
    """A proxy in front of PostgreSQL that cuts the connection of the n-th message from the journal.

    Attributes:
        received: the number of messages from the journal.
        at: the number of the message at which it cuts.
        forwarded: whether the server still gets that message, so that only its response is lost.
    """

    def __init__(self, at, *, forwarded):
        self.received = 0
        self.at = at
        self.forwarded = forwarded

    @asynccontextmanager
    async def in_front_of(self, port):
        self.port = port
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
            yield f"postgresql://postgres@127.0.0.1:{server.sockets[0].getsockname()[1]}/postgres"

    async def serve(self, reader, writer):
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self.port)
        responses = asyncio.create_task(self.forward(upstream, writer))
        with contextlib.suppress(ConnectionError):
            while message := await reader.read(65536):
                self.received += 1
                if self.received == self.at and not self.forwarded:
                    break
                if self.received == self.at:
                    responses.cancel()
                    await asyncio.wait([responses])
                    to_upstream.write(message)
                    await upstream.read(65536)
                    break
                to_upstream.write(message)
                await to_upstream.drain()
        responses.cancel()
        await asyncio.wait([responses])
        for each in (writer, to_upstream):
            each.transport.abort()

    async def forward(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while message := await reader.read(65536):
                writer.write(message)
                await writer.drain()


@pytest.mark.slow
@pytest.mark.parametrize("forwarded", [False, True], ids=["before the server", "before the response"])
async def test_a_connection_that_is_cut_at_each_message(plaid, client, report, postgres, forwarded, rounds):
    """The journal connects again and all pairs are created; if it can't be opened, nothing is sent."""
    await postgres.reset()
    proxy = CuttingProxy(0, forwarded=forwarded)
    async with proxy.in_front_of(postgres.port) as url:
        assert (await create_each(client, report, url, partner_names(5)))[1] is None
    reasons = []
    for at in range(1, proxy.received + 1, max(1, 12 // rounds)):
        await postgres.reset()
        partners, sent = partner_names(5, f"{at}-"), len(plaid.requests)
        async with CuttingProxy(at, forwarded=forwarded).in_front_of(postgres.port) as url:
            outcomes, error = await create_each(client, report, url, partners)
        reasons.append(error)
        if error is None:
            assert [type(outcome) for outcome in outcomes] == [Created] * 5
            assert all(outcome.journalled for outcome in outcomes)
        else:
            assert "the journal can't be read or written" in str(error)
            assert len(plaid.requests) == sent
        await check_tokens(plaid, postgres.url, outcomes, partners)
        again, error = await create_each(client, report, postgres.url, partners)
        assert (error, len(again)) == (None, 5)
        await check_tokens(plaid, postgres.url, again, partners)
    assert None in reasons
    assert any(reasons)


async def test_connections_that_are_ended_at_random(plaid, client, report, postgres):
    """The server ends all connections repeatedly, and the run finishes."""
    await postgres.reset()
    chance = random.Random(3)
    plaid.fail(Fault(path=CREATE, latency=0.02))

    async def end():
        while True:
            await asyncio.sleep(chance.uniform(0.2, 0.6))
            await postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    partners = partner_names(200)
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p0", journal=journal)
        ending = asyncio.create_task(end())
        fanned = RelayCreateRequest.fan_out([report], partners)
        result = await client.relay.create_many(fanned, journal=journal, concurrency=5)
        ending.cancel()
        await asyncio.wait([ending])
    assert result.counts == {"created": 200}
    assert len(plaid.ledger) == 200
    records = await check_tokens(plaid, postgres.url, result.created, partners)
    assert {record.outcome for record in records.values()} == {"created"}


@pytest.mark.slow
async def test_a_server_that_is_not_restarted(plaid, client, report, postgres):
    """No further request is sent, and calls in flight deliver their outcomes without the journal."""
    await postgres.reset()
    plaid.fail(Fault(path=CREATE, latency=0.4))
    partners = partner_names(10)
    running = asyncio.ensure_future(create_each(client, report, postgres.url, partners, lease=1))
    while len(plaid.requests) < 3:
        await asyncio.sleep(0.01)
    await postgres.kill()
    outcomes, error = await running
    await postgres.start()
    assert "the journal can't be read or written" in str(error)
    assert [(type(outcome), outcome.journalled) for outcome in outcomes] == [(Created, False)] * 3
    assert len(plaid.ledger) == 3
    await check_tokens(plaid, postgres.url, outcomes, partners)
    again, error = await create_each(client, report, postgres.url, partners, lease=1)
    assert Counter(type(outcome) for outcome in again) == {Unknown: 3, Created: 7}
