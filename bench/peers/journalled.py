"""This package with a journal as a client of the benchmark.

The environment variable BENCH_JOURNAL is the journal's path, and BENCH_FROM the number of the first partner.
"""

from __future__ import annotations

import os

from peers.common import CLIENT_ID, REPORT, SECRET, Meter, Options, run

from plaid_relay_async import Created, Credentials, RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal


async def create_all(options: Options, meter: Meter) -> None:
    first = int(os.environ["BENCH_FROM"])
    partners = (f"{number:024x}" for number in range(first, first + options.partners))
    requests = RelayCreateRequest.fan_out([REPORT], partners)
    client = RelayClient(
        Credentials(CLIENT_ID, SECRET), base_url=options.url, connections=options.connections
    )
    async with Journal(os.environ["BENCH_JOURNAL"], run="bench") as journal, client:
        batch = client.relay.create_many(requests, concurrency=options.concurrency, journal=journal)
        async with batch as outcomes:
            async for outcome in outcomes:
                assert isinstance(outcome, Created), outcome
                meter.count_token(outcome.relay_token)


if __name__ == "__main__":
    run(create_all)
