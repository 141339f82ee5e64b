"""Plaid's own Python client, pointed at the simulator: all it sends is taken, all it gets fits its strict models.

Through the gateway it is the same client with another address, and a gateway's key in the place of its secret.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import plaid
import pytest
from plaid.api import plaid_api
from plaid.model.asset_report_add_ons import AssetReportAddOns
from plaid.model.asset_report_create_request import AssetReportCreateRequest
from plaid.model.asset_report_create_request_options import AssetReportCreateRequestOptions
from plaid.model.asset_report_filter_request import AssetReportFilterRequest
from plaid.model.asset_report_get_request import AssetReportGetRequest
from plaid.model.asset_report_pdf_get_request import AssetReportPDFGetRequest
from plaid.model.asset_report_refresh_request import AssetReportRefreshRequest
from plaid.model.asset_report_refresh_request_options import AssetReportRefreshRequestOptions
from plaid.model.asset_report_remove_request import AssetReportRemoveRequest
from plaid.model.asset_report_user import AssetReportUser
from plaid.model.credit_relay_create_request import CreditRelayCreateRequest
from plaid.model.credit_relay_get_request import CreditRelayGetRequest
from plaid.model.credit_relay_pdf_get_request import CreditRelayPDFGetRequest
from plaid.model.credit_relay_refresh_request import CreditRelayRefreshRequest
from plaid.model.credit_relay_remove_request import CreditRelayRemoveRequest
from plaid.model.item_public_token_exchange_request import ItemPublicTokenExchangeRequest
from plaid.model.item_remove_request import ItemRemoveRequest
from plaid.model.products import Products
from plaid.model.report_type import ReportType
from plaid.model.sandbox_item_fire_webhook_request import SandboxItemFireWebhookRequest
from plaid.model.sandbox_public_token_create_request import SandboxPublicTokenCreateRequest
from plaid.model.sandbox_public_token_create_request_options import SandboxPublicTokenCreateRequestOptions
from plaid.model.webhook_type import WebhookType
from plaid.model.webhook_verification_key_get_request import WebhookVerificationKeyGetRequest

from plaid_relay_async import Credentials
from plaid_relay_async.gateway import ALL_OPERATIONS, RELAY_OPERATIONS, Gateway, new_key
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.simulator.operations import OPERATIONS

OWNER, PARTNER = ("owner", "owner-secret"), ("partner", "partner-secret")
KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in another thread, for what runs beside the synchronous client."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    loop.close()


@contextmanager
def running(loop: asyncio.AbstractEventLoop, server: Any) -> Iterator[Any]:
    """Run a simulator or a gateway on that loop."""
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(timeout=5)
    yield server
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(timeout=5)


@pytest.fixture
def simulator(loop: asyncio.AbstractEventLoop) -> Iterator[Simulator]:
    with running(loop, Simulator(clients=dict((OWNER, PARTNER)), generation_delay=0.05)) as simulator:
        yield simulator


@contextmanager
def gateway(
    loop: asyncio.AbstractEventLoop, simulator: Simulator, operations: tuple[str, ...]
) -> Iterator[tuple[Gateway, tuple[str, str], tuple[str, str]]]:
    """A gateway before the simulator, and what the owner and the partner call it with: ids of no meaning, and keys."""
    made = {who: new_key(who, credentials=who, operations=operations) for who, _ in (OWNER, PARTNER)}
    server = Gateway(
        [key for key, _ in made.values()],
        upstream=simulator.url,
        credentials={who: Credentials(who, secret) for who, secret in (OWNER, PARTNER)},
        operations=operations,
    )
    with running(loop, server):
        yield server, ("anybody", made[OWNER[0]][1]), ("anybody", made[PARTNER[0]][1])


@pytest.fixture(params=["directly", "through a gateway"])
def way(
    request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, simulator: Simulator
) -> Iterator[Any]:
    """Whom to call, and the credentials of owner and partner there."""
    if request.param == "directly":
        yield simulator, OWNER, PARTNER
    else:
        with gateway(loop, simulator, ALL_OPERATIONS) as all_three:
            yield all_three


@contextmanager
def official(server: Any, credentials: tuple[str, str], *, place: str):
    """The official client and, where the credentials go in the body, those to give to each request."""
    client_id, secret = credentials
    keys = (
        {"clientId": client_id, "secret": secret, "plaidVersion": "2020-09-14"} if place == "headers" else {}
    )
    with plaid.ApiClient(plaid.Configuration(host=server.url, api_key=keys)) as pool:
        yield plaid_api.PlaidApi(pool), {} if keys else {"client_id": client_id, "secret": secret}


def patiently(ask):
    """Repeat until the report is ready, as Plaid's own tests do."""
    for _ in range(100):
        try:
            return ask()
        except plaid.ApiException as error:
            if '"PRODUCT_NOT_READY"' not in error.body:
                raise
            time.sleep(0.02)
    raise AssertionError("the report never got ready")


def new_report(api, keys) -> tuple[str, str]:
    """Access token and report token of a fresh sandbox login."""
    login = SandboxPublicTokenCreateRequest(
        institution_id="ins_109508",
        initial_products=[Products("assets")],
        options=SandboxPublicTokenCreateRequestOptions(webhook="https://lender.example/plaid"),
        user_token="user-1",
        **keys,
    )
    public_token = api.sandbox_public_token_create(login).public_token
    exchange = ItemPublicTokenExchangeRequest(public_token=public_token, **keys)
    access_token = api.item_public_token_exchange(exchange).access_token
    options = AssetReportCreateRequestOptions(
        client_report_id="loan-1",
        webhook="https://lender.example/plaid",
        add_ons=[AssetReportAddOns("investments"), AssetReportAddOns("fast_assets")],
        user=AssetReportUser(first_name="Alberta", client_user_id="u-1"),
    )
    create = AssetReportCreateRequest(
        access_tokens=[access_token], days_requested=60, options=options, **keys
    )
    return access_token, api.asset_report_create(create).asset_report_token


@pytest.mark.parametrize("place", ["headers", "body"])
@pytest.mark.parametrize("insights", [False, True])
def test_the_whole_way(simulator, way, place, insights):
    """Owner and partner go from a sandbox login to a removed relay token, and every answer is readable."""
    asset = ReportType("asset")
    server, as_owner, as_partner = way
    with (
        official(server, as_owner, place=place) as (owner, ours),
        official(server, as_partner, place=place) as (partner, theirs),
    ):
        access_token, report_token = new_report(owner, ours)
        made = owner.credit_relay_create(
            CreditRelayCreateRequest(report_tokens=[report_token], secondary_client_id=PARTNER[0], **ours)
        )
        own = patiently(
            lambda: owner.asset_report_get(
                AssetReportGetRequest(asset_report_token=report_token, include_insights=insights, **ours)
            )
        )
        get = CreditRelayGetRequest(
            relay_token=made.relay_token, report_type=asset, include_insights=insights, **theirs
        )
        shared = partner.credit_relay_get(get)
        assert shared.report.to_dict() == own.report.to_dict()
        assert shared.report.user.first_name == "Alberta"
        accounts = shared.report["items"][0].accounts  # `.items` is the model's own method
        assert sum(len(account.transactions) for account in accounts) == 60
        assert all(("merchant_name" in entry) == insights for entry in accounts[0].transactions)
        assert len(accounts[0].historical_balances) == 60
        assert [str(account.type) for account in accounts] == [
            "depository",
            "depository",
            "credit",
            "loan",
            "investment",
            "investment",
        ]
        holding = accounts[-1].investments.holdings[0]
        assert holding.tax_lots[0].quantity == holding.quantity > 0
        assert ("insights" in shared.report) is insights
        if insights:
            assert shared.report.insights.affordability.income.total_income.amount > 0
            assert accounts[0].account_insights.risk.negative_balance.days_with_negative_balance >= 0
            assert accounts[0].transactions[0].credit_category.primary

        pdf = CreditRelayPDFGetRequest(relay_token=made.relay_token, report_type=asset, **theirs)
        own_pdf = AssetReportPDFGetRequest(asset_report_token=report_token, **ours)
        with partner.credit_relay_pdf_get(pdf) as file, owner.asset_report_pdf_get(own_pdf) as own_file:
            content = file.read()
            assert content.startswith(b"%PDF-")
            assert own_file.read() == content

        fresh = partner.credit_relay_refresh(
            CreditRelayRefreshRequest(relay_token=made.relay_token, report_type=asset, **theirs)
        )
        again = patiently(lambda: partner.credit_relay_get(get))
        assert again.report.asset_report_id == fresh.asset_report_id != own.report.asset_report_id

        own_fast = owner.asset_report_get(
            AssetReportGetRequest(asset_report_token=report_token, fast_report=True, **ours)
        )
        assert own_fast.report["items"][0].accounts[0].transactions == []
        newest = owner.asset_report_get(AssetReportGetRequest(user_token="user-1", **ours))
        assert newest.report.asset_report_id == own.report.asset_report_id

        refreshed = owner.asset_report_refresh(
            AssetReportRefreshRequest(
                asset_report_token=report_token,
                days_requested=30,
                options=AssetReportRefreshRequestOptions(client_report_id="loan-2"),
                **ours,
            )
        )
        later = AssetReportGetRequest(asset_report_token=refreshed.asset_report_token, **ours)
        anew = patiently(lambda: owner.asset_report_get(later)).report
        assert (anew.days_requested, anew.client_report_id) == (30, "loan-2")
        assert anew.asset_report_id == refreshed.asset_report_id
        filtered = owner.asset_report_filter(
            AssetReportFilterRequest(
                asset_report_token=report_token, account_ids_to_exclude=[accounts[0].account_id], **ours
            )
        )
        fewer = AssetReportGetRequest(asset_report_token=filtered.asset_report_token, **ours)
        kept = patiently(lambda: owner.asset_report_get(fewer)).report["items"][0].accounts
        assert [account.account_id for account in kept] == [account.account_id for account in accounts[1:]]

        fire = SandboxItemFireWebhookRequest(
            access_token=access_token,
            webhook_code="PRODUCT_READY",
            webhook_type=WebhookType("ASSETS"),
            **ours,
        )
        assert owner.sandbox_item_fire_webhook(fire).webhook_fired is True
        key = owner.webhook_verification_key_get(WebhookVerificationKeyGetRequest(key_id=KEY_ID, **ours)).key
        assert (key.kid, key.alg, key.expired_at) == (KEY_ID, "ES256", None)

        remove = CreditRelayRemoveRequest(relay_token=made.relay_token, **ours)
        assert owner.credit_relay_remove(remove).removed is True
        assert owner.asset_report_remove(
            AssetReportRemoveRequest(asset_report_token=report_token, **ours)
        ).removed
        assert owner.item_remove(ItemRemoveRequest(access_token=access_token, **ours)).request_id
    assert [entry["removed"] for entry in simulator.ledger] == [True]
    assert simulator.counts.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("insights", [False, True])
def test_reports_of_all_kinds(simulator, insights):
    """A big report, one that lacks each part, and one of no days fit the strict models too."""
    parts = ["owners", "transactions", "investments"]
    tokens = [
        simulator.add_report(transactions=2_000, days=731, investments=True),
        simulator.add_report(missing=parts, investments=True),
        simulator.add_report(days=0),
        *(simulator.add_report(investments=True) for _ in range(10)),
    ]
    with official(simulator, OWNER, place="headers") as (owner, _):
        requests = [
            AssetReportGetRequest(asset_report_token=token, include_insights=insights) for token in tokens
        ]
        big, less, *_ = [owner.asset_report_get(request) for request in requests]
    assert sum(len(account.transactions) for account in big.report["items"][0].accounts) == 2_000
    assert [warning.warning_code for warning in less.warnings] == [
        f"{part.upper()}_UNAVAILABLE" for part in parts
    ]
    assert less.warnings[0].cause.item_id == less.report["items"][0].item_id


def test_causes_of_a_failure(simulator):
    """An Item of which the data can't be had is told among the causes."""
    with official(simulator, OWNER, place="headers") as (owner, _):
        access_token, report_token = new_report(owner, {})
        simulator.break_item(access_token, "ITEM_LOCKED")
        fresh = owner.asset_report_refresh(AssetReportRefreshRequest(asset_report_token=report_token))
        get = AssetReportGetRequest(asset_report_token=fresh.asset_report_token)
        with pytest.raises(plaid.ApiException) as caught:
            patiently(lambda: owner.asset_report_get(get))
    told = json.loads(caught.value.body)
    assert (caught.value.status, told["error_code"]) == (400, "DATA_UNAVAILABLE")
    assert told["causes"][0]["error_code"] == "ITEM_LOCKED"


def test_scripted_refusal(simulator):
    """A fault of any of Plaid's codes reaches the official client's user with that code's type."""
    simulator.fail(Fault(status=400, body={"error_code": "INSIGHTS_NOT_ENABLED"}))
    with (
        official(simulator, OWNER, place="headers") as (owner, _),
        pytest.raises(plaid.ApiException) as caught,
    ):
        owner.asset_report_get(AssetReportGetRequest(asset_report_token="any"))
    assert json.loads(caught.value.body)["error_type"] == "ASSET_REPORT_ERROR"


def test_refusal(simulator):
    """A refusal reaches the official client's user as Plaid's: a status, and the full error body."""
    with official(simulator, OWNER, place="headers") as (owner, _):
        request = CreditRelayCreateRequest(report_tokens=["assets-sandbox-0"], secondary_client_id=PARTNER[0])
        with pytest.raises(plaid.ApiException) as caught:
            owner.credit_relay_create(request)
    assert caught.value.status == 400
    assert '"INVALID_ASSET_REPORT_TOKEN"' in caught.value.body


@pytest.mark.parametrize("place", ["headers", "body"])
def test_relay_with_gateway_keys_alone(loop, simulator, place):
    """With a gateway as it comes the owner's key creates and removes, the partner's reads and refreshes."""
    asset, report_token = ReportType("asset"), simulator.add_report()
    with (
        gateway(loop, simulator, RELAY_OPERATIONS) as (server, as_owner, as_partner),
        official(server, as_owner, place=place) as (owner, ours),
        official(server, as_partner, place=place) as (partner, theirs),
        official(simulator, PARTNER, place=place) as (direct, theirs_too),
    ):
        create = CreditRelayCreateRequest(
            report_tokens=[report_token], secondary_client_id=PARTNER[0], **ours
        )
        token = owner.credit_relay_create(create).relay_token
        get = CreditRelayGetRequest(relay_token=token, report_type=asset, **theirs)
        assert partner.credit_relay_get(get).report.asset_report_id
        pdf, pdf_too = (
            CreditRelayPDFGetRequest(relay_token=token, report_type=asset, **who)
            for who in (theirs, theirs_too)
        )
        with partner.credit_relay_pdf_get(pdf) as through, direct.credit_relay_pdf_get(pdf_too) as directly:
            assert through.read() == directly.read()
        refresh = CreditRelayRefreshRequest(relay_token=token, report_type=asset, **theirs)
        assert partner.credit_relay_refresh(refresh).relay_token == token
        with pytest.raises(plaid.ApiException) as caught:
            partner.item_remove(ItemRemoveRequest(access_token="any", **theirs))
        assert (caught.value.status, json.loads(caught.value.body)["error_type"]) == (403, "GATEWAY_ERROR")
        assert owner.credit_relay_remove(CreditRelayRemoveRequest(relay_token=token, **ours)).removed is True
    secrets = {
        each.headers.get("plaid-secret")
        for each in simulator.requests
        if each.path != "/credit/relay/pdf/get"
    }
    assert secrets == {OWNER[1], PARTNER[1]}


@pytest.mark.parametrize("place", ["headers", "body"])
def test_a_secret_that_is_no_key_is_refused(loop, simulator, place):
    """Plaid's own secret opens no gateway; the official client's user reads why."""
    with (
        gateway(loop, simulator, RELAY_OPERATIONS) as (server, _, _),
        official(server, OWNER, place=place) as (owner, ours),
        pytest.raises(plaid.ApiException) as caught,
    ):
        owner.credit_relay_remove(CreditRelayRemoveRequest(relay_token="any", **ours))
    told = json.loads(caught.value.body)
    assert (caught.value.status, told["error_code"]) == (401, "UNAUTHORIZED_KEY")
    assert told["suggested_action"]
    assert not simulator.requests
