"""Which calls are repeated, after which errors, and when; and what the error of a call says."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from support import CREATE, GET, MAINTENANCE, OWNER, QUICK, REFRESH, REMOVE, issued_tokens

from plaid_relay_async import (
    ConnectionLostError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    Timeouts,
    WaitTooLongError,
)
from plaid_relay_async.simulator import Fault, Simulator

# --------------------------------------------------------------------------------- creations and refreshes


@pytest.mark.parametrize(
    ("fault", "token_count"),
    [
        (Fault(path=CREATE, status=500, when="before"), 0),
        (Fault(path=CREATE, status=500, when="after"), 1),
        (Fault(path=CREATE, status=502, body="<html>", when="after"), 1),
        (Fault(path=CREATE, status=503, body="<html>", when="before"), 0),
        (Fault(path=CREATE, close=True, when="before"), 0),
        (Fault(path=CREATE, close=True, when="after"), 1),
        (Fault(path=CREATE, truncate=0), 1),
        (Fault(path=CREATE, truncate=30), 1),
        (Fault(path=CREATE, status=200, body={"request_id": "q"}, when="after"), 1),
        (Fault(path=CREATE, status=204, when="after"), 1),
    ],
)
async def test_a_creation_in_doubt_is_not_repeated(plaid, client, fault, token_count):
    """The client makes one attempt, and the error says that a token may exist."""
    plaid.fail(fault)
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert plaid.counts[CREATE] == caught.value.attempts == 1
    assert caught.value.sent is True
    assert len(plaid.ledger) == token_count


async def test_a_stalled_creation_is_unknown(plaid):
    """A creation that was sent and then timed out is unknown."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(slow_read=0.3)) as client:
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p")
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p", timeout=0.5)
    assert plaid.counts[CREATE] == 2


async def test_a_declined_creation_is_repeated(plaid, client):
    """A 429 and Plaid's own maintenance prove that nothing was executed."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    created = await client.relay.create([plaid.add_report()], "p")
    assert issued_tokens(plaid) == [created.relay_token]
    assert plaid.counts[CREATE] == 3


@pytest.mark.parametrize("code", ["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"])
async def test_a_permanent_limit_is_final(plaid, client, code):
    """Some 429s never pass, so the client doesn't repeat the request."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": code}))
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert (caught.value.error_code, caught.value.attempts, plaid.counts[CREATE]) == (code, 1, 1)


async def test_a_rejected_request_is_not_repeated(plaid, client):
    """A request that Plaid calls invalid is not sent again."""
    with pytest.raises(InvalidRequestError) as caught:
        await client.relay.create(["assets-sandbox-unknown"], "p")
    assert (caught.value.error_code, caught.value.sent) == ("INVALID_ASSET_REPORT_TOKEN", True)
    assert plaid.counts[CREATE] == 1


async def test_replay_always_may_create_a_second_token(plaid):
    """With replay="always" a lost creation is repeated, and there may be two tokens."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    always = RetryPolicy(backoff=0.001, replay="always")
    async with RelayClient(OWNER, base_url=plaid.url, retry=always) as client:
        created = await client.relay.create([plaid.add_report()], "p")
    assert len(issued_tokens(plaid)) == 2
    assert created.relay_token == issued_tokens(plaid)[1]


async def test_a_lost_attempt_outweighs_a_later_rejection(plaid, client):
    """If the first attempt may have created a token, a rejected second one doesn't make the call failed."""
    plaid.fail(
        Fault(path=CREATE, close=True, when="after", times=1),
        Fault(path=CREATE, status=400),
    )
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create(
            [plaid.add_report()], "p", retry=RetryPolicy(backoff=0.001, replay="always")
        )
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, InvalidRequestError)
    assert len(plaid.ledger) == 1


async def test_a_lost_attempt_outweighs_a_pause_that_is_too_long(plaid, client):
    """In a batch, too, a creation in doubt stays unknown, whatever Plaid responds to the next attempt."""
    plaid.fail(
        Fault(path=CREATE, close=True, when="after", times=1),
        Fault(path=CREATE, status=429, headers={"Retry-After": "301"}),
    )
    always = RetryPolicy(backoff=0.001, replay="always")
    rows = RelayCreateRequest.fan_out([plaid.add_report()], ["p"])
    result = await client.relay.create_many(rows, retry=always)
    (unknown,) = result.unknown
    assert (unknown.attempts, len(plaid.ledger)) == (2, 1)


async def test_a_lost_refresh_is_not_repeated(plaid, client, partner):
    """Each refresh creates a report, so a lost one is not repeated."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=REFRESH, close=True, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await partner.relay.refresh(created.relay_token)
    assert plaid.counts[REFRESH] == len(plaid.refreshes) == 1


# ----------------------------------------------------------------------------------------- unsent requests


async def test_an_unsent_request_is_repeated_and_then_fails():
    """Nothing listens on the port: the client makes four attempts, and no token can exist."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=QUICK) as client:
            with pytest.raises(NotSentError) as caught:
                await client.relay.create(["t"], "p")
    assert (caught.value.sent, caught.value.attempts) == (False, 4)
    assert caught.value.errno is not None
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_server_that_starts_late_receives_the_request_once():
    """A request that was not sent may be sent again, for every operation."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    patient = RetryPolicy(attempts=1_000, backoff=0.01, max_backoff=0.02)
    async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=patient) as client:
        report = "assets-sandbox-1"
        making = asyncio.create_task(client.relay.create([report], "p"))
        await asyncio.sleep(0.03)
        async with Simulator(port=port, reports=[report]) as plaid:
            created = await making
            assert issued_tokens(plaid) == [created.relay_token]


@pytest.mark.parametrize("operation", ["get", "create"])
async def test_an_error_says_that_an_earlier_attempt_was_sent(operation):
    """The error of a last attempt that was not sent has sent=True if the first attempt was sent."""

    class Hiccup:
        permits = 0

        async def acquire(self, endpoint: str) -> None:
            self.permits += 1
            if self.permits > 1:
                raise ZeroDivisionError

    async with Simulator(reports=["report"]) as plaid:
        plaid.fail(Fault(path=GET, close=True), Fault(path=CREATE, status=429))
        async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Hiccup()) as client:
            call = client.relay.get("t") if operation == "get" else client.relay.create(["report"], "p")
            with pytest.raises(NotSentError, match=r"\[sent, attempts=1\]") as caught:
                await call
    assert (caught.value.sent, caught.value.attempts) == (True, 1)


# --------------------------------------------------------------------------------------------------- reads


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path=GET, status=500, times=1),
        Fault(path=GET, status=502, body="<html>", times=1),
        Fault(path=GET, close=True, times=1),
        Fault(path=GET, truncate=50, times=1),
        Fault(path=GET, status=429, times=1),
    ],
)
async def test_a_read_is_repeated_after_a_transient_error(plaid, client, partner, fault):
    """A read is safe, so it is repeated."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(fault)
    assert (await partner.relay.get(created.relay_token)).report.items
    assert plaid.counts[GET] == 2


async def test_a_read_fails_after_its_last_attempt(plaid, client):
    """The client and the call can limit the number of attempts, and the error has it."""
    plaid.fail(Fault(path=GET, status=500))
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t")
    assert caught.value.attempts == plaid.counts[GET] == 4
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t", retry=RetryPolicy(attempts=1))
    assert caught.value.attempts == 1


async def test_a_read_without_a_response_is_a_timeout(plaid, partner):
    """A read that timed out is also a TimeoutError."""
    plaid.fail(Fault(path=GET, stall=30))
    with pytest.raises(TimeoutError) as caught:
        await partner.relay.get("t", timeout=0.5)
    assert isinstance(caught.value, ReadTimeoutError)


async def test_a_read_waits_no_longer_than_the_policy_allows(plaid, partner):
    """A server may request a pause of a day; a call without a deadline waits at most for `max_pause`."""
    plaid.fail(Fault(path=GET, status=503, body="<html>", headers={"Retry-After": "86400"}))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=None)) as client:
        with pytest.raises(PlaidServerError) as caught:
            await client.relay.get("t")
    assert (caught.value.retry_after, caught.value.attempts) == (86400.0, 1)


# ------------------------------------------------------------------------------------------------ removals


@pytest.mark.parametrize("fault", [{"close": True}, {"status": 500}])
async def test_a_removal_is_repeated_and_may_be_inferred(plaid, client, fault):
    """If the response to an executed attempt is lost, the next finds no such token: it is removed."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, when="after", times=1, **fault))
    removal = await client.relay.remove(created.relay_token)
    assert (removal.removed, removal.inferred) == (True, True)
    assert plaid.ledger[0]["removed"] is True


async def test_a_removal_that_was_not_executed_is_not_inferred(plaid, client):
    """If the repeat removes the token, Plaid confirms it; an unknown token is an error, not a removal."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, close=True, when="before", times=1))
    assert (await client.relay.remove(created.relay_token)).inferred is False
    plaid.fail(Fault(path=REMOVE, status=429, times=1))
    with pytest.raises(InvalidRequestError):
        await client.relay.remove(created.relay_token)


async def test_a_lost_removal_outweighs_a_later_rejection(plaid, client):
    """If the first attempt may have removed the token, a rejected repeat doesn't prove that it exists."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(
        Fault(path=REMOVE, close=True, when="after", times=1),
        Fault(
            path=REMOVE, status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        ),
    )
    with pytest.raises(ConnectionLostError, match="safe to try again") as caught:
        await client.relay.remove(created.relay_token)
    assert caught.value.attempts == plaid.counts[REMOVE] == 2


# --------------------------------------------------------------------------------------------- Retry-After


async def test_retry_after_is_waited_in_full(plaid, client):
    """The server's delay is never shortened."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    started = time.monotonic()
    await client.relay.create([plaid.add_report()], "p")
    assert time.monotonic() - started >= 1.0


async def test_a_delay_beyond_the_deadline_is_raised_immediately(plaid, client):
    """A deadline doesn't shorten the server's delay: the error has it, and is raised without waiting."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    report = plaid.add_report()
    started = time.monotonic()
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([report], "p", timeout=5)
    assert (caught.value.retry_after, caught.value.attempts) == (60.0, 1)
    with pytest.raises(WaitTooLongError, match=r"longer wait than this call allows.*not sent") as caught:
        await client.relay.create([report], "p", timeout=5)
    assert 50 < caught.value.retry_after <= 60
    assert time.monotonic() - started < 20
    assert plaid.counts[CREATE] == 1


async def test_a_pause_longer_than_the_policy_allows_is_not_shortened(plaid, client):
    """A call whose pause exceeds `max_pause` fails, even without a deadline."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "400"}, times=1))
    unhurried = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=unhurried) as patient:
        for cls in (RateLimitError, WaitTooLongError):
            with pytest.raises(cls) as caught:
                await patient.relay.create([plaid.add_report()], "p")
            assert caught.value.retry_after > 390
            assert caught.value.exceeds_max_pause
    assert plaid.counts[CREATE] == 1
