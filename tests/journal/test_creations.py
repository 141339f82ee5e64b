"""Creations with a journal, on a file of SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from attrs import evolve
from journal_support import (
    CREATE,
    KEY,
    OTHER_KEY,
    REMOVE,
    cancelled_before_sending,
    create_in_run,
    creation_requests,
    gated_responses,
    read_records,
    tokens_per_partner,
)
from processes import wait_until_async
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from support import OWNER, QUICK, RecordingJournal, python_process

from plaid_relay_async import (
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
from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.writer import (
    IntentGranted,
    LeaseExpired,
    LostRace,
    RecordIntent,
    RecordRemovalIntent,
    outcome_command,
)
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

RUN = """
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest, Timeouts
from plaid_relay_async.journal import Journal

async def main():
    address, url, report, key, total, lease = sys.argv[1:]
    timeouts = Timeouts(total=float(total))
    owner = Credentials("owner", "secret-of-the-owner")
    async with RelayClient(owner, base_url=address, timeouts=timeouts) as client:
        async with Journal(url, run="x", key=key, lease=float(lease)) as journal:
            requests = RelayCreateRequest.fan_out([report], ["p0", "p1", "p2"])
            await client.relay.create_many(requests, journal=journal)

asyncio.run(main())
"""

# ------------------------------------------------------------------------------------ recorded outcomes


async def test_a_recorded_creation_returns_the_whole_response(plaid, client, report, url):
    """Fields that this package doesn't know are in the response of a single call, and in the outcome of a batch."""
    body = {"relay_token": "credit-relay-sandbox-1", "request_id": "r", "field_of_tomorrow": 1}
    plaid.fail(Fault(path=CREATE, status=200, body=body, times=2))
    async with Journal(url, run="x", key=KEY) as journal:
        single = await client.relay.create([report], "single", journal=journal)
        batch = await client.relay.create_many(creation_requests(report, 1), journal=journal)
    assert single == batch.created[0].response
    assert single.additional_properties == {"field_of_tomorrow": 1}


async def test_created_tokens_are_recorded_and_returned(plaid, client, report, url):
    """The same run, or another one, gets the recorded tokens, and nothing is sent."""
    async with Journal(url, run="x", key=KEY) as journal:
        first = await client.relay.create_many(creation_requests(report), journal=journal)
        second = await client.relay.create_many(creation_requests(report), journal=journal)
    async with Journal(url, run="y", key=KEY) as journal:
        other = await client.relay.create_many(creation_requests(report, 11), journal=journal)
        x, y = await journal.runs()
        records = await read_records(journal, "y")
        (only,) = await read_records(journal, "y", partner="p3", outcomes={"created"})
    tokens = {o.request.secondary_client_id: o.relay_token for o in first.created}
    assert all(o.journalled for o in [*first.created, *second.created, *other.created])
    assert {o.request.secondary_client_id: o.relay_token for o in second.created} == tokens
    assert {o.attempts for o in second.created} == {0}
    assert tokens_per_partner(plaid) == {f"p{n}": 1 for n in range(11)}
    assert (x.name, x.counts, y.counts) == ("x", {"created": 10}, {"created": 11})
    assert x.rate > 0
    assert x.started_at <= x.last_at
    assert {r.secondary_client_id: r.relay_token for r in records}.items() >= tokens.items()
    assert [r.secondary_client_id for r in records if r.own] == ["p10"]
    assert only.relay_token == tokens["p3"]
    assert tokens["p3"] not in repr(only)


async def test_an_outcome_of_another_run_is_not_counted_again(plaid, client, report, url):
    """A run that is served another run's token has recorded no outcome, although its own attempt had failed."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_type": "ITEM_ERROR"}))
    failed, failed_status = await create_in_run(client, report, url, "x")
    plaid.clear_faults()
    await create_in_run(client, report, url, "y")
    served, status = await create_in_run(client, report, url, "x")
    assert (failed.counts, served.counts, status.counts) == ({"failed": 1}, {"created": 1}, {"created": 1})
    assert failed_status.last_at is not None
    assert (status.last_at, status.rate) == (None, 0.0)


async def test_a_callers_engine_is_not_closed(plaid, client, report, tmp_path):
    """The journal uses the engine, whatever its driver, and doesn't close it."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'relay.db'}")
    for _ in range(2):
        async with Journal(engine, key=KEY) as journal:
            await client.relay.create([report], "p0", journal=journal)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM relay_entries"))).scalar_one() == 1
    assert len(plaid.ledger) == 1
    await engine.dispose()


async def test_concurrent_calls_for_a_pair_share_one_token(plaid, client, report, url):
    """Calls for the same pair, through one journal or several, share the token of the first call."""
    async with Journal(url, run="a", key=KEY) as one, Journal(url, run="b", key=KEY) as two:
        calls = [client.relay.create([report], "p", journal=journal) for journal in (one, two) * 3]
        tokens = {response.relay_token for response in await asyncio.gather(*calls)}
    assert (len(tokens), len(plaid.ledger)) == (1, 1)


async def test_two_workers_of_a_run_create_each_pair_once(plaid, client, report, url):
    """The first worker to record an intent creates, and the other one gets the token."""
    async with Journal(url, run="a", key=KEY) as one, Journal(url, run="a", key=KEY) as two:
        results = await asyncio.gather(
            *(
                client.relay.create_many(creation_requests(report, 300), journal=journal, concurrency=30)
                for journal in (one, two)
            )
        )
    assert [result.counts["created"] for result in results] == [300, 300]
    assert set(tokens_per_partner(plaid).values()) == {1}


async def test_a_cancelled_call_is_drained_and_recorded(plaid, client, report, url):
    """The next call for the pair returns the token that the cancelled call created."""
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


async def test_an_abandoned_call_is_recorded_as_unknown(plaid, report, url):
    """An abandoned drain doesn't wait, and the calls in flight are recorded as unknown."""
    plaid.fail(Fault(path=CREATE, latency=5))
    async with RelayClient(OWNER, base_url=plaid.url) as client, Journal(url, key=KEY) as journal:
        batch = client.relay.create_many(creation_requests(report, 2), journal=journal)
        running = asyncio.ensure_future(batch)
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.sleep(0.02)
        batch.abandon()
        with pytest.raises(asyncio.CancelledError):
            await running
        plaid.clear_faults()
        while (await journal.status("default")).counts != {"unknown": 2}:
            await asyncio.sleep(0.005)
        with pytest.raises(OutcomeUnknownError, match=r"recorded as unknown in the journal.*--retry-unknown"):
            await client.relay.create([report], "p0", journal=journal)


# -------------------------------------------------------------------------------------- existing records


@pytest.mark.parametrize(("on_existing", "count"), [("reuse", 1), ("refuse", 1), ("create", 2)])
async def test_a_pair_with_a_token_from_another_run(plaid, client, report, url, on_existing, count):
    """on_existing decides whether it is returned, rejected, or gets another token, also the second time."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="y", key=KEY, on_existing=on_existing) as journal:
        for _ in range(2):
            result = await client.relay.create_many([RelayCreateRequest([report], "p")], journal=journal)
        (record,) = await read_records(journal, "y")
    assert len(plaid.ledger) == count
    if on_existing == "refuse":
        assert isinstance(result.failed[0].error, DuplicateRequestError)
        assert (record.outcome, record.error_code) == ("failed", "DuplicateRequestError")
    else:
        assert record.relay_token == result.created[0].relay_token == plaid.ledger[-1]["relay_token"]


async def test_permanent_failures_are_returned_and_others_are_retried(plaid, client, report, url):
    """An invalid request isn't sent again; a request that failed during maintenance is."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=400))
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=503, body=down))
    async with Journal(url, run="x", key=KEY) as journal:
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(creation_requests(report, 2), journal=journal, retry=short)
        plaid.clear_faults()
        sent = len(plaid.requests)
        result = await client.relay.create_many(creation_requests(report, 2), journal=journal)
    assert isinstance(result.failed[0].error, InvalidRequestError)
    assert result.failed[0].journalled
    assert [o.request.secondary_client_id for o in result.created] == ["p1"]
    assert len(plaid.requests) == sent + 1


async def test_an_unknown_pair_stays_unknown_without_retry_unknown(plaid, client, report, url):
    """Another run doesn't create for a pair that is unknown; with retry_unknown there may be two tokens."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 1), journal=journal)
        plaid.clear_faults()
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "unknown": 1
        }
        (record,) = await read_records(journal, "x")
        assert (record.outcome, record.error_code) == ("unknown", "INTERNAL_SERVER_ERROR")
    async with Journal(url, run="y", key=KEY) as journal:
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "unknown": 1
        }
        assert (await journal.status("y")).error_codes == {"INTERNAL_SERVER_ERROR": 1}
    async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "created": 1
        }
        assert (await journal.status("y")).counts == {"created": 1}
    assert tokens_per_partner(plaid) == {"p0": 2}


async def test_a_killed_process_leaves_unknowns(plaid, client, report, url):
    """Its calls are in flight while it may be alive, and unknown once it is dead."""
    for partner in ("p0", "p1", "p2"):
        plaid.fail(Fault(path=CREATE, secondary_client_id=partner, latency=30))
    async with python_process(RUN, plaid.url, url, report, KEY, "60", "4") as process:
        while len(plaid.requests) < 3:
            await asyncio.sleep(0.01)
        async with Journal(url, run="x", key=KEY, lease=4) as journal:
            assert (await journal.status("x")).counts == {"in_flight": 3}
            with pytest.raises(JournalError, match="a process is working on the run 'x'"):
                await journal.forget("x")
            waiting = asyncio.ensure_future(
                client.relay.create_many(creation_requests(report, 4), journal=journal)
            )
            await asyncio.sleep(0.1)
            process.kill()
            await process.wait()
            plaid.clear_faults()
            result = await waiting
            assert result.counts == {"created": 1, "unknown": 3}
            assert "stopped before recording an outcome" in str(result.unknown[0].error)
            assert (await journal.status("x")).error_codes == {"OutcomeUnknownError": 3}


async def test_retry_unknown_creates_for_pairs_of_a_killed_process(plaid, report, url):
    """Once its requests can't be in flight any more, each pair gets a token, and nothing hangs."""
    plaid.fail(*(Fault(path=CREATE, secondary_client_id=f"p{n}", latency=30) for n in range(3)))
    async with python_process(RUN, plaid.url, url, report, KEY, "1", "1") as process:
        while len(plaid.requests) < 3:
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    plaid.clear_faults()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal, asyncio.timeout(30):
            result = await client.relay.create_many(creation_requests(report, 4), journal=journal)
    assert result.counts == {"created": 4}
    assert tokens_per_partner(plaid) == {f"p{n}": 1 for n in range(4)}


async def test_retry_unknown_does_not_wait_for_an_ended_process(plaid, client, report, url):
    """A worker that has ended has no request in flight."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        statement = schema.entries.update().values(state="begun", token=None)
        await journal._run_transaction(lambda connection: connection.execute(statement).close())
        async with asyncio.timeout(30):
            assert await client.relay.create([report], "p", journal=journal)
    assert tokens_per_partner(plaid) == {"p": 2}


async def test_a_failed_pair_shows_the_token_of_another_run(plaid, client, report, url):
    """A pair that failed in this run and has a token from another run is returned and reported as created."""
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=503, body=down))
    async with Journal(url, run="y", key=KEY) as y, Journal(url, run="x", key=KEY) as x:
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(creation_requests(report, 1), journal=y, retry=short)
        plaid.clear_faults()
        await asyncio.sleep(0.01)
        response = await client.relay.create([report], "p0", journal=x)
        for _ in range(2):
            assert (await client.relay.create([report], "p0", journal=y)).relay_token == response.relay_token
        (record,) = await read_records(y, "y")
    assert (record.outcome, record.own) == ("created", False)


async def test_a_creation_that_waits_for_admission_is_not_attempted(plaid, report, url):
    """It is recorded as not attempted, and a call that waits for a pair can be cancelled."""

    class Closed:
        async def acquire(self, endpoint):
            await asyncio.Event().wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Closed()) as client:
        async with Journal(url, run="x", key=KEY) as journal:
            first = asyncio.ensure_future(
                client.relay.create_many(creation_requests(report, 1), journal=journal)
            )
            second = asyncio.ensure_future(
                client.relay.create_many(creation_requests(report, 1), journal=journal)
            )
            while not await journal.runs() or not (await journal.status("x")).counts:
                await asyncio.sleep(0.01)
            assert (await journal.status("x")).counts == {"not_attempted": 1}
            for task in (second, first):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task


async def test_the_timeout_includes_waiting_for_credentials(plaid, report, url):
    """A journal waits for the client ID no longer than the call may take, and nothing is sent."""

    async def never():
        await asyncio.Event().wait()

    async with (
        RelayClient(never, base_url=plaid.url, retry=QUICK) as client,
        Journal(url, run="x", key=KEY) as journal,
    ):
        with pytest.raises(NotSentError, match="source of the credentials raised TimeoutError"):
            async with asyncio.timeout(30):
                await client.relay.create([report], "p", journal=journal, timeout=0.3)
        result = await client.relay.create_many(creation_requests(report, 2), journal=journal, timeout=0.3)
    assert (len(result.failed), plaid.counts[CREATE]) == (2, 0)
    assert not any(outcome.error.sent for outcome in result.failed)


async def test_an_intent_of_an_ended_worker_is_unknown(plaid, client, report, url):
    """An intent without an outcome is unknown as soon as its worker has ended."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        statement = schema.entries.update().values(state="begun", token=None)
        await journal._run_transaction(lambda connection: connection.execute(statement).close())
        assert (await journal.status("x")).counts == {"unknown": 1}
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([report], "p", journal=journal)


async def test_records_of_a_long_run_are_read_in_pages(plaid, client, report, tmp_path):
    """Each record is yielded once. Keys are rotated in pages as well."""
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 1_050), journal=journal, concurrency=100)
        partners = [record.secondary_client_id for record in await read_records(journal, "x")]
        assert await read_records(journal, "x", outcomes={"failed"}) == []
    assert Counter(partners) == {f"p{n}": 1 for n in range(1_050)}
    async with Journal(tmp_path / "relay.db", key=[OTHER_KEY, KEY]) as journal:
        assert await journal.rotate() == 1_050


async def test_a_call_that_was_cancelled_before_sending_is_undone(plaid, client, report, tmp_path):
    """Its intent is undone. Otherwise other calls would wait for its outcome."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        await client.relay.create([report], "first", journal=journal)
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 3), journal=journal)
        ):
            pass
        assert len(plaid.requests) == 1
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
        assert result.counts == {"created": 3}
    assert set(tokens_per_partner(plaid).values()) == {1}


async def test_an_intent_is_undone_before_the_next_call_starts(plaid, client, report, tmp_path):
    """The next call of this process uses the same row, and its own intent isn't undone."""
    path = tmp_path / "relay.db"
    plaid.fail(Fault(path=CREATE, status=503, body={"error_code": "PLANNED_MAINTENANCE"}))
    short = evolve(QUICK, max_pause=0.001)
    async with Journal(path, run="x", key=KEY) as x, Journal(path, run="y", key=KEY) as y:
        await client.relay.create_many(creation_requests(report, 1), journal=x, retry=short)
        plaid.clear_faults()
        plaid.fail(Fault(path=CREATE, latency=0.3))
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 1), journal=x)
        ):
            sent = len(plaid.requests)
            following = asyncio.ensure_future(client.relay.create([report], "p0", journal=x))
            await asyncio.sleep(0.1)
        while len(plaid.requests) == sent:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        response = await client.relay.create([report], "p0", journal=y)
        assert (await following).relay_token == response.relay_token
    assert len(plaid.ledger) == 1


async def test_a_late_token_is_recorded_beside_another_one(plaid, client, report, url):
    """Its run returns it, although another run has created a token meanwhile."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        await client.relay.create_many(creation_requests(report, 1), journal=x)
        plaid.clear_faults()
        coordinator = x._open_resources.coordinator
        query = text("SELECT pair FROM relay_entries")
        (pair,) = await x._run_transaction(lambda connection: connection.execute(query).scalars().all())
        own_row = (await coordinator.writer.look_up_pair(pair)).own
        other = await client.relay.create([report], "p0", journal=y)
        late = plaid.ledger[0]["relay_token"]
        await coordinator.writer.submit(
            outcome_command(own_row.id, CreationState.CREATED, token=Hidden(late))
        )
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == late != other.relay_token
        assert [record.relay_token for record in await read_records(x, "x")] == [late]
        assert [record.relay_token for record in await read_records(y, "y")] == [other.relay_token]


async def test_a_late_token_is_returned_instead_of_a_forgotten_one(plaid, client, report, url):
    """Before it arrived, other runs were rejected, because the journal couldn't return the pair's token."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x:
        await client.relay.create_many(creation_requests(report, 1), journal=x)
        plaid.clear_faults()
        coordinator = x._open_resources.coordinator
        query = text("SELECT pair FROM relay_entries")
        (pair,) = await x._run_transaction(lambda connection: connection.execute(query).scalars().all())
        own_row = (await coordinator.writer.look_up_pair(pair)).own
        await create_in_run(client, report, url, "y", retry_unknown=True)
        assert await x.forget("y") == 1
        assert (await create_in_run(client, report, url, "z"))[0].counts == {"failed": 1}
        late = plaid.ledger[0]["relay_token"]
        await coordinator.writer.submit(
            outcome_command(own_row.id, CreationState.CREATED, token=Hidden(late))
        )
        assert (await create_in_run(client, report, url, "z"))[0].created[0].relay_token == late
    assert len(plaid.ledger) == 2


async def test_a_late_token_takes_precedence_over_an_unknown_attempt(plaid, client, report, postgres):
    """If the attempt that replaced it is unknown, every run gets the late token."""
    await postgres.reset()
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(postgres.url, run="x", key=KEY) as x:
        await client.relay.create_many(creation_requests(report, 1), journal=x)
        coordinator = x._open_resources.coordinator
        ((pair,),) = await postgres.execute("SELECT pair FROM relay_entries")
        own_row = (await coordinator.writer.look_up_pair(pair)).own
        again, _ = await create_in_run(client, report, postgres.url, "y", retry_unknown=True)
        assert again.counts == {"unknown": 1}
        plaid.clear_faults()
        late = plaid.ledger[0]["relay_token"]
        await coordinator.writer.submit(
            outcome_command(own_row.id, CreationState.CREATED, token=Hidden(late))
        )
        for run in ("y", "z"):
            assert (await create_in_run(client, report, postgres.url, run))[0].created[0].relay_token == late
    assert len(plaid.ledger) == 2


async def test_an_unknown_attempt_stays_recorded_when_another_run_creates(plaid, client, report, url):
    """The run gets the other run's token, and the outcome of its own attempt is still unknown."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        await client.relay.create_many(creation_requests(report, 1), journal=x)
        plaid.clear_faults()
        other = await client.relay.create([report], "p0", journal=y)
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == other.relay_token
        assert (await x.status("x")).counts == {"unknown": 1}


async def test_a_token_is_returned_although_the_journal_fails(plaid, client, report):
    """A single call returns the token; a call whose intent can't be recorded raises the journal's error."""

    class Broken(RecordingJournal):
        async def record_intent(self, request):
            if request.secondary_client_id == "q":
                raise JournalError("no")

        async def record_outcome(self, outcome):
            raise JournalError("full")

    response = await client.relay.create([report], "p", journal=Broken())
    assert response.relay_token == plaid.ledger[0]["relay_token"]
    plaid.fail(Fault(path=CREATE, secondary_client_id="u", status=500, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await client.relay.create([report], "u", journal=Broken())
    with pytest.raises(JournalError, match="no"):
        await client.relay.create([report], "q", journal=Broken())


async def test_an_intent_on_a_changed_row_loses_the_race(client, report, url):
    """An intent isn't recorded if its row, or a row that it retires, isn't in the expected state."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        writer = journal._open_resources.coordinator.writer
        query = text("SELECT pair FROM relay_entries")
        (pair,) = await journal._run_transaction(lambda connection: connection.execute(query).scalars().all())
        row = (await writer.look_up_pair(pair)).holding
        changed = evolve(row, state=CreationState.UNKNOWN)
        for intent in (
            RecordIntent(writer.row_values(pair, "p", None), (changed,)),
            RecordIntent(writer.row_values(pair, "p", row)),
            RecordRemovalIntent(evolve(row, holder_id=0)),
        ):
            assert await writer.submit(intent) == LostRace()
        assert (await journal.status("x")).counts == {"created": 1}


async def test_an_intent_is_granted_with_the_remaining_lease(client, report, url):
    """A granted intent has the seconds that the lease has left: without a limit on SQLite."""
    async with Journal(url, run="x", key=KEY, lease=20) as journal:
        await client.relay.create([report], "p", journal=journal)
        writer = journal._open_resources.coordinator.writer
        result = await writer.submit(RecordIntent(writer.row_values("pair", "q", None)))
    assert isinstance(result, IntentGranted)
    assert 0 < result.lease_remaining <= (20 if "://" in url else math.inf)
    assert math.isinf(result.lease_remaining) == ("://" not in url)


async def test_an_intent_after_the_lease_is_not_recorded(client, report, postgres):
    """The result says that the lease has expired, and no row is written; an outcome is still recorded."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
        ((row,),) = await postgres.execute("SELECT id FROM relay_entries")
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        writer = journal._open_resources.coordinator.writer
        intent = RecordIntent(writer.row_values("pair", "q", None))
        outcome = outcome_command(row, CreationState.UNKNOWN)
        results = await asyncio.gather(writer.submit(intent), writer.submit(outcome))
        assert results == [LeaseExpired(), None]
        assert await postgres.execute("SELECT count(*) FROM relay_entries") == [(1,)]


# ------------------------------------------------------------------------------- attempts after another


async def unknown_in(client, plaid, report, url, run):
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run=run, key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 1), journal=journal)
    assert result.counts == {"unknown": 1}
    plaid.clear_faults()


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
@pytest.mark.parametrize("status", [400, 503])
async def test_a_pair_stays_unknown_after_a_failed_retry(plaid, client, report, url, run, status):
    """It is recorded as unknown, with the failure as its cause, and isn't created again without `retry_unknown`."""
    await unknown_in(client, plaid, report, url, "x")
    down = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
    plaid.fail(Fault(path=CREATE, status=status, body=down))
    async with Journal(url, run=run, key=KEY, retry_unknown=True) as journal:
        short = evolve(QUICK, max_pause=0.001)
        retried = await client.relay.create_many(creation_requests(report, 1), journal=journal, retry=short)
        assert (await journal.status(run)).counts == {"unknown": 1}
    assert retried.counts == {"unknown": 1}
    assert retried.unknown[0].error.__cause__.status == status
    plaid.clear_faults()
    for later in (run, "z"):
        assert (await create_in_run(client, report, url, later))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 1


async def test_a_shared_error_of_unknown_pairs_stops_the_batch(plaid, client, report, url):
    """The error of the retry counts, not the doubt that is returned."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        await client.relay.create_many(creation_requests(report, 30), journal=journal)
        plaid.clear_faults()
        code = {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        plaid.fail(Fault(path=CREATE, status=400, body=code))
        sent = len(plaid.requests)
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert result.counts["unknown"] < 6
        assert len(plaid.requests) < sent + 6
        assert result.stopped_by.error_code == "INVALID_API_KEYS"
        assert (await journal.status("x")).counts == {"unknown": 30}


NOT_READY = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}


async def test_a_resumed_run_sends_what_a_stopped_report_left(plaid, client, report, url):
    """Requests of a stopped report stay not attempted, and are sent once the report is ready."""
    plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
    async with Journal(url, run="x", key=KEY) as journal:
        stopped = await client.relay.create_many(
            creation_requests(report, 30), journal=journal, concurrency=2
        )
        counts = (await journal.status("x")).counts
    unsent = [each for each in stopped.failed if not each.attempts]
    assert stopped.counts == {"failed": 30}
    assert counts == {"failed": 30 - len(unsent), "not_attempted": len(unsent)}
    assert 30 - len(unsent) == len(plaid.requests) <= 5
    assert not any(each.journalled for each in unsent)
    async with Journal(url, run="x", key=KEY) as journal:
        again = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert (again.counts, (await journal.status("x")).counts) == ({"failed": 30}, counts)
    plaid.clear_faults()
    resumed, status = await create_in_run(client, report, url, "x", count=30)
    assert resumed.counts == status.counts == {"created": 30}
    assert len(plaid.ledger) == 30


async def test_a_stopped_report_does_not_hide_recorded_tokens(plaid, client, report, url):
    """Recorded tokens are returned, even behind very many new pairs, and hide no error of the report."""
    rows = [*creation_requests(report, 250)]
    recorded = [*rows[1:20:2], *rows[-20:]]
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(recorded, journal=journal)
        sent = len(plaid.requests)
        plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
        result = await client.relay.create_many(rows, journal=journal, concurrency=1)
        assert len(plaid.requests) == sent + 3
        assert result.counts == {"created": 30, "failed": 220}
        assert {each.request.secondary_client_id for each in result.created} == {
            each.secondary_client_id for each in recorded
        }
        assert (await journal.status("x")).counts == {"created": 30, "failed": 3, "not_attempted": 217}


async def test_unknown_pairs_of_a_stopped_report_stay_unknown(plaid, client, report, url):
    """With `retry_unknown`, pairs that aren't sent are recorded as unknown, with the error as cause."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        await client.relay.create_many(creation_requests(report, 30), journal=journal)
        plaid.clear_faults()
        plaid.fail(Fault(path=CREATE, status=400, body=NOT_READY))
        sent = len(plaid.requests)
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert result.counts == (await journal.status("x")).counts == {"unknown": 30}
        assert len(plaid.requests) <= sent + 5
        assert {each.error.__cause__.error_code for each in result.unknown} == {"PRODUCT_NOT_READY"}
        plaid.clear_faults()
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal)
        assert result.counts == (await journal.status("x")).counts == {"created": 30}


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
async def test_a_pair_stays_unknown_after_a_retry_that_was_not_sent(plaid, client, report, tmp_path, run):
    """The intent is undone, and the doubt of the earlier attempt stays."""
    path = tmp_path / "relay.db"
    await unknown_in(client, plaid, report, path, "x")
    async with Journal(path, run=run, key=KEY, retry_unknown=True) as journal:
        await client.relay.create([report], "another", journal=journal)
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 1), journal=journal)
        ):
            pass
    for later in (run, "z"):
        result, status = await create_in_run(client, report, path, later)
        assert result.counts == {"unknown": 1}
        assert status.counts["unknown"] == 1
    assert tokens_per_partner(plaid) == {"p0": 1, "another": 1}


async def test_a_pair_is_unknown_again_after_its_retry_was_removed(plaid, client, report, url):
    """Once the token of the retry is removed, the pair is unknown, and the run has a record of each."""
    await unknown_in(client, plaid, report, url, "x")
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        response = await client.relay.create([report], "p0", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        assert (await create_in_run(client, report, url, "z"))[0].counts == {"unknown": 1}
        assert (await client.relay.remove(response.relay_token, journal=journal)).removed
        assert sorted(r.outcome for r in await read_records(journal, "x")) == ["removed", "unknown"]
    assert (await create_in_run(client, report, url, "x"))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 2


async def test_a_token_is_returned_after_later_attempts_ended(plaid, client, report, url):
    """If later creations fail, are unknown or are removed, the first token is still returned or rejected."""
    first, _ = await create_in_run(client, report, url, "x", 5)
    assert (await create_in_run(client, report, url, "served", 5))[0].counts == {"created": 5}
    plaid.fail(Fault(path=CREATE, status=400))
    assert (await create_in_run(client, report, url, "failing", 5, on_existing="create"))[0].counts == {
        "failed": 5
    }
    plaid.clear_faults()
    plaid.fail(Fault(path=CREATE, status=500, when="before"))
    assert (await create_in_run(client, report, url, "unsure", 5, on_existing="create"))[0].counts == {
        "unknown": 5
    }
    plaid.clear_faults()
    async with Journal(url, run="removing", key=KEY, on_existing="create") as journal:
        result = await client.relay.create_many(creation_requests(report, 5), journal=journal)
        tokens = [outcome.relay_token for outcome in result.created]
        assert (await client.relay.remove_many(tokens, journal=journal)).counts == {"removed": 5}
        assert (await journal.status("served")).counts == {"created": 5}
    assert (await create_in_run(client, report, url, "unsure", 5, on_existing="create"))[0].counts == {
        "unknown": 5
    }
    assert (await create_in_run(client, report, url, "y", 5, on_existing="refuse"))[0].counts == {"failed": 5}
    last, status = await create_in_run(client, report, url, "z", 5)
    assert {o.relay_token for o in last.created} == {o.relay_token for o in first.created}
    assert status.counts == {"created": 5}
    assert len(plaid.ledger) == 10


async def test_an_outcome_that_is_written_twice_changes_no_later_outcome(plaid, client, report, url):
    """A write may be repeated after its confirmation was lost, when another worker has used the row."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="x", key=KEY) as y:
        plaid.fail(Fault(path=CREATE, status=503, body={"error_code": "PLANNED_MAINTENANCE"}))
        short = evolve(QUICK, max_pause=0.001)
        await client.relay.create_many(creation_requests(report, 1), journal=x, retry=short)
        plaid.clear_faults()
        query = text("SELECT id FROM relay_entries")
        (row,) = await x._run_transaction(lambda connection: connection.execute(query).scalars().all())
        response = await client.relay.create([report], "p0", journal=y)
        await x._open_resources.coordinator.writer.submit(outcome_command(row, CreationState.FAILED))
        await x._open_resources.coordinator.writer.submit(outcome_command(row, CreationState.UNKNOWN))
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == response.relay_token


async def test_rows_are_read_again_if_their_worker_has_ended(plaid, client, report, url):
    """What the worker wrote between the read and the liveness check is seen."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        await client.relay.create([report], "p0", journal=x)
        registry, worker = y._open_resources.registry, x._open_resources.coordinator.writer._worker
        query = text("SELECT state FROM relay_entries")
        set_intent = text("UPDATE relay_entries SET state = 'begun'")
        await y._run_transaction(lambda connection: connection.execute(set_intent).close())
        states = []

        def work(connection):
            def read():
                states.append(connection.execute(query).scalar_one())
                if len(states) == 1:
                    set_created = text("UPDATE relay_entries SET state = 'created'")
                    connection.execute(set_created)
                    connection.execute(schema.workers.update().values(ended=True))
                return states[-1]

            return registry.read_with_liveness(
                connection, read, lambda state: {worker.id} if state == "begun" else set()
            )

        state, liveness = await y._run_transaction(work)
        assert (states, state, liveness.live_ids) == (["begun", "created"], "created", frozenset())


async def test_characters_that_no_database_stores_are_escaped(plaid, client, report, url):
    """They are recorded as escapes, and the other commands of the group are recorded."""
    odd = {"error_type": "\ud800", "error_code": "A\0B", "request_id": "r\0\udfff"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=400, body=odd))
    async with Journal(url, run="x", key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
        assert result.counts == {"created": 2, "failed": 1}
        (record,) = await read_records(journal, "x", outcomes={"failed"})
    assert (record.error_code, record.request_id) == (r"A\x00B", r"r\x00\udfff")


# ------------------------------------------------------------------------------------ spellings of a host


def client_for_host(plaid, host):
    """Return a client whose base URL spells the simulator's host in this way."""
    return RelayClient(OWNER, base_url=f"http://{host}:{plaid.url.rpartition(':')[2]}", retry=QUICK)


@pytest.mark.parametrize("host", ["LOCALHOST", "LocalHost"])
async def test_each_spelling_of_a_host_is_the_same_namespace(plaid, report, url, host):
    """A pair that has a token under one spelling isn't created again under another."""
    tokens = set()
    for each in ("localhost", host):
        async with client_for_host(plaid, each) as client, Journal(url, run=each, key=KEY) as journal:
            tokens.add((await client.relay.create([report], "p", journal=journal)).relay_token)
    assert len(tokens) == len(plaid.ledger) == 1


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("https://Production.Plaid.com", "production.plaid.com"),
        ("https://production.plaid.com:443", "production.plaid.com"),
        ("https://production.plaid.com.", "production.plaid.com"),
        ("https://bücher.example:8443", "xn--bcher-kva.example:8443"),
        ("https://BÜCHER.example", "xn--bcher-kva.example"),
        ("http://127.0.0.1:80", "127.0.0.1"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://127.1:8080", "127.0.0.1:8080"),
    ],
)
def test_the_normal_spelling_of_a_host(typed, normal):
    """The normal spelling is in lower case and IDNA, without a default port or a trailing dot."""
    transport = RelayClient(OWNER, base_url=typed).relay._transport
    assert transport.host == normal
    assert transport.host_as_typed == typed.partition("//")[2]


async def create_in_legacy_namespace(client, report, url, run, partners, **settings):
    """Create as an earlier version did, which used the host as it was typed."""
    namespace = f"LOCALHOST:{client.relay._transport.host.rpartition(':')[2]} {OWNER.client_id}"
    async with Journal(url, run=run, key=KEY, namespace=namespace, **settings) as journal:
        requests = RelayCreateRequest.fan_out([report], partners)
        return await client.relay.create_many(requests, journal=journal)


async def test_records_under_another_spelling_are_found(plaid, report, url):
    """Tokens, doubts and failures are found, and stay when the host is spelled in its normal way."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="unknown", status=500, when="after"))
    plaid.fail(Fault(path=CREATE, secondary_client_id="failed", status=400))
    partners = ["made", "unknown", "failed"]
    async with client_for_host(plaid, "LOCALHOST") as client:
        first = await create_in_legacy_namespace(client, report, url, "x", partners)
        plaid.clear_faults()
        sent = len(plaid.requests)
        for host in ("LOCALHOST", "localhost"):
            async with client_for_host(plaid, host) as again, Journal(url, run="x", key=KEY) as journal:
                requests = RelayCreateRequest.fan_out([report], partners)
                result = await again.relay.create_many(requests, journal=journal)
                assert (await journal.status("x")).counts == {"created": 1, "unknown": 1, "failed": 1}
            assert result.counts == {"created": 1, "unknown": 1, "failed": 1}
            assert result.created[0].relay_token == first.created[0].relay_token
    assert len(plaid.requests) == sent


async def test_a_pair_under_another_spelling_is_unknown_again_after_removal(plaid, report, url):
    """Once the token of the retry is removed, the pair is unknown again."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with client_for_host(plaid, "LOCALHOST") as client:
        await create_in_legacy_namespace(client, report, url, "x", ["p"])
        plaid.clear_faults()
        async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
            response = await client.relay.create([report], "p", journal=journal)
            await client.relay.remove(response.relay_token, journal=journal)
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create([report], "p", journal=journal, retry_unknown=False)
    assert tokens_per_partner(plaid) == {"p": 2}


async def test_rows_under_two_spellings_leave_one_current(plaid, report, url):
    """A failure under the former spelling is replaced by the run's row under the normal one."""
    plaid.fail(Fault(path=CREATE, status=400))
    async with client_for_host(plaid, "localhost") as client, Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many([RelayCreateRequest([report], "p")], journal=journal)
        await create_in_legacy_namespace(client, report, url, "x", ["p"])
    plaid.clear_faults()
    async with client_for_host(plaid, "LOCALHOST") as client, Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal, retry_failed=True)
        assert (await journal.status("x")).counts == {"created": 1}
    assert len(plaid.ledger) == 1


async def test_two_tokens_under_two_spellings_are_reported_and_not_merged(plaid, report, url, caplog):
    """Each run gets its own token, and other runs are rejected until one of the two is removed."""
    async with client_for_host(plaid, "localhost") as client:
        async with Journal(url, run="x", key=KEY) as journal:
            one = await client.relay.create([report], "p", journal=journal)
        two = (await create_in_legacy_namespace(client, report, url, "y", ["p"])).created[0]
    async with client_for_host(plaid, "LOCALHOST") as client:
        for run, own in (("x", one), ("y", two)):
            async with Journal(url, run=run, key=KEY) as journal:
                response = await client.relay.create([report], "p", journal=journal)
                assert response.relay_token == own.relay_token
        assert "partner p: this pair has two relay tokens" in caplog.text
        async with Journal(url, run="z", key=KEY, on_existing="create", retry_unknown=True) as journal:
            with pytest.raises(DuplicateRequestError, match="two spellings of the host"):
                await client.relay.create([report], "p", journal=journal)
            await client.relay.remove(two.relay_token, journal=journal)
        async with Journal(url, run="z", key=KEY) as journal:
            response = await client.relay.create([report], "p", journal=journal)
    assert response.relay_token == one.relay_token
    assert len(plaid.ledger) == 2
    assert one.relay_token not in caplog.text


# -------------------------------------------------------------------------------- the options of one call


async def test_a_single_call_overrides_the_retry_settings(plaid, client, report, url):
    """A call's options replace the journal's settings. Without a journal they are rejected."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="unknown", status=500, when="after"))
    plaid.fail(Fault(path=CREATE, secondary_client_id="failed", status=400))
    kinds = {
        "retry_unknown": ("unknown", OutcomeUnknownError),
        "retry_failed": ("failed", InvalidRequestError),
    }
    async with Journal(url, run="x", key=KEY) as journal:
        for partner, error in kinds.values():
            with pytest.raises(error):
                await client.relay.create([report], partner, journal=journal)
        plaid.clear_faults()
    async with Journal(url, run="x", key=KEY, retry_unknown=True, retry_failed=True) as journal:
        for option, (partner, error) in kinds.items():
            with pytest.raises(error):
                await client.relay.create([report], partner, journal=journal, **{option: False})
    async with Journal(url, run="x", key=KEY) as journal:
        for option, (partner, _) in kinds.items():
            assert await client.relay.create([report], partner, journal=journal, **{option: True})
            with pytest.raises(ConfigurationError, match=f"{option}= needs journal="):
                client.relay.create([report], partner, **{option: True})
    assert tokens_per_partner(plaid) == {"unknown": 2, "failed": 1}


# ------------------------------------------------------------------------------------------ a late token


async def test_a_doubt_stays_recorded_if_a_token_takes_the_pair_between_attempts(plaid, report, tmp_path):
    """When a removal fails late, the second attempt isn't sent, and the first one stays in doubt."""
    path = tmp_path / "relay.db"
    removal_rejected = asyncio.Event()

    class SecondAttempt:
        attempts = 0

        async def acquire(self, _):
            self.attempts += 1
            if self.attempts == 2:
                await removal_rejected.wait()

    async with (
        gated_responses() as responses,
        RelayClient(OWNER, base_url=plaid.url) as client,
        RelayClient(OWNER, base_url=plaid.url, session=responses.session) as late,
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=SecondAttempt()) as repeating,
        Journal(path, run="x", key=KEY) as x,
        Journal(path, run="y", key=KEY, on_existing="create") as y,
    ):
        response = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400))
        removal = asyncio.ensure_future(late.relay.remove(response.relay_token, journal=x))
        await responses.held.wait()
        for lock in tmp_path.glob("*.lock"):  # other processes then consider its worker dead
            lock.unlink()
        plaid.fail(Fault(path=CREATE, status=500, when="after", times=1))
        always = evolve(QUICK, replay="always")
        creation = asyncio.ensure_future(repeating.relay.create([report], "p", journal=y, retry=always))
        while len(plaid.ledger) < 2:
            await asyncio.sleep(0.005)
        responses.gate.set()
        with pytest.raises(InvalidRequestError):
            await removal
        removal_rejected.set()
        with pytest.raises(OutcomeUnknownError):
            await creation
        assert (await y.status("y")).counts == {"unknown": 1}
        assert (await client.relay.create([report], "p", journal=x)).relay_token == response.relay_token
    assert tokens_per_partner(plaid) == {"p": 2}


async def test_a_journal_belongs_to_the_event_loop_that_opened_it(plaid, client, report, url):
    """A call in another event loop fails before anything is sent, and the journal still works in its own."""

    async def elsewhere() -> None:
        async with RelayClient(OWNER, base_url=plaid.url) as other:
            with pytest.raises(JournalError, match="another event loop"):
                await other.relay.create([report], "first", journal=journal)
            with pytest.raises(JournalError, match="another event loop"):
                await journal.runs()

    async with Journal(url, run="x", key=KEY) as journal:
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert plaid.counts[CREATE] == 0
        response = await client.relay.create([report], "first", journal=journal)
    assert [entry["relay_token"] for entry in plaid.ledger] == [response.relay_token]


async def test_an_attempt_in_flight_has_nothing_of_an_earlier_failure(plaid, client, report, url):
    """The record of a pair that is attempted again shows no error, request ID or attempts of the last call."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_type": "ITEM_ERROR", "request_id": "r1"}))
    await create_in_run(client, report, url, "x")
    plaid.clear_faults()
    plaid.fail(Fault(path=CREATE, latency=60))
    async with (
        RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as impatient,
        Journal(url, run="x", key=KEY) as journal,
    ):
        (failed,) = await read_records(journal, "x")
        creating = asyncio.ensure_future(impatient.relay.create([report], "p0", journal=journal))
        await wait_until_async(lambda: len(plaid.requests) == 2)
        (record,) = await read_records(journal, "x")
        creating.cancel()
        await asyncio.wait([creating])
    assert (failed.outcome, failed.request_id, failed.attempts) == ("failed", "r1", 1)
    assert (record.outcome, record.request_id, record.attempts) == ("in_flight", None, 0)
    assert record.error_code is None
