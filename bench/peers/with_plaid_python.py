"""Plaid's own client for Python, which blocks, on one thread for each concurrent call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import plaid
from peers.common import CLIENT_ID, REPORT, SECRET, Meter, Options, measure, parse_options
from plaid.api.plaid_api import PlaidApi
from plaid.model.credit_relay_create_request import CreditRelayCreateRequest


def create_all(options: Options, meter: Meter) -> None:
    keys = {"clientId": CLIENT_ID, "secret": SECRET, "plaidVersion": "2020-09-14"}
    configuration = plaid.Configuration(host=options.url, api_key=keys)
    # By default, the pool keeps five connections for each core, and opens a new one for every other call.
    configuration.connection_pool_maxsize = options.connections
    api = PlaidApi(plaid.ApiClient(configuration))

    def create(partner: str) -> str:
        request = CreditRelayCreateRequest(report_tokens=[REPORT], secondary_client_id=partner)
        token: str = api.credit_relay_create(request).relay_token
        return token

    with ThreadPoolExecutor(options.concurrency) as pool:
        for token in pool.map(create, options.partner_ids()):
            meter.count_token(token)


if __name__ == "__main__":
    options = parse_options()
    measure(options, lambda meter: create_all(options, meter))
