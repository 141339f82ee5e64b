"""The journal options of the commands, and the journal that they describe."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from attrs import frozen
from cyclopts import Parameter

from plaid_relay_async.cli.arguments import read_value
from plaid_relay_async.cli.messages import UsageError, naming_extra
from plaid_relay_async.cli.signals import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.journal import Journal

_JOURNAL_URL = Parameter(
    env_var="PLAID_RELAY_JOURNAL",
    help="Journal: the path of an SQLite file, or a PostgreSQL URL. @FILE reads it from a file, for a URL "
    "with a password.",
)
OptionalJournalURL: TypeAlias = Annotated[str | None, _JOURNAL_URL]
KeyFileOption: TypeAlias = Annotated[
    Path | None,
    Parameter(help="File (mode 0600) with one or more encryption keys, in place of PLAID_RELAY_KEY."),
]
RunName: TypeAlias = Annotated[str, Parameter(help="Run name, as passed to bulk.")]
Lease: TypeAlias = Annotated[
    float,
    Parameter(
        help="Seconds without a heartbeat after which other processes consider this one dead, on PostgreSQL. "
        "Also sets the time limits of the journal."
    ),
]
StoreT = TypeVar("StoreT", bound=AbstractAsyncContextManager[Any])
SkipConfirmation: TypeAlias = Annotated[bool, Parameter(negative="", help="Skip the confirmation prompt.")]


# -------------------------------------------------------------------------------------- the options


def build_journal(url: str, **settings: Any) -> Journal:
    """Return a journal, which is not open yet.

    Args:
        url: the option `--journal`.
        **settings: further arguments of `Journal`.

    Raises:
        UsageError: the option can't be read, or the extra `journal` isn't installed.
        ConfigurationError: an argument is invalid.
    """
    # Imported here, because the journal requires an extra that other commands don't need.
    with naming_extra():
        from plaid_relay_async.journal import Journal
    return Journal(read_value(url, "--journal"), **settings)


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
    lease: Lease = 30.0

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
        return build_journal(
            self.journal,
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
        journal = build_journal(self.journal, run=run, key=self.key_file)
        if journal.path is not None and not journal.path.exists():
            raise UsageError("--journal: the file doesn't exist")
        return journal

    def run_query(self, query: Callable[[Journal], Awaitable[Any]]) -> Any:
        """Open the journal, run a query, and return its result."""
        return run_query(self.build_journal(), query)


def run_query(store: StoreT, query: Callable[[StoreT], Awaitable[Any]]) -> Any:
    """Open a journal or an inbox, run a query, close it, and return the result."""

    async def run() -> Any:
        async with store:
            return await query(store)

    return signals.run(run())
