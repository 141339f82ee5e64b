import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.plaid(reports=["report-1"])]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def relay_token(relay_client):
    return (await relay_client.relay.create(["report-1"], "partner-1")).relay_token


async def test_a_token_is_created(relay_token, plaid_simulator):
    assert plaid_simulator.ledger[0]["relay_token"] == relay_token


async def test_a_token_is_removed(relay_token, relay_client, plaid_simulator):
    await relay_client.relay.remove(relay_token)
    assert plaid_simulator.ledger[0]["removed"]
