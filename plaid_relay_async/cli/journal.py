"""The commands that read or change a journal, and the journal options of the commands that create tokens."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from attrs import define, field, frozen
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from plaid_relay_async.cli.arguments import confirm, read_value
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import ExitStatus, UsageError, print_message, sanitize
from plaid_relay_async.cli.output import OUTCOME_COLUMNS, open_output, outcome_fields
from plaid_relay_async.cli.progress import OutcomeCounts, totals_table
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.errors import JournalError, RequestValidationError
from plaid_relay_async.models import RelayRemoveRequest
from plaid_relay_async.outcomes import Failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.batch import Batch, BatchResult
    from plaid_relay_async.journal import Journal, Record, RunStatus

_JOURNAL_URL = Parameter(
    env_var="PLAID_RELAY_JOURNAL",
    help="Journal: the path of an SQLite file, or a PostgreSQL URL. @FILE reads it from a file, for a URL "
    "with a password.",
)
OptionalJournalURL: TypeAlias = Annotated[str | None, _JOURNAL_URL]
KeyFileOption: TypeAlias = Annotated[
    Path | None,
    Parameter(help="File (mode 0600) with one or more journal keys, in place of PLAID_RELAY_KEY."),
]
RunName: TypeAlias = Annotated[str, Parameter(help="Run name, as passed to bulk.")]
SkipConfirmation: TypeAlias = Annotated[bool, Parameter(negative="", help="Skip the confirmation prompt.")]


# -------------------------------------------------------------------------------------- the options


def _build_journal(url: str, **settings: Any) -> Journal:
    # Imported here, because the journal requires an extra that other commands don't need.
    try:
        from plaid_relay_async.journal import Journal
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    return Journal(url, **settings)


@Parameter(name="*")
@frozen
class JournalOptions:
    """The journal options of commands that create relay tokens.

    Attributes:
        journal: the path or URL of the journal; without it, nothing is recorded.
        run: the name of the run.
        on_existing: how to handle a pair that has a token from another run.
        retry_unknown: whether to create tokens again for pairs whose outcome is unknown.
        retry_failed: whether to create tokens again for pairs that this run recorded as failed with an error
            that a repeat wouldn't change; see `Journal`.
        key_file: the file with the journal's keys.
        lease: the lease of this process, in seconds; see `Journal`.
    """

    journal: OptionalJournalURL = None
    run: Annotated[str | None, Parameter(help="Run name; reuse it to resume.")] = None
    on_existing: Annotated[
        Literal["reuse", "refuse", "create"],
        Parameter(
            help="How to handle a pair that has a relay token from another run: reuse that token, refuse the "
            "pair, which fails, or create another token."
        ),
    ] = "reuse"
    retry_unknown: Annotated[
        bool,
        Parameter(
            negative="",
            help="Retry pairs whose outcome is unknown; each may then have two tokens.",
        ),
    ] = False
    retry_failed: Annotated[
        bool,
        Parameter(
            negative="",
            help="Retry pairs that failed in this run with InvalidRequestError or AssetReportError. Use it "
            "after the cause is fixed at Plaid. Other failures are retried in any case.",
        ),
    ] = False
    key_file: KeyFileOption = None
    lease: Annotated[
        float,
        Parameter(
            help="Seconds without a heartbeat after which other processes consider this one dead, on "
            "PostgreSQL. Also sets the time limits of the journal."
        ),
    ] = 30.0

    def build_journal(self) -> Journal | None:
        """Return the journal, which is not open yet, or `None` if no journal was requested.

        Raises:
            UsageError: an option is missing, or the extra `journal` isn't installed.
            ConfigurationError: an option is invalid.
        """
        # An option without effect is an error: a user who passes --run expects a recorded run.
        if self.journal is None:
            if self != JournalOptions():
                raise UsageError("--journal: is required by --run and the other journal options")
            return None
        if self.run is None:
            raise UsageError("--run: must name the run in the journal; reuse the name to resume it")
        return _build_journal(
            read_value(self.journal, "--journal"),
            run=self.run,
            key=self.key_file,
            on_existing=self.on_existing,
            retry_unknown=self.retry_unknown,
            retry_failed=self.retry_failed,
            lease=self.lease,
        )


@Parameter(name="*")
@frozen
class ExistingJournal:
    """The options of commands that need an existing journal.

    Attributes:
        journal: the path or URL of the journal.
        key_file: the file with the journal's keys.
    """

    journal: Annotated[str, _JOURNAL_URL]
    key_file: KeyFileOption = None

    def build_journal(self, run: str = "default") -> Journal:
        """Return the journal, which is not open yet.

        A journal that doesn't exist is an error: these commands would create an empty one.

        Raises:
            UsageError: the file doesn't exist, or the extra `journal` isn't installed.
            ConfigurationError: the key is invalid.
        """
        journal = _build_journal(read_value(self.journal, "--journal"), run=run, key=self.key_file)
        if journal.path is not None and not journal.path.exists():
            raise UsageError("--journal: the file doesn't exist")
        return journal

    def run_query(self, query: Callable[[Journal], Awaitable[Any]]) -> Any:
        """Open the journal, run a query, and return its result."""
        return run_query(self.build_journal(), query)


def run_query(journal: Journal, query: Callable[[Journal], Awaitable[Any]]) -> Any:
    """Open a journal, run a query, close the journal, and return the result."""

    async def run() -> Any:
        async with journal:
            return await query(journal)

    return signals.run(run())


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
    for record in unknown:
        facts = filter(None, (record.error_code, record.request_id))
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
    last = "" if run_status.last_at is None else f"{run_status.last_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{run_status.started_at:%Y-%m-%dT%H:%M:%SZ}", last


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
    """Export the recorded outcome of each pair of a run, in the format of bulk's output."""

    async def query(journal: Journal) -> None:
        async for record in journal.records(name):
            writer.write({column: getattr(record, column) for column in OUTCOME_COLUMNS})
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


@define(eq=False, repr=False)
class TokensToRevoke:
    """The tokens that a run created and that are still valid.

    Attributes:
        partners: the partner of each token, by the request that removes it.
        malformed: the output lines of tokens that can't be sent, for example because they contain
            whitespace.
        forgotten: the number of tokens that were deleted from the journal.
        unknown: the number of pairs whose outcome is unknown.
    """

    partners: dict[RelayRemoveRequest, str] = field(factory=dict)
    malformed: list[dict[str, Any]] = field(factory=list)
    forgotten: int = 0
    unknown: int = 0

    @classmethod
    async def read(cls, journal: Journal, run: str, partner: str | None) -> Self:
        """Read the tokens that a run created; tokens that it reused from other runs are excluded.

        Args:
            journal: the open journal.
            run: the name of the run.
            partner: the partner to read the tokens of; `None` reads those of all partners.

        Raises:
            JournalError: the run doesn't exist or is in progress, or the journal can't be read.
        """
        tokens = cls()
        async for record in journal.records(run, partner=partner):
            # Another process may still create tokens for this run, which would then not be revoked.
            if record.outcome == "in_flight":
                raise JournalError(
                    f"the run {run!r} is in progress", advice="Wait until it has ended, or end its process."
                )
            if not record.own:
                continue
            match record.outcome, record.relay_token:
                case "created", None:
                    tokens.forgotten += 1
                case "created", str(token):
                    tokens._add(token, record.secondary_client_id)
                case "unknown", _:
                    tokens.unknown += 1
        return tokens

    def _add(self, token: str, partner: str) -> None:
        try:
            self.partners[RelayRemoveRequest(token)] = partner
        except RequestValidationError as error:
            # Reported as an outcome of the run, without stopping the removal of the other tokens.
            outcome = Failed(request=None, error=error, attempts=0, elapsed=0.0, request_id=None)
            self.malformed.append(outcome_fields(outcome, partner))


@define(eq=False)
class RevokeRunner(BatchRunner):
    """Sends a batch of removals."""

    outcome_kinds: ClassVar[tuple[str, ...]] = ("removed", "failed", "unknown", "not_attempted")

    tokens: TokensToRevoke = field(kw_only=True)

    def _create_batch(self) -> Batch[Any, Any]:
        return self.client.relay.remove_many(
            self._iter_requests(),
            concurrency=self.concurrency,
            journal=self.journal,
            on_outcome=self._on_outcome,
        )

    def _output_fields(self, outcome: Any) -> dict[str, Any]:
        return outcome_fields(outcome, self.tokens.partners[getattr(outcome, "request", outcome)])

    async def _write_remaining(self, result: BatchResult[Any, Any]) -> None:
        await super()._write_remaining(result)
        for line in self.tokens.malformed:
            self._write_line(line)
            await self.output.drain()

    def _print_explanations(self, result: BatchResult[Any, Any]) -> None:
        super()._print_explanations(result)
        if self.tokens.malformed:
            malformed = len(self.tokens.malformed)
            self.display.print_message(
                f"malformed tokens, which only a direct call of Plaid's API can remove: {malformed:,}"
            )
        if self.tokens.forgotten:
            self.display.print_message(f"forgotten tokens, which stay valid: {self.tokens.forgotten:,}")
        if self.tokens.unknown:
            self.display.print_message(
                f"unknown outcomes, each of which may have left a valid token: {self.tokens.unknown:,}"
            )

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:
        """Return the exit status, which also reflects tokens that can't be revoked."""
        # Tokens that may be valid after this command: UNKNOWN outweighs FAILED.
        unrevoked = (
            ExitStatus.UNKNOWN
            if self.tokens.unknown
            else ExitStatus.FAILED
            if self.tokens.forgotten
            else ExitStatus.DONE
        )
        return max(super().exit_status(counts), unrevoked)
