"""Many creations, with faults and cancellations, leak no sockets, tasks or objects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from attrs import frozen
from processes import open_files
from support import OWNER, QUICK, python_process

from plaid_relay_async import InvalidRequestError, PlaidRelayError, RelayClient, RelayCreateRequest

if TYPE_CHECKING:
    from plaid_relay_async.batch import Batch

CONNECTIONS = 20
BATCH = 100

# The simulator runs in another process, because the requests that it records would look like a leak. One creation
# in ten gets a fault.
SIMULATOR = """
import asyncio
from plaid_relay_async.simulator import Fault, Simulator

CREATE = "/credit/relay/create"
FAULTS = [
    Fault(path=CREATE, rate=0.02, status=400),
    Fault(path=CREATE, rate=0.02, close=True, when="after"),
    Fault(path=CREATE, rate=0.02, status=500, when="after"),
    Fault(path=CREATE, rate=0.02, truncate=30),
    Fault(path=CREATE, rate=0.01, latency=0.02),
    Fault(path=CREATE, rate=0.01, stall=0.02),
]

async def main():
    async with Simulator(reports=["report"], faults=FAULTS) as plaid:
        print(plaid.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@frozen
class ResourceCounts:
    """The numbers of objects that may leak."""

    sockets: int
    tasks: int
    client_objects: Counter[str]
    objects: int


async def count_resources(client: RelayClient) -> ResourceCounts:
    # Open all connections, so that their number doesn't depend on the latest faults.
    await asyncio.gather(*(cause_rejection(client) for _ in range(CONNECTIONS)))
    await asyncio.sleep(0.05)
    gc.collect()
    objects = gc.get_objects()
    # asyncio keeps about a hundred cancelled timers, each with its context, until they are due.
    cancelled_timers = 2 * sum(isinstance(each, asyncio.TimerHandle) and each.cancelled() for each in objects)
    kinds = [type(each) for each in objects]
    client_objects = Counter(kind.__qualname__ for kind in kinds if is_of_the_client(kind))
    return ResourceCounts(
        open_sockets(kinds), len(asyncio.all_tasks()), client_objects, len(kinds) - cancelled_timers
    )


async def cause_rejection(client: RelayClient) -> None:
    with pytest.raises(InvalidRequestError):
        await client.relay.remove("nothing")


def is_of_the_client(kind: type) -> bool:
    return str(kind.__module__).startswith(("plaid_relay_async", "aiohttp", "backoff"))


def open_sockets(kinds: list[type]) -> int:
    if not (targets := open_files()):
        return sum(kind.__name__ == "TransportSocket" for kind in kinds)
    return sum(target.startswith("socket:") for target in targets)


class Load:
    """Creates half of the tokens by single calls and half by batches, and cancels about a twentieth of the calls."""

    def __init__(self, client: RelayClient) -> None:
        self.client, self.draw = client, random.Random(5)
        self.requested = 0

    def partners(self, count: int) -> list[str]:
        self.requested += count
        return [f"partner-{number}" for number in range(self.requested - count, self.requested)]

    async def run(self, count: int) -> None:
        for _ in range(0, count, 2 * BATCH):
            for _ in range(0, BATCH, CONNECTIONS):
                await asyncio.gather(*map(self.single, self.partners(CONNECTIONS)))
            rows = RelayCreateRequest.fan_out(["report"], self.partners(BATCH))
            await self.many(self.client.relay.create_many(rows, concurrency=CONNECTIONS))

    async def single(self, partner: str) -> None:
        call = self.client.relay.create(["report"], partner)
        if self.draw.random() > 0.1:
            with contextlib.suppress(PlaidRelayError):
                await call
            return
        with contextlib.suppress(TimeoutError, PlaidRelayError):
            async with asyncio.timeout(self.draw.random() * 0.01):
                await call

    async def many(self, batch: Batch) -> None:
        """Leave the batch in one of three ways when it is nearly done."""
        stop = self.draw.choice([stop_iterating, cancel, cancel_and_abandon])
        await stop(batch, BATCH - self.draw.randint(1, BATCH // 10))


async def stop_iterating(batch: Batch, minimum: int) -> None:
    async with batch as outcomes:
        async for _ in outcomes:
            if batch.progress.done >= minimum:
                break


async def cancel(batch: Batch, minimum: int, *, abandoned: bool = False) -> None:
    async def run() -> None:
        await batch

    task = asyncio.create_task(run())
    while batch.result.counts.total() < minimum:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    if abandoned:
        batch.abandon()
    await asyncio.wait([task])


async def cancel_and_abandon(batch: Batch, minimum: int) -> None:
    """Cancel the task, and don't wait for the calls in flight."""
    await cancel(batch, minimum, abandoned=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_creations_leak_nothing(pytestconfig, caplog):
    """With faults and cancellations, no socket, task or object remains."""
    count = pytestconfig.getoption("--partners")
    caplog.set_level(logging.CRITICAL, "plaid_relay_async")  # pytest keeps all records of a test
    async with python_process(SIMULATOR) as simulator:
        url = (await simulator.stdout.readline()).decode().strip()
        settings = {"retry": QUICK, "connections": CONNECTIONS, "on_late_outcome": lambda outcome: None}
        async with RelayClient(OWNER, base_url=url, **settings) as client:
            load = Load(client)
            await load.run(600)
            await count_resources(client)  # the first count fills caches
            before = await count_resources(client)
            await load.run(count)
            after = await count_resources(client)
            outcomes = client.statistics().outcomes
    assert (after.sockets, after.tasks, after.client_objects) == (
        before.sockets,
        before.tasks,
        before.client_objects,
    )
    assert after.objects - before.objects < 50
    assert min(outcomes["unknown"], outcomes["failed"]) > count / 100
    assert outcomes["cancelled"]
    assert outcomes["succeeded"] > count * 0.8
