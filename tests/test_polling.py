"""Polling for a report: within Plaid's limit, and no longer than the timeout."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import (
    AssetReportError,
    ConnectionLostError,
    InvalidRequestError,
    NotSentError,
    PlaidServerError,
    RateLimitError,
    RelayClient,
    ReportNotReadyError,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.client.polling import poll, poll_intervals
from plaid_relay_async.simulator import Fault, Simulator

GET = "/asset_report/get"
FAILED = {"error_type": "ASSET_REPORT_ERROR", "error_code": "ASSET_REPORT_GENERATION_FAILED"}


class Time:
    """A clock that advances when `sleep` is called."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def polled(responses, *, seconds=3600.0, max_failures=4, max_pause=300.0) -> tuple[list[float], object]:
    """Return the times of all attempts and the result; an exception in `responses` is raised."""
    time, attempt_times, responses = Time(), [], iter(responses)

    async def send_request(remaining: float) -> object:
        assert 0 < remaining <= seconds
        attempt_times.append(time.now - 1000)
        response = next(responses)
        if isinstance(response, Exception):
            raise response
        return response

    try:
        result = await poll(
            send_request,
            seconds=seconds,
            max_failures=max_failures,
            max_pause=max_pause,
            clock=time.clock,
            sleep=time.sleep,
        )
    except Exception as error:  # noqa: BLE001  # the test says which it should be
        result = error
    return attempt_times, result


NOT_READY = ReportNotReadyError("wait")
LOST = ConnectionLostError("lost")


def test_never_more_than_fifteen_a_minute():
    """In any minute, no more requests are sent than Plaid allows for one report."""
    times = [0.0, *itertools.accumulate(itertools.islice(poll_intervals(), 200))]
    for start in times:
        assert sum(start <= moment < start + 60 for moment in times) <= 15


@given(
    st.lists(st.sampled_from([NOT_READY, LOST, PlaidServerError("x", status=500)]), max_size=40),
)
async def test_failed_attempts_count_as_well(responses):
    """A lost response doesn't lead to more requests a minute, and the error counts all attempts."""
    attempt_times, result = await polled([*responses, "report"])
    for start in attempt_times:
        assert sum(start <= moment < start + 60 for moment in attempt_times) <= 15
    in_a_row = max(
        (len([*run]) for bad, run in itertools.groupby(a is not NOT_READY for a in responses) if bad),
        default=0,
    )
    assert (result == "report") == (in_a_row < 4)


async def test_polling_ends_at_the_deadline():
    """When the time is up, the error says that the report isn't ready, and no request is sent later."""
    attempt_times, result = await polled(itertools.repeat(NOT_READY), seconds=31)
    assert result is NOT_READY
    assert attempt_times == [0, 1, 3, 6, 10, 15, 20, 25, 30]


async def test_a_servers_delay_is_kept():
    """Retry-After is waited in full, and if it exceeds the deadline the error is raised immediately."""
    limited = RateLimitError("slow", status=429, retry_after=20.0)
    assert await polled([limited, "report"]) == ([0, 20], "report")
    assert await polled([limited], seconds=19) == ([0], limited)


@pytest.mark.parametrize("cls", [RateLimitError, PlaidServerError])
async def test_a_delay_beyond_max_pause_ends_polling(cls):
    """A delay above the policy's max_pause is neither waited nor shortened."""
    delayed = cls("slow", status=503, retry_after=301.0)
    assert await polled([delayed]) == ([0], delayed)
    assert await polled([delayed, "report"], max_pause=301.0) == ([0, 301], "report")


async def test_pauses_that_add_up_beyond_max_pause_end_polling():
    """Once an operation's pauses exceed max_pause in the transport, polling ends as well."""
    exceeded = RateLimitError("slow", status=429, retry_after=20.0, exceeds_max_pause=True)
    assert await polled([exceeded]) == ([0], exceeded)


async def test_a_last_poll_that_was_not_sent_does_not_hide_the_others():
    """The error counts the attempts of all polls, and says that some of them were sent."""
    first, last = ConnectionLostError("lost", attempts=1), NotSentError("no connection", attempts=1)
    attempt_times, result = await polled([first, last], max_failures=2)
    assert result is last
    assert (len(attempt_times), last.attempts, last.sent) == (2, 2, True)


async def test_polling_honours_max_pause(plaid):
    """A report's 429 with a delay above max_pause fails immediately, with that delay."""
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "20"}))
    policy = RetryPolicy(backoff=0.001, max_pause=10)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.asset_report.wait_until_ready(plaid.add_report(), timeout=60)
    assert (caught.value.retry_after, caught.value.exceeds_max_pause) == (20.0, True)
    assert plaid.counts[GET] == 1


@pytest.mark.parametrize("error", [AssetReportError("failed"), InvalidRequestError("no such token")])
async def test_a_permanent_error_is_raised_immediately(error):
    """The error of a report that failed isn't the error of one that is still being generated."""
    assert await polled([NOT_READY, error]) == ([0, 1], error)


async def test_a_report_is_returned_once_it_is_generated():
    """Lender and partner receive the report that wasn't ready at their first request."""
    async with (
        Simulator(generation_delay=0.3) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as owner,
        RelayClient(PARTNER, base_url=plaid.url, retry=QUICK) as partner,
    ):
        public = await owner.sandbox.create_public_token()
        item = await owner.item.exchange_public_token(public.public_token)
        report = await owner.asset_report.create([item.access_token], 60)
        plaid.fail(Fault(path=GET, close=True, times=1))
        own = await owner.asset_report.wait_until_ready(report.asset_report_token, days_to_include=10)
        assert own.report.asset_report_id == report.asset_report_id
        assert plaid.counts[GET] == 2
        created = await owner.relay.create([report.asset_report_token], PARTNER.client_id)
        fresh = await partner.relay.refresh(created.relay_token)
        shared = await partner.relay.wait_until_ready(fresh.relay_token, include_insights=True)
        assert shared.report.asset_report_id == fresh.asset_report_id


async def test_a_failed_report_differs_from_a_slow_one(plaid, client):
    """ASSET_REPORT_GENERATION_FAILED ends polling immediately; PRODUCT_NOT_READY does when the time is up."""
    token = plaid.add_report()
    plaid.fail(Fault(path=GET, status=400, body=FAILED, times=1))
    with pytest.raises(AssetReportError):
        await client.asset_report.wait_until_ready(token)
    plaid.fail(Fault(path=GET, status=400, body={**FAILED, "error_code": "PRODUCT_NOT_READY"}))
    with pytest.raises(ReportNotReadyError):
        await client.asset_report.wait_until_ready(token, timeout=0.5)
    assert plaid.counts[GET] == 2
    with pytest.raises(ReportNotReadyError) as caught:
        await client.asset_report.wait_until_ready(token, timeout=1.9)
    assert caught.value.attempts == plaid.counts[GET] - 2 == 2


async def test_without_a_timeout_polling_has_no_end(plaid):
    """A client whose calls have no timeout polls without one."""
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=None)) as client:
        response = await client.asset_report.wait_until_ready(plaid.add_report())
    assert response.request_id == plaid.requests[-1].request_id
