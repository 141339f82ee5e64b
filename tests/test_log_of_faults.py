"""Apply every fault of matrix.py to batches and to calls with a journal, and read what happened from the log alone.

tests/test_matrix.py reads the log of single calls.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve, frozen
from canaries import REPORT_TOKEN, SECRET, assert_no_canary
from journal_support import KEY, execute
from log_support import Story, assert_documented, records_of, story_from_log
from sqlalchemy import select
from support import QUICK
from test_matrix import OWNER, PARTNER, PATHS, ROWS, faulty_client

from plaid_relay_async import PlaidRelayError, RelayClient, RelayCreateRequest
from plaid_relay_async.errors import OutcomeUnknownError, reason_of
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.schema import entries
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from pathlib import Path

    from matrix import FaultRow

pytestmark = pytest.mark.may_block  # SQLAlchemy's own
# Pauses of a batch don't count as attempts. This limit ends it.
POLICY = evolve(QUICK, max_pause=0.05)
# The second one is a token by mistake.
PARTNERS = ["another", "credit-relay-sandbox-misplaced", "third"]
HOLDER = "holder"  # of the relay tokens that are removed
HOOK = "https://user:canary-password@hooks.example/{pair}"


@frozen
class Way:
    """A way to make three calls.

    Attributes:
        operation: a column of the matrix.
        run: the run name of the journal; without one there is no journal.
        is_batch: whether a batch makes the calls.
    """

    operation: str
    run: str | None = None
    is_batch: bool = True


WAYS = [
    *(Way(operation) for operation in PATHS),
    Way("create", "of-a-batch"),
    Way("remove", "of-a-batch"),
    Way("create", "of-calls", is_batch=False),
    Way("remove", "of-calls", is_batch=False),
]


async def shared_tokens(plaid: Simulator, way: Way, journal: Journal | None) -> list[str]:
    """Return three relay tokens that were created without faults."""
    if way.operation == "create":
        return []
    partners = [f"{HOLDER}-{n}" for n in range(3)] if way.operation == "remove" else ["partner"] * 3
    async with RelayClient(OWNER, base_url=plaid.url) as owner:
        return [
            (await owner.relay.create([REPORT_TOKEN], partner, journal=journal)).relay_token
            for partner in partners
        ]


async def make_calls(client: RelayClient, way: Way, journal: Journal | None, tokens: list[str]) -> list[Any]:
    """Return what became of each request: an outcome, a response, an error, or `None` if it wasn't attempted."""
    recording = {} if journal is None else {"journal": journal}
    webhook = HOOK if journal else None
    if not way.is_batch:
        calls = (
            [client.relay.create([REPORT_TOKEN], each, webhook=webhook, **recording) for each in PARTNERS]
            if way.operation == "create"
            else [client.relay.remove(token, **recording) for token in tokens]
        )
        # One after the other, so that the log has their ends in this order.
        return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
    many = getattr(client.relay, f"{way.operation}_many")
    requests = (
        [*RelayCreateRequest.fan_out([REPORT_TOKEN], PARTNERS, webhook=webhook)]
        if way.operation == "create"
        else tokens
    )
    result = await many(requests, concurrency=1, **recording)
    outcomes = {
        requests.index(outcome.request if way.operation == "create" else outcome.request.relay_token): outcome
        for outcome in (*result.succeeded, *result.failed, *result.unknown)
    }
    assert len(outcomes) + len(result.not_attempted) <= len(requests)
    return [outcomes.get(position) for position in range(len(requests))]


async def calls_with_faults(row: FaultRow, way: Way, folder: Path) -> tuple[list[Any], list[str]]:
    """Return what became of each request, and the pair IDs of the journal."""
    async with Simulator(clients={"owner": SECRET, "partner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        if way.run is None:
            return await calls_with_journal(row, way, plaid, None), []
        path = folder / f"{way.operation}-{way.run}.db"
        async with Journal(path, run=way.run, key=KEY) as journal:
            results = await calls_with_journal(row, way, plaid, journal)
        return results, [pair for (pair,) in await execute(path, select(entries.c.pair))]


async def calls_with_journal(row: FaultRow, way: Way, plaid: Simulator, journal: Journal | None) -> list[Any]:
    tokens = await shared_tokens(plaid, way, journal)
    credentials = OWNER if way.operation in {"create", "remove"} else PARTNER
    async with faulty_client(row, plaid, credentials, retry=POLICY) as (_, client):
        return await make_calls(client, way, journal, tokens)


def calls_of(records: list[logging.LogRecord], way: Way) -> list[str]:
    """Return the identifiers of the calls that were made this way, in the order of their requests."""
    path = {"operation": PATHS[way.operation], "run": way.run}
    if way.is_batch:
        (start,) = records_of(records, event="batch_start", **path)
        ends = records_of(records, event="call_end")
        calls = [end["call_id"] for end in ends if end["call_id"].startswith(f"{start['batch_id']}-")]
        return sorted(calls, key=lambda call: int(call.rpartition("-")[2]))
    ends = records_of(records, event="call_end", **path)
    return [end["call_id"] for end in ends if not end.get("partner", "").startswith(HOLDER)]


def story_of(result: Any, logged: Story) -> Story:
    """Return the story of what became of a request; only outcomes and errors have the number of attempts."""
    if result is None:
        return Story("not_attempted", logged.attempts, logged.reason)
    if isinstance(result, PlaidRelayError):
        outcome = "unknown" if isinstance(result, OutcomeUnknownError) else "failed"
        return Story(outcome, result.attempts, reason_of(result))
    return Story.of(result) if hasattr(result, "attempts") else Story("succeeded", logged.attempts, None)


@pytest.mark.may_block
@pytest.mark.parametrize("name", [*ROWS][::15])
async def test_the_log_of_a_fault(every_log, tmp_path, name):
    """The log of each way of calling has the documented fields, no canary, and what happened to each pair.

    `tests/endurance` has a test of all rows.
    """
    await check_log_of_fault(name, every_log, tmp_path)


async def check_log_of_fault(name: str, log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Make calls in each way with a fault of the matrix, check their log, and clear it."""
    folder = tmp_path / "canary-folder"
    folder.mkdir(parents=True)
    results = await asyncio.gather(*(calls_with_faults(ROWS[name], way, folder) for way in WAYS))
    assert_documented(log.records)
    hidden = [KEY, "hooks.example", *(pair for _, pairs in results for pair in pairs)]
    assert len(hidden) >= 2 + 3 + 3  # at least the pairs that are removed
    records = [record for record in log.records if record.name.startswith("plaid_relay_async")]
    for record in records:
        assert not any(text in f"{vars(record)} {record.getMessage()}" for text in hidden)
    assert_no_canary("\n".join(map(logging.Formatter().format, records)))
    for way, (outcomes, _) in zip(WAYS, results, strict=True):
        calls = calls_of(log.records, way)
        logged = [story_from_log(log.records, call) for call in calls]
        assert logged
        # A batch that has stopped reads no further requests.
        assert set(outcomes[len(calls) :]) <= {None}
        assert logged == [story_of(result, story) for result, story in zip(outcomes, logged, strict=False)], (
            way
        )
    log.clear()
