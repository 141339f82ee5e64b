"""Errors that other requests would get as well stop a batch, or the requests for a report."""

from __future__ import annotations

import asyncio

import pytest
from batch_support import MANY, batch_of, create_requests, partner_names
from support import CREATE, MAINTENANCE, OWNER

from plaid_relay_async import (
    Created,
    Credentials,
    Failed,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RetryPolicy,
    Unknown,
    WaitTooLongError,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.simulator import Fault, Simulator

# ---------------------------------------------------------------------------------- errors of all requests


@pytest.mark.parametrize(
    "body",
    [
        {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_ROUTE_ACCESS"},
        {"error_type": "INVALID_INPUT", "error_code": "UNAUTHORIZED_OF_TOMORROW"},
    ],
)
async def test_a_shared_error_stops_the_batch(plaid, client, body):
    """After a few errors that every request would get, the batch stops, and the rest of the input stays unread."""
    plaid.fail(Fault(path=CREATE, status=400, body=body, latency=0.01))
    rows = create_requests(plaid, 1000)
    result = await client.relay.create_many(rows, concurrency=10)
    assert result.stopped_by.error_code == body["error_code"]
    assert 3 <= len(result.failed) <= 20
    assert len(list(rows)) == 1000 - len(result.failed) - len(result.not_attempted)


async def test_shared_errors_stop_every_kind_of_batch(plaid, client):
    """Wrong credentials would fail every token in the same way."""
    tokens = [f"token-{n}" for n in range(100)]
    plaid.fail(Fault(status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}))
    for name in MANY:
        result = await getattr(client.relay, name)(tokens, concurrency=1)
        assert (len(result.failed), result.stopped_by.error_code) == (3, "INVALID_API_KEYS")
    with pytest.raises(ExceptionGroup, match="3 failed, 0 unknown"):
        result.raise_for_failures()


async def test_the_cause_of_a_stop_is_in_the_result_at_once(plaid, client):
    """Callbacks and the caller's loop see it while the batch still drains, and not only at its end."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}, times=3))
    seen = []

    def on_outcome(_: object) -> None:
        seen.append(batch.result.stopped_by)

    batch = client.relay.create_many(create_requests(plaid, 10), concurrency=1, on_outcome=on_outcome)
    async with batch as outcomes:
        errors = [outcome.error async for outcome in outcomes]
    assert seen == [None, None, errors[2]]


async def test_exhausted_credits_stop_the_batch(plaid, client):
    """A 429 that doesn't end by waiting stops the batch, too."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": "CREDITS_EXHAUSTED"}))
    result = await client.relay.create_many(create_requests(plaid, 1000), concurrency=2)
    assert 3 <= len(result.failed) <= 5
    assert result.stopped_by.error_code == "CREDITS_EXHAUSTED"


async def test_shared_errors_with_successes_in_between_do_not_stop_the_batch(plaid):
    """Credentials that fail now and then, while they are rotated, fail only single requests."""
    number = 0

    async def rotating() -> Credentials:
        nonlocal number
        number += 1
        return Credentials("owner", OWNER.secret if number % 2 else "yesterdays-secret")

    async with Simulator(clients={"owner": OWNER.secret}) as strict:
        async with RelayClient(rotating, base_url=strict.url) as client:
            result = await client.relay.create_many(create_requests(strict, 20), concurrency=1)
    assert result.counts == {"created": 10, "failed": 10}
    assert result.stopped_by is None


async def test_a_pause_that_is_too_long_stops_the_batch(plaid, client):
    """The pause isn't shortened: the request fails with the delay, and the rest isn't attempted."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "301"}))
    rows = create_requests(plaid, 100)
    result = await client.relay.create_many(rows, concurrency=1)
    (failed,) = result.failed
    assert isinstance(failed.error, RateLimitError)
    assert (failed.error.retry_after, failed.error.exceeds_max_pause) == (301.0, True)
    assert result.stopped_by is failed.error
    assert len(list(rows)) == 99
    second = await client.relay.create_many(create_requests(plaid, 100), concurrency=1)
    assert (len(second.failed), second.failed[0].attempts, plaid.counts[CREATE]) == (1, 0, 1)
    assert isinstance(second.failed[0].error, WaitTooLongError)
    assert second.stopped_by is second.failed[0].error


async def test_pauses_that_add_up_stop_the_batch(plaid):
    """Many short pauses without a success in between count as a long one; planned maintenance counts alike."""
    plaid.fail(Fault(path=CREATE, status=503, body=MAINTENANCE))
    policy = RetryPolicy(backoff=0.02, max_backoff=0.02, max_pause=0.1)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        result = await client.relay.create_many(create_requests(plaid, 10), concurrency=2)
    assert isinstance(result.failed[0].error, RateLimitError)
    assert result.failed[0].error.error_code == "PLANNED_MAINTENANCE"
    assert plaid.counts[CREATE] > 5
    assert result.unknown == []


# ------------------------------------------------------------------------------------ errors of one report


def requests_for_three_reports(plaid: Simulator, count: int, wrong: str = "assets-sandbox-mistyped"):
    """Yield requests for a good, a wrong and another good report, alternately."""
    reports = (plaid.add_report(), wrong, plaid.add_report())
    for partner in partner_names(count):
        for report in reports:
            yield RelayCreateRequest([report], partner)


async def test_an_error_of_a_report_stops_the_requests_for_that_report(plaid, client):
    """After a few errors the other requests for the report fail unsent; requests for other reports are sent."""
    async with client.relay.create_many(requests_for_three_reports(plaid, 200), concurrency=10) as batch:
        outcomes = [outcome async for outcome in batch]
    wrong = [each for each in outcomes if each.request.report_tokens == ("assets-sandbox-mistyped",)]
    unsent = [each for each in wrong if not each.attempts]
    assert len(outcomes) == 600
    assert batch.result.counts == {"created": 400, "failed": 200}
    assert batch.result.error_codes == {"INVALID_ASSET_REPORT_TOKEN": 200}
    assert (batch.result.stopped_by, batch.result.not_attempted) == (None, [])
    assert 3 <= 200 - len(unsent) <= 3 + 10
    assert len(plaid.requests) == 400 + 200 - len(unsent)
    for each in unsent:
        assert isinstance(each.error, InvalidRequestError)
        assert (each.error.sent, each.error.attempts, each.error.status) == (False, 0, 400)
        assert each.request_id is each.error.request_id is None
        problem = "not sent after 3 errors of the same report: Plaid responded with INVALID_ASSET"
        assert problem in str(each.error)
        assert "mistyped" not in str(each.error)
    assert len({id(each.error) for each in unsent}) == len(unsent)


@pytest.mark.parametrize(
    ("body", "stops"),
    [
        ({"error_type": "INVALID_INPUT", "error_code": "INVALID_ASSET_REPORT_TOKEN"}, True),
        ({"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}, True),
        ({"error_type": "ASSET_REPORT_ERROR", "error_code": "DATA_UNAVAILABLE"}, True),
        ({"error_type": "ASSETS_ERROR", "error_code": "OF_TOMORROW"}, True),
        ({"error_type": "ITEM_ERROR", "error_code": "PRODUCT_NOT_READY"}, False),
        ({"error_type": "INVALID_INPUT", "error_code": "INVALID_RELAY_TOKEN"}, False),
        ({"error_type": "INVALID_REQUEST", "error_code": "INVALID_FIELD"}, False),
    ],
)
async def test_which_errors_stop_the_requests_for_a_report(plaid, client, body, stops):
    """An error of the report affects each partner; an error of the partner or the Item doesn't."""
    plaid.fail(Fault(path=CREATE, status=400, body=body))
    result = await client.relay.create_many(create_requests(plaid, 20), concurrency=1)
    assert result.counts == {"failed": 20}
    assert len(plaid.requests) == (3 if stops else 20)


async def test_a_success_resets_the_errors_of_a_report(plaid, client):
    """Errors of a report with successes in between stop nothing."""
    body = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}
    for number in (0, 1, 3, 4, 6, 7):
        plaid.fail(Fault(path=CREATE, status=400, body=body, secondary_client_id=f"partner-{number}"))
    result = await client.relay.create_many(create_requests(plaid, 20), concurrency=1)
    assert result.counts == {"created": 14, "failed": 6}
    assert len(plaid.requests) == 20


async def test_a_report_resumes_if_a_request_in_flight_succeeds():
    """A success after the requests for a report have stopped, as when it becomes ready, lifts the stop."""
    unsent, ready = asyncio.Event(), asyncio.Event()

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id in {"partner-1", "partner-2", "partner-3"}:
            raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")
        await unsent.wait()
        return RelayCreateResponse("token")

    async def rows():
        for partner in partner_names(5):
            yield RelayCreateRequest(["report"], partner)
        await ready.wait()
        yield RelayCreateRequest(["report"], "partner-5")

    def count(outcome):
        if isinstance(outcome, Created):
            ready.set()
        elif not outcome.attempts:
            unsent.set()

    result = await batch_of(CREATIONS, rows(), create, concurrency=2, drain_timeout=1, on_outcome=count)
    assert [each.request.secondary_client_id for each in result.created] == ["partner-0", "partner-5"]
    assert [each.attempts for each in result.failed] == [1, 1, 1, 0]


async def test_several_reports_of_one_request_are_stopped_together(plaid, client):
    """Which report is wrong isn't known, so requests with one of them alone are sent; their order doesn't matter."""
    orders = (["good", "wrong"], ["wrong", "good"])
    both = [RelayCreateRequest(tokens, f"p{n}") for n in range(10) for tokens in orders]
    alone = RelayCreateRequest.fan_out([plaid.add_report("good")], partner_names(10))
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_ASSET_REPORT_TOKEN"}, times=3))
    result = await client.relay.create_many([*both, *alone], concurrency=1, allow_duplicates=True)
    assert result.counts == {"created": 10, "failed": 20}
    assert len(plaid.requests) == 3 + 10


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotSentError("no connection"), Failed),
        (RateLimitError("later", status=429), Failed),
        (OutcomeUnknownError("lost"), Unknown),
    ],
    ids=["not sent", "declined", "in doubt"],
)
async def test_no_retry_starts_after_the_requests_for_the_report_have_stopped(error, kind):
    """A call that may be attempted again fails with the report's error; a call in doubt stays unknown."""
    stopped, outcomes = asyncio.Event(), []

    async def create(request, gate):
        await gate.start_attempt()
        if request.secondary_client_id == "partner-0":
            await stopped.wait()
            gate.prepare_retry(error, in_doubt_error=error if kind is Unknown else None)
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    def count(outcome):
        outcomes.append(outcome)
        if len(outcomes) == 3:
            stopped.set()

    rows = RelayCreateRequest.fan_out(["report"], partner_names(4))
    await batch_of(CREATIONS, rows, create, concurrency=2, drain_timeout=1, on_outcome=count)
    (last,) = [each for each in outcomes if each.request.secondary_client_id == "partner-0"]
    sent = not isinstance(error, NotSentError)
    assert (type(last), last.attempts, last.error.sent) == (kind, 1, sent)
    message = f"not sent{' again' if sent else ''} after 3 errors"
    assert message in str(last.error if kind is Failed else last.error.__cause__)


async def test_the_memory_of_report_errors_is_bounded():
    """Of many wrong reports only the latest ones are remembered, without their tokens."""

    async def create(request, gate):
        await gate.start_attempt()
        raise InvalidRequestError("no", status=400, error_code="INVALID_ASSET_REPORT_TOKEN")

    wrong = [RelayCreateRequest([f"report-{n}"], f"p{partner}") for n in range(600) for partner in range(3)]
    batch = batch_of(CREATIONS, wrong, create, concurrency=1, drain_timeout=1)
    assert (await batch).counts == {"failed": 1800}
    assert len(batch.sending.report_errors) == 256
    assert batch.sending.report_stop_cause(RelayCreateRequest(["report-0"], "p")) is None
    assert batch.sending.report_stop_cause(RelayCreateRequest(["report-599"], "p")).status == 400
    assert "report-599" not in repr(batch.sending.report_errors)
