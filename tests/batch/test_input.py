"""The input of a batch: which requests and tokens it may contain, how it is read, and duplicates."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest
from batch_support import MANY, all_outcomes, assert_nothing_lost, create_requests, create_tokens
from support import CREATE, QUICK

from plaid_relay_async import (
    BatchStoppedError,
    Credentials,
    DuplicateRequestError,
    RelayClient,
    RelayCreateRequest,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRemoveRequest,
    RequestValidationError,
)
from plaid_relay_async.batch import CREATE as CREATIONS
from plaid_relay_async.batch.input import DuplicateFilter
from plaid_relay_async.simulator import Fault

# ------------------------------------------------------------------------------------- requests and tokens


async def test_requests_may_come_from_an_async_iterable(plaid, client):
    """An async iterable, such as a database cursor, is read only as its rows are needed."""

    async def rows():
        for request in create_requests(plaid, 30):
            await asyncio.sleep(0)
            yield request

    result = await client.relay.create_many(rows(), concurrency=4)
    assert len(result.created) == 30
    assert_nothing_lost(plaid, all_outcomes(result))


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("get_many", RelayGetRequest),
        ("get_pdf_many", RelayPdfGetRequest),
        ("refresh_many", RelayRefreshRequest),
        ("remove_many", RelayRemoveRequest),
    ],
)
async def test_the_input_may_contain_requests(plaid, name, record):
    """The input may be async, and may mix tokens and requests of the operation."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        report = plaid.add_report()
        created = [await client.relay.create([report], "both") for _ in range(2)]

        async def rows():
            yield created[0].relay_token
            await asyncio.sleep(0)
            yield record(created[1].relay_token)

        result = await getattr(client.relay, name)(rows())
    assert {o.request.relay_token for o in result.succeeded} == {each.relay_token for each in created}
    assert {type(o.request) for o in result.succeeded} == {record}


async def test_a_request_has_its_own_settings(plaid, client, partner):
    """The settings that apply to all tokens don't change a request."""
    tokens = await create_tokens(client, plaid, 2)
    rows = [tokens[0], RelayGetRequest(tokens[1])]
    result = await partner.relay.get_many(rows, include_insights=True)
    assert {o.request.relay_token: o.request.include_insights for o in result.succeeded} == {
        tokens[0]: True,
        tokens[1]: False,
    }


@pytest.mark.parametrize("name", [*MANY, "create_many"])
async def test_a_single_string_is_rejected_as_input(client, name):
    """It would be read character by character; it is rejected immediately."""
    with pytest.raises(RequestValidationError, match="not one string") as caught:
        getattr(client.relay, name)("credit-relay-sandbox-1")
    assert caught.value.sent is False
    assert "credit-relay" not in str(caught.value)


async def test_an_item_of_another_type_is_rejected(plaid, client):
    """A plain partner id isn't a request; the error names the expected type."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(["partner"])
    assert "RelayCreateRequest" in str(caught.value.__cause__)


async def test_none_among_the_requests_is_rejected(plaid, client):
    """None isn't mistaken for the end of the input."""
    report = plaid.add_report()
    rows = [RelayCreateRequest([report], "a"), None, RelayCreateRequest([report], "b")]
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many(rows, concurrency=1)
    assert "not NoneType" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [("a b", "contains whitespace"), ("", "is empty"), (None, "must be a string, not None")],
)
async def test_an_invalid_token_stops_the_batch(plaid, client, partner, bad, problem):
    """The error has its index, earlier outcomes are in the result, and the rest stays unread."""
    tokens = await create_tokens(client, plaid, 3)
    rows = iter([*tokens, bad, *tokens])
    with pytest.raises(BatchStoppedError) as caught:
        await partner.relay.get_many(rows, concurrency=1)
    cause = caught.value.__cause__
    assert isinstance(cause, RequestValidationError)
    assert cause.field == "relay_tokens[3]"
    assert cause.problem.startswith(problem)
    assert len(caught.value.result.succeeded) == 3
    assert list(rows) == tokens


async def test_a_request_of_another_operation_is_rejected(client):
    """A creation in a batch of removals isn't a token."""
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.remove_many([RelayCreateRequest(["t"], "p")])
    assert "relay_tokens[0] must be a string, not RelayCreateRequest" in str(caught.value.__cause__)
    with pytest.raises(BatchStoppedError) as caught:
        await client.relay.create_many([RelayGetRequest("t")])
    assert "requests[0] must be a RelayCreateRequest, not RelayGetRequest" in str(caught.value.__cause__)


# ------------------------------------------------------------------------------------ an input that raises


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_raises_stops_the_batch(plaid, client, asynchronous):
    """Calls in flight are drained, and BatchStoppedError has the error as its cause and the outcomes."""
    plaid.fail(Fault(path=CREATE, latency=0.05))

    def rows():
        yield from create_requests(plaid, 3)
        raise LookupError("no row")

    async def later():
        for row in rows():
            yield row

    batch = client.relay.create_many(later() if asynchronous else rows())
    with pytest.raises(BatchStoppedError, match="LookupError was raised") as caught:
        await batch
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.result is batch.result
    assert len(batch.result.created) == 3
    assert_nothing_lost(plaid, all_outcomes(batch.result))


async def test_an_input_that_raises_is_reported_after_the_outcomes(plaid, client):
    """A stream yields the outcomes that it has before it raises."""

    def rows():
        yield from create_requests(plaid, 3)
        raise LookupError

    seen = []
    with pytest.raises(BatchStoppedError):
        async with client.relay.create_many(rows()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)
    assert len(seen) == 3


# ---------------------------------------------------------------------------------------------- duplicates


async def test_a_duplicate_pair_fails(plaid, client):
    """The second request for a pair fails without being sent, and the batch continues."""
    report = plaid.add_report()
    rows = list(RelayCreateRequest.fan_out([report], ["a", "b", "a", "c"]))
    rows += RelayCreateRequest.fan_out([plaid.add_report()], ["a"])
    result = await client.relay.create_many(rows)
    (duplicate,) = result.failed
    assert duplicate.request.secondary_client_id == "a"
    assert isinstance(duplicate.error, DuplicateRequestError)
    assert duplicate.error.sent is False
    assert duplicate.attempts == 0
    assert result.error_codes == {"DuplicateRequestError": 1}
    assert len(plaid.ledger) == 4


@pytest.mark.parametrize("name", MANY)
async def test_a_duplicate_token_fails(plaid, name):
    """It isn't sent, whatever the other fields of its request; allow_duplicates=True sends it."""
    both = Credentials("both", "secret")
    async with RelayClient(both, base_url=plaid.url, retry=QUICK) as client:
        created = await client.relay.create([plaid.add_report()], "both")
        many = getattr(client.relay, name)
        result = await many([created.relay_token] * 3)
        assert (len(result.succeeded), len(result.failed)) == (1, 2)
        error = result.failed[0].error
        assert isinstance(error, DuplicateRequestError)
        assert "this relay token is already in the batch" in str(error)
        before = plaid.counts.total()
        allowed = await many([created.relay_token] * 3, allow_duplicates=True)
        assert (len(all_outcomes(allowed)), plaid.counts.total() - before) == (3, 3)


async def test_duplicates_may_be_allowed(plaid, client):
    """With allow_duplicates=True, both requests for a pair are sent."""
    rows = list(RelayCreateRequest.fan_out([plaid.add_report()], ["a", "a"]))
    result = await client.relay.create_many(rows, allow_duplicates=True)
    assert len(result.created) == len(plaid.ledger) == 2


def test_deduplication_needs_little_memory():
    """It takes at most 128 bytes a request, whatever the length of its token and its partner's id."""
    duplicates, count = DuplicateFilter(CREATIONS.identity), 40_000
    tracemalloc.start()
    try:
        for number in range(count):
            assert not duplicates.is_duplicate(
                RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{number:050}")
            )
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / count <= 128
    assert duplicates.is_duplicate(RelayCreateRequest(["assets-sandbox-" + "x" * 100], f"partner-{5:050}"))
