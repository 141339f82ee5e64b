"""The commands that ask a journal, or change what it holds; and the journal that others write into."""

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

    from plaid_relay_async.batch import Batch
    from plaid_relay_async.journal import Journal, Record, RunStatus
    from plaid_relay_async.outcomes import BatchResult

_JOURNAL_URL = Parameter(
    env_var="PLAID_RELAY_JOURNAL",
    help="The journal: a file of SQLite, or a URL of PostgreSQL; @FILE reads it, for one with a password.",
)
OptionalJournalURL: TypeAlias = Annotated[str | None, _JOURNAL_URL]
KeyFileOption: TypeAlias = Annotated[
    Path | None,
    Parameter(help="A file (0600) with the journal's key, or several, in place of PLAID_RELAY_KEY."),
]
RunName: TypeAlias = Annotated[str, Parameter(help="Run name, as passed to bulk.")]
SkipConfirmation: TypeAlias = Annotated[bool, Parameter(negative="", help="Skip the confirmation prompt.")]


# ---------------------------------------------------------------------------------------- where it lies


def _build_journal(url: str, **settings: Any) -> Journal:
    try:
        from plaid_relay_async.journal import Journal
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    return Journal(url, **settings)


@Parameter(name="*")
@frozen
class JournalOptions:
    """What is told to commands that create, if they are to keep a journal.

    Attributes:
        journal: where it lies; without, there is none.
        run: the name of the run.
        on_existing: what happens to a pair that has a token from another run.
        retry_unknown: whether pairs whose outcome is unknown are created again.
        retry_failed: whether pairs that Plaid refused are created again.
        key_file: holds its keys.
        lease: seconds.
    """

    journal: OptionalJournalURL = None
    run: Annotated[str | None, Parameter(help="Run name; reuse it to resume.")] = None
    on_existing: Annotated[
        Literal["reuse", "refuse", "create"],
        Parameter(help="What happens to a pair that has a relay token from another run."),
    ] = "reuse"
    retry_unknown: Annotated[
        bool,
        Parameter(
            negative="",
            help="Create again the pairs whose outcome is unknown; each may then have two tokens.",
        ),
    ] = False
    retry_failed: Annotated[
        bool,
        Parameter(
            negative="", help="Create again the pairs that Plaid refused, once the reason is fixed there."
        ),
    ] = False
    key_file: KeyFileOption = None
    lease: Annotated[
        float, Parameter(help="Seconds after which other processes consider this one dead, with PostgreSQL.")
    ] = 30.0

    def build_journal(self) -> Journal | None:
        """Give the journal, not open yet, if there is to be one.

        Raises:
            UsageError: the options don't go together, or the journal's extra isn't there.
            ConfigurationError: one of them can't be used.
        """
        if self.journal is None:
            if self != JournalOptions():
                raise UsageError("--journal: is needed for --run and the other options of a journal")
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
    """A journal that is there.

    Attributes:
        journal: where it lies.
        key_file: holds its keys.
    """

    journal: Annotated[str, _JOURNAL_URL]
    key_file: KeyFileOption = None

    def build_journal(self, run: str = "default") -> Journal:
        """Give it, not open yet; nobody looks into a new one, and so none is made.

        Raises:
            UsageError: there is none, or its extra isn't there.
            ConfigurationError: its key can't be used.
        """
        journal = _build_journal(read_value(self.journal, "--journal"), run=run, key=self.key_file)
        if journal.path is not None and not journal.path.exists():
            raise UsageError("--journal: there is no such file")
        return journal

    def run_query(self, query: Callable[[Journal], Awaitable[Any]]) -> Any:
        """Open it, and give what it answers."""
        return run_query(self.build_journal(), query)


def run_query(journal: Journal, query: Callable[[Journal], Awaitable[Any]]) -> Any:
    """Open a journal for as long as it takes to answer, and give the answer."""

    async def asked() -> Any:
        async with journal:
            return await query(journal)

    return signals.run(asked())


# --------------------------------------------------------------------------------------------- to be asked


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
    """Tell where a run stands: counts, rate, errors by their code, and the partners of which nobody can tell.

    Its exit status is what bulk's would be: 0 if all have a token, 1 if some haven't, 3 if some are unknown.
    """

    async def asked(journal: Journal) -> tuple[RunStatus, list[Record]]:
        found = await journal.status(name)
        return found, [record async for record in journal.records(name, outcomes={"unknown"})]

    found, unknown = existing_journal.run_query(asked)
    started, last = _format_times(found)
    rows = totals_table(OutcomeCounts(_ordered_counts(found), found.error_codes))
    _print_wide(f"started {started}, last outcome {last or 'none yet'}, {found.rate:,.0f}/s", rows)
    for record in unknown:
        facts = filter(None, (record.error_code, record.request_id))
        sys.stdout.write(sanitize(f"unknown: {record.secondary_client_id} ({', '.join(facts)})") + "\n")
    return _run_exit_status(found)


def _ordered_counts(run_status: RunStatus) -> Counter[str]:
    """Give the counts, those first that there always are."""
    return Counter(dict.fromkeys(BatchRunner.outcome_kinds, 0) | dict(sorted(run_status.counts.items())))


def _run_exit_status(run_status: RunStatus) -> ExitStatus:
    if run_status.counts["unknown"]:
        return ExitStatus.UNKNOWN
    return ExitStatus.FAILED if run_status.counts.total() > run_status.counts["created"] else ExitStatus.DONE


def _format_times(run_status: RunStatus) -> tuple[str, str]:
    last = "" if run_status.last_at is None else f"{run_status.last_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{run_status.started_at:%Y-%m-%dT%H:%M:%SZ}", last


def _print_wide(*shown: object) -> None:
    # Wider than any terminal: what is cut off or wrapped is of no use to a script.
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=1000).print(*shown, sep="\n")


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
    """Write down what a journal has of each pair of a run, in the shape of bulk's output."""

    async def asked(journal: Journal) -> None:
        async for record in journal.records(name):
            sink.write({column: getattr(record, column) for column in OUTCOME_COLUMNS})
            await sink.drain()
            if sink.error is not None:
                raise sink.error

    with open_output(output, use_rescue=False) as sink:
        existing_journal.run_query(asked)
    return ExitStatus.DONE


# ------------------------------------------------------------------------------------------- to be changed


def forget(
    name: RunName, /, *, existing_journal: ExistingJournal, yes: SkipConfirmation = False
) -> ExitStatus:
    """Delete the relay tokens of a run from the journal, and keep what became of each pair.

    They go on to open their reports, and nothing here can remove them any more: revoke does that.
    """
    question = f"Delete the tokens of the run {name!r}? They stay valid, and can't be revoked any more."
    if not confirm(question, yes=yes):
        return ExitStatus.FAILED
    print_message(f"deleted: {existing_journal.run_query(lambda journal: journal.forget(name)):,}")
    return ExitStatus.DONE


def rotate(*, existing_journal: ExistingJournal) -> ExitStatus:
    """Encrypt all with the first of the journal's keys; once it is done, the others may go."""
    print_message(f"encrypted anew: {existing_journal.run_query(lambda journal: journal.rotate()):,}")
    return ExitStatus.DONE


@define(eq=False, repr=False)
class TokensToRevoke:
    """What a run holds that is to be taken back.

    Attributes:
        partners: the partner of each token, by the request that removes it.
        malformed: the lines of tokens that can't be sent, for example because they contain white space.
        forgotten: how many more tokens there are that the journal can't give any more.
        unknown: for how many pairs the outcome is unknown.
    """

    partners: dict[RelayRemoveRequest, str] = field(factory=dict)
    malformed: list[dict[str, Any]] = field(factory=list)
    forgotten: int = 0
    unknown: int = 0

    @classmethod
    async def read(cls, journal: Journal, run: str, partner: str | None) -> Self:
        """Gather the tokens that a run made; those of other runs aren't its own to take back.

        Raises:
            JournalError: there is no such run, or it is going on, or the journal can't be read.
        """
        held = cls()
        async for record in journal.records(run, partner=partner):
            if record.outcome == "in_flight":
                raise JournalError(
                    f"somebody creates for the run {run!r}", advice="Wait until that has ended, or end it."
                )
            if not record.own:
                continue
            match record.outcome, record.relay_token:
                case "created", None:
                    held.forgotten += 1
                case "created", str(token):
                    held._add(token, record.secondary_client_id)  # its own
                case "unknown", _:
                    held.unknown += 1
        return held

    def _add(self, token: str, partner: str) -> None:
        try:
            self.partners[RelayRemoveRequest(token)] = partner
        except RequestValidationError as error:
            failed = Failed(request=None, error=error, attempts=0, elapsed=0.0, request_id=None)
            self.malformed.append(outcome_fields(failed, partner))


@define(eq=False)
class RevokeRunner(BatchRunner):
    """A batch of removals."""

    outcome_kinds: ClassVar[tuple[str, ...]] = ("removed", "failed", "unknown", "not_attempted")

    tokens: TokensToRevoke = field(kw_only=True)

    def _create_batch(self) -> Batch[Any]:
        return self.client.relay.remove_many(
            self._iter_requests(),
            concurrency=self.concurrency,
            journal=self.journal,
            on_outcome=self._on_outcome,
        )

    def _output_fields(self, outcome: Any) -> dict[str, Any]:
        return outcome_fields(outcome, self.tokens.partners[getattr(outcome, "request", outcome)])

    async def _write_remaining(self, result: BatchResult[Any]) -> None:
        await super()._write_remaining(result)
        for line in self.tokens.malformed:
            self._write_line(line)
            await self.output.drain()

    def _print_explanations(self, result: BatchResult[Any]) -> None:
        super()._print_explanations(result)
        if self.tokens.malformed:
            malformed = len(self.tokens.malformed)
            self.display.print_message(
                f"malformed tokens, which need a direct call of Plaid's API: {malformed:,}"
            )
        if self.tokens.forgotten:
            self.display.print_message(f"forgotten, so that it stays valid: {self.tokens.forgotten:,}")
        if self.tokens.unknown:
            self.display.print_message(
                f"unknown, so that there may be a token to remove: {self.tokens.unknown:,}"
            )

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:
        """Give the exit status: what can't be taken back counts as well."""
        left = (
            ExitStatus.UNKNOWN
            if self.tokens.unknown
            else ExitStatus.FAILED
            if self.tokens.forgotten
            else ExitStatus.DONE
        )
        return max(super().exit_status(counts), left)
