"""What a limit lets through, and what it says to the rest."""

import asyncio
import math

import pytest

from plaid_relay_async.simulator import Fault, Limit, Simulator

CREATE, REMOVE = "/credit/relay/create", "/credit/relay/remove"
GOOD = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
REFUSED = (429, "RATE_LIMIT_EXCEEDED", "RATE_LIMIT")


@pytest.fixture
async def limited(clock, asking):
    """Make a simulator that keeps limits, and a way to create at it that gives the status."""
    opened = []

    async def limited(*limits, **more):
        plaid = Simulator(reports=["ready"], limits=limits, clock=clock, **more)
        opened.append(plaid)
        await plaid.start()
        ask = asking(plaid)

        async def create(**how):
            return await ask(CREATE, GOOD, **how)

        return plaid, create

    yield limited
    for plaid in opened:
        await plaid.close()


async def statuses(create, count):
    return [(await create()).status for _ in range(count)]


async def test_a_sliding_window_looks_back_from_each_request(limited, clock):
    """Room is made by each request that is `per` seconds old, and by it alone."""
    _, create = await limited(Limit(CREATE, 2, 60))
    assert (await create()).status == 200
    clock.now += 40
    assert await statuses(create, 2) == [200, 429]
    clock.now += 19.5
    over = await create()
    assert over.refusal == REFUSED
    assert over.headers["Retry-After"] == "1"
    clock.now += 0.5
    assert await statuses(create, 2) == [200, 429]
    clock.now += 40
    assert await statuses(create, 2) == [200, 429]


async def test_a_fixed_window_begins_at_a_multiple(limited, clock):
    """All of the count is there again when the next window begins, at the clock's multiple of `per`."""
    plaid, create = await limited(Limit(CREATE, 3, 60, "fixed"))
    clock.now = 119.9
    assert await statuses(create, 4) == [200, 200, 200, 429]
    assert (await create()).headers["Retry-After"] == "1"
    clock.now = 120
    assert await statuses(create, 4) == [200, 200, 200, 429]
    assert (await create()).headers["Retry-After"] == "60"
    assert (len(plaid.ledger), plaid.rate_limited, plaid.counts[CREATE]) == (6, {CREATE: 4}, 10)


async def test_what_is_refused_does_not_count(limited, clock):
    """However often one asks in vain, there is room when the first has left the window."""
    _, create = await limited(Limit(CREATE, 1, 10))
    assert (await create()).status == 200
    for _ in range(9):
        clock.now += 1
        assert (await create()).status == 429
    clock.now += 1
    assert (await create()).status == 200


async def test_a_limit_may_keep_its_delay_to_itself(limited):
    """Without `retry_after`, the 429 has no such header."""
    _, create = await limited(Limit(CREATE, 1, retry_after=False))
    assert (await create()).status == 200
    over = await create()
    assert over.refusal == REFUSED
    assert "Retry-After" not in over.headers


async def test_each_client_and_each_path_has_a_count_of_its_own(limited, asking):
    """A limit without a path is that of every path, each for itself; clients don't take each other's room."""
    plaid, create = await limited(Limit(count=1))
    ask = asking(plaid)
    assert await statuses(create, 2) == [200, 429]
    assert (await create(client="other")).status == 200
    assert (await create(client=None)).refusal[0] == 400
    assert (await create(client=None)).refusal == REFUSED
    assert (await ask(REMOVE, {"relay_token": "none"})).status == 400
    assert plaid.rate_limited == {CREATE: 2}


async def test_a_path_without_a_limit_is_free(limited, asking):
    """A limit concerns its own path."""
    plaid, create = await limited(Limit(REMOVE, 1))
    assert await statuses(create, 3) == [200] * 3
    assert [(await asking(plaid)(REMOVE, {"relay_token": "none"})).status for _ in range(2)] == [400, 429]


async def test_of_several_limits_all_are_kept(limited, clock):
    """A request needs room in each, takes none where one refuses, and is told the longest wait."""
    _, create = await limited(Limit(CREATE, 2, 10), Limit(CREATE, 3, 60, "fixed"))
    clock.now = 60
    assert await statuses(create, 3) == [200, 200, 429]
    clock.now = 70
    assert await statuses(create, 2) == [200, 429]
    assert (await create()).headers["Retry-After"] == "50"
    clock.now = 120
    assert await statuses(create, 3) == [200, 200, 429]


async def test_a_limit_comes_after_the_latency_and_before_faults(limited, clock):
    """The way to the limit takes the latency, and may take longer for one request; what is refused, no fault strikes."""
    ways = iter([0.2, 0.0, 0.0])
    plaid, create = await limited(
        Limit(CREATE, 1), faults=[Fault(status=500, times=2)], latency=lambda: next(ways)
    )
    late = asyncio.create_task(create())
    while not plaid.requests:
        await asyncio.sleep(0.001)
    assert (await create()).status == 500
    assert (await late).refusal == REFUSED
    clock.now += 60
    assert (await create()).status == 500
    assert [request.status for request in plaid.requests] == [429, 500, 500]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"path": "credit"}, "path: must be one of Plaid's paths"),
        ({"count": 0}, "count: must be an integer from 1"),
        ({"count": True}, "count: must be an integer from 1"),
        ({"count": 1.5}, "count: must be an integer from 1"),
        ({"per": 0}, "per: must be a number of seconds above 0"),
        ({"per": math.inf}, "per: must be a number of seconds above 0"),
        ({"per": math.nan}, "per: must be a number of seconds above 0"),
        ({"per": True}, "per: must be a number of seconds above 0"),
        ({"per": "60"}, "per: must be a number of seconds above 0"),
        ({"window": "leaky"}, "window: must be 'sliding' or 'fixed'"),
        ({"retry_after": 1}, "retry_after: must be true or false"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(wrong, words):
    """The error names the field, and what is allowed."""
    with pytest.raises(ValueError, match=words):
        Limit(**wrong)
