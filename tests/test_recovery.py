"""The remedies in `advice` and docs/errors.md: each test meets the error, applies it, and succeeds."""

from __future__ import annotations

import asyncio

import pytest
from support import CREATE, GET, OWNER, PARTNER, QUICK, REMOVE, issued_tokens
from virtual_clock import run_virtually
from yarl import URL

from plaid_relay_async import (
    AssetReportError,
    AuthenticationError,
    BatchStoppedError,
    ClientClosedError,
    ConfigurationError,
    ConnectionLostError,
    Created,
    Credentials,
    DuplicateRequestError,
    InvalidRequestError,
    ItemError,
    NotSentError,
    OutcomeUnknownError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    RelayClient,
    RelayCreateRequest,
    ReportNotReadyError,
    RequestValidationError,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
    WaitTooLongError,
    from_json,
    to_json,
)
from plaid_relay_async.models import RelayCreateResponse, RelayRemoveResponse
from plaid_relay_async.simulator import Fault, Limit, Simulator

OLD, NEW = Credentials("owner", "old-secret"), Credentials("owner", "new-secret")


@pytest.fixture
def report(plaid):
    return plaid.add_report()


@pytest.fixture
async def shared(client, report):
    """Return the relay token of a report that is shared with the partner."""
    return (await client.relay.create([report], PARTNER.client_id)).relay_token


# ----------------------------------------------------------------------------- nothing was executed: call again


async def test_not_sent_call_again():
    """The same call succeeds once a server listens at the address; nothing was created before."""
    async with Simulator() as closed:
        port = URL(closed.url).port
    async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=QUICK) as client:
        with pytest.raises(NotSentError, match="safe to try again") as caught:
            await client.relay.create(["report"], "p")
        assert (caught.value.attempts, caught.value.sent) == (4, False)
        async with Simulator(port=port, reports=["report"]) as plaid:
            created = await client.relay.create(["report"], "p")
            assert issued_tokens(plaid) == [created.relay_token]


READS = {
    "get": lambda partner, owner, token: partner.relay.get(token),
    "get_pdf": lambda partner, owner, token: partner.relay.get_pdf(token),
    "remove": lambda partner, owner, token: owner.relay.remove(token),
}


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(close=True), ConnectionLostError),
        (Fault(stall=5), ReadTimeoutError),
        (Fault(status=500), PlaidServerError),
    ],
    ids=["connection lost", "timeout", "status 500"],
)
async def test_a_lost_response_call_again(plaid, shared, operation, fault, error):
    """Once the client's own attempts are used up, the same call again succeeds."""
    waits = {"timeouts": Timeouts(read=0.2, slow_read=0.2), "retry": QUICK, "base_url": plaid.url}
    async with RelayClient(PARTNER, **waits) as partner, RelayClient(OWNER, **waits) as owner:
        plaid.fail(fault)
        with pytest.raises(error, match="again") as caught:
            await READS[operation](partner, owner, shared)
        assert caught.value.attempts == 4
        plaid.clear_faults()
        assert (await READS[operation](partner, owner, shared)).request_id


async def test_a_server_in_trouble_try_a_creation_later(plaid, client, report):
    """After maintenance that outlasts the attempts, the same creation succeeds, and there is one token."""
    plaid.fail(Fault(path=CREATE, status=503, times=QUICK.attempts))
    with pytest.raises(PlaidServerError, match="Try again later"):
        await client.relay.create([report], "p")
    created = await client.relay.create([report], "p")
    assert issued_tokens(plaid) == [created.relay_token]


def test_a_rate_limit_wait_for_retry_after():
    """A call during the pause fails unsent with the remaining seconds; after the pause the call succeeds."""
    fault = Fault(path=CREATE, status=429, headers={"Retry-After": "30"}, times=1)

    async def main():
        async with (
            Simulator(reports=["report"], faults=[fault]) as plaid,
            RelayClient(OWNER, base_url=plaid.url) as client,
        ):
            with pytest.raises(RateLimitError, match="Wait retry_after seconds") as caught:
                await client.relay.create(["report"], "p", timeout=10)
            assert (caught.value.status, caught.value.retry_after) == (429, 30)
            await asyncio.sleep(5)
            with pytest.raises(WaitTooLongError, match="Wait retry_after seconds") as second_error:
                await client.relay.create(["report"], "p", timeout=10)
            assert second_error.value.retry_after == pytest.approx(25, abs=1)
            assert (second_error.value.sent, plaid.counts[CREATE]) == (False, 1)
            await asyncio.sleep(second_error.value.retry_after)
            created = await client.relay.create(["report"], "p", timeout=10)
            assert issued_tokens(plaid) == [created.relay_token]

    run_virtually(main())


def test_a_rate_limit_without_retry_after_wait_a_minute():
    """The call succeeds after a minute if the server doesn't say how long to wait."""

    async def main():
        limit = Limit(CREATE, count=1, per=60, retry_after=False)
        clock = asyncio.get_running_loop().time
        async with (
            Simulator(reports=["report"], limits=[limit], clock=clock) as plaid,
            RelayClient(OWNER, base_url=plaid.url) as client,
        ):
            await client.relay.create(["report"], "p")
            with pytest.raises(RateLimitError, match="or a minute if it isn't set") as caught:
                await client.relay.create(["report"], "q")
            assert (caught.value.status, caught.value.attempts) == (429, 4)
            await asyncio.sleep(60)
            await client.relay.create(["report"], "q")
            assert len(plaid.ledger) == 2

    run_virtually(main())


# -------------------------------------------------------------------------------------- fix it, then call again


async def test_wrong_credentials_correct_the_secret():
    """A client with the correct secret succeeds."""
    async with Simulator(clients={"owner": "new-secret"}, reports=["report"]) as plaid:
        async with RelayClient(OLD, base_url=plaid.url) as client:
            with pytest.raises(AuthenticationError, match="Check the client ID and the secret") as caught:
                await client.relay.create(["report"], "p")
            assert caught.value.error_code == "INVALID_API_KEYS"
        async with RelayClient(NEW, base_url=plaid.url) as client:
            created = await client.relay.create(["report"], "p")
        assert issued_tokens(plaid) == [created.relay_token]


async def test_wrong_credentials_of_a_callable_that_returns_the_new_secret():
    """The same client succeeds, because the callable is called for each attempt, in a batch too."""
    vault = {"plaid": OLD}

    async def credentials():
        return vault["plaid"]

    async with (
        Simulator(clients={"owner": "new-secret"}, reports=["report"]) as plaid,
        RelayClient(credentials, base_url=plaid.url) as client,
    ):
        requests = iter(RelayCreateRequest.fan_out(["report"], [f"p{n}" for n in range(10)]))
        with pytest.raises(AuthenticationError):
            await client.relay.create(["report"], "p")
        stopped = await client.relay.create_many(requests, concurrency=1)
        assert isinstance(stopped.stopped_by, AuthenticationError)
        vault["plaid"] = NEW
        assert await client.relay.create(["report"], "p")
        rest = [*(failed.request for failed in stopped.failed), *stopped.not_attempted, *requests]
        assert (await client.relay.create_many(rest)).counts == {"created": 10}
        assert len(plaid.ledger) == 11


async def test_an_operation_that_is_not_enabled_ask_plaid(plaid, client, report):
    """Once Plaid has enabled the operation, the same call succeeds."""
    body = {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_ROUTE_ACCESS"}
    plaid.fail(Fault(path=CREATE, status=400, body=body))
    with pytest.raises(AuthenticationError, match="ask Plaid to enable"):
        await client.relay.create([report], "p")
    plaid.clear_faults()
    assert await client.relay.create([report], "p")


async def test_an_invalid_request_fix_it(plaid, client, report):
    """Plaid's error and the package's own name what is wrong; the corrected request succeeds."""
    with pytest.raises(RequestValidationError, match="secondary_client_id") as caught:
        await client.relay.create([report], "")
    assert caught.value.sent is False
    with pytest.raises(InvalidRequestError, match="INVALID_ASSET_REPORT_TOKEN"):
        await client.relay.create(["assets-sandbox-of-no-report"], "p")
    assert await client.relay.create([report], "p")
    assert len(plaid.ledger) == 1


async def test_a_wrong_setting_fix_the_one_that_is_named(plaid, report, monkeypatch):
    """Once the named argument and environment variable are correct, the client is created."""
    with pytest.raises(ConfigurationError, match="base_url"):
        RelayClient(OWNER, base_url="plaid")
    for name in ("PLAID_CLIENT_ID", "PLAID_SECRET", "PLAID_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    with pytest.raises(ConfigurationError, match="PLAID_SECRET"):
        RelayClient(base_url=plaid.url)
    monkeypatch.setenv("PLAID_SECRET", "secret")
    async with RelayClient(base_url=plaid.url) as client:
        assert await client.relay.create([report], "p")


async def test_a_closed_client_open_it(plaid, report):
    """The call succeeds inside `async with`."""
    client = RelayClient(OWNER, base_url=plaid.url)
    with pytest.raises(ClientClosedError, match=r"async with RelayClient\(\)"):
        await client.relay.create([report], "p")
    async with client:
        assert await client.relay.create([report], "p")


async def test_a_redirect_correct_base_url(plaid, report):
    """The error says that redirects aren't followed; with the address of the API the call succeeds."""
    async with Simulator(faults=[Fault(status=308, headers={"Location": plaid.url})]) as redirecting:
        async with RelayClient(OWNER, base_url=redirecting.url) as client:
            with pytest.raises(Exception, match=r"Redirects aren't followed.*base_url"):
                await client.relay.create([report], "p")
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        assert await client.relay.create([report], "p")


async def test_a_report_that_is_too_long_raise_the_limit(plaid, client, shared):
    """A client with a larger `max_response_bytes` reads the report."""
    async with RelayClient(PARTNER, base_url=plaid.url, max_response_bytes=2_000) as small:
        with pytest.raises(ResponseDecodeError, match=r"RelayClient\(max_response_bytes=...\)"):
            await small.relay.get(shared)
    async with RelayClient(PARTNER, base_url=plaid.url, max_response_bytes=10_000_000) as large:
        assert (await large.relay.get(shared)).report


async def test_a_stored_record_that_cannot_be_read_use_its_class(client, report):
    """A stored record is read with the class that it was written from."""
    created = await client.relay.create([report], "p")
    stored = to_json(created)
    with pytest.raises(ResponseDecodeError, match="Read it with the class that it was written from"):
        from_json(stored, RelayRemoveResponse)
    assert from_json(stored, RelayCreateResponse) == created


# ------------------------------------------------------------------------------------------ wait for the report


async def test_a_report_that_is_not_ready_ask_again():
    """The same call returns the report once the simulator's clock has passed the time of generation."""
    clock = [0.0]
    async with (
        Simulator(generation_delay=5.0, clock=lambda: clock[0]) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as owner,
    ):
        item = await owner.item.exchange_public_token(
            (await owner.sandbox.create_public_token()).public_token
        )
        created = await owner.asset_report.create([item.access_token], 30)
        with pytest.raises(ReportNotReadyError, match="try again in a few seconds"):
            await owner.asset_report.get(created.asset_report_token)
        clock[0] = 6.0
        assert (await owner.asset_report.get(created.asset_report_token)).report


async def test_an_item_at_fault_make_a_new_report(plaid, client):
    """`causes` name the Item; once it is fixed, a new report is readable, and the old one stays as it is."""
    item = await client.item.exchange_public_token((await client.sandbox.create_public_token()).public_token)
    failed = await client.asset_report.create([item.access_token], 30)
    cause = {"error_type": "ITEM_ERROR", "error_code": "ITEM_LOGIN_REQUIRED", "item_id": item.item_id}
    body = {"error_type": "ASSET_REPORT_ERROR", "error_code": "ASSET_REPORT_GENERATION_FAILED"}
    plaid.fail(Fault(path="/asset_report/get", status=400, body=body | {"causes": [cause]}))
    with pytest.raises(AssetReportError, match="See `causes`") as caught:
        await client.asset_report.wait_until_ready(failed.asset_report_token, timeout=10)
    assert caught.value.causes[0]["item_id"] == item.item_id
    plaid.clear_faults()
    second = await client.asset_report.create([item.access_token], 30)
    assert second.asset_report_token != failed.asset_report_token
    assert (await client.asset_report.wait_until_ready(second.asset_report_token, timeout=10)).report


async def test_a_bank_that_is_down_try_later(plaid, partner, shared):
    """The same call succeeds once the bank is back."""
    body = {"error_type": "INSTITUTION_ERROR", "error_code": "INSTITUTION_DOWN"}
    plaid.fail(Fault(path=GET, status=400, body=body))
    with pytest.raises(ItemError, match="try again later if the bank is down"):
        await partner.relay.get(shared)
    plaid.clear_faults()
    assert (await partner.relay.get(shared)).report


# ----------------------------------------------------------------------------------------------- tokens in doubt


async def test_an_unknown_creation_call_again_and_accept_two(plaid, client, report):
    """The second call returns a token, and Plaid then has two."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    with pytest.raises(OutcomeUnknownError, match="call again and accept that there may be two"):
        await client.relay.create([report], "p")
    created = await client.relay.create([report], "p")
    assert issued_tokens(plaid)[1:] == [created.relay_token]
    assert len(plaid.ledger) == 2


async def test_an_unreadable_token_reveal_the_body(plaid, client, report):
    """The bytes of the response are in the error, hidden until `reveal()` is called."""
    plaid.fail(Fault(path=CREATE, status=200, body={"token": "credit-relay-1", "request_id": "r"}))
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create([report], "p")
    assert "credit-relay-1" not in repr(caught.value)
    assert b"credit-relay-1" in caught.value.body.reveal()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_unknown_removal_remove_again(plaid, client, partner, shared, when):
    """The second removal removes the token, or is told that there is no such token."""
    plaid.fail(Fault(path=REMOVE, close=True, when=when, times=1))
    once = RetryPolicy(attempts=1)
    [unknown] = (await client.relay.remove_many([shared], retry=once)).unknown
    assert "Remove it again, which is safe" in unknown.error.advice
    second_result = await client.relay.remove_many([shared], retry=once)
    if when == "before":
        assert second_result.counts == {"removed": 1}
    else:
        assert second_result.failed[0].error.error_code == "INVALID_RELAY_TOKEN"
    with pytest.raises(InvalidRequestError):
        await partner.relay.get(shared)


async def test_a_token_that_plaid_did_not_remove_remove_again(plaid, client, partner, shared):
    """The token opens the report until it is removed again; a batch reports it as failed."""
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}))
    assert not (await client.relay.remove(shared)).removed
    [failed] = (await client.relay.remove_many([shared])).failed
    assert "The partner can still read the report: remove the token again" in str(failed.error)
    assert (await partner.relay.get(shared)).report
    plaid.clear_faults()
    assert (await client.relay.remove_many([failed.request])).counts == {"removed": 1}
    with pytest.raises(InvalidRequestError):
        await partner.relay.get(shared)


# ------------------------------------------------------------------------------------------------------- batches


async def test_a_duplicate_allow_duplicates(plaid, client, report):
    """The first of two equal requests has the outcome; with allow_duplicates=True there are two tokens."""
    twice = [RelayCreateRequest([report], "p")] * 2
    result = await client.relay.create_many(twice)
    assert result.counts == {"created": 1, "failed": 1}
    assert isinstance(result.failed[0].error, DuplicateRequestError)
    error = str(result.failed[0].error)
    assert "pass allow_duplicates=True to a batch" in error
    assert 'on_existing="create" to the Journal' in error
    assert (await client.relay.create_many(twice, allow_duplicates=True)).counts == {"created": 2}


@pytest.mark.parametrize("source", ["the input", "a callback"])
async def test_a_stopped_batch_continue_with_the_rest(plaid, client, report, source):
    """The outcomes are in `result`; the rest is still in the input, and each partner gets one token."""
    partners = iter([f"p{n}" for n in range(30)])

    def rows():
        for partner in partners:
            yield RelayCreateRequest([report], partner)
            if partner == "p9" and source == "the input":
                raise OSError("the disk is gone")

    def fail(outcome):
        if outcome.request.secondary_client_id == "p9" and source == "a callback":
            raise OSError("the disk is gone")

    with pytest.raises(BatchStoppedError, match="are in `result`") as caught:
        await client.relay.create_many(rows(), concurrency=3, on_outcome=fail)
    result = caught.value.result
    rest = [*result.not_attempted, *(RelayCreateRequest([report], partner) for partner in partners)]
    second = await client.relay.create_many(rest)
    tokens = {
        created.request.secondary_client_id: created.relay_token
        for created in (*result.created, *second.created)
    }
    assert tokens == {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}
    assert len(tokens) == len(plaid.ledger) == 30


async def test_a_read_of_a_batch_that_was_left_read_again(plaid, partner, shared):
    """A read in flight when the batch was left is failed with ConnectionLostError, and succeeds the next time."""
    plaid.fail(Fault(path=GET, stall=30))
    batch = partner.relay.get_many([shared])
    running = asyncio.ensure_future(batch)
    while not plaid.counts[GET]:
        await asyncio.sleep(0.01)
    running.cancel()
    batch.abandon()
    await asyncio.wait([running])
    [failed] = batch.result.failed
    assert isinstance(failed.error, ConnectionLostError)
    plaid.clear_faults()
    assert (await partner.relay.get_many([failed.request])).counts == {"fetched": 1}


async def test_not_attempted_requests_go_into_the_next_batch(plaid, client, report):
    """Once a pause that was too long is over, the failed and unattempted requests are created."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    policy = RetryPolicy(backoff=0.001, max_pause=0.5)
    requests = iter(RelayCreateRequest.fan_out([report], [f"p{n}" for n in range(10)]))
    result = await client.relay.create_many(requests, concurrency=1, retry=policy)
    [failed] = result.failed
    assert failed.error.exceeds_max_pause
    await asyncio.sleep(failed.error.retry_after)
    outcomes = await client.relay.create_many([failed.request, *result.not_attempted, *requests])
    assert {type(each) for each in outcomes.created} == {Created}
    assert outcomes.counts == {"created": 10}
    assert len(plaid.ledger) == 10
