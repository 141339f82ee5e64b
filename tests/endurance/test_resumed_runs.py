"""Bulk runs that are killed at random, and resumed with `--retry-unknown` until each pair has a token."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter, defaultdict

import pytest
from attrs import define, field
from journal_support import KEY, random_faults
from processes import running_process_async

from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Simulator

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(4 * 3600), pytest.mark.slow]
REPORT = "assets-sandbox-1111"
MAX_KILLS = 5  # at most
MAX_PROCESSES = 20  # processes of a run, at most
PROCESS_SECONDS = 300  # seconds for one process
DECLINED = {400, 429}


@define
class Run:
    """One run over all partners, in several processes.

    Attributes:
        sent_before: the number of requests when the current process was started.
        outcomes: each partner's recorded outcomes at that time.
        retried: whether the current process has --retry-unknown.
    """

    plaid: Simulator
    url: str
    file: str
    partners: list[str]
    rng: random.Random
    sent_before: int = 0
    outcomes: dict[str, set[str]] = field(factory=dict)
    retried: bool = False

    @contextlib.asynccontextmanager
    async def running_process(self, *, retry):
        """Start a process, and yield it."""
        self.sent_before, self.outcomes, self.retried = (
            len(self.plaid.requests),
            await self.read_outcomes(),
            retry,
        )
        arguments = ["bulk", self.file, "--report-token", REPORT, "--journal", self.url, "--run", "r"]
        arguments += ["--concurrency", "50", "--lease", "1", "--timeout", "5"]
        environment = os.environ | {
            "PLAID_BASE_URL": self.plaid.url,
            "PLAID_CLIENT_ID": "owner",
            "PLAID_SECRET": "secret-of-the-owner",
            "PLAID_RELAY_KEY": KEY,
        }
        async with running_process_async(
            *(sys.executable, "-Im", "plaid_relay_async.cli", *arguments, *["--retry-unknown"] * retry),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        ) as process:
            yield process

    async def run_and_kill(self):
        """Start a process, and kill it at a random moment after its first request."""
        async with self.running_process(retry=self.rng.random() < 0.5) as process:
            ended = asyncio.ensure_future(process.wait())
            async with asyncio.timeout(PROCESS_SECONDS):
                while len(self.plaid.requests) == self.sent_before and not ended.done():
                    await asyncio.sleep(0.005)
            await asyncio.wait([ended], timeout=self.rng.uniform(0, 0.0005 * len(self.partners)))
            if not ended.done():
                process.kill()
            await ended
        await self.check()

    async def run_to_end(self):
        """Run a process with --retry-unknown to its end, and return whether every pair has a token."""
        async with self.running_process(retry=True) as process, asyncio.timeout(PROCESS_SECONDS):
            status = await process.wait()
        await self.check()
        assert status in {0, 1, 3}
        return status == 0

    async def read_outcomes(self):
        outcomes = defaultdict(set)
        async with Journal(self.url, key=KEY) as journal:
            if await journal.runs():
                async for record in journal.records("r"):
                    outcomes[record.secondary_client_id].add(record.outcome)
        return outcomes

    async def check(self):
        """Check that a process sent only requests that the records at its start allow."""
        requests = [each for each in self.plaid.requests[self.sent_before :] if each.status not in DECLINED]
        sent = Counter(each.secondary_client_id for each in requests)
        assert set(sent.values()) <= {1}
        # A process that was killed just before may look alive until its lease has expired.
        allowed = {"not_attempted", "failed"} | ({"unknown", "in_flight"} if self.retried else set())
        for partner in sent:
            assert self.outcomes.get(partner, set()) <= allowed

    async def check_at_the_end(self):
        """Check that each partner has one record, with the token that was issued last."""
        issued = defaultdict(list)
        for entry in self.plaid.ledger:
            issued[entry["secondary_client_id"]].append(entry["relay_token"])
        async with Journal(self.url, key=KEY) as journal:
            records = [record async for record in journal.records("r")]
        tokens = {record.secondary_client_id: record.relay_token for record in records}
        assert len(records) == len(tokens) == len(self.partners)
        for partner in self.partners:
            assert issued[partner][-1] == tokens[partner]


async def run_to_completion(url, folder, partners, seed):
    """Run until every pair has a token; return the number of processes."""
    names = [f"p{number}" for number in range(partners)]
    file = folder / "partners.csv"
    file.write_text("secondary_client_id\n" + "".join(f"{name}\n" for name in names))
    async with Simulator(reports=[REPORT], generation_delay=0.0, latency=0.004, seed=seed) as plaid:
        plaid.fail(*random_faults(max(1, partners // 100)))
        run = Run(plaid, url, str(file), names, random.Random(seed))
        kills = run.rng.randint(1, MAX_KILLS)
        for _ in range(kills):
            await run.run_and_kill()
        for number in range(MAX_PROCESSES):
            if await run.run_to_end():
                await run.check_at_the_end()
                return kills + number + 1
    raise AssertionError(f"seed {seed} isn't done after {MAX_PROCESSES} processes")


async def test_killed_and_resumed_until_all_are_created(size, tmp_path):
    """On SQLite, the run finishes, and only requests were sent that --retry-unknown allows."""
    for seed in range(size(1, 100)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert await run_to_completion(str(folder / "relay.db"), folder, size(60, 5_000), seed) > 1


async def test_killed_and_resumed_on_a_server(size, tmp_path, postgres):
    """On PostgreSQL, the run finishes, and only requests were sent that --retry-unknown allows."""
    for seed in range(size(1, 20)):
        await postgres.reset()
        assert await run_to_completion(postgres.url, tmp_path, size(60, 5_000), seed) > 1
