"""Aiohttp, attrs, cattrs and backoff put together as anyone would: the four packages that ours stands on."""

from __future__ import annotations

import asyncio

import aiohttp
import attrs
import backoff
import cattrs
from peers.common import HEADERS, PATH, REPORT, Meter, Options, run, run_with_probe


@attrs.define
class CreateRequest:
    """What is sent."""

    report_tokens: list[str]
    secondary_client_id: str
    webhook: str | None = None


@attrs.define
class CreateResponse:
    """What comes back."""

    relay_token: str
    request_id: str


async def create_all(asked: Options, meter: Meter) -> None:
    converter = cattrs.Converter(omit_if_default=True)
    room = asyncio.Semaphore(asked.concurrency)
    connector = aiohttp.TCPConnector(limit=asked.connections, ssl=asked.tls or True)
    async with aiohttp.ClientSession(
        asked.url,
        headers=HEADERS,
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=60),
        raise_for_status=True,
    ) as session:

        @backoff.on_exception(backoff.expo, aiohttp.ClientError, max_tries=4)
        async def create(request: CreateRequest) -> CreateResponse:
            async with session.post(PATH, json=converter.unstructure(request)) as response:
                return converter.structure(await response.json(), CreateResponse)

        async def in_turn(partner: str) -> CreateResponse:
            async with room:
                created = await create(CreateRequest([REPORT], partner))
            meter.count_token(created.relay_token)
            return created

        async def bulk() -> None:
            await asyncio.gather(*(in_turn(partner) for partner in asked.partner_ids()))

        await run_with_probe(asked, meter, bulk, lambda: create(CreateRequest([REPORT], "f" * 24)))


if __name__ == "__main__":
    run(create_all)
