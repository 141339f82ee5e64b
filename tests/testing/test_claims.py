"""Which tokens count as returned: those that a caller can get."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support import CREATE, OWNER, QUICK, issued_tokens

from plaid_relay_async import ConfigurationError, RelayClient, RelayCreateRequest, RequestValidationError
from plaid_relay_async.simulator import Fault
from plaid_relay_async.testing.claims import Claims


@pytest.fixture
def claims(monkeypatch) -> Claims:
    recorded = Claims()
    recorded.record(monkeypatch)
    return recorded


async def cancel_creation(plaid, client) -> str:
    """Cancel a creation while its request is in flight, and return the token that it creates."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.05))
    task = asyncio.create_task(client.relay.create([plaid.add_report()], "partner-1"))
    while not plaid.ledger:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return issued_tokens(plaid)[0]


async def test_returned_tokens_are_claimed(claims, plaid, client):
    """Tokens of `create` and of both forms of `create_many` are claimed."""
    report = plaid.add_report()
    await client.relay.create([report], "partner-1")
    await client.relay.create_many(RelayCreateRequest.fan_out([report], ["partner-2"]))
    async with client.relay.create_many(RelayCreateRequest.fan_out([report], ["partner-3"])) as outcomes:
        async for _ in outcomes:
            break
    assert len(plaid.ledger) == 3
    assert all(token in claims for token in issued_tokens(plaid))


async def test_a_late_outcome_that_is_only_logged_is_lost(claims, plaid, client):
    """A token of a cancelled call is not claimed if no callback receives it."""
    assert await cancel_creation(plaid, client) not in claims


async def test_a_late_outcome_with_a_callback_is_claimed(claims, plaid):
    """A token of a cancelled call is claimed if `on_late_outcome` receives it."""
    received = []
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, on_late_outcome=received.append) as client:
        token = await cancel_creation(plaid, client)
    assert received[0].relay_token == token
    assert token in claims


async def test_failed_outcomes_claim_nothing(claims, plaid, client):
    """A failed outcome is passed to the caller's callback, and no token is claimed."""
    outcomes = []
    requests = RelayCreateRequest.fan_out(["assets-sandbox-unknown"], ["partner-1"])
    await client.relay.create_many(requests, on_outcome=outcomes.append)
    assert len(outcomes) == 1
    assert "assets-sandbox-unknown" not in claims


async def test_the_methods_still_check_their_arguments(claims, client):
    """Invalid arguments raise the same errors, whose tracebacks have no frame with a token."""

    async def asynchronous(outcome):
        raise NotImplementedError

    with pytest.raises(ConfigurationError):
        client.relay.create_many([], on_outcome=asynchronous)
    with pytest.raises(RequestValidationError) as raised:
        client.relay.create(["assets-sandbox-canary"], "")
    frames = [entry.frame.f_locals for entry in raised.traceback[1:]]
    assert "assets-sandbox-canary" not in repr(frames)


async def test_recording_ends_with_the_patch(plaid, client):
    """Tokens that are returned after the end of the patch are not claimed."""
    recorded = Claims()
    with contextlib.ExitStack() as stack:
        recorded.record(stack.enter_context(pytest.MonkeyPatch.context()))
    created = await client.relay.create([plaid.add_report()], "partner-1")
    assert created.relay_token not in recorded
