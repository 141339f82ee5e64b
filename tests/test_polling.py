"""Polling for a report: within Plaid's limit, and no longer than the timeout."""

from __future__ import annotations

import asyncio
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import wait_until_async
from support import OWNER, PARTNER, QUICK
from virtual_clock import run_virtually

from plaid_relay_async import (
    AssetReportError,
    ClientClosedError,
    ConnectionLostError,
    InvalidRequestError,
    NotSentError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    RelayClient,
    ReportNotReadyError,
    RequestValidationError,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.client.polling import poll, poll_intervals
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.webhooks import IncomingWebhook, MemoryInbox

GET = "/asset_report/get"
FAILED = {"error_type": "ASSET_REPORT_ERROR", "error_code": "ASSET_REPORT_GENERATION_FAILED"}


class Time:
    """A clock that advances when `sleep` is called."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float, until: asyncio.Future | None = None) -> None:
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


# ---------------------------------------------------------------------------------------- with an inbox

UNREADY = Fault(path=GET, status=400, body={**FAILED, "error_code": "PRODUCT_NOT_READY"})


class Polls:
    """A rate limiter that delays nothing, and has the times at which polls start."""

    def __init__(self):
        self.times = []

    async def acquire(self, endpoint):
        self.times.append(round(asyncio.get_running_loop().time(), 1))


class BrokenInbox(MemoryInbox):
    async def wait_for_report(self, asset_report_id):
        await asyncio.sleep(12)
        raise OSError("canary: the database is down")


def announcement(report_id, code="PRODUCT_READY"):
    """Return the webhook that a report is ready, or has failed."""
    payload = {"webhook_type": "ASSETS", "webhook_code": code, "asset_report_id": report_id}
    return IncomingWebhook(json.dumps(payload).encode(), sent_at=0.0)


def polled_with(inbox, *, fault=UNREADY, ends_at=None, webhook_at=None, then=()):
    """Return the times of the polls of a report, and the result or error, on the virtual clock.

    Args:
        inbox: the inbox.
        fault: the response to polls.
        ends_at: when the report can be read.
        webhook_at: when the inbox gets the report's webhook.
        then: faults that follow at that time.
    """

    async def main():
        loop, polls = asyncio.get_running_loop(), Polls()

        def end_fault():
            plaid.clear_faults()
            plaid.fail(*then)

        def send_webhook():
            sending.append(asyncio.ensure_future(inbox.add(announcement(report.asset_report_id))))

        sending = []
        async with (
            Simulator(clock=loop.time) as plaid,
            RelayClient(OWNER, base_url=plaid.url, rate_limiter=polls) as client,
        ):
            token = plaid.add_report()
            report = (await client.asset_report.get(token)).report
            polls.times.clear()
            plaid.fail(fault)
            for moment, action in ((ends_at, end_fault), (webhook_at, send_webhook)):
                if moment is not None:
                    loop.call_later(moment, action)
            try:
                result = await client.asset_report.wait_until_ready(
                    token, inbox=inbox, asset_report_id=report.asset_report_id, timeout=100
                )
            except PlaidRelayError as error:
                return polls.times, error
            return polls.times, result.report == report

    return run_virtually(main())


def test_a_webhook_ends_a_pause():
    """With an inbox, the report is polled for as soon as its webhook arrives, and less often until then."""
    times, is_read = polled_with(MemoryInbox(), ends_at=57, webhook_at=57.3)
    assert (times, is_read) == ([0, 1, 3, 6, 10, 40, 57.3], True)


def test_a_lost_webhook_delays_a_report_by_at_most_thirty_seconds():
    """If no webhook arrives, the report is polled for every 30 seconds and, before the timeout, every 5."""
    times, is_read = polled_with(MemoryInbox(), ends_at=41)
    assert (times, is_read) == ([0, 1, 3, 6, 10, 40, 70], True)
    times, error = polled_with(MemoryInbox())
    assert times == [0, 1, 3, 6, 10, 40, 70, 75, 80, 85, 90, 95]
    assert isinstance(error, ReportNotReadyError)


def test_a_report_that_is_not_ready_when_its_webhook_arrives():
    """If the report can't be read yet when its webhook arrives, polling continues every 5 seconds."""
    times, is_read = polled_with(MemoryInbox(), ends_at=33, webhook_at=20)
    assert (times, is_read) == ([0, 1, 3, 6, 10, 20, 25, 30, 35], True)


def test_a_webhook_that_a_report_has_failed():
    """The webhook that a report has failed ends the wait with the error that Plaid returns for the report."""
    failed = Fault(path=GET, status=400, body=FAILED)
    times, error = polled_with(MemoryInbox(), ends_at=20, webhook_at=20, then=[failed])
    assert times == [0, 1, 3, 6, 10, 20]
    assert isinstance(error, AssetReportError)


def test_an_inbox_that_fails(caplog):
    """If the inbox raises, the report is polled for without it; one warning names the exception's class."""
    times, is_read = polled_with(BrokenInbox(), ends_at=20)
    assert (times, is_read) == ([0, 1, 3, 6, 10, 12, 17, 22], True)
    [text] = [record.getMessage() for record in caplog.records]
    assert text == "the inbox of webhooks raised OSError, so the report is polled for without it"


def test_a_webhook_shortens_no_delay_of_the_server():
    """Retry-After is waited in full, also if the webhook arrives meanwhile."""
    limited = Fault(path=GET, status=429, headers={"Retry-After": "20"}, times=1)
    assert polled_with(MemoryInbox(), fault=limited, webhook_at=5) == ([0, 20], True)


@given(st.floats(0, 100), st.integers(0, 30), st.sampled_from([0.0, 0.3]))
async def test_never_more_than_fifteen_a_minute_with_an_inbox(webhook_at, unready, latency):
    """Whenever the webhook arrives, no more requests a minute are sent than Plaid allows for one report."""
    time, times, webhook = Time(), [], asyncio.get_running_loop().create_future()

    async def pass_time(seconds, until=None):
        time.now = min(time.now + seconds, max(time.now, 1000 + webhook_at) if until else math.inf)
        if time.now >= 1000 + webhook_at and not webhook.done():
            webhook.set_result(None)

    async def send_request(remaining):
        times.append(time.now)
        await pass_time(latency)
        if len(times) <= unready:
            raise NOT_READY
        return "report"

    options = {"max_failures": 4, "max_pause": 300.0, "clock": time.clock, "sleep": pass_time}
    assert await poll(send_request, seconds=math.inf, webhook=webhook, **options) == "report"
    for start in times:
        assert sum(start <= moment < start + 60 for moment in times) <= 15


async def started_wait(plaid, client, inbox):
    """Return a task that waits for a report after its first poll, and the ID of the report."""
    token = plaid.add_report()
    report_id = (await client.asset_report.get(token)).report.asset_report_id
    plaid.fail(Fault(path=GET, status=429, headers={"Retry-After": "60"}))
    waiting = asyncio.ensure_future(
        client.asset_report.wait_until_ready(token, inbox=inbox, asset_report_id=report_id, timeout=600)
    )
    await wait_until_async(lambda: plaid.counts[GET] == 2)
    return waiting


class TrackedInbox(MemoryInbox):
    """An inbox that knows how many calls wait for a report."""

    waiting = 0

    async def wait_for_report(self, asset_report_id):
        self.waiting += 1
        try:
            await super().wait_for_report(asset_report_id)
        finally:
            await asyncio.sleep(0)
            self.waiting -= 1


async def test_a_cancelled_wait_leaves_nothing_behind(plaid, client):
    """If the wait is cancelled, so is that for the webhook, before the cancellation is raised."""
    inbox = TrackedInbox()
    waiting = await started_wait(plaid, client, inbox)
    assert inbox.waiting == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inbox.waiting == 0


async def test_a_closed_client_ends_a_wait_with_an_inbox(plaid):
    """Closing the client ends the wait, although neither the report nor its webhook has arrived."""
    inbox = TrackedInbox()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        waiting = await started_wait(plaid, client, inbox)
    with pytest.raises(ClientClosedError):
        await waiting
    assert inbox.waiting == 0


async def test_a_partner_waits_for_a_webhook(plaid, client):
    """A partner waits for the webhook of the report that it has refreshed, with the ID that was returned."""
    inbox = MemoryInbox()
    created = await client.relay.create([plaid.add_report()], PARTNER.client_id)
    async with RelayClient(PARTNER, base_url=plaid.url) as partner:
        fresh = await partner.relay.refresh(created.relay_token)
        await inbox.add(announcement(fresh.asset_report_id))
        shared = await partner.relay.wait_until_ready(
            fresh.relay_token, inbox=inbox, asset_report_id=fresh.asset_report_id
        )
    assert shared.report.asset_report_id == fresh.asset_report_id


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"inbox": MemoryInbox()}, "asset_report_id is required with inbox"),
        ({"asset_report_id": "1"}, "inbox is required with asset_report_id"),
        ({"inbox": MemoryInbox(), "asset_report_id": ""}, "asset_report_id is empty"),
        ({"inbox": MemoryInbox(), "asset_report_id": 1}, "asset_report_id must be a string"),
    ],
)
async def test_an_inbox_requires_the_id_of_the_report(client, arguments, problem):
    """An inbox without the ID of the report, and an ID without an inbox, are errors of the call itself."""
    for wait_until_ready in (client.asset_report.wait_until_ready, client.relay.wait_until_ready):
        with pytest.raises(RequestValidationError, match=problem):
            wait_until_ready("token", **arguments)
