"""Calls and batches that asyncio or AnyIO cancels drain: every request that was sent has an outcome."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

import anyio
import pytest
from cancellation_support import CANCELLATIONS, act_once_sent
from journal_support import KEY
from servers import serving, stay_silent
from support import CREATE, GET, OWNER, REMOVE, issued_tokens, python_process, timeout_when

from plaid_relay_async import JournalError, RelayClient, RelayCreateRequest, Timeouts
from plaid_relay_async.cancellation import DrainTracker, run_to_completion
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

# ------------------------------------------------------------------------------------------------- batches


async def await_batch(batch) -> None:
    await batch


async def stream_batch(batch) -> None:
    async with batch as outcomes:
        async for _ in outcomes:
            pytest.fail("the response arrives after the cancellation")


@CANCELLATIONS
@pytest.mark.parametrize("form", [await_batch, stream_batch])
async def test_a_cancelled_batch_drains(plaid, client, cancelled, form):
    """A response that arrives within the drain timeout makes the outcome `Created`, however the batch is cancelled."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    await cancelled(plaid, CREATE, lambda: form(batch))
    assert [created.relay_token for created in batch.result.created] == [
        e["relay_token"] for e in plaid.ledger
    ]
    assert batch.result.counts == {"created": 1}


@CANCELLATIONS
async def test_a_cancelled_batch_of_reads_drains(plaid, client, partner, cancelled):
    """Reports that are being read when the batch is cancelled are in its result."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=GET, when="after", latency=0.3))
    batch = partner.relay.get_many([created.relay_token])
    await cancelled(plaid, GET, lambda: await_batch(batch))
    assert batch.result.counts == {"fetched": 1}


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
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, cancel))
            await batch
        used = time.process_time() - started[0]
    assert used < 0.5
    assert batch.result.counts == {"unknown": 1}


async def test_timeouts_and_groups_around_a_drain_work_as_usual(plaid, client):
    """`asyncio.timeout` raises TimeoutError, a TaskGroup its error, and the task isn't left as cancelled."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    report = plaid.add_report()
    with pytest.raises(TimeoutError):
        async with timeout_when(lambda: plaid.counts[CREATE]):
            with anyio.move_on_after(60):
                async with asyncio.timeout(60):
                    await client.relay.create_many([RelayCreateRequest([report], "in-timeouts")])

    async def fail() -> None:
        await act_once_sent(plaid, CREATE, lambda: None)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await client.relay.create_many([RelayCreateRequest([report], "in-a-group")])
    assert asyncio.current_task().cancelling() == 0
    assert len(plaid.ledger) == 2


async def test_a_scope_does_not_swallow_a_cancellation_of_the_task_during_a_drain(plaid, client):
    """A scope swallows only its own cancellation; the cancellation of the task is raised outside the scope."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    batch = client.relay.create_many([RelayCreateRequest([plaid.add_report()], "partner")])
    passed = []

    async def run() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, scope.cancel))
            await batch
        passed.append(scope)

    task = asyncio.create_task(run())
    await act_once_sent(plaid, CREATE, lambda: None)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert passed == []
    assert batch.result.counts == {"created": 1}


# ---------------------------------------------------------------------------- calls, the journal and files


@pytest.mark.parametrize("direct", [True, False])
async def test_a_scope_of_anyio_catches_the_cancellation_of_a_call_that_connects(direct):
    """A call without a connection is cancelled like any other `await`, and reports no outcome."""
    late: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scope.cancel()
        await stay_silent(reader, writer)

    async with (
        serving(accept, "https") as (url, _),
        RelayClient(OWNER, base_url=url, direct=direct, on_late_outcome=late.append) as client,
    ):
        with anyio.CancelScope() as scope:
            await client.relay.create(["report"], "partner")
    assert scope.cancelled_caught
    assert late == []


@CANCELLATIONS
@pytest.mark.may_block
async def test_a_cancelled_call_with_a_journal_drains(plaid, client, tmp_path, cancelled):
    """A creation and a removal are recorded; the same creation again returns the token."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, CREATE, lambda: client.relay.create([report], "partner", journal=journal))
        plaid.clear_faults()
        again = await client.relay.create([report], "partner", journal=journal)
        assert issued_tokens(plaid) == [again.relay_token]
        plaid.fail(Fault(when="after", latency=0.3))
        await cancelled(plaid, REMOVE, lambda: client.relay.remove(again.relay_token, journal=journal))
        assert (await journal.status("default")).counts == {"removed": 1}


@pytest.mark.may_block
@pytest.mark.parametrize("opened", [True, False])
async def test_a_journal_that_is_cancelled_closes_to_its_end(plaid, client, tmp_path, opened):
    """A journal closes even in a cancelled AnyIO scope: its worker has ended, and no lock file is left."""
    journal = Journal(tmp_path / "relay.db", key=KEY)
    with anyio.CancelScope() as scope:
        if opened:
            await journal.open()
            await client.relay.create([plaid.add_report()], "partner", journal=journal)
            assert [*tmp_path.glob("*.lock")]
            scope.cancel()
            await journal.close()
        else:
            scope.cancel()
            await journal.open()
    assert [*tmp_path.glob("*.lock")] == []
    with pytest.raises(JournalError, match="isn't open"):
        await journal.runs()
    async with Journal(tmp_path / "relay.db", key=KEY) as journal:
        assert [status.counts for status in await journal.runs()] == [{"created": 1}] * opened


async def test_a_download_in_a_cancelled_scope_leaves_no_file(plaid, client, tmp_path):
    """What was written is removed before the cancellation is raised, under AnyIO too."""
    created = await client.relay.create([plaid.add_report()], OWNER.client_id)
    path = "/credit/relay/pdf/get"
    plaid.fail(Fault(path=path, stall=60, when="after"))
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().create_task(act_once_sent(plaid, path, scope.cancel))
        await client.relay.download_pdf(created.relay_token, tmp_path / "report.pdf")
    assert scope.cancelled_caught
    assert [*tmp_path.iterdir()] == []


# ---------------------------------------------------------------------- run_to_completion and DrainTracker


async def test_run_to_completion_returns_the_result_or_raises_the_error():
    """Without a cancellation, it returns what the function returns, and raises what it raises."""

    async def work(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    assert await run_to_completion(partial(work, None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await run_to_completion(partial(work, ZeroDivisionError()))


async def test_a_cancellation_takes_precedence_over_an_error():
    """The task is cancelled, and asyncio doesn't report the error as never retrieved."""
    go, reported = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def work() -> None:
        await go.wait()
        raise ZeroDivisionError

    task = asyncio.create_task(run_to_completion(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert reported == []


async def test_waiting_for_drains_has_a_timeout():
    """Waiting ends when no drain is in progress, or after the timeout."""
    drains = DrainTracker()
    await drains.wait_all(60)
    with drains.track():
        await drains.wait_all(0.01)
        with drains.track():
            pass
        waiting = asyncio.create_task(drains.wait_all(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


ALONE = """
import asyncio, sys
from plaid_relay_async.cancellation import run_to_completion

async def main():
    task = asyncio.create_task(run_to_completion(lambda: asyncio.sleep(0.1, "finished")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled(), "anyio" in sys.modules)

asyncio.run(main())
"""


async def test_anyio_is_optional():
    """Without AnyIO in the process, a wait runs to completion as well, and AnyIO isn't imported for it."""
    async with python_process(ALONE) as running, asyncio.timeout(30):
        output, _ = await running.communicate()
    assert "anyio" in sys.modules
    assert output.decode().split() == ["True", "False"]
