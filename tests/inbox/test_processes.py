"""A durable inbox that several processes use, that is killed, or whose database fails."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
from contextlib import closing

import pytest
from inbox_support import about_report, add_many, incoming, lease_one, stored
from journal_support import KEY, execute
from processes import running_process_async
from sqlalchemy import text

from plaid_relay_async import InboxError
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.webhooks import IncomingWebhook, WebhookState

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


# ----------------------------------------------------------------------------------------- concurrency


async def test_two_processes_add_the_same_webhooks(url):
    """Each webhook is new for one of them."""
    webhooks = [incoming(str(number)) for number in range(100)] * 2
    random.Random(1).shuffle(webhooks)
    async with SQLInbox(url, key=KEY) as one, SQLInbox(url, key=KEY) as two:
        results = await asyncio.gather(add_many(one, webhooks), add_many(two, webhooks))
        assert sum(map(sum, results)) == 100
        assert len(await stored(one)) == 100


async def test_two_processes_lease(url):
    """No webhook is leased twice, and all are done once."""
    async with SQLInbox(url, key=KEY) as one, SQLInbox(url, key=KEY) as two:
        await add_many(one, [incoming(str(number)) for number in range(200)])

        async def work(inbox):
            done = []
            while leases := await inbox.lease(7):
                assert all(await asyncio.gather(*map(inbox.complete, leases)))
                done += [lease.webhook.id for lease in leases]
            return done

        first, second = await asyncio.gather(work(one), work(two))
        assert (len(first + second), len({*first, *second})) == (200, 200)
        assert len(await stored(one, WebhookState.DONE)) == 200


async def test_what_another_process_stores_is_seen(url):
    """Both waits see it, within about a second."""
    async with SQLInbox(url, key=KEY) as one, SQLInbox(url, key=KEY) as two:
        waits = asyncio.gather(one.wait_until_due(600), one.wait_for_report("r"))
        await asyncio.sleep(0.1)
        await two.add(about_report("r"))
        await waits
        assert len(await one.lease(1)) == 1


# ------------------------------------------------------------------------------------------- processes

KILLED_PROGRAM = """
import asyncio, os, sys
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.webhooks import IncomingWebhook

def report(line):
    os.write(1, f"{line}\\n".encode())

async def main(path, key):
    async with SQLInbox(path, key=key) as inbox:
        async def add(sender):
            for number in range(1_000_000):
                content = f"{os.getpid()}-{sender}-{number}"
                await inbox.add(IncomingWebhook(content.encode(), 1.0))
                report(f"added {content}")
        async def work():
            while True:
                await inbox.wait_until_due(1)
                for lease in await inbox.lease(5):
                    report(f"started {lease.webhook.id}")
                    await inbox.complete(lease)
                    report(f"completed {lease.webhook.id}")
        await asyncio.gather(*(add(sender) for sender in range(4)), work())

asyncio.run(main(*sys.argv[1:]))
"""


async def test_nothing_is_lost_when_the_process_is_killed(tmp_path, rounds):
    """All that was added is stored, all that was completed is done, and nothing starts after that."""
    path, chance = tmp_path / "relay.db", random.Random(5)
    added, completed, started_after = set(), set(), set()
    for _ in range(3 * rounds):
        pipes = {"stdout": asyncio.subprocess.PIPE}
        async with running_process_async(sys.executable, "-c", KILLED_PROGRAM, path, KEY, **pipes) as process:
            lines = [await process.stdout.readline() for _ in range(chance.randrange(20, 200))]
            process.send_signal(signal.SIGKILL)
            lines += (await process.stdout.read()).splitlines(keepends=True)
        for what, name in (line.decode().split() for line in lines if line.endswith(b"\n")):
            if what == "added":
                added.add(name)
            elif what == "started":
                started_after |= {name} & completed
            else:
                completed.add(name)
        await execute(path, text("UPDATE relay_webhooks SET due_at = 0 WHERE leased"))
    async with SQLInbox(path, key=KEY) as inbox:
        webhooks = await stored(inbox)
    assert added
    assert completed
    assert added <= {each.body.decode() for each in webhooks}
    assert completed <= {each.id for each in webhooks if each.state is WebhookState.DONE}
    assert not started_after


# ---------------------------------------------------------------------------------------------- faults


async def test_a_locked_file(tmp_path):
    """Calls fail with the reason, and succeed once the file is released."""
    path = tmp_path / "relay.db"
    async with SQLInbox(f"sqlite:///{path}?timeout=0.1", key=KEY) as inbox:
        await inbox.add(incoming())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for call in (inbox.add(incoming("b")), inbox.lease(1)):
                with pytest.raises(
                    InboxError, match="the inbox can't be read or written: database is locked"
                ):
                    await call
            await inbox.wait_until_due(1)
        assert await inbox.add(incoming("b"))
        assert len(await inbox.lease(5)) == 2


async def test_a_damaged_file(tmp_path):
    """It is reported, and not changed."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    path.write_bytes(b"no database")
    with pytest.raises(InboxError, match="file is not a database"):
        await SQLInbox(path, key=KEY).open()
    assert path.read_bytes() == b"no database"


async def test_a_server_that_hangs(postgres):
    """A call fails after a limited time, and the webhook isn't stored."""
    await postgres.reset()
    async with SQLInbox(postgres.url, key=KEY) as inbox:
        async with postgres.transaction("LOCK TABLE relay_webhooks"):
            async with asyncio.timeout(30):
                with pytest.raises(InboxError, match="the inbox can't be read or written"):
                    await inbox.add(incoming())
        assert await stored(inbox) == []
        assert await inbox.add(incoming())


async def test_a_server_that_is_restarted(postgres):
    """The connections are replaced, and nothing that was stored is lost."""
    await postgres.reset()
    async with SQLInbox(postgres.url, key=KEY) as inbox:
        await inbox.add(incoming())
        lease = await lease_one(inbox)
        await postgres.kill()
        await postgres.start()
        assert await inbox.add(incoming("b"))
        assert await inbox.complete(lease)
        await inbox.wait_until_due(600)
        assert len(await inbox.lease(2)) == 1


async def test_connections_that_are_ended_at_random(postgres):
    """Each webhook is stored once, and each is completed once."""
    await postgres.reset()
    chance, done = random.Random(3), []
    webhooks = [incoming(str(number)) for number in range(30)]

    async def end():
        while True:
            await asyncio.sleep(chance.uniform(0.2, 0.6))
            await postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    async with SQLInbox(postgres.url, key=KEY, lease_seconds=2) as inbox:
        ending = asyncio.create_task(end())
        for webhook in webhooks:
            assert await inbox.add(webhook)
            await asyncio.sleep(0.05)
        while len(done) < len(webhooks):
            await inbox.wait_until_due(5)
            for lease in await inbox.lease(3):
                if await inbox.complete(lease):
                    done.append(lease.webhook.id)
        ending.cancel()
        await asyncio.wait([ending])
        assert len({*done}) == 30
        assert {each.state for each in await stored(inbox)} == {WebhookState.DONE}


# --------------------------------------------------------------------------------------------- closing


async def test_closing_writes_what_is_pending(url):
    """Webhooks that are being added when the inbox is closed are stored; later calls fail."""
    async with SQLInbox(url, key=KEY) as inbox:
        adding = [asyncio.create_task(inbox.add(incoming(str(number)))) for number in range(50)]
        waiting = asyncio.create_task(inbox.wait_for_report("r"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await asyncio.gather(*adding) == [True] * 50
    with pytest.raises(InboxError, match=r"isn't open|was closed"):
        await waiting
    for call in (inbox.add(incoming()), inbox.lease(1), inbox.load_cursor(), inbox.wait_until_due(1)):
        with pytest.raises(InboxError, match="the inbox isn't open"):
            await call
    await inbox.close()
    async with inbox:
        assert len(await stored(inbox)) == 50


async def test_closing_does_not_wait_forever(tmp_path):
    """A webhook that can't be written fails, and the inbox is closed."""
    path = tmp_path / "relay.db"
    inbox = SQLInbox(path, key=KEY)
    await inbox.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        adding = asyncio.create_task(inbox.add(incoming()))
        await asyncio.sleep(0.1)
        await inbox.close()
        with pytest.raises(InboxError, match=r"database is locked|was closed|longer than"):
            await adding


async def test_a_cancelled_closing_is_completed(tmp_path):
    """The cancellation is raised when the inbox is closed, and what was pending is stored."""
    path = tmp_path / "relay.db"
    inbox = SQLInbox(path, key=KEY)
    await inbox.open()
    adding = asyncio.create_task(inbox.add(incoming()))
    await asyncio.sleep(0)
    closes = [asyncio.create_task(inbox.close()) for _ in range(2)]
    await asyncio.sleep(0)
    closes[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await closes[0]
    await closes[1]
    assert await adding


async def test_misuse(tmp_path):
    """An inbox is opened once, and used in the event loop that opened it."""
    inbox = SQLInbox(tmp_path / "relay.db", key=KEY)
    assert repr(inbox) == "<SQLInbox>"
    with pytest.raises(InboxError, match="the inbox isn't open"):
        await inbox.add(IncomingWebhook(b"{}", 1.0))
    async with inbox:
        with pytest.raises(InboxError, match="already open"):
            await inbox.open()

        def use_elsewhere():
            with pytest.raises(InboxError, match="another event loop"):
                asyncio.run(inbox.lease(1))

        await asyncio.to_thread(use_elsewhere)
        assert await inbox.add(incoming())
