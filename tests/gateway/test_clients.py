"""Our own client through the gateway, with gateway keys alone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from processes import wait_until_async
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import Created, Credentials, PlaidRelayError, RelayClient, RelayCreateRequest
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
async def clients(plaid: Simulator, place: str, **options) -> AsyncIterator[tuple[RelayClient, RelayClient]]:
    """An owner and a partner with keys of a gateway before the simulator."""
    operations = {"operations": options["operations"]} if "operations" in options else {}
    made = {who: new_key(who, credentials=who, **operations) for who in CLIENTS}
    keys: list[Key] = [key for key, _ in made.values()]
    credentials = {each.client_id: each for each in (OWNER, PARTNER)}
    async with Gateway(keys, upstream=plaid.url, credentials=credentials, **options) as gateway:
        async with contextlib.AsyncExitStack() as stack:
            owner, partner = [
                await stack.enter_async_context(
                    RelayClient(**PLACES[place](made[who][1]), base_url=gateway.url, retry=QUICK)
                )
                for who in CLIENTS
            ]
            yield owner, partner


@pytest.mark.parametrize("place", PLACES)
async def test_relay_by_gateway_keys_alone(plaid, place):
    """The owner's key creates and removes, the partner's reads and refreshes; a PDF arrives byte for byte."""
    async with (
        clients(plaid, place) as (owner, partner),
        RelayClient(PARTNER, base_url=plaid.url) as direct,
    ):
        made = await owner.relay.create([REPORT], PARTNER.client_id)
        assert made.relay_token == plaid.ledger[0]["relay_token"]
        shared, same = [await each.relay.get(made.relay_token) for each in (partner, direct)]
        assert shared.report == same.report
        pdf, same_pdf = [await each.relay.get_pdf(made.relay_token) for each in (partner, direct)]
        assert pdf.content == same_pdf.content
        assert pdf.request_id
        fresh = await partner.relay.refresh(made.relay_token)
        assert fresh.asset_report_id != shared.report.asset_report_id
        assert (await owner.relay.remove(made.relay_token)).removed
    assert plaid.ledger[0]["removed"]
    secrets = {each.headers["plaid-secret"] for each in plaid.requests}
    assert secrets == {OWNER.secret, PARTNER.secret}


@pytest.mark.parametrize("place", PLACES)
async def test_a_batch_through_the_gateway(plaid, place):
    """Three hundred creations at once: each has its token of the ledger, and nobody has two."""
    async with clients(plaid, place) as (owner, _):
        requests = RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(300)])
        result = await owner.relay.create_many(requests, concurrency=50)
    assert (len(result.created), result.failed, result.unknown) == (300, [], [])
    assert {made.relay_token for made in result.created} == {entry["relay_token"] for entry in plaid.ledger}
    assert len(plaid.ledger) == 300


async def test_every_operation_through_the_gateway(plaid):
    """A gateway that is told to serves all that the client knows, from the login to the removal of the Item."""
    async with clients(plaid, "as a gateway key", operations=ALL_OPERATIONS) as (owner, partner):
        options = SandboxPublicTokenCreateOptions(webhook="https://lender.example/plaid")
        public = await owner.sandbox.create_public_token(options=options)
        item = await owner.item.exchange_public_token(public.public_token)
        made = await owner.asset_report.create([item.access_token], 30)
        relay = await owner.relay.create([made.asset_report_token], PARTNER.client_id)
        report = (await owner.asset_report.wait_until_ready(made.asset_report_token)).report
        assert (await partner.relay.wait_until_ready(relay.relay_token)).report == report
        pdf = await owner.asset_report.get_pdf(made.asset_report_token)
        assert pdf.content == (await partner.relay.get_pdf(relay.relay_token)).content
        assert await owner.asset_report.refresh(made.asset_report_token)
        account = report.items[0].accounts[0].account_id
        assert await owner.asset_report.filter(made.asset_report_token, [account])
        assert (await owner.sandbox.fire_webhook(item.access_token, "PRODUCT_READY")).webhook_fired
        assert await owner.webhook_verification_key.get("6c5516e1-92dc-479e-a8ff-5a51992e0001")
        assert (await owner.relay.remove(relay.relay_token)).removed
        assert (await owner.asset_report.remove(made.asset_report_token)).removed
        assert await owner.item.remove(item.access_token)
    assert plaid.counts.keys() == set(ALL_OPERATIONS) - {"/credit/relay/refresh"}


async def test_a_big_report_arrives_whole(plaid):
    """Megabytes are passed on as they are, many at once."""
    token = plaid.add_report(transactions=1_500, days=365)
    async with (
        clients(plaid, "as a gateway key") as (owner, partner),
        RelayClient(PARTNER, base_url=plaid.url) as direct,
    ):
        made = await owner.relay.create([token], PARTNER.client_id)
        wanted = (await direct.relay.get(made.relay_token, include_insights=True)).report
        came = await asyncio.gather(
            *(partner.relay.get(made.relay_token, include_insights=True) for _ in range(5))
        )
        assert all(each.report == wanted for each in came)


async def test_the_owners_key_is_not_the_partners(plaid):
    """What belongs to a partner isn't read by a key that is bound to the owner's credentials."""
    async with clients(plaid, "as a gateway key") as (owner, partner):
        made = await owner.relay.create([REPORT], PARTNER.client_id)
        with pytest.raises(InvalidRequestError):
            await owner.relay.get(made.relay_token)
        with pytest.raises(InvalidRequestError):
            await partner.relay.remove(made.relay_token)


@pytest.mark.parametrize("place", PLACES)
async def test_a_wrong_key_stops_a_batch(plaid, place):
    """An error that all partners share ends the batch after the first few: nothing is unknown."""
    async with Gateway([], upstream=plaid.url, credentials={"default": OWNER}) as gateway:
        wrong = PLACES[place]("plaid-gateway-of-nobody")
        async with RelayClient(**wrong, base_url=gateway.url, retry=QUICK) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.relay.create([REPORT], "p")
            assert caught.value.error_code == "UNAUTHORIZED_KEY"
            result = await client.relay.create_many(
                RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(200)]), concurrency=5
            )
    assert (result.created, result.unknown) == ([], [])
    assert len(result.failed) < 20
    assert not plaid.requests


async def test_a_rate_is_kept_and_the_batch_goes_on(plaid):
    """A key's rate makes a batch wait, as Plaid's own limit would; all are created in the end."""
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


async def test_closing_the_gateway_lets_a_call_end(plaid):
    """A call in flight has its answer, and a new one isn't taken."""
    key, secret = new_key("one")
    gateway = Gateway([key], upstream=plaid.url, credentials={"default": OWNER})
    await gateway.start()
    async with RelayClient(gateway_key=secret, base_url=gateway.url, retry=QUICK) as client:
        plaid.fail(Fault(latency=2.0))
        call = asyncio.ensure_future(client.relay.create([REPORT], "p"))
        await wait_until_async(lambda: plaid.requests)
        closing = asyncio.ensure_future(gateway.close())
        await asyncio.sleep(0.05)  # it begins to close
        with pytest.raises(PlaidRelayError) as caught:
            await client.relay.create([REPORT], "late")
        assert caught.value.sent is False
        assert (await call).relay_token == plaid.ledger[0]["relay_token"]
        await closing
    assert len(plaid.ledger) == 1
