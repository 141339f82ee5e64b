"""The lock files of a journal in SQLite: their owner, and what they show of a killed process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from journal_support import KEY, read_records
from support import CREATE

from plaid_relay_async import JournalError, OutcomeUnknownError
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # SQLAlchemy's own

NOBODY = 65534  # the owner of the journal if the tests run as root; otherwise their user is the owner

WORKER = """
import asyncio, os, sys
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.journal import Journal

async def main(address, report, path, key, forks):
    async with RelayClient(Credentials("owner", "secret-of-the-owner"), base_url=address) as client:
        async with Journal(path, run="killed", key=key) as journal:
            await client.relay.create([report], "first", journal=journal)
            if forks and os.fork() == 0:
                os.write(1, b"forked")
                os.read(0, 1)  # until the test closes the pipe
                os._exit(0)
            await client.relay.create([report], "in-flight", journal=journal)

asyncio.run(main(*sys.argv[1:]))
"""


def lock_files(path):
    return sorted(path.parent.glob(f"{path.name}-*.lock"))


@contextmanager
def as_owner_of(path):
    """Switch to the owner of a file, who isn't root here."""
    me = os.geteuid()
    os.seteuid(path.stat().st_uid)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.fixture
def path():
    """Return a journal whose owner isn't root, in a folder of that owner."""
    folder = Path(tempfile.mkdtemp(prefix="journal-"))
    path = folder / "relay.db"
    path.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(folder)


@asynccontextmanager
async def running_worker(plaid, report, path, *, forks=""):
    """Yield a worker process, run by the user of the tests, with one creation in flight."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="in-flight", latency=600))
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", WORKER, plaid.url, report, path, KEY, forks),
        stdin=asyncio.subprocess.PIPE,
        stdout=writing,
    )
    os.close(writing)
    try:
        if forks:  # the child has released what it inherited by then
            assert await asyncio.to_thread(os.read, reading, 6) == b"forked"
        os.close(reading)
        while len(plaid.requests) < 2:
            assert process.returncode is None
            await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        process.stdin.close()
        await process.wait()


async def kill_worker(process):
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def test_a_killed_worker_counts_as_dead_while_a_forked_child_lives(plaid, report, path):
    """The child inherits the open lock file without its lock; before the kill, the worker is alive."""
    async with running_worker(plaid, report, path, forks="yes") as process:
        async with Journal(path, key=KEY) as journal:
            assert (await journal.status("killed")).counts == {"created": 1, "in_flight": 1}
            await kill_worker(process)
            assert (await journal.status("killed")).counts == {"created": 1, "unknown": 1}
            assert lock_files(path) == []


async def test_a_killed_process_of_root_does_not_lock_the_owner_out(plaid, client, report, path):
    """The journal's owner sees the outcomes of root's process, and creates."""
    async with running_worker(plaid, report, path) as process:
        (lock,) = lock_files(path)
        assert (lock.stat().st_uid, lock.stat().st_mode & 0o777) == (path.stat().st_uid, 0o600)
        await kill_worker(process)
    with as_owner_of(path):
        async with Journal(path, run="killed", key=KEY) as journal:
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create([report], "in-flight", journal=journal)
            await client.relay.create([report], "next", journal=journal)
        assert lock_files(path) == []


async def test_an_unreadable_lock_file_stops_only_its_pairs(plaid, client, report, path):
    """The error names the file and the remedy, no pair in flight is created again, and others are created."""
    async with running_worker(plaid, report, path) as process:
        (lock,) = lock_files(path)
        await kill_worker(process)
    lock.chmod(0)
    sent = len(plaid.requests)
    with as_owner_of(path):
        async with Journal(path, run="mine", key=KEY, retry_unknown=True) as journal:
            await client.relay.create([report], "next", journal=journal)
            for refused in (
                client.relay.create([report], "in-flight", journal=journal),
                journal.status("killed"),
                journal.forget("killed"),
                read_records(journal, "killed"),
            ):
                with pytest.raises(JournalError, match=r"can't be opened: Permission denied") as caught:
                    await refused
                assert str(lock) in str(caught.value)
                assert "delete the file" in str(caught.value)
            assert len(plaid.requests) == sent + 1
            lock.unlink()
            assert (await journal.status("killed")).counts == {"created": 1, "unknown": 1}
