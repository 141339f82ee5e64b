"""The main job on a Plaid of one's own: nothing to set up, nothing left behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from plaid_relay_async.cli.board import Board, table
from plaid_relay_async.cli.bulk import Run
from plaid_relay_async.cli.output import Kept
from plaid_relay_async.cli.rows import FileRows
from plaid_relay_async.cli.status import Exit
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import Credentials
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from plaid_relay_async.cli.signals import Signals

_CREATE = "/credit/relay/create"
_PARTNERS = [f"partner-{number:03}" for number in range(400)]
_REFUSED = _PARTNERS[40::40]
_BUSY = _PARTNERS[100::100]
_LOST = _PARTNERS[210]
_LATENCY = 0.2  # seconds; a partner takes that long, so that there is something to see
_CONCURRENCY = 25

_STORY = f"""\
{len(_REFUSED)} partners were refused: for them there is no token.
Of {_LOST} the answer was lost: the simulator's ledger holds a token that nobody was given.
{len(_BUSY)} were told to wait a second. They have their token, as has everybody else: the ledger agrees."""


def _faults() -> list[Fault]:
    refusal = {"error_code": "INVALID_FIELD", "error_message": "this partner is refused, by the script"}
    busy = {"Retry-After": "1"}
    return [
        *(Fault(path=_CREATE, secondary_client_id=name, status=400, body=refusal) for name in _REFUSED),
        *(Fault(path=_CREATE, secondary_client_id=name, status=429, headers=busy, times=1) for name in _BUSY),
        Fault(path=_CREATE, secondary_client_id=_LOST, close=True, when="after"),
    ]


async def demonstrate(signals: Signals) -> Exit:
    """Share one report with several hundred partners, some of whom meet trouble."""
    async with Simulator(faults=_faults(), latency=_LATENCY) as plaid:
        report_token = plaid.add_report()
        _tell(f"Sharing one report with {len(_PARTNERS)} partners, on a simulator at {plaid.url}.")
        kept = Kept()
        run = Run(
            client=RelayClient(Credentials("demo", "demo-secret"), base_url=plaid.url),
            rows=FileRows(RelayCreateRequest.fan_out([report_token], _PARTNERS), len(_PARTNERS)),
            output=kept,
            board=Board(len(_PARTNERS)),
            signals=signals,
            concurrency=_CONCURRENCY,
        )
        tally = await run()
        as_scripted = _went_as_scripted(kept, plaid)
    _tell(_STORY if as_scripted else "This did not go as scripted.")
    Console(file=sys.stdout).print(table(tally))
    return Exit.DONE if as_scripted else Exit.FAILED


def _went_as_scripted(kept: Kept, plaid: Simulator) -> bool:
    """Hold the outcomes against the simulator's own ledger, which knows each token that was ever made."""
    made = {str(entry["secondary_client_id"]): entry["relay_token"] for entry in plaid.ledger}
    lost = made.pop(_LOST, None)
    return (
        made == kept.tokens
        and len(plaid.ledger) == len(_PARTNERS) - len(_REFUSED)
        and kept.unknown == [_LOST]
        and kept.by_outcome == {"created": len(made), "failed": len(_REFUSED), "unknown": 1}
        and lost is not None
    )


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
