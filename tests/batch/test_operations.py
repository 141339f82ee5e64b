"""The operations that have a batch: how a response or an error becomes an outcome of each."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from batch_support import all_outcomes, batch_of, create_tokens, removed_tokens
from processes import wait_until_async
from support import GET, OWNER, PARTNER, PDF, QUICK, REFRESH, REMOVE

from plaid_relay_async import (
    AuthenticationError,
    ConnectionLostError,
    Failed,
    Fetched,
    InvalidRequestError,
    OutcomeUnknownError,
    PdfResponse,
    PlaidServerError,
    ReadTimeoutError,
    Refreshed,
    RelayClient,
    RelayGetRequest,
    RelayRemoveRequest,
    Removed,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
    Unknown,
)
from plaid_relay_async.batch import GET as READS
from plaid_relay_async.batch import REMOVE as REMOVALS
from plaid_relay_async.simulator import Fault, Simulator

ONCE = RetryPolicy(attempts=1)


# ------------------------------------------------------------------------------------------ the operations


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
    assert "the call was cancelled before its response" in str(cancelled.error)
    assert isinstance(failed.error.__cause__, ZeroDivisionError)
    if outcome is Unknown:
        assert cancelled.error.advice == failed.error.advice == REMOVALS.advice


# --------------------------------------------------------------------------------------------------- reads


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


# ---------------------------------------------------------------------------------- refreshes and removals


async def test_a_refresh_whose_response_is_lost_is_unknown(plaid, client, partner):
    """There may be a new report, so the call isn't repeated."""
    tokens = await create_tokens(client, plaid, 5)
    plaid.fail(Fault(path=REFRESH, close=True, when="after", times=1))
    result = await partner.relay.refresh_many(tokens)
    (unknown,) = result.unknown
    assert unknown.error.advice == OutcomeUnknownError.advice
    assert (unknown.attempts, len(result.succeeded), len(plaid.refreshes)) == (1, 4, 5)


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
