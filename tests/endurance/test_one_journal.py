"""Two concurrent processes on one journal: through PgBouncer, and through two paths to one file of SQLite."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter, defaultdict

import pytest
from attrs import define
from journal_support import KEY, random_faults

from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Simulator

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(4 * 3600), pytest.mark.slow]
REPORT = "assets-sandbox-1111"
PROCESS_SECONDS = 900  # seconds for one process
ROUNDS = 20  # at most
DECLINED = {400, 429}


@define
class Proof:
    """A run over all partners in two processes, each with its own address of the same journal."""

    plaid: Simulator
    addresses: tuple[str, str]
    file: str
    partners: list[str]
    lease: int

    async def run_process(self, address, *arguments):
        """Run one process to its end, and return its exit status."""
        environment = os.environ | {
            "PLAID_BASE_URL": self.plaid.url,
            "PLAID_CLIENT_ID": "owner",
            "PLAID_SECRET": "secret-of-the-owner",
            "PLAID_RELAY_KEY": KEY,
        }
        options = ("--report-token", REPORT, "--journal", address, "--run", "r", "--concurrency", "50")
        options += ("--lease", str(self.lease))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-Im", "plaid_relay_async.cli", "bulk", self.file, *options, *arguments),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PROCESS_SECONDS):
            _, messages = await process.communicate()
        assert process.returncode in {0, 1, 3}, messages.decode()
        return process.returncode

    async def run_both(self, disturb, *arguments):
        """Run both processes concurrently, and disturb them; return their exit statuses."""
        sent = len(self.plaid.requests)
        working = asyncio.gather(*(self.run_process(address, *arguments) for address in self.addresses))
        while len(self.plaid.requests) < sent + 2 and not working.done():
            await asyncio.sleep(0.005)
        if not working.done():
            await disturb()
        return await working

    async def records(self):
        """Return the outcome and the token of each partner, which must be the same for both addresses."""
        records = []
        for address in self.addresses:
            async with Journal(address, key=KEY) as journal:
                records.append(
                    {r.secondary_client_id: (r.outcome, r.relay_token) async for r in journal.records("r")}
                )
        assert records[0] == records[1]
        assert sorted(records[0]) == sorted(self.partners)
        return records[0]

    def issued(self):
        """Return the tokens of each partner, in the order in which the simulator issued them."""
        tokens = defaultdict(list)
        for entry in self.plaid.ledger:
            tokens[entry["secondary_client_id"]].append(entry["relay_token"])
        return tokens

    async def check_the_first_round(self):
        """Check that nothing was sent twice, and that each token is recorded unless its response was lost."""
        sent = [each for each in self.plaid.requests if each.status not in DECLINED]
        assert max(Counter(each.secondary_client_id for each in sent).values()) == 1
        issued = self.issued()
        for partner, (outcome, token) in (await self.records()).items():
            match outcome:
                case "created":
                    assert issued[partner] == [token]
                case "unknown":
                    assert len(issued[partner]) <= 1
                case _:
                    assert (outcome, issued[partner]) == ("failed", [])

    async def finish(self, disturb):
        """Retry until each pair has a token, and check that only pairs in doubt have a second one."""
        doubts = Counter()
        for _ in range(ROUNDS):
            doubts.update(
                name for name, (outcome, _) in (await self.records()).items() if outcome == "unknown"
            )
            if await self.run_both(disturb, "--retry-unknown", "--retry-failed") == [0, 0]:
                break
        issued = self.issued()
        for partner, (outcome, token) in (await self.records()).items():
            assert (outcome, issued[partner][-1]) == ("created", token)
            assert len(issued[partner]) <= 1 + doubts[partner]
        return doubts


async def prove(partners, lease, folder, addresses, disturb):
    names = [f"p{number}" for number in range(partners)]
    file = folder / "partners.csv"
    file.write_text("secondary_client_id\n" + "".join(f"{name}\n" for name in names))
    async with Simulator(reports=[REPORT], generation_delay=0.0, latency=0.004, seed=7) as plaid:
        plaid.fail(*random_faults(max(2, partners // 50)))
        proof = Proof(plaid, addresses, str(file), names, lease)
        await proof.run_both(disturb)
        await proof.check_the_first_round()
        doubts = await proof.finish(disturb)
        print(  # noqa: T201  # with -s, the size of the proof
            f"{partners:,} pairs, {len(plaid.requests):,} requests, {len(plaid.ledger):,} tokens issued, "
            f"{len(doubts):,} pairs were in doubt"
        )


async def test_through_pgbouncer(size, tmp_path, pgbouncer):
    """Two processes finish a run in transaction mode, although the pooler is restarted."""

    async def restart():
        await pgbouncer.kill()
        await pgbouncer.start()

    await prove(size(60, 3_000), size(4, 30), tmp_path, (pgbouncer.url, pgbouncer.url), restart)


async def test_through_two_paths(size, tmp_path):
    """Two processes finish a run in one file that each of them opens by another path."""
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "link.db").symlink_to(tmp_path / "folder" / "relay.db")

    async def check_folder():
        assert {each.name for each in tmp_path.iterdir()} == {"real", "folder", "link.db", "partners.csv"}

    addresses = (str(tmp_path / "real" / "relay.db"), f"sqlite:///{tmp_path / 'link.db'}")
    await prove(size(60, 3_000), size(4, 30), tmp_path, addresses, check_folder)
