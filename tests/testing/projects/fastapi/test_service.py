import logging

import pytest
from fastapi.testclient import TestClient
from service import app

from plaid_relay_async.testing import Fault, assert_no_secrets

pytestmark = pytest.mark.plaid(reports=["report-1"])


@pytest.fixture
def http(plaid_simulator):
    with TestClient(app) as client:
        yield client


def test_share(http, plaid_simulator, caplog):
    caplog.set_level(logging.DEBUG)
    response = http.post("/partners/partner-1/token", json={"report_token": "report-1"})
    assert response.json()["relay_token"] == plaid_simulator.ledger[0]["relay_token"]
    assert_no_secrets(caplog, "report-1")


@pytest.mark.plaid(faults=[Fault(when="after", close=True, times=1)], allow_unclaimed=True)
def test_a_lost_response(http, plaid_simulator):
    response = http.post("/partners/partner-1/token", json={"report_token": "report-1"})
    assert response.status_code == 502
    assert plaid_simulator.counts["/credit/relay/create"] == 1
