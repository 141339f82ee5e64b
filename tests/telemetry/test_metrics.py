"""Metrics: what the instruments measure, and with which attributes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import NoOpTracerProvider
from processes import wait_until_async
from support import CREATE, GET, PARTNER, QUICK, throttle_of

from plaid_relay_async import PlaidRelayError, RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault
from plaid_relay_async.telemetry.otel import OpenTelemetry, instruments_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

REQUESTS, CALLS = "http.client.request.duration", "plaid.client.call.duration"
RETRIES, WAITS = "plaid.client.retries", "plaid.client.admission.wait"
IN_FLIGHT, RATE = "plaid.client.attempts.in_flight", "plaid.client.rate"


async def test_operations_and_requests(plaid, recording):
    """Calls are counted by outcome and class of error, requests by status, and retries by class of error."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "0"}),
        Fault(path=CREATE, secondary_client_id="lost", close=True, when="after"),
        Fault(path=GET, status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}),
    )
    report = plaid.add_report()
    async with recording.client(plaid) as client:
        await client.relay.create([report], "p")
        for call in (client.relay.create([report], "lost"), client.relay.get("token")):
            with contextlib.suppress(PlaidRelayError):
                await call
    address = (plaid.url.rpartition(":")[0].removeprefix("http://"), int(plaid.url.rpartition(":")[2]))
    assert recording.counts(CALLS) == {
        (CREATE, "succeeded"): 1,
        ("OutcomeUnknownError", CREATE, "unknown"): 1,
        ("InvalidRequestError", GET, "failed"): 1,
    }
    assert recording.counts(REQUESTS) == {
        ("429", "POST", 429, *address): 1,
        ("POST", 200, *address): 1,
        ("OutcomeUnknownError", "POST", *address): 1,
        ("400", "POST", 400, *address): 1,
    }
    assert {values: point.value for values, point in recording.points(RETRIES).items()} == {
        ("RateLimitError", CREATE): 1
    }
    assert recording.counts(WAITS) == {(CREATE,): 3, (GET,): 1}


async def test_units_and_boundaries(plaid, recording):
    """Durations are in seconds, with boundaries up to two minutes."""
    async with recording.client(plaid) as client:
        await client.relay.create([plaid.add_report()], "p")
    for name in (REQUESTS, CALLS, WAITS):
        (point,) = recording.points(name).values()
        assert recording.metrics[name].unit == "s"
        assert point.explicit_bounds[:2] == (0.005, 0.01)
        assert point.explicit_bounds[-1] == 120


async def test_no_attribute_has_an_identifier(plaid, recording):
    """The number of series doesn't grow with the number of partners."""
    requests = RelayCreateRequest.fan_out([plaid.add_report()], ["partner-1", "partner-2"])
    async with recording.client(plaid) as client:
        await client.relay.create_many(requests)
    for name, metric in recording.metrics.items():
        assert len(metric.data.data_points) == 1, name


async def test_attempts_in_flight(plaid, recording):
    """An attempt is in flight until its response has arrived."""
    plaid.fail(Fault(path=GET, stall=60))
    async with recording.client(plaid) as client:
        calls = [asyncio.create_task(client.relay.get("token")) for _ in range(2)]
        await wait_until_async(lambda: plaid.counts[GET] == 2)
        assert recording.points(IN_FLIGHT)[GET,].value == 2
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert recording.points(IN_FLIGHT)[GET,].value == 0


async def test_the_wait_for_an_admission(plaid, recording):
    """The wait for a rate limiter is part of it."""

    class Slow:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.sleep(0.05)

    async with recording.client(plaid, rate_limiter=Slow()) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert recording.points(WAITS)[CREATE,].sum >= 0.05


async def test_rates(plaid, recording):
    """Operations with an adaptive rate have a measurement, the sum of those of all clients and credentials."""
    async with recording.client(plaid) as one, recording.client(plaid) as other:
        for client in (one, other):
            await client.relay.create([plaid.add_report()], "p")
        assert RATE not in recording.metrics
        for client, rate in ((one, 5.0), (other, 7.5)):
            throttle_of(client, CREATE).rate.per_second = rate
        same, another = one.with_options(retry=QUICK), one.with_options(credentials=PARTNER)
        for client in (same, another):
            await client.relay.create([plaid.add_report()], "p")
        throttle_of(another, CREATE).rate.per_second = 30.0
        assert {values: point.value for values, point in recording.points(RATE).items()} == {(CREATE,): 42.5}


async def test_metrics_without_traces(plaid, recording):
    """The two providers are independent of each other."""
    telemetry = recording.telemetry(tracer_provider=NoOpTracerProvider())
    async with recording.client(plaid, telemetry=telemetry) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert recording.spans == []
    assert recording.counts(CALLS) == {(CREATE, "succeeded"): 1}


async def test_a_closed_client_is_not_kept(plaid, recording):
    """The observable instrument has no strong reference to a client."""
    client = recording.client(plaid)
    async with client:
        await client.relay.create([plaid.add_report()], "p")
    gone = weakref.ref(client._transport)
    del client
    gc.collect()
    assert gone() is None


class MeetingProvider(MeterProvider):
    """Two threads meet in its `get_meter`, unless only one comes."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2)

    def get_meter(self, *args: Any, **options: Any) -> Meter:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meeting.wait(0.2)
        return super().get_meter(*args, **options)


@pytest.mark.may_block
def test_threads_share_the_instruments():
    """The clients of several threads don't create an instrument twice."""
    provider = MeetingProvider()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(instruments_of, [provider] * 2)
    assert one is other
    provider.shutdown()


def test_rates_are_read_while_clients_are_created(recording, caplog):
    """A reader of metrics has a thread of its own, and no change interrupts it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(2) as threads:
        done = threads.submit(lambda: [recording.metrics for _ in range(300)])
        while not done.done():
            client = OpenTelemetry(recording.telemetry(), "http://localhost")
            assert client.is_active()
    sys.setswitchinterval(interval)
    assert done.result()
    assert "Callback failed" not in caplog.text


async def test_no_metrics_without_a_provider(plaid, recording):
    """A client with only a tracer provider measures nothing, because the global meter provider isn't set."""
    plaid.fail(Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "0"}))
    async with recording.client(plaid, telemetry=recording.telemetry(meter_provider=None)) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert recording.metrics == {}
    assert len(recording.spans) == 3


@pytest.mark.may_block
async def test_the_commits_of_a_journal(plaid, client, recording, tmp_path):
    """Each transaction that writes intents or outcomes is measured, if there is a provider."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", telemetry=recording.telemetry()) as journal:
        await client.relay.create([report], "p", journal=journal)
    ((values, count),) = recording.counts("plaid.journal.commit.duration").items()
    assert (values, count) == ((), 2)
    async with Journal(tmp_path / "relay.db") as journal:
        await client.relay.create([report], "q", journal=journal)
    assert recording.counts("plaid.journal.commit.duration") == {(): 2}
