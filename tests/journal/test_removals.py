"""Removals with a journal: what they record, and which calls wait for them."""

from __future__ import annotations

import asyncio

import pytest
from journal_support import (
    KEY,
    cancelled_before_sending,
    create_in_run,
    creation_requests,
    execute,
    read_records,
)
from sqlalchemy import text
from support import REMOVE

from plaid_relay_async import DuplicateRequestError, InvalidRequestError, JournalError, OutcomeUnknownError
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_a_removed_token_is_not_returned(plaid, client, report, url):
    """The journal has the removal, which isn't sent twice, and the pair gets a new token."""
    async with Journal(url, run="x", key=KEY) as journal:
        first = await client.relay.create([report], "p", journal=journal)
        assert (await client.relay.remove(first.relay_token, journal=journal)).removed
        sent = len(plaid.requests)
        assert (await client.relay.remove(first.relay_token, journal=journal)).inferred
        assert len(plaid.requests) == sent
        second = await client.relay.create([report], "p", journal=journal)
        assert second.relay_token != first.relay_token
        assert (await journal.status("x")).counts == {"created": 1, "removed": 1}


async def test_a_rejection_that_is_not_recorded_says_so(plaid, client, report, url):
    """A run whose own token was removed keeps the record of the removal."""
    first, _ = await create_in_run(client, report, url, "x")
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.remove(first.created[0].relay_token, journal=journal)
    await create_in_run(client, report, url, "y")
    rejected, status = await create_in_run(client, report, url, "x", on_existing="refuse")
    assert isinstance(rejected.failed[0].error, DuplicateRequestError)
    assert not rejected.failed[0].journalled
    assert status.counts == {"removed": 1}
    again, _ = await create_in_run(client, report, url, "z", on_existing="refuse")
    assert again.failed[0].journalled
    assert len(plaid.ledger) == 2


async def test_a_removal_with_an_unknown_outcome_is_repeated(plaid, client, report, url):
    """If the repeat finds no token, it was removed; a removal that fails leaves the token as it was."""
    async with Journal(url, run="x", key=KEY) as journal:
        response = await client.relay.create([report], "p", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=400))
        with pytest.raises(InvalidRequestError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        plaid.fail(Fault(path=REMOVE, status=500, when="after"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        assert [r.outcome for r in await read_records(journal, "x")] == ["created"]
        result = await client.relay.remove_many([response.relay_token], journal=journal)
        assert result.succeeded[0].response.inferred
        assert (await journal.status("x")).counts == {"removed": 1}


async def test_a_token_that_is_not_in_the_journal_is_removed(plaid, client, report, url):
    """It is removed with `journalled=False`, and no run is created for it."""
    response = await client.relay.create([report], "q")
    async with Journal(url, key=KEY) as journal:
        result = await client.relay.remove_many([response.relay_token], journal=journal)
        assert (result.counts, result.succeeded[0].journalled) == ({"removed": 1}, False)
        assert await journal.runs() == []


async def test_a_removal_that_was_cancelled_before_sending_is_undone(plaid, client, report, tmp_path):
    """Its intent is undone. Otherwise the pair would get a second token."""
    path = tmp_path / "relay.db"
    async with Journal(path, run="x", key=KEY) as journal:
        response = await client.relay.create([report], "p", journal=journal)
        async with cancelled_before_sending(
            path, client.relay.remove_many([response.relay_token], journal=journal)
        ):
            pass
        again = await client.relay.create([report], "p", journal=journal)
    assert again.relay_token == response.relay_token
    assert (len(plaid.ledger), len(plaid.requests)) == (1, 1)


async def test_a_creation_waits_for_a_removal(plaid, client, report, url):
    """If the removal fails, the token is returned, and there is no second one."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        response = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400, latency=0.2))
        removal = asyncio.ensure_future(client.relay.remove(response.relay_token, journal=y))
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        assert (await client.relay.create([report], "p", journal=x)).relay_token == response.relay_token
        with pytest.raises(InvalidRequestError):
            await removal
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize("together", [True, False], ids=["one process", "two processes"])
async def test_removals_of_one_token_take_turns(plaid, client, report, url, together):
    """The outcome of one removal isn't overwritten by the outcome of the other."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        response = await client.relay.create([report], "p", journal=x)
        plaid.fail(Fault(path=REMOVE, status=400, latency=0.2, times=1))
        first = asyncio.ensure_future(client.relay.remove(response.relay_token, journal=x))
        while len(plaid.requests) < 2:
            await asyncio.sleep(0.005)
        plaid.fail(Fault(path=REMOVE, status=500, when="after"))
        second = client.relay.remove_many([response.relay_token], journal=x if together else y)
        assert (await second).counts == {"unknown": 1}
        plaid.clear_faults()
        with pytest.raises(InvalidRequestError):
            await first
        assert (await client.relay.remove(response.relay_token, journal=y)).inferred
        assert (await client.relay.create([report], "p", journal=y)).relay_token != response.relay_token


async def test_a_worker_with_an_expired_lease_removes_nothing(plaid, client, report, postgres):
    """Others don't wait for it any more, and could create another token."""
    await postgres.reset()
    async with Journal(postgres.url, run="x", key=KEY) as journal:
        response = await client.relay.create([report], "p", journal=journal)
        await postgres.execute("UPDATE relay_holders SET expires_at = 0")
        with pytest.raises(JournalError, match="the journal lease expired"):
            await client.relay.remove(response.relay_token, journal=journal)
    assert len(plaid.requests) == 1


async def test_a_removal_whose_repeat_fails_is_unknown(plaid, client, report, url):
    """The error of the lost removal is raised, because that one may have been executed."""
    async with Journal(url, run="x", key=KEY) as journal:
        response = await client.relay.create([report], "p", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        plaid.fail(Fault(path=REMOVE, status=400))
        with pytest.raises(OutcomeUnknownError, match="an earlier removal of this token") as caught:
            await client.relay.remove(response.relay_token, journal=journal)
        assert "Remove it again, which is safe" in str(caught.value)
        plaid.clear_faults()
        assert (await client.relay.remove(response.relay_token, journal=journal)).removed


async def test_a_token_counts_until_its_removal_is_confirmed(plaid, client, report, url):
    """After a removal with an unknown outcome nothing is created until the removal is repeated."""
    async with Journal(url, run="x", key=KEY) as journal:
        response = await client.relay.create([report], "p0", journal=journal)
        plaid.fail(Fault(path=REMOVE, status=500, when="before"))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.remove(response.relay_token, journal=journal)
        plaid.clear_faults()
        for retries in ({}, {"retry_unknown": True, "retry_failed": True}):
            with pytest.raises(DuplicateRequestError, match=r"unknown outcome.*Remove it again"):
                await client.relay.create([report], "p0", journal=journal, **retries)
    for settings in ({}, {"retry_unknown": True}, {"on_existing": "refuse"}):
        assert (await create_in_run(client, report, url, "y", **settings))[0].counts == {"failed": 1}
    assert len(plaid.ledger) == 1
    async with Journal(url, run="x", key=KEY) as journal:
        assert (await client.relay.remove(response.relay_token, journal=journal)).removed
    assert (await create_in_run(client, report, url, "y"))[0].counts == {"created": 1}
    assert [entry["removed"] for entry in plaid.ledger] == [True, False]


async def test_another_run_may_create_beside_a_token_whose_removal_is_unknown(plaid, client, report, url):
    """With on_existing="create" another run may create. If the removal fails later, both tokens are valid."""
    first, _ = await create_in_run(client, report, url, "x")
    plaid.fail(Fault(path=REMOVE, status=500, when="before"))
    async with Journal(url, run="x", key=KEY) as journal:
        token = first.created[0].relay_token
        assert (await client.relay.remove_many([token], journal=journal)).counts == {"unknown": 1}
        plaid.clear_faults()
    assert (await create_in_run(client, report, url, "x", on_existing="create"))[0].counts == {"failed": 1}
    assert (await create_in_run(client, report, url, "y", on_existing="create"))[0].counts == {"created": 1}
    assert len(plaid.ledger) == 2


async def test_a_run_creates_no_second_token_for_a_forgotten_one(plaid, client, report, url):
    """This applies to any on_existing; another run may create one."""
    await create_in_run(client, report, url, "x")
    async with Journal(url, run="x", key=KEY) as journal:
        assert await journal.forget("x") == 1
    for _ in range(2):
        result, _ = await create_in_run(client, report, url, "x", on_existing="create")
        assert result.counts == {"failed": 1}
        assert "forgotten" in str(result.failed[0].error)
        assert (await create_in_run(client, report, url, "y", on_existing="create"))[0].counts == {
            "created": 1
        }
    other, _ = await create_in_run(client, report, url, "x")
    assert other.created[0].relay_token == plaid.ledger[-1]["relay_token"]
    assert len(plaid.ledger) == 2


async def test_a_token_is_returned_although_a_newer_one_was_forgotten(plaid, client, report, url):
    """The token that can be returned holds the pair. After its removal the forgotten one counts again."""
    first, _ = await create_in_run(client, report, url, "x")
    await create_in_run(client, report, url, "y", on_existing="create")
    async with Journal(url, key=KEY) as journal:
        assert await journal.forget("y") == 1
    result, _ = await create_in_run(client, report, url, "z")
    assert [each.relay_token for each in result.created] == [first.created[0].relay_token]
    async with Journal(url, run="x", key=KEY) as journal:
        assert (await client.relay.remove(first.created[0].relay_token, journal=journal)).removed
    rejected, _ = await create_in_run(client, report, url, "z")
    assert "forgotten" in str(rejected.failed[0].error)
    assert len(plaid.ledger) == 2


async def test_a_token_that_can_be_returned_takes_over_from_a_removed_one(plaid, client, report, url):
    """Of two other tokens, the older one is returned if the newer one was forgotten."""
    first, _ = await create_in_run(client, report, url, "x")
    await create_in_run(client, report, url, "y", on_existing="create")
    third, _ = await create_in_run(client, report, url, "v", on_existing="create")
    async with Journal(url, key=KEY) as journal:
        assert await journal.forget("y") == 1
        assert (await client.relay.remove(third.created[0].relay_token, journal=journal)).removed
    result, _ = await create_in_run(client, report, url, "z")
    assert [each.relay_token for each in result.created] == [first.created[0].relay_token]
    assert len(plaid.ledger) == 3


async def test_a_run_is_forgotten_once_its_workers_have_ended(plaid, client, report, url):
    """Until its workers have ended, a run isn't forgotten, and the error says what to wait for."""
    async with Journal(url, run="x", key=KEY) as working, Journal(url, key=KEY) as journal:
        await client.relay.create([report], "p", journal=working)
        with pytest.raises(JournalError, match=r"is working on the run 'x'.*Wait until it has ended"):
            await journal.forget("x")
        await working.close()
        assert await journal.forget("x") == 1
    assert not plaid.ledger[0]["removed"]


async def test_forgotten_tokens_are_deleted_and_counted(plaid, client, report, url):
    """The pair isn't created again by accident."""
    async with Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many(creation_requests(report, 3), journal=journal)
    async with Journal(url, run="x", key=KEY) as journal:
        assert await journal.forget("x") == 3
        assert [(r.outcome, r.relay_token) for r in await read_records(journal, "x")] == [
            ("created", None)
        ] * 3
        result = await client.relay.create_many(creation_requests(report, 3), journal=journal)
        assert {type(o.error) for o in result.failed} == {DuplicateRequestError}
    assert len(plaid.ledger) == 3


@pytest.mark.parametrize("change", ["token = NULL, token_digest = NULL", "pair = 'renamed'"])
async def test_a_token_whose_record_changes_while_its_removal_waits(plaid, client, report, url, change):
    """A removal that waits for another one is made, and ends, if the token is forgotten or its pair is renamed."""
    async with Journal(url, run="x", key=KEY) as journal:
        token = (await client.relay.create([report], "p", journal=journal)).relay_token
        plaid.fail(Fault(path=REMOVE, latency=4, times=1))
        first = asyncio.ensure_future(client.relay.remove(token, journal=journal))
        while not plaid.counts[REMOVE]:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(client.relay.remove(token, journal=journal))
        await asyncio.sleep(0.3)
        statement = text(f"UPDATE relay_entries SET {change}")
        await execute(url, statement)
        async with asyncio.timeout(60):
            assert (await first).removed
            (error,) = await asyncio.gather(second, return_exceptions=True)
            assert isinstance(error, InvalidRequestError) if "token" in change else error.removed
            await client.relay.create([report], "p", journal=journal)
    assert len(plaid.ledger) == 2
