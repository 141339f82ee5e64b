"""Plaid's own Python client, pointed at the simulator: all it sends is taken, all it gets fits its strict models."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import plaid
import pytest
from plaid.api import plaid_api
from plaid.model.asset_report_add_ons import AssetReportAddOns
from plaid.model.asset_report_create_request import AssetReportCreateRequest
from plaid.model.asset_report_create_request_options import AssetReportCreateRequestOptions
from plaid.model.asset_report_get_request import AssetReportGetRequest
from plaid.model.asset_report_pdf_get_request import AssetReportPDFGetRequest
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
from plaid.model.sandbox_public_token_create_request import SandboxPublicTokenCreateRequest

from plaid_relay_async.simulator import Simulator

OWNER, PARTNER = ("owner", "owner-secret"), ("partner", "partner-secret")


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """One that runs beside the synchronous client, in the event loop of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Simulator:
        running = Simulator(clients=dict((OWNER, PARTNER)), generating=0.05)
        await running.start()
        return running

    running = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=5)
    yield running
    asyncio.run_coroutine_threadsafe(running.close(), loop).result(timeout=5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    loop.close()


@contextmanager
def official(simulator: Simulator, credentials: tuple[str, str], *, place: str):
    """The official client and, where the credentials go in the body, those to give to each request."""
    client_id, secret = credentials
    keys = (
        {"clientId": client_id, "secret": secret, "plaidVersion": "2020-09-14"} if place == "headers" else {}
    )
    with plaid.ApiClient(plaid.Configuration(host=simulator.url, api_key=keys)) as pool:
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
        institution_id="ins_109508", initial_products=[Products("assets")], **keys
    )
    public_token = api.sandbox_public_token_create(login).public_token
    exchange = ItemPublicTokenExchangeRequest(public_token=public_token, **keys)
    access_token = api.item_public_token_exchange(exchange).access_token
    options = AssetReportCreateRequestOptions(
        client_report_id="loan-1",
        webhook="https://lender.example/plaid",
        add_ons=[AssetReportAddOns("investments")],
        user=AssetReportUser(first_name="Alberta", client_user_id="u-1"),
    )
    create = AssetReportCreateRequest(
        access_tokens=[access_token], days_requested=60, options=options, **keys
    )
    return access_token, api.asset_report_create(create).asset_report_token


@pytest.mark.parametrize("place", ["headers", "body"])
@pytest.mark.parametrize("insights", [False, True])
def test_the_whole_way(simulator, place, insights):
    """Owner and partner go from a sandbox login to a removed relay token, and every answer is readable."""
    asset = ReportType("asset")
    with (
        official(simulator, OWNER, place=place) as (owner, ours),
        official(simulator, PARTNER, place=place) as (partner, theirs),
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
        assert accounts[-1].investments.holdings[0].quantity > 0

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

        remove = CreditRelayRemoveRequest(relay_token=made.relay_token, **ours)
        assert owner.credit_relay_remove(remove).removed is True
        assert owner.asset_report_remove(
            AssetReportRemoveRequest(asset_report_token=report_token, **ours)
        ).removed
        assert owner.item_remove(ItemRemoveRequest(access_token=access_token, **ours)).request_id
    assert [entry["removed"] for entry in simulator.ledger] == [True]


def test_refusal(simulator):
    """A refusal reaches the official client's user as Plaid's: a status, and the full error body."""
    with official(simulator, OWNER, place="headers") as (owner, _):
        request = CreditRelayCreateRequest(report_tokens=["assets-sandbox-0"], secondary_client_id=PARTNER[0])
        with pytest.raises(plaid.ApiException) as caught:
            owner.credit_relay_create(request)
    assert caught.value.status == 400
    assert '"INVALID_ASSET_REPORT_TOKEN"' in caught.value.body
