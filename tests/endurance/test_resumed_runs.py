"""Bulk runs that are killed at random moments, and resumed with `--retry-unknown` until every pair has a token."""

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

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(4 * 3600), pytest.mark.full_size]
REPORT = "assets-sandbox-1111"
KILLS = 5  # at most
LIVES = 20  # at most, of a run: what takes more doesn't terminate
WITHIN = 300  # seconds for one of them
DECLINED = {400, 429}


@define
class Run:
    """One run over all partners, in as many processes as it takes.

    Attributes:
        began: how many requests had come when the current process was started.
        outcomes: of each partner at that time, by the journal.
    """

    plaid: Simulator
    url: str
    file: str
    partners: list[str]
    chance: random.Random
    began: int = 0
    outcomes: dict[str, set[str]] = field(factory=dict)
    retried: bool = False

    @contextlib.asynccontextmanager
    async def started(self, *, retry):
        """Start a process, and yield it."""
        self.began, self.outcomes, self.retried = len(self.plaid.requests), await self.recorded(), retry
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

    async def killed(self):
        """Start a process, and kill it at a random moment after its first request."""
        async with self.started(retry=self.chance.random() < 0.5) as process:
            ended = asyncio.ensure_future(process.wait())
            async with asyncio.timeout(WITHIN):
                while len(self.plaid.requests) == self.began and not ended.done():
                    await asyncio.sleep(0.005)
            await asyncio.wait([ended], timeout=self.chance.uniform(0, 0.0005 * len(self.partners)))
            if not ended.done():
                process.kill()
            await ended
        await self.check()

    async def finished(self):
        """Start a process with --retry-unknown, and return whether every pair has a token once it has ended."""
        async with self.started(retry=True) as process, asyncio.timeout(WITHIN):
            status = await process.wait()
        await self.check()
        assert status in {0, 1, 3}
        return status == 0

    async def recorded(self):
        outcomes = defaultdict(set)
        async with Journal(self.url, key=KEY) as journal:
            if await journal.runs():
                async for record in journal.records("r"):
                    outcomes[record.secondary_client_id].add(record.outcome)
        return outcomes

    async def check(self):
        """Compare the requests of a process with what was recorded when it was started: no other was allowed."""
        requests = [each for each in self.plaid.requests[self.began :] if each.status not in DECLINED]
        sent = Counter(each.secondary_client_id for each in requests)
        assert set(sent.values()) <= {1}
        # One that was killed a moment ago may look alive until its lease has lapsed.
        allowed = {"not_attempted", "failed"} | ({"unknown", "in_flight"} if self.retried else set())
        for partner in sent:
            assert self.outcomes.get(partner, set()) <= allowed

    async def check_at_the_end(self):
        """Each partner has one token that is served, and the ledger has no other that wasn't in doubt."""
        issued = defaultdict(list)
        for entry in self.plaid.ledger:
            issued[entry["secondary_client_id"]].append(entry["relay_token"])
        async with Journal(self.url, key=KEY) as journal:
            records = [record async for record in journal.records("r")]
        tokens = {record.secondary_client_id: record.relay_token for record in records}
        assert len(records) == len(tokens) == len(self.partners)
        for partner in self.partners:
            assert issued[partner][-1] == tokens[partner]


async def lived(url, folder, partners, seed):
    """Live through a run; return how many processes it took."""
    names = [f"p{number}" for number in range(partners)]
    file = folder / "partners.csv"
    file.write_text("secondary_client_id\n" + "".join(f"{name}\n" for name in names))
    async with Simulator(reports=[REPORT], generation_delay=0.0, latency=0.004, seed=seed) as plaid:
        plaid.fail(*random_faults(max(1, partners // 100)))
        run = Run(plaid, url, str(file), names, random.Random(seed))
        kills = run.chance.randint(1, KILLS)
        for _ in range(kills):
            await run.killed()
        for number in range(LIVES):
            if await run.finished():
                await run.check_at_the_end()
                return kills + number + 1
    raise AssertionError(f"seed {seed} isn't done after {LIVES} processes")


async def test_killed_and_resumed_until_all_are_created(size, tmp_path):
    """On SQLite, it ends, and no request was sent but for pairs without a token, or in doubt once that was asked for."""
    for seed in range(size(1, 100)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert await lived(str(folder / "relay.db"), folder, size(60, 5_000), seed) > 1


async def test_killed_and_resumed_on_a_server(size, tmp_path, postgres):
    """On PostgreSQL, it ends, and only requests were sent that --retry-unknown allows."""
    for seed in range(size(1, 20)):
        await postgres.reset()
        assert await lived(postgres.url, tmp_path, size(60, 5_000), seed) > 1
