"""The command `demo`: shares one report with many partners on a local simulator, without any setup."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console

from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.cli.progress import ProgressDisplay, totals_table
from plaid_relay_async.cli.row_iterators import FileRows
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
_LATENCY_SECONDS = 0.2  # long enough that the progress can be seen
_CONCURRENCY = 25

_SUMMARY = f"""\
{len(_REJECTED_PARTNERS)} partners were rejected: they have no token.
The response for {_LOST_PARTNER} was lost: its outcome is unknown. The simulator's ledger has a token for it.
{len(_RATE_LIMITED_PARTNERS)} requests were rate limited, and succeeded after a second.
All other partners have their token, and the ledger has the same tokens."""


def _scripted_faults() -> list[Fault]:
    rejection = {"error_code": "INVALID_FIELD", "error_message": "the script rejects this partner"}
    rate_limit = {"Retry-After": "1"}
    return [
        *(
            Fault(path=_CREATE_PATH, secondary_client_id=name, status=400, body=rejection)
            for name in _REJECTED_PARTNERS
        ),
        *(
            Fault(path=_CREATE_PATH, secondary_client_id=name, status=429, headers=rate_limit, times=1)
            for name in _RATE_LIMITED_PARTNERS
        ),
        Fault(path=_CREATE_PATH, secondary_client_id=_LOST_PARTNER, close=True, when="after"),
    ]


class _MemoryOutput:
    """An `OutcomeWriter` that keeps outcomes in memory."""

    error: Exception | None = None
    token_lost = False

    def __init__(self) -> None:
        self.by_outcome: Counter[str] = Counter()
        self.tokens: dict[str, str] = {}
        self.unknown: list[str] = []

    def write(self, fields: dict[str, Any], *, journalled: bool = False) -> None:  # noqa: ARG002
        """Keep what the demo compares with the simulator's ledger."""
        self.by_outcome[fields["outcome"]] += 1
        if fields["outcome"] == "created":
            self.tokens[fields["secondary_client_id"]] = fields["relay_token"]
        if fields["outcome"] == "unknown":
            self.unknown.append(fields["secondary_client_id"])

    async def drain(self) -> None:
        """Do nothing: every write is complete."""

    def stop_waiting(self) -> None:
        """Do nothing: `drain` doesn't wait."""


async def run_demo(signals: Signals) -> ExitStatus:
    """Share one report with several hundred partners while the simulator injects faults.

    Returns:
        `DONE` if the outcomes are those of the script, otherwise `FAILED`.
    """
    async with Simulator(faults=_scripted_faults(), latency=_LATENCY_SECONDS) as plaid:
        report_token = plaid.add_report()
        _print_line(f"Sharing one report with {len(_PARTNERS)} partners, on a simulator at {plaid.url}.")
        output = _MemoryOutput()
        runner = BatchRunner(
            client=RelayClient(Credentials("demo", "demo-secret"), base_url=plaid.url),
            rows=FileRows(RelayCreateRequest.fan_out([report_token], _PARTNERS), len(_PARTNERS)),
            output=output,
            display=ProgressDisplay(len(_PARTNERS)),
            signals=signals,
            concurrency=_CONCURRENCY,
        )
        counts = await runner()
        as_scripted = _matches_script(output, plaid)
    _print_line(_SUMMARY if as_scripted else "The outcomes differ from the script.")
    Console(file=sys.stdout).print(totals_table(counts))
    return ExitStatus.DONE if as_scripted else ExitStatus.FAILED


def _matches_script(output: _MemoryOutput, plaid: Simulator) -> bool:
    """Return whether the outcomes match the simulator's ledger, which lists each token that was created."""
    created = {str(entry["secondary_client_id"]): entry["relay_token"] for entry in plaid.ledger}
    lost = created.pop(_LOST_PARTNER, None)
    return (
        created == output.tokens
        and len(plaid.ledger) == len(_PARTNERS) - len(_REJECTED_PARTNERS)
        and output.unknown == [_LOST_PARTNER]
        and output.by_outcome == {"created": len(created), "failed": len(_REJECTED_PARTNERS), "unknown": 1}
        and lost is not None
    )


def _print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
