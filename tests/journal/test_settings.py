"""The settings of a journal: keys, paths and names, and which of them are rejected."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from journal_support import KEY, OTHER_KEY, THIRD_KEY, creation_requests, execute, read_records
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE, OWNER, python_process

from plaid_relay_async import ConfigurationError, JournalError, NotSentError, RelayClient
from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

# ---------------------------------------------------------------------------------------------- keys


async def test_no_file_contains_a_secret(plaid, client, report, tmp_path):
    """No token, report or secret is stored in plain text, and no other user may read the files."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 50), journal=journal)
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
        assert {each.stat().st_mode & 0o077 for each in tmp_path.iterdir()} == {0}
    secrets = [o.relay_token for o in result.created] + [report, OWNER.secret, KEY]
    assert b"p49" in written
    assert not [secret for secret in secrets if secret.encode() in written]


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("token", ["a\0b", "a\ud800b", "ü b"])
async def test_a_token_may_be_any_string(plaid, client, report, url, key, token):
    """A token that no database stores as text is returned unchanged, and so are the others of its group."""
    body = {"relay_token": token, "request_id": "r"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=200, body=body))
    async with Journal(url, run="x", key=key) as journal:
        for _ in range(2):
            result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
            assert result.counts == {"created": 3}
            assert token in {outcome.relay_token for outcome in result.created}
        assert token in {record.relay_token for record in await read_records(journal, "x")}
        assert (await client.relay.create([report], "p0", journal=journal)).relay_token == token


async def test_keys_rotate(plaid, client, report, url, monkeypatch):
    """No pair looks new under a new key, and the old key can be removed after a rotation."""
    async with Journal(url, key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 3), journal=journal)
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{OTHER_KEY}, {KEY}")
    async with Journal(url) as journal:
        assert (await client.relay.create_many(creation_requests(report, 3), journal=journal)).counts == {
            "created": 3
        }
        assert await journal.rotate() == 3
        assert await journal.rotate() == 0
    async with Journal(url, key=[OTHER_KEY]) as journal:
        assert all(record.relay_token for record in await read_records(journal, "default"))
    monkeypatch.delenv("PLAID_RELAY_KEY")
    for key, message in ((KEY, "doesn't match this journal"), (None, "is encrypted: pass its key")):
        with pytest.raises(ConfigurationError, match=message):
            await Journal(url, key=key).open()
    assert len(plaid.ledger) == 3


async def test_a_later_key_encrypts_everything(plaid, client, report, tmp_path, caplog):
    """Without a key a warning is logged. With the first key, nothing stays unencrypted."""
    path = tmp_path / "relay.db"
    async with Journal(path) as journal:
        response = await client.relay.create([report], "p", journal=journal)
    assert "the journal has no key" in caplog.text
    assert response.relay_token.encode() in path.read_bytes()
    async with Journal(path, key=KEY) as journal:
        assert [record.relay_token for record in await read_records(journal, "default")] == [
            response.relay_token
        ]
        assert response.relay_token.encode() not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


async def test_an_interrupted_first_use_of_a_key_is_finished_later(plaid, client, report, tmp_path):
    """The next opening encrypts the remaining tokens."""
    path = tmp_path / "relay.db"
    async with Journal(path) as journal:
        result = await client.relay.create_many(creation_requests(report, 2), journal=journal)
        broken = schema.entries.update().where(schema.entries.c.partner == "p1")
        strange = Fernet(Fernet.generate_key()).encrypt(b"t").decode()
        await execute(path, broken.values(token=strange))
    journal = Journal(path, key=KEY)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="doesn't match this journal"):
            await journal.open()
    await execute(path, broken.values(token=f"clear:{result.created[1].relay_token}"))
    async with journal:
        assert {record.relay_token for record in await read_records(journal, "default")} == {
            outcome.relay_token for outcome in result.created
        }
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert not [outcome for outcome in result.created if outcome.relay_token.encode() in written]


@pytest.mark.parametrize("key", [KEY.encode(), f"{KEY}, {OTHER_KEY}", [KEY.encode(), OTHER_KEY]])
async def test_a_key_in_other_forms(tmp_path, key):
    """A key may be bytes, and one string may contain several."""
    async with Journal(tmp_path / "relay.db", key=key):
        pass
    async with Journal(tmp_path / "relay.db", key=KEY):
        pass


@pytest.mark.parametrize("name", ["a?b.db", "50%25.db", "a#b.db"])
async def test_a_path_with_characters_of_a_url(tmp_path, name):
    """The path names that file, and no other is created."""
    async with Journal(str(tmp_path / name), key=KEY) as journal:
        assert journal.path == tmp_path / name
    assert (tmp_path / name).stat().st_size > 0


# --------------------------------------------------------------------------------------- invalid settings


@pytest.mark.parametrize(
    ("address", "settings", "message"),
    [
        ("mysql://h/d", {}, "SQLite or PostgreSQL, not in mysql"),
        ("://", {}, "neither a path nor a URL"),
        ("sqlite://", {}, "can't be stored in memory"),
        (create_async_engine("sqlite+aiosqlite://"), {}, "can't be stored in memory"),
        ("x.db", {"run": ""}, "run must be a non-empty string"),
        ("x.db", {"namespace": 3}, "namespace must be a non-empty string"),
        ("x.db", {"lease": 0}, "lease must be a finite number of seconds, above 0"),
        ("x.db", {"on_existing": "keep"}, "on_existing must be"),
        ("x.db", {"key": "short"}, "must be 32 random bytes"),
        ("x.db", {"key": [None]}, "must be 32 random bytes"),
        ("x.db", {"key": f"{KEY},short"}, "must be 32 random bytes"),
        ("x.db", {"key": []}, "key= contains no key"),
        ("x.db", {"key": " , "}, "key= contains no key"),
        ("x.db", {"run": "\ud800"}, "run must be a non-empty string .* printable characters"),
    ],
)
async def test_an_invalid_argument_is_rejected(address, settings, message):
    """The error names it."""
    with pytest.raises(ConfigurationError, match=message):
        Journal(address, **{"key": KEY, **settings})


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [
        (0o600, KEY.encode(), None),
        (0o600, f"{THIRD_KEY},\n {KEY}\n".encode(), None),
        (0o640, KEY.encode(), "permissions are too open"),
        (0o600, b"\n", "contains no key"),
        (0o600, b"\xff", "isn't text"),
        (None, b"", "No such file"),
    ],
)
def test_a_key_in_a_file(tmp_path, mode, content, message):
    """The file must be private, and may contain several keys; an error doesn't quote its content."""
    path = tmp_path / "key"
    if mode is not None:
        path.touch(mode)
        path.chmod(mode)
        path.write_bytes(content)
    if message is None:
        Journal(tmp_path / "relay.db", key=path)
        return
    with pytest.raises(ConfigurationError, match=message) as caught:
        Journal(tmp_path / "relay.db", key=path)
    assert KEY not in str(caught.value)


async def test_a_gateway_needs_a_namespace(plaid, report, tmp_path):
    """Without one, pairs of different lenders would have the same name."""
    async with RelayClient(gateway_key="k", base_url=plaid.url) as client:
        async with Journal(tmp_path / "relay.db", key=KEY) as journal:
            with pytest.raises(ConfigurationError, match="needs namespace="):
                await client.relay.create([report], "p", journal=journal)
        assert not plaid.requests
        async with Journal(tmp_path / "relay.db", key=KEY, namespace="lender") as journal:
            with pytest.raises(Exception, match="sent"):
                await client.relay.create([report], "p", journal=journal)
        assert len(plaid.requests) == 1


async def test_missing_credentials_fail_only_their_request(plaid, report, tmp_path):
    """The source of the credentials raised, so nothing was sent."""
    sources = iter([OWNER, OWNER, None, OWNER, OWNER])

    async def source():
        if (credentials := next(sources)) is None:
            raise OSError
        return credentials

    async with (
        RelayClient(source, base_url=plaid.url) as client,
        Journal(tmp_path / "r.db", key=KEY) as journal,
    ):
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal, concurrency=1)
    assert result.counts == {"created": 2, "failed": 1}
    assert isinstance(result.failed[0].error, NotSentError)


async def test_a_journal_is_opened_once_and_used_while_it_is_open(client, report, url):
    """Misuse is an error that names it, and closing twice is harmless."""
    journal = Journal(url, key=KEY)
    with pytest.raises(JournalError, match="isn't open"):
        await client.relay.create([report], "p", journal=journal)
    async with journal:
        assert repr(journal) == "<Journal, run 'default'>"
        with pytest.raises(JournalError, match="already open") as caught:
            await journal.open()
        assert "`async with` is enough" in caught.value.advice
        for none in ("x", "\ud800", "\0"):
            with pytest.raises(JournalError, match="has no run '"):
                await journal.status(none)
        with pytest.raises(ConfigurationError, match="partner must be a non-empty string"):
            await read_records(journal, "x", partner="\ud800")
        assert await journal.runs() == []
    await journal.close()


@pytest.mark.parametrize("outcomes", [{"created", "typo"}, ["Created"], [None], [["created"]]])
async def test_an_unknown_outcome_name_is_rejected(tmp_path, outcomes):
    """The error names the outcomes that a record can have, instead of yielding no record."""
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        with pytest.raises(ConfigurationError) as caught:
            await read_records(journal, "x", outcomes=outcomes)
    for name in ("created", "failed", "unknown", "removed", "not_attempted", "in_flight"):
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize("outcomes", ["created", b"created", None, iter(["created"])])
async def test_outcomes_are_a_collection_of_names(tmp_path, outcomes):
    """One string would be a collection of letters, and an iterator would be empty after the first record."""
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        with pytest.raises(ConfigurationError, match="outcomes must be a collection of names"):
            await read_records(journal, "x", outcomes=outcomes)


@pytest.mark.parametrize("name", ["retry_unknown", "retry_failed"])
@pytest.mark.parametrize("value", ["no", None, 1])
def test_a_setting_that_may_create_second_tokens_is_a_bool(name, value):
    """The text "no" isn't understood as True."""
    with pytest.raises(ConfigurationError, match=f"{name} must be True or False"):
        Journal("relay.db", key=KEY, **{name: value})


@pytest.mark.parametrize(
    ("missing", "action", "message"),
    [
        ("sqlalchemy", "", "plaid_relay_async[journal]"),
        ("psycopg", "asyncio.run(Journal('postgresql://h/d').open())", "plaid_relay_async[postgres]"),
    ],
)
async def test_a_missing_extra_is_named(missing, action, message):
    """The error names the extra to install."""
    source = f"import asyncio, sys; sys.modules[{missing!r}] = None\n"
    async with python_process(f"{source}from plaid_relay_async.journal import Journal\n{action}") as process:
        output, _ = await process.communicate()
    assert message in output.decode()
