"""The journal, on a file of SQLite, on a caller's engine, and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import base64
import os
import sqlite3
from collections import Counter
from contextlib import ExitStack, aclosing, asynccontextmanager, closing

import pytest
from attrs import evolve
from cryptography.fernet import Fernet
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from support import OWNER, QUICK, Noting, program

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    DuplicateRequestError,
    InvalidRequestError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
)
from plaid_relay_async.errors import Hidden
from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.journal.groups import Groups
from plaid_relay_async.journal.schema import State
from plaid_relay_async.journal.writing import Begin as Beginning
from plaid_relay_async.journal.writing import Remove, ended
from plaid_relay_async.simulator import Fault

# The same each time, for they are in the names of tests.
KEY, OTHER_KEY, THIRD_KEY = (base64.urlsafe_b64encode(bytes([each]) * 32).decode() for each in b"abc")
CREATE = "/credit/relay/create"
REMOVE = "/credit/relay/remove"

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

RUN = """
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal

async def main():
    address, url, report, key = sys.argv[1:]
    async with RelayClient(Credentials("owner", "secret-of-the-owner"), base_url=address) as client:
        async with Journal(url, run="x", key=key, lease=4) as journal:
            await client.relay.create_many(RelayCreateRequest.fan_out([report], ["p0", "p1", "p2"]), journal=journal)

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "relay.db")
    server = request.getfixturevalue("postgres")
    await server.fresh()
    return server.url


@pytest.fixture
def report(plaid):
    return plaid.add_report()


def requests(report, count=10):
    return RelayCreateRequest.fan_out([report], [f"p{n}" for n in range(count)])


def of_the_ledger(plaid):
    return Counter(line["secondary_client_id"] for line in plaid.ledger)


async def all_of(journal, run, **wanted):
    async with aclosing(journal.records(run, **wanted)) as records:
        return [record async for record in records]


# ------------------------------------------------------------------------------------- what is on record


async def test_what_is_created_is_on_record_and_served(plaid, client, report, url):
    """The same run again, or another, gets the tokens that there are, and nothing is sent."""
    async with Journal(url, run="x", key=KEY) as journal:
        made = await client.relay.create_many(requests(report), journal=journal)
        again = await client.relay.create_many(requests(report), journal=journal)
    async with Journal(url, run="y", key=KEY) as journal:
        other = await client.relay.create_many(requests(report, 11), journal=journal)
        x, y = await journal.runs()
        records = await all_of(journal, "y")
        (only,) = await all_of(journal, "y", partner="p3", outcomes={"created"})
    tokens = {o.request.secondary_client_id: o.relay_token for o in made.created}
    assert all(o.journalled for o in [*made.created, *again.created, *other.created])
    assert {o.request.secondary_client_id: o.relay_token for o in again.created} == tokens
    assert {o.attempts for o in again.created} == {0}
    assert of_the_ledger(plaid) == {f"p{n}": 1 for n in range(11)}
    assert (x.name, x.counts, y.counts) == ("x", {"created": 10}, {"created": 11})
    assert x.rate > 0
    assert x.started_at <= x.last_at
    assert {r.secondary_client_id: r.relay_token for r in records}.items() >= tokens.items()
    assert [r.secondary_client_id for r in records if r.own] == ["p10"]
    assert only.relay_token == tokens["p3"]
    assert tokens["p3"] not in repr(only)


async def test_a_callers_engine_stays_the_callers(plaid, client, report, tmp_path):
    """It is used, not closed, whatever its driver."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'relay.db'}")
    for _ in range(2):
        async with Journal(engine, key=KEY) as journal:
            await client.relay.create([report], "p0", journal=journal)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM relay_entries"))).scalar_one() == 1
    assert len(plaid.ledger) == 1
    await engine.dispose()


async def test_two_at_once_make_one(plaid, client, report, url):
    """Calls for the same pair, in one process or in several, share the token that the first one makes."""
    async with Journal(url, run="a", key=KEY) as one, Journal(url, run="b", key=KEY) as two:
        calls = [client.relay.create([report], "p", journal=journal) for journal in (one, two) * 3]
        tokens = {made.relay_token for made in await asyncio.gather(*calls)}
    assert (len(tokens), len(plaid.ledger)) == (1, 1)


async def test_two_runs_over_the_same_pairs_make_each_once(plaid, client, report, url):
    """Whoever is quicker with a pair has it, the other is served; many of them meet in one group."""
    async with Journal(url, run="a", key=KEY) as one, Journal(url, run="a", key=KEY) as two:
        results = await asyncio.gather(
            *(
                client.relay.create_many(requests(report, 300), journal=journal, concurrency=30)
                for journal in (one, two)
            )
        )
    assert [result.counts["created"] for result in results] == [300, 300]
    assert set(of_the_ledger(plaid).values()) == {1}


async def test_a_cancelled_call_is_waited_for_and_kept(plaid, client, report, url):
    """Somebody who asks again gets the token that the first try made."""
    plaid.fail(Fault(path=CREATE, latency=0.2))
    async with Journal(url, key=KEY) as journal:
        first = asyncio.create_task(client.relay.create([report], "p", journal=journal))
        while not plaid.requests:
            await asyncio.sleep(0.005)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await client.relay.create([report], "p", journal=journal)).relay_token == plaid.ledger[0][
            "relay_token"
        ]
    assert len(plaid.ledger) == 1


async def test_what_is_given_up_is_unknown_on_record(plaid, report, url):
    """A second cancellation doesn't wait; what was in flight is unknown, and what had come is kept."""
    plaid.fail(Fault(path=CREATE, latency=5))
    async with RelayClient(OWNER, base_url=plaid.url) as client, Journal(url, key=KEY) as journal:
        batch = client.relay.create_many(requests(report, 2), journal=journal)
        running = asyncio.ensure_future(batch)
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        plaid.heal()
        await asyncio.sleep(0.05)
        assert (await journal.status("default")).counts == {"unknown": 2}
        with pytest.raises(OutcomeUnknownError, match="the journal has it as unknown"):
            await client.relay.create([report], "p0", journal=journal)


# --------------------------------------------------------------------------------- what is there already


@pytest.mark.parametrize(("on_existing", "made"), [("reuse", 1), ("refuse", 1), ("create", 2)])
async def test_a_pair_with_a_token_from_another_run(plaid, client, report, url, on_existing, made):
    """It is served, refused, or gets another, as the caller says, also the second time."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="y", key=KEY, on_existing=on_existing) as journal:
        for _ in range(2):
            result = await client.relay.create_many([RelayCreateRequest([report], "p")], journal=journal)
        (record,) = await all_of(journal, "y")
    assert len(plaid.ledger) == made
    if on_existing == "refuse":
        assert isinstance(result.failed[0].error, DuplicateRequestError)
        assert (record.outcome, record.error_code) == ("failed", "DuplicateRequestError")
    else:
        assert record.relay_token == result.created[0].relay_token == plaid.ledger[-1]["relay_token"]


async def test_what_failed_for_good_is_served_and_what_can_pass_is_tried_again(plaid, client, report, url):
    """A refused request would be refused again; one that met a server in trouble may pass."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=400))
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=503, body=down))
    async with Journal(url, run="x", key=KEY) as journal:
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(requests(report, 2), journal=journal, retry=short)
        plaid.heal()
        sent = len(plaid.requests)
        result = await client.relay.create_many(requests(report, 2), journal=journal)
    assert isinstance(result.failed[0].error, InvalidRequestError)
    assert result.failed[0].journalled
    assert [o.request.secondary_client_id for o in result.created] == ["p1"]
    assert len(plaid.requests) == sent + 1


async def test_unknown_stays_unknown_until_it_is_to_be_tried_again(plaid, client, report, url):
    """Another run's unknown is never taken for absent; with retry_unknown there may be two tokens."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(requests(report, 1), journal=journal)
        plaid.heal()
        assert (await client.relay.create_many(requests(report, 1), journal=journal)).counts == {"unknown": 1}
        (record,) = await all_of(journal, "x")
        assert (record.outcome, record.error_code) == ("unknown", "INTERNAL_SERVER_ERROR")
    async with Journal(url, run="y", key=KEY) as journal:
        assert (await client.relay.create_many(requests(report, 1), journal=journal)).counts == {"unknown": 1}
        assert (await journal.status("y")).error_codes == {"INTERNAL_SERVER_ERROR": 1}
    async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
        assert (await client.relay.create_many(requests(report, 1), journal=journal)).counts == {"created": 1}
        assert (await journal.status("y")).counts == {"created": 1}
    assert of_the_ledger(plaid) == {"p0": 2}


async def test_a_killed_process_leaves_unknowns(plaid, client, report, url):
    """What it had begun is in flight while it may live, and unknown once it surely doesn't."""
    for partner in ("p0", "p1", "p2"):
        plaid.fail(Fault(path=CREATE, secondary_client_id=partner, latency=30))
    async with program(RUN, plaid.url, url, report, KEY) as process:
        while len(plaid.requests) < 3:
            await asyncio.sleep(0.01)
        async with Journal(url, run="x", key=KEY, lease=4) as journal:
            assert (await journal.status("x")).counts == {"in_flight": 3}
            with pytest.raises(JournalError, match="somebody works on the run 'x'"):
                await journal.forget("x")
            waiting = asyncio.ensure_future(client.relay.create_many(requests(report, 4), journal=journal))
            await asyncio.sleep(0.1)
            process.kill()
            await process.wait()
            plaid.heal()
            result = await waiting
            assert result.counts == {"created": 1, "unknown": 3}
            assert "nobody lived to tell" in str(result.unknown[0].error)
            assert (await journal.status("x")).error_codes == {"OutcomeUnknownError": 3}


async def test_what_another_run_made_meanwhile_is_told_as_such(plaid, client, report, url):
    """A pair that failed here and has a token from elsewhere is created, as it is served."""
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=503, body=down))
    async with Journal(url, run="y", key=KEY) as y, Journal(url, run="x", key=KEY) as x:
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(requests(report, 1), journal=y, retry=short)
        plaid.heal()
        await asyncio.sleep(0.01)
        made = await client.relay.create([report], "p0", journal=x)
        for _ in range(2):
            assert (await client.relay.create([report], "p0", journal=y)).relay_token == made.relay_token
        (record,) = await all_of(y, "y")
    assert (record.outcome, record.own) == ("created", False)


async def test_what_waits_for_its_turn_is_not_attempted(plaid, report, url):
    """It is on record all the same; and whoever waits for a pair can be cancelled."""

    class Closed:
        async def acquire(self, endpoint):
            await asyncio.Event().wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Closed()) as client:
        async with Journal(url, run="x", key=KEY) as journal:
            first = asyncio.ensure_future(client.relay.create_many(requests(report, 1), journal=journal))
            second = asyncio.ensure_future(client.relay.create_many(requests(report, 1), journal=journal))
            while not await journal.runs() or not (await journal.status("x")).counts:
                await asyncio.sleep(0.01)
            assert (await journal.status("x")).counts == {"not_attempted": 1}
            for task in (second, first):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task


async def test_whoever_ended_in_good_order_is_not_waited_for(plaid, client, report, url):
    """What it had begun and not ended is unknown at once."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        begun = schema.entries.update().values(state="begun", token=None)
        await journal._write(lambda connection: connection.execute(begun).close())
        assert (await journal.status("x")).counts == {"unknown": 1}
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([report], "p", journal=journal)


async def test_a_long_run_is_told_page_by_page(plaid, client, report, tmp_path):
    """No record is left out, or told twice; keys rotate page by page, too."""
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        await client.relay.create_many(requests(report, 1_050), journal=journal, concurrency=100)
        partners = [record.secondary_client_id for record in await all_of(journal, "x")]
        assert await all_of(journal, "x", outcomes={"failed"}) == []
    assert Counter(partners) == {f"p{n}": 1 for n in range(1_050)}
    async with Journal(tmp_path / "relay.db", key=[OTHER_KEY, KEY]) as journal:
        assert await journal.rotate() == 1_050


@asynccontextmanager
async def given_up_before_it_left(path, batch):
    """Somebody else has the file as the batch begins, and lets go of it once nobody waits any more."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        hurried = asyncio.ensure_future(batch)
        await asyncio.sleep(0.1)
        for _ in range(2):
            hurried.cancel()
            await asyncio.sleep(0.05)
        yield
        other.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await hurried


async def test_what_was_cancelled_before_it_left_can_be_begun_again(plaid, client, report, tmp_path):
    """Its beginning is on record, and taken back: otherwise everybody would wait for its end."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        async with given_up_before_it_left(
            path, client.relay.create_many(requests(report, 3), journal=journal)
        ):
            pass
        assert len(plaid.requests) == 1
        result = await client.relay.create_many(requests(report, 3), journal=journal)
        assert result.counts == {"created": 3}
    assert set(of_the_ledger(plaid).values()) == {1}


async def test_what_never_left_is_taken_back_before_the_next_may_begin(plaid, client, report, tmp_path):
    """The next one of this process has the same row: its beginning isn't the one that is taken back."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, status=503, body={"error_code": "PLANNED_MAINTENANCE"}))
    short = evolve(QUICK, max_pause=0.001)
    async with Journal(path, run="x", key=KEY) as x, Journal(path, run="y", key=KEY) as y:
        await client.relay.create_many(requests(report, 1), journal=x, retry=short)
        plaid.heal()
        plaid.fail(Fault(path=CREATE, latency=0.3))
        async with given_up_before_it_left(path, client.relay.create_many(requests(report, 1), journal=x)):
            sent = len(plaid.requests)
            following = asyncio.ensure_future(client.relay.create([report], "p0", journal=x))
            await asyncio.sleep(0.1)
        while len(plaid.requests) == sent:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        made = await client.relay.create([report], "p0", journal=y)
        assert (await following).relay_token == made.relay_token
    assert len(plaid.ledger) == 1


async def test_a_token_that_comes_late_is_kept_beside_another(plaid, client, report, url):
    """Its run has it, and serves it, though another run has gone on and has one too."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        await client.relay.create_many(requests(report, 1), journal=x)
        plaid.heal()
        recorder = x._state.recorder
        asked = text("SELECT pair FROM relay_entries")
        (pair,) = await x._write(lambda connection: connection.execute(asked).scalars().all())
        mine = (await recorder.writer.look_up(pair)).own
        other = await client.relay.create([report], "p0", journal=y)
        late = plaid.ledger[0]["relay_token"]
        await recorder.writer.note(ended(mine.id, State.CREATED, token=Hidden(late)))
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == late != other.relay_token
        assert [record.relay_token for record in await all_of(x, "x")] == [late]
        assert [record.relay_token for record in await all_of(y, "y")] == [other.relay_token]


async def test_a_token_that_comes_late_outweighs_an_unknown(plaid, client, report, postgres):
    """Where the attempt that took its place is unknown, everybody is served the token."""
    await postgres.fresh()
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(postgres.url, run="x", key=KEY) as x:
        await client.relay.create_many(requests(report, 1), journal=x)
        recorder = x._state.recorder
        ((pair,),) = await postgres.execute("SELECT pair FROM relay_entries")
        mine = (await recorder.writer.look_up(pair)).own
        again, _ = await create(client, report, postgres.url, "y", retry_unknown=True)
        assert again.counts == {"unknown": 1}
        plaid.heal()
        late = plaid.ledger[0]["relay_token"]
        await recorder.writer.note(ended(mine.id, State.CREATED, token=Hidden(late)))
        for run in ("y", "z"):
            assert (await create(client, report, postgres.url, run))[0].created[0].relay_token == late
    assert len(plaid.ledger) == 2


async def test_an_unknown_stays_on_record_where_another_run_went_on(plaid, client, report, url):
    """The run is served the other's token; of its own attempt nobody can tell, as before."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        await client.relay.create_many(requests(report, 1), journal=x)
        plaid.heal()
        other = await client.relay.create([report], "p0", journal=y)
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == other.relay_token
        assert (await x.status("x")).counts == {"unknown": 1}


async def test_a_token_that_the_journal_does_not_take_is_the_callers(plaid, client, report):
    """A single call gives it; one that couldn't be begun raises the journal's error."""

    class Broken(Noting):
        async def begin(self, request):
            if request.secondary_client_id == "q":
                raise JournalError("no")

        async def end(self, outcome):
            raise JournalError("full")

    made = await client.relay.create([report], "p", journal=Broken())
    assert made.relay_token == plaid.ledger[0]["relay_token"]
    plaid.fail(Fault(path=CREATE, secondary_client_id="u", status=500, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await client.relay.create([report], "u", journal=Broken())
    with pytest.raises(JournalError, match="no"):
        await client.relay.create([report], "q", journal=Broken())


async def test_whoever_comes_second_is_told_so(client, report, url):
    """A row that isn't as it was seen, and one that isn't free, can't be begun."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        writer = journal._state.recorder.writer
        asked = text("SELECT pair FROM relay_entries")
        (pair,) = await journal._write(lambda connection: connection.execute(asked).scalars().all())
        found = (await writer.look_up(pair)).claim
        seen = evolve(found, state=State.UNKNOWN)
        assert await writer.note(Beginning(writer.values(pair, "p", None), (seen,))) is None
        assert await writer.note(Beginning(writer.values(pair, "p", found))) is None
        assert await writer.note(Remove(evolve(found, holder_id=0))) is None
        assert (await journal.status("x")).counts == {"created": 1}


# -------------------------------------------------------------------------- what takes over, and comes to nothing


async def unknown_in(client, plaid, report, url, run):
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run=run, key=KEY) as journal:
        result = await client.relay.create_many(requests(report, 1), journal=journal)
    assert result.counts == {"unknown": 1}
    plaid.heal()


async def create(client, report, url, run, count=1, **settings):
    async with Journal(url, run=run, key=KEY, **settings) as journal:
        result = await client.relay.create_many(requests(report, count), journal=journal)
        return result, await journal.status(run)


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
@pytest.mark.parametrize("status", [400, 503])
async def test_an_unknown_outlives_a_retry_that_fails(plaid, client, report, url, run, status):
    """It is told and kept as unknown, with the failure as its cause: nobody makes a second token unasked."""
    await unknown_in(client, plaid, report, url, "x")
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=status, body=down))
    async with Journal(url, run=run, key=KEY, retry_unknown=True) as journal:
        short = evolve(QUICK, max_pause=0.001)
        retried = await client.relay.create_many(requests(report, 1), journal=journal, retry=short)
        assert (await journal.status(run)).counts == {"unknown": 1}
    assert retried.counts == {"unknown": 1}
    assert retried.unknown[0].error.__cause__.status == status
    plaid.heal()
    for later in (run, "z"):
        assert (await create(client, report, url, later))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 1


async def test_unknowns_that_all_meet_the_same_error_stop_the_batch(plaid, client, report, url):
    """As new ones do: the error that was met counts, not the one that is told."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        await client.relay.create_many(requests(report, 30), journal=journal)
        plaid.heal()
        code = {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        plaid.fail(Fault(path=CREATE, status=400, body=code))
        sent = len(plaid.requests)
        result = await client.relay.create_many(requests(report, 30), journal=journal, concurrency=2)
        assert result.counts["unknown"] < 6
        assert len(plaid.requests) < sent + 6
        assert result.stopped_by.error_code == "INVALID_API_KEYS"
        assert (await journal.status("x")).counts == {"unknown": 30}


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
async def test_an_unknown_outlives_a_retry_that_never_left(plaid, client, report, tmp_path, run):
    """Its beginning is taken back, and the doubt of the attempt before it stays."""
    path = tmp_path / "relay.db"
    await unknown_in(client, plaid, report, path, "x")
    async with Journal(path, run=run, key=KEY, retry_unknown=True) as journal:
        await client.relay.create([report], "another", journal=journal)
        async with given_up_before_it_left(
            path, client.relay.create_many(requests(report, 1), journal=journal)
        ):
            pass
    for later in (run, "z"):
        result, status = await create(client, report, path, later)
        assert result.counts == {"unknown": 1}
        assert status.counts["unknown"] == 1
    assert of_the_ledger(plaid) == {"p0": 1, "another": 1}


async def test_an_unknown_outlives_the_token_of_its_retry(plaid, client, report, url):
    """Once that is removed, the pair is unknown again, and the run has a record of each."""
    await unknown_in(client, plaid, report, url, "x")
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        made = await client.relay.create([report], "p0", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(made.relay_token, journal=journal)
        plaid.heal()
        assert (await create(client, report, url, "z"))[0].counts == {"unknown": 1}
        assert (await client.relay.remove(made.relay_token, journal=journal)).removed
        assert sorted(r.outcome for r in await all_of(journal, "x")) == ["removed", "unknown"]
    assert (await create(client, report, url, "x"))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 2


async def test_tokens_outlive_others_that_were_to_be_made(plaid, client, report, url):
    """Where those fail, are unknown or are removed, the first ones are there to be served, and to be refused."""
    first, _ = await create(client, report, url, "x", 5)
    assert (await create(client, report, url, "served", 5))[0].counts == {"created": 5}
    plaid.fail(Fault(path=CREATE, status=400))
    assert (await create(client, report, url, "failing", 5, on_existing="create"))[0].counts == {"failed": 5}
    plaid.heal()
    plaid.fail(Fault(path=CREATE, status=500, when="before"))
    assert (await create(client, report, url, "unsure", 5, on_existing="create"))[0].counts == {"unknown": 5}
    plaid.heal()
    async with Journal(url, run="removing", key=KEY, on_existing="create") as journal:
        made = await client.relay.create_many(requests(report, 5), journal=journal)
        tokens = [outcome.relay_token for outcome in made.created]
        assert (await client.relay.remove_many(tokens, journal=journal)).counts == {"removed": 5}
        assert (await journal.status("served")).counts == {"created": 5}
    assert (await create(client, report, url, "unsure", 5, on_existing="create"))[0].counts == {"unknown": 5}
    assert (await create(client, report, url, "y", 5, on_existing="refuse"))[0].counts == {"failed": 5}
    last, status = await create(client, report, url, "z", 5)
    assert {o.relay_token for o in last.created} == {o.relay_token for o in first.created}
    assert status.counts == {"created": 5}
    assert len(plaid.ledger) == 10


async def test_an_end_that_is_written_twice_changes_nothing_that_came_between(plaid, client, report, url):
    """Its connection was lost before it was told so, and others have gone on meanwhile."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="x", key=KEY) as y:
        plaid.fail(Fault(path=CREATE, status=503, body={"error_code": "PLANNED_MAINTENANCE"}))
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(requests(report, 1), journal=x, retry=short)
        plaid.heal()
        asked = text("SELECT id FROM relay_entries")
        (number,) = await x._write(lambda connection: connection.execute(asked).scalars().all())
        made = await client.relay.create([report], "p0", journal=y)
        await x._state.recorder.writer.note(ended(number, State.FAILED))
        await x._state.recorder.writer.note(ended(number, State.UNKNOWN))
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == made.relay_token


async def test_whoever_dies_while_it_is_asked_for_is_looked_at_anew(plaid, client, report, url):
    """What it wrote between the question what there is and the question whether it lives is seen."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        await client.relay.create([report], "p0", journal=x)
        holders, holder = y._state.holders, x._state.recorder.writer._holder
        asked = text("SELECT state FROM relay_entries")
        begun = text("UPDATE relay_entries SET state = 'begun'")
        await y._write(lambda connection: connection.execute(begun).close())
        seen = []

        def work(connection):
            def look():
                seen.append(connection.execute(asked).scalar_one())
                if len(seen) == 1:
                    done = text("UPDATE relay_entries SET state = 'created'")
                    connection.execute(done)
                    connection.execute(schema.holders.update().values(ended=True))
                return seen[-1]

            return holders.seen(connection, look, lambda state: {holder.id} if state == "begun" else set())

        told, alive = await y._write(work)
        assert (seen, told, alive.living) == (["begun", "created"], "created", frozenset())


async def test_words_of_a_server_that_no_database_takes(plaid, client, report, url):
    """They are kept as far as they can be, and nothing else is lost with them."""
    odd = {"error_type": "\ud800", "error_code": "A\0B", "request_id": "r\0\udfff"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=400, body=odd))
    async with Journal(url, run="x", key=KEY) as journal:
        result = await client.relay.create_many(requests(report, 3), journal=journal)
        assert result.counts == {"created": 2, "failed": 1}
        (record,) = await all_of(journal, "x", outcomes={"failed"})
    assert (record.error_code, record.request_id) == ("A?B", "r??")


# ------------------------------------------------------------------------------------------- removals


async def test_a_removed_token_is_not_served(plaid, client, report, url):
    """The journal knows of the removal, which isn't sent twice; the pair gets a new token."""
    async with Journal(url, run="x", key=KEY) as journal:
        first = await client.relay.create([report], "p", journal=journal)
        assert (await client.relay.remove(first.relay_token, journal=journal)).removed
        sent = len(plaid.requests)
        assert (await client.relay.remove(first.relay_token, journal=journal)).inferred
        assert len(plaid.requests) == sent
        second = await client.relay.create([report], "p", journal=journal)
        assert second.relay_token != first.relay_token
        assert (await journal.status("x")).counts == {"created": 1, "removed": 1}


async def test_a_removal_that_nobody_knows_the_end_of(plaid, client, report, url):
    """Told afterwards that there is no such token, it is gone; a refused one leaves the token as it was."""
    async with Journal(url, run="x", key=KEY) as journal:
        made = await client.relay.create([report], "p", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=400))
        with pytest.raises(InvalidRequestError):
            await client.relay.remove(made.relay_token, journal=journal)
        plaid.heal()
        plaid.fail(Fault(path=REMOVE, status=500, when="after"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(made.relay_token, journal=journal)
        plaid.heal()
        assert [r.outcome for r in await all_of(journal, "x")] == ["created"]
        result = await client.relay.remove_many([made.relay_token], journal=journal)
        assert result.succeeded[0].response.inferred
        assert (await journal.status("x")).counts == {"removed": 1}


async def test_a_token_that_the_journal_does_not_know(plaid, client, report, url):
    """It is removed, and the outcome says that it isn't written down; no run comes of it."""
    strange = await client.relay.create([report], "q")
    async with Journal(url, key=KEY) as journal:
        result = await client.relay.remove_many([strange.relay_token], journal=journal)
        assert (result.counts, result.succeeded[0].journalled) == ({"removed": 1}, False)
        assert await journal.runs() == []


async def test_a_removal_that_never_left_leaves_the_token(plaid, client, report, tmp_path):
    """Its beginning is taken back: otherwise the pair would get another token beside it."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        made = await client.relay.create([report], "p", journal=journal)
        async with given_up_before_it_left(
            path, client.relay.remove_many([made.relay_token], journal=journal)
        ):
            pass
        again = await client.relay.create([report], "p", journal=journal)
    assert again.relay_token == made.relay_token
    assert (len(plaid.ledger), len(plaid.requests)) == (1, 1)


async def test_a_creation_waits_for_a_removal(plaid, client, report, url):
    """If that is refused, the token is served, and there are no two."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        made = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400, latency=0.2))
        removal = asyncio.ensure_future(client.relay.remove(made.relay_token, journal=y))
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        assert (await client.relay.create([report], "p", journal=x)).relay_token == made.relay_token
        with pytest.raises(InvalidRequestError):
            await removal
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize("together", [True, False], ids=["one process", "two processes"])
async def test_removals_of_one_token_take_turns(plaid, client, report, url, together):
    """What the one comes to isn't undone by what the other comes to."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        made = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400, latency=0.2, times=1))
        first = asyncio.ensure_future(client.relay.remove(made.relay_token, journal=x))
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        plaid.fail(Fault(path=REMOVE, status=500, when="after"))
        second = client.relay.remove_many([made.relay_token], journal=x if together else y)
        assert (await second).counts == {"unknown": 1}
        plaid.heal()
        with pytest.raises(InvalidRequestError):
            await first
        assert (await client.relay.remove(made.relay_token, journal=y)).inferred
        assert (await client.relay.create([report], "p", journal=y)).relay_token != made.relay_token


async def test_whose_lease_has_lapsed_removes_nothing(plaid, client, report, postgres):
    """Others don't wait for it any more: they could make another token beside one that isn't removed."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        made = await client.relay.create([report], "p", journal=journal)
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        with pytest.raises(JournalError, match="the lease on the journal lapsed"):
            await client.relay.remove(made.relay_token, journal=journal)
    assert len(plaid.requests) == 1


async def test_a_removal_whose_repeat_is_refused(plaid, client, report, url):
    """It is the lost one's error that is told, for that may have been carried out."""
    async with Journal(url, run="x", key=KEY) as journal:
        made = await client.relay.create([report], "p", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(made.relay_token, journal=journal)
        plaid.heal()
        plaid.fail(Fault(path=REMOVE, status=400))
        with pytest.raises(OutcomeUnknownError, match="a removal of it was begun") as caught:
            await client.relay.remove(made.relay_token, journal=journal)
        assert "Remove it again, which is safe" in str(caught.value)
        plaid.heal()
        assert (await client.relay.remove(made.relay_token, journal=journal)).removed


async def test_forgotten_tokens_are_gone_and_counted(plaid, client, report, url):
    """The pair isn't created again by accident."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(requests(report, 3), journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        assert await journal.forget("x") == 3
        assert [(r.outcome, r.relay_token) for r in await all_of(journal, "x")] == [("created", None)] * 3
        result = await client.relay.create_many(requests(report, 3), journal=journal)
        assert {type(o.error) for o in result.failed} == {DuplicateRequestError}
    assert len(plaid.ledger) == 3


# ---------------------------------------------------------------------------------------------- keys


async def test_no_secret_lies_in_the_file(plaid, client, report, tmp_path):
    """Neither token nor report nor secret, log included; and nobody else may read any of it."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY) as journal:
        made = await client.relay.create_many(requests(report, 50), journal=journal)
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
        assert {each.stat().st_mode & 0o077 for each in tmp_path.iterdir()} == {0}
    secrets = [o.relay_token for o in made.created] + [report, OWNER.secret, KEY]
    assert b"p49" in written
    assert not [secret for secret in secrets if secret.encode() in written]


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("token", ["a\0b", "a\ud800b", "ü b"])
async def test_a_token_is_whatever_plaid_says(plaid, client, report, url, key, token):
    """It is served as it came, though no database takes it, and others are kept beside it."""
    said = {"relay_token": token, "request_id": "r"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=200, body=said))
    async with Journal(url, run="x", key=key) as journal:
        for _ in range(2):
            result = await client.relay.create_many(requests(report, 3), journal=journal)
            assert result.counts == {"created": 3}
            assert token in {outcome.relay_token for outcome in result.created}
        assert token in {record.relay_token for record in await all_of(journal, "x")}
        assert (await client.relay.create([report], "p0", journal=journal)).relay_token == token


async def test_keys_rotate(plaid, client, report, url, monkeypatch):
    """No pair looks new under a new key; once rotated, the old key may go. Two keys stand in the variable."""
    async with Journal(url, key=KEY) as journal:
        await client.relay.create_many(requests(report, 3), journal=journal)
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{OTHER_KEY}, {KEY}")
    async with Journal(url) as journal:
        assert (await client.relay.create_many(requests(report, 3), journal=journal)).counts == {"created": 3}
        assert await journal.rotate() == 3
        assert await journal.rotate() == 0
    async with Journal(url, key=[OTHER_KEY]) as journal:
        assert all(record.relay_token for record in await all_of(journal, "default"))
    monkeypatch.delenv("PLAID_RELAY_KEY")
    for wrong, words in ((KEY, "doesn't open this journal"), (None, "is encrypted: give its key")):
        with pytest.raises(ConfigurationError, match=words):
            await Journal(url, key=wrong).open()
    assert len(plaid.ledger) == 3


async def test_a_key_that_comes_later_leaves_nothing_in_clear(plaid, client, report, tmp_path, caplog):
    """Without one it is said, and the file is as readable as its owner lets it be."""
    path = tmp_path / "relay.db"
    async with Journal(path) as journal:
        made = await client.relay.create([report], "p", journal=journal)
    assert "the journal has no key" in caplog.text
    assert made.relay_token.encode() in path.read_bytes()
    async with Journal(path, key=KEY) as journal:
        assert [record.relay_token for record in await all_of(journal, "default")] == [made.relay_token]
        assert made.relay_token.encode() not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


async def test_a_key_whose_first_use_was_cut_short(plaid, client, report, tmp_path):
    """The next opening does the rest: no token stays in clear."""
    path = tmp_path / "relay.db"
    async with Journal(path) as journal:
        made = await client.relay.create_many(requests(report, 2), journal=journal)
        broken = schema.entries.update().where(schema.entries.c.partner == "p1")
        strange = Fernet(Fernet.generate_key()).encrypt(b"t").decode()
        await journal._write(lambda connection: connection.execute(broken.values(token=strange)).close())
    journal = Journal(path, key=KEY)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="doesn't open this journal"):
            await journal.open()
    async with Journal(path) as clear:
        token = f"clear:{made.created[1].relay_token}"
        await clear._write(lambda connection: connection.execute(broken.values(token=token)).close())
    async with journal:
        assert {record.relay_token for record in await all_of(journal, "default")} == {
            outcome.relay_token for outcome in made.created
        }
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert not [outcome for outcome in made.created if outcome.relay_token.encode() in written]


@pytest.mark.parametrize("key", [KEY.encode(), f"{KEY}, {OTHER_KEY}", [KEY.encode(), OTHER_KEY]])
async def test_a_key_in_other_forms(tmp_path, key):
    """As bytes, as cryptography gives it, and several in one string."""
    async with Journal(tmp_path / "relay.db", key=key):
        pass
    async with Journal(tmp_path / "relay.db", key=KEY):
        pass


@pytest.mark.parametrize("name", ["a?b.db", "50%25.db", "a#b.db"])
async def test_a_path_with_marks_of_a_url(tmp_path, name):
    """It is that file, and no other."""
    async with Journal(str(tmp_path / name), key=KEY) as journal:
        assert journal.path == tmp_path / name
    assert (tmp_path / name).stat().st_size > 0


# --------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "settings", "told"),
    [
        ("mysql://h/d", {}, "SQLite or PostgreSQL, not in mysql"),
        ("://", {}, "neither a path nor a URL"),
        ("sqlite://", {}, "in memory would survive nothing"),
        (create_async_engine("sqlite+aiosqlite://"), {}, "in memory would survive nothing"),
        ("sqlite:///file:x?mode=memory&uri=true", {}, "in memory would survive nothing"),
        ("x.db", {"run": ""}, "run must be a string"),
        ("x.db", {"namespace": 3}, "namespace must be a string"),
        ("x.db", {"lease": 0}, "lease must be a number of seconds above 0"),
        ("x.db", {"on_existing": "keep"}, "on_existing must be"),
        ("x.db", {"key": "short"}, "must be 32 random bytes"),
        ("x.db", {"key": [None]}, "must be 32 random bytes"),
        ("x.db", {"key": f"{KEY},short"}, "must be 32 random bytes"),
        ("x.db", {"key": []}, "key= holds no key"),
        ("x.db", {"key": " , "}, "key= holds no key"),
        ("x.db", {"run": "\ud800"}, "run must be a string .* that can be shown"),
    ],
)
async def test_what_makes_no_sense_is_refused(words, settings, told):
    """It is named."""
    with pytest.raises(ConfigurationError, match=told):
        Journal(words, **{"key": KEY, **settings})


@pytest.mark.parametrize(
    ("mode", "content", "told"),
    [
        (0o600, KEY.encode(), None),
        (0o600, f"{THIRD_KEY},\n {KEY}\n".encode(), None),
        (0o640, KEY.encode(), "others may read it"),
        (0o600, b"\n", "holds no key"),
        (0o600, b"\xff", "isn't text"),
        (None, b"", "No such file"),
    ],
)
def test_a_key_in_a_file(tmp_path, mode, content, told):
    """It is the file's owner's alone, and may hold several; what is wrong with it is told, without what it holds."""
    path = tmp_path / "key"
    if mode is not None:
        path.touch(mode)
        path.chmod(mode)
        path.write_bytes(content)
    if told is None:
        Journal(tmp_path / "relay.db", key=path)
        return
    with pytest.raises(ConfigurationError, match=told) as caught:
        Journal(tmp_path / "relay.db", key=path)
    assert KEY not in str(caught.value)


async def test_a_gateway_needs_a_namespace(plaid, report, tmp_path):
    """Pairs of different owners would be the same without."""
    async with RelayClient(gateway_key="k", base_url=plaid.url) as client:
        async with Journal(tmp_path / "relay.db", key=KEY) as journal:
            with pytest.raises(ConfigurationError, match="needs a namespace="):
                await client.relay.create([report], "p", journal=journal)
        assert not plaid.requests
        async with Journal(tmp_path / "relay.db", key=KEY, namespace="lender") as journal:
            with pytest.raises(Exception, match="sent"):
                await client.relay.create([report], "p", journal=journal)
        assert len(plaid.requests) == 1


async def test_credentials_that_cannot_be_had_fail_their_request_alone(plaid, report, tmp_path):
    """Their source raised: nothing was sent."""
    sources = iter([OWNER, OWNER, None, OWNER, OWNER])

    async def source():
        if (found := next(sources)) is None:
            raise OSError
        return found

    async with (
        RelayClient(source, base_url=plaid.url) as client,
        Journal(tmp_path / "r.db", key=KEY) as journal,
    ):
        result = await client.relay.create_many(requests(report, 3), journal=journal, concurrency=1)
    assert result.counts == {"created": 2, "failed": 1}
    assert isinstance(result.failed[0].error, NotSentError)


async def test_a_file_that_others_may_read_is_refused(tmp_path):
    """Tokens would lie in it."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o644)
    with pytest.raises(ConfigurationError, match="chmod 600 first"):
        await Journal(path, key=KEY).open()


async def test_a_journal_is_opened_once_and_used_while_it_is_open(client, report, url):
    """Misuse is told, and closing twice is harmless."""
    journal = Journal(url, key=KEY)
    with pytest.raises(JournalError, match="isn't open"):
        await client.relay.create([report], "p", journal=journal)
    async with journal:
        assert repr(journal) == "<Journal, run 'default'>"
        with pytest.raises(JournalError, match="open already"):
            await journal.open()
        for none in ("x", "\ud800", "\0"):
            with pytest.raises(JournalError, match="has no run '"):
                await journal.status(none)
        with pytest.raises(ConfigurationError, match="partner must be a string"):
            await all_of(journal, "x", partner="\ud800")
        assert await journal.runs() == []
    await journal.close()


@pytest.mark.parametrize(
    ("missing", "action", "told"),
    [
        ("sqlalchemy", "", "plaid_relay_async[journal]"),
        ("psycopg", "asyncio.run(Journal('postgresql://h/d').open())", "plaid_relay_async[postgres]"),
    ],
)
async def test_a_missing_extra_is_named(missing, action, told):
    """What is to be installed stands in the error."""
    source = f"import asyncio, sys; sys.modules[{missing!r}] = None\n"
    async with program(f"{source}from plaid_relay_async.journal import Journal\n{action}") as process:
        said, _ = await process.communicate()
    assert told in said.decode()


# --------------------------------------------------------------------------------------- the database


async def test_a_later_release_made_it(url):
    """It is left alone."""
    async with Journal(url, key=KEY) as journal:
        await journal._write(lambda c: c.execute(schema.journals.update().values(version=99)).close())
    with pytest.raises(JournalError, match="version 99 of its tables"):
        await Journal(url, key=KEY).open()


def test_an_earlier_release_made_it(tmp_path):
    """What has changed since is done once, in order."""
    engine = create_engine(f"sqlite:///{tmp_path / 'relay.db'}")
    done = []
    steps = [lambda _: done.append("two"), lambda _: done.append("three")]
    with engine.begin() as connection:
        assert schema.prepare(connection, "key") == "key"
    for _ in range(2):
        with engine.begin() as connection:
            assert schema.prepare(connection, "another", steps) == "key"
    assert done == ["two", "three"]
    engine.dispose()


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + os.urandom(4096)])
async def test_a_corrupt_file(tmp_path, content):
    """It is told what is wrong, and the file stays as it is."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"can't be read or written: (file is not a database|.*malformed)"):
        await Journal(path, key=KEY).open()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "told"),
    [("mode=ro&uri=true", "readonly database"), ("timeout=0.2&uri=true", "database is locked")],
)
async def test_a_file_that_cannot_be_written(plaid, client, report, tmp_path, words, told):
    """Whether it is read-only or somebody else has it: that is told, and nothing is sent."""
    path = tmp_path / "relay.db"
    async with Journal(path, key=KEY):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match=told):
            async with Journal(f"sqlite:///file:{path}?{words}", key=KEY) as journal:
                await client.relay.create([report], "p", journal=journal)
    assert not plaid.requests


async def test_a_file_that_is_locked_on_the_way(plaid, client, report, tmp_path):
    """The batch stops, nothing is begun that isn't on record, and what had come is the caller's."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=0.3))
    async with Journal(f"sqlite:///{path}?timeout=0.2", key=KEY) as journal:
        batch = client.relay.create_many(requests(report, 10), journal=journal, concurrency=2)
        running = asyncio.ensure_future(batch)
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BatchStoppedError):
                await running
        assert (await journal.status("default")).counts["in_flight"] == 2
        sent = len(plaid.requests)
        again = await client.relay.create_many(requests(report, 2), journal=journal)
        assert (again.counts, len(plaid.requests)) == ({"created": 2}, sent)
    assert {o.relay_token for o in batch.result.created} == {line["relay_token"] for line in plaid.ledger}
    assert [o.journalled for o in batch.result.created] == [False, False]
    assert "database is locked" in str(batch.result.stopped_by)


async def locked_as_it_comes(plaid, client, report, path, partner, journal, *, stack):
    """Create, and have somebody else lock the file before the answer comes; they let go as the stack ends."""
    sent = len(plaid.requests)
    running = asyncio.ensure_future(client.relay.create([report], partner, journal=journal))
    while len(plaid.requests) == sent:
        await asyncio.sleep(0.005)
    other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
    other.execute("BEGIN IMMEDIATE")
    return await running


async def test_what_could_not_be_written_is_written_later(plaid, client, report, tmp_path):
    """By itself, so that others who wait for the pair go on though nothing more happens here, and on closing."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=0.3))
    async with Journal(path, run="y", key=KEY) as y:
        for partner, meanwhile in (("p0", True), ("p1", False)):
            async with Journal(f"sqlite:///{path}?timeout=0.1", run="x", key=KEY) as x:
                with ExitStack() as stack:
                    made = await locked_as_it_comes(plaid, client, report, path, partner, x, stack=stack)
                    with pytest.raises(JournalError, match="database is locked"):
                        await client.relay.create([report], partner, journal=x)
                if meanwhile:
                    served = await client.relay.create([report], partner, journal=y)
                    assert served.relay_token == made.relay_token
        served = await client.relay.create([report], partner, journal=y)
        assert served.relay_token == made.relay_token
    assert of_the_ledger(plaid) == {"p0": 1, "p1": 1}


async def test_what_cannot_be_written_at_all_is_unknown_afterwards(plaid, client, report, tmp_path):
    """Closing doesn't fail for it: whoever it concerned was told."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, latency=0.3))
    with ExitStack() as stack:
        async with Journal(f"sqlite:///{path}?timeout=0.1", run="x", key=KEY) as journal:
            await locked_as_it_comes(plaid, client, report, path, "p", journal, stack=stack)
    async with Journal(path, run="x", key=KEY) as journal:
        assert (await journal.status("x")).counts == {"unknown": 1}


async def test_the_longest_request_counts(plaid, report, url):
    """Whoever waits for a process that died waits for as long as any of its clients may."""
    asked = text("SELECT request_seconds FROM relay_holders")
    async with Journal(url, key=KEY) as journal:
        for total, longest in ((5.0, 5.0), (9.0, 9.0), (3.0, 9.0)):
            async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=total)) as client:
                await client.relay.create([report], f"p{total}", journal=journal)
            (known,) = await journal._write(lambda connection: connection.execute(asked).scalars().all())
            assert known == longest


async def test_a_value_that_cannot_be_read_is_not_quoted(client, report, tmp_path):
    """The database's own words would hold what can be read of it, which may be a token."""
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        broken = text("UPDATE relay_entries SET token = CAST('canary' || x'ff' AS TEXT)")
        await journal._write(lambda connection: connection.execute(broken).close())
        with pytest.raises(JournalError, match="Could not decode to UTF-8") as caught:
            await all_of(journal, "x")
    assert "canary" not in str(caught.value)


async def test_a_callers_engine_on_a_server_sees_what_others_commit(postgres):
    """Within one transaction, for what is looked at anew has to be new; the engine's own setting stays."""
    await postgres.fresh()
    address = postgres.url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_async_engine(address, isolation_level="REPEATABLE READ")
    asked = text("SHOW transaction_isolation")
    async with Journal(engine, key=KEY) as journal:
        assert await journal._write(lambda c: c.execute(asked).scalar_one()) == "read committed"
    async with engine.connect() as connection:
        assert (await connection.execute(asked)).scalar_one() == "repeatable read"
    await engine.dispose()


async def test_a_folder_that_is_not_there(tmp_path):
    """The reason is the operating system's."""
    with pytest.raises(JournalError, match="No such file or directory"):
        await Journal(tmp_path / "nowhere" / "relay.db", key=KEY).open()


async def test_a_full_disk_stops_the_run_and_loses_no_token(plaid, client, report, tmp_path):
    """Nothing is begun that isn't on record, and what had come is handed over, marked as not journalled."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        engine.dispose()
        writer = journal._state.recorder.writer
        line = writer._notes._see_to.args[0]
        await line.run(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}").close())
        batch = client.relay.create_many(requests(report, 500), journal=journal, concurrency=5)
        with pytest.raises(BatchStoppedError) as caught:
            await batch
        assert isinstance(caught.value.__cause__, JournalError)
        assert "database or disk is full" in str(caught.value.__cause__)
    held = {o.relay_token for o in batch.result.created}
    assert held | {plaid.ledger[0]["relay_token"]} == {line["relay_token"] for line in plaid.ledger}
    assert batch.result.not_attempted or not all(o.journalled for o in batch.result.created)
    with sqlite3.connect(path) as connection:
        on_record = {row[0] for row in connection.execute("SELECT partner FROM relay_entries")}
    connection.close()
    assert set(of_the_ledger(plaid)) <= on_record


async def test_a_lease_that_lapsed_begins_nothing_and_brings_its_token(plaid, client, report, postgres):
    """Whoever was held up may bring what it had in flight, and no more; others don't wait for it for ever."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        plaid.fail(Fault(path=CREATE, latency=0.3))
        late = asyncio.ensure_future(client.relay.create([report], "p", journal=journal))
        while not plaid.requests:
            await asyncio.sleep(0.005)
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        assert (await journal.status("x")).counts == {"unknown": 1}
        with pytest.raises(JournalError, match="the lease on the journal lapsed"):
            await client.relay.create([report], "q", journal=journal)
        async with Journal(postgres.url, run="x", key=KEY, retry_unknown=True) as other:
            # It waits for the time that the request may take, too, and is served what came meanwhile.
            made = await client.relay.create([report], "p", journal=other)
        assert made.relay_token == (await late).relay_token
    assert of_the_ledger(plaid) == {"p": 1}


async def test_a_lease_is_renewed(plaid, client, report, postgres):
    """As long as the process runs, it goes on."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY, lease=2) as journal:
        await client.relay.create([report], "p", journal=journal)
        await asyncio.sleep(3)
        await client.relay.create([report], "q", journal=journal)
    assert len(plaid.ledger) == 2


async def test_what_was_held_up_before_it_left_does_not_leave(plaid, client, report, postgres):
    """The lease was good when the beginning was written down, and isn't any more when that returns; none has left."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY, lease=1.5) as journal:
        await client.relay.create([report], "p", journal=journal)
        held = "SELECT 1 FROM pg_locks WHERE mode = 'ShareLock' AND granted"
        blocking = asyncio.create_task(
            postgres.execute(
                "BEGIN", "LOCK TABLE relay_entries IN SHARE MODE", "SELECT pg_sleep(3)", "COMMIT"
            )
        )
        while not await postgres.execute(f"{held} AND relation = 'relay_entries'::regclass"):
            await asyncio.sleep(0.01)
        with pytest.raises(JournalError, match="the lease on the journal lapsed"):
            await client.relay.create([report], "q", journal=journal)
        await blocking
    assert of_the_ledger(plaid) == {"p": 1}
    async with Journal(postgres.url, key=KEY) as journal:
        assert (await journal.status("x")).counts == {"created": 1, "not_attempted": 1}


async def test_a_late_token_and_a_new_claim_at_once(plaid, client, report, postgres):
    """Both are on record, though the database has the one wait for the other, and refuses it at first."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        await postgres.execute("UPDATE relay_entries SET claim = false, state = 'unknown', token = NULL")
        (number,) = (await postgres.execute("SELECT id FROM relay_entries"))[0]
        columns = "run_id, partner, attempts, holder_id"
        copied = f"INSERT INTO relay_entries (id, pair, state, current, claim, {columns})"
        other = f"{copied} SELECT 7, pair, 'begun', false, true, {columns} FROM relay_entries"
        blocking = asyncio.create_task(postgres.execute("BEGIN", other, "SELECT pg_sleep(1)", "COMMIT"))
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1)' AND state = 'active'"
        while not await postgres.execute(sleeping):
            await asyncio.sleep(0.01)
        late = ended(number, State.CREATED, token=Hidden("late"))
        await journal._state.recorder.writer.note(late)
        await blocking
        found = await postgres.execute("SELECT state, claim FROM relay_entries ORDER BY state")
    assert found == [("begun", True), ("created", False)]


async def test_a_server_that_is_killed_and_comes_back(plaid, client, report, postgres):
    """The connection is taken up again; if the server stays away, that is told and nothing is sent."""
    await postgres.fresh()
    async with Journal(postgres.url, run="x", key=KEY, lease=20) as journal:
        await client.relay.create([report], "p", journal=journal)
        await postgres.kill()
        waiting = asyncio.ensure_future(client.relay.create([report], "q", journal=journal))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await postgres.start()
        await waiting
    assert of_the_ledger(plaid) == {"p": 1, "q": 1}
    async with Journal(postgres.url, run="x", key=KEY, lease=2) as journal:
        await client.relay.create([report], "r", journal=journal)
        await postgres.kill()
        with pytest.raises(JournalError, match="can't be read or written"):
            await client.relay.create([report], "s", journal=journal)
    await postgres.start()
    assert "s" not in of_the_ledger(plaid)


async def test_a_group_whose_waiters_have_gone(tmp_path):
    """What was put in is seen to, whoever waits; and a failure is told to those who do."""
    seen = []

    async def see_to(items):
        await asyncio.sleep(0.01)
        seen.extend(items)
        if "bad" in items:
            raise OSError
        return items

    groups = Groups(see_to)
    gone = groups.put("gone")
    gone.cancel()
    await groups.drain()
    bad, lost = groups.put("bad"), groups.put("lost")
    lost.cancel()
    await groups.drain()
    assert seen == ["gone", "bad", "lost"]
    with pytest.raises(OSError):
        await bad
