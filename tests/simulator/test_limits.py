"""Rate limits: the requests that they admit, and the responses to the others."""

import asyncio
import math

import pytest

from plaid_relay_async.simulator import Fault, Limit, Simulator

CREATE, REMOVE = "/credit/relay/create", "/credit/relay/remove"
VALID_BODY = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
RATE_LIMITED = (429, "RATE_LIMIT_EXCEEDED", "RATE_LIMIT")


@pytest.fixture
async def limited(clock, api_for):
    """Return a function that starts a simulator with limits, and returns it and a function to create a token."""
    simulators = []

    async def limited(*limits, **settings):
        plaid = Simulator(reports=["ready"], limits=limits, clock=clock, **settings)
        simulators.append(plaid)
        await plaid.start()
        api = api_for(plaid)

        async def create(**options):
            return await api(CREATE, VALID_BODY, **options)

        return plaid, create

    yield limited
    for plaid in simulators:
        await plaid.close()


async def statuses(create, count):
    return [(await create()).status for _ in range(count)]


async def test_a_sliding_window_ends_at_each_request(limited, clock):
    """A request leaves the window after `per` seconds, and only then is another one admitted."""
    _, create = await limited(Limit(CREATE, 2, 60))
    assert (await create()).status == 200
    clock.now += 40
    assert await statuses(create, 2) == [200, 429]
    clock.now += 19.5
    response = await create()
    assert response.error == RATE_LIMITED
    assert response.headers["Retry-After"] == "1"
    clock.now += 0.5
    assert await statuses(create, 2) == [200, 429]
    clock.now += 40
    assert await statuses(create, 2) == [200, 429]


async def test_a_fixed_window_begins_at_a_multiple(limited, clock):
    """The count starts from zero at each multiple of `per`."""
    plaid, create = await limited(Limit(CREATE, 3, 60, "fixed"))
    clock.now = 119.9
    assert await statuses(create, 4) == [200, 200, 200, 429]
    assert (await create()).headers["Retry-After"] == "1"
    clock.now = 120
    assert await statuses(create, 4) == [200, 200, 200, 429]
    assert (await create()).headers["Retry-After"] == "60"
    assert (len(plaid.ledger), plaid.rate_limited, plaid.counts[CREATE]) == (6, {CREATE: 4}, 10)


async def test_rejected_requests_do_not_count(limited, clock):
    """Any number of rejected requests doesn't extend the wait for the first one to leave the window."""
    _, create = await limited(Limit(CREATE, 1, 10))
    assert (await create()).status == 200
    for _ in range(9):
        clock.now += 1
        assert (await create()).status == 429
    clock.now += 1
    assert (await create()).status == 200


async def test_a_limit_without_retry_after(limited):
    """Without `retry_after`, the 429 has no such header."""
    _, create = await limited(Limit(CREATE, 1, retry_after=False))
    assert (await create()).status == 200
    response = await create()
    assert response.error == RATE_LIMITED
    assert "Retry-After" not in response.headers


async def test_each_client_and_each_path_has_its_own_count(limited, api_for):
    """A limit without a path applies to each path separately, and to each client separately."""
    plaid, create = await limited(Limit(count=1))
    api = api_for(plaid)
    assert await statuses(create, 2) == [200, 429]
    assert (await create(client="other")).status == 200
    assert (await create(client=None)).error[0] == 400
    assert (await create(client=None)).error == RATE_LIMITED
    assert (await api(REMOVE, {"relay_token": "none"})).status == 400
    assert plaid.rate_limited == {CREATE: 2}


async def test_a_path_without_a_limit(limited, api_for):
    """A limit applies only to its own path."""
    plaid, create = await limited(Limit(REMOVE, 1))
    assert await statuses(create, 3) == [200] * 3
    assert [(await api_for(plaid)(REMOVE, {"relay_token": "none"})).status for _ in range(2)] == [400, 429]


async def test_several_limits(limited, clock):
    """A request must be within all limits; a rejected one counts in none, and gets the longest delay."""
    _, create = await limited(Limit(CREATE, 2, 10), Limit(CREATE, 3, 60, "fixed"))
    clock.now = 60
    assert await statuses(create, 3) == [200, 200, 429]
    clock.now = 70
    assert await statuses(create, 2) == [200, 429]
    assert (await create()).headers["Retry-After"] == "50"
    clock.now = 120
    assert await statuses(create, 3) == [200, 200, 429]


async def test_a_limit_comes_after_the_latency_and_before_faults(limited, clock):
    """A request that is delayed longer reaches the limit later; no fault applies to a rejected request."""
    latencies = iter([0.2, 0.0, 0.0])
    plaid, create = await limited(
        Limit(CREATE, 1), faults=[Fault(status=500, times=2)], latency=lambda: next(latencies)
    )
    late = asyncio.create_task(create())
    while not plaid.requests:
        await asyncio.sleep(0.001)
    assert (await create()).status == 500
    assert (await late).error == RATE_LIMITED
    clock.now += 60
    assert (await create()).status == 500
    assert [request.status for request in plaid.requests] == [429, 500, 500]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "credit"}, "path: must be one of Plaid's paths"),
        ({"count": 0}, "count: must be an integer of at least 1"),
        ({"count": True}, "count: must be an integer of at least 1"),
        ({"count": 1.5}, "count: must be an integer of at least 1"),
        ({"per": 0}, "per: must be a number of seconds above 0"),
        ({"per": math.inf}, "per: must be a number of seconds above 0"),
        ({"per": math.nan}, "per: must be a number of seconds above 0"),
        ({"per": True}, "per: must be a number of seconds above 0"),
        ({"per": "60"}, "per: must be a number of seconds above 0"),
        ({"window": "leaky"}, "window: must be 'sliding' or 'fixed'"),
        ({"retry_after": 1}, "retry_after: must be true or false"),
    ],
)
def test_invalid_limits(arguments, message):
    """An invalid limit is a ValueError that names the field, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        Limit(**arguments)
