"""Reports as the client reads them: complete, typed, and without blocking the event loop."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from attrs import fields
from servers import read_request, serving
from support import OWNER

from plaid_relay_async import (
    AssetReportGetResponse,
    AssetReportUser,
    ReadTimeoutError,
    RelayClient,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
    from_json,
    models,
    structure,
    to_json,
    unstructure,
)
from plaid_relay_async.simulator import Fault, Simulator, report_bytes

GET = "/asset_report/get"


class Counting(ThreadPoolExecutor):
    """An executor that counts its tasks."""

    submitted = 0

    def submit(self, *args, **kwargs):
        self.submitted += 1
        return super().submit(*args, **kwargs)


@pytest.fixture
async def threads():
    with Counting() as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        yield executor


@pytest.mark.parametrize(("transactions", "jobs"), [(200, 0), (3_000, 1)])
async def test_a_long_report_is_decoded_in_a_thread(threads, transactions, jobs):
    """Decoding that takes longer than a few milliseconds doesn't block the event loop."""
    body = report_bytes(transactions)

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url) as client:
        response = await client.asset_report.get("t")
    assert response.raw.reveal() == body
    assert threads.submitted == jobs


async def test_a_long_report_that_stalls_is_a_read_timeout(threads):
    """What arrived is decoded in a thread, and the error says that the rest did not arrive in time."""
    body = report_bytes(3_000)

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[:-1]))
        await asyncio.sleep(60)

    timeouts = Timeouts(slow_read=0.2)
    async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
        with pytest.raises(ReadTimeoutError):
            await client.asset_report.get("t", retry=RetryPolicy(attempts=1))
    assert threads.submitted == 1


async def test_a_decode_error_in_a_thread_is_raised(plaid, client):
    """It is the same error, with its path and the request ID."""
    body = json.loads(report_bytes(2_000))
    body["report"]["items"][0]["accounts"][0]["balances"]["current"] = "much"
    plaid.fail(Fault(path=GET, status=200, body=body))
    with pytest.raises(ResponseDecodeError) as caught:
        await client.asset_report.get(plaid.add_report())
    assert caught.value.path == "$.report.items[0].accounts[0].balances.current"
    assert caught.value.request_id == body["request_id"]


async def test_a_report_can_be_stored_and_read_again(plaid, client):
    """All of a full report becomes JSON and the same records again, by either pair of functions."""
    token = plaid.add_report(transactions=400, days=120, investments=True)
    response = await client.asset_report.get(token, include_insights=True)
    stored = to_json(response)
    assert from_json(stored, AssetReportGetResponse) == response
    assert without_nulls(stored) == without_nulls(response.raw.reveal())
    assert structure(json.loads(json.dumps(unstructure(response))), AssetReportGetResponse) == response


def without_nulls(text: bytes) -> object:
    """Remove null fields from JSON, because null and absent are compared as equal."""
    return json.loads(
        text,
        parse_float=Decimal,
        object_pairs_hook=lambda pairs: {name: value for name, value in pairs if value is not None},
    )


async def test_the_records_have_all_fields_of_the_simulator(plaid, client):
    """The simulator, written from Plaid's documents alone, sends no field that the records don't have."""
    token = plaid.add_report(transactions=400, days=120, investments=True)
    response = await client.asset_report.get(token, include_insights=True)
    assert unknown_in(response) == []


def unknown_in(value: object) -> list[str]:
    if isinstance(value, tuple):
        return [name for inner in value for name in unknown_in(inner)]
    if not models.is_record(type(value)):
        return []
    inner = tuple(getattr(value, a.name) for a in fields(type(value)))
    return [*value.additional_properties, *unknown_in(inner)]


async def test_no_repr_shows_personal_data(plaid, client):
    """Names, addresses, account numbers and the bank's texts are in no repr of any part."""
    token = plaid.add_report(transactions=200, days=60, investments=True)
    response = await client.asset_report.get(token, include_insights=True)
    shown = "\n".join(map(repr, records_in(response)))
    for account in response.report.accounts():
        user = [account.name, account.official_name, account.mask, *account.owners[0].names]
        user += [account.owners[0].emails[0].data, account.owners[0].addresses[0].data.street]
        user += [t.original_description for t in account.transactions]
        user += [t.payment_meta.payee for t in account.transactions if t.payment_meta]
        for words in filter(None, user):
            assert f"='{words}'" not in shown


def records_in(value: object):
    if isinstance(value, tuple):
        for inner in value:
            yield from records_in(inner)
    elif models.is_record(type(value)):
        yield value
        for a in fields(type(value)):
            yield from records_in(getattr(value, a.name))


async def test_transactions_iterates_over_all_accounts(plaid, client):
    """The iterator yields what the nested lists contain, in their order."""
    response = await client.asset_report.get(plaid.add_report(transactions=120))
    nested = [t for item in response.report.items for account in item.accounts for t in account.transactions]
    assert [*response.report.transactions()] == nested
    assert len(nested) == 120
    assert [a.account_id for a in response.report.accounts()] == [
        a.account_id for item in response.report.items for a in item.accounts
    ]


async def test_the_user_of_a_request_is_in_the_report():
    """The user is returned as sent, with custom fields, and shows in no repr."""
    user = AssetReportUser(first_name="Anna", ssn="111-22-1234", additional_properties={"loan": "L-1"})
    async with Simulator(generation_delay=0) as plaid, RelayClient(OWNER, base_url=plaid.url) as client:
        public = await client.sandbox.create_public_token()
        item = await client.item.exchange_public_token(public.public_token)
        report = await client.asset_report.create([item.access_token], 30, user=user)
        response = await client.asset_report.get(report.asset_report_token)
    user = response.report.user
    assert (user.first_name, user.ssn, user.email) == ("Anna", "111-22-1234", None)
    for shown in (repr(user), repr(response), repr(user)):
        assert "111-22-1234" not in shown
        assert "Anna" not in shown
