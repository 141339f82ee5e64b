"""A local run and a run on Temporal of the same input have the same outcomes and the same records."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from attrs import evolve
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from journal_support import KEY, creation_requests
from support import OWNER, QUICK, REMOVE
from temporal_equality import (
    FAULTS,
    JOURNAL_SETTINGS,
    SmallInput,
    comparable_error,
    comparable_result,
    comparable_run,
    small_inputs,
)
from temporal_support import INVALID, LONG, running_worker

from plaid_relay_async import RelayClient
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault
from plaid_relay_async.temporal import TaskQueue

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own

_numbers = itertools.count()
EVERY_FAULT = SmallInput(list(range(len(FAULTS))), dict(enumerate(sorted(FAULTS))))
RETRY = {"on_existing": "create", "retry_unknown": True, "retry_failed": True}
PLAIN = {"on_existing": "reuse", "retry_unknown": False, "retry_failed": False}


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=small_inputs(),
    second=small_inputs(),
    same_run=st.booleans(),
    journal_settings=JOURNAL_SETTINGS,
)
@example(first=EVERY_FAULT, second=EVERY_FAULT, same_run=True, journal_settings=PLAIN)
@example(first=EVERY_FAULT, second=SmallInput(EVERY_FAULT.pairs), same_run=True, journal_settings=RETRY)
@example(first=EVERY_FAULT, second=SmallInput(EVERY_FAULT.pairs), same_run=False, journal_settings=RETRY)
async def test_a_local_run_and_a_run_on_temporal_are_equal(
    plaid, temporal_client, task_queue, journal_url, first, second, same_run, journal_settings
):
    """A run with faults, then the same run or another one over the same reports, with any settings, are equal.

    All outcomes, with their errors and attempts, and all records of the journal are compared, and the ledger has
    the same number of tokens for each partner.
    """
    number = next(_numbers)
    results = []
    for where in ("local", "temporal"):
        issued, seen = len(plaid.ledger), []
        requests = first.requests(plaid)
        requests_by_pair = dict(zip(first.pairs, requests, strict=True))
        inputs = [
            (first, requests, f"{where}-{number}", {}),
            (
                second,
                [
                    requests_by_pair.get(pair) or each
                    for pair, each in zip(second.pairs, second.requests(plaid), strict=True)
                ],
                f"{where}-{number}" if same_run else f"{where}-{number}-other",
                journal_settings,
            ),
        ]
        # Each has a client of its own: after a 429, a client limits its rate.
        async with (
            RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
            RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as worker_client,
            running_worker(temporal_client, task_queue, worker_client, journal_url, retry=QUICK),
        ):
            for small_input, its_requests, run, options in inputs:
                small_input.script(plaid)
                async with Journal(journal_url, run=run, key=KEY, **options) as journal:
                    recording = {"journal": journal}
                    if where == "temporal":
                        queue = TaskQueue(temporal_client, task_queue, journal=journal, start_to_close=LONG)
                        recording = {"task_queue": queue}
                    result = await client.relay.create_many(
                        its_requests, concurrency=small_input.concurrency, **recording
                    )
                    seen += [comparable_result(result), await comparable_run(journal, run)]
        tokens = Counter(each["secondary_client_id"] for each in plaid.ledger[issued:])
        results.append([*seen, tokens])
    local, on_temporal = results
    assert on_temporal == local


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"latency": 0.01}, "removed"),
        ({"status": 200, "body": {"removed": True, "request_id": "r", "later": [1.5]}}, "removed"),
        ({"close": True, "when": "after", "times": 1}, "removed"),
        ({"status": 200, "body": {"removed": False, "request_id": "r"}}, "failed"),
        ({"status": 400, "body": INVALID}, "failed"),
        ({"status": 200, "body": {"unexpected": 1}}, "unknown"),
        ({"status": 500}, "unknown"),
        ({"close": True}, "unknown"),
    ],
)
async def test_a_local_removal_and_one_on_temporal_are_equal(
    plaid, temporal_client, task_queue, journal_url, fault, outcome
):
    """A removal has the same outcome, with the same response or error, and is recorded in the same way."""
    results = []
    for where in ("local", "temporal"):
        async with (
            RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
            running_worker(temporal_client, task_queue, client, journal_url, retry=QUICK),
            Journal(journal_url, run=where, key=KEY) as journal,
        ):
            created = await client.relay.create_many(
                creation_requests(plaid.add_report(), 1), journal=journal
            )
            plaid.fail(Fault(path=REMOVE, **fault))
            recording = {"journal": journal}
            if where == "temporal":
                recording = {"task_queue": TaskQueue(temporal_client, task_queue, journal=journal)}
            result = await client.relay.remove_many([created.created[0].relay_token], **recording)
            plaid.clear_faults()
            (only,) = [*result.succeeded, *result.failed, *result.unknown]
            seen = only.response if outcome == "removed" else comparable_error(only.error)
            if "body" not in fault and outcome == "removed":
                seen = evolve(seen, request_id=None)
            status = await journal.status(where)
            results.append((dict(result.counts), only.attempts, only.journalled, seen, status.counts))
    local, on_temporal = results
    assert local[0] == {outcome: 1}
    assert on_temporal == local
