"""Cancelled by asyncio or by AnyIO, a call or batch drains: what was sent has an outcome."""

from __future__ import annotations

import asyncio
import sys
import time

import anyio
import pytest
from journals import KEY
from support import OWNER, program

from plaid_relay_async import RelayClient, RelayCreateRequest, Timeouts
from plaid_relay_async.cancellation import Drains, finish
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"


async def in_move_on_after(plaid, path, work) -> None:
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().create_task(once_sent(plaid, path, scope.cancel))
        await work()
    assert scope.cancelled_caught


async def in_fail_after(plaid, path, work) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(60) as scope:
            asyncio.get_running_loop().create_task(once_sent(plaid, path, lambda: set_deadline(scope)))
            await work()


def set_deadline(scope) -> None:
    scope.deadline = anyio.current_time()


async def in_a_task_group(plaid, path, work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await once_sent(plaid, path, group.cancel_scope.cancel)


async def in_a_task_that_is_cancelled_often(plaid, path, work) -> None:
    task = asyncio.ensure_future(work())

    def cancel() -> None:
        for delay in range(20):
            asyncio.get_running_loop().call_later(delay / 200, task.cancel)

    await once_sent(plaid, path, cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def once_sent(plaid, path, act) -> None:
    while not plaid.counts[path]:
        await asyncio.sleep(0.001)
    act()


WAYS = pytest.mark.parametrize(
    "cancelled", [in_move_on_after, in_fail_after, in_a_task_group, in_a_task_that_is_cancelled_often]
)


# ------------------------------------------------------------------------------------------------ batches


async def awaited(batch) -> None:
    await batch


async def streamed(batch) -> None:
    async with batch as outcomes:
        async for _ in outcomes:
            pytest.fail("the response arrives after the cancellation")


@WAYS
@pytest.mark.parametrize("form", [awaited, streamed])
async def test_a_cancelled_batch_drains(plaid, client, cancelled, form):
    """A response that arrives within the drain time makes the outcome `Created`, whoever cancels."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    await cancelled(plaid, CREATE, lambda: form(batch))
    assert [made.relay_token for made in batch.result.created] == [e["relay_token"] for e in plaid.ledger]
    assert batch.result.counts == {"created": 1}


@WAYS
async def test_a_cancelled_batch_of_reads_drains(plaid, client, partner, cancelled):
    """Reports that are being read when the batch is cancelled are in its result."""
    made = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=GET, when="after", latency=0.3))
    batch = partner.relay.get_many([made.relay_token])
    await cancelled(plaid, GET, lambda: awaited(batch))
    assert batch.result.counts == {"fetched": 1}


@WAYS
@pytest.mark.may_block
async def test_a_cancelled_call_with_a_journal_drains(plaid, client, tmp_path, cancelled):
    """A creation and a removal are recorded; the same creation again returns the token."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, CREATE, lambda: client.relay.create([report], "partner", journal=journal))
        plaid.heal()
        again = await client.relay.create([report], "partner", journal=journal)
        assert [entry["relay_token"] for entry in plaid.ledger] == [again.relay_token]
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, REMOVE, lambda: client.relay.remove(again.relay_token, journal=journal))
        assert (await journal.status("default")).counts == {"removed": 1}


async def test_a_drain_uses_no_cpu_time(plaid):
    """Waiting for a response inside a cancelled AnyIO scope isn't a busy loop."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=5)) as client:
        batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
        started: list[float] = []

        def cancel() -> None:
            scope.cancel()
            started.append(time.process_time())

        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(once_sent(plaid, CREATE, cancel))
            await batch
        used = time.process_time() - started[0]
    assert used < 0.1
    assert batch.result.counts == {"unknown": 1}


async def test_timeouts_and_groups_around_a_drain_work_as_usual(plaid, client):
    """`asyncio.timeout` raises TimeoutError, a TaskGroup its error, and the task isn't left as cancelled."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    report = plaid.add_report()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as outer:
            with anyio.move_on_after(60):
                async with asyncio.timeout(60):
                    await client.relay.create_many([RelayCreateRequest([report], "in-timeouts")])
    assert outer.expired()

    async def fail() -> None:
        await once_sent(plaid, CREATE, lambda: None)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await client.relay.create_many([RelayCreateRequest([report], "in-a-group")])
    assert asyncio.current_task().cancelling() == 0
    assert len(plaid.ledger) == 2


async def test_a_cancellation_of_the_task_during_a_drain_is_not_taken_for_one_of_anyio(plaid, client):
    """A scope ends its own cancellation only: the task's is raised beyond it."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    passed = []

    async def run() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(once_sent(plaid, CREATE, scope.cancel))
            await batch
        passed.append(scope)

    task = asyncio.create_task(run())
    await once_sent(plaid, CREATE, lambda: None)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert passed == []
    assert batch.result.counts == {"created": 1}


# ---------------------------------------------------------------------------------------------- the helper


async def test_what_is_finished_has_its_result_or_its_error():
    """Without a cancellation, `finish` returns what its work returns, and raises what it raises."""

    async def work(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    assert await finish(work(None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await finish(work(ZeroDivisionError()))


async def test_a_cancellation_outweighs_the_error_of_what_is_finished():
    """The task is cancelled, and the error isn't reported as one that was never retrieved."""
    go, reported = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def work() -> None:
        await go.wait()
        raise ZeroDivisionError

    task = asyncio.create_task(finish(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert reported == []


async def test_drains_are_waited_for_with_a_bound():
    """Waiting ends when none is in progress any more, or when the time is over."""
    drains = Drains()
    await drains.all(60)
    with drains.one():
        await drains.all(0.01)
        with drains.one():
            pass
        waiting = asyncio.create_task(drains.all(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


ALONE = """
import asyncio, sys
from plaid_relay_async.cancellation import finish

async def main():
    task = asyncio.create_task(finish(asyncio.sleep(0.1, "finished")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled(), "anyio" in sys.modules)

asyncio.run(main())
"""


async def test_anyio_is_not_needed():
    """Without AnyIO in the process, a wait finishes as well, and AnyIO isn't imported for it."""
    async with program(ALONE) as running, asyncio.timeout(30):
        output, _ = await running.communicate()
    assert "anyio" in sys.modules
    assert output.decode().split() == ["True", "False"]
