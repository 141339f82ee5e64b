"""The four packages that this one is built on, aiohttp, attrs, cattrs and backoff, simply combined."""

from __future__ import annotations

import asyncio

import aiohttp
import attrs
import backoff
import cattrs
from peers.common import HEADERS, PATH, REPORT, Meter, Options, run, run_with_probe


@attrs.define
class CreateRequest:
    """The body of a request."""

    report_tokens: list[str]
    secondary_client_id: str
    webhook: str | None = None


@attrs.define
class CreateResponse:
    """The body of a response."""

    relay_token: str
    request_id: str


async def create_all(options: Options, meter: Meter) -> None:
    converter = cattrs.Converter(omit_if_default=True)
    semaphore = asyncio.Semaphore(options.concurrency)
    connector = aiohttp.TCPConnector(limit=options.connections, ssl=options.tls or True)
    async with aiohttp.ClientSession(
        options.url,
        headers=HEADERS,
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=60),
        raise_for_status=True,
    ) as session:

        @backoff.on_exception(backoff.expo, aiohttp.ClientError, max_tries=4)
        async def create(request: CreateRequest) -> CreateResponse:
            async with session.post(PATH, json=converter.unstructure(request)) as response:
                return converter.structure(await response.json(), CreateResponse)

        async def create_with_limit(partner: str) -> CreateResponse:
            async with semaphore:
                created = await create(CreateRequest([REPORT], partner))
            meter.count_token(created.relay_token)
            return created

        async def bulk() -> None:
            await asyncio.gather(*(create_with_limit(partner) for partner in options.partner_ids()))

        await run_with_probe(options, meter, bulk, lambda: create(CreateRequest([REPORT], "f" * 24)))


if __name__ == "__main__":
    run(create_all)
