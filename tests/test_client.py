from __future__ import annotations

import inspect
from datetime import date

import pytest
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import (
    BatchOptions,
    InvalidRequestError,
    RelayClient,
    RelayCreateRequest,
    RequestValidationError,
    client,
    models,
)
from plaid_relay_async.simulator import Fault, Simulator

OPERATION_GROUPS = (
    client.Relay,
    client.AssetReports,
    client.Sandbox,
    client.Items,
    client.WebhookVerificationKeys,
    client.WebhookEvents,
)
OPERATIONS = [
    method
    for group in OPERATION_GROUPS
    for name, method in vars(group).items()
    if callable(method) and not name.startswith("_")
]


@pytest.mark.parametrize("where", ["headers", "body"])
async def test_a_report_from_item_to_removal(where):
    """The complete path: item, report, relay token, the partner's read, refresh, removal."""
    async with (
        Simulator(
            clients={OWNER.client_id: OWNER.secret, PARTNER.client_id: PARTNER.secret}, generation_delay=0
        ) as plaid,
        RelayClient(OWNER, base_url=plaid.url, credentials_in=where, retry=QUICK) as owner,
        RelayClient(PARTNER, base_url=plaid.url, credentials_in=where, retry=QUICK) as partner,
    ):
        public = await owner.sandbox.create_public_token()
        item = await owner.item.exchange_public_token(public.public_token)
        report = await owner.asset_report.create([item.access_token], 60, client_report_id="loan-1")
        own = await owner.asset_report.get(report.asset_report_token, include_insights=True)
        created = await owner.relay.create([report.asset_report_token], PARTNER.client_id)
        shared = await partner.relay.get(created.relay_token)
        assert shared.report.asset_report_id == own.report.asset_report_id == report.asset_report_id
        assert shared.report.client_report_id == "loan-1"
        assert shared.report.items[0].item_id == item.item_id
        pdf = await partner.relay.get_pdf(created.relay_token)
        assert pdf.content.startswith(b"%PDF-")
        assert pdf.request_id
        refreshed = await partner.relay.refresh(created.relay_token, webhook="https://example.com/hook")
        assert refreshed.asset_report_id != report.asset_report_id
        with pytest.raises(InvalidRequestError):
            await owner.relay.get(created.relay_token)
        assert (await owner.relay.remove(created.relay_token)).removed
        with pytest.raises(InvalidRequestError):
            await partner.relay.get(refreshed.relay_token)


async def test_a_report_is_refreshed_filtered_printed_and_removed():
    """What a lender can do with its own report, and with the Item behind it."""
    async with (
        Simulator(generation_delay=0) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as owner,
    ):
        options = models.SandboxPublicTokenCreateOptions(
            webhook="https://example.com/hook",
            transactions=models.SandboxTransactions(start_date=date(2026, 1, 1), end_date=date(2026, 2, 1)),
        )
        public = await owner.sandbox.create_public_token(options=options)
        item = await owner.item.exchange_public_token(public.public_token)
        fired = await owner.sandbox.fire_webhook(
            item.access_token, models.WebhookCode.PRODUCT_READY, webhook_type=models.WebhookType.ASSETS
        )
        assert fired.webhook_fired
        assert plaid.webhooks[0]["url"] == "https://example.com/hook"
        reports = owner.asset_report
        first = await reports.create([item.access_token], 60, add_ons=[models.AddOn.INVESTMENTS])
        fresh = await reports.refresh(first.asset_report_token, days_requested=30, client_report_id="second")
        refreshed = await reports.refresh(first.asset_report_token)
        response = (await reports.get(fresh.asset_report_token)).report
        assert (response.days_requested, response.client_report_id) == (30, "second")
        assert (await reports.get(refreshed.asset_report_token)).report.days_requested == 60
        one, *others = [account.account_id for account in response.accounts()]
        filtered = await reports.filter(fresh.asset_report_token, others)
        [remaining] = (await reports.get(filtered.asset_report_token)).report.accounts()
        assert remaining.account_id == one
        pdf = await reports.get_pdf(filtered.asset_report_token, days_to_include=5)
        assert pdf.content.startswith(b"%PDF-")
        assert (await reports.remove(filtered.asset_report_token)).removed
        reason = models.ItemRemoveReason.OTHER
        assert not (await owner.item.remove(item.access_token, reason_code=reason)).inferred
        with pytest.raises(InvalidRequestError):
            await reports.create([item.access_token], 60)


async def test_a_removal_with_a_lost_response_is_inferred(plaid, client):
    """The repeated removal finds nothing, so the object is removed, for each kind of object."""
    public = await client.sandbox.create_public_token()
    item = await client.item.exchange_public_token(public.public_token)
    report = plaid.add_report()
    for path in ("/item/remove", "/asset_report/remove"):
        plaid.fail(Fault(path=path, when="after", close=True, times=1))
    assert await client.item.remove(item.access_token) == models.ItemRemoveResponse(inferred=True)
    removal = await client.asset_report.remove(report)
    assert removal == models.AssetReportRemoveResponse(removed=True, inferred=True)


async def test_get_a_webhook_verification_key(client):
    """A key is read by its ID, and an unknown ID is an error."""
    response = await client.webhook_verification_key.get("6c5516e1-92dc-479e-a8ff-5a51992e0001")
    assert (response.key.kid, response.key.alg, response.key.crv) == (
        "6c5516e1-92dc-479e-a8ff-5a51992e0001",
        "ES256",
        "P-256",
    )
    with pytest.raises(InvalidRequestError) as caught:
        await client.webhook_verification_key.get("another")
    assert caught.value.error_code == "INVALID_WEBHOOK_VERIFICATION_KEY_ID"


async def test_create_and_create_many_send_the_same_request(plaid, client):
    """Both send the same request."""
    report = plaid.add_report()
    await client.relay.create([report], "one", webhook="https://example.com/hook")
    rows = RelayCreateRequest.fan_out([report], ["many"], webhook="https://example.com/hook")
    await client.relay.create_many(rows)
    one, many = plaid.requests
    assert one.headers == many.headers | {"content-length": one.headers["content-length"]}
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["one", "many"]


@pytest.mark.parametrize("method", OPERATIONS, ids=lambda m: m.__qualname__)
def test_every_operation_takes_a_timeout_and_a_policy_and_is_documented(method):
    """Each call takes `timeout=` and `retry=`; its docstring has arguments, errors and Plaid's page."""
    parameters = inspect.signature(method).parameters.keys() - {"self"}
    documentation = inspect.getdoc(method)
    if method.__name__.endswith("_many"):
        # Their shared arguments are documented once.
        assert "`BatchOptions`" in documentation
        parameters |= BatchOptions.__annotations__.keys()
        documentation += inspect.getdoc(BatchOptions)
    assert {"timeout", "retry"} <= parameters
    assert "Raises:" in documentation
    # These refer to another operation, which they run many times, later, or into a file.
    if not method.__name__.endswith(("_many", "wait_until_ready", "download_pdf")):
        assert "https://plaid.com/docs/" in documentation
        assert "plaid-python" in documentation
    for name in parameters:
        assert f"{name}:" in documentation


async def test_invalid_input_is_rejected_before_anything_is_sent(plaid, client):
    """An invalid value is rejected immediately with the name of its field, and nothing is sent."""
    with pytest.raises(RequestValidationError, match="report_tokens is empty"):
        client.relay.create([], "p")
    with pytest.raises(RequestValidationError, match="relay_token is empty"):
        client.relay.get("")
    assert not plaid.requests
