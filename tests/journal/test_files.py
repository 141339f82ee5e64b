"""The files of a journal in SQLite: remains of deleted tokens, and errors that name the files."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest
from journal_support import KEY, OTHER_KEY, creation_requests, engine_for_uri

from plaid_relay_async import JournalError
from plaid_relay_async.journal import Journal

pytestmark = pytest.mark.may_block  # SQLAlchemy's own

DELETE, REWRITE = "delete", "rewrite"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "relay.db"


def reading(path):
    """Open another connection that reads a snapshot of the journal until it is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM relay_entries").fetchone()
    return closing(connection)


def stored_tokens(path):
    """Return the tokens as they are stored now."""
    with closing(sqlite3.connect(path)) as connection:
        return [token for (token,) in connection.execute("SELECT token FROM relay_entries") if token]


def remaining(path, tokens):
    """Return the tokens that a file of the journal still contains."""
    content = b"".join(each.read_bytes() for each in path.parent.iterdir())
    return [token for token in tokens if token.encode() in content]


async def change(how, path):
    """Delete or re-encrypt the tokens, and return their number."""
    async with Journal(path, run="other", key=[OTHER_KEY, KEY] if how == REWRITE else KEY) as journal:
        return await (journal.rotate() if how == REWRITE else journal.forget("x"))


@pytest.fixture(params=[DELETE, REWRITE])
async def how(client, report, path, request):
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 20), journal=journal)
    return request.param


async def test_no_file_contains_a_deleted_token(path, how):
    """No file contains a deleted or overwritten token, even while idle connections are open."""
    tokens = stored_tokens(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM relay_entries").fetchone()
        assert await change(how, path) == 20
        assert remaining(path, tokens) == []


async def test_a_reader_that_prevents_truncation_is_reported(path, how):
    """The error names the file that still contains the tokens; a repeat clears it without the reader."""
    tokens = stored_tokens(path)
    with reading(path):
        with pytest.raises(JournalError, match=r"relay\.db-wal: .* may still contain") as caught:
            await change(how, path)
        assert "repeat the call" in str(caught.value)
        assert remaining(path, tokens)
    assert await change(how, path) == 0
    assert remaining(path, tokens) == []


async def test_a_reader_that_ends_is_waited_for(path, how):
    """The write-ahead log is truncated as soon as no connection reads the old state."""
    tokens = stored_tokens(path)
    with reading(path):
        changing = asyncio.create_task(change(how, path))
        while not changing.done() and stored_tokens(path) == tokens:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert not changing.done()
    assert await changing == 20
    assert remaining(path, tokens) == []


async def test_a_first_key_leaves_nothing_unencrypted(client, report, path):
    """Once a key is used, no file contains a token or the pair key in plain text."""
    async with Journal(path, run="x") as journal:
        await client.relay.create_many(creation_requests(report, 3), journal=journal)
    tokens = [token.removeprefix("clear:") for token in stored_tokens(path)]
    with closing(sqlite3.connect(path)) as connection:
        ((pair_key,),) = connection.execute("SELECT pair_key FROM relay_journal")
    keys = [pair_key.removeprefix("clear:")]
    assert (len(remaining(path, tokens)), remaining(path, keys)) == (3, keys)
    async with Journal(path, key=KEY):
        assert remaining(path, [*tokens, *keys]) == []


async def test_a_pragma_that_sqlite_ignores_is_an_error(path):
    """A file on which SQLite can't use a write-ahead log is rejected."""
    problem = r"can't set journal_mode to wal for the journal: it is still delete"
    async with engine_for_uri(path, f"{path.as_uri()}?vfs=unix-dotfile") as engine:
        with pytest.raises(JournalError, match=problem):
            await Journal(engine, key=KEY).open()


async def test_an_error_of_the_database_names_the_file(path):
    """An error names the file if it isn't a database, and if its folder doesn't exist."""
    missing = path.parent / "missing" / "relay.db"
    with pytest.raises(JournalError, match="No such file or directory") as caught:
        await Journal(missing, key=KEY).open()
    assert f"({missing})" in str(caught.value)
    path.touch(mode=0o600)
    path.write_bytes(b"no database")
    with pytest.raises(JournalError, match="file is not a database") as caught:
        await Journal(path, key=KEY).open()
    assert f"({path})" in str(caught.value)


async def test_other_connections_write_while_a_reader_is_waited_for(client, report, path, how):
    """Truncating the log blocks other connections only for a short time."""
    tokens, created = stored_tokens(path), 0
    async with Journal(path, run="y", key=KEY) as journal:
        await client.relay.create([report], "before", journal=journal)
        with reading(path):
            changing = asyncio.create_task(change(how, path))
            while not changing.done() and set(tokens) & set(stored_tokens(path)):
                await asyncio.sleep(0.01)
            while not changing.done():
                await client.relay.create([report], f"during{created}", journal=journal)
                created += not changing.done()
            with pytest.raises(JournalError, match="may still contain"):
                await changing
    assert created > 3
