"""An operation's circuit breaker, adaptive rate and queue: arithmetic on a clock that is passed in."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CREATE, GET, OWNER, QUICK, throttle_of

from plaid_relay_async import (
    ClientClosedError,
    InvalidRequestError,
    RelayClient,
    RelayCreateRequest,
    WaitTooLongError,
)
from plaid_relay_async.simulator import Fault
from plaid_relay_async.transport.throttle import AdaptiveRate, BreakerState, Throttle, Ticket


def accept(throttle: Throttle, now: float, count: int = 1) -> float:
    """Start attempts as soon as they may start, accept each after 10 ms, and return the last start time."""
    for _ in range(count):
        now = max(now, now + throttle.seconds_until_start(now))
        ticket = throttle.issue_ticket(now)
        throttle.record_accepted(now + 0.01, ticket)
    return now


def decline(
    throttle: Throttle,
    now: float,
    retry_after: float | None,
    *,
    own_delay: float = 1.0,
    ticket: Ticket | None = None,
    rate_limited: bool = True,
) -> None:
    """Decline an attempt; without a delay of the server's, the pause takes `own_delay` seconds.

    Without a ticket, it is an attempt that started after all others.
    """
    ticket = ticket or Ticket(math.inf, throttle.breaker.declines)
    throttle.record_declined(now, ticket, retry_after, lambda _: own_delay, rate_limited=rate_limited)


def test_nothing_is_delayed_before_the_first_429():
    """Without a 429 there is no rate, no pause and no queue."""
    throttle = Throttle()
    assert throttle.can_start(0.0)
    assert accept(throttle, 0.0, 100) == 0.0
    assert throttle.rate.per_second == math.inf


def test_the_rate_is_what_was_accepted():
    """Fifty attempts and then a pause until the minute is over make a rate of fifty a minute."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    ticket = throttle.issue_ticket(0.0)
    decline(throttle, 0.1, 59.9)
    assert not throttle.can_start(1.0)
    assert throttle.seconds_until_start(0.1) == pytest.approx(59.9)
    assert not throttle.breaker.is_current(ticket)
    accept(throttle, 60.0)
    assert throttle.rate.per_second == pytest.approx(50 / 60, rel=0.01)
    assert throttle.seconds_until_start(60.01) == pytest.approx(1 / throttle.rate.per_second)


def test_a_429_decreases_the_rate():
    """A 429 at a rate shows that it is too high, even if attempts were accepted at it for a while."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 59.9)
    now = accept(throttle, 60.0, 200)
    before = throttle.rate.per_second
    decline(throttle, now + 0.1, 1.0)
    accept(throttle, now + 1.1)
    assert throttle.rate.per_second == pytest.approx(0.92 * before, rel=0.01)


def test_the_rate_increases_faster_the_longer_nothing_is_declined():
    """A rate measured over a minute grows by 1 % in the first minute, and by more in each that follows."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 59.9)
    now, rates = 60.0, []
    for minute in range(1, 6):
        while now < 60 + 60 * minute:
            now = accept(throttle, now)
        rates.append(throttle.rate.per_second)
    steps = [later / rate - 1 for rate, later in zip([50 / 60, *rates], rates, strict=False)]
    assert steps[0] == pytest.approx(0.01, abs=0.005)
    assert steps == sorted(steps)


def test_a_rate_from_a_short_time_grows_quickly():
    """A 429 after a fifth of a second doesn't delay a batch for long."""
    throttle = Throttle()
    now = accept(throttle, 0.0, 8)
    decline(throttle, now + 0.2, 0.1, own_delay=0.1)
    now = accept(throttle, now + 0.3)
    assert throttle.rate.per_second < 40
    while throttle.rate.per_second < 400:
        now = accept(throttle, now)
    assert now < 8


def test_an_isolated_429_sets_no_rate():
    """Without a Retry-After, and with later attempts accepted immediately, nothing indicates a limit."""
    throttle, now = Throttle(), 0.0
    for _ in range(20):
        now = accept(throttle, now, 60)
        decline(throttle, now + 0.01, None)
        now = accept(throttle, now + 1.01)
    assert throttle.rate.per_second == math.inf


def test_many_isolated_429s_are_a_limit():
    """One 429 in eleven attempts is too many to be chance."""
    throttle, now = Throttle(), 0.0
    for _ in range(20):
        now = accept(throttle, now, 10)
        decline(throttle, now + 0.01, None)
        now = accept(throttle, now + 1.01)
    assert math.isfinite(throttle.rate.per_second)


def test_a_declined_probe_is_not_isolated():
    """If the probe after the pause is declined as well, the limit is used up."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, None)
    for second in range(2, 60):
        ticket = throttle.issue_ticket(float(second))
        decline(throttle, second + 0.1, None, ticket=ticket)
    accept(throttle, 60.5)
    assert throttle.rate.per_second == pytest.approx(50 / 60, rel=0.02)


def test_a_later_accepted_attempt_contradicts_a_429():
    """A rate is kept if the server accepts attempts that started after the declined one."""
    for later, rate_kept in ((1, True), (0, False)):
        throttle = Throttle(rate=AdaptiveRate(20.0, 20.0))
        now = accept(throttle, 0.0, 200)
        before = throttle.rate.per_second
        tickets = [throttle.issue_ticket(now + 1), throttle.issue_ticket(now + 2)]
        decline(throttle, now + 3, 1.0, ticket=tickets[0])
        throttle.record_accepted(now + 3, tickets[later])
        accept(throttle, now + 5)
        assert (throttle.rate.per_second >= before) == rate_kept


def test_an_unlimited_increase_stays_finite():
    """The rate stays finite however long it grows."""
    throttle = Throttle()
    throttle.rate = AdaptiveRate(1e-6, 1e-6, period=0.001)
    accept(throttle, 0.0, 1000)
    assert math.isfinite(throttle.rate.per_second)


def test_an_unused_rate_does_not_increase():
    """Calls that come less often than the rate show nothing about a higher rate."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 59.9)
    accept(throttle, 60.0)
    rate = throttle.rate.per_second
    for moment in range(100, 1000, 50):
        accept(throttle, float(moment))
    assert throttle.rate.per_second == rate


def test_maintenance_sets_no_rate():
    """A pause that isn't for a rate limit leaves no rate behind."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 30.0, rate_limited=False)
    accept(throttle, 30.1)
    assert throttle.rate.per_second == math.inf
    assert throttle.can_start(30.2)


def test_a_declined_first_attempt_sets_no_rate():
    """Others may have used up the limit, and nothing is known about it."""
    throttle = Throttle()
    throttle.issue_ticket(0.0)
    decline(throttle, 0.1, 5.0)
    accept(throttle, 5.1)
    assert throttle.rate.per_second == math.inf


def test_after_a_pause_there_is_one_probe_at_a_time():
    """Until the server accepts a probe, there is one at a time, or one every five seconds."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 10.0)
    ticket = throttle.issue_ticket(10.1)
    assert throttle.seconds_until_start(10.1) == pytest.approx(5)
    assert throttle.expected_wait(10.1) == 0  # the minimum that is known
    throttle.record_accepted(10.2, ticket)
    assert throttle.seconds_until_start(10.2) == pytest.approx(1 / throttle.rate.per_second)


def test_the_circuit_breaker_has_three_states():
    """A declined attempt opens it, the first probe makes it half-open, and an accepted probe closes it."""
    throttle = Throttle()
    early = [throttle.issue_ticket(0.0) for _ in range(3)]
    states = [throttle.breaker.state]
    for now, retry_after in ((1.0, 5.0), (10.0, 7.0)):
        decline(throttle, now, retry_after, ticket=early.pop())
        states.append(throttle.breaker.state)
        probe = throttle.issue_ticket(now + retry_after)
        throttle.attempt_ended(now + retry_after, probe)
        states.append(throttle.breaker.state)
    throttle.record_accepted(18.0, early.pop())
    states.append(throttle.breaker.state)
    throttle.record_accepted(18.0, probe)
    states.append(throttle.breaker.state)
    closed, opened, half_open = BreakerState
    assert states == [closed, opened, half_open, opened, half_open, half_open, closed]
    assert [ticket.is_probe for ticket in (probe, throttle.issue_ticket(20.0))] == [True, False]


def test_a_probe_of_an_earlier_pause_does_not_shorten_the_next_one():
    """Two probes are in flight, the first is accepted, and the second one ends after the next 429."""
    throttle = Throttle(rate=AdaptiveRate(0.1, 0.1))
    decline(throttle, 0.0, 1.0)
    first, second = throttle.issue_ticket(1.0), throttle.issue_ticket(6.0)
    throttle.record_accepted(7.0, first)
    decline(throttle, 8.0, 2.0)
    throttle.attempt_ended(9.0, second)
    assert throttle.seconds_until_start(9.0) == pytest.approx(8.0)


def test_a_ticket_issued_at_the_moment_of_a_429_is_void():
    """Two events may have the same time. Only their order decides which ticket the 429 makes void."""
    throttle = Throttle()
    before = throttle.issue_ticket(1.0)
    decline(throttle, 1.0, 5.0)
    throttle.record_accepted(1.0, before)
    assert throttle.breaker.state is BreakerState.OPEN
    assert throttle.breaker.is_current(throttle.issue_ticket(6.0))


@pytest.mark.parametrize(
    ("retry_after", "expected"), [(None, 1), (0.0, 1), (0.001, 1), (0.5, 1), (1.0, 1), (7.0, 7)]
)
def test_a_very_short_delay_is_raised_to_the_backoff(retry_after, expected):
    """Otherwise a batch would repeat its requests as fast as the network allows."""
    throttle = Throttle()
    decline(throttle, 0.0, retry_after)
    assert throttle.seconds_until_start(0.0) == expected


def test_a_declined_probe_leaves_only_its_pause():
    """The interval between probes is for responses that have not arrived yet."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 10.0)
    ticket = throttle.issue_ticket(10.1)
    throttle.attempt_ended(10.2, Ticket(10.1, ticket.declines, is_probe=True))
    assert throttle.seconds_until_start(10.2) == pytest.approx(4.9)
    throttle.attempt_ended(10.2, ticket)
    assert throttle.can_start(10.2)
    decline(throttle, 10.2, 2.5)
    assert throttle.seconds_until_start(10.2) == pytest.approx(2.5)


def test_pauses_add_up_until_an_attempt_is_accepted():
    """Pauses count from the 429, overlaps count once, and an attempt that started earlier ends nothing."""
    throttle = Throttle()
    early = throttle.issue_ticket(0.0)
    decline(throttle, 1.0, 5.0)
    decline(throttle, 2.0, 5.0)
    assert (throttle.breaker.total_pause, throttle.breaker.pause_count) == (6.0, 1)
    throttle.record_accepted(3.0, early)
    assert (throttle.breaker.total_pause, throttle.breaker.pause_count) == (6.0, 1)
    throttle.issue_ticket(7.0)
    decline(throttle, 7.5, 5.0)
    assert (throttle.breaker.total_pause, throttle.breaker.pause_count) == (11.0, 2)
    accept(throttle, 12.5)
    assert (throttle.breaker.total_pause, throttle.breaker.pause_count) == (0.0, 0)


def test_a_rate_from_one_attempt_grows_within_minutes():
    """Others used up the limit, and one attempt was accepted in a minute: that isn't a lasting rate."""
    throttle = Throttle()
    accept(throttle, 0.0)
    decline(throttle, 0.1, 60.0)
    now = accept(throttle, 60.1)
    assert throttle.rate.per_second == pytest.approx(1 / 60, rel=0.01)
    while now < 300:
        now = accept(throttle, now)
    assert throttle.rate.per_second > 0.5


def test_pauses_that_are_far_apart_do_not_add_up():
    """A call that is declined each night, and isn't repeated, doesn't use up the `max_pause` of a batch."""
    throttle = Throttle()
    for night in (0.0, 86_400.0, 172_800.0):
        throttle.issue_ticket(night)
        decline(throttle, night + 0.1, 90.0)
        assert (throttle.breaker.total_pause, throttle.breaker.pause_count) == (90.0, 1)


def test_attempts_before_an_idle_time_are_not_measured():
    """An hour of single calls says nothing about what a batch may do after it."""
    throttle = Throttle()
    for moment in range(0, 3600, 30):
        accept(throttle, float(moment))
    accept(throttle, 3600.0, 50)
    decline(throttle, 3600.1, 59.9)
    accept(throttle, 3660.0)
    assert throttle.rate.per_second == pytest.approx(50 / 60, rel=0.01)


def test_recent_attempts_count_more_than_old_ones():
    """After an hour at a low rate, five minutes at eight times that rate show what is allowed now."""
    throttle = Throttle()
    for moment in range(0, 3600, 4):
        accept(throttle, float(moment))
    for half_second in range(600):
        accept(throttle, 3600 + half_second / 2)
    decline(throttle, 3900.0, 10.0)
    accept(throttle, 3910.0)
    assert 1 < throttle.rate.per_second <= 2


def test_a_low_rate_is_measured_as_well():
    """At five a minute there are twelve seconds between two attempts, and none of that time is idle."""
    throttle = Throttle()
    accept(throttle, 0.0, 5)
    decline(throttle, 0.1, 59.9)
    now = accept(throttle, 60.0, 20)
    before = throttle.rate.per_second
    assert before < 0.2
    now += throttle.seconds_until_start(now)
    throttle.issue_ticket(now)
    decline(throttle, now + 0.1, 10.0)
    accept(throttle, now + 10.1)
    assert throttle.rate.per_second <= 0.92 * before


def test_the_time_without_calls_after_a_pause_is_not_measured():
    """A single call was declined in the evening, and the next one comes in the morning."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 59.9)
    accept(throttle, 8 * 3600.0)
    assert throttle.rate.per_second == pytest.approx(50 / 60, rel=0.01)


def test_maintenance_within_a_rate_limit_pause_sets_no_rate():
    """The attempts accepted in that time say nothing about the limit."""
    throttle = Throttle()
    accept(throttle, 0.0, 50)
    decline(throttle, 0.1, 10.0)
    throttle.issue_ticket(10.1)
    decline(throttle, 10.2, 290.0, rate_limited=False)
    throttle.issue_ticket(300.2)
    decline(throttle, 300.3, 1.0)
    accept(throttle, 301.3)
    assert throttle.rate.per_second == math.inf


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.sampled_from(["pass", "refuse", "maintain"]), st.floats(0, 60)),
        max_size=60,
    )
)
def test_no_ticket_is_issued_during_a_pause(events):
    """In any order of events, no attempt starts before the pause is over, and the rate stays positive."""
    throttle, now = Throttle(), 0.0
    for step, event, delay in events:
        now += step
        now = max(now, now + throttle.seconds_until_start(now))
        assert now >= throttle.breaker.open_until - 1e-9
        ticket = throttle.issue_ticket(now)
        now += 0.05
        if event == "pass":
            throttle.record_accepted(now, ticket)
        else:
            decline(throttle, now, delay, rate_limited=event == "refuse")
        assert throttle.rate.per_second > 0
        assert throttle.breaker.total_pause >= 0


# ------------------------------------------------------------------------------------------ the queue


async def test_a_single_call_goes_before_a_bulk_call(plaid):
    """A web request doesn't wait for all of a nightly run that keeps to a rate."""
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await client.relay.create([report], "first")
        throttle = throttle_of(client, CREATE)
        throttle.rate = AdaptiveRate(20.0, 20.0)
        rows = RelayCreateRequest.fan_out([report], (f"p{n}" for n in range(40)))
        running = asyncio.ensure_future(client.relay.create_many(rows))
        while len(plaid.ledger) < 3:
            await asyncio.sleep(0.01)
        await client.relay.create([report], "single", timeout=5)
        position = [entry["secondary_client_id"] for entry in plaid.ledger].index("single")
        assert position < 8
        assert client.statistics().queued > 20
        await running


async def test_a_call_without_time_for_the_queue_fails_immediately(plaid):
    """At that rate the wait would be too long: the error has its seconds, and nothing is sent."""
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await client.relay.create([report], "first")
        throttle = throttle_of(client, CREATE)
        throttle.rate = AdaptiveRate(0.1, 0.1)
        await client.relay.create([report], "second")
        await client.relay.create([report], "third")
        started = time.monotonic()
        with pytest.raises(WaitTooLongError) as caught:
            await client.relay.create([report], "fourth", timeout=2)
    assert time.monotonic() - started < 5
    assert 1 < caught.value.retry_after <= 10
    assert caught.value.sent is False
    assert plaid.counts[CREATE] == 3


async def test_a_call_whose_attempts_were_not_sent_reports_that():
    """The first attempt reached no server, and the second one was not admitted: nothing was sent."""
    now = asyncio.get_running_loop().time

    def hold_up(_):
        decline(throttle_of(client, CREATE), now(), 100.0)

    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK, on_retry=hold_up) as client:
        with pytest.raises(WaitTooLongError) as caught:
            await client.relay.create(["t"], "p", timeout=30)
    assert (caught.value.sent, caught.value.attempts) == (False, 1)


async def test_a_creation_is_not_sent_shortly_before_its_deadline(plaid):
    """Half of its time is reserved for the response, or it might be unknown. A read uses what remains."""
    report = plaid.add_report()
    plaid.fail(Fault(path=CREATE, latency=0.2))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        for path in (CREATE, GET):
            decline(
                throttle_of(client, path),
                asyncio.get_running_loop().time(),
                0.4,
                own_delay=0.4,
            )
        with pytest.raises(WaitTooLongError) as caught:
            await client.relay.create([report], "p", timeout=0.5)
        assert caught.value.sent is False
        with pytest.raises(InvalidRequestError):
            await client.relay.get("no-such-token", timeout=0.5)
    assert plaid.counts == {GET: 1}


async def test_a_deadline_ends_the_wait_in_the_queue(plaid):
    """If the queue takes longer than expected, the call's deadline still ends the wait."""
    report = plaid.add_report()
    plaid.fail(Fault(path=CREATE, stall=5, times=1))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        throttle = throttle_of(client, CREATE)
        async with throttle.queue.head(bulk=False):
            started = time.monotonic()
            with pytest.raises(WaitTooLongError, match="longer wait than this call allows"):
                await client.relay.create([report], "p", timeout=0.1)
    assert time.monotonic() - started > 0.05
    assert plaid.counts[CREATE] == 0


async def test_closing_the_client_ends_a_wait_in_the_queue(plaid):
    """A call doesn't wait half a minute for an admission that can't come."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "30"}, times=1))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        waiting = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        while not client.statistics().queued:
            await asyncio.sleep(0.01)
    with pytest.raises(ClientClosedError):
        async with asyncio.timeout(20):
            await waiting
    assert plaid.counts[CREATE] == 1
