"""The result of a batch, and its outcomes."""

from __future__ import annotations

import pytest
from batch_support import create_requests, create_tokens
from support import CREATE

from plaid_relay_async import (
    Created,
    Failed,
    InvalidRequestError,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayCreateRequest,
    RelayCreateResponse,
    Unknown,
)
from plaid_relay_async.simulator import Fault


async def test_an_outcome_has_its_attempts_and_request_id(plaid, client):
    """An outcome has its attempts, time, request ID and request; its repr doesn't show the token."""
    plaid.fail(Fault(path=CREATE, status=429, times=1))
    result = await client.relay.create_many(create_requests(plaid, 1))
    (created,) = result.created
    assert (created.attempts, created.journalled) == (2, False)
    assert created.elapsed > 0
    assert created.request_id == plaid.ledger[0]["request_id"]
    assert "sandbox" not in repr(created)
    assert "partner-0" in repr(created)


def test_outcomes_share_their_attributes():
    """Created, Failed and Unknown differ only in the response and the error."""
    request = RelayCreateRequest(["t"], "p")
    shared = {"request": request, "attempts": 1, "elapsed": 0.1, "request_id": None}
    assert Created(response=RelayCreateResponse("t"), **shared).journalled is False
    assert Failed(error=PlaidRelayError("x"), **shared).journalled is False
    assert Unknown(error=OutcomeUnknownError("x"), **shared).journalled is False


async def test_failures_are_raised_as_a_group(plaid, client):
    """Failed and unknown outcomes are in the group; those that a loop received are counted."""
    plaid.fail(
        Fault(path=CREATE, secondary_client_id="partner-3", status=400),
        Fault(path=CREATE, secondary_client_id="partner-5", close=True),
    )
    result = await client.relay.create_many(create_requests(plaid))
    with pytest.raises(ExceptionGroup, match="1 failed, 1 unknown") as caught:
        result.raise_for_failures()
    assert {type(error) for error in caught.value.exceptions} == {InvalidRequestError, OutcomeUnknownError}
    async with client.relay.create_many(create_requests(plaid)) as outcomes:
        async for _ in outcomes:
            pass
    with pytest.raises(ExceptionGroup) as caught:
        outcomes.result.raise_for_failures()
    assert "the loop received 2 of the failed and unknown outcomes" in str(caught.value.exceptions[0])
    assert "INVALID_FIELD 1" in str(caught.value.exceptions[0])


async def test_created_is_an_alias_of_succeeded(plaid, client):
    """`created` is `succeeded`, and can't be assigned."""
    result = await client.relay.create_many(RelayCreateRequest.fan_out([plaid.add_report()], ["a"]))
    assert result.created is result.succeeded
    assert isinstance(result.created[0], Created)
    with pytest.raises(AttributeError):
        result.created = []


async def test_only_creations_have_created_outcomes(plaid, client):
    """The result of another operation has no `created`."""
    tokens = await create_tokens(client, plaid, 1)
    assert not hasattr(await client.relay.remove_many(tokens), "created")
