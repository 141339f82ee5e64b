"""What `get_many`, `get_pdf_many`, `refresh_many` and `remove_many` do beyond what all batches do."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time

import pytest
from processes import wait_until_async
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import (
    AssetReportGetResponse,
    AuthenticationError,
    BatchStoppedError,
    ConfigurationError,
    ConnectionLostError,
    Created,
    Credentials,
    DuplicateRequestError,
    Failed,
    Fetched,
    InvalidRequestError,
    OutcomeUnknownError,
    PdfResponse,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRemoveRequest,
    Removed,
    RequestValidationError,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
    Unknown,
)
from plaid_relay_async.batch import GET as READS
from plaid_relay_async.batch import REMOVE as REMOVALS
from plaid_relay_async.batch import Batch
from plaid_relay_async.simulator import Fault, Simulator

GET, PDF = "/credit/relay/get", "/credit/relay/pdf/get"
REFRESH, REMOVE = "/credit/relay/refresh", "/credit/relay/remove"
MANY = ["get_many", "get_pdf_many", "refresh_many", "remove_many"]
ONCE = RetryPolicy(attempts=1)


async def shared(client: RelayClient, plaid: Simulator, count: int) -> list[str]:
    """Relay tokens for the partner of these tests, each to a report of its own."""
    requests = [RelayCreateRequest([plaid.add_report()], PARTNER.client_id) for _ in range(count)]
    result = await client.relay.create_many(requests)
    return [outcome.relay_token for outcome in result.created]


def removed_at(plaid: Simulator) -> set[str]:
    return {str(entry["relay_token"]) for entry in plaid.ledger if entry["removed"]}


def held(result) -> list:
    return [*result.succeeded, *result.failed, *result.unknown]


# ----------------------------------------------------------------------------------------- what they do


async def test_a_partner_reads_its_reports(plaid, client, partner):
    """Awaited, there is the very report for each token that `get` gives for it."""
    tokens = await shared(client, plaid, 20)
    result = await partner.relay.get_many(tokens, concurrency=4)
    read = {o.request.relay_token: o.response.report for o in result.succeeded}
    assert read == {token: (await partner.relay.get(token)).report for token in tokens}
    assert result.counts == {"fetched": 20}
    assert repr(result) == "<BatchResult succeeded=20, failed=0, unknown=0, not_attempted=0>"
    assert {o.request_id for o in result.succeeded} == {o.response.request_id for o in result.succeeded}


async def test_streamed_each_report_is_handed_on(plaid, client, partner):
    """The loop sees each report once, and the result holds none of them."""
    tokens, seen = await shared(client, plaid, 20), set()
    async with partner.relay.get_many(iter(tokens), include_insights=True) as outcomes:
        async for outcome in outcomes:
            assert isinstance(outcome, Fetched)
            seen.add(outcome.request.relay_token)
            accounts = outcome.response.report.items[0].accounts
            assert any(transaction.category for account in accounts for transaction in account.transactions)
            assert outcome.request.relay_token not in repr(outcome)
    assert seen == set(tokens)
    assert held(outcomes.result) == []


async def test_a_partner_reads_its_reports_as_pdfs(plaid, client, partner):
    """The same for PDFs, whose request id comes in a header."""
    tokens = await shared(client, plaid, 5)
    result = await partner.relay.get_pdf_many(tokens)
    assert {type(o.response) for o in result.succeeded} == {PdfResponse}
    assert all(o.response.content.startswith(b"%PDF-") for o in result.succeeded)
    ids = {r.request_id for r in plaid.requests if r.path == PDF}
    assert {o.request_id for o in result.succeeded} == ids


async def test_a_partner_has_its_reports_made_anew(plaid, client, partner):
    """One new report for each token."""
    tokens = await shared(client, plaid, 10)
    result = await partner.relay.refresh_many(tokens, webhook="https://partner.example/hook")
    assert all(isinstance(o, Refreshed) for o in result.succeeded)
    made = {(o.request.relay_token, o.response.asset_report_id) for o in result.succeeded}
    assert made == set(plaid.refreshes)
    assert {token for token, _ in made} == set(tokens)
    assert {o.request.webhook for o in result.succeeded} == {"https://partner.example/hook"}


async def test_an_owner_takes_its_tokens_back(plaid, client):
    """Each token is gone afterwards."""
    tokens = await shared(client, plaid, 10)
    result = await client.relay.remove_many(tokens[:7])
    assert all(isinstance(o, Removed) and o.response.removed for o in result.succeeded)
    assert removed_at(plaid) == set(tokens[:7])
    assert result.counts == {"removed": 7}


# -------------------------------------------------------------------------------------------- the input


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("get_many", RelayGetRequest),
        ("get_pdf_many", RelayPdfGetRequest),
        ("refresh_many", RelayRefreshRequest),
        ("remove_many", RelayRemoveRequest),
    ],
)
async def test_requests_may_stand_in_place_of_tokens(plaid, name, record):
    """The input may be async, and hold tokens and the operation's own requests."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        report = plaid.add_report()
        made = [await client.relay.create([report], "both") for _ in range(2)]

        async def rows():
            yield made[0].relay_token
            await asyncio.sleep(0)
            yield record(made[1].relay_token)

        result = await getattr(client.relay, name)(rows())
    assert {o.request.relay_token for o in result.succeeded} == {m.relay_token for m in made}
    assert {type(o.request) for o in result.succeeded} == {record}


async def test_a_request_has_its_own_settings(plaid, client, partner):
    """What is said for all tokens doesn't touch a request."""
    tokens = await shared(client, plaid, 2)
    rows = [tokens[0], RelayGetRequest(tokens[1])]
    result = await partner.relay.get_many(rows, include_insights=True)
    assert {o.request.relay_token: o.request.include_insights for o in result.succeeded} == {
        tokens[0]: True,
        tokens[1]: False,
    }


@pytest.mark.parametrize("name", [*MANY, "create_many"])
async def test_a_lone_string_is_no_input(client, name):
    """It would be read letter by letter; it is refused at once."""
    with pytest.raises(RequestValidationError, match="not one string") as caught:
        getattr(client.relay, name)("credit-relay-sandbox-1")
    assert caught.value.sent is False
    assert "credit-relay" not in str(caught.value)


async def test_what_goes_with_each_token_is_checked_at_once(client):
    """Not at the first token, which may come late, and not under that token's name."""
    with pytest.raises(RequestValidationError, match="include_insights must be True or False"):
        client.relay.get_many([], include_insights=1)
    with pytest.raises(RequestValidationError, match="webhook must be an http"):
        client.relay.refresh_many([], webhook="nowhere")
    with pytest.raises(ConfigurationError, match="concurrency"):
        client.relay.remove_many([], concurrency=0)
    with pytest.raises(ConfigurationError, match="must be a number of seconds"):
        client.relay.get_pdf_many([], timeout=-1)


@pytest.mark.parametrize(
    ("bad", "problem"), [("a b", "holds white space"), ("", "is empty"), (None, "must be a string, not None")]
)
async def test_a_token_that_cannot_pass_ends_the_batch(plaid, client, partner, bad, problem):
    """Its place is named, what was read until then is in the result, and the rest stays unread."""
    tokens = await shared(client, plaid, 3)
    rows = iter([*tokens, bad, *tokens])
    with pytest.raises(BatchStoppedError) as caught:
        await partner.relay.get_many(rows, concurrency=1)
    cause = caught.value.__cause__
    assert isinstance(cause, RequestValidationError)
    assert cause.field == "relay_tokens[3]"
    assert cause.problem.startswith(problem)
    assert len(caught.value.result.succeeded) == 3
    assert list(rows) == tokens


async def test_a_record_of_another_operation_is_named(client):
    """A creation among removals is no token."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.remove_many([RelayCreateRequest(["t"], "p")])
    assert "relay_tokens[0] must be a string, not RelayCreateRequest" in str(caught.value.__cause__)
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many([RelayGetRequest("t")])
    assert "requests[0] must be a RelayCreateRequest, not RelayGetRequest" in str(caught.value.__cause__)


@pytest.mark.parametrize("name", MANY)
async def test_a_token_that_comes_again_is_failed(plaid, name):
    """It isn't sent, whatever else its request says; who wants it twice may say so."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        made = await client.relay.create([plaid.add_report()], "both")
        many = getattr(client.relay, name)
        result = await many([made.relay_token] * 3)
        assert (len(result.succeeded), len(result.failed)) == (1, 2)
        error = result.failed[0].error
        assert isinstance(error, DuplicateRequestError)
        assert "this relay token is already in the batch" in str(error)
        before = plaid.counts.total()
        again = await many([made.relay_token] * 3, allow_duplicates=True)
        assert (len(held(again)), plaid.counts.total() - before) == (3, 3)


# ---------------------------------------------------------------------------------------------- faults


async def test_errors_that_all_share_stop_every_batch(plaid, client):
    """Wrong credentials would meet every token alike."""
    tokens = [f"token-{n}" for n in range(100)]
    plaid.fail(Fault(status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}))
    for name in MANY:
        result = await getattr(client.relay, name)(tokens, concurrency=1)
        assert (len(result.failed), result.stopped_by.error_code) == (3, "INVALID_API_KEYS")
    with pytest.raises(ExceptionGroup, match="3 failed, 0 unknown"):
        result.raise_for_failures()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_report_that_cannot_be_decoded_is_in_its_outcome(plaid, client, streamed):
    """Its bytes are in the error, as those of `get` are, hidden; its place is, too."""
    tokens = await shared(client, plaid, 3)
    body = json.dumps({"report": {"asset_report_id": None}, "warnings": [], "request_id": "q"})
    plaid.fail(Fault(path=GET, status=200, body=body))
    async with RelayClient(PARTNER, base_url=plaid.url) as partner:
        with pytest.raises(ResponseDecodeError) as caught:
            await partner.relay.get(tokens[0])
        if streamed:
            async with partner.relay.get_many(tokens) as outcomes:
                failed = [outcome async for outcome in outcomes]
        else:
            failed = (await partner.relay.get_many(tokens)).failed
    for error in [caught.value, *(outcome.error for outcome in failed)]:
        assert error.body.reveal() == body.encode()
        assert (error.path, error.request_id) == ("$.report.asset_report_id", "q")
        assert "asset_report_id" not in repr(error.body)
    assert len(failed) == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"close": True}, ConnectionLostError),
        ({"status": 500}, PlaidServerError),
        ({"truncate": 50}, ConnectionLostError),
        ({"status": 200, "body": {}}, ResponseDecodeError),
        ({"stall": 30, "when": "after"}, ReadTimeoutError),
    ],
)
async def test_a_read_that_fails_is_never_unknown(plaid, client, fault, error):
    """A read changes nothing; whatever became of it, it can be made again."""
    (token,) = await shared(client, plaid, 1)
    plaid.fail(Fault(path=GET, **fault))
    timeouts = Timeouts(slow_read=0.05)
    async with RelayClient(PARTNER, base_url=plaid.url, retry=QUICK, timeouts=timeouts) as partner:
        result = await partner.relay.get_many([token])
    (failed,) = result.failed
    assert type(failed.error) is error
    assert failed.attempts == failed.error.attempts == plaid.counts[GET]


@pytest.mark.parametrize("name", ["get_many", "get_pdf_many"])
async def test_a_read_in_flight_that_is_dropped_is_failed(plaid, client, name):
    """Left before its answer came, it is lost, and not unknown."""
    tokens = await shared(client, plaid, 3)
    plaid.fail(Fault(stall=30, when="after"))
    async with RelayClient(PARTNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as partner:
        async with getattr(partner.relay, name)(tokens) as outcomes:
            while plaid.counts[GET] + plaid.counts[PDF] < 3:
                await asyncio.sleep(0.001)
    assert [type(o.error) for o in outcomes.result.failed] == [ConnectionLostError] * 3
    assert outcomes.result.unknown == []


async def test_a_read_that_waits_for_its_next_attempt_is_failed_when_the_batch_is_left(plaid, client):
    """It has the error that it met."""
    (token,) = await shared(client, plaid, 1)
    plaid.fail(Fault(path=GET, close=True))
    slowly = RetryPolicy(backoff=30, max_backoff=30)
    async with RelayClient(PARTNER, base_url=plaid.url, retry=slowly) as partner:
        async with partner.relay.get_many([token]) as outcomes:
            while not plaid.counts[GET]:
                await asyncio.sleep(0.001)
            await wait_until_async(lambda: partner.statistics().retries)
    (failed,) = outcomes.result.failed
    assert (type(failed.error), failed.attempts) == (ConnectionLostError, 1)


@pytest.mark.parametrize(
    ("operation", "request_of", "outcome", "error"),
    [
        (READS, RelayGetRequest, Failed, ConnectionLostError),
        (REMOVALS, RelayRemoveRequest, Unknown, OutcomeUnknownError),
    ],
)
async def test_a_call_of_which_nothing_is_told(operation, request_of, outcome, error):
    """Given up without a word, or ended by a bug, a read is lost and a removal unknown, with removals' advice."""

    async def silent(request, permit):
        await permit.start_attempt()
        await asyncio.Event().wait()

    async def broken(request, permit):
        raise ZeroDivisionError

    rows = [request_of("t")]
    async with Batch(operation, rows, silent, concurrency=1, drain_timeout=0.02) as outcomes:
        await asyncio.sleep(0.01)
    (silenced,) = held(outcomes.result)
    (ended,) = held(await Batch(operation, rows, broken, concurrency=1, drain_timeout=1))
    assert [type(o) for o in (silenced, ended)] == [outcome] * 2
    assert [type(o.error) for o in (silenced, ended)] == [error] * 2
    assert "the batch ended before a response" in str(silenced.error)
    assert isinstance(ended.error.__cause__, ZeroDivisionError)
    if outcome is Unknown:
        assert silenced.error.advice == ended.error.advice == REMOVALS.advice


async def test_a_refresh_whose_answer_is_lost_is_unknown(plaid, client, partner):
    """There may be a new report, so nothing is repeated."""
    tokens = await shared(client, plaid, 5)
    plaid.fail(Fault(path=REFRESH, close=True, when="after", times=1))
    result = await partner.relay.refresh_many(tokens)
    (unknown,) = result.unknown
    assert unknown.error.advice == OutcomeUnknownError.advice
    assert (unknown.attempts, len(result.succeeded), len(plaid.refreshes)) == (1, 4, 5)


# -------------------------------------------------------------------------------------------- removals


async def test_a_removal_is_repeated_when_its_answer_is_lost(plaid, client):
    """The repeat is told that the token is gone, so it is removed, by inference."""
    tokens = await shared(client, plaid, 3)
    plaid.fail(Fault(path="/credit/relay/remove", close=True, when="after", times=1))
    result = await client.relay.remove_many(tokens)
    assert sorted(o.response.inferred for o in result.succeeded) == [False, False, True]
    assert removed_at(plaid) == set(tokens)


@pytest.mark.parametrize(
    ("fault", "cause", "facts"),
    [
        ({"close": True}, ConnectionLostError, {}),
        (
            {"status": 500},
            PlaidServerError,
            {"status": 500, "error_type": "API_ERROR", "error_code": "INTERNAL_SERVER_ERROR"},
        ),
        ({"status": 200, "body": {"removed": "yes"}}, ResponseDecodeError, {"status": 200}),
    ],
)
async def test_a_removal_that_is_left_open_is_unknown(plaid, client, fault, cause, facts):
    """It has all that is known, and says that removing it again is safe."""
    (token,) = await shared(client, plaid, 1)
    plaid.fail(Fault(path="/credit/relay/remove", when="after", **fault))
    result = await client.relay.remove_many([token], retry=ONCE)
    (unknown,) = result.unknown
    error = unknown.error
    assert type(error) is OutcomeUnknownError
    assert "Remove it again, which is safe" in str(error)
    assert isinstance(error.__cause__, cause)
    assert (unknown.attempts, error.attempts) == (1, 1)
    assert {name: getattr(error, name) for name in facts} == facts
    assert unknown.request_id == error.request_id == getattr(error.__cause__, "request_id", None)
    assert token not in f"{unknown!r} {error} {vars(error)}"
    plaid.clear_faults()
    again = await client.relay.remove_many([token])
    assert (len(again.succeeded), again.error_codes) == (0, {"INVALID_RELAY_TOKEN": 1})  # gone for sure


async def test_a_removal_that_is_refused_is_failed(plaid, client):
    """Nothing was removed, or there was nothing to remove."""
    result = await client.relay.remove_many(["credit-relay-sandbox-nothing"])
    (failed,) = result.failed
    assert (type(failed.error), failed.attempts) == (InvalidRequestError, 1)


async def test_a_lost_removal_outweighs_a_refusal_after_it(plaid, client):
    """The first attempt may have been carried out, whatever the second was told."""
    (token,) = await shared(client, plaid, 1)
    plaid.fail(
        Fault(path="/credit/relay/remove", status=500, when="after", times=1),
        Fault(path="/credit/relay/remove", status=401, body={"error_code": "INVALID_API_KEYS"}),
    )
    result = await client.relay.remove_many([token])
    (unknown,) = result.unknown
    assert (unknown.error.status, unknown.attempts, unknown.error.attempts) == (500, 2, 2)
    with pytest.raises(AuthenticationError):
        await client.relay.remove(token)


async def test_a_removal_in_flight_that_is_dropped_is_unknown(plaid, client):
    """Left before its answer came, or while it waits to be repeated: it may have been carried out."""
    tokens = await shared(client, plaid, 2)
    plaid.fail(
        Fault(path="/credit/relay/remove", close=True, when="after", times=1),
        Fault(path="/credit/relay/remove", stall=30),
    )
    policy = RetryPolicy(backoff=30, max_backoff=30)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1), retry=policy) as hurried:
        async with hurried.relay.remove_many(tokens) as outcomes:
            while plaid.counts[REMOVE] < 2:
                await asyncio.sleep(0.001)
            await wait_until_async(lambda: hurried.statistics().retries)
    assert [type(o.error.__cause__) for o in outcomes.result.unknown] == [ConnectionLostError] * 2
    assert {o.error.advice for o in outcomes.result.unknown} == {REMOVALS.advice}


async def test_a_lost_removal_stays_unknown_while_it_waits_for_a_pause(plaid, client):
    """Refused for now after a lost attempt, and left: the lost attempt is what counts."""
    (token,) = await shared(client, plaid, 1)
    busy = {"Retry-After": "30"}
    plaid.fail(
        Fault(path="/credit/relay/remove", close=True, when="after", times=1),
        Fault(path="/credit/relay/remove", status=429, headers=busy),
    )
    async with client.relay.remove_many([token]) as outcomes:
        while plaid.counts[REMOVE] < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)  # the response arrives
    (unknown,) = outcomes.result.unknown
    assert (unknown.attempts, type(unknown.error.__cause__)) == (2, ConnectionLostError)


@pytest.mark.parametrize("way", ["break", "cancel"])
async def test_removals_tell_the_truth_at_whatever_moment_they_are_left(way, rounds, subtests):
    """What is removed at Plaid is removed or unknown here, and what failed here is still there."""
    for seed in range(rounds):
        with subtests.test(seed=seed):
            await leave_removals(way, random.Random(f"{way}-{seed}"), seed)


async def leave_removals(way: str, draw: random.Random, seed: int) -> None:
    faults = [
        Fault(path="/credit/relay/remove", status=429, headers={"Retry-After": "0"}, rate=0.05),
        Fault(path="/credit/relay/remove", close=True, when="after", rate=0.1),
        Fault(path="/credit/relay/remove", status=500, when="after", rate=0.1),
        Fault(path="/credit/relay/remove", status=400, rate=0.05),
    ]
    moment, handed = draw.random() * 0.2, []
    async with (
        Simulator(seed=seed, latency=draw.random() * 0.01) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
    ):
        tokens = await shared(client, plaid, 500)
        plaid.fail(*faults)
        batch = client.relay.remove_many(tokens, concurrency=draw.choice([1, 5, 50]))
        if way == "cancel":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(moment):
                    await batch
        else:
            async with batch as outcomes:
                async for outcome in outcomes:
                    handed.append(outcome)
                    if draw.random() < 0.01:
                        break
        outcomes = [*handed, *held(batch.result)]
        kinds = {o.request.relay_token: type(o) for o in outcomes}
        assert len(kinds) == len(outcomes)
        for token in tokens:
            allowed = {Removed, Unknown} if token in removed_at(plaid) else {Failed, Unknown, None}
            assert kinds.get(token) in allowed


async def test_what_plaid_didnt_remove_has_failed(plaid, client):
    """An answer that says that nothing was removed is no removal: the token still opens the report."""
    tokens = await shared(client, plaid, 2)
    plaid.fail(
        Fault(path="/credit/relay/remove", status=200, body={"removed": False, "request_id": "q"}, times=1)
    )
    result = await client.relay.remove_many(tokens, concurrency=1)
    assert result.counts == {"failed": 1, "removed": 1}
    [failed] = result.failed
    assert (failed.error.request_id, failed.error.attempts, failed.error.sent) == ("q", 1, True)
    assert "still opens the report" in str(failed.error)


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param("get_many", GET, marks=pytest.mark.full_size), ("get_pdf_many", PDF)],
)
async def test_a_slow_loop_holds_no_more_reports_than_the_concurrency(plaid, client, partner, name, path):
    """Under way or unread, there are so many at most; and no more is asked for than that."""
    tokens = await shared(client, plaid, 40)
    kind = AssetReportGetResponse if name == "get_many" else PdfResponse
    concurrency, had, most = 4, 0, 0
    before = alive(kind)  # other tests' own
    async with getattr(partner.relay, name)(tokens, concurrency=concurrency) as outcomes:
        async for outcome in outcomes:
            had += 1
            await asyncio.sleep(0.02)  # time enough to fetch whatever there is leave for
            assert plaid.counts[path] - had <= concurrency
            del outcome
            most = max(most, alive(kind) - before)
    assert (had, most) == (40, concurrency)


def alive(kind: type) -> int:
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


async def test_as_many_reports_are_under_way_as_may_be(plaid, client, partner):
    """The bound is reached, too: reading isn't slower than it has to be."""
    tokens = await shared(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.1))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        await anext(outcomes)
        assert plaid.counts[GET] == 5
        async for _ in outcomes:
            pass
    assert outcomes.result.counts == {"fetched": 30}


async def test_a_loop_that_is_left_with_reports_unread_is_left_soon():
    """What is in flight is waited for, and not room for more: nobody reads any more."""

    async def read(request, permit):
        await permit.start_attempt()
        await asyncio.sleep(0.1 if request.relay_token == "slow" else 0)
        return PdfResponse(b"%PDF-")

    rows = [RelayGetRequest("quick"), RelayGetRequest("slow"), RelayGetRequest("never")]
    began = time.monotonic()
    async with Batch(READS, rows, read, concurrency=2, drain_timeout=20) as outcomes:
        await asyncio.sleep(0.02)
    assert time.monotonic() - began < 15
    assert (outcomes.result.counts, outcomes.result.not_attempted) == ({"fetched": 2}, [])


async def test_break_keeps_what_was_on_its_way(plaid, client, partner):
    """After `break` the reports that still came in are in the result."""
    tokens = await shared(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.02))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        async for _ in outcomes:
            break
    counts = outcomes.result.counts
    assert len(outcomes.result.succeeded) == counts["fetched"] - 1
    assert counts["fetched"] == plaid.counts[GET] < 30


async def test_a_pause_concerns_one_operation(plaid, client, partner):
    """In a batch of reads, too, pauses are queueing."""
    tokens = await shared(client, plaid, 5)
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "0"}, times=8))
    result = await partner.relay.get_many(tokens, retry=RetryPolicy(attempts=1, backoff=0.001))
    assert result.counts == {"fetched": 5}
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "301"}))
    result = await partner.relay.get_many(tokens, concurrency=1)
    assert isinstance(result.stopped_by, RateLimitError)


async def test_created_is_another_name(plaid, client):
    """`created` is `succeeded`, and can't be set."""
    result = await client.relay.create_many(RelayCreateRequest.fan_out([plaid.add_report()], ["a"]))
    assert result.created is result.succeeded
    assert isinstance(result.created[0], Created)
    with pytest.raises(AttributeError):
        result.created = []
