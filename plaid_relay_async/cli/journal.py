"""The commands that read or change a journal, except `revoke`."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from plaid_relay_async.cli.arguments import confirm
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.journal_options import (  # cyclopts reads them at run time
    ExistingJournal,  # noqa: TC001
    RunName,  # noqa: TC001
    SkipConfirmation,  # noqa: TC001
)
from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus, sanitize
from plaid_relay_async.cli.output import OUTCOME_COLUMNS, open_output
from plaid_relay_async.cli.progress import OutcomeCounts, totals_table

if TYPE_CHECKING:
    import datetime as dt

    from plaid_relay_async.journal import Journal, Record, RunStatus

# ---------------------------------------------------------------------------- commands that read it


def runs(*, existing_journal: ExistingJournal) -> ExitStatus:
    """List the runs of a journal."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("run", overflow="fold")
    for title in ("started", "last", *BatchRunner.outcome_kinds, "removed", "in_flight"):
        rows.add_column(title, justify="right")
    for each in existing_journal.run_query(lambda journal: journal.runs()):
        counts = (str(each.counts[kind]) for kind in (*BatchRunner.outcome_kinds, "removed", "in_flight"))
        rows.add_row(sanitize(each.name), *_format_times(each), *counts)
    _print_wide(rows)
    return ExitStatus.DONE


def status(name: RunName, /, *, existing_journal: ExistingJournal) -> ExitStatus:
    """Show the state of a run: counts, rate, errors by code, and the partners whose outcome is unknown.

    Exit status, as for bulk: 0 if every pair has a token, 1 if some don't, 3 if some outcomes are unknown.
    """

    async def query(journal: Journal) -> tuple[RunStatus, list[Record]]:
        run_status = await journal.status(name)
        return run_status, [record async for record in journal.records(name, outcomes={"unknown"})]

    run_status, unknown = existing_journal.run_query(query)
    started, last = _format_times(run_status)
    rows = totals_table(OutcomeCounts(_ordered_counts(run_status), run_status.error_codes))
    _print_wide(f"started {started}, last outcome {last or 'none yet'}, {run_status.rate:,.0f}/s", rows)
    if run_status.unknown_with_token:
        sys.stdout.write(
            f"{run_status.unknown_with_token:,} of the unknown have a token: "
            "their partner retrieved the report\n"
        )
    for record in unknown:
        retrieved = None if record.retrieved_at is None else f"retrieved {_format_time(record.retrieved_at)}"
        facts = filter(None, (record.error_code, record.request_id, retrieved))
        sys.stdout.write(sanitize(f"unknown: {record.secondary_client_id} ({', '.join(facts)})") + "\n")
    return _run_exit_status(run_status)


def _ordered_counts(run_status: RunStatus) -> Counter[str]:
    """Return the counts: first the kinds that are always shown, then the others by name."""
    return Counter(dict.fromkeys(BatchRunner.outcome_kinds, 0) | dict(sorted(run_status.counts.items())))


def _run_exit_status(run_status: RunStatus) -> ExitStatus:
    if run_status.counts["unknown"]:
        return ExitStatus.UNKNOWN
    return ExitStatus.FAILED if run_status.counts.total() > run_status.counts["created"] else ExitStatus.DONE


def _format_times(run_status: RunStatus) -> tuple[str, str]:
    return _format_time(run_status.started_at) or "", _format_time(run_status.last_at) or ""


def _format_time(time: dt.datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _print_wide(*lines: object) -> None:
    # Wider than any terminal, because a script can't parse values that are truncated or wrapped.
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=1000).print(*lines, sep="\n")


def export(
    name: RunName,
    /,
    *,
    existing_journal: ExistingJournal,
    output: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="A new file (.csv for CSV, else JSON Lines), or - for standard output.",
        ),
    ] = "-",
) -> ExitStatus:
    """Export the recorded outcome of each pair of a run, in the format of bulk's output, and retrieved_at.

    That is the time at which the partner first retrieved the report, if a webhook has shown it.
    """

    async def query(journal: Journal) -> None:
        async for record in journal.records(name):
            fields = {column: getattr(record, column) for column in OUTCOME_COLUMNS}
            writer.write(fields | {"retrieved_at": _format_time(record.retrieved_at)})
            await writer.drain()
            if writer.error is not None:
                raise writer.error

    with open_output(output, use_rescue=False) as writer:
        existing_journal.run_query(query)
    return ExitStatus.DONE


# -------------------------------------------------------------------------- commands that change it


def forget(
    name: RunName, /, *, existing_journal: ExistingJournal, yes: SkipConfirmation = False
) -> ExitStatus:
    """Delete the relay tokens of a run from the journal, and keep the outcome of each pair.

    The tokens stay valid, and can no longer be revoked with this journal; to invalidate them, use revoke.
    """
    question = (
        f"Delete the tokens of the run {name!r}? "
        "They stay valid, and can no longer be revoked with this journal."
    )
    if not confirm(question, yes=yes):
        return ExitStatus.FAILED
    print_message(f"deleted: {existing_journal.run_query(lambda journal: journal.forget(name)):,}")
    return ExitStatus.DONE


def rotate(*, existing_journal: ExistingJournal) -> ExitStatus:
    """Re-encrypt the journal with the first of its keys; the others can then be removed."""
    print_message(f"re-encrypted: {existing_journal.run_query(lambda journal: journal.rotate()):,}")
    return ExitStatus.DONE
