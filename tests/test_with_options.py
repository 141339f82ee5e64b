"""Clients of `with_options`: other settings or credentials, and the same connection pool."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from canaries import CREDENTIALS, assert_error_is_clean, assert_no_canary
from processes import wait_until_async
from recorder import Recorder
from support import CREATE, GET, OWNER, PARTNER, ClosedLimiter, session_of

from plaid_relay_async import (
    ClientClosedError,
    ConfigurationError,
    Created,
    Credentials,
    OutcomeUnknownError,
    RateLimitError,
    ReadTimeoutError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    Timeouts,
    WaitTooLongError,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.outcomes import LateOutcome

ONCE = RetryPolicy(attempts=1)
PAUSE = Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1)


class CountingLimiter:
    """A rate limiter that counts the permits that it grants."""

    def __init__(self) -> None:
        self.count = 0

    async def acquire(self, _endpoint: str) -> None:
        self.count += 1


@pytest.fixture
async def other(client: RelayClient) -> AsyncIterator[RelayClient]:
    return client.with_options(credentials=PARTNER)


async def create(client: RelayClient, plaid: Simulator, partner: str = "p") -> str:
    return (await client.relay.create([plaid.add_report()], partner)).relay_token


# ------------------------------------------------------------------------------------------ one pool


async def test_one_connection_serves_all_credentials():
    """The clients use the same connection in turn, and each request has the credentials of its own client."""
    third = Credentials("third", "secret-of-the-third")

    async def source() -> Credentials:
        return third

    async with (
        Recorder() as upstream,
        RelayClient(OWNER, base_url=upstream.url, application=("loans", "1.0")) as client,
    ):
        other = client.with_options(credentials=PARTNER)
        family = (client, other, other.with_options(credentials=source), client.with_options(retry=ONCE))
        for _ in range(2):
            for each in family:
                await each.relay.create(["t"], "p")
        assert upstream.connections == 1
        expected = [OWNER, PARTNER, third, OWNER] * 2
        for number, credentials in enumerate(expected):
            fields = {name.lower(): value for name, value in upstream.fields(number)}
            pair = (fields["plaid-client-id"], fields["plaid-secret"])
            assert pair == (credentials.client_id, credentials.secret)
            assert fields["user-agent"].endswith(" loans/1.0")


async def test_credentials_in_the_body():
    """Other credentials are sent where those of the original are."""
    async with (
        Recorder() as upstream,
        RelayClient(OWNER, base_url=upstream.url, credentials_in="body") as client,
    ):
        await client.with_options(credentials=PARTNER).relay.create(["t"], "p")
    body = upstream.body()
    assert (body["client_id"], body["secret"]) == (PARTNER.client_id, PARTNER.secret)
    assert "plaid-secret" not in {name.lower() for name, _ in upstream.fields()}


async def test_the_clients_share_the_connections(plaid):
    """A call waits for a connection that a call with other credentials has."""
    plaid.fail(Fault(path=GET, stall=60, times=1))
    async with RelayClient(OWNER, base_url=plaid.url, connections=1) as client:
        other = client.with_options(credentials=PARTNER)
        first = asyncio.ensure_future(other.relay.get("token"))
        await wait_until_async(lambda: plaid.counts[GET] == 1)
        second = asyncio.ensure_future(create(client, plaid))
        await wait_until_async(lambda: client.statistics().queued == 1)
        assert client.statistics() == other.statistics()
        assert client.statistics().in_flight == 1
        first.cancel()
        assert await second == plaid.ledger[0]["relay_token"]


async def test_a_borrowed_session_is_shared(plaid):
    """The clients borrow the same session, which stays open."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with RelayClient(OWNER, base_url=plaid.url, session=session) as client:
            assert await create(client.with_options(credentials=PARTNER), plaid)
        assert not session.closed
    assert {each.client_id for each in plaid.requests} == {PARTNER.client_id}


# ---------------------------------------------------------------------------------------- admission


async def test_a_pause_of_the_same_credentials_is_shared(plaid, client):
    """A 429 holds back the calls of all clients with these credentials, in both directions."""
    plaid.fail(PAUSE)
    with pytest.raises(RateLimitError):
        await create(client.with_options(retry=ONCE), plaid)
    quick = client.with_options(timeouts=Timeouts(total=1.0))
    for each in (quick, quick.with_options(retry=ONCE)):
        with pytest.raises(WaitTooLongError):
            await create(each, plaid)
    assert plaid.counts[CREATE] == 1


async def test_a_pause_of_other_credentials_is_not_shared(plaid, client, other):
    """A 429 for one set of credentials doesn't hold back another, whichever the original has."""
    plaid.fail(PAUSE)
    with pytest.raises(RateLimitError):
        await create(client.with_options(retry=ONCE), plaid)
    assert await create(other, plaid)
    assert await create(client.with_options(credentials=PARTNER), plaid)
    plaid.fail(PAUSE)
    with pytest.raises(RateLimitError):
        await create(other.with_options(retry=ONCE), plaid)
    with pytest.raises(WaitTooLongError):
        await create(other.with_options(timeouts=Timeouts(total=1.0)), plaid)
    assert await create(client.with_options(credentials=PARTNER), plaid)


async def test_rates_of_other_credentials_are_not_shared(plaid, client, other):
    """A rate that a 429 has limited applies to the clients with the same credentials."""
    await create(client, plaid)
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    await create(client, plaid)
    rates = client.statistics().rates
    assert rates.keys() == {CREATE}
    assert client.with_options(retry=ONCE).statistics().rates == rates
    await create(other, plaid)
    assert other.statistics().rates == {}


async def test_a_batch_of_one_does_not_wait_for_the_pause_of_another(plaid, client, other):
    """While a batch waits for a pause, a batch with other credentials ends."""
    report = plaid.add_report()
    plaid.fail(PAUSE)
    paused = client.relay.create_many(RelayCreateRequest.fan_out([report], ["a", "b", "c"]), concurrency=1)
    task = asyncio.ensure_future(paused)
    await wait_until_async(lambda: client.statistics().retries)
    result = await other.relay.create_many(RelayCreateRequest.fan_out([report], ["d", "e"]))
    assert len(result.created) == 2
    paused.abandon()
    await task
    assert {entry["secondary_client_id"] for entry in plaid.ledger} == {"d", "e"}


async def test_rate_limiters(plaid):
    """The rate limiter belongs to the credentials: others have their own, or none."""
    limiter, of_others = CountingLimiter(), CountingLimiter()
    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=limiter) as client:
        await create(client, plaid)
        await create(client.with_options(retry=ONCE), plaid)
        assert limiter.count == 2
        await create(client.with_options(credentials=PARTNER), plaid)
        limited = client.with_options(credentials=PARTNER, rate_limiter=of_others)
        await create(limited.with_options(retry=ONCE), plaid)
        assert (limiter.count, of_others.count) == (2, 1)


# ----------------------------------------------------------------------------------------- settings


async def test_timeouts_and_retries(plaid, client):
    """Each client has its own timeouts and retry policy; what isn't passed is that of the client it comes from."""
    plaid.fail(Fault(path=GET, stall=60, times=1))
    impatient = client.with_options(timeouts=Timeouts(slow_read=0.05), retry=ONCE)
    with pytest.raises(ReadTimeoutError) as caught:
        await impatient.relay.get("token")
    assert caught.value.attempts == 1
    plaid.fail(Fault(path=GET, stall=60, times=2), Fault(path=GET, status=500, times=9))
    retrying = impatient.with_options(retry=RetryPolicy(attempts=2, backoff=0.001))
    with pytest.raises(ReadTimeoutError) as caught:
        await retrying.with_options(credentials=PARTNER).relay.get("token")
    assert caught.value.attempts == 2
    with pytest.raises(Exception, match="500") as caught:  # the original still has four attempts
        await client.relay.get("token")
    assert caught.value.attempts == 4


async def test_the_drain_is_that_of_the_client(plaid, client):
    """A call that is cancelled waits for its response for the drain timeout of its own client."""
    plaid.fail(Fault(path=CREATE, stall=60))
    hasty = client.with_options(timeouts=Timeouts(drain=0.05))
    tasks = [
        asyncio.ensure_future(hasty.relay.create(["t"], "p")),
        asyncio.ensure_future(hasty.relay.create_many([RelayCreateRequest(["t"], "q")])),
    ]
    await wait_until_async(lambda: plaid.counts[CREATE] == 2)
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(9):  # the drain of the original takes ten seconds
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_callbacks_and_counters_are_shared(plaid):
    """The callbacks receive the calls of all clients, and the counters count them."""
    retries: list[Any] = []
    ends: list[Any] = []
    attempts: list[Any] = []
    async with RelayClient(
        OWNER,
        base_url=plaid.url,
        retry=RetryPolicy(backoff=0.001),
        on_retry=retries.append,
        on_call_end=ends.append,
        on_attempt=attempts.append,
    ) as client:
        other = client.with_options(credentials=PARTNER)
        plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=1))
        await create(other, plaid)
        await create(client, plaid)
        statistics = client.statistics()
    assert (len(retries), len(ends), len(attempts)) == (1, 2, 3)
    assert statistics.outcomes == {"succeeded": 2}
    assert statistics.attempts == {"declined": 1, "definitive": 2}


@pytest.mark.may_block  # SQLAlchemy's own
async def test_a_journal_distinguishes_the_credentials(plaid, client, other, tmp_path):
    """In one journal, the same report and partner are another pair for other credentials."""
    async with Journal(str(tmp_path / "relay.db"), run="x") as journal:
        report = plaid.add_report()
        own = await client.relay.create([report], "p", journal=journal)
        again = await client.with_options(retry=ONCE).relay.create([report], "p", journal=journal)
        assert again.relay_token == own.relay_token
        result = await other.relay.create_many([RelayCreateRequest([report], "p")], journal=journal)
    assert [type(each) for each in result.succeeded] == [Created]
    assert result.created[0].relay_token != own.relay_token
    assert len(plaid.ledger) == 2


# ----------------------------------------------------------------------------------------- life cycle


async def test_the_pool_belongs_to_the_original(plaid):
    """A client of `with_options` can be used while the original is open, and isn't opened or closed itself."""
    original = RelayClient(OWNER, base_url=plaid.url)
    derived = original.with_options(credentials=PARTNER).with_options(retry=ONCE)
    with pytest.raises(ClientClosedError, match="not open yet"):
        await derived.relay.remove("t")
    for misuse in (derived.open, derived.close, derived.__aenter__):
        with pytest.raises(
            ClientClosedError, match=r"shares the connections.*whose `with_options` returned it"
        ):
            await misuse()
    async with original:
        with pytest.raises(ClientClosedError, match="shares the connections"):
            await derived.close()
        assert await create(derived, plaid)
        with pytest.raises(ClientClosedError, match="shares the connections"):
            await derived.open()
    with pytest.raises(ClientClosedError, match="this client is closed"):
        await derived.relay.remove("t")
    with pytest.raises(ClientClosedError, match="this client is closed"):
        await original.with_options(retry=ONCE).relay.remove("t")
    result = await derived.relay.create_many([RelayCreateRequest(["t"], "p")])
    assert [type(failed.error) for failed in result.failed] == [ClientClosedError]


async def hang(*_: object) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("options", "fault", "waits"),
    [
        ({"rate_limiter": ClosedLimiter()}, None, lambda numbers: numbers.queued == 2),
        ({"credentials": hang}, None, lambda numbers: True),
        (
            {"retry": RetryPolicy(backoff=100.0, max_backoff=100.0, max_pause=1e6)},
            Fault(path=GET, status=500),
            lambda numbers: sum(numbers.retries.values()) == 2,
        ),
        ({}, Fault(path=GET, status=429, headers={"Retry-After": "60"}), lambda numbers: numbers.queued == 2),
        ({}, Fault(path=GET, stall=60), lambda numbers: numbers.in_flight == 2),
    ],
    ids=["limiter", "credentials", "backoff", "pause", "in flight"],
)
async def test_closing_the_original_ends_the_calls_of_all(plaid, options, fault, waits):
    """Calls of other credentials end as those of the original do, whatever they wait for."""
    if fault is not None:
        plaid.fail(fault)
    client = RelayClient(OWNER, base_url=plaid.url)
    await client.open()
    tasks = [
        asyncio.ensure_future(client.with_options(**{"credentials": PARTNER} | options).relay.get("token"))
        for _ in range(2)
    ]
    gc.collect()  # only their calls keep the clients
    await asyncio.sleep(0.01)
    await wait_until_async(lambda: waits(client.statistics()))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await client.close()
        await asyncio.wait(tasks)
    assert {type(task.exception()).__name__ for task in tasks} <= {"ClientClosedError", "ConnectionLostError"}


async def test_closing_the_original_waits_for_the_drains_of_all(plaid):
    """A call with other credentials that was cancelled loses no token when the original is closed."""
    late: list[LateOutcome] = []
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    async with RelayClient(OWNER, base_url=plaid.url, on_late_outcome=late.append) as client:
        other = client.with_options(credentials=PARTNER)
        batch = other.relay.create_many([RelayCreateRequest([plaid.add_report()], "in-a-batch")])
        tasks = [asyncio.ensure_future(create(other, plaid)), asyncio.ensure_future(batch)]
        await wait_until_async(lambda: plaid.counts[CREATE] == 2)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait(tasks)
    assert {late[0].relay_token, batch.result.created[0].relay_token} == {
        entry["relay_token"] for entry in plaid.ledger
    }


async def test_closing_the_original_leaves_a_creation_of_another_unknown(plaid):
    """A creation in flight without a drain is aborted, and its outcome is unknown."""
    plaid.fail(Fault(path=CREATE, stall=60))
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        task = asyncio.ensure_future(create(client.with_options(credentials=PARTNER), plaid))
        await wait_until_async(lambda: plaid.counts[CREATE] == 1)
    with pytest.raises(OutcomeUnknownError):
        await task


async def test_a_client_is_freed_with_its_credentials(plaid, client):
    """The original keeps no client of `with_options`, so a service may create one for each of its customers."""
    derived = client.with_options(credentials=PARTNER)
    await create(derived, plaid)
    references = [weakref.ref(derived), weakref.ref(derived.relay), weakref.ref(derived._transport)]
    del derived
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert session_of(client).is_open


def test_a_subclass_keeps_its_class_and_attributes():
    """The client of a subclass is one of the same subclass."""

    class TenantClient(RelayClient):
        def __init__(self, tenant: str) -> None:
            super().__init__(OWNER)
            self.tenant = tenant

    derived = TenantClient("a").with_options(credentials=PARTNER)
    assert (type(derived), derived.tenant) == (TenantClient, "a")


# --------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timeouts": 3}, "timeouts must be a Timeouts, not int"),
        ({"timeouts": 0}, "timeouts must be a Timeouts, not int"),
        ({"retry": "canary-retry"}, "retry must be a RetryPolicy, not str"),
        ({"credentials": "canary-secret"}, "must be Credentials, or an async callable"),
        ({"credentials": ("canary-id", "canary-secret")}, "must be Credentials, or an async callable"),
        ({"rate_limiter": CountingLimiter()}, "rate_limiter= needs credentials="),
        ({"credentials": PARTNER, "rate_limiter": 3}, "rate_limiter must have a method"),
    ],
)
def test_invalid_options(options, problem):
    """Each is a ConfigurationError, which shows no secret."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        RelayClient(OWNER).with_options(**options)
    assert_error_is_clean(caught.value)


def test_other_credentials_with_a_gateway_key():
    """A gateway adds the credentials, so a client with its key accepts no others; other settings it does."""
    client = RelayClient(gateway_key="canary-key", base_url="https://gateway.example")
    with pytest.raises(ConfigurationError, match="the gateway adds the credentials") as caught:
        client.with_options(credentials=CREDENTIALS)
    assert_error_is_clean(caught.value)
    assert client.with_options(retry=ONCE)


def test_a_repr_shows_no_secret():
    """It is the repr of the original."""
    client = RelayClient(OWNER).with_options(credentials=CREDENTIALS)
    assert repr(client) == "<RelayClient for https://sandbox.plaid.com>"
    assert_no_canary(repr(vars(client)))
