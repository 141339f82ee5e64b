"""Processes of a run on Temporal: `python temporal_roles.py ROLE ARGUMENTS`, with the key in PLAID_RELAY_KEY.

The roles are `submit`, `follow` and `work`. The first two print a number after each tenth of the pairs, and all
of them end with a line that says how they have ended. SIGTERM drains a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from attrs import asdict
from support import OWNER, QUICK
from temporalio.client import Client

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.temporal import TaskQueue, Worker, data_converter

if TYPE_CHECKING:
    from collections.abc import Iterator


async def run(role: str, options: dict[str, Any]) -> object:
    """Run a role, and return what it prints last.

    Args:
        role: the name of the role.
        options: `base_url` of the simulator, `address` of the Temporal server, `task_queue`, `url` of the
            journal, and for a run also its `name`, its `report` and the number of its `pairs`.
    """
    temporal = await Client.connect(options["address"], data_converter=data_converter())
    async with RelayClient(OWNER, base_url=options["base_url"], retry=QUICK) as client:
        if role == "work":
            worker = asyncio.create_task(
                Worker(temporal, options["task_queue"], client, options["url"]).run()
            )
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.cancel)
            _print("started")
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            return "drained"
        async with Journal(options["url"], run=options["name"]) as journal:
            queue = TaskQueue(temporal, options["task_queue"], journal=journal)
            if role == "submit":
                return asdict(await queue.submit(client, _requests(**options)))
            async with queue.follow(client) as outcomes:
                count = 0
                async for _ in outcomes:
                    count += 1
                    _print_progress(count, options["pairs"])
            return dict(outcomes.result.counts)


def _requests(*, report: str, pairs: int, **_: object) -> Iterator[RelayCreateRequest]:
    for number in range(pairs):
        yield RelayCreateRequest([report], f"partner-{number}")
        _print_progress(number + 1, pairs)


def _print_progress(count: int, pairs: int) -> None:
    if count % max(pairs // 10, 1) == 0:
        _print(count)


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _print(asyncio.run(run(sys.argv[1], json.loads(sys.argv[2]))))
    os._exit(0)  # temporalio's threads may abort the process at its normal end
