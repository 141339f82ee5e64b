"""The main job on a Plaid of one's own: nothing to set up, nothing left behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.cli.output import MemoryOutput
from plaid_relay_async.cli.progress import ProgressDisplay, totals_table
from plaid_relay_async.cli.rows import FileRows
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import Credentials
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from plaid_relay_async.cli.signals import Signals

_CREATE_PATH = "/credit/relay/create"
_PARTNERS = [f"partner-{number:03}" for number in range(400)]
_REJECTED_PARTNERS = _PARTNERS[40::40]
_RATE_LIMITED_PARTNERS = _PARTNERS[100::100]
_LOST_PARTNER = _PARTNERS[210]
_LATENCY_SECONDS = 0.2  # seconds; a partner takes that long, so that there is something to see
_CONCURRENCY = 25

_SUMMARY = f"""\
{len(_REJECTED_PARTNERS)} partners were refused: for them there is no token.
Of {_LOST_PARTNER} the answer was lost: the simulator's ledger holds a token that nobody was given.
{len(_RATE_LIMITED_PARTNERS)} were told to wait a second. They have their token, as has everybody else: the ledger agrees."""


def _scripted_faults() -> list[Fault]:
    refusal = {"error_code": "INVALID_FIELD", "error_message": "this partner is refused, by the script"}
    busy = {"Retry-After": "1"}
    return [
        *(
            Fault(path=_CREATE_PATH, secondary_client_id=name, status=400, body=refusal)
            for name in _REJECTED_PARTNERS
        ),
        *(
            Fault(path=_CREATE_PATH, secondary_client_id=name, status=429, headers=busy, times=1)
            for name in _RATE_LIMITED_PARTNERS
        ),
        Fault(path=_CREATE_PATH, secondary_client_id=_LOST_PARTNER, close=True, when="after"),
    ]


async def run_demo(signals: Signals) -> ExitStatus:
    """Share one report with several hundred partners, some of whom meet trouble."""
    async with Simulator(faults=_scripted_faults(), latency=_LATENCY_SECONDS) as plaid:
        report_token = plaid.add_report()
        _print_line(f"Sharing one report with {len(_PARTNERS)} partners, on a simulator at {plaid.url}.")
        kept = MemoryOutput()
        run = BatchRunner(
            client=RelayClient(Credentials("demo", "demo-secret"), base_url=plaid.url),
            rows=FileRows(RelayCreateRequest.fan_out([report_token], _PARTNERS), len(_PARTNERS)),
            output=kept,
            display=ProgressDisplay(len(_PARTNERS)),
            signals=signals,
            concurrency=_CONCURRENCY,
        )
        tally = await run()
        as_scripted = _matches_script(kept, plaid)
    _print_line(_SUMMARY if as_scripted else "This did not go as scripted.")
    Console(file=sys.stdout).print(totals_table(tally))
    return ExitStatus.DONE if as_scripted else ExitStatus.FAILED


def _matches_script(output: MemoryOutput, plaid: Simulator) -> bool:
    """Hold the outcomes against the simulator's own ledger, which knows each token that was ever made."""
    made = {str(entry["secondary_client_id"]): entry["relay_token"] for entry in plaid.ledger}
    lost = made.pop(_LOST_PARTNER, None)
    return (
        made == output.tokens
        and len(plaid.ledger) == len(_PARTNERS) - len(_REJECTED_PARTNERS)
        and output.unknown == [_LOST_PARTNER]
        and output.by_outcome == {"created": len(made), "failed": len(_REJECTED_PARTNERS), "unknown": 1}
        and lost is not None
    )


def _print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
