"""Processes of a run on a task queue of Temporal, which a test can kill or suspend: workers and submitters.

They are forked within milliseconds from a process that has loaded the libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from journal_support import KEY, creation_requests
from processes import wait_until_async
from support import OWNER, QUICK
from temporalio.client import Client

from plaid_relay_async import PlaidRelayError, RelayClient, Timeouts
from plaid_relay_async.journal import Journal
from plaid_relay_async.temporal import TaskQueue, Worker, data_converter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from multiprocessing.process import BaseProcess

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["plaid_relay_async.temporal", "aiosqlite", "psycopg", "pytest"])


@frozen
class Run:
    """A run, as each of its processes needs it.

    Attributes:
        base_url: of the simulator.
        temporal_address: of the Temporal server.
        task_queue: its task queue.
        journal_url: of its journal.
        report: the report token.
        folder: where its submitters write the outcomes.
        partners: the number of its pairs.
        concurrency: the maximum number of concurrent calls of one worker.
        start_to_close: seconds after which an activity is considered lost.
        lease: the lease of the journals, in seconds.
        retry_unknown: as of `Journal`.
    """

    base_url: str
    temporal_address: str
    task_queue: str
    journal_url: str
    report: str
    folder: Path
    partners: int = 10
    concurrency: int = 4
    start_to_close: float = 5.0
    lease: float = 2.0
    retry_unknown: bool = False

    def requests(self) -> Any:
        """Return the requests of the run."""
        return creation_requests(self.report, self.partners)

    def client(self) -> RelayClient:
        """Return a client of the simulator, which isn't open.

        Its total timeout is also how long `retry_unknown` waits for a request of a worker that was lost.
        """
        timeouts = Timeouts(total=self.start_to_close / 2)
        return RelayClient(OWNER, base_url=self.base_url, retry=QUICK, timeouts=timeouts)

    async def connect(self) -> Client:
        """Return a client of the Temporal server."""
        return await Client.connect(self.temporal_address, data_converter=data_converter(KEY))

    def journal(self) -> Journal:
        """Return the journal of the run, which isn't open."""
        settings: dict[str, Any] = {"lease": self.lease, "retry_unknown": self.retry_unknown}
        return Journal(self.journal_url, run="x", key=KEY, **settings)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[RelayClient, TaskQueue]]:
        """Open a client of the simulator, and the task queue with its journal."""
        async with self.client() as client, self.journal() as journal:
            options = {"journal": journal, "start_to_close": self.start_to_close}
            yield client, TaskQueue(await self.connect(), self.task_queue, **options)

    def outcomes(self) -> dict[str, tuple[str, str | None, bool]]:
        """Return the latest outcome that a submitter has received for each partner.

        Returns:
            The name of its class, its token, and whether it is journalled.
        """
        lines = map(json.loads, (self.folder / "outcomes").read_text().splitlines())
        return {partner: tuple(values) for partner, *values in lines}


# ------------------------------------------------------------------------ what the processes do


def run_worker(run: Run) -> None:
    """Make calls until the process is killed."""

    async def work() -> None:
        async with run.client() as client:
            options: dict[str, Any] = {"key": KEY, "concurrency": run.concurrency, "lease": run.lease}
            await Worker(await run.connect(), run.task_queue, client, run.journal_url, **options).run()

    asyncio.run(work())


def run_submitter(run: Run) -> None:
    """Start the run, wait for its outcomes, and append each of them to the file."""
    asyncio.run(_write_outcomes(run, follow=False))


def run_follower(run: Run) -> None:
    """Wait for the outcomes of what was submitted, and append each of them to the file."""
    asyncio.run(_write_outcomes(run, follow=True))


async def _write_outcomes(run: Run, *, follow: bool) -> None:
    file = os.open(run.folder / "outcomes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        async with run.opened() as (client, queue):
            batch = (
                queue.follow(client)
                if follow
                else client.relay.create_many(run.requests(), task_queue=queue, concurrency=100)
            )
            async with batch:
                async for each in batch:
                    token = getattr(each, "relay_token", None)
                    line = [each.request.secondary_client_id, type(each).__name__, token, each.journalled]
                    os.write(file, json.dumps(line).encode() + b"\n")
    except (PlaidRelayError, RuntimeError) as error:  # a server is down
        sys.exit(f"the submitter ends: {error!r}, {error.__cause__!r}")


def run_submission(run: Run) -> None:
    """Add the run to the queue, and don't wait for its outcomes."""

    async def submit() -> None:
        async with run.opened() as (client, queue):
            await queue.submit(client, run.requests(), concurrency=5)

    asyncio.run(submit())


# ---------------------------------------------------------------------------- for the tests


class RunProcess:
    """A process that can be killed, suspended, and started again.

    Args:
        target: what it does.
        run: the run.
    """

    def __init__(self, target: Callable[[Run], None], run: Run) -> None:
        self._target, self._run = target, run
        self._start()

    def _start(self) -> None:
        self._process: BaseProcess = _context.Process(target=self._target, args=[self._run], daemon=True)
        self._process.start()

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process hasn't ended."""
        if self._process.exitcode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.exitcode is not None

    async def wait(self, seconds: float = 120) -> int:
        """Wait until the process has ended, and return its exit status."""
        await wait_until_async(lambda: self.has_ended, seconds)
        assert self._process.exitcode is not None
        return self._process.exitcode

    async def kill(self) -> None:
        """Kill the process, which may be suspended."""
        self._process.kill()
        await self.wait()

    async def keep_running(self, *, until_success: bool = False) -> None:
        """Start the process again each time that it ends; with `until_success`, only after an error."""
        while await self.wait(3600) != 0 or not until_success:
            await asyncio.sleep(0.2)  # as a supervisor, which doesn't start a process again without a pause
            self._start()


@contextlib.asynccontextmanager
async def running(target: Callable[[Run], None], run: Run) -> AsyncIterator[RunProcess]:
    """Run a process, and kill it at the end of the block."""
    process = RunProcess(target, run)
    try:
        yield process
    finally:
        await process.kill()
