"""Bare aiohttp as commonly used: a task for each partner, a semaphore, dicts, no records, no retries."""

from __future__ import annotations

import asyncio

import aiohttp
from peers.common import HEADERS, PATH, Meter, Options, body_for, run, run_with_probe


async def create_all(options: Options, meter: Meter) -> None:
    semaphore = asyncio.Semaphore(options.concurrency)
    connector = aiohttp.TCPConnector(limit=options.connections, ssl=options.tls or True)
    async with aiohttp.ClientSession(options.url, headers=HEADERS, connector=connector) as session:

        async def create(partner: str) -> str:
            async with session.post(PATH, json=body_for(partner)) as response:
                content = await response.json()
            token: str = content["relay_token"]
            return token

        async def create_with_limit(partner: str) -> str:
            async with semaphore:
                token = await create(partner)
            meter.count_token(token)
            return token

        async def bulk() -> None:
            await asyncio.gather(*(create_with_limit(partner) for partner in options.partner_ids()))

        await run_with_probe(options, meter, bulk, lambda: create("f" * 24))


if __name__ == "__main__":
    run(create_all)
