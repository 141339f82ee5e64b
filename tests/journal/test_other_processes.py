"""What a process uses that queues its calls for workers: settings, names, pair IDs, and recorded outcomes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from attrs import evolve
from journal_support import KEY, OTHER_KEY, create_in_run, creation_requests
from support import CREATE

from plaid_relay_async import (
    AssetReportError,
    ConfigurationError,
    Created,
    DuplicateRequestError,
    Failed,
    JournalError,
    OutcomeUnknownError,
    RelayCreateResponse,
    Unknown,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.encryption import load_keyring
from plaid_relay_async.journal.journal import JournalSettings
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_another_process_can_open_the_same_journal_with_its_settings(url):
    """The run and the settings for its pairs are those that the journal was created with."""
    journal = Journal(url, run="x", key=KEY, on_existing="refuse", retry_unknown=True)
    assert journal.settings == JournalSettings("x", "refuse", retry_unknown=True, retry_failed=False)


async def test_names_depend_on_the_journal_and_not_on_its_key(url, tmp_path):
    """The keyed hash of texts stays the same after a rotation, and differs in another journal."""
    async with Journal(url, key=KEY) as journal:
        names = [journal.keyed_hash(*parts) for parts in (("a", "b"), ("ab",), ("a", "b", ""))]
    async with Journal(url, key=[OTHER_KEY, KEY]) as journal:
        await journal.rotate()
        rotated = journal.keyed_hash("a", "b")
    async with Journal(tmp_path / "other.db", key=KEY) as journal:
        other = journal.keyed_hash("a", "b")
    assert len({*names, other}) == 4
    assert rotated == names[0]
    with pytest.raises(JournalError, match="isn't open"):
        journal.keyed_hash("a")


async def test_the_pair_ids_of_a_run_are_listed(client, plaid, report, url):
    """All of them, or those with certain outcomes; a pair ID is the one in the URL of a webhook."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=400, body={"error_type": "ITEM_ERROR"}))
    await create_in_run(client, report, url, "x", 3)
    async with Journal(url, run="x", key=KEY) as journal:
        every = [pair async for pair in journal.pair_ids("x")]
        failed = [pair async for pair in journal.pair_ids("x", outcomes={"failed"})]
        (request,) = creation_requests(report, 1)
        context = client.call_context()
        recorder = await journal.acquire_recorder(request, context)
        recorder.release()
        pair_id = await journal.pair_id(request, context)
        with pytest.raises(ConfigurationError, match="unknown name"):
            await anext(journal.pair_ids("x", outcomes={"lost"}))
        with pytest.raises(JournalError, match="no run 'y'"):
            await anext(journal.pair_ids("y"))
    assert (len(every), len(failed)) == (3, 1)
    assert failed[0] in every
    assert recorder.pair in every
    assert pair_id == recorder.pair


async def test_a_pair_with_several_tokens_has_one_id(client, report, url):
    """A pair whose token was removed, and which was created again, is listed once."""
    for _ in range(2):
        result, _ = await create_in_run(client, report, url, "x")
        (created,) = result.created
        async with Journal(url, run="x", key=KEY) as journal:
            await client.relay.remove(created.relay_token, journal=journal)
            pairs = [pair async for pair in journal.pair_ids("x")]
    assert len(pairs) == 1


async def test_a_pair_that_another_run_holds_is_listed_as_not_attempted(client, report, url):
    """The run hasn't attempted it, and may still create a token of its own for it."""
    for run in "xy":
        await create_in_run(client, report, url, run)
    async with Journal(url, run="y", key=KEY) as journal:
        every = [pair async for pair in journal.pair_ids("y")]
        not_attempted = [pair async for pair in journal.pair_ids("y", outcomes={"not_attempted"})]
        created = [pair async for pair in journal.pair_ids("y", outcomes={"created"})]
        (record,) = [record async for record in journal.records("y", outcomes={"created"})]
    assert (len(every), not_attempted, created) == (1, every, [])
    assert not record.own


# -------------------------------------------------------------------------- outcomes of other processes


async def read_outcome(client, report, url, act, **settings):
    """Acquire a recorder, then act in another run or process, and return the outcome that the recorder reads."""
    (request,) = creation_requests(report, 1)
    async with Journal(url, run="x", key=KEY, **settings) as journal:
        recorder = await journal.acquire_recorder(request, client.call_context())
        try:
            return await act(recorder, request)
        finally:
            recorder.release()


async def test_no_outcome_is_recorded_as_long_as_nothing_was_attempted(client, report, url):
    """An attempt may start."""

    async def act(recorder, request):
        return await recorder.read_outcome(request)

    assert await read_outcome(client, report, url, act) is None


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ([], Created),
        ([Fault(path=CREATE, latency=0.3)], Created),
        ([Fault(path=CREATE, status=400, body={"error_type": "INVALID_INPUT"})], Failed),
        ([Fault(path=CREATE, close=True, when="after")], Unknown),
    ],
    ids=["created", "in progress", "failed", "unknown"],
)
async def test_the_outcome_of_another_process_is_read(client, plaid, report, url, faults, kind):
    """A call in progress is waited for. An outcome that may be repeated is returned, with its attempts."""
    plaid.fail(*faults)

    async def act(recorder, request):
        other = asyncio.create_task(create_in_run(client, report, url, "x", 1))
        while not plaid.requests:
            await asyncio.sleep(0.01)
        outcome = await recorder.read_outcome(request)
        return outcome, await other

    outcome, (result, _) = await read_outcome(client, report, url, act, retry_failed=True, retry_unknown=True)
    assert type(outcome) is kind
    assert (outcome.attempts, outcome.journalled, outcome.request) == (1, True, outcome.request)
    assert [each.relay_token for each in result.created] == (
        [outcome.relay_token] if isinstance(outcome, Created) else []
    )


async def test_a_failure_that_may_pass_is_no_outcome(client, plaid, report, url):
    """Another attempt may start, as in a later run."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_type": "ITEM_ERROR"}))

    async def act(recorder, request):
        await create_in_run(client, report, url, "x", 1)
        return await recorder.read_outcome(request)

    assert await read_outcome(client, report, url, act) is None


async def test_what_is_recorded_already_is_not_recorded_again(client, report, url):
    """A journal without unrecorded outcomes has nothing to flush."""
    async with Journal(url, run="x", key=KEY) as journal:
        await journal.flush()
        await client.relay.create_many(creation_requests(report, 1), journal=journal)
        await journal.flush()
        status = await journal.status("x")
    assert status.counts == {"created": 1}


async def test_a_pair_that_another_run_has_taken_is_refused(client, report, url):
    """The outcome is the one of a journal that refuses pairs of other runs."""

    async def act(recorder, request):
        await create_in_run(client, report, url, "y", 1)
        return await recorder.read_outcome(request)

    outcome = await read_outcome(client, report, url, act, on_existing="refuse")
    assert isinstance(outcome.error, DuplicateRequestError)


async def test_a_recorder_names_the_row_in_doubt_that_it_replaces(client, plaid, report, url):
    """There is none without an attempt in doubt; with one, `retry_unknown` replaces exactly that row."""

    async def act(recorder, _request):
        return recorder.row_in_doubt

    assert await read_outcome(client, report, url, act) is None
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    await create_in_run(client, report, url, "x", 1)
    first = await read_outcome(client, report, url, act, retry_unknown=True)
    assert isinstance(first, int)
    assert await read_outcome(client, report, url, act, retry_unknown=True) == first


@contextlib.asynccontextmanager
async def intent_of_another_process(client, report, url):
    """Yield a recorder of this process and one of another process, which has recorded an intent."""
    (request,) = creation_requests(report, 1)
    context = client.call_context()
    async with Journal(url, run="x", key=KEY) as journal, Journal(url, run="x", key=KEY) as other_journal:
        recorder = await journal.acquire_recorder(request, context)
        # As a submitter, which lists the pair before a worker makes the call: otherwise, the intent may lose
        # the race against this row.
        await recorder.record_outcome(None)
        other = await other_journal.acquire_recorder(request, context)
        try:
            await other.record_intent()
            yield recorder, other
        finally:
            recorder.release()
            other.release()


def outcomes_of(report):
    """Return a created, a failed and an unknown outcome of the same request."""
    (request,) = creation_requests(report, 1)
    fields = {"request": request, "attempts": 2, "elapsed": 0.0, "request_id": "r"}
    return [
        Created(response=RelayCreateResponse("credit-relay-sandbox-1", "r"), **fields),
        Failed(error=AssetReportError("no"), **fields),
        Unknown(error=OutcomeUnknownError("lost"), **fields),
    ]


@pytest.mark.parametrize("index", range(3), ids=["created", "failed", "unknown"])
async def test_the_outcome_of_another_process_is_recorded(client, report, url, index):
    """It is recorded as that process would have, which may still do the same."""
    outcome = outcomes_of(report)[index]
    async with intent_of_another_process(client, report, url) as (recorder, other):
        row = await recorder.record_outcome_of(other.intent_key, outcome)
        await other.record_outcome(outcome)
        recorded = await recorder.read_outcome(outcome.request)
    assert (row is not None) == isinstance(outcome, Created)
    assert type(recorded) is type(outcome)
    assert (recorded.attempts, recorded.request_id, recorded.journalled) == (2, "r", True)
    assert getattr(recorded, "relay_token", None) == getattr(outcome, "relay_token", None)


async def test_the_outcome_of_another_attempt_is_not_recorded(client, report, url):
    """With the fencing token of another worker, or once the row has a token, nothing changes."""
    created, failed, _ = outcomes_of(report)
    async with intent_of_another_process(client, report, url) as (recorder, other):
        key = other.intent_key
        assert await recorder.record_outcome_of(evolve(key, worker=key.worker + 7), created) is None
        assert await recorder.record_outcome_of(key, created) is not None
        await recorder.record_outcome_of(key, failed)
        recorded = await recorder.read_outcome(created.request)
    assert isinstance(recorded, Created)


def test_a_required_key_is_missing(monkeypatch):
    """What must be encrypted has no default without a key."""
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="the run needs a key"):
        load_keyring(None, "run", required=True)
