"""Plaid's official Python client against the simulator: it must accept all responses with its strict models.

With the gateway, the client only has another address, and a gateway key instead of Plaid's secret.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
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
from plaid.model.beta_webhook_events_list_request import BetaWebhookEventsListRequest
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
from plaid.model.webhook_event_delivery_status import WebhookEventDeliveryStatus
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
    """An event loop in another thread, for the servers of the synchronous client."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    loop.close()


@contextmanager
def running(loop: asyncio.AbstractEventLoop, server: Any) -> Iterator[Any]:
    """Run a simulator or a gateway in that loop."""
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
    """Run a gateway to the simulator, and yield it with the credentials of the lender and of the partner for it.

    The gateway ignores the client_id, and expects a gateway key as the secret.
    """
    keys = {name: new_key(name, credentials=name, operations=operations) for name, _ in (OWNER, PARTNER)}
    server = Gateway(
        [key for key, _ in keys.values()],
        upstream=simulator.url,
        credentials={name: Credentials(name, secret) for name, secret in (OWNER, PARTNER)},
        operations=operations,
    )
    with running(loop, server):
        yield server, ("any-client-id", keys[OWNER[0]][1]), ("any-client-id", keys[PARTNER[0]][1])


@pytest.fixture(params=["directly", "through a gateway"])
def route(
    request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, simulator: Simulator
) -> Iterator[Any]:
    """The server to call, and the credentials of the lender and of the partner for it."""
    if request.param == "directly":
        yield simulator, OWNER, PARTNER
    else:
        with gateway(loop, simulator, ALL_OPERATIONS) as server_and_credentials:
            yield server_and_credentials


@contextmanager
def official_client(server: Any, credentials: tuple[str, str], *, place: str):
    """Yield the official client and, if the credentials are sent in the body, the fields for each request."""
    client_id, secret = credentials
    keys = (
        {"clientId": client_id, "secret": secret, "plaidVersion": "2020-09-14"} if place == "headers" else {}
    )
    with plaid.ApiClient(plaid.Configuration(host=server.url, api_key=keys)) as pool:
        yield plaid_api.PlaidApi(pool), {} if keys else {"client_id": client_id, "secret": secret}


def retry_until_ready(call):
    """Repeat a call until the report is ready, as Plaid's own tests do."""
    for _ in range(100):
        try:
            return call()
        except plaid.ApiException as error:
            if '"PRODUCT_NOT_READY"' not in error.body:
                raise
            time.sleep(0.02)
    raise AssertionError("the report is still not ready")


def new_report(api, keys) -> tuple[str, str]:
    """Return the access token and the report token of a new sandbox login."""
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
def test_every_operation(simulator, route, place, insights):
    """From a sandbox login to the removal of the relay token, the client accepts every response."""
    asset = ReportType("asset")
    server, lender_credentials, partner_credentials = route
    with (
        official_client(server, lender_credentials, place=place) as (owner, lender_fields),
        official_client(server, partner_credentials, place=place) as (partner, partner_fields),
    ):
        access_token, report_token = new_report(owner, lender_fields)
        created = owner.credit_relay_create(
            CreditRelayCreateRequest(
                report_tokens=[report_token], secondary_client_id=PARTNER[0], **lender_fields
            )
        )
        own = retry_until_ready(
            lambda: owner.asset_report_get(
                AssetReportGetRequest(
                    asset_report_token=report_token, include_insights=insights, **lender_fields
                )
            )
        )
        get = CreditRelayGetRequest(
            relay_token=created.relay_token, report_type=asset, include_insights=insights, **partner_fields
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

        pdf = CreditRelayPDFGetRequest(relay_token=created.relay_token, report_type=asset, **partner_fields)
        own_pdf = AssetReportPDFGetRequest(asset_report_token=report_token, **lender_fields)
        with partner.credit_relay_pdf_get(pdf) as file, owner.asset_report_pdf_get(own_pdf) as own_file:
            content = file.read()
            assert content.startswith(b"%PDF-")
            assert own_file.read() == content

        relay_refresh = partner.credit_relay_refresh(
            CreditRelayRefreshRequest(relay_token=created.relay_token, report_type=asset, **partner_fields)
        )
        reread = retry_until_ready(lambda: partner.credit_relay_get(get))
        assert reread.report.asset_report_id == relay_refresh.asset_report_id != own.report.asset_report_id

        own_fast = owner.asset_report_get(
            AssetReportGetRequest(asset_report_token=report_token, fast_report=True, **lender_fields)
        )
        assert own_fast.report["items"][0].accounts[0].transactions == []
        newest = owner.asset_report_get(AssetReportGetRequest(user_token="user-1", **lender_fields))
        assert newest.report.asset_report_id == own.report.asset_report_id

        refreshed = owner.asset_report_refresh(
            AssetReportRefreshRequest(
                asset_report_token=report_token,
                days_requested=30,
                options=AssetReportRefreshRequestOptions(client_report_id="loan-2"),
                **lender_fields,
            )
        )
        refreshed_get = AssetReportGetRequest(
            asset_report_token=refreshed.asset_report_token, **lender_fields
        )
        refreshed_report = retry_until_ready(lambda: owner.asset_report_get(refreshed_get)).report
        assert (refreshed_report.days_requested, refreshed_report.client_report_id) == (30, "loan-2")
        assert refreshed_report.asset_report_id == refreshed.asset_report_id
        filtered = owner.asset_report_filter(
            AssetReportFilterRequest(
                asset_report_token=report_token,
                account_ids_to_exclude=[accounts[0].account_id],
                **lender_fields,
            )
        )
        filtered_get = AssetReportGetRequest(asset_report_token=filtered.asset_report_token, **lender_fields)
        remaining = (
            retry_until_ready(lambda: owner.asset_report_get(filtered_get)).report["items"][0].accounts
        )
        assert [account.account_id for account in remaining] == [
            account.account_id for account in accounts[1:]
        ]

        item_id = own.report["items"][0].item_id
        fire = SandboxItemFireWebhookRequest(
            access_token=access_token,
            webhook_code="PRODUCT_READY",
            webhook_type=WebhookType("ASSETS"),
            **lender_fields,
        )
        assert owner.sandbox_item_fire_webhook(fire).webhook_fired is True
        key = owner.webhook_verification_key_get(
            WebhookVerificationKeyGetRequest(key_id=KEY_ID, **lender_fields)
        ).key
        assert (key.kid, key.alg, key.expired_at) == (KEY_ID, "ES256", None)
        sent = owner.beta_webhook_events_list(
            BetaWebhookEventsListRequest(webhook_codes=["PRODUCT_READY"], item_ids=[item_id], **lender_fields)
        )
        [event] = sent.webhook_events
        assert (event.item_id, event.payload["webhook_code"]) == (item_id, "PRODUCT_READY")
        assert not sent.has_more

        remove = CreditRelayRemoveRequest(relay_token=created.relay_token, **lender_fields)
        assert owner.credit_relay_remove(remove).removed is True
        assert owner.asset_report_remove(
            AssetReportRemoveRequest(asset_report_token=report_token, **lender_fields)
        ).removed
        assert owner.item_remove(ItemRemoveRequest(access_token=access_token, **lender_fields)).request_id
    assert [entry["removed"] for entry in simulator.ledger] == [True]
    assert simulator.counts.keys() == OPERATIONS.keys()


def test_the_list_of_sent_webhooks(simulator, route):
    """The strict models accept each page, and Plaid's errors for a cursor and a start are raised."""
    server, lender_credentials, _ = route
    with official_client(server, lender_credentials, place="headers") as (owner, _):
        access_token, _ = new_report(owner, {})
        codes = ["LOGIN_REPAIRED", "NEW_ACCOUNTS_AVAILABLE", "USER_PERMISSION_REVOKED"]
        for code in codes:
            owner.sandbox_item_fire_webhook(
                SandboxItemFireWebhookRequest(access_token=access_token, webhook_code=code)
            )
        start = datetime.now(UTC) - timedelta(days=1)
        request = BetaWebhookEventsListRequest(count=2, start_time=start, webhook_types=["ITEM"])
        first = owner.beta_webhook_events_list(request)
        rest = owner.beta_webhook_events_list(
            BetaWebhookEventsListRequest(cursor=first.next_cursor, webhook_types=["ITEM"])
        )
        events = [*first.webhook_events, *rest.webhook_events]
        assert [event.webhook_code for event in events] == codes
        assert (first.has_more, rest.has_more) == (True, False)
        assert len({event.webhook_message_id for event in events}) == 3
        assert {event.destination_url for event in events} == {"https://lender.example/plaid"}
        delivered = BetaWebhookEventsListRequest(delivery_statuses=[WebhookEventDeliveryStatus("DELIVERED")])
        assert owner.beta_webhook_events_list(delivered).webhook_events == []
        too_early = BetaWebhookEventsListRequest(start_time=start - timedelta(days=7))
        with pytest.raises(plaid.ApiException) as caught:
            owner.beta_webhook_events_list(too_early)
        assert json.loads(caught.value.body)["error_code"] == "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE"
        simulator.fail(Fault(status=400, body={"error_code": "WEBHOOK_EVENTS_CURSOR_EXPIRED"}))
        with pytest.raises(plaid.ApiException) as caught:
            owner.beta_webhook_events_list(BetaWebhookEventsListRequest(cursor=rest.next_cursor))
        assert json.loads(caught.value.body)["error_type"] == "INVALID_INPUT"


@pytest.mark.parametrize("insights", [False, True])
def test_reports_of_all_kinds(simulator, insights):
    """The strict models also accept a big report, one without each part, and one of no days."""
    parts = ["owners", "transactions", "investments"]
    tokens = [
        simulator.add_report(transactions=2_000, days=731, investments=True),
        simulator.add_report(missing=parts, investments=True),
        simulator.add_report(days=0),
        *(simulator.add_report(investments=True) for _ in range(10)),
    ]
    with official_client(simulator, OWNER, place="headers") as (owner, _):
        requests = [
            AssetReportGetRequest(asset_report_token=token, include_insights=insights) for token in tokens
        ]
        big, incomplete, *_ = [owner.asset_report_get(request) for request in requests]
    assert sum(len(account.transactions) for account in big.report["items"][0].accounts) == 2_000
    assert [warning.warning_code for warning in incomplete.warnings] == [
        f"{part.upper()}_UNAVAILABLE" for part in parts
    ]
    assert incomplete.warnings[0].cause.item_id == incomplete.report["items"][0].item_id


def test_causes_of_a_failure(simulator):
    """An Item whose data is not available is listed in the causes."""
    with official_client(simulator, OWNER, place="headers") as (owner, _):
        access_token, report_token = new_report(owner, {})
        simulator.break_item(access_token, "ITEM_LOCKED")
        refreshed = owner.asset_report_refresh(AssetReportRefreshRequest(asset_report_token=report_token))
        get = AssetReportGetRequest(asset_report_token=refreshed.asset_report_token)
        with pytest.raises(plaid.ApiException) as caught:
            retry_until_ready(lambda: owner.asset_report_get(get))
    error_body = json.loads(caught.value.body)
    assert (caught.value.status, error_body["error_code"]) == (400, "DATA_UNAVAILABLE")
    assert error_body["causes"][0]["error_code"] == "ITEM_LOCKED"


def test_scripted_error(simulator):
    """A fault with one of Plaid's codes raises an error with the type of that code."""
    simulator.fail(Fault(status=400, body={"error_code": "INSIGHTS_NOT_ENABLED"}))
    with (
        official_client(simulator, OWNER, place="headers") as (owner, _),
        pytest.raises(plaid.ApiException) as caught,
    ):
        owner.asset_report_get(AssetReportGetRequest(asset_report_token="any"))
    assert json.loads(caught.value.body)["error_type"] == "ASSET_REPORT_ERROR"


def test_error(simulator):
    """An error of the simulator raises the client's exception, with the status and Plaid's error body."""
    with official_client(simulator, OWNER, place="headers") as (owner, _):
        request = CreditRelayCreateRequest(report_tokens=["assets-sandbox-0"], secondary_client_id=PARTNER[0])
        with pytest.raises(plaid.ApiException) as caught:
            owner.credit_relay_create(request)
    assert caught.value.status == 400
    assert '"INVALID_ASSET_REPORT_TOKEN"' in caught.value.body


@pytest.mark.parametrize("place", ["headers", "body"])
def test_relay_with_gateway_keys_alone(loop, simulator, place):
    """With a gateway's default operations the lender's key creates and removes, the partner's reads and refreshes."""
    asset, report_token = ReportType("asset"), simulator.add_report()
    with (
        gateway(loop, simulator, RELAY_OPERATIONS) as (server, lender_credentials, partner_credentials),
        official_client(server, lender_credentials, place=place) as (owner, lender_fields),
        official_client(server, partner_credentials, place=place) as (partner, partner_fields),
        official_client(simulator, PARTNER, place=place) as (direct, direct_fields),
    ):
        create = CreditRelayCreateRequest(
            report_tokens=[report_token], secondary_client_id=PARTNER[0], **lender_fields
        )
        token = owner.credit_relay_create(create).relay_token
        get = CreditRelayGetRequest(relay_token=token, report_type=asset, **partner_fields)
        assert partner.credit_relay_get(get).report.asset_report_id
        pdf, direct_pdf = (
            CreditRelayPDFGetRequest(relay_token=token, report_type=asset, **fields)
            for fields in (partner_fields, direct_fields)
        )
        with (
            partner.credit_relay_pdf_get(pdf) as through,
            direct.credit_relay_pdf_get(direct_pdf) as directly,
        ):
            assert through.read() == directly.read()
        refresh = CreditRelayRefreshRequest(relay_token=token, report_type=asset, **partner_fields)
        assert partner.credit_relay_refresh(refresh).relay_token == token
        with pytest.raises(plaid.ApiException) as caught:
            partner.item_remove(ItemRemoveRequest(access_token="any", **partner_fields))
        assert (caught.value.status, json.loads(caught.value.body)["error_type"]) == (403, "GATEWAY_ERROR")
        assert (
            owner.credit_relay_remove(CreditRelayRemoveRequest(relay_token=token, **lender_fields)).removed
            is True
        )
    secrets = {
        each.headers.get("plaid-secret")
        for each in simulator.requests
        if each.path != "/credit/relay/pdf/get"
    }
    assert secrets == {OWNER[1], PARTNER[1]}


@pytest.mark.parametrize("place", ["headers", "body"])
def test_a_secret_that_is_no_gateway_key(loop, simulator, place):
    """The gateway rejects Plaid's own secret, and the client's exception has the reason."""
    with (
        gateway(loop, simulator, RELAY_OPERATIONS) as (server, _, _),
        official_client(server, OWNER, place=place) as (owner, lender_fields),
        pytest.raises(plaid.ApiException) as caught,
    ):
        owner.credit_relay_remove(CreditRelayRemoveRequest(relay_token="any", **lender_fields))
    error_body = json.loads(caught.value.body)
    assert (caught.value.status, error_body["error_code"]) == (401, "UNAUTHORIZED_KEY")
    assert error_body["suggested_action"]
    assert not simulator.requests
