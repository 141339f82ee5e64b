"""Clients that are cancelled at every point, closed, shut down and forked: nothing leaks, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from urllib.parse import urlsplit

import pytest
from cancel_points import CancelPoint
from fault_proxy import PASS, FaultProxy
from otel_support import OpenSpans
from support import CREATE, OWNER, QUICK, python_process, session_of, timeout_when

from plaid_relay_async import (
    ClientClosedError,
    ConnectionLostError,
    Created,
    Credentials,
    Failed,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    Telemetry,
    Timeouts,
    Unknown,
)
from plaid_relay_async.simulator import Fault
from plaid_relay_async.webhooks import IncomingWebhook, MemoryInbox

CONNECTIONS = 2
SPANS = OpenSpans()


async def credentials() -> Credentials:
    """Return credentials after a wait, as a vault does."""
    await asyncio.sleep(0)
    return OWNER


class Limiter:
    """A rate limiter that waits for one iteration of the event loop."""

    async def acquire(self, endpoint: str) -> None:
        await asyncio.sleep(0)


def open_client(plaid, **more) -> RelayClient:
    timeouts = Timeouts(drain=2)
    return RelayClient(
        credentials,
        **{
            "base_url": plaid.url,
            "timeouts": timeouts,
            "retry": QUICK,
            "rate_limiter": Limiter(),
            "connections": CONNECTIONS,
            "telemetry": Telemetry(tracer_provider=SPANS.tracer_provider),
        }
        | more,
    )


async def wait_until_done(tasks) -> None:
    """Wait for tasks that end by themselves: threads, and connections that are being closed."""
    async with asyncio.timeout(60):
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.001)


def assert_no_leaks(client: RelayClient) -> None:
    assert session_of(client).slots._value == CONNECTIONS
    assert not session_of(client).exchange.connector._acquired
    statistics = client.statistics()
    assert (statistics.in_flight, statistics.queued) == (0, 0)
    SPANS.assert_none()


# ---------------------------------------------------------------------------- cancelled at every point


async def create(client, token, path):
    return await client.relay.create([token], "partner")


async def get(client, token, path):
    return await client.relay.get(token)


async def get_with_options(client, token, path):
    other = client.with_options(credentials=credentials, rate_limiter=Limiter())
    return await other.relay.get(token)


async def remove(client, token, path):
    return await client.relay.remove(token)


async def download(client, token, path):
    return await client.relay.download_pdf(token, path)


async def wait_for_report(client, token, path):
    inbox = MemoryInbox()
    body = b'{"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "asset_report_id": "1"}'
    await inbox.add(IncomingWebhook(body, sent_at=0.0))  # so that no pause takes a second
    return await client.relay.wait_until_ready(token, inbox=inbox, asset_report_id="1")


FAULTS = {
    "none": [],
    "declined": [Fault(status=429, headers={"Retry-After": "0.002"}, times=1)],
    "lost": [Fault(close=True, when="after", times=1)],
    "cut": [Fault(truncate=90, times=1)],
}


async def cancel_at_every_point(plaid, run, check, *, faults, late, warm, all_tasks=False):
    """Run a coroutine again and again, cancelled one point later each time, until it ends before that point."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in itertools.count(1):
            client = await stack.enter_async_context(open_client(plaid))
            clients.append(client)
            if warm:
                await client.relay.create([plaid.add_report()], f"warms-{number}")
            cancel_point = CancelPoint(number, late, all_tasks)
            point = await run_once(plaid, client, await run(client), faults, cancel_point)
            await check(point)
            assert_no_leaks(client)
            if not point.reached:
                break
        assert len(clients) > 3
        # The calls run concurrently, because the pause may last for a second.
        async with asyncio.timeout(60):
            await asyncio.gather(*[await run(client) for client in clients])
        for client in clients:
            assert_no_leaks(client)


async def run_once(plaid, client, work, faults, point) -> CancelPoint:
    plaid.fail(*faults)
    task = point.start(work)
    await asyncio.wait([task], timeout=60)
    assert task.done(), f"cancelled at its point {point.number}, it hangs"
    plaid.clear_faults()
    await wait_until_done(point.tasks)
    return point


def in_each_way(test):
    """Parametrize a test: cancelled before or after the awaited event, with an open connection or without, and faults."""
    for decorate in (
        pytest.mark.parametrize("late", [False, True], ids=["early", "late"]),
        pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"]),
        pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS),
    ):
        test = decorate(test)
    return test


@in_each_way
@pytest.mark.parametrize("call", [create, get, get_with_options, remove, download, wait_for_report])
async def test_a_call_that_is_cancelled_at_any_point_leaks_nothing(
    plaid, client, tmp_path, call, faults, late, warm
):
    """No connection, slot, ticket, task or file remains, and the next call succeeds."""
    names = (f"{number}.pdf" for number in itertools.count())

    async def run(under_test):
        report = plaid.add_report()
        created = await client.relay.create([report], OWNER.client_id)
        return call(under_test, report if call is create else created.relay_token, tmp_path / next(names))

    async def check(point):
        task = point.tasks[0]
        assert task.cancelled() or not point.reached
        if not task.cancelled() and task.exception() is not None:
            assert (call, faults) == (create, FAULTS["lost"])
            assert isinstance(task.exception(), OutcomeUnknownError)
        for path in tmp_path.iterdir():
            assert path.suffix == ".pdf"
            assert b"%%EOF" in path.read_bytes()

    await cancel_at_every_point(plaid, run, check, faults=faults, late=late, warm=warm)


@in_each_way
@pytest.mark.parametrize("all_tasks", [False, True], ids=["batch", "loop"])
async def test_a_batch_that_is_cancelled_at_any_point_accounts_for_its_request(
    plaid, faults, late, warm, all_tasks
):
    """The request wasn't read, or has an outcome that agrees with the ledger, also if all tasks are cancelled."""
    batches, partners = [], (f"partner-{number}" for number in itertools.count())

    async def run(under_test):
        request = RelayCreateRequest([plaid.add_report()], next(partners))
        rows = iter([request])
        batches.append((under_test.relay.create_many(rows, concurrency=1), request, rows))
        return collect(batches[-1][0])

    async def check(point):
        batch, request, rows = batches[-1]
        result = batch.result
        outcomes = [*result.created, *result.failed, *result.unknown]
        assert [*(o.request for o in outcomes), *result.not_attempted, *rows] == [request]
        tokens = [
            e["relay_token"] for e in plaid.ledger if e["secondary_client_id"] == request.secondary_client_id
        ]
        match outcomes:
            case [Created(relay_token=token)]:
                assert tokens == [token]
            case [Unknown()]:
                assert len(tokens) <= 1
            case _:
                assert tokens == []

    await cancel_at_every_point(plaid, run, check, faults=faults, late=late, warm=warm, all_tasks=all_tasks)


async def collect(batch):
    return await batch


# ------------------------------------------------------------------------------- tasks, groups and timeouts


async def test_a_timeout_around_a_call_leaves_the_task_usable(plaid):
    """`asyncio.timeout` raises its TimeoutError, and the same task continues to make calls."""
    async with open_client(plaid) as client:
        created = await client.relay.create([plaid.add_report()], OWNER.client_id)
        for call in (
            lambda: client.relay.create([plaid.add_report()], "partner"),
            lambda: client.relay.get(created.relay_token),
            lambda: client.relay.remove(created.relay_token),
        ):
            plaid.fail(Fault(stall=30, times=1))
            sent = len(plaid.requests)
            with pytest.raises(TimeoutError):
                async with timeout_when(lambda: len(plaid.requests) > sent):  # noqa: B023
                    await call()
            assert asyncio.current_task().cancelling() == 0
            await call()
        assert_no_leaks(client)


async def fail_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ZeroDivisionError


@pytest.mark.parametrize("moment", [0, 0.001, 0.004, 0.02])
async def test_a_failing_task_of_a_group_cancels_calls_and_batches(plaid, moment):
    """A failing task of the same group cancels them; the batch has the outcomes that it received."""
    plaid.fail(Fault(path=CREATE, latency=0.01))
    async with open_client(plaid) as client:
        batch = client.relay.create_many(
            RelayCreateRequest.fan_out([plaid.add_report()], [f"partner-{n}" for n in range(500)])
        )
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(collect(batch))
                for number in range(5):
                    group.create_task(create(client, plaid.add_report(), None), name=f"single-{number}")
                group.create_task(fail_after(moment))
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert_no_leaks(client)
        plaid.clear_faults()
        await create(client, plaid.add_report(), None)
    assert batch.result.unknown == []  # the drain was long enough
    entries = [e for e in plaid.ledger if e["secondary_client_id"].startswith("partner-")]
    assert {e["relay_token"] for e in entries} == {created.relay_token for created in batch.result.created}


async def test_a_cancelled_call_does_not_cancel_the_credentials_of_others(plaid):
    """Calls that share one task that fetches credentials don't share a cancellation."""
    fetching: list[asyncio.Task] = []

    async def fetch() -> Credentials:
        await asyncio.sleep(0.01)
        return OWNER

    async def shared() -> Credentials:
        if not fetching or fetching[-1].done():
            fetching.append(asyncio.create_task(fetch()))
        return await fetching[-1]

    async with RelayClient(shared, base_url=plaid.url, retry=QUICK) as client:
        one, other = (asyncio.create_task(create(client, plaid.add_report(), None)) for _ in range(2))
        while not fetching:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        one.cancel()
        assert (await other).relay_token == plaid.ledger[0]["relay_token"]
        assert one.cancelled()
    assert (len(fetching), len(plaid.ledger)) == (2, 1)


# ------------------------------------------------------------------------------------------- the input


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_is_closed_by_its_owner_ends_the_batch(plaid, client, asynchronous):
    """A generator that is closed during the batch yields nothing more; requests that were read have outcomes."""

    def rows():
        yield from RelayCreateRequest.fan_out([plaid.add_report()], [f"partner-{n}" for n in range(50)])

    async def later():
        for row in rows():
            yield row

    source, seen = later() if asynchronous else rows(), 0
    async with client.relay.create_many(source, concurrency=1) as outcomes:
        async for _ in outcomes:
            seen += 1
            if seen == 5:
                await asyncio.sleep(0.02)  # the batch has no capacity left, so no task reads the input
                await source.aclose() if asynchronous else source.close()
    assert 5 <= seen == len(plaid.ledger) < 10


# ------------------------------------------------------------------------- closed while it is in flight


async def test_the_errors_of_calls_whose_client_is_closed(plaid):
    """A creation that was sent is unknown and a read is lost; queued calls were never sent."""
    plaid.fail(Fault(stall=30, when="after"))
    async with open_client(plaid) as client:
        sent = [
            asyncio.create_task(create(client, plaid.add_report(), None)),
            asyncio.create_task(get(client, "t", None)),
        ]
        while plaid.counts.total() < CONNECTIONS:
            await asyncio.sleep(0.001)
        queued = [asyncio.create_task(create(client, plaid.add_report(), None)) for _ in range(5)]
        await asyncio.sleep(0.01)
    async with asyncio.timeout(60):
        creation, read, *never = await asyncio.gather(*sent, *queued, return_exceptions=True)
    assert isinstance(creation, OutcomeUnknownError)
    assert isinstance(read, ClientClosedError | ConnectionLostError)
    assert {type(error) for error in never} == {ClientClosedError}
    assert {error.sent for error in never} == {False}
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_batch_whose_client_is_closed_ends(plaid, streamed):
    """Requests in flight are unknown, and the others aren't sent."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    rows = RelayCreateRequest.fan_out([plaid.add_report()], [f"partner-{n}" for n in range(100)])
    async with open_client(plaid) as client:
        batch, seen = client.relay.create_many(rows, concurrency=10), []
        running = asyncio.create_task(stream(batch, seen) if streamed else collect(batch))
        while len(plaid.ledger) < CONNECTIONS:
            await asyncio.sleep(0.001)
    async with asyncio.timeout(60):
        await running
    outcomes = [*seen, *batch.result.unknown, *batch.result.failed]
    unknown = {o.request.secondary_client_id for o in outcomes if isinstance(o, Unknown)}
    assert unknown == {entry["secondary_client_id"] for entry in plaid.ledger}
    assert {type(o.error) for o in outcomes if isinstance(o, Failed)} == {ClientClosedError}
    assert batch.result.created == []


async def stream(batch, seen) -> None:
    async with batch as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)


# --------------------------------------------------------------------------- the loop's and the process's end


IN_FLIGHT = """
import asyncio, logging, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest

logging.basicConfig(format="%(message)s")
_, url, path, how = sys.argv

def rows(name):
    return RelayCreateRequest.fan_out(["report"], [f"{name}-{n}" for n in range(100)])

async def collect(batch):
    try:
        await batch
    finally:
        print(batch.result)

async def stream(batch):
    async with batch as outcomes:
        async for outcome in outcomes:
            pass

async def use(client):
    async with asyncio.TaskGroup() as group:
        group.create_task(client.relay.create(["report"], "single"))
        group.create_task(client.relay.get("token"))
        group.create_task(client.relay.download_pdf("token", path))
        group.create_task(stream(client.relay.create_many(rows("streamed"), concurrency=5)))
        group.create_task(collect(client.relay.create_many(rows("awaited"), concurrency=5)))

async def closes(client):
    async with client:
        await use(client)

async def forgets(client):
    await client.open()
    await use(client)

async def main():
    using = asyncio.create_task(globals()[how](RelayClient(Credentials("owner", "secret"), base_url=url)))
    await asyncio.to_thread(sys.stdin.readline)
    assert not using.done()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["closes", "forgets"])
async def test_a_loop_that_ends_with_calls_in_flight_ends_quietly(plaid, tmp_path, how):
    """`asyncio.run` cancels them: no task or file remains, and the output has only unknown outcomes and a missing `close`."""
    plaid.add_report("report")
    plaid.fail(Fault(stall=30, when="after"))
    async with (
        python_process(IN_FLIGHT, plaid.url, str(tmp_path / "report.pdf"), how) as running,
        asyncio.timeout(30),
    ):
        while plaid.counts.total() < 13:
            await asyncio.sleep(0.01)
        output, _ = await running.communicate(b"\n")
    lines = output.decode().splitlines()
    assert lines.count("<BatchResult succeeded=0, failed=0, unknown=5, not_attempted=0>") == 1
    assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []
    logged = [line for line in lines if line.startswith(("call_end: ", "late_outcome: "))]
    assert all("outcome=unknown" in line for line in logged)
    assert [line.partition(":")[0] for line in logged if "partner=single" in line] == ["call_end"]
    assert len(logged) == 1 + 5 + 5
    if how == "closes":
        assert len(lines) == 1 + len(logged)
    else:
        assert sum("ResourceWarning: a RelayClient was never closed" in line for line in lines) == 1
        for noise in (
            "Task was destroyed",
            "never retrieved",
            "never awaited",
            "Exception ignored",
            "Traceback",
        ):
            assert noise not in output.decode()


FORKED = """
import asyncio, os, sys
from plaid_relay_async import ClientClosedError, Credentials, RelayClient

_, url, way = sys.argv
client = RelayClient(Credentials("owner", "secret"), base_url=url)

def share(partner):
    return client.relay.create(["report"], partner)

def child():
    try:
        asyncio.run(share("of-the-child"))
    except ClientClosedError as error:
        print(error, flush=True)
    if way == "closes":
        asyncio.run(client.close())

with asyncio.Runner() as runner:
    runner.run(client.open())
    runner.run(share("before"))
    if (number := os.fork()) == 0:
        child()
        os._exit(0)
    os.waitpid(number, 0)
    runner.run(share("after"))
    runner.run(client.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("way", ["closes", "forgets"])
async def test_a_forked_child_cannot_use_its_parents_client(plaid, way):
    """The child gets an error, and the parent continues with the same connection."""
    plaid.add_report("report")
    async with FaultProxy(urlsplit(plaid.url).port, lambda: PASS) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        async with python_process(FORKED, url, way) as running, asyncio.timeout(30):
            output, _ = await running.communicate()
    (line,) = output.decode().splitlines()
    assert "another process" in line
    assert running.returncode == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["before", "after"]
    assert proxy.accepted == 1
