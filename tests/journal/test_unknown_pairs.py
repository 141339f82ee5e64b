"""Pairs that are unknown: after an attempt in doubt, or after their process has ended."""

from __future__ import annotations

import asyncio

import pytest
from attrs import evolve
from journal_support import (
    KEY,
    cancelled_before_sending,
    create_in_run,
    creation_requests,
    execute,
    gated_responses,
    read_records,
    tokens_per_partner,
)
from support import CREATE, MAINTENANCE, OWNER, QUICK, REMOVE, python_process

from plaid_relay_async import InvalidRequestError, JournalError, OutcomeUnknownError, RelayClient
from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


RUN = """
import asyncio, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest, Timeouts
from plaid_relay_async.journal import Journal

async def main():
    address, url, report, key, total, lease = sys.argv[1:]
    timeouts = Timeouts(total=float(total))
    owner = Credentials("owner", "secret-of-the-owner")
    async with RelayClient(owner, base_url=address, timeouts=timeouts) as client:
        async with Journal(url, run="x", key=key, lease=float(lease)) as journal:
            requests = RelayCreateRequest.fan_out([report], ["p0", "p1", "p2"])
            await client.relay.create_many(requests, journal=journal)

asyncio.run(main())
"""


# --------------------------------------------------------------------------------------- attempts in doubt


async def unknown_in(client, plaid, report, url, run):
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run=run, key=KEY) as journal:
        result = await client.relay.create_many(creation_requests(report, 1), journal=journal)
    assert result.counts == {"unknown": 1}
    plaid.clear_faults()


async def test_an_unknown_pair_stays_unknown_without_retry_unknown(plaid, client, report, url):
    """Another run doesn't create for a pair that is unknown; with retry_unknown there may be two tokens."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 1), journal=journal)
        plaid.clear_faults()
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "unknown": 1
        }
        (record,) = await read_records(journal, "x")
        assert (record.outcome, record.error_code) == ("unknown", "INTERNAL_SERVER_ERROR")
    async with Journal(url, run="y", key=KEY) as journal:
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "unknown": 1
        }
        assert (await journal.status("y")).error_codes == {"INTERNAL_SERVER_ERROR": 1}
    async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
        assert (await client.relay.create_many(creation_requests(report, 1), journal=journal)).counts == {
            "created": 1
        }
        assert (await journal.status("y")).counts == {"created": 1}
    assert tokens_per_partner(plaid) == {"p0": 2}


async def test_an_unknown_attempt_stays_recorded_when_another_run_creates(plaid, client, report, url):
    """The run gets the other run's token, and the outcome of its own attempt is still unknown."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY, retry_unknown=True) as y:
        await client.relay.create_many(creation_requests(report, 1), journal=x)
        plaid.clear_faults()
        other = await client.relay.create([report], "p0", journal=y)
        assert (await client.relay.create([report], "p0", journal=x)).relay_token == other.relay_token
        assert (await x.status("x")).counts == {"unknown": 1}


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
@pytest.mark.parametrize("status", [400, 503])
async def test_a_pair_stays_unknown_after_a_failed_retry(plaid, client, report, url, run, status):
    """It is recorded as unknown, with the failure as its cause, and isn't created again without `retry_unknown`."""
    await unknown_in(client, plaid, report, url, "x")
    plaid.fail(Fault(path=CREATE, status=status, body=MAINTENANCE))
    async with Journal(url, run=run, key=KEY, retry_unknown=True) as journal:
        short = evolve(QUICK, max_pause=0.001)
        retried = await client.relay.create_many(creation_requests(report, 1), journal=journal, retry=short)
        assert (await journal.status(run)).counts == {"unknown": 1}
    assert retried.counts == {"unknown": 1}
    assert retried.unknown[0].error.__cause__.status == status
    plaid.clear_faults()
    for later in (run, "z"):
        assert (await create_in_run(client, report, url, later))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize("run", ["x", "y"], ids=["the same run", "another run"])
async def test_a_pair_stays_unknown_after_a_retry_that_was_not_sent(plaid, client, report, tmp_path, run):
    """The intent is undone, and the doubt of the earlier attempt stays."""
    path = tmp_path / "relay.db"
    await unknown_in(client, plaid, report, path, "x")
    async with Journal(path, run=run, key=KEY, retry_unknown=True) as journal:
        await client.relay.create([report], "another", journal=journal)
        async with cancelled_before_sending(
            path, client.relay.create_many(creation_requests(report, 1), journal=journal)
        ):
            pass
    for later in (run, "z"):
        result, status = await create_in_run(client, report, path, later)
        assert result.counts == {"unknown": 1}
        assert status.counts["unknown"] == 1
    assert tokens_per_partner(plaid) == {"p0": 1, "another": 1}


async def test_a_pair_is_unknown_again_after_its_retry_was_removed(plaid, client, report, url):
    """Once the token of the retry is removed, the pair is unknown, and the run has a record of each."""
    await unknown_in(client, plaid, report, url, "x")
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        response = await client.relay.create([report], "p0", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        assert (await create_in_run(client, report, url, "z"))[0].counts == {"unknown": 1}
        assert (await client.relay.remove(response.relay_token, journal=journal)).removed
        assert sorted(r.outcome for r in await read_records(journal, "x")) == ["removed", "unknown"]
    assert (await create_in_run(client, report, url, "x"))[0].counts == {"unknown": 1}
    assert len(plaid.ledger) == 2


async def test_a_shared_error_of_unknown_pairs_stops_the_batch(plaid, client, report, url):
    """The error of the retry counts, not the doubt that is returned."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        await client.relay.create_many(creation_requests(report, 30), journal=journal)
        plaid.clear_faults()
        code = {"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        plaid.fail(Fault(path=CREATE, status=400, body=code))
        sent = len(plaid.requests)
        result = await client.relay.create_many(creation_requests(report, 30), journal=journal, concurrency=2)
        assert result.counts["unknown"] < 6
        assert len(plaid.requests) < sent + 6
        assert result.stopped_by.error_code == "INVALID_API_KEYS"
        assert (await journal.status("x")).counts == {"unknown": 30}


async def test_a_doubt_stays_recorded_if_a_token_takes_the_pair_between_attempts(plaid, report, tmp_path):
    """When a removal fails late, the second attempt isn't sent, and the first one stays in doubt."""
    path = tmp_path / "relay.db"
    removal_rejected = asyncio.Event()

    class SecondAttempt:
        attempts = 0

        async def acquire(self, _):
            self.attempts += 1
            if self.attempts == 2:
                await removal_rejected.wait()

    async with (
        gated_responses() as responses,
        RelayClient(OWNER, base_url=plaid.url) as client,
        RelayClient(OWNER, base_url=plaid.url, session=responses.session) as late,
        RelayClient(OWNER, base_url=plaid.url, rate_limiter=SecondAttempt()) as repeating,
        Journal(path, run="x", key=KEY) as x,
        Journal(path, run="y", key=KEY, on_existing="create") as y,
    ):
        response = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400))
        removal = asyncio.ensure_future(late.relay.remove(response.relay_token, journal=x))
        await responses.held.wait()
        for lock in tmp_path.glob("*.lock"):  # other processes then consider its worker dead
            lock.unlink()
        plaid.fail(Fault(path=CREATE, status=500, when="after", times=1))
        always = evolve(QUICK, replay="always")
        creation = asyncio.ensure_future(repeating.relay.create([report], "p", journal=y, retry=always))
        while len(plaid.ledger) < 2:
            await asyncio.sleep(0.005)
        responses.gate.set()
        with pytest.raises(InvalidRequestError):
            await removal
        removal_rejected.set()
        with pytest.raises(OutcomeUnknownError):
            await creation
        assert (await y.status("y")).counts == {"unknown": 1}
        assert (await client.relay.create([report], "p", journal=x)).relay_token == response.relay_token
    assert tokens_per_partner(plaid) == {"p": 2}


# ----------------------------------------------------------------------------------------- ended processes


async def test_an_intent_of_an_ended_worker_is_unknown(plaid, client, report, url):
    """An intent without an outcome is unknown as soon as its worker has ended."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        statement = schema.entries.update().values(state="begun", token=None)
        await execute(url, statement)
        assert (await journal.status("x")).counts == {"unknown": 1}
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([report], "p", journal=journal)


async def test_a_killed_process_leaves_unknowns(plaid, client, report, url):
    """Its calls are in flight while it may be alive, and unknown once it is dead."""
    for partner in ("p0", "p1", "p2"):
        plaid.fail(Fault(path=CREATE, secondary_client_id=partner, latency=30))
    async with python_process(RUN, plaid.url, url, report, KEY, "60", "4") as process:
        while len(plaid.requests) < 3:
            await asyncio.sleep(0.01)
        async with Journal(url, run="x", key=KEY, lease=4) as journal:
            assert (await journal.status("x")).counts == {"in_flight": 3}
            with pytest.raises(JournalError, match="a process is working on the run 'x'"):
                await journal.forget("x")
            waiting = asyncio.ensure_future(
                client.relay.create_many(creation_requests(report, 4), journal=journal)
            )
            await asyncio.sleep(0.1)
            process.kill()
            await process.wait()
            plaid.clear_faults()
            result = await waiting
            assert result.counts == {"created": 1, "unknown": 3}
            assert "stopped before recording an outcome" in str(result.unknown[0].error)
            assert (await journal.status("x")).error_codes == {"OutcomeUnknownError": 3}


async def test_retry_unknown_creates_for_pairs_of_a_killed_process(plaid, report, url):
    """Once its requests can't be in flight any more, each pair gets a token, and nothing hangs."""
    plaid.fail(*(Fault(path=CREATE, secondary_client_id=f"p{n}", latency=30) for n in range(3)))
    async with python_process(RUN, plaid.url, url, report, KEY, "1", "1") as process:
        while len(plaid.requests) < 3:
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    plaid.clear_faults()
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal, asyncio.timeout(30):
            result = await client.relay.create_many(creation_requests(report, 4), journal=journal)
    assert result.counts == {"created": 4}
    assert tokens_per_partner(plaid) == {f"p{n}": 1 for n in range(4)}


async def test_retry_unknown_does_not_wait_for_an_ended_process(plaid, client, report, url):
    """A worker that has ended has no request in flight."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal)
    async with Journal(url, run="x", key=KEY, retry_unknown=True) as journal:
        statement = schema.entries.update().values(state="begun", token=None)
        await execute(url, statement)
        async with asyncio.timeout(30):
            assert await client.relay.create([report], "p", journal=journal)
    assert tokens_per_partner(plaid) == {"p": 2}
