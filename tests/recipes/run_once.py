import asyncio

from relay import open_relay


async def create_once(report_id: str, partner_id: str) -> str:
    async with open_relay() as create:
        return await create(report_id, partner_id)


def create_token(report_id: str, partner_id: str) -> str:
    return asyncio.run(create_once(report_id, partner_id))
