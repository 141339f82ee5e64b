"""Plaid's own client for Python, which blocks, on as many threads as calls may be under way at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import plaid
from peers.common import CLIENT_ID, REPORT, SECRET, Meter, Options, measure, parse_options
from plaid.api.plaid_api import PlaidApi
from plaid.model.credit_relay_create_request import CreditRelayCreateRequest


def create_all(asked: Options, meter: Meter) -> None:
    keys = {"clientId": CLIENT_ID, "secret": SECRET, "plaidVersion": "2020-09-14"}
    configuration = plaid.Configuration(host=asked.url, api_key=keys)
    # It would keep five connections for each core, and open a new one for every other call.
    configuration.connection_pool_maxsize = asked.connections
    api = PlaidApi(plaid.ApiClient(configuration))

    def create(partner: str) -> str:
        request = CreditRelayCreateRequest(report_tokens=[REPORT], secondary_client_id=partner)
        token: str = api.credit_relay_create(request).relay_token
        return token

    with ThreadPoolExecutor(asked.concurrency) as pool:
        for token in pool.map(create, asked.partner_ids()):
            meter.count_token(token)


if __name__ == "__main__":
    wanted = parse_options()
    measure(wanted, lambda meter: create_all(wanted, meter))
