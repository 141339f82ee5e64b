"""Requests, outcomes and a journal for the tests of batches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from support import PARTNER, RecordingJournal

from plaid_relay_async import Created, RelayClient, RelayCreateRequest, Unknown
from plaid_relay_async.batch import Batch, BatchSettings
from plaid_relay_async.cancellation import DrainTracker
from plaid_relay_async.telemetry import Observer

if TYPE_CHECKING:
    from plaid_relay_async.simulator import Simulator

MANY = ["get_many", "get_pdf_many", "refresh_many", "remove_many"]


def batch_of(
    operation: Any, requests: Any, send: Any, *, drain_timeout: float, **options: Any
) -> Batch[Any, Any]:
    """Return a batch that calls a function for each request, without a client."""
    settings, drains = BatchSettings(**options), DrainTracker()
    return Batch(
        operation,
        requests,
        send,
        settings,
        drain_timeout=drain_timeout,
        drains=drains,
        observer=Observer(),
    )


def partner_names(count: int) -> list[str]:
    return [f"partner-{n}" for n in range(count)]


def create_requests(plaid: Simulator, count: int = 20):
    return RelayCreateRequest.fan_out([plaid.add_report()], partner_names(count))


async def create_tokens(client: RelayClient, plaid: Simulator, count: int) -> list[str]:
    """Return relay tokens for the partner of these tests, each for another report."""
    requests = [RelayCreateRequest([plaid.add_report()], PARTNER.client_id) for _ in range(count)]
    result = await client.relay.create_many(requests)
    return [outcome.relay_token for outcome in result.created]


def all_outcomes(result) -> list:
    return [*result.succeeded, *result.failed, *result.unknown]


def partner_by_token(plaid: Simulator) -> dict[str, str]:
    return {entry["relay_token"]: entry["secondary_client_id"] for entry in plaid.ledger}


def removed_tokens(plaid: Simulator) -> set[str]:
    return {str(entry["relay_token"]) for entry in plaid.ledger if entry["removed"]}


def assert_nothing_lost(plaid: Simulator, outcomes: list) -> None:
    """Check that each token of the ledger is in its partner's outcome, or that outcome is unknown; no partner has two."""
    tokens = {o.relay_token: o.request.secondary_client_id for o in outcomes if isinstance(o, Created)}
    unknown = {o.request.secondary_client_id for o in outcomes if isinstance(o, Unknown)}
    seen = [o.request.secondary_client_id for o in outcomes]
    assert len(seen) == len(set(seen))
    for token, partner in partner_by_token(plaid).items():
        assert tokens.get(token) == partner or partner in unknown
    assert tokens.keys() <= partner_by_token(plaid).keys()
    assert len(set(partner_by_token(plaid).values())) == len(plaid.ledger)


class BreakingJournal(RecordingJournal):
    """A journal in memory, which raises once it has a certain number of lines."""

    def __init__(self, *, breaks_at_intent: int = -1, breaks_at_outcome: int = -1) -> None:
        self.lines: list[tuple[str, str]] = []
        self._breaks_at_intent, self._breaks_at_outcome = breaks_at_intent, breaks_at_outcome

    async def record_intent(self, request: RelayCreateRequest) -> None:
        await asyncio.sleep(0)
        self._write("intent", request.secondary_client_id, self._breaks_at_intent)

    async def record_outcome(self, outcome) -> None:
        await asyncio.sleep(0)
        self._write(type(outcome).__name__, outcome.request.secondary_client_id, self._breaks_at_outcome)

    def _write(self, event: str, partner: str, breaks_at: int) -> None:
        if len(self.lines) == breaks_at:
            raise OSError(28, "No space left on device")
        self.lines.append((event, partner))
