"""Waiting for a report: politely, and no longer than one was told to."""

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
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def polled(answers, *, seconds=3600.0, patience=4, max_pause=300.0) -> tuple[list[float], object]:
    """When each attempt was made, and what came of it all; an answer that is an exception is raised."""
    time, asked, answers = Time(), [], iter(answers)

    async def ask(left: float) -> object:
        assert 0 < left <= seconds
        asked.append(time.now - 1000)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        told = await poll(
            ask,
            seconds=seconds,
            max_failures=patience,
            max_pause=max_pause,
            clock=time.clock,
            sleep=time.sleep,
        )
    except Exception as error:  # noqa: BLE001  # the test says which it should be
        told = error
    return asked, told


NOT_READY = ReportNotReadyError("wait")
LOST = ConnectionLostError("lost")


def test_never_more_than_fifteen_a_minute():
    """Whichever minute is looked at, no more requests are made in it than Plaid allows for one report."""
    times = [0.0, *itertools.accumulate(itertools.islice(poll_intervals(), 200))]
    for begin in times:
        assert sum(begin <= moment < begin + 60 for moment in times) <= 15


@given(
    st.lists(st.sampled_from([NOT_READY, LOST, PlaidServerError("x", status=500)]), max_size=40),
)
async def test_failed_attempts_are_counted_with_the_others(answers):
    """A lost answer doesn't make for more requests a minute, nor is it forgotten how many there were."""
    asked, told = await polled([*answers, "report"])
    for begin in asked:
        assert sum(begin <= moment < begin + 60 for moment in asked) <= 15
    in_a_row = max(
        (len([*run]) for bad, run in itertools.groupby(a is not NOT_READY for a in answers) if bad), default=0
    )
    assert (told == "report") == (in_a_row < 4)


async def test_the_deadline_is_one():
    """When the time is up, the last word is that the report isn't ready, and nothing is asked beyond it."""
    asked, told = await polled(itertools.repeat(NOT_READY), seconds=31)
    assert told is NOT_READY
    assert asked == [0, 1, 3, 6, 10, 15, 20, 25, 30]


async def test_a_servers_delay_is_kept():
    """Retry-After is waited in full, and where it doesn't fit the error is raised at once."""
    limited = RateLimitError("slow", status=429, retry_after=20.0)
    assert await polled([limited, "report"]) == ([0, 20], "report")
    assert await polled([limited], seconds=19) == ([0], limited)


@pytest.mark.parametrize("cls", [RateLimitError, PlaidServerError])
async def test_a_delay_beyond_max_pause_ends_the_waiting(cls):
    """A longer delay than the policy's max_pause is neither waited nor shortened."""
    delayed = cls("slow", status=503, retry_after=301.0)
    assert await polled([delayed]) == ([0], delayed)
    assert await polled([delayed, "report"], max_pause=301.0) == ([0, 301], "report")


async def test_pauses_that_add_up_beyond_max_pause_end_the_waiting():
    """Once the transport has given up on an operation's pauses, so does the waiting."""
    given_up = RateLimitError("slow", status=429, retry_after=20.0, exceeds_max_pause=True)
    assert await polled([given_up]) == ([0], given_up)


async def test_a_last_poll_that_was_not_sent_does_not_hide_the_others():
    """The error counts the attempts of all polls, and says that some of them were sent."""
    first, last = ConnectionLostError("lost", attempts=1), NotSentError("no connection", attempts=1)
    asked, told = await polled([first, last], patience=2)
    assert told is last
    assert (len(asked), last.attempts, last.sent) == (2, 2, True)


async def test_waiting_honours_max_pause(plaid):
    """A report's 429 with a delay beyond max_pause fails immediately, with that delay."""
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "20"}))
    policy = RetryPolicy(backoff=0.001, max_pause=10)
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.asset_report.wait_until_ready(plaid.add_report(), timeout=60)
    assert (caught.value.retry_after, caught.value.exceeds_max_pause) == (20.0, True)
    assert plaid.counts[GET] == 1


@pytest.mark.parametrize("error", [AssetReportError("failed"), InvalidRequestError("no such token")])
async def test_what_waiting_wont_mend_is_raised_at_once(error):
    """A report that failed isn't one that is still being generated."""
    assert await polled([NOT_READY, error]) == ([0, 1], error)


async def test_a_report_is_had_as_soon_as_it_is_generated():
    """Owner and partner get the report that wasn't ready when they first asked."""
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
        made = await owner.relay.create([report.asset_report_token], PARTNER.client_id)
        fresh = await partner.relay.refresh(made.relay_token)
        shared = await partner.relay.wait_until_ready(fresh.relay_token, include_insights=True)
        assert shared.report.asset_report_id == fresh.asset_report_id


async def test_a_failed_report_is_told_from_one_that_takes_long(plaid, client):
    """ASSET_REPORT_GENERATION_FAILED ends the waiting; PRODUCT_NOT_READY does when the time is up."""
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


async def test_without_a_limit_it_waits_for_ever(plaid):
    """A client whose calls have no time limit waits without one."""
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=None)) as client:
        got = await client.asset_report.wait_until_ready(plaid.add_report())
    assert got.request_id == plaid.requests[-1].request_id
