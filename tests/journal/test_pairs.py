"""Webhooks with a pair ID in their URLs, and retrievals by partners, which prove that a token exists."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import evolve
from journal_support import (
    KEY,
    create_in_run,
    execute,
    gated_responses,
    read_records,
    tokens_per_partner,
)
from processes import wait_until_async
from raw_http import build_response
from recorder import Recorder
from sqlalchemy import select, update
from support import CREATE, OWNER, QUICK

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    Credentials,
    DuplicateRequestError,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    RequestValidationError,
)
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.schema import entries
from plaid_relay_async.simulator import Fault
from plaid_relay_async.webhooks import WebhookReceiver, WebhookRouter
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler
from plaid_relay_async.webhooks.inbox import read_pair_id

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own
WEBHOOK = "https://lender.example/relay/{pair}"


# ------------------------------------------------------------------------------------- pair IDs in URLs


async def test_each_pair_has_its_own_url(url):
    """It stays the same in other calls and runs, and outcomes have the request of the caller."""
    async with Recorder() as upstream, RelayClient(OWNER, base_url=upstream.url) as client:
        requests = list(RelayCreateRequest.fan_out(["report"], ["p0", "p1"], webhook=WEBHOOK))
        upstream.respond = lambda _: [build_response(500, b"{}")]
        async with Journal(url, run="x", key=KEY) as journal:
            result = await client.relay.create_many(requests, journal=journal, concurrency=1)
            assert [outcome.request for outcome in result.unknown] == requests
            upstream.respond = upstream.creation_response
            retried = await client.relay.create_many(
                requests, journal=journal, concurrency=1, allow_duplicates=True
            )
            assert retried.counts == {"unknown": 2}
        async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
            await client.relay.create(["report"], "p0", webhook=WEBHOOK, journal=journal)
        sent = [upstream.body(number)["webhook"] for number in range(3)]
    first, second = (read_pair_id(each) for each in sent[:2])
    assert sent == [WEBHOOK.replace("{pair}", each) for each in (first, second, first)]
    assert first != second


async def test_a_pair_id_requires_a_journal(plaid, client, report):
    """Without one, nothing is sent: a single call raises the error, and a batch stops."""
    with pytest.raises(RequestValidationError, match=r"webhook contains {pair}.*journal=") as caught:
        await client.relay.create([report], "p", webhook=WEBHOOK)
    assert caught.value.field == "webhook"
    requests = list(RelayCreateRequest.fan_out([report], ["p0", "p1"], webhook=WEBHOOK))
    batch = client.relay.create_many(requests)
    with pytest.raises(BatchStoppedError) as stopped:
        await batch
    assert stopped.value.__cause__.field == "webhook"
    assert set(batch.result.not_attempted) <= set(requests)
    assert batch.result.not_attempted
    assert not plaid.requests


# ------------------------------------------------------------------------------------------- retrievals

EARLY = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


async def pair_ids(url):
    """Return the pair IDs of a journal, by partner."""
    return dict(tuple(row) for row in await execute(url, select(entries.c.partner, entries.c.pair)))


async def retrieve(url, partner="p0"):
    """Record the retrieval of a partner, in a journal that registers no worker, and return the pair's record."""
    async with Journal(url, key=KEY) as journal:
        return await journal.record_retrieval((await pair_ids(url))[partner])


async def make_unknown(plaid, client, report, url, run="x", count=1, **settings):
    """Create, and lose the responses after Plaid has executed the requests."""
    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    result, _ = await create_in_run(client, report, url, run, count, **settings)
    plaid.clear_faults()
    return result


async def test_a_retrieval_is_recorded_once(plaid, client, report, url):
    """The earliest time is kept, in the journal's own clock or as the caller says; only known pairs have one."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    await create_in_run(client, report, url, "x", 2)
    record = await retrieve(url)
    assert (record.run, record.secondary_client_id, record.outcome) == ("x", "p0", "created")
    assert before < record.retrieved_at < before + dt.timedelta(minutes=5)
    assert record.pair_id not in repr(record)
    assert await retrieve(url) == record
    async with Journal(url, key=KEY) as journal:
        early = await journal.record_retrieval(record.pair_id, retrieved_at=EARLY)
        assert (early.pair_id, early.retrieved_at) == (record.pair_id, EARLY)
        assert await journal.record_retrieval(record.pair_id) == early
        records = {each.secondary_client_id: each.retrieved_at for each in await read_records(journal, "x")}
        assert records == {"p0": EARLY, "p1": None}
        for unknown in ("0" * 32, record.pair_id.upper(), "", "\0", record.pair_id + "\n"):
            assert await journal.record_retrieval(unknown) is None
        with pytest.raises(ConfigurationError, match="time zone"):
            await journal.record_retrieval(record.pair_id, retrieved_at=EARLY.replace(tzinfo=None))


async def test_a_retrieval_proves_that_an_unknown_pair_has_a_token(plaid, client, report, url):
    """It stays unknown. The run doesn't create again, and another run does only if it adds tokens."""
    await make_unknown(plaid, client, report, url, count=2)
    assert (await retrieve(url)).outcome == "unknown"
    async with Journal(url, run="x", key=KEY) as journal:
        status = await journal.status("x")
        assert (status.counts, status.unknown_with_token) == ({"unknown": 2}, 1)
        with pytest.raises(OutcomeUnknownError, match="a token exists: the partner has retrieved") as caught:
            await client.relay.create([report], "p0", journal=journal)
        assert 'on_existing="create"' in caught.value.advice
        for again in ({"retry_unknown": True}, {"retry_unknown": True, "retry_failed": True}):
            with pytest.raises(DuplicateRequestError, match="isn't recorded: the partner has") as rejected:
                await client.relay.create([report], "p0", journal=journal, **again)
            assert 'on_existing="create"' in rejected.value.advice
    result, status = await create_in_run(client, report, url, "y", 2)
    assert (result.counts, status.counts, status.unknown_with_token) == ({"unknown": 2}, {"unknown": 2}, 1)
    result, status = await create_in_run(client, report, url, "y", 2, retry_unknown=True)
    assert result.counts == {"failed": 1, "created": 1}
    assert status.error_codes == {"DuplicateRequestError": 1}
    assert tokens_per_partner(plaid) == {"p0": 1, "p1": 2}


@pytest.mark.parametrize("retry_unknown", [True, False])
async def test_another_run_can_add_a_token(plaid, client, report, url, retry_unknown):
    """The run whose token isn't recorded doesn't add one; another run does, and the first one may reuse it."""
    await make_unknown(plaid, client, report, url)
    await retrieve(url)
    settings = {"on_existing": "create", "retry_unknown": retry_unknown}
    same, _ = await create_in_run(client, report, url, "x", **settings)
    assert same.counts == ({"failed": 1} if retry_unknown else {"unknown": 1})
    other, status = await create_in_run(client, report, url, "y", **settings)
    assert (other.counts, status.counts) == ({"created": 1}, {"created": 1})
    again, status = await create_in_run(client, report, url, "x", **settings)
    assert again.counts == same.counts
    assert (status.counts, status.unknown_with_token) == ({"unknown": 1}, 1)
    reused, _ = await create_in_run(client, report, url, "x")
    assert reused.created[0].relay_token == other.created[0].relay_token
    assert tokens_per_partner(plaid) == {"p0": 2}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [({"status": 400}, "failed"), ({"status": 500, "when": "before"}, "unknown")],
    ids=["rejected", "lost"],
)
async def test_a_proof_outlives_an_attempt_to_add_a_token(plaid, client, report, url, fault, outcome):
    """Whatever becomes of the attempt, the pair still has the token that was proven before."""
    await make_unknown(plaid, client, report, url)
    proven = await retrieve(url)
    plaid.fail(Fault(path=CREATE, **fault))
    added, _ = await create_in_run(client, report, url, "y", on_existing="create")
    plaid.clear_faults()
    assert added.counts == {outcome: 1}
    result, _ = await create_in_run(client, report, url, "z", retry_unknown=True)
    assert result.counts == {"failed": 1}
    assert isinstance(result.failed[0].error, DuplicateRequestError)
    assert await retrieve(url) == proven
    assert tokens_per_partner(plaid) == {"p0": 1}


async def test_a_retrieval_before_the_response(plaid, client, report, url):
    """The attempt is in flight when the webhook arrives; its outcome keeps the time."""
    async with (
        gated_responses() as responses,
        RelayClient(OWNER, base_url=plaid.url, session=responses.session) as late,
        Journal(url, run="x", key=KEY) as journal,
    ):
        creating = asyncio.ensure_future(late.relay.create([report], "p0", journal=journal))
        await responses.held.wait()
        record = await retrieve(url)
        assert record.outcome == "in_flight"
        assert (await journal.status("x")).unknown_with_token == 0
        responses.gate.set()
        response = await creating
        (recorded,) = await read_records(journal, "x")
    assert (recorded.outcome, recorded.relay_token) == ("created", response.relay_token)
    assert recorded.retrieved_at == record.retrieved_at


async def test_a_retrieval_of_a_killed_processs_attempt(plaid, client, report, url):
    """The process is dead, and its attempt is unknown with a token."""
    await make_unknown(plaid, client, report, url)
    await execute(url, update(entries).values(state="begun", error=None))
    assert (await retrieve(url)).outcome == "unknown"
    result, status = await create_in_run(client, report, url, "x", retry_unknown=True)
    assert (result.counts, status.unknown_with_token) == ({"failed": 1}, 1)
    with pytest.raises(OutcomeUnknownError, match="stopped before recording an outcome; a token exists"):
        async with Journal(url, run="y", key=KEY) as journal:
            await client.relay.create([report], "p0", journal=journal)


async def test_a_retrieval_during_a_retry_is_seen_by_its_intent(plaid, client, report, url):
    """If the proof arrives after the look-up, the intent loses the race, and nothing is sent."""

    class RetrievedMeanwhile:
        async def acquire(self, _):
            await retrieve(url)

    await make_unknown(plaid, client, report, url)
    async with (
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=RetrievedMeanwhile()) as retrying,
        Journal(url, run="x", key=KEY, retry_unknown=True) as journal,
    ):
        with pytest.raises(DuplicateRequestError):
            await retrying.relay.create([report], "p0", journal=journal)
    assert len(plaid.ledger) == 1


async def test_a_retrieval_between_two_attempts_of_a_call(plaid, client, report, url):
    """The second attempt of the call is recorded in the same row, which keeps the time."""

    class BeforeSecondAttempt:
        attempts = 0

        async def acquire(self, _):
            self.attempts += 1
            if self.attempts == 2:
                assert (await retrieve(url)).outcome == "in_flight"

    limiter, always = BeforeSecondAttempt(), evolve(QUICK, replay="always", attempts=2)
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with (
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter) as repeating,
        Journal(url, run="x", key=KEY) as journal,
    ):
        with pytest.raises(OutcomeUnknownError):
            await repeating.relay.create([report], "p0", journal=journal, retry=always)
        status = await journal.status("x")
    assert (limiter.attempts, status.counts, status.unknown_with_token) == (2, {"unknown": 1}, 1)


async def test_a_retry_belongs_to_the_latest_attempt(plaid, client, report, url):
    """A retrieval is recorded in the row that holds the pair; a new attempt in a failed row has none yet."""
    plaid.fail(Fault(path=CREATE, status=400, times=1))
    await create_in_run(client, report, url, "x")
    assert (await retrieve(url)).outcome == "failed"  # no row holds the pair
    await make_unknown(plaid, client, report, url, retry_failed=True)
    async with Journal(url, run="x", key=KEY) as journal:
        assert (await journal.status("x")).unknown_with_token == 0
    result, _ = await create_in_run(client, report, url, "x", retry_unknown=True)
    assert result.counts == {"created": 1}
    assert (await retrieve(url)).outcome == "created"
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.remove(result.created[0].relay_token, journal=journal)
        # The earlier attempt holds the pair again.
        assert (await retrieve(url)).outcome == "unknown"
        assert (await journal.status("x")).unknown_with_token == 1


async def test_a_late_webhook_of_a_removed_token_is_no_proof_of_a_later_attempt(plaid, client, report, url):
    """It was sent before the attempt began. A webhook that is sent afterwards is a proof."""
    result, _ = await create_in_run(client, report, url, "x")
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.remove(result.created[0].relay_token, journal=journal)
    await execute(url, update(entries).values(begun_at=entries.c.begun_at - 86_400))
    await make_unknown(plaid, client, report, url)
    async with Journal(url, run="x", key=KEY) as journal:
        pair_id = (await pair_ids(url))["p0"]
        before = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        assert (await journal.record_retrieval(pair_id, retrieved_at=before)).outcome == "removed"
        assert (await journal.status("x")).unknown_with_token == 0
        assert (await journal.record_retrieval(pair_id)).outcome == "unknown"
        assert (await journal.status("x")).unknown_with_token == 1


async def test_a_retrieval_with_a_recorded_token_is_no_proof_of_another_one(plaid, client, report, url):
    """While a run adds a token to a pair, a retrieval belongs to the token that the pair already has."""
    await create_in_run(client, report, url, "x")
    async with (
        gated_responses() as responses,
        RelayClient(OWNER, base_url=plaid.url, session=responses.session) as late,
        Journal(url, run="y", key=KEY, on_existing="create") as journal,
    ):
        creating = asyncio.ensure_future(late.relay.create([report], "p0", journal=journal))
        await responses.held.wait()
        record = await retrieve(url)
        assert (record.run, record.outcome) == ("x", "created")
        responses.gate.set()
        await creating
        (added,) = await read_records(journal, "y")
    assert (added.outcome, added.retrieved_at) == ("created", None)


@asynccontextmanager
async def receiving(client, journal, inbox):
    """Run a receiver of webhooks that records retrievals in a journal, and yield its URL and the pairs."""
    router, pairs = WebhookRouter(), []

    @router.default
    async def add_pair(delivery):
        pairs.append(delivery.pair)

    async with WebhookReceiver(client.webhooks, inbox, router, journal=journal) as receiver:
        app = web.Application()
        app.router.add_route("*", "/relay/{pair}", aiohttp_handler(receiver))
        async with TestServer(app) as server:
            yield str(server.make_url("/relay/")), pairs


async def test_a_hundred_unknown_pairs_are_known_to_have_a_token(plaid, client, report, url):
    """Plaid acts, all responses are lost, and each partner reads the report: its webhook proves the token."""
    partners = [f"p{n}" for n in range(100)]

    async def read_report(entry):
        credentials = Credentials(entry["secondary_client_id"], "secret")
        async with RelayClient(credentials, base_url=plaid.url) as partner:
            await partner.relay.get(entry["relay_token"])

    async with (
        SQLInbox(url, key=KEY) as inbox,
        Journal(url, run="x", key=KEY) as journal,
        receiving(client, journal, inbox) as (address, pairs),
    ):
        plaid.fail(Fault(path=CREATE, close=True, when="after"))
        requests = list(RelayCreateRequest.fan_out([report], partners, webhook=f"{address}{{pair}}"))
        lost = await client.relay.create_many(requests, journal=journal)
        plaid.clear_faults()
        assert (lost.counts, len(plaid.ledger)) == ({"unknown": 100}, 100)
        await asyncio.gather(*map(read_report, plaid.ledger))
        await plaid.advance()
        await wait_until_async(lambda: len(pairs) == 100)
        assert {(pair.secondary_client_id, pair.run, pair.outcome) for pair in pairs} == {
            (partner, "x", "unknown") for partner in partners
        }
        status = await journal.status("x")
        assert (status.counts, status.unknown_with_token) == ({"unknown": 100}, 100)
        assert all(record.retrieved_at for record in await read_records(journal, "x"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        retried = await client.relay.create_many(requests, journal=journal)
    assert retried.counts == {"failed": 100}
    assert all(isinstance(outcome.error, DuplicateRequestError) for outcome in retried.failed)
    assert len(plaid.ledger) == 100


async def test_a_retrieval_while_another_attempt_takes_the_pair(plaid, client, report, postgres):
    """It waits for that transaction, and the first attempt keeps the proof: the pair isn't created again."""
    await postgres.reset()
    await make_unknown(plaid, client, report, postgres.url)
    await make_unknown(plaid, client, report, postgres.url, "y", 1, retry_unknown=True)
    swap = [
        "UPDATE relay_entries SET claim = false WHERE claim",
        "UPDATE relay_entries SET claim = true, state = 'begun' WHERE run_id = 1",
    ]
    async with Journal(postgres.url, key=KEY) as journal:
        pairs = await pair_ids(postgres.url)
        async with postgres.transaction(*swap):
            recording = asyncio.ensure_future(journal.record_retrieval(pairs["p0"]))
            await postgres.wait_for_waiting()
        record = await recording
    assert (record.run, record.outcome) == ("y", "unknown")
    result, _ = await create_in_run(client, report, postgres.url, "z", retry_unknown=True)
    assert result.counts == {"failed": 1}
    assert tokens_per_partner(plaid) == {"p0": 2}
