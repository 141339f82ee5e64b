"""A simulator with three clients and a hand-moved clock, and a way to ask it something."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from attrs import define, frozen

from plaid_relay_async.simulator import Simulator

CLIENTS = {"owner": "owner-secret", "other": "other-secret", "partner": "partner-secret"}


@define
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@frozen
class Answered:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any

    @property
    def refusal(self) -> tuple[int, str, str]:
        return self.status, self.json["error_type"], self.json["error_code"]


@define
class Asker:
    """Asks one simulator, as one of its clients."""

    plaid: Simulator
    session: aiohttp.ClientSession

    async def __call__(
        self,
        path: str,
        body: Any = None,
        *,
        client: str | None = "owner",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answered:
        said = {"PLAID-CLIENT-ID": client, "PLAID-SECRET": CLIENTS.get(client, "")} if client else {}
        payload = {"data": data} if data is not None else {"json": {} if body is None else body}
        async with self.session.request(
            method,
            self.plaid.url + path,
            headers=said | dict(headers or {}),
            allow_redirects=False,
            **payload,
        ) as answer:
            raw = await answer.read()
            json = await answer.json() if answer.content_type == "application/json" else None
            return Answered(answer.status, answer.headers, raw, json)

    async def access_token(
        self, *, client: str = "owner", products: tuple[str, ...] = ("assets",), **login: Any
    ) -> str:
        login = {"institution_id": "ins_109508", "initial_products": list(products), **login}
        made = await self("/sandbox/public_token/create", login, client=client)
        body = {"public_token": made.json["public_token"]}
        return (await self("/item/public_token/exchange", body, client=client)).json["access_token"]

    async def report(self, *, client: str = "owner", days: int = 30, **options: Any) -> dict[str, Any]:
        access_token = await self.access_token(client=client)
        body = {"access_tokens": [access_token], "days_requested": days, "options": options}
        return (await self("/asset_report/create", body, client=client)).json

    async def relay_token(self, report_token: str, *, client: str = "owner", partner: str = "partner") -> str:
        body = {"report_tokens": [report_token], "secondary_client_id": partner}
        return (await self("/credit/relay/create", body, client=client)).json["relay_token"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def plaid(clock: Clock) -> AsyncIterator[Simulator]:
    async with Simulator(clients=CLIENTS, reports=["ready"], generation_delay=10, clock=clock) as plaid:
        yield plaid


@pytest.fixture
def ask(plaid: Simulator, session: aiohttp.ClientSession) -> Asker:
    return Asker(plaid, session)


@pytest.fixture
def arrived(plaid: Simulator) -> Callable[[int], Awaitable[None]]:
    """Wait until so many requests have arrived."""

    async def arrived(count: int) -> None:
        while len(plaid.requests) < count:
            await asyncio.sleep(0.001)

    return arrived


@pytest.fixture
def asking(session: aiohttp.ClientSession) -> Callable[[Simulator], Asker]:
    """Ask a simulator of the test's own."""
    return lambda plaid: Asker(plaid, session)
