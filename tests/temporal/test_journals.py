"""The journals that a worker has open: which ones are shared, closed and replaced, and when."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from journal_support import KEY, creation_requests, read_records
from support import CREATE
from temporal_support import LONG, wait_for_requests

from plaid_relay_async import BatchStoppedError, ConfigurationError, JournalError
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.journal import JournalSettings
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal.journals import OpenJournals

pytestmark = pytest.mark.may_block  # psycopg's own

ALIVE = (
    "SELECT name FROM relay_holders JOIN relay_runs ON relay_runs.id = run_id WHERE NOT ended ORDER BY name"
)
CONNECTIONS = (
    "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
    "AND datname = current_database()"
)
IDLE = 0.1  # seconds


def settings(run):
    return JournalSettings(run, "reuse", retry_unknown=False, retry_failed=False)


@contextlib.asynccontextmanager
async def open_journals(url, **options):
    """Yield the journals of a worker, and close them at the end."""
    journals = OpenJournals(url, key=KEY, **{"idle_seconds": LONG} | options)
    try:
        yield journals
    finally:
        await journals.close()


async def create(client, report, journals, run, count=1):
    """Create for a number of partners, and return the result and the journal."""
    async with journals.use(settings(run)) as journal:
        return await client.relay.create_many(creation_requests(report, count), journal=journal), journal


async def wait_until_rows(postgres, query, count):
    """Wait until a query has a number of rows."""
    async with asyncio.timeout(LONG):
        while len(rows := await postgres.execute(query)) != count:
            await asyncio.sleep(0.02)
    return rows


async def test_a_journal_that_is_not_used_is_closed(client, plaid, report, journal_url, postgres):
    """It holds no connections any more, and the tokens of its run can be forgotten."""
    async with open_journals(journal_url, idle_seconds=IDLE) as journals:
        result, first = await create(client, report, journals, "x", 2)
        await wait_until_rows(postgres, CONNECTIONS, 0)
        async with Journal(journal_url, run="other", key=KEY) as journal:
            forgotten = await journal.forget("x")
        async with journals.use(settings("x")) as second:
            status = await second.status("x")
    assert result.counts == status.counts == {"created": 2}
    assert forgotten == len(plaid.ledger) == 2
    assert first is not second


async def test_a_journal_in_use_is_not_closed(client, report, journal_url, postgres):
    """Each use cancels the timer that would close it."""
    async with open_journals(journal_url, idle_seconds=IDLE) as journals:
        _, before = await create(client, report, journals, "used")
        async with journals.use(settings("used")) as journal:
            await create(client, report, journals, "unused")
            remaining = await wait_until_rows(postgres, ALIVE, 1)
            _, same = await create(client, report, journals, "used")
    assert remaining == [("used",)]
    assert before is journal is same


async def test_a_run_is_in_progress_while_its_journal_is_open(client, report, journal_url, postgres):
    """Its tokens can't be forgotten then, and they can once the journals are closed."""
    async with Journal(journal_url, run="other", key=KEY) as journal:
        async with open_journals(journal_url) as journals:
            await create(client, report, journals, "x")
            with pytest.raises(JournalError, match="a process is working on the run 'x'"):
                await journal.forget("x")
        assert await journal.forget("x") == 1
    assert await postgres.execute(ALIVE) == []


async def test_a_journal_that_has_failed_is_replaced(journal_url, postgres):
    """The next call gets another one; the failed one is closed when the last call leaves it."""
    async with open_journals(journal_url) as journals:
        with pytest.raises(JournalError, match="again"):
            async with journals.use(settings("x")) as failed:
                with pytest.raises(JournalError, match="the first time"):
                    async with journals.use(settings("x")) as same:
                        raise JournalError("the first time")
                async with journals.use(settings("x")) as replacement:
                    runs = await failed.runs()
                raise JournalError("again")
        async with journals.use(settings("x")) as current:
            await wait_until_rows(postgres, CONNECTIONS, 1)
    assert runs == []
    assert failed is same
    assert replacement is current is not failed


async def test_an_error_of_a_call_does_not_replace_its_journal(journal_url):
    """Only an error of the journal does."""
    async with open_journals(journal_url) as journals:
        with pytest.raises(ConfigurationError):
            async with journals.use(settings("x")) as first:
                raise ConfigurationError("another lender")
        with pytest.raises(BatchStoppedError):
            async with journals.use(settings("x")) as second:
                raise BatchStoppedError("a callback raised") from TypeError()
        async with journals.use(settings("x")) as third:
            pass
    assert first is second is third


async def test_a_journal_that_cannot_be_opened_is_opened_later(journal_url, postgres):
    """The next call tries to open it again."""
    await postgres.execute("DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    url = journal_url.rpartition("/")[0] + "/other"
    async with open_journals(url, lease=0.2) as journals:
        await postgres.execute("ALTER DATABASE other ALLOW_CONNECTIONS false")
        with pytest.raises(JournalError):
            async with journals.use(settings("x")):
                pass
        await postgres.execute("ALTER DATABASE other ALLOW_CONNECTIONS true")
        async with journals.use(settings("x")) as journal:
            assert await journal.runs() == []


@contextlib.asynccontextmanager
async def unrecorded_token(client, plaid, report, journals, postgres):
    """Receive a token that the journal can't record, because its table has another name during the block."""
    plaid.fail(Fault(path=CREATE, latency=0.5))
    creating = asyncio.create_task(create(client, report, journals, "x"))
    await wait_for_requests(plaid, 1)
    await postgres.execute("ALTER TABLE relay_entries RENAME TO relay_elsewhere")
    with pytest.raises(BatchStoppedError) as raised:
        await creating
    assert [each.journalled for each in raised.value.result.created] == [False]
    yield
    await postgres.execute("ALTER TABLE relay_elsewhere RENAME TO relay_entries")


async def test_a_journal_is_closed_once_it_has_recorded_its_outcomes(
    client, plaid, report, journal_url, postgres
):
    """A token that it can't record keeps it open."""
    async with open_journals(journal_url, lease=1.0) as journals:
        async with unrecorded_token(client, plaid, report, journals, postgres):
            assert await postgres.execute(ALIVE) == [("x",)]
        await wait_until_rows(postgres, CONNECTIONS, 0)
        async with Journal(journal_url, run="other", key=KEY) as journal:
            records = await read_records(journal, "x")
    assert [each.relay_token for each in records] == [each["relay_token"] for each in plaid.ledger]


async def test_no_other_journal_is_opened_while_one_cannot_record(
    client, plaid, report, journal_url, postgres
):
    """Otherwise each call would open another one, until the database had no connection left."""
    async with open_journals(journal_url, lease=1.0) as journals:
        async with unrecorded_token(client, plaid, report, journals, postgres):
            async with asyncio.timeout(LONG):
                message = "a call has failed"
                while message == "a call has failed":  # until the first journal has tried to record the token
                    with pytest.raises(JournalError) as raised:
                        async with journals.use(settings("x")):
                            raise JournalError(message)
                    message = raised.value.args[0]
            await wait_until_rows(postgres, ALIVE, 1)
        await wait_until_rows(postgres, CONNECTIONS, 0)
        result, _ = await create(client, report, journals, "x")
    assert result.counts == {"created": 1}
    assert len(plaid.requests) == 1


async def test_the_end_does_not_wait_for_a_journal_that_cannot_record(
    client, plaid, report, journal_url, postgres
):
    """All connections are closed then."""
    journals = OpenJournals(journal_url, key=KEY, lease=1.0)
    async with unrecorded_token(client, plaid, report, journals, postgres):
        async with asyncio.timeout(LONG):
            await journals.close()
        assert await postgres.execute(CONNECTIONS) == []
    assert len(plaid.ledger) == 1


async def test_a_call_that_was_abandoned_leaves_its_journal_closed(journal_url, postgres):
    """A worker that is interrupted closes its journals while calls still use them."""
    journals = OpenJournals(journal_url, key=KEY)
    async with journals.use(settings("x")) as journal:
        await journals.close()
        with pytest.raises(JournalError, match="isn't open"):
            await journal.runs()
    assert await postgres.execute(CONNECTIONS) == []
