import pytest
from django.test import Client

pytestmark = pytest.mark.plaid(reports=["report-1"])


@pytest.mark.parametrize("partner", ["partner-1", "partner-2"])
def test_share(plaid_simulator_server, partner):
    response = Client().post(f"/partners/{partner}/token", {"report_token": "report-1"})
    [entry] = plaid_simulator_server.ledger
    assert response.json() == {"relay_token": entry["relay_token"]}
    assert entry["secondary_client_id"] == partner
