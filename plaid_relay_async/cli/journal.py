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

from plaid_relay_async.cli.board import Tally, table
from plaid_relay_async.cli.bulk import Run
from plaid_relay_async.cli.output import COLUMNS, open_output, told
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.cli.status import Exit, UsageError, say, shown
from plaid_relay_async.cli.words import confirmed, read_word
from plaid_relay_async.errors import JournalError, RequestValidationError
from plaid_relay_async.models import RelayRemoveRequest
from plaid_relay_async.outcomes import Failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.batch import Batch
    from plaid_relay_async.journal import Journal, Record, RunStatus
    from plaid_relay_async.outcomes import BatchResult

_URL = Parameter(
    env_var="PLAID_RELAY_JOURNAL",
    help="The journal: a file of SQLite, or a URL of PostgreSQL; @FILE reads it, for one with a password.",
)
OptionalJournal: TypeAlias = Annotated[str | None, _URL]
KeyFile: TypeAlias = Annotated[
    Path | None,
    Parameter(help="A file (0600) with the journal's key, or several, in place of PLAID_RELAY_KEY."),
]
Name: TypeAlias = Annotated[str, Parameter(help="Run name, as passed to bulk.")]
Yes: TypeAlias = Annotated[bool, Parameter(negative="", help="Skip the confirmation prompt.")]


# ---------------------------------------------------------------------------------------- where it lies


def _journal(url: str, **settings: Any) -> Journal:
    try:
        from plaid_relay_async.journal import Journal
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    return Journal(url, **settings)


@Parameter(name="*")
@frozen
class Recording:
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

    journal: OptionalJournal = None
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
    key_file: KeyFile = None
    lease: Annotated[
        float, Parameter(help="Seconds after which other processes consider this one dead, with PostgreSQL.")
    ] = 30.0

    def journal_to_write(self) -> Journal | None:
        """Give the journal, not open yet, if there is to be one.

        Raises:
            UsageError: the options don't go together, or the journal's extra isn't there.
            ConfigurationError: one of them can't be used.
        """
        if self.journal is None:
            if self != Recording():
                raise UsageError("--journal: is needed for --run and the other options of a journal")
            return None
        if self.run is None:
            raise UsageError("--run: must name the run in the journal; reuse the name to resume it")
        return _journal(
            read_word(self.journal, "--journal"),
            run=self.run,
            key=self.key_file,
            on_existing=self.on_existing,
            retry_unknown=self.retry_unknown,
            retry_failed=self.retry_failed,
            lease=self.lease,
        )


@Parameter(name="*")
@frozen
class Existing:
    """A journal that is there.

    Attributes:
        journal: where it lies.
        key_file: holds its keys.
    """

    journal: Annotated[str, _URL]
    key_file: KeyFile = None

    def made(self, run: str = "default") -> Journal:
        """Give it, not open yet; nobody looks into a new one, and so none is made.

        Raises:
            UsageError: there is none, or its extra isn't there.
            ConfigurationError: its key can't be used.
        """
        journal = _journal(read_word(self.journal, "--journal"), run=run, key=self.key_file)
        if journal.path is not None and not journal.path.exists():
            raise UsageError("--journal: there is no such file")
        return journal

    def ask(self, question: Callable[[Journal], Awaitable[Any]]) -> Any:
        """Open it, and give what it answers."""
        return ask(self.made(), question)


def ask(journal: Journal, question: Callable[[Journal], Awaitable[Any]]) -> Any:
    """Open a journal for as long as it takes to answer, and give the answer."""

    async def asked() -> Any:
        async with journal:
            return await question(journal)

    return signals.run(asked())


# --------------------------------------------------------------------------------------------- to be asked


def runs(*, existing: Existing) -> Exit:
    """List the runs of a journal."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("run", overflow="fold")
    for title in ("started", "last", *Run.kinds, "removed", "in_flight"):
        rows.add_column(title, justify="right")
    for each in existing.ask(lambda journal: journal.runs()):
        counts = (str(each.counts[kind]) for kind in (*Run.kinds, "removed", "in_flight"))
        rows.add_row(shown(each.name), *_times(each), *counts)
    _print(rows)
    return Exit.DONE


def status(name: Name, /, *, existing: Existing) -> Exit:
    """Tell where a run stands: counts, rate, errors by their code, and the partners of which nobody can tell.

    Its exit status is what bulk's would be: 0 if all have a token, 1 if some haven't, 3 if some are unknown.
    """

    async def asked(journal: Journal) -> tuple[RunStatus, list[Record]]:
        found = await journal.status(name)
        return found, [record async for record in journal.records(name, outcomes={"unknown"})]

    found, unknown = existing.ask(asked)
    started, last = _times(found)
    rows = table(Tally(_shown(found), found.error_codes))
    _print(f"started {started}, last outcome {last or 'none yet'}, {found.rate:,.0f}/s", rows)
    for record in unknown:
        facts = filter(None, (record.error_code, record.request_id))
        sys.stdout.write(shown(f"unknown: {record.secondary_client_id} ({', '.join(facts)})") + "\n")
    return _deserved(found)


def _shown(found: RunStatus) -> Counter[str]:
    """Give the counts, those first that there always are."""
    return Counter(dict.fromkeys(Run.kinds, 0) | dict(sorted(found.counts.items())))


def _deserved(found: RunStatus) -> Exit:
    if found.counts["unknown"]:
        return Exit.UNKNOWN
    return Exit.FAILED if found.counts.total() > found.counts["created"] else Exit.DONE


def _times(found: RunStatus) -> tuple[str, str]:
    last = "" if found.last_at is None else f"{found.last_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{found.started_at:%Y-%m-%dT%H:%M:%SZ}", last


def _print(*shown: object) -> None:
    # Wider than any terminal: what is cut off or wrapped is of no use to a script.
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=1000).print(*shown, sep="\n")


def export(
    name: Name,
    /,
    *,
    existing: Existing,
    output: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="A new file (.csv for CSV, else JSON Lines), or - for standard output.",
        ),
    ] = "-",
) -> Exit:
    """Write down what a journal has of each pair of a run, in the shape of bulk's output."""

    async def asked(journal: Journal) -> None:
        async for record in journal.records(name):
            sink.write({column: getattr(record, column) for column in COLUMNS})
            await sink.settle()
            if sink.trouble is not None:
                raise sink.trouble

    with open_output(output, rescuing=False) as sink:
        existing.ask(asked)
    return Exit.DONE


# ------------------------------------------------------------------------------------------- to be changed


def forget(name: Name, /, *, existing: Existing, yes: Yes = False) -> Exit:
    """Delete the relay tokens of a run from the journal, and keep what became of each pair.

    They go on to open their reports, and nothing here can remove them any more: revoke does that.
    """
    question = f"Delete the tokens of the run {name!r}? They stay valid, and can't be revoked any more."
    if not confirmed(question, yes=yes):
        return Exit.FAILED
    say(f"deleted: {existing.ask(lambda journal: journal.forget(name)):,}")
    return Exit.DONE


def rotate(*, existing: Existing) -> Exit:
    """Encrypt all with the first of the journal's keys; once it is done, the others may go."""
    say(f"encrypted anew: {existing.ask(lambda journal: journal.rotate()):,}")
    return Exit.DONE


@define(eq=False, repr=False)
class Held:
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
    async def of(cls, journal: Journal, run: str, partner: str | None) -> Self:
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
                    held._take(token, record.secondary_client_id)  # its own
                case "unknown", _:
                    held.unknown += 1
        return held

    def _take(self, token: str, partner: str) -> None:
        try:
            self.partners[RelayRemoveRequest(token)] = partner
        except RequestValidationError as error:
            failed = Failed(request=None, error=error, attempts=0, elapsed=0.0, request_id=None)
            self.malformed.append(told(failed, partner))


@define(eq=False)
class Revoke(Run):
    """A batch of removals."""

    kinds: ClassVar[tuple[str, ...]] = ("removed", "failed", "unknown", "not_attempted")

    held: Held = field(kw_only=True)

    def _batch(self) -> Batch[Any]:
        return self.client.relay.remove_many(
            self._requests(), concurrency=self.concurrency, journal=self.journal, on_outcome=self._write
        )

    def _line(self, outcome: Any) -> dict[str, Any]:
        return told(outcome, self.held.partners[getattr(outcome, "request", outcome)])

    async def _write_rest(self, result: BatchResult[Any]) -> None:
        await super()._write_rest(result)
        for line in self.held.malformed:
            self._put(line)
            await self.output.settle()

    def _explain(self, result: BatchResult[Any]) -> None:
        super()._explain(result)
        if self.held.malformed:
            malformed = len(self.held.malformed)
            self.board.say(f"malformed tokens, which need a direct call of Plaid's API: {malformed:,}")
        if self.held.forgotten:
            self.board.say(f"forgotten, so that it stays valid: {self.held.forgotten:,}")
        if self.held.unknown:
            self.board.say(f"unknown, so that there may be a token to remove: {self.held.unknown:,}")

    def status(self, tally: Tally) -> Exit:
        """Give the exit status: what can't be taken back counts as well."""
        left = Exit.UNKNOWN if self.held.unknown else Exit.FAILED if self.held.forgotten else Exit.DONE
        return max(super().status(tally), left)
