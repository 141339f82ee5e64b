"""This package as a client of the benchmark."""

from __future__ import annotations

from peers.common import CLIENT_ID, REPORT, SECRET, Meter, Options, run, run_with_probe

from plaid_relay_async import Created, Credentials, RelayClient, RelayCreateRequest


async def create_all(options: Options, meter: Meter) -> None:
    credentials = Credentials(CLIENT_ID, SECRET)
    async with RelayClient(
        credentials,
        base_url=options.url,
        connections=options.connections,
        ssl=options.tls,
        tls_buffer=options.tls_buffer,
    ) as client:

        async def bulk() -> None:
            batch = client.relay.create_many(
                RelayCreateRequest.fan_out([REPORT], options.partner_ids()),
                concurrency=options.concurrency,
                allow_duplicates=options.duplicates,
            )
            if options.awaited:
                for created in (await batch).created:
                    meter.count_token(created.relay_token)
                return
            async with batch as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome, Created), outcome
                    meter.count_token(outcome.relay_token)

        await run_with_probe(options, meter, bulk, lambda: client.relay.create([REPORT], "f" * 24))


if __name__ == "__main__":
    run(create_all)
