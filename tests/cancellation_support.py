"""Ways to cancel a call or a batch once its request has been sent, and a client that records late outcomes."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest
from support import OWNER, QUICK

from plaid_relay_async import RelayClient


async def act_once_sent(plaid, path, act) -> None:
    while not plaid.counts[path]:
        await asyncio.sleep(0.001)
    act()


async def cancel_once_sent(plaid, path, work) -> None:
    task = asyncio.ensure_future(work)
    await act_once_sent(plaid, path, task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()


async def cancel_by_move_on_after(plaid, path, work) -> None:
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().create_task(act_once_sent(plaid, path, scope.cancel))
        await work()
    assert scope.cancelled_caught


async def cancel_by_fail_after(plaid, path, work) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(60) as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, path, lambda: set_deadline(scope)))
            await work()


def set_deadline(scope) -> None:
    scope.deadline = anyio.current_time()


async def cancel_by_task_group(plaid, path, work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await act_once_sent(plaid, path, group.cancel_scope.cancel)


async def cancel_task_often(plaid, path, work) -> None:
    task = asyncio.ensure_future(work())

    def cancel() -> None:
        for delay in range(20):
            asyncio.get_running_loop().call_later(delay / 200, task.cancel)

    await act_once_sent(plaid, path, cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


CANCELLATIONS = pytest.mark.parametrize(
    "cancelled", [cancel_by_move_on_after, cancel_by_fail_after, cancel_by_task_group, cancel_task_often]
)


@contextlib.asynccontextmanager
async def listening(plaid, **settings):
    """A client, and the late outcomes that it reports."""
    late: list[object] = []
    settings = {"base_url": plaid.url, "retry": QUICK, "on_late_outcome": late.append} | settings
    async with RelayClient(OWNER, **settings) as client:
        yield client, late
