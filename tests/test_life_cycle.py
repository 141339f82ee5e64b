"""Cancelled at every point, closed, shut down and forked: nothing stays behind, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os

import pytest
from cancel_points import CancelPoint
from support import OWNER, QUICK, python_process, timeout_when

from plaid_relay_async import (
    ClientClosedError,
    ConnectionLostError,
    Created,
    Credentials,
    Failed,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
    Unknown,
)
from plaid_relay_async.simulator import Fault

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"
CONNECTIONS = 2


async def credentials() -> Credentials:
    """A vault that takes a moment."""
    await asyncio.sleep(0)
    return OWNER


class Limiter:
    """One that takes a moment, too, and counts whom it has let through."""

    async def acquire(self, endpoint: str) -> None:
        await asyncio.sleep(0)


def opened(plaid, **more) -> RelayClient:
    timeouts = Timeouts(drain=2)
    return RelayClient(
        credentials,
        **{
            "base_url": plaid.url,
            "timeouts": timeouts,
            "retry": QUICK,
            "rate_limiter": Limiter(),
            "connections": CONNECTIONS,
        }
        | more,
    )


async def settled(tasks) -> None:
    """Wait for what ends by itself: a thread at work, or a connection that is being closed."""
    async with asyncio.timeout(60):
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.001)


def assert_nothing_is_held(client: RelayClient) -> None:
    assert client._session.slots._value == CONNECTIONS
    assert not client._session._session.connector._acquired
    numbers = client.statistics()
    assert (numbers.in_flight, numbers.queued) == (0, 0)


# ---------------------------------------------------------------------------- cancelled at every point


async def create(client, token, path):
    return await client.relay.create([token], "partner")


async def get(client, token, path):
    return await client.relay.get(token)


async def remove(client, token, path):
    return await client.relay.remove(token)


async def download(client, token, path):
    return await client.relay.download_pdf(token, path)


FAULTS = {
    "well": [],
    "refused": [Fault(status=429, headers={"Retry-After": "0.002"}, times=1)],
    "lost": [Fault(close=True, when="after", times=1)],
    "cut": [Fault(truncate=90, times=1)],
}


async def every_moment(plaid, run, check, *, faults, late, warm, whole=False):
    """Run it again and again, cancelled one point later each time, until it ends before that."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in itertools.count(1):
            client = await stack.enter_async_context(opened(plaid))
            clients.append(client)
            if warm:
                await client.relay.create([plaid.add_report()], f"warms-{number}")
            watch = await once(plaid, client, await run(client), faults, CancelPoint(number, late, whole))
            await check(watch)
            assert_nothing_is_held(client)
            if not watch.reached:
                break
        assert len(clients) > 3
        # All at once, for the pause may be over only after a second.
        async with asyncio.timeout(60):
            await asyncio.gather(*[await run(client) for client in clients])
        for client in clients:
            assert_nothing_is_held(client)


async def once(plaid, client, work, faults, watch) -> CancelPoint:
    plaid.fail(*faults)
    task = watch.start(work)
    await asyncio.wait([task], timeout=60)
    assert task.done(), f"cancelled at its point {watch.strike_at}, it hangs"
    plaid.clear_faults()
    await settled(watch.tasks)
    return watch


def each_way(test):
    """With the cancellation before or behind what was waited for, and with an open connection or without."""
    for decorate in (
        pytest.mark.parametrize("late", [False, True], ids=["early", "late"]),
        pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"]),
        pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS),
    ):
        test = decorate(test)
    return test


@each_way
@pytest.mark.parametrize("call", [create, get, remove, download])
async def test_a_call_that_is_cancelled_at_any_point_leaves_nothing_behind(
    plaid, client, tmp_path, call, faults, late, warm
):
    """No connection, slot, place in line, task or file is kept, and the next call goes through."""
    names = (f"{number}.pdf" for number in itertools.count())

    async def run(under_test):
        report = plaid.add_report()
        made = await client.relay.create([report], OWNER.client_id)
        return call(under_test, report if call is create else made.relay_token, tmp_path / next(names))

    async def check(watch):
        task = watch.tasks[0]
        assert task.cancelled() or not watch.struck
        if not task.cancelled() and task.exception() is not None:
            assert (call, faults) == (create, FAULTS["lost"])
            assert isinstance(task.exception(), OutcomeUnknownError)
        for path in tmp_path.iterdir():
            assert path.suffix == ".pdf"
            assert b"%%EOF" in path.read_bytes()

    await every_moment(plaid, run, check, faults=faults, late=late, warm=warm)


@each_way
@pytest.mark.parametrize("whole", [False, True], ids=["batch", "loop"])
async def test_a_batch_that_is_cancelled_at_any_point_accounts_for_its_request(
    plaid, faults, late, warm, whole
):
    """Wherever it is, and whether the batch is cancelled or the whole loop is: its request wasn't taken, or has an outcome that agrees with the ledger."""
    batches, partners = [], (f"partner-{number}" for number in itertools.count())

    async def run(under_test):
        request = RelayCreateRequest([plaid.add_report()], next(partners))
        rows = iter([request])
        batches.append((under_test.relay.create_many(rows, concurrency=1), request, rows))
        return collect(batches[-1][0])

    async def check(watch):
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

    await every_moment(plaid, run, check, faults=faults, late=late, warm=warm, whole=whole)


async def collect(batch):
    return await batch


# ------------------------------------------------------------------------------------ what is beside it


async def test_a_call_within_a_timeout_leaves_its_task_as_it_was(plaid):
    """`asyncio.timeout` gets its TimeoutError, and the same task goes on to make calls."""
    async with opened(plaid) as client:
        made = await client.relay.create([plaid.add_report()], OWNER.client_id)
        for call in (
            lambda: client.relay.create([plaid.add_report()], "partner"),
            lambda: client.relay.get(made.relay_token),
            lambda: client.relay.remove(made.relay_token),
        ):
            plaid.fail(Fault(stall=30, times=1))
            sent = len(plaid.requests)
            with pytest.raises(TimeoutError):
                async with timeout_when(lambda: len(plaid.requests) > sent):  # noqa: B023
                    await call()
            assert asyncio.current_task().cancelling() == 0
            await call()
        assert_nothing_is_held(client)


async def fail_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ZeroDivisionError


@pytest.mark.parametrize("moment", [0, 0.001, 0.004, 0.02])
async def test_a_sibling_that_fails_takes_calls_and_batches_with_it(plaid, moment):
    """A failing task of the same group cancels them; what the batch was given stays in its result."""
    plaid.fail(Fault(path=CREATE, latency=0.01))
    async with opened(plaid) as client:
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
        assert_nothing_is_held(client)
        plaid.clear_faults()
        await create(client, plaid.add_report(), None)
    assert batch.result.unknown == []  # there was time enough to wait for them
    entries = [e for e in plaid.ledger if e["secondary_client_id"].startswith("partner-")]
    assert {e["relay_token"] for e in entries} == {made.relay_token for made in batch.result.created}


async def test_a_secret_that_is_fetched_for_many_is_fetched_again_when_one_of_them_is_cancelled(plaid):
    """Calls that share the fetching of a secret don't share a cancellation."""
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
async def test_an_input_that_its_owner_closes_has_ended(plaid, client, asynchronous):
    """A generator that is closed under the batch gives nothing more; what was taken has its outcome."""

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
                await asyncio.sleep(0.02)  # the batch has no room to go on, so nobody is inside of the input
                await source.aclose() if asynchronous else source.close()
    assert 5 <= seen == len(plaid.ledger) < 10


# ------------------------------------------------------------------------- closed while it is in flight


async def test_what_is_in_flight_when_the_client_is_closed_says_so(plaid):
    """A creation that was sent is unknown and a read is lost; what still queued was never sent."""
    plaid.fail(Fault(stall=30, when="after"))
    async with opened(plaid) as client:
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
async def test_a_batch_whose_client_is_closed_ends_with_what_is_known(plaid, streamed):
    """Those in flight are unknown, and the rest isn't sent."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    rows = RelayCreateRequest.fan_out([plaid.add_report()], [f"partner-{n}" for n in range(100)])
    async with opened(plaid) as client:
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
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest

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
    """`asyncio.run` cancels them: no task is left, no file, and no noise but a late outcome and a forgotten `close`."""
    plaid.add_report("report")
    plaid.fail(Fault(stall=30, when="after"))
    async with (
        python_process(IN_FLIGHT, plaid.url, str(tmp_path / "report.pdf"), how) as running,
        asyncio.timeout(30),
    ):
        while plaid.counts.total() < 13:
            await asyncio.sleep(0.01)
        output, _ = await running.communicate(b"\n")
    said = output.decode().splitlines()
    assert said[0] == "<BatchResult succeeded=0, failed=0, unknown=5, not_attempted=0>"
    assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []
    late = [line for line in said if line.startswith("the task of a call was cancelled")]
    assert ["outcome=unknown, partner=single" in line for line in late] == [True]
    if how == "closes":
        assert said[1:] == late
    else:
        assert sum("ResourceWarning: a RelayClient was never closed" in line for line in said) == 1
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
    ((connection, _),) = next(iter(client._session._session.connector._conns.values()))
    if (number := os.fork()) == 0:
        child()
        os._exit(0)
    os.waitpid(number, 0)
    runner.run(share("after"))
    ((same, _),) = next(iter(client._session._session.connector._conns.values()))
    assert same is connection
    runner.run(client.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("way", ["closes", "forgets"])
async def test_a_fork_cannot_use_its_parents_client_nor_harm_it(plaid, way):
    """In the child it says where it was opened; the parent goes on with the connection that it had."""
    plaid.add_report("report")
    async with python_process(FORKED, plaid.url, way) as running, asyncio.timeout(30):
        output, _ = await running.communicate()
    (said,) = output.decode().splitlines()
    assert "another process" in said
    assert running.returncode == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["before", "after"]
