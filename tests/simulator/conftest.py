"""A simulator with three clients and a manual clock, and a client that sends requests to it."""

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
    """A clock that a test moves, in seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@frozen
class ApiResponse:
    """A response with its complete body."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any

    @property
    def error(self) -> tuple[int, str, str]:
        return self.status, self.json["error_type"], self.json["error_code"]


@define
class ApiClient:
    """Sends requests to one simulator, as one of its clients."""

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
    ) -> ApiResponse:
        credentials = {"PLAID-CLIENT-ID": client, "PLAID-SECRET": CLIENTS.get(client, "")} if client else {}
        payload = {"data": data} if data is not None else {"json": {} if body is None else body}
        async with self.session.request(
            method,
            self.plaid.url + path,
            headers=credentials | dict(headers or {}),
            allow_redirects=False,
            **payload,
        ) as response:
            raw = await response.read()
            json = await response.json() if response.content_type == "application/json" else None
            return ApiResponse(response.status, response.headers, raw, json)

    async def access_token(
        self, *, client: str = "owner", products: tuple[str, ...] = ("assets",), **login: Any
    ) -> str:
        login = {"institution_id": "ins_109508", "initial_products": list(products), **login}
        created = await self("/sandbox/public_token/create", login, client=client)
        body = {"public_token": created.json["public_token"]}
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
def api(plaid: Simulator, session: aiohttp.ClientSession) -> ApiClient:
    return ApiClient(plaid, session)


@pytest.fixture
def wait_for_requests(plaid: Simulator) -> Callable[[int], Awaitable[None]]:
    """Return a function that waits until the simulator has received `count` requests."""

    async def wait_for_requests(count: int) -> None:
        while len(plaid.requests) < count:
            await asyncio.sleep(0.001)

    return wait_for_requests


@pytest.fixture
def api_for(session: aiohttp.ClientSession) -> Callable[[Simulator], ApiClient]:
    """Return a function that creates a client for a simulator that the test has created."""
    return lambda plaid: ApiClient(plaid, session)
