"""The memory of the processes of a run doesn't depend on its size."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, field
from journal_support import KEY
from processes import running_process_async

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(3600)]

PROGRAM = Path(__file__).parents[1] / "temporal_roles.py"
BYTES_PER_PAIR = 200  # the detection of duplicates needs about 100
CONSTANT = 16 * 2**20  # what an allocator may hold back, and what is created once


@define
class MeasuredProcess:
    """A process of a run, and its resident memory, in bytes, at each number of pairs."""

    process: asyncio.subprocess.Process
    samples: dict[int, int] = field(factory=dict)

    def sample(self, pairs):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        self.samples[pairs] = int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def excess(self):
        """Return by how much the memory has grown, beyond the limit, in the second half of the run."""
        first, *_, last = list(self.samples)[len(self.samples) // 2 :]
        return self.samples[last] - self.samples[first] - CONSTANT - BYTES_PER_PAIR * (last - first)


@asynccontextmanager
async def measured_process(role, **options):
    command = (sys.executable, str(PROGRAM), role, json.dumps(options))
    variables = os.environ | {"PLAID_RELAY_KEY": KEY}
    async with running_process_async(*command, stdout=asyncio.subprocess.PIPE, env=variables) as process:
        yield MeasuredProcess(process)


async def read_to_end(*measured):
    """Sample the memory of all processes at each number that the first one prints, and return its last line."""
    while isinstance(line := json.loads(await measured[0].process.stdout.readline()), int):
        for each in measured:
            each.sample(line)
    return line


async def test_memory_does_not_depend_on_the_size_of_a_run(
    plaid, report, temporal_server, task_queue, journal_url, size
):
    """Submitter, follower and worker need at most the memory of the detection of duplicates for each pair."""
    pairs = size(300, 20_000)
    options = {
        "base_url": plaid.url,
        "address": temporal_server.address,
        "task_queue": task_queue,
        "url": journal_url,
        "name": "x",
        "report": report,
        "pairs": pairs,
    }
    async with measured_process("submit", **options) as submitter:
        submitted = await read_to_end(submitter)
    async with (
        measured_process("work", **options) as worker,
        measured_process("follow", **options) as follower,
    ):
        assert await worker.process.stdout.readline() == b'"started"\n'
        followed = await read_to_end(follower, worker)
        worker.process.terminate()
        drained, _ = await worker.process.communicate()
    assert submitted == {"started": pairs, "pending": 0, "recorded": 0}
    assert followed == {"created": pairs}
    assert (drained, worker.process.returncode) == (b'"drained"\n', 0)
    assert len(plaid.ledger) == len({each["secondary_client_id"] for each in plaid.ledger}) == pairs
    for each in (submitter, follower, worker):
        assert len(each.samples) == 10
        assert each.excess() <= 0, each.samples
