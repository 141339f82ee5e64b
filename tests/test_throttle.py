"""An operation's pause and rate: pure arithmetic on a clock that is passed in, and who goes first in line."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import OWNER, QUICK

from plaid_relay_async import (
    ClientClosedError,
    InvalidRequestError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
)
from plaid_relay_async.simulator import Fault
from plaid_relay_async.transport.throttle import AdaptiveRate, Throttle

CREATE, GET = "/credit/relay/create", "/credit/relay/get"


def let_through(pace: Throttle, now: float, count: int = 1) -> float:
    """So many attempts leave as soon as they may, and are answered 10 ms later; gives the time of the last."""
    for _ in range(count):
        now = max(now, now + pace.seconds_until_start(now))
        turn = pace.issue_ticket(now)
        pace.record_accepted(now + 0.01, turn)
    return now


def refuse(
    pace: Throttle,
    now: float,
    asked: float | None,
    *,
    own: float = 1.0,
    turn: float = math.inf,
    limited: bool = True,
) -> None:
    """The server refuses an attempt; without a delay of its own, a second is waited."""
    pace.record_declined(now, turn, asked, lambda _: own, rate_limited=limited)


def test_nothing_is_held_back_before_the_first_refusal():
    """Without a 429 there is no rate, no pause and no line."""
    pace = Throttle()
    assert pace.can_start(0.0)
    assert let_through(pace, 0.0, 100) == 0.0
    assert pace.rate.per_second == math.inf


def test_the_rate_is_what_was_let_through():
    """Fifty at once and then a pause until the minute is over: fifty a minute."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    turn = pace.issue_ticket(0.0)
    refuse(pace, 0.1, 59.9)
    assert not pace.can_start(1.0)
    assert pace.seconds_until_start(0.1) == pytest.approx(59.9)
    assert not pace.is_current(turn)
    let_through(pace, 60.0)
    assert pace.rate.per_second == pytest.approx(50 / 60, rel=0.01)
    assert pace.seconds_until_start(60.01) == pytest.approx(1 / pace.rate.per_second)


def test_a_refusal_takes_a_part_of_the_rate_away():
    """What was refused at a rate is a little too fast, whatever was let through at it for a while."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 59.9)
    now = let_through(pace, 60.0, 200)
    before = pace.rate.per_second
    refuse(pace, now + 0.1, 1.0)
    let_through(pace, now + 1.1)
    assert pace.rate.per_second == pytest.approx(0.92 * before, rel=0.01)


def test_the_rate_rises_faster_the_longer_nothing_is_refused():
    """What a minute taught rises by a hundredth in the first minute, and by more in each that follows."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 59.9)
    now, rates = 60.0, []
    for minute in range(1, 6):
        while now < 60 + 60 * minute:
            now = let_through(pace, now)
        rates.append(pace.rate.per_second)
    steps = [later / rate - 1 for rate, later in zip([50 / 60, *rates], rates, strict=False)]
    assert steps[0] == pytest.approx(0.01, abs=0.005)
    assert steps == sorted(steps)


def test_what_was_learnt_in_a_moment_is_forgotten_in_moments():
    """A stray refusal after a fifth of a second doesn't hold a batch back for long."""
    pace = Throttle()
    now = let_through(pace, 0.0, 8)
    refuse(pace, now + 0.2, 0.1, own=0.1)
    now = let_through(pace, now + 0.3)
    assert pace.rate.per_second < 40
    while pace.rate.per_second < 400:
        now = let_through(pace, now)
    assert now < 8


def test_a_stray_refusal_teaches_no_rate():
    """Without a delay of the server's, and with what follows taken at once: nothing speaks of a limit."""
    pace, now = Throttle(), 0.0
    for _ in range(20):
        now = let_through(pace, now, 60)
        refuse(pace, now + 0.01, None)
        now = let_through(pace, now + 1.01)
    assert pace.rate.per_second == math.inf


def test_many_strays_are_a_limit():
    """One in eleven is too much to be chance."""
    pace, now = Throttle(), 0.0
    for _ in range(20):
        now = let_through(pace, now, 10)
        refuse(pace, now + 0.01, None)
        now = let_through(pace, now + 1.01)
    assert math.isfinite(pace.rate.per_second)


def test_a_limit_that_is_used_up_is_no_stray():
    """What goes to see whether the pause is over is refused as well."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, None)
    for second in range(2, 60):
        turn = pace.issue_ticket(float(second))
        refuse(pace, second + 0.1, None, turn=turn)
    let_through(pace, 60.5)
    assert pace.rate.per_second == pytest.approx(50 / 60, rel=0.02)


def test_what_is_taken_behind_a_refusal_contradicts_it():
    """A rate is kept if the server took attempts that left later than the refused one, whatever delay it asked."""
    for later, kept in ((1, True), (0, False)):
        pace = Throttle(rate=AdaptiveRate(20.0, 20.0))
        now = let_through(pace, 0.0, 200)
        before = pace.rate.per_second
        turns = [pace.issue_ticket(now + 1), pace.issue_ticket(now + 2)]
        refuse(pace, now + 3, 1.0, turn=turns[0])
        pace.record_accepted(now + 3, turns[later])
        let_through(pace, now + 5)
        assert (pace.rate.per_second >= before) == kept


def test_a_rate_that_nobody_needs_stays_a_number():
    """However long it rises."""
    pace = Throttle()
    pace.rate = AdaptiveRate(1e-6, 1e-6, period=0.001)
    let_through(pace, 0.0, 1000)
    assert math.isfinite(pace.rate.per_second)


def test_a_rate_that_holds_nobody_up_does_not_rise():
    """Whoever asks less often than that learns nothing of what more would meet."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 59.9)
    let_through(pace, 60.0)
    rate = pace.rate.per_second
    for moment in range(100, 1000, 50):
        let_through(pace, float(moment))
    assert pace.rate.per_second == rate


def test_maintenance_teaches_no_rate():
    """A pause that isn't for a limit ends with the pause."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 30.0, limited=False)
    let_through(pace, 30.1)
    assert pace.rate.per_second == math.inf
    assert pace.can_start(30.2)


def test_a_first_attempt_that_is_refused_teaches_no_rate():
    """Others may have used the limit up; of what it is nothing is known."""
    pace = Throttle()
    pace.issue_ticket(0.0)
    refuse(pace, 0.1, 5.0)
    let_through(pace, 5.1)
    assert pace.rate.per_second == math.inf


def test_after_a_pause_one_goes_first():
    """Until the server takes one again, they go one at a time, or five seconds apart."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 10.0)
    turn = pace.issue_ticket(10.1)
    assert pace.seconds_until_start(10.1) == pytest.approx(5)
    assert pace.expected_wait(10.1) == 0  # as far as anybody knows
    pace.record_accepted(10.2, turn)
    assert pace.seconds_until_start(10.2) == pytest.approx(1 / pace.rate.per_second)


@pytest.mark.parametrize(("asked", "waited"), [(None, 1), (0.0, 1), (0.001, 1), (0.5, 1), (1.0, 1), (7.0, 7)])
def test_a_delay_of_next_to_nothing_is_never_less_than_our_own(asked, waited):
    """Or a batch would ask again as fast as the network lets it."""
    pace = Throttle()
    refuse(pace, 0.0, asked)
    assert pace.seconds_until_start(0.0) == waited


def test_one_that_went_first_and_was_refused_leaves_only_its_pause():
    """The time between those that go first is for answers that aren't there yet."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 10.0)
    turn = pace.issue_ticket(10.1)
    pace.attempt_ended(10.2, turn - 1)
    assert pace.seconds_until_start(10.2) == pytest.approx(4.9)
    pace.attempt_ended(10.2, turn)
    assert pace.can_start(10.2)
    refuse(pace, 10.2, 2.5)
    assert pace.seconds_until_start(10.2) == pytest.approx(2.5)


def test_pauses_add_up_until_the_server_takes_one():
    """Each pause counts from its refusal, what overlaps counts once, and one that left before it ends nothing."""
    pace = Throttle()
    early = pace.issue_ticket(0.0)
    refuse(pace, 1.0, 5.0)
    refuse(pace, 2.0, 5.0)
    assert (pace.total_pause, pace.pause_count) == (6.0, 1)
    pace.record_accepted(3.0, early)
    assert (pace.total_pause, pace.pause_count) == (6.0, 1)
    pace.issue_ticket(7.0)
    refuse(pace, 7.5, 5.0)
    assert (pace.total_pause, pace.pause_count) == (11.0, 2)
    let_through(pace, 12.5)
    assert (pace.total_pause, pace.pause_count) == (0.0, 0)


def test_what_one_attempt_taught_is_forgotten_in_minutes():
    """The limit was used up by others: one passed, and then a minute's pause. That isn't one a minute for long."""
    pace = Throttle()
    let_through(pace, 0.0)
    refuse(pace, 0.1, 60.0)
    now = let_through(pace, 60.1)
    assert pace.rate.per_second == pytest.approx(1 / 60, rel=0.01)
    while now < 300:
        now = let_through(pace, now)
    assert pace.rate.per_second > 0.5


def test_pauses_that_lie_far_apart_do_not_add_up():
    """A call that is refused each night, and isn't repeated, doesn't use up the patience of a batch."""
    pace = Throttle()
    for night in (0.0, 86_400.0, 172_800.0):
        pace.issue_ticket(night)
        refuse(pace, night + 0.1, 90.0)
        assert (pace.total_pause, pace.pause_count) == (90.0, 1)


def test_what_was_before_an_idle_time_is_not_measured():
    """An hour of single calls says nothing of what a batch may do after it."""
    pace = Throttle()
    for moment in range(0, 3600, 30):
        let_through(pace, float(moment))
    let_through(pace, 3600.0, 50)
    refuse(pace, 3600.1, 59.9)
    let_through(pace, 3660.0)
    assert pace.rate.per_second == pytest.approx(50 / 60, rel=0.01)


def test_what_was_let_through_lately_tells_more_than_what_was_long_ago():
    """An hour at one in four seconds, and then five minutes at eight times that, show what is allowed now."""
    pace = Throttle()
    for moment in range(0, 3600, 4):
        let_through(pace, float(moment))
    for half_second in range(600):
        let_through(pace, 3600 + half_second / 2)
    refuse(pace, 3900.0, 10.0)
    let_through(pace, 3910.0)
    assert 1 < pace.rate.per_second <= 2


def test_a_low_rate_is_learnt_from_as_well():
    """At five a minute there are twelve seconds between two attempts, and none of that time is idle."""
    pace = Throttle()
    let_through(pace, 0.0, 5)
    refuse(pace, 0.1, 59.9)
    now = let_through(pace, 60.0, 20)
    before = pace.rate.per_second
    assert before < 0.2
    now += pace.seconds_until_start(now)
    pace.issue_ticket(now)
    refuse(pace, now + 0.1, 10.0)
    let_through(pace, now + 10.1)
    assert pace.rate.per_second <= 0.92 * before


def test_the_time_after_a_pause_in_which_nobody_called_teaches_nothing():
    """A single call was refused in the evening, and the next one comes in the morning."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 59.9)
    let_through(pace, 8 * 3600.0)
    assert pace.rate.per_second == pytest.approx(50 / 60, rel=0.01)


def test_maintenance_within_a_limits_pause_teaches_no_rate():
    """What was let through in that time says nothing of the limit."""
    pace = Throttle()
    let_through(pace, 0.0, 50)
    refuse(pace, 0.1, 10.0)
    pace.issue_ticket(10.1)
    refuse(pace, 10.2, 290.0, limited=False)
    pace.issue_ticket(300.2)
    refuse(pace, 300.3, 1.0)
    let_through(pace, 301.3)
    assert pace.rate.per_second == math.inf


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.sampled_from(["pass", "refuse", "maintain"]), st.floats(0, 60)),
        max_size=60,
    )
)
def test_no_turn_is_given_within_a_pause(events):
    """Whatever happens, nobody in line leaves before the pause is over, and a rate stays a positive number."""
    pace, now = Throttle(), 0.0
    for step, what, delay in events:
        now += step
        now = max(now, now + pace.seconds_until_start(now))
        assert now >= pace.open_until - 1e-9
        turn = pace.issue_ticket(now)
        now += 0.05
        if what == "pass":
            pace.record_accepted(now, turn)
        else:
            refuse(pace, now, delay, limited=what == "refuse")
        assert pace.rate.per_second > 0
        assert pace.total_pause >= 0


# ------------------------------------------------------------------------------------- who goes first


async def test_a_single_call_goes_before_a_batch(plaid):
    """What a web request waits for isn't the whole of a nightly run that keeps to a rate."""
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await client.relay.create([report], "first")
        pace = client._transport._admission.throttles[CREATE]
        pace.rate = AdaptiveRate(20.0, 20.0)
        rows = RelayCreateRequest.fan_out([report], (f"p{n}" for n in range(40)))
        running = asyncio.ensure_future(client.relay.create_many(rows)._run_to_result())
        while len(plaid.ledger) < 3:
            await asyncio.sleep(0.01)
        await client.relay.create([report], "single", timeout=5)
        place = [entry["secondary_client_id"] for entry in plaid.ledger].index("single")
        assert place < 8
        assert client.statistics().queued > 20
        await running


async def test_a_call_without_time_for_the_line_says_so_at_once(plaid):
    """The rate would make it wait too long: the error tells how long, and nothing is sent."""
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await client.relay.create([report], "first")
        pace = client._transport._admission.throttles[CREATE]
        pace.rate = AdaptiveRate(0.1, 0.1)
        await client.relay.create([report], "second")
        await client.relay.create([report], "third")
        began = time.monotonic()
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([report], "fourth", timeout=2)
    assert time.monotonic() - began < 5
    assert 1 < caught.value.retry_after <= 10
    assert caught.value.sent is False
    assert plaid.counts[CREATE] == 3


async def test_a_call_that_never_left_says_so_though_it_was_tried():
    """The first attempt found no server, and the second one no room: nothing was sent."""
    now = asyncio.get_running_loop().time

    def hold_up(_):
        refuse(client._transport._admission.throttles[CREATE], now(), 100.0)

    async with RelayClient(OWNER, base_url="http://127.0.0.1:9", retry=QUICK, on_retry=hold_up) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create(["t"], "p", timeout=2)
    assert (caught.value.sent, caught.value.attempts) == (False, 1)


async def test_a_creation_does_not_leave_the_line_when_its_time_is_nearly_up(plaid):
    """It would be unknown for nothing: half of its time is for the answer. A read may take what is left."""
    report = plaid.add_report()
    plaid.fail(Fault(path=CREATE, latency=0.2))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        for path in (CREATE, GET):
            refuse(
                client._transport._admission.throttles[path], asyncio.get_running_loop().time(), 0.4, own=0.4
            )
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([report], "p", timeout=0.5)
        assert caught.value.sent is False
        with pytest.raises(InvalidRequestError):
            await client.relay.get("no-such-token", timeout=0.5)
    assert plaid.counts == {GET: 1}


async def test_a_deadline_ends_the_waiting_in_line(plaid):
    """Where the line turns out longer than it looked, the call's own time still ends it."""
    report = plaid.add_report()
    plaid.fail(Fault(path=CREATE, stall=5, times=1))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        pace = client._transport._admission.throttles[CREATE]
        async with pace.queue(bulk=False):
            began = time.monotonic()
            with pytest.raises(RateLimitError, match="longer than this call may wait"):
                await client.relay.create([report], "p", timeout=0.1)
    assert time.monotonic() - began > 0.05
    assert plaid.counts[CREATE] == 0


async def test_a_call_in_line_ends_as_its_client_is_closed(plaid):
    """Nobody waits half a minute for a turn that can't come."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "30"}, times=1))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        waiting = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        while not client.statistics().queued:
            await asyncio.sleep(0.01)
    with pytest.raises(ClientClosedError):
        async with asyncio.timeout(20):
            await waiting
    assert plaid.counts[CREATE] == 1
