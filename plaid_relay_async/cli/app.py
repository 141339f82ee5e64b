"""The commands of `plaid-relay`, their options and their help."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from attrs import evolve, frozen
from cyclopts import App, CycloptsError, Parameter

from plaid_relay_async.cli.arguments import ProxyOption, confirm, read_token, read_value
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.cells import DELIMITERS, Columns, InputFormat
from plaid_relay_async.cli.console import run_console
from plaid_relay_async.cli.demo import run_demo
from plaid_relay_async.cli.fetch import FetchRunner, ReportStore, request_factory, undecoded_report
from plaid_relay_async.cli.gateway import gateway, keys
from plaid_relay_async.cli.identifiers import oddity_of
from plaid_relay_async.cli.journal import (
    ExistingJournal,
    JournalOptions,
    KeyFileOption,
    OptionalJournalURL,
    RevokeRunner,
    RunName,
    SkipConfirmation,
    TokensToRevoke,
    export,
    forget,
    rotate,
    run_query,
    runs,
    status,
)
from plaid_relay_async.cli.messages import ExitStatus, UsageError, max_connections, print_message, sanitize
from plaid_relay_async.cli.output import open_output, open_stdout, write_all, write_token_response
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.rows import (
    FileRows,
    InputSource,
    PipedRows,
    RowForm,
    creation_form,
    shared_report_form,
)
from plaid_relay_async.cli.serving import variable_names
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.cli.simulate import parse_clients, serve_simulator
from plaid_relay_async.cli.survey import InputSurvey
from plaid_relay_async.client import RelayClient
from plaid_relay_async.codec import to_json
from plaid_relay_async.config import RetryPolicy, Timeouts, __version__
from plaid_relay_async.errors import (
    ConfigurationError,
    OutcomeUnknownError,
    PlaidRelayError,
    RequestValidationError,
    ResponseDecodeError,
)
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.outcomes import Failed, Refreshed, Removed
from plaid_relay_async.redaction import redact_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plaid_relay_async.models import RelayRemoveResponse
    from plaid_relay_async.outcomes import LateOutcome

_HELP = """\
Share Plaid Asset Reports with partners: one relay token and one recorded outcome for each partner.

Credentials are read from PLAID_CLIENT_ID and PLAID_SECRET. PLAID_ENV (default: sandbox) or PLAID_BASE_URL \
selects the address to call; HTTPS_PROXY and NO_PROXY select the proxy. Pass a token as @FILE to read it \
from a file, or as - to read it from standard input, so that it doesn't appear in the list of processes.

Exit status: 0 everything succeeded; 1 some failed or weren't attempted, or the output or the journal \
couldn't be written; 2 wrong usage or input; 3 some outcomes unknown or a created token not stored; 70 a bug.
"""

app = App(
    name="plaid-relay",
    help=_HELP,
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
for command in (gateway, runs, status, export, forget, rotate):
    app.command(command)

ReportToken: TypeAlias = Annotated[
    str,
    Parameter(allow_leading_hyphen=True, help="asset_report_token of the report to share, @FILE, or -."),
]
OptionalReportToken: TypeAlias = Annotated[
    str | None,
    Parameter(
        allow_leading_hyphen=True,
        help="Report token, @FILE, or -, for rows without one; a plain list of partner IDs is then enough.",
    ),
]
RelayToken: TypeAlias = Annotated[str, Parameter(allow_leading_hyphen=True, help="Relay token, @FILE, or -.")]
BaseURL: TypeAlias = Annotated[
    str | None,
    Parameter(name="--base-url", help="Base URL, in place of PLAID_BASE_URL and PLAID_ENV."),
]
Timeout: TypeAlias = Annotated[
    float | None,
    Parameter(help="Timeout in seconds for one call with all its attempts. Default: 300."),
]
OutputPath: TypeAlias = Annotated[
    str,
    Parameter(
        name="--output",
        allow_leading_hyphen=True,
        help="Output for the outcomes: a new file (.csv for CSV, else JSON Lines), or - for standard output.",
    ),
]
Strict: TypeAlias = Annotated[
    bool, Parameter(negative="", help="Reject reports that differ from Plaid's specification.")
]
Append: TypeAlias = Annotated[bool, Parameter(negative="", help="Append to the output if it exists.")]
Concurrency: TypeAlias = Annotated[int, Parameter(help="Maximum number of concurrent calls.")]
AllowOddIDs: TypeAlias = Annotated[
    bool,
    Parameter(
        name="--allow-odd-ids",
        negative="",
        help="Accept partner IDs that look like a formula, a number or a heading and, in bulk, IDs that "
        "differ from the others.",
    ),
]


@Parameter(name="*")
@frozen
class InputOptions:
    """The options that say how to read INPUT.

    Attributes:
        delimiter: the delimiter of CSV; `None` to recognize it from the header.
        column: `COLUMN=NAME` for each column that has a different name in the input.
        no_header: whether the first line is a row, even if it looks like a header.
    """

    delimiter: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Delimiter of CSV: , ; | or the word tab. Default: recognized from the header.",
        ),
    ] = None
    column: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="COLUMN=NAME: read COLUMN from the input's column NAME. May be repeated.",
        ),
    ] = ()
    no_header: Annotated[
        bool,
        Parameter(negative="", help="The input is a list without a header: read the first line as a row."),
    ] = False

    def input_format(self, columns: Columns) -> InputFormat:
        """Return the checked options.

        Raises:
            UsageError: an option is invalid.
        """
        delimiter = {"tab": "\t", r"\t": "\t"}.get(self.delimiter or "", self.delimiter)
        if delimiter is not None and delimiter not in DELIMITERS:
            raise UsageError(f"--delimiter: must be one of {' '.join(DELIMITERS.values())}")
        column_names: dict[str, str] = {}
        for column, _, name in (value.partition("=") for value in self.column):
            if column in column_names:
                raise UsageError(f"--column: {column} is mapped twice")
            column_names[column] = name
        if not all(column in columns.names and name.strip() for column, name in column_names.items()):
            raise UsageError(f"--column: must be COLUMN=NAME; COLUMN is one of {', '.join(columns.names)}")
        if column_names and self.no_header:
            raise UsageError("--column: can't be used with --no-header")
        return InputFormat(delimiter, column_names, may_have_header=not self.no_header)


# ---------------------------------------------------------------------------------------- the commands


@app.command
def bulk(
    source: Annotated[
        str,
        Parameter(
            name="INPUT",
            allow_leading_hyphen=True,
            help="A CSV file with a header, a JSON file, or - for standard input; columns: report_token or "
            "report_tokens, secondary_client_id, webhook (optional).",
        ),
    ],
    /,
    *,
    report_token: OptionalReportToken = None,
    input_options: InputOptions = InputOptions(),
    allow_odd_ids: AllowOddIDs = False,
    stream: Annotated[
        bool,
        Parameter(
            negative="",
            help="Send the rows of a pipe as they arrive, without comparing them with each other first.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="Check all of the input, print a summary of it, and send nothing."),
    ] = False,
    output: OutputPath = "-",
    append: Append = False,
    concurrency: Concurrency = 50,
    journal_options: JournalOptions = JournalOptions(),  # noqa: B008  # frozen
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Create a relay token for each row of a file, and write an outcome for each.

    With --journal and --run, repeat the command with another --output to resume an interrupted run.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    if source == report_token == "-":
        raise UsageError("standard input can't be both INPUT and --report-token")
    if stream and dry_run:
        raise UsageError("--dry-run: can't be used with --stream")
    token = None if report_token is None else _read_report_token(report_token)
    client, journal = _build_client(base_url, proxy, timeout, concurrency), journal_options.build_journal()
    create_runner = partial(BatchRunner, client, concurrency=concurrency, journal=journal)
    form = creation_form(token, allow_odd=allow_odd_ids)
    survey = InputSurvey(allow_odd=allow_odd_ids, pairs=set() if dry_run else None)
    with InputSource(source, input_options.input_format(form.columns), stream=stream) as rows:
        if dry_run:
            return _dry_run(rows, form, survey)
        return _run_input(rows, form, create_runner, output, append=append, survey=survey)


@app.command
def create(
    *,
    report_token: ReportToken,
    partner: Annotated[str, Parameter(allow_leading_hyphen=True, help="secondary_client_id of the partner.")],
    allow_odd_ids: AllowOddIDs = False,
    webhook: Annotated[
        str | None, Parameter(help="URL that Plaid calls when the partner retrieves the report.")
    ] = None,
    output: OutputPath = "-",
    journal_options: JournalOptions = JournalOptions(),  # noqa: B008  # frozen
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Create one relay token, and write its outcome as bulk does."""
    if not allow_odd_ids and (oddity := oddity_of(partner)) is not None:
        raise UsageError(f"--partner: {oddity}; --allow-odd-ids accepts it")
    client, journal = _build_client(base_url, proxy, timeout), journal_options.build_journal()
    request = _build_request(read_token(report_token, "--report-token"), partner, webhook)
    # In a batch, waiting for a rate limit counts against no timeout. A single call must respect its timeout,
    # so it fails immediately if the delay that Plaid requests is longer.
    retry = RetryPolicy(max_pause=timeout or RetryPolicy().max_pause)
    with open_output(output) as writer:
        rows = FileRows(iter([request]), 1)
        display = ProgressDisplay(1, bar=False)
        runner = BatchRunner(
            client, rows, writer, display, signals, 1, retry=retry, journal=journal, print_errors=True
        )
        return runner.exit_status(signals.run(runner()))


@app.command
def get(
    relay_token: RelayToken,
    /,
    *,
    strict: Strict = False,
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Print a report that was shared with you, as JSON.

    A report that differs from Plaid's specification is printed as Plaid sent it, with exit status 1.
    """
    client, token = _build_client(base_url, proxy, timeout), read_token(relay_token, "RELAY_TOKEN")
    file = open_stdout()  # before the call, so that nothing is sent if it is closed
    try:
        response = _run_call(client, lambda: client.relay.get(token))
    except ResponseDecodeError as error:
        if not strict and (report := undecoded_report(error)) is not None:
            write_all(file, report)
        raise
    write_all(file, to_json(response, indent=2) + b"\n")
    return ExitStatus.DONE


@app.command
def pdf(
    relay_token: RelayToken,
    /,
    *,
    output: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="A new file, or - for standard output.")
    ],
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Download a report that was shared with you, as a PDF."""
    client, token = _build_client(base_url, proxy, timeout), read_token(relay_token, "RELAY_TOKEN")
    if output == "-":
        file = open_stdout()
        if file.isatty():
            raise UsageError("--output: a PDF can't be shown on a terminal; pass a file name, or use a pipe")
        write_all(file, _run_call(client, lambda: client.relay.get_pdf(token)).content)
        return ExitStatus.DONE
    try:
        _run_call(client, lambda: client.relay.download_pdf(token, output))
    except FileExistsError:
        raise UsageError(f"{output}: already exists") from None
    return ExitStatus.DONE


@app.command
def fetch(
    source: Annotated[
        str,
        Parameter(
            name="INPUT",
            allow_leading_hyphen=True,
            help="A CSV file with a header, a JSON file, or - for standard input; column: relay_token. A "
            "list of tokens, one per line, and the output of bulk are accepted too.",
        ),
    ],
    /,
    *,
    folder: Annotated[
        Path,
        Parameter(
            name="--dir", help="Directory for the reports, one file per report; created if it doesn't exist."
        ),
    ],
    kind: Annotated[
        Literal["json", "pdf"], Parameter(name="--format", help="Format of the reports.")
    ] = "json",
    insights: Annotated[bool, Parameter(negative="", help="Include categories and merchants.")] = False,
    input_options: InputOptions = InputOptions(),
    strict: Strict = False,
    output: OutputPath = "-",
    append: Append = False,
    concurrency: Concurrency = 50,
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Fetch the shared report of each relay token in a file, and store it in its own file.

    A report whose file exists isn't fetched again.

    A report that differs from Plaid's specification is stored as Plaid sent it, with exit status 1.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    if insights and kind == "pdf":
        raise UsageError("--insights: requires --format json")
    client = _build_client(base_url, proxy, timeout, concurrency)
    store = ReportStore(folder, "insights.json" if insights else kind)
    store.prepare()
    form = shared_report_form(request_factory(kind, insights=insights))
    create_runner = partial(FetchRunner, client, concurrency=concurrency, store=store, strict=strict)
    with InputSource(source, input_options.input_format(form.columns)) as rows:
        return _run_input(rows, form, create_runner, output, append=append)


@app.command
def refresh(
    relay_token: RelayToken,
    /,
    *,
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Refresh a report that was shared with you, and print the response with its relay token."""
    late_outcomes: list[LateOutcome] = []
    client, token = (
        _build_client(base_url, proxy, timeout, late_outcomes=late_outcomes),
        read_token(relay_token, "RELAY_TOKEN"),
    )
    file = open_stdout()
    try:
        response = _run_write_call(client, lambda: client.relay.refresh(token), late_outcomes)
    except KeyboardInterrupt:
        print_message("interrupted: the outcome of the refresh is unknown")
        return ExitStatus.UNKNOWN
    return write_token_response(file, to_json(response, indent=2) + b"\n", to_json(response) + b"\n")


@app.command
def remove(
    relay_token: RelayToken,
    /,
    *,
    journal: OptionalJournalURL = None,
    key_file: KeyFileOption = None,
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Revoke one relay token, and record that in the journal, if one is passed."""
    late_outcomes: list[LateOutcome] = []
    client, token = (
        _build_client(base_url, proxy, timeout, late_outcomes=late_outcomes),
        read_token(relay_token, "RELAY_TOKEN"),
    )
    existing_journal = None if journal is None else ExistingJournal(journal, key_file).build_journal()
    file = open_stdout()

    async def removal() -> RelayRemoveResponse:
        async with existing_journal or contextlib.nullcontext():
            return await client.relay.remove(token, journal=existing_journal)

    try:
        response = _run_write_call(client, removal, late_outcomes)
    except KeyboardInterrupt:
        print_message("interrupted: the outcome of the removal is unknown; removing the token again is safe")
        return ExitStatus.UNKNOWN
    properties = {**response.additional_properties, "inferred": response.inferred}
    write_all(file, to_json(evolve(response, additional_properties=properties), indent=2) + b"\n")
    return ExitStatus.DONE if response.removed else ExitStatus.FAILED


@app.command
def revoke(
    name: RunName,
    /,
    *,
    existing_journal: ExistingJournal,
    partner: Annotated[
        str | None, Parameter(help="Revoke only the tokens of this secondary_client_id.")
    ] = None,
    yes: SkipConfirmation = False,
    output: OutputPath = "-",
    append: Append = False,
    concurrency: Concurrency = 50,
    base_url: BaseURL = None,
    proxy: ProxyOption = None,
    timeout: Timeout = None,
) -> ExitStatus:
    """Revoke the relay tokens that a run created, and write an outcome for each.

    To resume it after an interruption, repeat the command with --append or another --output.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    client, journal = (
        _build_client(base_url, proxy, timeout, concurrency),
        existing_journal.build_journal(name),
    )
    tokens = run_query(journal, lambda journal: TokensToRevoke.read(journal, name, partner))
    question = f"Revoke the relay tokens of the run {name!r} ({len(tokens.partners):,})?"
    if tokens.partners and not confirm(question, yes=yes):
        return ExitStatus.FAILED
    rows = FileRows(iter(tokens.partners), len(tokens.partners))
    create_runner = partial(RevokeRunner, client, concurrency=concurrency, journal=journal, tokens=tokens)
    return _run_batch(create_runner, rows, output, append=append)


@app.command
def simulate(
    *,
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 0,
    client: Annotated[
        list[str] | None,
        Parameter(
            negative="", help="ID:SECRET: accept only these credentials. Default: any. May be repeated."
        ),
    ] = None,
    report: Annotated[
        list[str] | None,
        Parameter(negative="", help="Token of a report that is ready from the start. May be repeated."),
    ] = None,
) -> ExitStatus:
    """Run a local Plaid simulator until interrupted."""
    return signals.run(serve_simulator(port, parse_clients(client or ()), report or (), signals))


@app.command
def console(
    *, port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 0
) -> ExitStatus:
    """Run the gateway's web console on a local Plaid simulator until interrupted."""
    return signals.run(run_console(port, signals))


@app.command
def demo() -> ExitStatus:
    """Share a report with 400 partners on a simulator that rejects some requests and loses a response."""
    return signals.run(run_demo(signals))


# ------------------------------------------------------------------------------------ shared by the commands


def _build_client(
    base_url: str | None,
    proxy: str | None,
    timeout: float | None,
    concurrency: int = 1,
    *,
    late_outcomes: list[LateOutcome] | None = None,
) -> RelayClient:
    if timeout is not None and not 0 < timeout < math.inf:
        raise UsageError("--timeout: must be a number of seconds greater than 0")
    if concurrency < 1:
        raise UsageError("--concurrency: must be an integer of at least 1")
    if (limit := max_connections()) is not None and concurrency > limit:
        raise UsageError(f"--concurrency: this shell allows at most {limit} connections; raise ulimit -n")
    # The client's own error advises to pass credentials as an argument, and the command has no option for
    # them.
    missing = [name for name in variable_names("default") if not os.environ.get(name)]
    if missing:
        names = " and ".join(missing)
        raise UsageError(f"no credentials: set {names} (see https://dashboard.plaid.com/developers/keys)")
    timeouts = Timeouts() if timeout is None else Timeouts(total=timeout)
    return RelayClient(
        base_url=base_url,
        timeouts=timeouts,
        connections=max(100, concurrency),
        proxy=None if proxy is None else read_value(proxy, "--proxy"),
        trust_env=True,
        on_late_outcome=None if late_outcomes is None else late_outcomes.append,
    )


def _read_report_token(value: str) -> str:
    # The record checks the token; the partner is a placeholder.
    return _build_request(read_token(value, "--report-token"), "any-partner", None).report_tokens[0]


def _build_request(report_token: str, partner: str, webhook: str | None) -> RelayCreateRequest:
    try:
        return RelayCreateRequest((report_token,), partner, webhook)
    except RequestValidationError as error:
        field, problem = error.field, error.problem
    # Raised after the `except` block: the original error, whose traceback refers to the token, is not its
    # context.
    option = {"secondary_client_id": "--partner", "webhook": "--webhook"}.get(field, "--report-token")
    raise UsageError(f"{option}: {problem}")


def _run_input(
    source: InputSource,
    form: RowForm[Any],
    create_runner: Callable[..., BatchRunner],
    output: str,
    *,
    append: bool,
    survey: InputSurvey | None = None,
) -> ExitStatus:
    if source.is_same_file(output):
        name = "standard output" if output == "-" else output
        raise UsageError(f"{name}: is also the input")
    rows = source.rows(form, survey)
    # The columns of a file are known once its rows are checked, and those of a pipe only at its end.
    if isinstance(rows, FileRows) and survey is not None:
        _report_unknown_columns(source)
    status = _run_batch(create_runner, rows, output, append=append)
    if isinstance(rows, PipedRows) and survey is not None:
        _report_unknown_columns(source)
    return status


def _report_unknown_columns(source: InputSource) -> None:
    if source.table.unknown:
        print_message(f"unknown columns are ignored: {', '.join(source.table.unknown)}")


def _dry_run(source: InputSource, form: RowForm[Any], survey: InputSurvey) -> ExitStatus:
    file, problem = open_stdout(), None
    # The summary is printed for a rejected input too, because it helps to find the problem.
    try:
        source.rows(form, survey)
    except UsageError as error:
        problem = error
    write_all(file, "".join(f"{sanitize(line)}\n" for line in survey.summary(source.table)).encode())
    if problem is not None:
        raise problem
    print_message("nothing was sent")
    return ExitStatus.DONE


def _run_batch(
    create_runner: Callable[..., BatchRunner],
    rows: FileRows[Any] | PipedRows[Any],
    output: str,
    *,
    append: bool,
) -> ExitStatus:
    with open_output(output, append=append) as writer:
        # A bar would be torn by outcomes that are printed on the same terminal.
        display = ProgressDisplay(rows.total, bar=not (output == "-" and sys.stdout.isatty()))
        runner = create_runner(rows, writer, display, signals)
        counts = signals.run(runner())
    display.show_totals(counts)
    return runner.exit_status(counts)


def _run_call(client: RelayClient, operation: Callable[[], Awaitable[Any]]) -> Any:
    async def call() -> Any:
        async with client:
            return await operation()

    return signals.run(call())


def _run_write_call(
    client: RelayClient, operation: Callable[[], Awaitable[Any]], late_outcomes: list[LateOutcome]
) -> Any:
    """Make a call that isn't read-only, and return its response even if a signal interrupts it.

    The client waits for the response of an interrupted call, and reports it as a late outcome.

    Args:
        client: the client, which is not open yet.
        operation: makes the call.
        late_outcomes: the list to which the client appends the outcome of an interrupted call.

    Raises:
        PlaidRelayError: the call failed.
        KeyboardInterrupt: a signal was received, and the outcome is unknown.
    """
    try:
        return _run_call(client, operation)
    except KeyboardInterrupt:
        # Without a late outcome (the drain timed out, or a second signal ended it) the outcome is unknown.
        match late_outcomes:
            case [Refreshed() | Removed() as outcome]:
                return outcome.response
            case [Failed(error=error)]:
                raise error from None
        raise


# ------------------------------------------------------------------------------------ the exit status


def run_command(argv: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    try:
        # `--help` and `--version` return `None`.
        return (
            app(argv, exit_on_error=False, print_error=False, result_action="return_value") or ExitStatus.DONE
        )
    except CycloptsError as error:
        lines = [*_redact_values(str(error), argv).split("\n"), "see plaid-relay --help"]
        status = ExitStatus.USAGE
    except KeyboardInterrupt:
        lines, status = ["interrupted"], ExitStatus.FAILED
    except Exception as error:  # noqa: BLE001  # a traceback could show a token
        lines, status = _describe_error(error)
    print_message(f"plaid-relay: {lines[0]}", *lines[1:])
    return status


def _describe_error(error: Exception) -> tuple[list[str], ExitStatus]:
    match error:
        case UsageError():
            return list(error.args), ExitStatus.USAGE
        case PlaidRelayError():
            return [f"{type(error).__name__}: {error}"], _exit_status_of(error)
        case OSError():
            return [f"the output can't be written: {error.strerror}"], ExitStatus.FAILED
    return _describe_bug(error), ExitStatus.BUG


def _redact_values(text: str, argv: Sequence[str]) -> str:
    """Redact the arguments in a message of cyclopts, except command names: one may be a token."""
    values = {arg.partition("=")[2] if arg.startswith("-") else arg for arg in argv}
    return redact_words(text, values - {"", *app, *gateway, *keys})


def _exit_status_of(error: PlaidRelayError) -> ExitStatus:
    if isinstance(error, OutcomeUnknownError):
        return ExitStatus.UNKNOWN
    return (
        ExitStatus.USAGE
        if isinstance(error, ConfigurationError | RequestValidationError)
        else ExitStatus.FAILED
    )


def _describe_bug(error: Exception) -> list[str]:
    # Only names of files and functions: an exception's text and local variables may contain a token.
    frames = (
        f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    )
    return ["this is a bug; please report these lines:", type(error).__name__, *frames]
