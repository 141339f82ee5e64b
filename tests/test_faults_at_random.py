"""Batches through a proxy that applies random faults: outcomes and ledger agree."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from fault_proxy import PASS, FaultProxy, WireFault
from matrix import FIVE_SECONDS, NO_DEADLINE, SECTIONS, TWO_SECONDS, FaultRow
from support import OWNER, PARTNER, QUICK, sampled

from plaid_relay_async import (
    Created,
    Failed,
    Fetched,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    Removed,
    Timeouts,
    Unknown,
)
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async import Credentials

REPORT = "assets-sandbox-at-random"
FAULT_RATE = 0.2  # of all attempts


def is_frequent(row: FaultRow) -> bool:
    """Return whether a row affects only attempts, and neither ends a batch nor takes seconds or megabytes."""
    long = row.min_seconds or row.settings in (FIVE_SECONDS, TWO_SECONDS, NO_DEADLINE)
    return (
        row.server == "http"
        and not long
        and not row.name.startswith(("a body of 100 MB", "429 CREDITS_EXHAUSTED"))
    )


def takes_time(section: str, row: FaultRow) -> bool:
    """Return whether the row delays the attempt, or all calls; such rows are drawn seldom."""
    return section in {"Stalls and slow responses", "Rate limits"} or "PLANNED_MAINTENANCE" in row.name


ROWS = [(section, row) for section, rows in SECTIONS.items() for row in rows if is_frequent(row)]
FAULTS = [
    row.faults[0]
    for section, row in ROWS
    if row.faults[0] is not PASS
    for _ in range(1 if takes_time(section, row) else 8)
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("--rounds")
        metafunc.parametrize("seed", sampled(range(rounds), step=rounds))


@contextlib.asynccontextmanager
async def faulty_client(plaid: Simulator, seed: int, credentials: Credentials) -> AsyncIterator[RelayClient]:
    """Yield a client whose attempts meet faults that the seed determines."""
    draw = random.Random(seed)

    def choose() -> WireFault:
        return draw.choice(FAULTS) if draw.random() < FAULT_RATE else PASS

    settings = {"timeouts": Timeouts(read=0.3, slow_read=0.3), "retry": QUICK, "max_response_bytes": 2**20}
    async with (
        FaultProxy(int(plaid.url.rpartition(":")[2]), choose) as proxy,
        RelayClient(credentials, base_url=f"http://127.0.0.1:{proxy.port}", **settings) as client,
    ):
        yield client


async def shared(plaid: Simulator, count: int) -> list[str]:
    """Create this number of relay tokens without faults."""
    async with RelayClient(OWNER, base_url=plaid.url) as owner:
        rows = (RelayCreateRequest([REPORT], "partner") for _ in range(count))
        result = await owner.relay.create_many(rows, allow_duplicates=True)
    return [created.relay_token for created in result.created]


def outcomes_by_key(result: Any, key: str, number: int) -> dict[str, Any]:
    """Return each outcome by the key of its request; there is exactly one for each request."""
    outcomes = [*result.succeeded, *result.failed, *result.unknown]
    by_key = {getattr(outcome.request, key): outcome for outcome in outcomes}
    assert len(outcomes) == len(by_key) == result.counts.total() == number
    assert (result.not_attempted, result.stopped_by) == ([], None)
    return by_key


async def test_a_batch_of_creations_agrees_with_the_ledger(seed):
    """Of 1,000 partners, a created one has the ledger's token, a failed one has none, and none has two."""
    partners = [f"p{n}" for n in range(1_000)]
    async with Simulator(reports=[REPORT]) as plaid, faulty_client(plaid, seed, OWNER) as client:
        result = await client.relay.create_many(RelayCreateRequest.fan_out([REPORT], partners))
    outcomes = outcomes_by_key(result, "secondary_client_id", len(partners))
    tokens = {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}
    assert len(tokens) == len(plaid.ledger)
    for partner, outcome in outcomes.items():
        match outcome:
            case Created():
                assert outcome.relay_token == tokens.pop(partner)
            case Failed():
                assert partner not in tokens
            case Unknown():
                tokens.pop(partner, None)
    assert not tokens


async def test_a_batch_of_refreshes_agrees_with_the_ledger(seed):
    """A refreshed report has one new report, a failed one has none, and none has two."""
    async with Simulator(reports=[REPORT]) as plaid:
        tokens = await shared(plaid, 300)
        async with faulty_client(plaid, seed, PARTNER) as client:
            result = await client.relay.refresh_many(tokens)
    created = Counter(token for token, _ in plaid.refreshes)
    for token, outcome in outcomes_by_key(result, "relay_token", len(tokens)).items():
        assert created[token] in {Refreshed: (1,), Failed: (0,), Unknown: (0, 1)}[type(outcome)]


async def test_a_batch_of_removals_agrees_with_the_ledger(seed):
    """A removed token no longer exists, and a failed one still does."""
    async with Simulator(reports=[REPORT]) as plaid:
        tokens = await shared(plaid, 300)
        async with faulty_client(plaid, seed, OWNER) as client:
            result = await client.relay.remove_many(tokens)
    removed = {entry["relay_token"]: entry["removed"] for entry in plaid.ledger}
    for token, outcome in outcomes_by_key(result, "relay_token", len(tokens)).items():
        assert removed[token] in {Removed: (True,), Failed: (False,), Unknown: (True, False)}[type(outcome)]


@pytest.mark.parametrize("operation", ["get_many", "get_pdf_many"])
async def test_a_batch_of_reads_is_fetched_or_failed(seed, operation):
    """A read is never unknown, and a fetched report is complete."""
    async with Simulator(reports=[REPORT]) as plaid:
        tokens = await shared(plaid, 100)
        async with faulty_client(plaid, seed, PARTNER) as client:
            result = await getattr(client.relay, operation)(tokens)
    for outcome in outcomes_by_key(result, "relay_token", len(tokens)).values():
        assert isinstance(outcome, Fetched | Failed)
        if isinstance(outcome, Fetched):
            read = outcome.response
            assert read.report.items if operation == "get_many" else read.content.endswith(b"%%EOF\n")
