"""The database of a durable inbox: versions, keys, files, a journal beside it, and retention."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from contextlib import closing

import pytest
from inbox_support import PAIR, about_report, add_many, advance, incoming, lease_one, stored
from journal_support import KEY, OTHER_KEY, creation_requests, execute, open_database
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from plaid_relay_async import ConfigurationError, InboxError, JournalError
from plaid_relay_async.inbox import SQLInbox, metadata, schema, transactions
from plaid_relay_async.inbox.transactions import Change, NewRow
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal import schema as journal_schema
from plaid_relay_async.webhooks import IncomingWebhook, WebhookState

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

DAY = 86_400.0
CANARY = b"canary-of-personal-data"
COUNT_BODIES = text("SELECT count(body), count(*) FROM relay_webhooks")


# ------------------------------------------------------------------------------------------- versions


async def test_each_store_has_its_own_version(url):
    """A store of a later release is rejected, and doesn't keep the other one from being opened."""
    async with Journal(url, key=KEY), SQLInbox(url, key=KEY):
        pass
    await execute(url, schema.inboxes.update().values(version=99))
    async with Journal(url, key=KEY):
        with pytest.raises(InboxError, match=r"the inbox has version 99 of its tables.*Install the release"):
            await SQLInbox(url, key=KEY).open()
    await execute(url, schema.inboxes.update().values(version=1))
    await execute(url, journal_schema.journals.update().values(version=99))
    async with SQLInbox(url, key=KEY) as inbox:
        assert await inbox.add(incoming())
        with pytest.raises(JournalError, match="the journal has version 99 of its tables"):
            await Journal(url, key=KEY).open()


async def test_an_inbox_and_a_journal_work_concurrently(client, report, url):
    """Both write to the same database at the same time."""
    webhooks = [incoming(str(number)) for number in range(200)]
    async with Journal(url, key=KEY, run="x") as journal, SQLInbox(url, key=KEY) as inbox:
        batch = client.relay.create_many(creation_requests(report, 100), journal=journal)
        added, result = await asyncio.gather(add_many(inbox, webhooks), batch)
        assert (sum(added), result.counts) == (200, {"created": 100})
        assert (await journal.status("x")).counts == {"created": 100}
        assert len(await stored(inbox)) == 200


async def test_an_inbox_and_a_journal_share_an_engine(client, report, url):
    """The caller's engine is used by both, and not disposed of."""
    address = str(url).replace("postgresql:", "postgresql+psycopg:")
    engine = create_async_engine(address if "://" in address else f"sqlite+aiosqlite:///{url}")
    async with Journal(engine, key=KEY) as journal, SQLInbox(engine, key=KEY) as inbox:
        await client.relay.create([report], "p", journal=journal)
        assert await inbox.add(incoming())
        assert await inbox.complete(await lease_one(inbox))
    async with engine.connect() as connection:
        assert (await connection.execute(COUNT_BODIES)).one() == (1, 1)
    await engine.dispose()


def test_the_tables_are_public():
    """They are named for Alembic, and aren't those of the journal."""
    assert {*metadata.tables} == {"relay_inbox", "relay_webhooks"}
    assert not {*metadata.tables} & {*journal_schema.metadata.tables}


# --------------------------------------------------------------------------------------------- keys


def files_of(path):
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


async def test_the_file_contains_no_payload(tmp_path, caplog):
    """Bodies and report IDs are in no file of SQLite, before and after a rotation; the log has neither."""
    path = tmp_path / "relay.db"
    async with SQLInbox(path, key=KEY) as inbox:
        assert await inbox.add(IncomingWebhook(CANARY, 1.0, PAIR))
        assert await inbox.add(about_report("canary-report"))
        await inbox.retry(await lease_one(inbox), delay=0.0, error="ValueError")
        assert b"canary" not in files_of(path)
    async with SQLInbox(path, key=[OTHER_KEY, KEY]) as inbox:
        assert await inbox.rotate() == 2
        assert await inbox.rotate() == 0
        assert b"canary" not in files_of(path)
    async with SQLInbox(path, key=OTHER_KEY) as inbox:
        assert not await inbox.add(IncomingWebhook(CANARY, 1.0, PAIR))
        assert {each.body for each in await stored(inbox)} == {CANARY, about_report("canary-report").body}
    assert "canary" not in caplog.text + repr(inbox)


async def test_rotation_on_a_server(postgres):
    """All bodies are encrypted with the new key, in several transactions."""
    await postgres.reset()
    async with SQLInbox(postgres.url, key=KEY) as inbox:
        await add_many(inbox, [incoming(str(number)) for number in range(120)])
    async with SQLInbox(postgres.url, key=[OTHER_KEY, KEY]) as inbox:
        assert await inbox.rotate() == 120
    async with SQLInbox(postgres.url, key=OTHER_KEY) as inbox:
        assert len(await inbox.lease(200)) == 120


async def test_an_unencrypted_inbox_is_encrypted_once_it_has_a_key(tmp_path, monkeypatch, caplog):
    """Without a key there is a warning; with one, opening the inbox leaves nothing unencrypted."""
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    path = tmp_path / "relay.db"
    async with SQLInbox(path) as inbox:
        assert await inbox.add(IncomingWebhook(CANARY, 1.0))
        assert CANARY in files_of(path)
    assert "the inbox has no key" in caplog.text
    monkeypatch.setenv("PLAID_RELAY_KEY", KEY)
    async with SQLInbox(path) as inbox:
        assert CANARY not in files_of(path)
        assert (await lease_one(inbox)).webhook.body == CANARY


async def test_a_wrong_key_is_rejected(url, monkeypatch):
    """An inbox isn't opened with another key, or without one."""
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    async with SQLInbox(url, key=KEY):
        pass
    for key, problem in ((OTHER_KEY, "doesn't match this inbox"), (None, "the inbox is encrypted")):
        with pytest.raises(ConfigurationError, match=problem):
            await SQLInbox(url, key=key).open()


async def test_a_body_that_no_key_decrypts(url):
    """It is an error for each lease, and no attempt is counted."""
    async with SQLInbox(url, key=KEY) as inbox:
        await inbox.add(incoming())
        other = base64.urlsafe_b64encode(b"\x80" + bytes(72)).decode()
        await execute(url, text(f"UPDATE relay_webhooks SET body = '{other}'"))
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="doesn't match this inbox"):
                await inbox.lease(1)
        assert await execute(url, text("SELECT attempts FROM relay_webhooks")) == [(0,)]


# ------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lease_seconds": 0}, "lease_seconds must be"),
        ({"retention": -1}, "retention must be"),
        ({"key": "short"}, "must be 32 random bytes"),
    ],
)
def test_invalid_settings(tmp_path, settings, problem):
    """An invalid argument is an error before anything is opened."""
    with pytest.raises(ConfigurationError, match=problem):
        SQLInbox(tmp_path / "relay.db", **{"key": KEY, **settings})


async def test_a_file_that_others_may_read(tmp_path):
    """It is rejected; a new file isn't open to others."""
    path = tmp_path / "relay.db"
    async with SQLInbox(path, key=KEY) as inbox:
        assert inbox.path == path
        assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="file permissions are too open"):
        await SQLInbox(path, key=KEY).open()


async def test_a_missing_folder_is_an_error(tmp_path):
    """The error names the inbox, and has the operating system's reason."""
    with pytest.raises(InboxError, match=r"the inbox can't be read or written: No such file.*Fix the cause"):
        await SQLInbox(tmp_path / "nowhere" / "relay.db", key=KEY).open()


# ------------------------------------------------------------------------------------------ retention


async def test_bodies_are_deleted_before_rows(url):
    """After the retention a webhook that is done has no body; eight days after that it is gone."""
    async with SQLInbox(url, key=KEY, retention=DAY) as inbox:
        for content in ("done", "dead", "pending"):
            await inbox.add(incoming(content))
        done, dead, _ = await inbox.lease(3)
        await inbox.complete(done)
        await inbox.bury(dead, error="E")
    for days, counts, is_new in ((0.9, (3, 3), False), (0.2, (2, 3), False), (7.0, (2, 2), True)):
        await advance(url, days * DAY)
        async with SQLInbox(url, key=KEY, retention=DAY) as inbox:
            await inbox.lease(1)
            assert await execute(url, COUNT_BODIES) == [counts]
            assert [each.body for each in await stored(inbox, WebhookState.DONE)] == (
                [] if is_new else [incoming("done").body if counts == (3, 3) else None]
            )
            assert await inbox.add(incoming("done")) is is_new


async def test_a_long_retention(url):
    """The row is deleted together with the body."""
    async with SQLInbox(url, key=KEY, retention=30 * DAY) as inbox:
        await inbox.add(incoming())
        await inbox.complete(await lease_one(inbox))
    for days, counts in ((29, (1, 1)), (2, (0, 0))):
        await advance(url, days * DAY)
        async with SQLInbox(url, key=KEY, retention=30 * DAY) as inbox:
            await inbox.lease(1)
        assert await execute(url, COUNT_BODIES) == [counts]


async def test_old_webhooks_are_deleted_in_steps(url):
    """Each lease deletes a limited number, until only later ones are left; then none for a minute."""
    async with SQLInbox(url, key=KEY, retention=0) as inbox:
        await add_many(inbox, [incoming(str(number)) for number in range(600)])
        await asyncio.gather(*map(inbox.complete, await inbox.lease(600)))
    async with SQLInbox(url, key=KEY, retention=0) as inbox:
        for left in (100, 0):
            assert await inbox.lease(1) == []
            assert await execute(url, COUNT_BODIES) == [(left, 600)]
        await inbox.add(incoming())
        await inbox.complete(await lease_one(inbox))
        await inbox.lease(1)
        assert await execute(url, COUNT_BODIES) == [(1, 601)]


async def test_a_dead_letter_is_discarded(url):
    """Its body is deleted immediately, and it is still recognized."""
    async with SQLInbox(url, key=KEY) as inbox:
        await inbox.add(incoming())
        lease = await lease_one(inbox)
        assert not await inbox.discard(lease.webhook.id)
        await inbox.bury(lease, error="E")
        assert await inbox.discard(lease.webhook.id)
        assert not await inbox.discard(lease.webhook.id)
        assert not await inbox.add(incoming())
        ((state, body),) = [(each.state, each.body) for each in await stored(inbox)]
        assert (state, body) == (WebhookState.DONE, None)
        assert not await inbox.redeliver(lease.webhook.id)


# ---------------------------------------------------------------------------------------- repetitions


def new_row(row_id, digest="d", message_id=None):
    return NewRow(row_id, digest, None, "body", 1.0, None, message_id)


async def test_a_repeated_transaction_has_the_same_results(url):
    """A commit may be lost, so all that is written can be written again."""
    async with SQLInbox(url, key=KEY):
        pass
    lease = ("a", 1)
    groups = [
        ([new_row("a"), new_row("b"), new_row("c", "e")], [True, False, True]),
        ([new_row("f", "g", '"m"'), new_row("h", message_id='"n"')], [True, False]),
        ([Change(*lease, WebhookState.PENDING, leased=True, delay=9.0), new_row("i")], [True, False]),
        ([Change(*lease, WebhookState.PENDING, delay=5.0, error="E")], [True]),
        ([Change(*lease, WebhookState.DONE)], [False]),
    ]
    async with open_database(url) as database:
        connection = database.new_connection()
        for number, (commands, results) in enumerate(groups):
            if number == 2:
                leased = text("UPDATE relay_webhooks SET leased = true, fencing_token = 1 WHERE id = 'a'")
                await database.run_transaction(connection, lambda c, s=leased: c.execute(s), 0.0)
            for _ in range(2):
                written = await database.run_transaction(
                    connection, lambda c, commands=commands: transactions.write(c, commands), 0.0
                )
                assert written == results
    rows = await execute(url, text("SELECT id, message_id FROM relay_webhooks ORDER BY number"))
    assert rows == [("a", '"n"'), ("c", None), ("f", '"m"')]


async def test_indexes_are_used(tmp_path):
    """No statement of SQLite reads all rows."""
    path, statements = tmp_path / "relay.db", {}

    def collect(_connection, _cursor, statement, parameters, _context, many):
        statements[statement] = parameters[0] if many else parameters

    event.listen(Engine, "before_cursor_execute", collect)
    try:
        async with SQLInbox(path, key=KEY) as inbox:
            statements.clear()
            for message_id in (None, "m1", "m2"):
                await inbox.add(incoming(message_id=message_id))
            await inbox.wait_until_due(1)
            first, second = await inbox.lease(2)
            await inbox.complete(first)
            await inbox.bury(second, error="E")
            await inbox.redeliver(second.webhook.id)
            await inbox.add(about_report("r"))
            await inbox.wait_for_report("r")
            for state in (None, WebhookState.DEAD):
                await stored(inbox, state)
    finally:
        event.remove(Engine, "before_cursor_execute", collect)
    with closing(sqlite3.connect(path)) as connection:
        plans = {
            each: str(connection.execute(f"EXPLAIN QUERY PLAN {each}", parameters).fetchall())
            for each, parameters in statements.items()
            if "relay_webhooks" in each
        }
    assert len(plans) > 10
    scans = [plan for plan in plans.values() if "SCAN relay_webhooks" in plan and "USING" not in plan]
    assert scans == []
