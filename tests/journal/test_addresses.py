"""The address of a journal: one file under any name, and an error for an ambiguous address."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing

import pytest
from journal_support import KEY, creation_requests, engine_for_uri
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE

from plaid_relay_async import ConfigurationError, JournalError
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.database import Database
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

SECRET = "canary"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is the working directory."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def assert_rejected(address, problem):
    """Check that a journal at an address isn't opened, and that the error contains no secret."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        await Journal(address, key=KEY).open()
    assert SECRET not in str(caught.value)


# ------------------------------------------------------------------------------------------------- SQLite


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:plain.db", "must be the path of a file"),
        ("file:///plain.db?mode=ro", "not in file"),
        ("file://plain.db", "not in file"),
        ("sqlite:plain.db", "must be the path of a file"),
        ("jdbc:sqlite://plain.db", "must be the path of a file"),
        ("./a://b", "must be the path of a file"),
        ("sqlite:///file:a%2520b.db?uri=true", "file: URI"),
        ("sqlite:///ro.db?mode=ro&uri=true", "mode in the database's address isn't supported"),
        ("sqlite:///x.db?vfs=unix-none", "vfs in the database's address"),
        ("sqlite:///x.db?plugin=x", "plugin in the database's address"),
        ("sqlite:///x.db?check_same_thread=x", "check_same_thread in the database's address"),
        ("sqlite://x.db", "three slashes"),
        ("sqlite+pysqlcipher:///x.db", r"not in sqlite\+pysqlcipher"),
        *((f"sqlite:///x.db?timeout={seconds}", "timeout") for seconds in ("abc", "nan", "inf", "-1", "1e9")),
        ("sqlite:///x.db?timeout=1&timeout=2", "timeout .* one number of seconds"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///x%00y", "isn't a valid path"),
        ("x\0y", "isn't a valid path"),
        ("x\ud800y", "isn't a valid path"),
        (".", "regular file"),
        (os.devnull, "regular file"),
        (b"x.db", "the database's address must be the path"),
        (None, "the database's address must be the path"),
        (create_engine("sqlite:///x.db"), "an AsyncEngine"),
        (create_async_engine("sqlite+aiosqlite:///file:x.db?uri=true"), "not a file: URI"),
    ],
)
async def test_an_ambiguous_address_is_rejected(folder, address, problem):
    """An address that SQLite would open elsewhere, or in another way, is rejected and creates no file."""
    await assert_rejected(address, problem)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("a%20b.db", "a%20b.db"),
        ("./file:x.db", "file:x.db"),
        ("c:x.db", "c:x.db"),
        ("day=1/x.db", "day=1/x.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///a%2520b.db?timeout=5", "a%20b.db"),
        ("SQLite:///a#b.db", "a#b.db"),
        ("sqlite:///a%3Fb.db", "a?b.db"),
        ("sqlite:///%FF.db", "\udcff.db"),
        ("sqlite+aiosqlite:///x.db", "x.db"),
        ("~/x.db", "~/x.db"),
    ],
)
async def test_an_address_of_a_file_opens_that_file(folder, address, name):
    """A path is used as it is, a URL is decoded once, and SQLite opens that file and creates no other."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    async with Journal(address, key=KEY) as journal:
        assert journal.path == path
        assert {each.name.removeprefix(path.name) for each in path.parent.iterdir()} == {"", "-wal", "-shm"}
        assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


@pytest.fixture(params=["link", "link in a chain", "linked folder", "relative path", "dots"])
def other_name(request, folder, tmp_path):
    """Return another name of a file in the folder that doesn't exist yet."""
    path = folder / "relay.db"
    link = tmp_path / "link"
    match request.param:
        case "link":
            link.symlink_to(path)
            return link
        case "link in a chain":
            link.symlink_to(path)
            (tmp_path / "second").symlink_to("link")
            return tmp_path / "second"
        case "linked folder":
            link.symlink_to(folder)
            return link / "relay.db"
        case "relative path":
            return "relay.db"
    return f"{folder}/../folder/./relay.db"


async def test_two_names_of_one_file_share_its_locks(plaid, client, report, folder, other_name):
    """A process that uses one name is alive under another: its pair and its run are left alone."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", latency=1))
    async with (
        Journal(other_name, run="x", key=KEY) as one,
        Journal(folder / "relay.db", run="y", key=KEY) as two,
    ):
        assert one.path == two.path == folder / "relay.db"
        creating = asyncio.ensure_future(client.relay.create([report], "p0", journal=one))
        while not plaid.requests:
            await asyncio.sleep(0.005)
        assert (await two.status("x")).counts == {"in_flight": 1}
        with pytest.raises(JournalError, match="is working on the run"):
            await two.forget("x")
        response = await client.relay.create([report], "p0", journal=two)
        assert response.relay_token == (await creating).relay_token
    assert len(plaid.ledger) == 1


async def test_the_path_is_resolved_once(folder, tmp_path, monkeypatch):
    """A link that is changed later, or another working directory, doesn't lead a journal to another file."""
    (tmp_path / "link").symlink_to(folder / "first.db")
    journals = [Journal(tmp_path / "link", key=KEY), Journal("second.db", key=KEY)]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "other.db")
    monkeypatch.chdir(tmp_path)
    for journal in journals:
        async with journal:
            pass
    assert sorted(each.name for each in folder.iterdir()) == ["first.db", "second.db"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "link"]


async def test_a_file_that_was_deleted_after_its_check(folder):
    """SQLite doesn't create the file again, because other users could read that file."""
    path = folder / "relay.db"
    database = Database(path, 1)
    await database.open()
    path.unlink()
    with pytest.raises(JournalError, match="unable to open database file"):
        await database.run_transaction(
            database.new_connection(), lambda connection: connection.exec_driver_sql("SELECT 1").close(), 0
        )
    await database.close()
    assert list(folder.iterdir()) == []


async def test_permissions_that_were_widened_after_the_check(folder):
    """Each connection checks the file that it has opened."""
    path = folder / "relay.db"
    database = Database(path, 1)
    await database.open()
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="too open"):
        await database.run_transaction(
            database.new_connection(), lambda connection: connection.exec_driver_sql("SELECT 1").close(), 0
        )
    await database.close()
    assert path.stat().st_size == 0


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
async def test_a_file_that_other_users_may_read_is_rejected(client, report, folder, suffix):
    """A file with permissions that are too open is rejected, and so is a file beside the database."""
    path = folder / "relay.db"
    async with Journal(path, key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    file = folder / f"relay.db{suffix}"
    file.touch(mode=0o600)
    file.chmod(0o640)
    await assert_rejected(path, f"{file.name}: file permissions are too open.*chmod 600 first")
    file.chmod(0o600)
    async with Journal(path, key=KEY) as journal:
        assert len(await journal.runs()) == 1


async def test_a_hard_link_is_rejected(client, report, folder):
    """A second name for the file, with another log and other locks, is rejected under both names."""
    path, link = folder / "relay.db", folder / "link.db"
    async with Journal(path, key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 3), journal=journal)
    link.hardlink_to(path)
    for name in (path, link):
        await assert_rejected(name, "another name")
    link.unlink()
    async with Journal(path, key=KEY) as journal:
        assert (await journal.status("default")).counts == {"created": 3}


@pytest.mark.parametrize("uri", ["other.db", ":memory:"])
async def test_an_engine_that_opens_another_file_is_rejected(folder, uri):
    """An engine must open the file that its URL names, because that file is checked and has the locks."""
    path = folder / "relay.db"
    with closing(sqlite3.connect(folder / "other.db")) as other:
        other.execute("CREATE TABLE t (a)")
    async with engine_for_uri(path, f"file:{folder / uri}" if uri.endswith("db") else uri) as engine:
        with pytest.raises(ConfigurationError, match=r"SQLite has opened (none|.*other)"):
            await Journal(engine, key=KEY).open()
    assert path.stat().st_size == 0


# --------------------------------------------------------------------------------------------- PostgreSQL


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("host=h dbname=d user=u password=canary", "write it as a URL, postgresql://USER:PASSWORD@HOST"),
        ("dbname = d password = 'canary'", "write it as a URL"),
        ("sslmode=require  hostaddr=127.0.0.1", "write it as a URL"),
        ("user:canary@h/d", "must be the path of a file"),
        ("postgresql:/u:canary@h/d", "must be the path of a file"),
        ("jdbc:postgresql://u:canary@h/d", "must be the path of a file"),
        ("postgresql://u:p@canary@h/d", "write @ as %40"),
        ("postgresql://u:p?x@canary@h/d", "write @ as %40"),
        ("postgresql://us/er:canary@h/d", "write @ as %40"),
        ("postgresql://u:canary@h:port/d", "must be the path of a file"),
        ("postgresql://u:canary@[::1/d", "must be the path of a file"),
        *((f"postgresql://h:{port}/d", "number from 1 to 65535") for port in (0, -1, 65536)),
        *((f"postgresql:///d?host=h&port={port}", "number from 1 to 65535") for port in ("0", "65536")),
        ("postgresql:///d?host=h&port=a", "non-integer port"),
        ("postgresql:///d?host=a,b&port=1,2,3", "number of hosts and ports"),
        *((f"postgresql://{host}/d", "host in the database's address") for host in ("a..b", "a" * 64)),
        ("postgresql://h/d?hostaddr=abc", "hostaddr in the database's address is invalid"),
        ("postgresql://h/d?host=g", "host occurs twice"),
        ("postgresql://u:canary@h/d?password=canary", "password occurs twice"),
        ("postgresql://h/d?sslmode=a&sslmode=b", "sslmode occurs twice"),
        ("postgresql://h/d?timeout=abc", 'invalid connection option "timeout"'),
        *(
            (f"postgresql://h/d?{name}=0", f'invalid connection option "{name}"')
            for name in (
                "prepare_threshold",
                "autocommit",
                "row_factory",
                "cursor_factory",
                "async_",
                "sslmod",
            )
        ),
        ("postgresql://h/d?plugin=x", "Can't load plugin"),
        ("postgresql://h/d?conninfo=x", "missing"),
        *(
            (f"postgresql://h/d?{name}=x", f"invalid {name} value")
            for name in ("sslmode", "target_session_attrs", "channel_binding", "gssencmode", "require_auth")
        ),
        ("postgresql://h/d?service=none", 'service "none" not found'),
        *(
            (f"postgresql://h/d?{name}={value}", f"{name} .* must be an integer")
            for name in ("connect_timeout", "keepalives", "keepalives_idle", "tcp_user_timeout")
            for value in ("abc", "1.5", "9999999999")
        ),
        ("postgresql://h/a%00b", "NUL"),
        ("postgresql://h/d?application_name=a\0b", "NUL"),
        ("postgresql://\ud800@h/d", "isn't text"),
    ],
)
async def test_an_invalid_postgresql_url_is_rejected(folder, address, problem):
    """A mistake in an address is an error that names it before any connection, and repeats no password."""
    await assert_rejected(address.replace("canary", SECRET), problem)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "spelt",
    [
        "postgres://postgres@127.0.0.1:{}/postgres",
        "PostgreSQL://postgres:p%40s%2Fs@127.0.0.1:{}/postgres",
        "postgres://postgres:p/w?#x@127.0.0.1:{}/postgres",
        "postgresql+psycopg://postgres@127.0.0.1:{}/postgres?sslmode=prefer&connect_timeout=5",
        "postgres:///postgres?user=postgres&host=127.0.0.1&port={}",
        "postgres://postgres@/postgres?host=127.0.0.1:1&host=127.0.0.1:{}",
        "postgres://postgres@localhost:{}/postgres?hostaddr=127.0.0.1",
    ],
)
async def test_each_valid_spelling_of_a_postgresql_url(postgres, spelt):
    """Each spelling that PostgreSQL's own programs or SQLAlchemy accept opens the database."""
    await postgres.reset()
    async with Journal(spelt.format(postgres.port), key=KEY) as journal:
        assert await journal.runs() == []


async def test_a_valid_option_is_left_to_the_server(postgres):
    """A valid option is left to the server, or to libpq's build, to reject."""
    await postgres.reset()
    with pytest.raises(JournalError, match="SSL"):
        await Journal(f"{postgres.url}?sslmode=require", key=KEY).open()
    with pytest.raises(JournalError, match="GSS"):
        await Journal(f"{postgres.url}?gssencmode=require", key=KEY).open()
    with pytest.raises(JournalError, match=r"/none/\.s\.PGSQL"):
        await Journal("postgres://%2Fnone/d", key=KEY).open()


async def test_a_very_long_lease(postgres):
    """Time limits derived from the lease stay within what the operating system and the server accept."""
    await postgres.reset()
    async with Journal(postgres.url, key=KEY, lease=1e9) as journal:
        assert await journal.runs() == []
