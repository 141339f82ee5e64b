"""The batches of `get_many`, `get_pdf_many`, `refresh_many` and `remove_many`, where they differ from `create_many`."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time

import pytest
from processes import wait_until_async
from support import OWNER, PARTNER, QUICK, batch_of

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
from plaid_relay_async.simulator import Fault, Simulator

GET, PDF = "/credit/relay/get", "/credit/relay/pdf/get"
REFRESH, REMOVE = "/credit/relay/refresh", "/credit/relay/remove"
MANY = ["get_many", "get_pdf_many", "refresh_many", "remove_many"]
ONCE = RetryPolicy(attempts=1)


async def create_tokens(client: RelayClient, plaid: Simulator, count: int) -> list[str]:
    """Return relay tokens for the partner of these tests, each for another report."""
    requests = [RelayCreateRequest([plaid.add_report()], PARTNER.client_id) for _ in range(count)]
    result = await client.relay.create_many(requests)
    return [outcome.relay_token for outcome in result.created]


def removed_tokens(plaid: Simulator) -> set[str]:
    return {str(entry["relay_token"]) for entry in plaid.ledger if entry["removed"]}


def all_outcomes(result) -> list:
    return [*result.succeeded, *result.failed, *result.unknown]


# ------------------------------------------------------------------------------------- the operations


async def test_a_partner_reads_its_reports(plaid, client, partner):
    """`get_many` returns the same report for each token as `get`."""
    tokens = await create_tokens(client, plaid, 20)
    result = await partner.relay.get_many(tokens, concurrency=4)
    read = {o.request.relay_token: o.response.report for o in result.succeeded}
    assert read == {token: (await partner.relay.get(token)).report for token in tokens}
    assert result.counts == {"fetched": 20}
    assert repr(result) == "<BatchResult succeeded=20, failed=0, unknown=0, not_attempted=0>"
    assert {o.request_id for o in result.succeeded} == {o.response.request_id for o in result.succeeded}


async def test_streaming_yields_each_report_once(plaid, client, partner):
    """The loop receives each report once, and the result stores none of them."""
    tokens, seen = await create_tokens(client, plaid, 20), set()
    async with partner.relay.get_many(iter(tokens), include_insights=True) as outcomes:
        async for outcome in outcomes:
            assert isinstance(outcome, Fetched)
            seen.add(outcome.request.relay_token)
            accounts = outcome.response.report.items[0].accounts
            assert any(transaction.category for account in accounts for transaction in account.transactions)
            assert outcome.request.relay_token not in repr(outcome)
    assert seen == set(tokens)
    assert all_outcomes(outcomes.result) == []


async def test_a_partner_reads_its_reports_as_pdfs(plaid, client, partner):
    """`get_pdf_many` returns PDFs; their request ID is that of a response header."""
    tokens = await create_tokens(client, plaid, 5)
    result = await partner.relay.get_pdf_many(tokens)
    assert {type(o.response) for o in result.succeeded} == {PdfResponse}
    assert all(o.response.content.startswith(b"%PDF-") for o in result.succeeded)
    ids = {r.request_id for r in plaid.requests if r.path == PDF}
    assert {o.request_id for o in result.succeeded} == ids


async def test_a_partner_refreshes_its_reports(plaid, client, partner):
    """`refresh_many` starts a new report for each token."""
    tokens = await create_tokens(client, plaid, 10)
    result = await partner.relay.refresh_many(tokens, webhook="https://partner.example/hook")
    assert all(isinstance(o, Refreshed) for o in result.succeeded)
    refreshed = {(o.request.relay_token, o.response.asset_report_id) for o in result.succeeded}
    assert refreshed == set(plaid.refreshes)
    assert {token for token, _ in refreshed} == set(tokens)
    assert {o.request.webhook for o in result.succeeded} == {"https://partner.example/hook"}


async def test_a_lender_removes_its_tokens(plaid, client):
    """`remove_many` removes each token."""
    tokens = await create_tokens(client, plaid, 10)
    result = await client.relay.remove_many(tokens[:7])
    assert all(isinstance(o, Removed) and o.response.removed for o in result.succeeded)
    assert removed_tokens(plaid) == set(tokens[:7])
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
async def test_the_input_may_contain_requests(plaid, name, record):
    """The input may be async, and may mix tokens and requests of the operation."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        report = plaid.add_report()
        created = [await client.relay.create([report], "both") for _ in range(2)]

        async def rows():
            yield created[0].relay_token
            await asyncio.sleep(0)
            yield record(created[1].relay_token)

        result = await getattr(client.relay, name)(rows())
    assert {o.request.relay_token for o in result.succeeded} == {each.relay_token for each in created}
    assert {type(o.request) for o in result.succeeded} == {record}


async def test_a_request_has_its_own_settings(plaid, client, partner):
    """The settings that apply to all tokens don't change a request."""
    tokens = await create_tokens(client, plaid, 2)
    rows = [tokens[0], RelayGetRequest(tokens[1])]
    result = await partner.relay.get_many(rows, include_insights=True)
    assert {o.request.relay_token: o.request.include_insights for o in result.succeeded} == {
        tokens[0]: True,
        tokens[1]: False,
    }


@pytest.mark.parametrize("name", [*MANY, "create_many"])
async def test_a_single_string_is_rejected_as_input(client, name):
    """It would be read character by character; it is rejected immediately."""
    with pytest.raises(RequestValidationError, match="not one string") as caught:
        getattr(client.relay, name)("credit-relay-sandbox-1")
    assert caught.value.sent is False
    assert "credit-relay" not in str(caught.value)


async def test_settings_for_all_tokens_are_checked_immediately(client):
    """They are checked before the first token, which may come late, and not under that token's name."""
    with pytest.raises(RequestValidationError, match="include_insights must be True or False"):
        client.relay.get_many([], include_insights=1)
    with pytest.raises(RequestValidationError, match="webhook must be an http"):
        client.relay.refresh_many([], webhook="nowhere")
    with pytest.raises(ConfigurationError, match="concurrency"):
        client.relay.remove_many([], concurrency=0)
    with pytest.raises(ConfigurationError, match="must be a finite number of seconds"):
        client.relay.get_pdf_many([], timeout=-1)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [("a b", "contains whitespace"), ("", "is empty"), (None, "must be a string, not None")],
)
async def test_an_invalid_token_stops_the_batch(plaid, client, partner, bad, problem):
    """The error has its index, earlier outcomes are in the result, and the rest stays unread."""
    tokens = await create_tokens(client, plaid, 3)
    rows = iter([*tokens, bad, *tokens])
    with pytest.raises(BatchStoppedError) as caught:
        await partner.relay.get_many(rows, concurrency=1)
    cause = caught.value.__cause__
    assert isinstance(cause, RequestValidationError)
    assert cause.field == "relay_tokens[3]"
    assert cause.problem.startswith(problem)
    assert len(caught.value.result.succeeded) == 3
    assert list(rows) == tokens


async def test_a_request_of_another_operation_is_rejected(client):
    """A creation in a batch of removals isn't a token."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.remove_many([RelayCreateRequest(["t"], "p")])
    assert "relay_tokens[0] must be a string, not RelayCreateRequest" in str(caught.value.__cause__)
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many([RelayGetRequest("t")])
    assert "requests[0] must be a RelayCreateRequest, not RelayGetRequest" in str(caught.value.__cause__)


@pytest.mark.parametrize("name", MANY)
async def test_a_duplicate_token_fails(plaid, name):
    """It isn't sent, whatever the other fields of its request; allow_duplicates=True sends it."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        created = await client.relay.create([plaid.add_report()], "both")
        many = getattr(client.relay, name)
        result = await many([created.relay_token] * 3)
        assert (len(result.succeeded), len(result.failed)) == (1, 2)
        error = result.failed[0].error
        assert isinstance(error, DuplicateRequestError)
        assert "this relay token is already in the batch" in str(error)
        before = plaid.counts.total()
        allowed = await many([created.relay_token] * 3, allow_duplicates=True)
        assert (len(all_outcomes(allowed)), plaid.counts.total() - before) == (3, 3)


# ---------------------------------------------------------------------------------------------- faults


async def test_shared_errors_stop_every_kind_of_batch(plaid, client):
    """Wrong credentials would fail every token in the same way."""
    tokens = [f"token-{n}" for n in range(100)]
    plaid.fail(Fault(status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}))
    for name in MANY:
        result = await getattr(client.relay, name)(tokens, concurrency=1)
        assert (len(result.failed), result.stopped_by.error_code) == (3, "INVALID_API_KEYS")
    with pytest.raises(ExceptionGroup, match="3 failed, 0 unknown"):
        result.raise_for_failures()


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_undecodable_report_is_in_its_outcome(plaid, client, streamed):
    """The error has its bytes, hidden, and the place of the problem, as the error of `get` has."""
    tokens = await create_tokens(client, plaid, 3)
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
    """A read changes nothing, so it can be repeated whatever happened."""
    (token,) = await create_tokens(client, plaid, 1)
    plaid.fail(Fault(path=GET, **fault))
    timeouts = Timeouts(slow_read=0.05)
    async with RelayClient(PARTNER, base_url=plaid.url, retry=QUICK, timeouts=timeouts) as partner:
        result = await partner.relay.get_many([token])
    (failed,) = result.failed
    assert type(failed.error) is error
    assert failed.attempts == failed.error.attempts == plaid.counts[GET]


@pytest.mark.parametrize("name", ["get_many", "get_pdf_many"])
async def test_a_read_that_is_in_flight_when_the_drain_ends_fails(plaid, client, name):
    """Without a response it is lost, and not unknown."""
    tokens = await create_tokens(client, plaid, 3)
    plaid.fail(Fault(stall=30, when="after"))
    async with RelayClient(PARTNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as partner:
        async with getattr(partner.relay, name)(tokens) as outcomes:
            while plaid.counts[GET] + plaid.counts[PDF] < 3:
                await asyncio.sleep(0.001)
    assert [type(o.error) for o in outcomes.result.failed] == [ConnectionLostError] * 3
    assert outcomes.result.unknown == []


async def test_a_read_that_waits_for_a_retry_when_the_batch_is_left_fails(plaid, client):
    """It fails with the error of its last attempt."""
    (token,) = await create_tokens(client, plaid, 1)
    plaid.fail(Fault(path=GET, close=True))
    slow = RetryPolicy(backoff=30, max_backoff=30)
    async with RelayClient(PARTNER, base_url=plaid.url, retry=slow) as partner:
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
async def test_the_outcome_of_a_call_without_a_result(operation, request_of, outcome, error):
    """After a cancellation or an unexpected error, a read fails, and a removal is unknown with its own advice."""

    async def hang(request, gate):
        await gate.start_attempt()
        await asyncio.Event().wait()

    async def fail(request, gate):
        raise ZeroDivisionError

    rows = [request_of("t")]
    async with batch_of(operation, rows, hang, concurrency=1, drain_timeout=0.02) as outcomes:
        await asyncio.sleep(0.01)
    (cancelled,) = all_outcomes(outcomes.result)
    (failed,) = all_outcomes(await batch_of(operation, rows, fail, concurrency=1, drain_timeout=1))
    assert [type(o) for o in (cancelled, failed)] == [outcome] * 2
    assert [type(o.error) for o in (cancelled, failed)] == [error] * 2
    assert "the batch ended before a response" in str(cancelled.error)
    assert isinstance(failed.error.__cause__, ZeroDivisionError)
    if outcome is Unknown:
        assert cancelled.error.advice == failed.error.advice == REMOVALS.advice


async def test_a_refresh_whose_response_is_lost_is_unknown(plaid, client, partner):
    """There may be a new report, so the call isn't repeated."""
    tokens = await create_tokens(client, plaid, 5)
    plaid.fail(Fault(path=REFRESH, close=True, when="after", times=1))
    result = await partner.relay.refresh_many(tokens)
    (unknown,) = result.unknown
    assert unknown.error.advice == OutcomeUnknownError.advice
    assert (unknown.attempts, len(result.succeeded), len(plaid.refreshes)) == (1, 4, 5)


# -------------------------------------------------------------------------------------------- removals


async def test_a_removal_is_repeated_when_its_response_is_lost(plaid, client):
    """The response to the repeat says that the token is unknown, so its removal is inferred."""
    tokens = await create_tokens(client, plaid, 3)
    plaid.fail(Fault(path="/credit/relay/remove", close=True, when="after", times=1))
    result = await client.relay.remove_many(tokens)
    assert sorted(o.response.inferred for o in result.succeeded) == [False, False, True]
    assert removed_tokens(plaid) == set(tokens)


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
async def test_a_removal_in_doubt_is_unknown(plaid, client, fault, cause, facts):
    """The error has all that is known, and says that removing the token again is safe."""
    (token,) = await create_tokens(client, plaid, 1)
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
    assert (len(again.succeeded), again.error_codes) == (0, {"INVALID_RELAY_TOKEN": 1})


async def test_a_rejected_removal_fails(plaid, client):
    """Nothing was removed, or there was nothing to remove."""
    result = await client.relay.remove_many(["credit-relay-sandbox-nothing"])
    (failed,) = result.failed
    assert (type(failed.error), failed.attempts) == (InvalidRequestError, 1)


async def test_a_lost_removal_takes_precedence_over_a_later_rejection(plaid, client):
    """The first attempt may have been executed, whatever the response to the second one says."""
    (token,) = await create_tokens(client, plaid, 1)
    plaid.fail(
        Fault(path="/credit/relay/remove", status=500, when="after", times=1),
        Fault(path="/credit/relay/remove", status=401, body={"error_code": "INVALID_API_KEYS"}),
    )
    result = await client.relay.remove_many([token])
    (unknown,) = result.unknown
    assert (unknown.error.status, unknown.attempts, unknown.error.attempts) == (500, 2, 2)
    with pytest.raises(AuthenticationError):
        await client.relay.remove(token)


async def test_a_removal_that_is_in_flight_when_the_drain_ends_is_unknown(plaid, client):
    """It may have been executed, also if it waits for its next attempt."""
    tokens = await create_tokens(client, plaid, 2)
    plaid.fail(
        Fault(path="/credit/relay/remove", close=True, when="after", times=1),
        Fault(path="/credit/relay/remove", stall=30),
    )
    policy = RetryPolicy(backoff=30, max_backoff=30)
    async with RelayClient(
        OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1), retry=policy
    ) as short_drain_client:
        async with short_drain_client.relay.remove_many(tokens) as outcomes:
            while plaid.counts[REMOVE] < 2:
                await asyncio.sleep(0.001)
            await wait_until_async(lambda: short_drain_client.statistics().retries)
    assert [type(o.error.__cause__) for o in outcomes.result.unknown] == [ConnectionLostError] * 2
    assert {o.error.advice for o in outcomes.result.unknown} == {REMOVALS.advice}


async def test_a_lost_removal_stays_unknown_while_it_waits_for_a_pause(plaid, client):
    """A later declined attempt proves nothing about the lost one."""
    (token,) = await create_tokens(client, plaid, 1)
    headers = {"Retry-After": "30"}
    plaid.fail(
        Fault(path="/credit/relay/remove", close=True, when="after", times=1),
        Fault(path="/credit/relay/remove", status=429, headers=headers),
    )
    async with client.relay.remove_many([token]) as outcomes:
        while plaid.counts[REMOVE] < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)  # the response arrives
    (unknown,) = outcomes.result.unknown
    assert (unknown.attempts, type(unknown.error.__cause__)) == (2, ConnectionLostError)


@pytest.mark.parametrize("way", ["break", "cancel"])
async def test_outcomes_of_removals_are_true_whenever_the_batch_is_left(way, rounds, subtests):
    """A token that is removed at Plaid is removed or unknown here, and a token whose removal failed still exists."""
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
    moment, received = draw.random() * 0.2, []
    async with (
        Simulator(seed=seed, latency=draw.random() * 0.01) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
    ):
        tokens = await create_tokens(client, plaid, 500)
        plaid.fail(*faults)
        batch = client.relay.remove_many(tokens, concurrency=draw.choice([1, 5, 50]))
        if way == "cancel":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(moment):
                    await batch
        else:
            async with batch as outcomes:
                async for outcome in outcomes:
                    received.append(outcome)
                    if draw.random() < 0.01:
                        break
        outcomes = [*received, *all_outcomes(batch.result)]
        kinds = {o.request.relay_token: type(o) for o in outcomes}
        assert len(kinds) == len(outcomes)
        for token in tokens:
            allowed = {Removed, Unknown} if token in removed_tokens(plaid) else {Failed, Unknown, None}
            assert kinds.get(token) in allowed


async def test_a_removal_that_plaid_did_not_execute_fails(plaid, client):
    """A success response that says that nothing was removed is a failure: the partner can still read the report."""
    tokens = await create_tokens(client, plaid, 2)
    plaid.fail(
        Fault(path="/credit/relay/remove", status=200, body={"removed": False, "request_id": "q"}, times=1)
    )
    result = await client.relay.remove_many(tokens, concurrency=1)
    assert result.counts == {"failed": 1, "removed": 1}
    [failed] = result.failed
    assert (failed.error.request_id, failed.error.attempts, failed.error.sent) == ("q", 1, True)
    assert "can still read the report" in str(failed.error)


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [("get_many", GET), ("get_pdf_many", PDF)])
async def test_a_slow_loop_keeps_no_more_reports_than_the_concurrency(plaid, client, partner, name, path):
    """Calls in flight and unread reports together don't exceed the limit, and no more are requested."""
    tokens = await create_tokens(client, plaid, 40)
    kind = AssetReportGetResponse if name == "get_many" else PdfResponse
    concurrency, received, maximum = 4, 0, 0
    before = count_instances(kind)  # those of other tests
    async with getattr(partner.relay, name)(tokens, concurrency=concurrency) as outcomes:
        async for outcome in outcomes:
            received += 1
            await asyncio.sleep(0.02)  # enough time to fetch whatever is allowed
            assert plaid.counts[path] - received <= concurrency
            del outcome
            maximum = max(maximum, count_instances(kind) - before)
    assert (received, maximum) == (40, concurrency)


def count_instances(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_reads_reach_the_concurrency(plaid, client, partner):
    """The limit is reached: reading isn't slower than necessary."""
    tokens = await create_tokens(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.1))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        await anext(outcomes)
        assert plaid.counts[GET] == 5
        async for _ in outcomes:
            pass
    assert outcomes.result.counts == {"fetched": 30}


async def test_leaving_a_loop_with_unread_reports_does_not_block():
    """Calls in flight are drained; no sender waits for capacity, which is never released again."""

    async def read(request, gate):
        await gate.start_attempt()
        await asyncio.sleep(0.1 if request.relay_token == "slow" else 0)
        return PdfResponse(b"%PDF-")

    rows = [RelayGetRequest("quick"), RelayGetRequest("slow"), RelayGetRequest("never")]
    started_at = time.monotonic()
    async with batch_of(READS, rows, read, concurrency=2, drain_timeout=20) as outcomes:
        await asyncio.sleep(0.02)
    assert time.monotonic() - started_at < 15
    assert (outcomes.result.counts, outcomes.result.not_attempted) == ({"fetched": 2}, [])


async def test_break_keeps_the_reports_that_arrive_in_the_drain(plaid, client, partner):
    """After `break`, the reports that still arrive are in the result."""
    tokens = await create_tokens(client, plaid, 30)
    plaid.fail(Fault(path=GET, latency=0.02))
    async with partner.relay.get_many(tokens, concurrency=5) as outcomes:
        async for _ in outcomes:
            break
    counts = outcomes.result.counts
    assert len(outcomes.result.succeeded) == counts["fetched"] - 1
    assert counts["fetched"] == plaid.counts[GET] < 30


async def test_pauses_are_queueing_for_reads(plaid, client, partner):
    """Waiting for a rate limit counts against neither attempts nor deadline; a pause that is too long stops the batch."""
    tokens = await create_tokens(client, plaid, 5)
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "0"}, times=8))
    result = await partner.relay.get_many(tokens, retry=RetryPolicy(attempts=1, backoff=0.001))
    assert result.counts == {"fetched": 5}
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "301"}))
    result = await partner.relay.get_many(tokens, concurrency=1)
    assert isinstance(result.stopped_by, RateLimitError)


async def test_created_is_an_alias_of_succeeded(plaid, client):
    """`created` is `succeeded`, and can't be assigned."""
    result = await client.relay.create_many(RelayCreateRequest.fan_out([plaid.add_report()], ["a"]))
    assert result.created is result.succeeded
    assert isinstance(result.created[0], Created)
    with pytest.raises(AttributeError):
        result.created = []


async def test_only_creations_have_created_outcomes(plaid, client):
    """The result of another operation has no `created`."""
    tokens = await create_tokens(client, plaid, 1)
    assert not hasattr(await client.relay.remove_many(tokens), "created")
