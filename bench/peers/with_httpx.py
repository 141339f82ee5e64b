"""httpx as people write it: a task for each partner, a semaphore, dicts, no records, no retries."""

from __future__ import annotations

import asyncio

import httpx
from peers.common import HEADERS, PATH, Asked, Meter, accompanied, body_for, run


async def create_all(asked: Asked, meter: Meter) -> None:
    room = asyncio.Semaphore(asked.concurrency)
    limits = httpx.Limits(max_connections=asked.connections, max_keepalive_connections=asked.connections)
    async with httpx.AsyncClient(
        base_url=asked.url, headers=HEADERS, limits=limits, verify=asked.tls or True, timeout=60
    ) as client:

        async def create(partner: str) -> str:
            response = await client.post(PATH, json=body_for(partner))
            token: str = response.json()["relay_token"]
            return token

        async def in_turn(partner: str) -> str:
            async with room:
                token = await create(partner)
            meter.got(token)
            return token

        async def bulk() -> None:
            await asyncio.gather(*(in_turn(partner) for partner in asked.ids()))

        await accompanied(asked, meter, bulk, lambda: create("f" * 24))


if __name__ == "__main__":
    run(create_all)
