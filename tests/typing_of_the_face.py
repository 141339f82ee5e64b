"""What type checkers should make of the public face; checked, and never run."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from plaid_relay_async import (
    Batch,
    BatchResult,
    Created,
    Credentials,
    Failed,
    Outcome,
    OutcomeUnknownError,
    PdfResponse,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RelayRemoveResponse,
    Unknown,
)


class Limiter:
    async def acquire(self, endpoint: str) -> None: ...


class Notes:
    async def begin(self, request: RelayCreateRequest) -> None: ...
    async def end(self, outcome: Outcome) -> None: ...


async def rotating() -> Credentials:
    return Credentials("a", "b")


async def face() -> None:
    async with RelayClient(rotating, rate_limiter=Limiter()) as client:
        assert_type(client, RelayClient)
        made = await client.relay.create(["t"], "p", timeout=3)
        assert_type(made, RelayCreateResponse)
        assert_type(made.relay_token, str)
        assert_type(await client.relay.remove("t"), RelayRemoveResponse)
        assert_type(await client.relay.get_pdf("t"), PdfResponse)
        shared = await client.relay.get("t")
        assert_type(shared.report.items[0].accounts[0].transactions[0].amount, Decimal)

        requests = RelayCreateRequest.fan_out(["t"], ["p"])
        assert_type(await client.relay.create_many(requests, journal=Notes()), BatchResult)
        async with client.relay.create_many(requests) as outcomes:
            assert_type(outcomes, Batch)
            async for outcome in outcomes:
                assert_type(told(outcome), str)


def told(outcome: Outcome) -> str:
    match outcome:
        case Created(relay_token=token):
            return assert_type(token, str)
        case Failed(error=error):
            return str(assert_type(error, PlaidRelayError))
        case Unknown(error=lost):
            return str(assert_type(lost, OutcomeUnknownError))
