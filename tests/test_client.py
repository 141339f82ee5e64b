from __future__ import annotations

import inspect

import pytest
from support import OWNER, PARTNER, QUICK

from plaid_relay_async import InvalidRequestError, RelayClient, RelayCreateRequest, client
from plaid_relay_async.simulator import Simulator

NAMESPACES = (
    client.Relay,
    client.AssetReports,
    client.Sandbox,
    client.Items,
    client.WebhookVerificationKeys,
)
OPERATIONS = [
    method
    for namespace in NAMESPACES
    for name, method in vars(namespace).items()
    if callable(method) and not name.startswith("_")
]


@pytest.mark.parametrize("where", ["headers", "body"])
async def test_a_report_goes_from_the_bank_to_the_partner_and_back(where):
    """The whole way: item, report, relay token, the partner's reading, refresh, removal."""
    async with (
        Simulator(
            clients={OWNER.client_id: OWNER.secret, PARTNER.client_id: PARTNER.secret}, generating=0
        ) as plaid,
        RelayClient(OWNER, base_url=plaid.url, credentials_in=where, retry=QUICK) as owner,
        RelayClient(PARTNER, base_url=plaid.url, credentials_in=where, retry=QUICK) as partner,
    ):
        public = await owner.sandbox.create_public_token()
        item = await owner.item.exchange_public_token(public.public_token)
        report = await owner.asset_report.create([item.access_token], 60, client_report_id="loan-1")
        own = await owner.asset_report.get(report.asset_report_token, include_insights=True)
        made = await owner.relay.create([report.asset_report_token], PARTNER.client_id)
        shared = await partner.relay.get(made.relay_token)
        assert shared.report.asset_report_id == own.report.asset_report_id == report.asset_report_id
        assert shared.report.client_report_id == "loan-1"
        assert shared.report.items[0].item_id == item.item_id
        pdf = await partner.relay.get_pdf(made.relay_token)
        assert pdf.content.startswith(b"%PDF-")
        assert pdf.request_id
        fresh = await partner.relay.refresh(made.relay_token, webhook="https://example.com/hook")
        assert fresh.asset_report_id != report.asset_report_id
        with pytest.raises(InvalidRequestError):
            await owner.relay.get(made.relay_token)
        assert (await owner.relay.remove(made.relay_token)).removed
        with pytest.raises(InvalidRequestError):
            await partner.relay.get(fresh.relay_token)


async def test_single_and_many_make_the_same(plaid, client):
    """Both ways of use send the same request."""
    report = plaid.add_report()
    await client.relay.create([report], "one", webhook="https://example.com/hook")
    rows = RelayCreateRequest.fan_out([report], ["many"], webhook="https://example.com/hook")
    await client.relay.create_many(rows)
    one, many = plaid.requests
    assert one.headers == many.headers | {"content-length": one.headers["content-length"]}
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["one", "many"]


@pytest.mark.parametrize("method", OPERATIONS, ids=lambda m: m.__qualname__)
def test_every_operation_takes_a_timeout_and_a_policy_and_says_what_it_does(method):
    """For a call alone, `timeout=` and `retry=`; in the docstring, arguments, errors and the page at Plaid."""
    parameters = inspect.signature(method).parameters
    assert {"timeout", "retry"} <= parameters.keys()
    documentation = inspect.getdoc(method)
    assert "Raises:" in documentation
    # These do what another does, often, later or into a file, and say which that is.
    if not method.__name__.endswith(("_many", "wait_until_ready", "download_pdf")):
        assert "https://plaid.com/docs/" in documentation
        assert "plaid-python" in documentation
    for name in parameters.keys() - {"self"}:
        assert f"{name}:" in documentation


async def test_bad_input_is_refused_before_anything_is_sent(plaid, client):
    """What can't pass is refused by the name of its field, at once, with nothing on the wire."""
    with pytest.raises(InvalidRequestError, match="report_tokens is empty"):
        client.relay.create([], "p")
    with pytest.raises(InvalidRequestError, match="relay_token is empty"):
        client.relay.get("")
    assert not plaid.requests
