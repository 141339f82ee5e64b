"""The report that a webhook says is ready."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from canaries import CREDENTIALS, REPORT_TOKEN, assert_error_is_clean
from support import QUICK

from plaid_relay_async import RelayClient, ReportNotReadyError, RequestValidationError
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.webhooks import AssetsProductReadyWebhook, ReportMismatchError

GET = "/asset_report/get"
NOT_READY = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}


def ready(report_id, report_type="FULL"):
    return AssetsProductReadyWebhook(
        webhook_type="ASSETS",
        webhook_code="PRODUCT_READY",
        asset_report_id=report_id,
        report_type=report_type,
    )


async def created_report(client, add_ons=None):
    public = await client.sandbox.create_public_token()
    item = await client.item.exchange_public_token(public.public_token)
    return await client.asset_report.create([item.access_token], 30, add_ons=add_ons)


@pytest.mark.parametrize(
    ("report_type", "fast"), [("FULL", False), ("FAST", True), (None, False), ("NEW", False)]
)
async def test_the_version_that_is_ready_is_read(client, report_type, fast):
    """The fast version is read for an event about it, and the full one for any other."""
    created = await created_report(client, add_ons=["fast_assets"])
    event = ready(created.asset_report_id, report_type)
    response = await client.webhooks.fetch_report(event, created.asset_report_token)
    versions = [
        (await client.asset_report.get(created.asset_report_token, fast_report=version)).report
        for version in (False, True)
    ]
    assert response.report == versions[fast] != versions[not fast]


async def test_a_report_that_is_not_ready_yet(plaid, client):
    """If the report can't be read yet when its webhook arrives, it is polled for until the timeout."""
    created = await created_report(client)
    event = ready(created.asset_report_id)
    plaid.fail(Fault(path=GET, status=400, body=NOT_READY, times=1))
    await client.webhooks.fetch_report(event, created.asset_report_token)
    assert plaid.counts[GET] == 2
    plaid.fail(Fault(path=GET, status=400, body=NOT_READY))
    with pytest.raises(ReportNotReadyError):
        await client.webhooks.fetch_report(event, created.asset_report_token, timeout=0.5, retry=QUICK)
    assert plaid.counts[GET] == 3


async def test_the_token_of_another_report(clean_logs):
    """A token of another report is an error that has the ID of that report, and not the token."""
    async with (
        Simulator(reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
    ):
        report_id = (await client.asset_report.get(REPORT_TOKEN)).report.asset_report_id
        with pytest.raises(
            ReportMismatchError, match=r"is that of another report\. Pass the token"
        ) as caught:
            await client.webhooks.fetch_report(ready("other"), REPORT_TOKEN)
    assert (caught.value.asset_report_id, caught.value.sent) == (report_id, True)
    assert_error_is_clean(caught.value)


async def test_an_invalid_token_is_an_error_of_the_call(plaid, client):
    """A token that can't be one is rejected immediately, and nothing is sent."""
    with pytest.raises(RequestValidationError, match="asset_report_token is empty"):
        client.webhooks.fetch_report(ready("1"), "")
    assert not plaid.counts


async def test_a_call_that_is_cancelled_before_it_starts(client):
    """A task that is cancelled before its first step leaves no coroutine behind that was never awaited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = asyncio.create_task(client.webhooks.fetch_report(ready("1"), "token"))
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is RuntimeWarning] == []
