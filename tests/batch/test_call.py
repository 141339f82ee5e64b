"""One call of a batch: its outcome, whenever it ends, and its records in a journal."""

from __future__ import annotations

import asyncio
import sys

import pytest
from batch_support import (
    BreakingJournal,
    all_outcomes,
    assert_nothing_lost,
    batch_of,
    create_requests,
    create_tokens,
    partner_names,
)
from processes import wait_until_async
from servers import serving, stay_silent
from support import CREATE, GET, OWNER, QUICK

from plaid_relay_async import (
    BatchStoppedError,
    Created,
    InvalidRequestError,
    NotSentError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RetryPolicy,
    Timeouts,
    WaitTooLongError,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.batch import LostRaceError
from plaid_relay_async.simulator import Fault

# ---------------------------------------------------------------------------------- calls without a result


async def test_a_call_without_a_result_is_unknown(plaid):
    """An attempt that was started and cancelled without a result may have been executed."""

    async def create(request, gate):
        await gate.start_attempt()
        await asyncio.Event().wait()

    async with batch_of(
        CREATIONS, create_requests(plaid, 1), create, concurrency=1, drain_timeout=0.02
    ) as outcomes:
        await asyncio.sleep(0.01)
    (unknown,) = outcomes.result.unknown
    assert "the call was cancelled before its response" in str(unknown.error)


async def test_an_unexpected_error_during_a_call_is_unknown(plaid):
    """The call may have been executed, and the other requests continue."""

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id == "partner-1":
            raise ZeroDivisionError
        return RelayCreateResponse("token")

    result = await batch_of(CREATIONS, create_requests(plaid, 3), create, concurrency=1, drain_timeout=1)
    (unknown,) = result.unknown
    assert isinstance(unknown.error.__cause__, ZeroDivisionError)
    assert len(result.created) == 2


async def test_an_attempt_in_doubt_stays_unknown_whatever_follows(plaid, client):
    """With replay="always", an attempt in doubt and a forbidden next one leave an unknown with the first error."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    # A backoff that exceeds the deadline would end the call; one of at most 30 s fits.
    always = RetryPolicy(replay="always", backoff=30, max_backoff=30)
    async with client.relay.create_many(create_requests(plaid, 1), retry=always) as outcomes:
        await wait_until_async(lambda: client.statistics().retries)
    (unknown,) = outcomes.result.unknown
    assert (unknown.error.status, unknown.request_id) == (500, plaid.ledger[0]["request_id"])

    class BreaksAtSecondIntent(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await super().record_intent(request)
            self._breaks_at_intent = 1

    always = RetryPolicy(replay="always", backoff=0.001)
    batch = client.relay.create_many(create_requests(plaid, 1), retry=always, journal=BreaksAtSecondIntent())
    with pytest.raises(BatchStoppedError):
        await batch
    assert len(batch.result.unknown) == 1


async def test_requests_that_were_never_sent_fail():
    """Without a server, each partner has an outcome, and none is unknown."""
    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK) as client:
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["t"], partner_names(5)))
    assert len(result.failed) == 5
    assert all(isinstance(o.error, NotSentError) for o in result.failed)


# -------------------------------------------------------------------------------------- the end of a drain


@pytest.mark.parametrize("replay", ["safe", "always"])
async def test_a_token_that_arrives_before_the_drain_ends_is_created(replay):
    """The part of a response that arrived before the drain ended is read: a complete token is created."""

    async def respond_slowly(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"relay_token": "T-1", ')
        await writer.drain()
        written.set()
        await reader.read()

    written = asyncio.Event()
    settings = {"timeouts": Timeouts(drain=0.1), "retry": RetryPolicy(replay=replay)}
    async with serving(respond_slowly) as (url, _), RelayClient(OWNER, base_url=url, **settings) as client:
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # the response arrives
    (created,) = outcomes.result.created
    assert created.relay_token == "T-1"


@pytest.mark.parametrize(("status", "kind"), [(400, "failed"), (500, "unknown")])
async def test_a_status_that_arrives_before_the_drain_ends_decides(status, kind):
    """Without a body, the status alone decides between failed and unknown."""

    async def respond_slowly(reader, writer):
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 %d Oh\r\nContent-Length: 100\r\n\r\n{" % status)
        await writer.drain()
        written.set()
        await reader.read()

    written = asyncio.Event()
    timeouts = Timeouts(drain=0.1)
    async with (
        serving(respond_slowly) as (url, _),
        RelayClient(OWNER, base_url=url, timeouts=timeouts) as client,
    ):
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await written.wait()
            await asyncio.sleep(0.1)  # the response arrives
    (outcome,) = getattr(outcomes.result, kind)
    assert outcome.error.status == status


async def test_a_call_that_connects_when_the_drain_ends_is_not_attempted():
    """If the TLS handshake isn't answered, nothing was sent, so nothing is unknown."""
    async with (
        serving(stay_silent, "https") as (url, _),
        RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.1)) as client,
    ):
        async with client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p"])) as outcomes:
            await asyncio.sleep(0.05)
    assert (len(outcomes.result.not_attempted), all_outcomes(outcomes.result)) == (1, [])


# ---------------------------------------------------------------------------------- pauses and rate limits


async def test_an_attempt_that_connects_when_the_drain_ends_counts():
    """The outcome is that of the attempt before, and the number of attempts includes both."""

    async def reject_first(reader, writer):
        if len(accepted) > 1:
            await stay_silent(reader, writer)

    async with (
        serving(reject_first, "https") as (url, accepted),
        RelayClient(OWNER, base_url=url, timeouts=Timeouts(drain=0.05), retry=QUICK) as client,
    ):
        async with client.relay.create_many([RelayCreateRequest(["report"], "partner")]) as outcomes:
            await wait_until_async(lambda: len(accepted) > 1)
        (failed,) = outcomes.result.failed
        assert (type(failed.error), failed.attempts, failed.error.sent) == (NotSentError, 2, False)
        assert client.statistics().attempts == {"not_sent": 1, "cancelled": 1}


async def test_waiting_for_a_rate_limit_is_queueing(plaid):
    """In a batch, declined attempts count against neither the attempts nor the deadline of a request."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=30))
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "3"}, times=1))
    impatient = RetryPolicy(attempts=1, backoff=0.001, max_backoff=0.002)
    async with RelayClient(OWNER, base_url=plaid.url, retry=impatient) as client:
        result = await client.relay.create_many(create_requests(plaid, 5), concurrency=2, timeout=2)
    assert len(result.created) == 5
    assert max(o.attempts for o in result.created) > 5


async def test_pauses_are_queueing_for_reads(plaid, client, partner):
    """Waiting for a rate limit counts against neither attempts nor deadline; a pause that is too long stops the batch."""
    tokens = await create_tokens(client, plaid, 5)
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "0"}, times=8))
    result = await partner.relay.get_many(tokens, retry=RetryPolicy(attempts=1, backoff=0.001))
    assert result.counts == {"fetched": 5}
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "301"}))
    result = await partner.relay.get_many(tokens, concurrency=1)
    assert isinstance(result.stopped_by, RateLimitError)


async def test_declined_attempts_do_not_use_up_the_attempts(plaid):
    """After many declined attempts, an attempt that wasn't sent is still repeated."""

    class Hiccup:
        tries = 0

        async def acquire(self, endpoint: str) -> None:
            self.tries += 1
            if self.tries == 5:
                raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=4))
    policy = RetryPolicy(attempts=2, backoff=0.001)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy, rate_limiter=Hiccup()) as client:
        result = await client.relay.create_many(create_requests(plaid, 1))
    assert result.created[0].attempts == 5


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"Retry-After": "Mon, 01 Jan 2030 00:00:00 +99999999999999999999"},
        {
            "Retry-After": "Mon, 01 Jan 2030 00:00:00 GMT",
            "Date": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        },
        {"Retry-After": "9" * 400},
    ],
    ids=["year", "offset", "date", "seconds"],
)
async def test_an_absurd_retry_after_date_changes_no_outcome(plaid, client, headers):
    """Whatever a server sends in Retry-After and Date, a plain 400 is a failure."""
    plaid.fail(Fault(path=CREATE, status=400, headers=headers))
    result = await client.relay.create_many(create_requests(plaid, 3))
    assert result.counts == {"failed": 3}
    with pytest.raises(InvalidRequestError):
        await client.relay.create([plaid.add_report()], "p")


async def test_an_absurd_retry_after_in_seconds_is_capped(plaid, client):
    """A 429 with an absurd delay fails with the largest number of seconds, and so does the next call."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "9" * 400}))
    for attempts, cls in ((1, RateLimitError), (0, WaitTooLongError)):
        with pytest.raises(cls) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert caught.value.attempts == attempts
        assert caught.value.retry_after == pytest.approx(sys.float_info.max)


# --------------------------------------------------------------------------------------------- the journal


async def test_the_journal_is_written_before_and_after_each_attempt(plaid, client):
    """Each intent is recorded before the attempt starts, and each outcome before a callback receives it."""
    journal = BreakingJournal()

    def on_outcome(outcome) -> None:
        assert ("Created", outcome.request.secondary_client_id) in journal.lines

    result = await client.relay.create_many(create_requests(plaid), journal=journal, on_outcome=on_outcome)
    assert all(o.journalled for o in result.created)
    for partner in partner_names(20):
        assert journal.lines.index(("intent", partner)) < journal.lines.index(("Created", partner))


async def test_nothing_is_sent_if_the_journal_cannot_record_the_intent(plaid, client):
    """Sending stops, and the journal's error is the cause."""
    batch = client.relay.create_many(
        create_requests(plaid), journal=BreakingJournal(breaks_at_intent=4), concurrency=2
    )
    with pytest.raises(BatchStoppedError) as caught:
        await batch
    assert isinstance(caught.value.__cause__, OSError)
    assert len(batch.result.created) == len(plaid.ledger)
    assert batch.result.not_attempted
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_no_token_is_lost_if_the_journal_cannot_record_the_outcome(plaid, client):
    """The caller receives the outcome with `journalled=False`."""
    batch = client.relay.create_many(
        create_requests(plaid), journal=BreakingJournal(breaks_at_outcome=3), concurrency=1
    )
    with pytest.raises(BatchStoppedError):
        await batch
    assert [o.journalled for o in batch.result.created] == [True, False]
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_an_attempt_in_doubt_is_recorded_before_its_pair_is_looked_up_again(plaid, client):
    """If a retry loses the race for its pair, the first attempt is recorded as unknown, and nothing more is sent."""

    class LosesARace(BreakingJournal):
        recorded = None

        async def acquire_recorder(self, request, context):
            recorder = await super().acquire_recorder(request, context)
            recorder.recorded_outcome = self.recorded
            return recorder

        async def record_intent(self, request: RelayCreateRequest) -> None:
            if self.lines:
                raise LostRaceError
            await super().record_intent(request)

        async def record_outcome(self, outcome) -> None:
            await super().record_outcome(outcome)
            self.recorded = outcome

    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    always, journal = RetryPolicy(replay="always", backoff=0.001), LosesARace()
    result = await client.relay.create_many(create_requests(plaid, 1), retry=always, journal=journal)
    (unknown,) = result.unknown
    assert (unknown.error.status, plaid.counts[CREATE]) == (500, 1)
    assert journal.lines == [("intent", "partner-0"), ("Unknown", "partner-0")]


async def test_a_request_that_is_not_attempted_may_have_a_recorded_outcome(plaid, client):
    """A skipped request is looked up if its pair was assumed to be new; without an outcome, it fails."""

    class AssumesNew(BreakingJournal):
        recorded = None
        not_attempted = 0

        async def acquire_recorder(self, request, context):
            recorder = await super().acquire_recorder(request, context)
            recorder.recorded_outcome, self.recorded = self.recorded, None
            return recorder

        async def record_outcome(self, outcome) -> None:
            if outcome is not None:
                return
            self.not_attempted += 1
            if self.not_attempted == 1:
                response = RelayCreateResponse("recorded")
                self.recorded = Created(
                    request=None, response=response, attempts=0, elapsed=0.0, request_id=None
                )
                raise LostRaceError

    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}))
    journal = AssumesNew()
    result = await client.relay.create_many(create_requests(plaid, 5), journal=journal, concurrency=1)
    assert [outcome.relay_token for outcome in result.created] == ["recorded"]
    assert [outcome.attempts for outcome in result.failed] == [1, 1, 1, 0]
    assert (journal.not_attempted, plaid.counts[CREATE]) == (2, 3)


@pytest.fixture
async def short_drain_client(plaid):
    """A client whose batches drain for a tenth of a second."""
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as opened:
        yield opened


async def test_a_request_whose_intent_is_being_recorded_is_sent(plaid, client):
    """A batch that is left while its journal records an intent sends that request and records its outcome."""

    class Slow(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.sleep(0.02)
            await super().record_intent(request)

    journal = Slow()
    async with client.relay.create_many(create_requests(plaid), journal=journal, concurrency=3) as outcomes:
        await asyncio.sleep(0.01)
    assert len(outcomes.result.created) == plaid.counts[CREATE] == 3
    assert sorted(event for event, _ in journal.lines) == ["Created"] * 3 + ["intent"] * 3


async def test_a_request_whose_intent_is_not_recorded_in_time_is_not_attempted(plaid, short_drain_client):
    """Nothing is sent before its intent is recorded, so nothing is unknown."""

    class Stuck(BreakingJournal):
        async def record_intent(self, request: RelayCreateRequest) -> None:
            await asyncio.Event().wait()

    async with short_drain_client.relay.create_many(
        create_requests(plaid), journal=Stuck(), concurrency=3
    ) as outcomes:
        await asyncio.sleep(0.01)
    assert (len(outcomes.result.not_attempted), plaid.counts[CREATE]) == (3, 0)


async def test_a_token_that_is_not_recorded_in_time_is_returned(plaid, short_drain_client):
    """The caller receives it with `journalled=False`."""

    class Stuck(BreakingJournal):
        async def record_outcome(self, outcome) -> None:
            await asyncio.Event().wait()

    async with short_drain_client.relay.create_many(
        create_requests(plaid), journal=Stuck(), concurrency=3
    ) as outcomes:
        await wait_until_async(lambda: len(plaid.ledger) == 3)
        await asyncio.sleep(0.1)  # the responses arrive
    assert [o.journalled for o in outcomes.result.created] == [False] * 3
    assert_nothing_lost(plaid, all_outcomes(outcomes.result))
