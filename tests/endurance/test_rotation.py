"""Rotating the keys of a large journal: while other processes create, and with kills in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import sys
from collections import Counter
from contextlib import closing

import pytest
from journal_support import KEY, OTHER_KEY, read_records
from processes import running_process_async

from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.encryption import load_keyring

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(1800), pytest.mark.slow]  # SQLAlchemy's own

PAGE = 500  # tokens that are written in one transaction

CREATOR = """
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.journal import Journal

async def main(address, report, path, key, run):
    created = 0
    async with RelayClient(Credentials("owner", "secret-of-the-owner"), base_url=address) as client:
        async with Journal(path, run=run, key=key) as journal:
            end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            while not end.done():
                await client.relay.create([report], f"{run}{created}", journal=journal)
                created += 1
                if created == 1:
                    print("ready", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

ROTATION = """
import asyncio, sys
from plaid_relay_async.journal import Journal

async def main(path, key):
    async with Journal(path, key=key) as journal:
        print("ready", flush=True)
        print(await journal.rotate())

asyncio.run(main(*sys.argv[1:]))
"""


def running_program(source, *arguments):
    pipe = asyncio.subprocess.PIPE
    return running_process_async(sys.executable, "-c", source, *map(str, arguments), stdin=pipe, stdout=pipe)


async def fill_journal(path, count):
    """Create a journal with a run of many tokens, encrypted with the first key."""
    async with Journal(path, key=KEY):
        pass
    keyring = load_keyring(KEY)
    columns = "id, run_id, pair, partner, state, current, claim, holder_id, attempts, token"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO relay_runs (name, started_at) VALUES ('large', 0)")
        connection.executemany(
            f"INSERT INTO relay_entries ({columns}) VALUES (?, 1, ?, ?, 'created', 1, 1, 0, 1, ?)",
            ((n, f"{n:x}", f"p{n}", keyring.encrypt(f"token-{n}")) for n in range(1, count + 1)),
        )
        connection.commit()


def count_rotated(path):
    """Return the number of tokens that are encrypted with the new key."""
    keyring = load_keyring(OTHER_KEY)
    with closing(sqlite3.connect(path)) as connection:
        tokens = [token for (token,) in connection.execute("SELECT token FROM relay_entries")]
    return sum(keyring.is_up_to_date(token) for token in tokens)


async def test_others_create_beside_a_rotation(plaid, report, tmp_path, size):
    """Two processes create several tokens during each page of a rotation, and none finds the file locked."""
    path, count = tmp_path / "relay.db", size(5_000, 200_000)
    await fill_journal(path, count)
    keys = f"{OTHER_KEY},{KEY}"
    async with contextlib.AsyncExitStack() as stack:
        creators = [
            await stack.enter_async_context(running_program(CREATOR, plaid.url, report, path, keys, run))
            for run in ("x", "y")
        ]
        for creator in creators:
            assert await creator.stdout.readline() == b"ready\n"
        rotation = await stack.enter_async_context(running_program(ROTATION, path, keys))
        assert await rotation.stdout.readline() == b"ready\n"
        before = Counter(line["secondary_client_id"][0] for line in plaid.ledger)
        output, _ = await rotation.communicate()
        beside = Counter(line["secondary_client_id"][0] for line in plaid.ledger) - before
        for creator in creators:
            await creator.communicate(b"")
    assert [creator.returncode for creator in creators] == [0, 0]
    assert int(output) >= count
    assert beside.total() > 6 * count / PAGE


async def test_a_rotation_that_is_killed_is_done_again(tmp_path, size):
    """Each token can be decrypted at any time, and is encrypted with the new key in the end."""
    path, count = tmp_path / "relay.db", size(2_000, 20_000)
    await fill_journal(path, count)
    keys = f"{OTHER_KEY},{KEY}"
    for seed in range(size(2, 20)):
        until = min(count, count_rotated(path) + random.Random(seed).randint(1, max(1, count // 10)))
        async with running_program(ROTATION, path, keys) as rotation:
            while count_rotated(path) < until and rotation.returncode is None:
                await asyncio.sleep(0)
        async with Journal(path, key=keys) as journal:
            tokens = {record.relay_token for record in await read_records(journal, "large")}
        assert tokens == {f"token-{n}" for n in range(1, count + 1)}
    async with Journal(path, key=keys) as journal:
        await journal.rotate()
    assert count_rotated(path) == count


@pytest.fixture
def report(plaid):
    return plaid.add_report()
