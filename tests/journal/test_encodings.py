"""Text that isn't ASCII, and databases whose encoding can't hold it."""

from __future__ import annotations

import gc
import sqlite3
import warnings
from contextlib import closing

import pytest
from journal_support import KEY, creation_requests, read_records
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE

from plaid_relay_async import ConfigurationError, RelayCreateRequest
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

TEXTS = ("é", "日本語", "\U0001f600", "\ud800", "\0", "e\u0301\u200b\ufeff", "\x1b[0m\r\n", "\\u0000'\"")


@pytest.fixture
async def create_database(postgres):
    """Return a function that creates a database with an encoding, and returns its URL."""
    names = []

    async def create(encoding):
        names.append(f"in_{encoding.lower()}")
        await postgres.execute(
            f"CREATE DATABASE {names[-1]} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        )
        return postgres.url.removesuffix("postgres") + names[-1]

    yield create
    for name in names:
        await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def assert_any_text_is_stored(plaid, client, report, url):
    """Create for some partners, each of which gets an error with one of the texts."""
    partners = [f"pé{n}" for n in range(len(TEXTS))]
    for partner, error_text in zip(partners, TEXTS, strict=True):
        body = {
            "error_type": error_text,
            "error_code": error_text,
            "error_message": error_text,
            "request_id": error_text,
        }
        plaid.fail(Fault(path=CREATE, secondary_client_id=partner, status=400, body=body))
    async with Journal(url, run="é日\U0001f600", key=KEY) as journal:
        result = await client.relay.create_many(
            [*RelayCreateRequest.fan_out([report], partners), *creation_requests(report, 5)],
            journal=journal,
        )
        assert result.counts == {"created": 5, "failed": len(TEXTS)}
        assert all(outcome.journalled for outcome in (*result.created, *result.failed))
        records = await read_records(journal, "é日\U0001f600")
    assert {record.relay_token for record in records} - {None} == {
        outcome.relay_token for outcome in result.created
    }


async def test_an_error_in_any_script_is_recorded(plaid, client, report, url):
    """An error message in any script is recorded, and so are the other commands of its group."""
    await assert_any_text_is_stored(plaid, client, report, url)


async def test_a_file_in_utf_16_stores_any_text(plaid, client, report, tmp_path):
    """SQLite converts between its encodings."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE other (a TEXT)")
    await assert_any_text_is_stored(plaid, client, report, path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA encoding").fetchone() == ("UTF-16le",)


@pytest.mark.parametrize("partner", ["\ud800", "a\ud800b"])
def test_a_partner_that_no_database_stores_is_rejected(report, partner):
    """A partner id with a lone surrogate is rejected before a journal sees it."""
    with pytest.raises(RequestValidationError):
        RelayCreateRequest([report], partner)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_server_in_another_encoding_is_rejected(create_database, encoding):
    """Opening a journal in another encoding fails with its name, and creates nothing."""
    url = await create_database(encoding)
    with pytest.raises(ConfigurationError, match=f"{encoding}.*UTF8"):
        await Journal(url, key=KEY).open()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_connections_in_another_encoding_are_rejected(postgres, encoding):
    """The server could store any text, but the caller's connections couldn't transport it."""
    await postgres.reset()
    address = postgres.url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_async_engine(address, connect_args={"client_encoding": encoding})
    with pytest.raises(ConfigurationError, match=f"client_encoding is {encoding}"):
        await Journal(engine, key=KEY).open()
    await engine.dispose()
    # Older releases of SQLAlchemy leave a connection open that they can't initialize. Its warning must not
    # reach another test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_pgclientencoding_has_no_effect(plaid, client, report, postgres, monkeypatch):
    """A connection that the journal opens uses UTF8, whatever PGCLIENTENCODING is."""
    await postgres.reset()
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    await assert_any_text_is_stored(plaid, client, report, postgres.url)
