"""What the testing kit knows about the clients of a test: the tokens that the program has, and addresses."""

from __future__ import annotations

import asyncio

import pytest
from journal_support import KEY
from support import CREATE, OWNER, QUICK, issued_tokens

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    Failed,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
    watching,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault
from plaid_relay_async.testing.client_watcher import ClientWatcher


@pytest.fixture
def watcher(monkeypatch) -> ClientWatcher:
    watcher = ClientWatcher()
    monkeypatch.setattr(watching, "watcher", watcher)
    return watcher


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path / "relay.db", run="run", key=KEY)


def requests_for(plaid, count: int) -> list[RelayCreateRequest]:
    return RelayCreateRequest.fan_out([plaid.add_report()], [f"partner-{n}" for n in range(count)])


async def cancel_when_issued(plaid, awaitable) -> str:
    """Cancel a creation while its request is in flight, and return the token that it creates."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.05))
    task = asyncio.ensure_future(awaitable)
    while not plaid.ledger:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return issued_tokens(plaid)[0]


async def await_batch(batch):
    return await batch


# ---------------------------------------------------------------------------------------------- single calls


async def test_the_response_of_a_call(watcher, plaid, client):
    """The program has the token that `create` returns."""
    created = await client.relay.create([plaid.add_report()], "partner-1")
    assert watcher.received_tokens == {created.relay_token}


async def test_a_method_that_was_stored_before(monkeypatch, plaid, client):
    """The program has the token of a method that it stored before anything was watched."""
    create = client.relay.create
    watcher = ClientWatcher()
    monkeypatch.setattr(watching, "watcher", watcher)
    created = await create([plaid.add_report()], "partner-1")
    assert watcher.received_tokens == {created.relay_token}


async def test_a_late_outcome_that_is_only_logged_is_lost(watcher, plaid, client):
    """A token of a cancelled call is lost if no callback receives it."""
    await cancel_when_issued(plaid, client.relay.create([plaid.add_report()], "partner-1"))
    assert watcher.received_tokens == set()


async def test_a_late_outcome_with_a_callback(watcher, plaid):
    """The program has the token of a cancelled call if `on_late_outcome` receives it."""
    received = []
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_late_outcome=received.append) as client:
        token = await cancel_when_issued(plaid, client.relay.create([plaid.add_report()], "partner-1"))
    assert received[0].relay_token == token
    assert watcher.received_tokens == {token}


async def test_a_late_outcome_whose_callback_raises_is_lost(watcher, plaid):
    """A token of a cancelled call is lost if `on_late_outcome` raises an exception."""

    def fail(outcome):
        raise RuntimeError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_late_outcome=fail) as client:
        await cancel_when_issued(plaid, client.relay.create([plaid.add_report()], "partner-1"))
    assert watcher.received_tokens == set()


# --------------------------------------------------------------------------------------------------- batches


async def test_the_result_of_an_awaited_batch(watcher, plaid, client):
    """The program has the tokens of a batch that it awaited."""
    await client.relay.create_many(requests_for(plaid, 3))
    assert watcher.received_tokens == {*issued_tokens(plaid)}


async def test_the_result_of_a_batch_that_stopped(watcher, plaid, client):
    """The program has the tokens of a batch that raised an error, which has the result."""

    def requests():
        yield from requests_for(plaid, 3)
        raise RuntimeError

    with pytest.raises(BatchStoppedError):
        await client.relay.create_many(requests())
    assert len(plaid.ledger) == 3
    assert watcher.received_tokens == {*issued_tokens(plaid)}


async def test_a_cancelled_batch_whose_result_is_not_read(watcher, plaid, client):
    """The tokens of a cancelled batch are lost, unless the program reads the batch's result."""
    batch = client.relay.create_many(requests_for(plaid, 1))
    token = await cancel_when_issued(plaid, await_batch(batch))
    assert watcher.received_tokens == set()
    assert batch.result.created[0].relay_token == token
    assert watcher.received_tokens == {token}


async def test_a_stream_that_is_left_early(watcher, plaid, client):
    """Of a stream that was left, the program has what its loop received, and the rest when it reads the result."""
    received = []
    async with client.relay.create_many(requests_for(plaid, 9), concurrency=3) as outcomes:
        async for outcome in outcomes:
            received.append(outcome.relay_token)
            break
    assert watcher.received_tokens == {*received}
    assert len(plaid.ledger) > 1
    assert len(outcomes.result.created) == len(plaid.ledger) - 1
    assert watcher.received_tokens == {*issued_tokens(plaid)}


async def test_the_result_may_be_read_before_the_end(watcher, plaid, client):
    """A program that has read the result of a stream also has what is added to it later."""
    async with client.relay.create_many(requests_for(plaid, 9), concurrency=3) as outcomes:
        assert outcomes.result is outcomes.result
        async for _ in outcomes:
            break
    assert watcher.received_tokens == {*issued_tokens(plaid)}


async def test_the_callback_for_outcomes(watcher, plaid, client):
    """The program has the tokens that `on_outcome` received, even if it reads no result."""
    received = []
    batch = client.relay.create_many(requests_for(plaid, 1), on_outcome=received.append)
    token = await cancel_when_issued(plaid, await_batch(batch))
    assert received[0].relay_token == token
    assert watcher.received_tokens == {token}


async def test_failed_outcomes_have_no_token(watcher, client):
    """Failed outcomes, and the results of other operations, add no token."""
    requests = RelayCreateRequest.fan_out(["assets-sandbox-unknown"], ["partner-1"])
    result = await client.relay.create_many(requests)
    assert isinstance(result.failed[0], Failed)
    await client.relay.remove_many(["credit-relay-sandbox-unknown"])
    assert watcher.received_tokens == set()


# -------------------------------------------------------------------------------------------- with a journal


async def test_the_journal_has_the_token_of_a_cancelled_call(watcher, plaid, client, journal):
    """A token that a journal has recorded isn't lost, although the call was cancelled."""
    report = plaid.add_report()
    async with journal:
        call = client.relay.create([report], "partner-1", journal=journal)
        token = await cancel_when_issued(plaid, call)
    assert watcher.received_tokens == {token}


async def test_a_recorded_token(watcher, monkeypatch, plaid, client, journal):
    """The program has a token that a journal recorded before, and returns again."""
    report = plaid.add_report()
    async with journal:
        await client.relay.create([report], "partner-1", journal=journal)
        later = ClientWatcher()
        monkeypatch.setattr(watching, "watcher", later)
        await client.relay.create([report], "partner-1", journal=journal)
    assert len(plaid.ledger) == 1
    assert later.received_tokens == watcher.received_tokens == {*issued_tokens(plaid)}


async def test_a_batch_that_is_abandoned(watcher, plaid, journal):
    """The tokens of an abandoned batch are lost if no response has arrived, also with a journal."""
    plaid.fail(Fault(path=CREATE, when="after", stall=60))
    async with journal, RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as client:
        batch = client.relay.create_many(requests_for(plaid, 1), journal=journal)
        task = asyncio.ensure_future(await_batch(batch))
        while not plaid.ledger:
            await asyncio.sleep(0.001)
        batch.abandon()
        result = await task
    assert len(result.unknown) == 1
    assert watcher.received_tokens == set()


# ------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("base_url", ["https://production.plaid.com", "https://gateway.example"])
async def test_other_machines_are_not_called(watcher, base_url):
    """While a test uses a simulator, a client of another machine raises an error and sends nothing."""
    async with RelayClient(OWNER, base_url=base_url) as client:
        with pytest.raises(
            ConfigurationError, match=f"must not call {base_url}: create the client in the test"
        ):
            await client.relay.create(["report-1"], "partner-1")
        assert sum(client.statistics().attempts.values()) == 0
