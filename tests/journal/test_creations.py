"""Creations with a journal, on a file of SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from attrs import evolve
from journal_support import KEY, OTHER_KEY, create_in_run, creation_requests, read_records, tokens_per_partner
from processes import wait_until_async
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from support import CREATE, MAINTENANCE, OWNER, QUICK, ClosedLimiter, RecordingJournal, issued_tokens

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
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


# --------------------------------------------------------------------------------------- recorded outcomes


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


async def test_characters_that_no_database_stores_are_escaped(plaid, client, report, url):
    """They are recorded as escapes, and the other commands of the group are recorded."""
    odd = {"error_type": "\ud800", "error_code": "A\0B", "request_id": "r\0\udfff"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p0", status=400, body=odd))
    async with Journal(url, run="x", key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
        assert result.counts == {"created": 2, "failed": 1}
        (record,) = await read_records(journal, "x", outcomes={"failed"})
    assert (record.error_code, record.request_id) == (r"A\x00B", r"r\x00\udfff")


async def test_records_of_a_long_run_are_read_in_pages(plaid, client, report, tmp_path):
    """Each record is yielded once. Keys are rotated in pages as well."""
    async with Journal(tmp_path / "relay.db", run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 1_050), journal=journal, concurrency=100)
        partners = [record.secondary_client_id for record in await read_records(journal, "x")]
        assert await read_records(journal, "x", outcomes={"failed"}) == []
    assert Counter(partners) == {f"p{n}": 1 for n in range(1_050)}
    async with Journal(tmp_path / "relay.db", key=[OTHER_KEY, KEY]) as journal:
        assert await journal.rotate() == 1_050


# --------------------------------------------------------------------------- pairs with a recorded outcome


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
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=503, body=MAINTENANCE))
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


async def test_a_failed_pair_shows_the_token_of_another_run(plaid, client, report, url):
    """A pair that failed in this run and has a token from another run is returned and reported as created."""
    plaid.fail(Fault(path=CREATE, status=503, body=MAINTENANCE))
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


# --------------------------------------------------------------------------------- calls that send nothing


async def test_a_creation_that_waits_for_admission_is_not_attempted(plaid, report, url):
    """It is recorded as not attempted, and a call that waits for a pair can be cancelled."""
    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=ClosedLimiter()) as client:
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
    assert issued_tokens(plaid) == [response.relay_token]
