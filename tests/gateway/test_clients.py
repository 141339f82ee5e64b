"""The package's client through the gateway, with gateway keys only."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from processes import wait_until_async
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import Created, Credentials, PlaidRelayError, RelayClient, RelayCreateRequest
from plaid_relay_async.config import USER_AGENT
from plaid_relay_async.errors import AuthenticationError, InvalidRequestError
from plaid_relay_async.gateway import ALL_OPERATIONS, Gateway, Key, new_key
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.models import SandboxPublicTokenCreateOptions
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPORT = "assets-sandbox-0001"
CLIENTS = {each.client_id: each.secret for each in (OWNER, PARTNER)}
PLACES = {
    "as a gateway key": lambda key: {"gateway_key": key},
    "as the secret, in headers": lambda key: {"credentials": Credentials("anybody", key)},
    "as the secret, in the body": lambda key: {
        "credentials": Credentials("x", key),
        "credentials_in": "body",
    },
}


@pytest.fixture
async def plaid() -> AsyncIterator[Simulator]:
    async with Simulator(clients=CLIENTS, reports=[REPORT], generation_delay=0.05) as simulator:
        yield simulator


@contextlib.asynccontextmanager
async def relay_clients(
    plaid: Simulator, place: str, **options
) -> AsyncIterator[tuple[RelayClient, RelayClient]]:
    """Run a gateway to the simulator, and yield clients with the keys of an owner and a partner."""
    operations = {"operations": options["operations"]} if "operations" in options else {}
    created = {who: new_key(who, credentials=who, **operations) for who in CLIENTS}
    keys: list[Key] = [key for key, _ in created.values()]
    credentials = {each.client_id: each for each in (OWNER, PARTNER)}
    async with Gateway(keys, upstream=plaid.url, credentials=credentials, **options) as gateway:
        async with contextlib.AsyncExitStack() as stack:
            owner, partner = [
                await stack.enter_async_context(
                    RelayClient(
                        **PLACES[place](created[who][1]),
                        base_url=gateway.url,
                        retry=QUICK,
                        application=(who, "1.0"),
                    )
                )
                for who in CLIENTS
            ]
            yield owner, partner


@pytest.mark.parametrize("place", PLACES)
async def test_relay_with_gateway_keys_only(plaid, place):
    """The owner's key creates and removes, the partner's key reads and refreshes, and a PDF arrives unchanged."""
    async with (
        relay_clients(plaid, place) as (owner, partner),
        RelayClient(PARTNER, base_url=plaid.url) as direct,
    ):
        created = await owner.relay.create([REPORT], PARTNER.client_id)
        assert created.relay_token == plaid.ledger[0]["relay_token"]
        shared, same = [await each.relay.get(created.relay_token) for each in (partner, direct)]
        assert shared.report == same.report
        pdf, same_pdf = [await each.relay.get_pdf(created.relay_token) for each in (partner, direct)]
        assert pdf.content == same_pdf.content
        assert pdf.request_id
        refreshed = await partner.relay.refresh(created.relay_token)
        assert refreshed.asset_report_id != shared.report.asset_report_id
        assert (await owner.relay.remove(created.relay_token)).removed
    assert plaid.ledger[0]["removed"]
    assert plaid.requests[0].headers["user-agent"] == f"{USER_AGENT} owner/1.0"
    secrets = {each.headers["plaid-secret"] for each in plaid.requests}
    assert secrets == {OWNER.secret, PARTNER.secret}


@pytest.mark.parametrize("place", PLACES)
async def test_a_batch_through_the_gateway(plaid, place):
    """Of 300 concurrent creations each has the token in the ledger, and no partner has two."""
    async with relay_clients(plaid, place) as (owner, _):
        requests = RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(300)])
        result = await owner.relay.create_many(requests, concurrency=50)
    assert (len(result.created), result.failed, result.unknown) == (300, [], [])
    assert {created.relay_token for created in result.created} == {
        entry["relay_token"] for entry in plaid.ledger
    }
    assert len(plaid.ledger) == 300


async def test_every_operation_through_the_gateway(plaid):
    """A gateway that serves all operations supports all of the client's, from the login to the removal of the Item."""
    async with relay_clients(plaid, "as a gateway key", operations=ALL_OPERATIONS) as (owner, partner):
        options = SandboxPublicTokenCreateOptions(webhook="https://lender.example/plaid")
        public = await owner.sandbox.create_public_token(options=options)
        item = await owner.item.exchange_public_token(public.public_token)
        created = await owner.asset_report.create([item.access_token], 30)
        relay = await owner.relay.create([created.asset_report_token], PARTNER.client_id)
        report = (await owner.asset_report.wait_until_ready(created.asset_report_token)).report
        assert (await partner.relay.wait_until_ready(relay.relay_token)).report == report
        pdf = await owner.asset_report.get_pdf(created.asset_report_token)
        assert pdf.content == (await partner.relay.get_pdf(relay.relay_token)).content
        assert await owner.asset_report.refresh(created.asset_report_token)
        account = report.items[0].accounts[0].account_id
        assert await owner.asset_report.filter(created.asset_report_token, [account])
        assert (await owner.sandbox.fire_webhook(item.access_token, "PRODUCT_READY")).webhook_fired
        assert await owner.webhook_verification_key.get("6c5516e1-92dc-479e-a8ff-5a51992e0001")
        [webhook] = [webhook async for webhook in owner.webhook_events.list()]
        assert webhook.item_id == item.item_id
        assert (await owner.relay.remove(relay.relay_token)).removed
        assert (await owner.asset_report.remove(created.asset_report_token)).removed
        assert await owner.item.remove(item.access_token)
    assert plaid.counts.keys() == set(ALL_OPERATIONS) - {"/credit/relay/refresh"}


async def test_large_reports_arrive_completely(plaid):
    """Several concurrent responses of megabytes arrive unchanged."""
    token = plaid.add_report(transactions=1_500, days=365)
    async with (
        relay_clients(plaid, "as a gateway key") as (owner, partner),
        RelayClient(PARTNER, base_url=plaid.url) as direct,
    ):
        created = await owner.relay.create([token], PARTNER.client_id)
        expected = (await direct.relay.get(created.relay_token, include_insights=True)).report
        received = await asyncio.gather(
            *(partner.relay.get(created.relay_token, include_insights=True) for _ in range(5))
        )
        assert all(each.report == expected for each in received)


async def test_the_owners_key_is_not_the_partners(plaid):
    """A key with the owner's credentials can't read what belongs to a partner."""
    async with relay_clients(plaid, "as a gateway key") as (owner, partner):
        created = await owner.relay.create([REPORT], PARTNER.client_id)
        with pytest.raises(InvalidRequestError):
            await owner.relay.get(created.relay_token)
        with pytest.raises(InvalidRequestError):
            await partner.relay.remove(created.relay_token)


@pytest.mark.parametrize("place", PLACES)
async def test_an_invalid_key_stops_a_batch(plaid, place):
    """An error that affects all requests ends the batch after the first few; no outcome is unknown."""
    async with Gateway([], upstream=plaid.url, credentials={"default": OWNER}) as gateway:
        invalid = PLACES[place]("plaid-gateway-unknown")
        async with RelayClient(**invalid, base_url=gateway.url, retry=QUICK) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.relay.create([REPORT], "p")
            assert caught.value.error_code == "UNAUTHORIZED_KEY"
            result = await client.relay.create_many(
                RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(200)]), concurrency=5
            )
    assert (result.created, result.unknown) == ([], [])
    assert len(result.failed) < 20
    assert not plaid.requests


async def test_a_batch_waits_for_a_rate_limit(plaid):
    """A batch waits for a key's rate limit as for Plaid's, and all creations succeed."""
    key, secret = new_key("one", rate=RateLimit(20, 0.5))
    async with Gateway([key], upstream=plaid.url, credentials={"default": OWNER}) as gateway:
        async with RelayClient(gateway_key=secret, base_url=gateway.url, retry=QUICK) as client:
            outcomes = []
            async with client.relay.create_many(
                RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(40)])
            ) as batch:
                async for outcome in batch:
                    outcomes.append(outcome)
    assert [type(each) for each in outcomes] == [Created] * 40
    assert len(plaid.ledger) == 40


async def test_closing_the_gateway_waits_for_a_call_in_flight(plaid):
    """A call in flight gets its response, and a new call isn't accepted."""
    key, secret = new_key("one")
    gateway = Gateway([key], upstream=plaid.url, credentials={"default": OWNER})
    await gateway.start()
    async with RelayClient(gateway_key=secret, base_url=gateway.url, retry=QUICK) as client:
        plaid.fail(Fault(latency=2.0))
        call = asyncio.ensure_future(client.relay.create([REPORT], "p"))
        await wait_until_async(lambda: plaid.requests)
        closing = asyncio.ensure_future(gateway.close())
        await asyncio.sleep(0.05)  # until it has begun to close
        with pytest.raises(PlaidRelayError) as caught:
            await client.relay.create([REPORT], "late")
        assert caught.value.sent is False
        assert (await call).relay_token == plaid.ledger[0]["relay_token"]
        await closing
    assert len(plaid.ledger) == 1
