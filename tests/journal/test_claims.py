"""Whose the claim on a pair is, after anything that runs may do to it in any order, against a model and the ledger."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from attrs import define, evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from journals import CREATE, KEY, REMOVE
from support import OWNER, QUICK

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator

pytestmark = pytest.mark.may_block
SHORT = evolve(QUICK, max_pause=0.001)
POLICIES = {
    "reuse": {},
    "refuse": {"on_existing": "refuse"},
    "create": {"on_existing": "create"},
    "retry": {"retry_unknown": True},
}
FAULTS = {
    "made": None,
    "refused": {"status": 400},
    "busy": {"status": 503, "body": {"error_code": "PLANNED_MAINTENANCE"}},
    "lost before": {"status": 500, "when": "before"},
    "lost after": {"status": 500, "when": "after"},
}
RUNS, PARTNERS = ["a", "b", "c"], ["p", "q"]
creations = st.tuples(
    st.just("create"), st.sampled_from(RUNS), st.sampled_from([*POLICIES]), st.sampled_from([*FAULTS])
)
removals = st.tuples(st.just("remove"), st.integers(0, 3), st.sampled_from([*FAULTS]))


@define
class Attempt:
    """One that left: what its run knows of it."""

    run: str
    state: str
    token: str | None = None


def may_leave(attempts, run, policy):
    """Whether a creation may leave, by what its pair's attempts are known to have come to."""
    if any(each.run == run and each.state == "created" for each in attempts):
        return False
    mine = [each for each in attempts if each.run == run]
    in_doubt = bool(mine) and mine[-1].state == "unknown"
    if any(each.state == "created" for each in attempts):
        return policy == "create" and not in_doubt
    return policy == "retry" or not any(each.state == "unknown" for each in attempts)


async def creates(client, plaid, path, report, pairs, run, policy, fault):
    """Create for both partners at once, and hold each to the model."""
    if FAULTS[fault]:
        plaid.fail(Fault(path=CREATE, **FAULTS[fault]))
    sent = len(plaid.requests)
    async with Journal(path, run=run, key=KEY, **POLICIES[policy]) as journal:
        fanned = RelayCreateRequest.fan_out([report], PARTNERS)
        result = await client.relay.create_many(fanned, journal=journal, retry=SHORT)
    plaid.heal()
    left = Counter(request.secondary_client_id for request in plaid.requests[sent:])
    for outcome in [*result.created, *result.failed, *result.unknown]:
        partner = outcome.request.secondary_client_id
        attempts = pairs[partner]
        if left[partner]:
            assert may_leave(attempts, run, policy)
            state = {"made": "created", "lost before": "unknown", "lost after": "unknown"}.get(
                fault, "failed"
            )
            attempts.append(Attempt(run, state, getattr(outcome, "relay_token", None)))
        check(outcome, attempts, bool(left[partner]))


def check(outcome, attempts, left):
    kind = type(outcome).__name__
    if kind == "Created":
        assert outcome.relay_token in {each.token for each in attempts if each.state == "created"}
    elif any(each.state == "created" for each in attempts):
        assert left or kind == "Unknown" or outcome.error.__class__.__name__ == "DuplicateRequestError"
    elif any(each.state == "unknown" for each in attempts):
        assert kind == "Unknown"
    else:
        assert kind == "Failed"


async def removes(client, plaid, path, pairs, which, fault):
    """Remove one that is known, as its owner may at any time."""
    known = [each for attempts in pairs.values() for each in attempts if each.state == "created"]
    if not known:
        return
    attempt = known[which % len(known)]
    if FAULTS[fault]:
        plaid.fail(Fault(path=REMOVE, **FAULTS[fault]))
    async with Journal(path, key=KEY) as journal:
        await client.relay.remove_many([attempt.token], journal=journal, retry=SHORT)
    plaid.heal()
    if fault == "made" or fault.startswith("lost"):
        attempt.state = "removed"


async def ask(path, pairs):
    """Each token that is there is told, and without one each doubt."""
    async with Journal(path, key=KEY) as journal:
        runs = [status.name for status in await journal.runs()]
        records = [record for run in runs async for record in journal.records(run)]
    for partner, attempts in pairs.items():
        told = [record for record in records if record.secondary_client_id == partner]
        tokens = {each.token for each in attempts if each.state == "created"}
        assert {record.relay_token for record in told} >= tokens
        if not tokens and any(each.state == "unknown" for each in attempts):
            assert "unknown" in {record.outcome for record in told}


async def live(steps):
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "relay.db"
    pairs = {partner: [] for partner in PARTNERS}
    async with Simulator() as plaid, RelayClient(OWNER, base_url=plaid.url, retry=SHORT) as client:
        report = plaid.add_report()
        for kind, *words in steps:
            if kind == "create":
                await creates(client, plaid, path, report, pairs, *words)
            else:
                await removes(client, plaid, path, pairs, *words)
            await ask(path, pairs)
    folder.cleanup()
    made = [each for attempts in pairs.values() for each in attempts if each.token is not None]
    assert {each.token for each in made} <= {line["relay_token"] for line in plaid.ledger}
    unheard = sum(each.state == "unknown" for attempts in pairs.values() for each in attempts)
    assert len(plaid.ledger) <= len(made) + unheard


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(creations, removals), min_size=1, max_size=8))
@example(
    [
        ("create", "a", "retry", "lost after"),
        ("create", "b", "retry", "refused"),
        ("create", "c", "reuse", "made"),
    ]
)
def test_no_token_is_made_unasked_and_no_doubt_is_forgotten(steps):
    """Whatever comes to nothing, the pair is what its other attempts make it."""
    asyncio.run(live(steps))
