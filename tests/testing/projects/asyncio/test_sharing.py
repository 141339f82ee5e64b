import pytest

from plaid_relay_async.testing import Fault

pytestmark = [pytest.mark.asyncio, pytest.mark.plaid(reports=["report-1"])]


async def test_a_token_is_created(relay_client, plaid_simulator):
    created = await relay_client.relay.create(["report-1"], "partner-1")
    assert plaid_simulator.ledger[0]["relay_token"] == created.relay_token


@pytest.mark.plaid(faults=[Fault(status=429, headers={"Retry-After": "0"}, times=2)])
async def test_a_rate_limit(relay_client, plaid_simulator):
    await relay_client.relay.create(["report-1"], "partner-1")
    assert plaid_simulator.counts["/credit/relay/create"] == 3
