"""Bare aiohttp as people write it: a task for each partner, a semaphore, dicts, no records, no retries."""

from __future__ import annotations

import asyncio

import aiohttp
from peers.common import HEADERS, PATH, Meter, Options, body_for, run, run_with_probe


async def create_all(asked: Options, meter: Meter) -> None:
    room = asyncio.Semaphore(asked.concurrency)
    connector = aiohttp.TCPConnector(limit=asked.connections, ssl=asked.tls or True)
    async with aiohttp.ClientSession(asked.url, headers=HEADERS, connector=connector) as session:

        async def create(partner: str) -> str:
            async with session.post(PATH, json=body_for(partner)) as response:
                answer = await response.json()
            token: str = answer["relay_token"]
            return token

        async def in_turn(partner: str) -> str:
            async with room:
                token = await create(partner)
            meter.count_token(token)
            return token

        async def bulk() -> None:
            await asyncio.gather(*(in_turn(partner) for partner in asked.partner_ids()))

        await run_with_probe(asked, meter, bulk, lambda: create("f" * 24))


if __name__ == "__main__":
    run(create_all)
