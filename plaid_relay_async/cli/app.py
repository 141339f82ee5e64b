"""The commands of `plaid-relay`, their options and their help."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path  # noqa: TC003  # cyclopts reads it at run time
from typing import TYPE_CHECKING, Annotated, Literal

from attrs import evolve
from cyclopts import App, CycloptsError, Parameter

from plaid_relay_async.cli.arguments import confirm, read_token
from plaid_relay_async.cli.batches import check_input, run_batch, run_input
from plaid_relay_async.cli.bulk import BatchRunner, recorded_in
from plaid_relay_async.cli.calls import (
    ClientOptions,
    build_request,
    check_webhook,
    read_report_token,
    run_call,
    run_write_call,
)
from plaid_relay_async.cli.console import run_console
from plaid_relay_async.cli.demo import run_demo
from plaid_relay_async.cli.failures import describe_error
from plaid_relay_async.cli.fetch import FetchRunner, ReportStore, request_factory, undecoded_report
from plaid_relay_async.cli.gateway import gateway, keys
from plaid_relay_async.cli.identifiers import oddity_of
from plaid_relay_async.cli.journal import export, forget, rotate, runs, status
from plaid_relay_async.cli.journal_options import (
    ExistingJournal,
    JournalOptions,
    KeyFileOption,
    OptionalJournalURL,
    RunName,
    SkipConfirmation,
    run_query,
)
from plaid_relay_async.cli.logs import configure_logs, print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.cli.options import (
    AllowOddIDs,
    Append,
    BatchConcurrency,
    Concurrency,
    InputOptions,
    LogFormat,
    OptionalReportToken,
    OutputPath,
    Port,
    RelayToken,
    ReportToken,
    Strict,
    Webhook,
)
from plaid_relay_async.cli.output import open_output, open_stdout, write_all, write_token_response
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.revoking import RevokeRunner, TokensToRevoke
from plaid_relay_async.cli.row_iterators import FileRows
from plaid_relay_async.cli.rows import creation_form, shared_report_form
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.cli.simulate import parse_clients, serve_simulator
from plaid_relay_async.cli.sources import InputSource
from plaid_relay_async.cli.survey import InputSurvey
from plaid_relay_async.cli.temporal import (
    batch_concurrency,
    cancel,
    rate,
    read_tokens,
    recording_on,
    runner_of,
    worker,
)
from plaid_relay_async.cli.temporal_options import SubmissionOptions, TemporalOptions
from plaid_relay_async.cli.webhooks import webhooks
from plaid_relay_async.codec import to_json
from plaid_relay_async.config import RetryPolicy, __version__
from plaid_relay_async.errors import ResponseDecodeError
from plaid_relay_async.redaction import redact_words

if TYPE_CHECKING:
    from collections.abc import Sequence

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
for command in (gateway, webhooks, runs, status, export, forget, rotate, worker, rate, cancel):
    app.command(command)


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
    webhook: Webhook = None,
    input_options: InputOptions = InputOptions(),  # noqa: B008  # frozen
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
    concurrency: BatchConcurrency = None,
    journal_options: JournalOptions = JournalOptions(),  # noqa: B008  # frozen
    temporal_options: SubmissionOptions = SubmissionOptions(),  # noqa: B008  # frozen
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Create a relay token for each row of a file, and write an outcome for each.

    With --journal and --run, repeat the command with another --output to resume an interrupted run.

    With --task-queue, workers make the calls, on any number of machines; see worker.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    if source == report_token == "-":
        raise UsageError("standard input can't be both INPUT and --report-token")
    if stream and dry_run:
        raise UsageError("--dry-run: can't be used with --stream")
    token = None if report_token is None else read_report_token(report_token)
    concurrency = batch_concurrency(temporal_options, concurrency)
    client, journal = client_options.build_client(concurrency), journal_options.build_journal()
    connection = temporal_options.connection_for(journal, journal_options.key_file, client_options)
    temporal_options.check_detach(output, stream=stream)
    check_webhook(webhook, recorded=journal is not None)
    recording = recording_on(connection, journal, temporal_options.new_rate())
    runner_type = runner_of(temporal_options)
    create_runner = partial(runner_type, client, concurrency=concurrency, recording=recording)
    form = creation_form(token, webhook, recorded=journal is not None, allow_odd=allow_odd_ids)
    survey = InputSurvey(allow_odd=allow_odd_ids, pairs=set() if dry_run else None)
    with InputSource(source, input_options.input_format(form.columns), stream=stream) as rows:
        if dry_run:
            return check_input(rows, form, survey)
        return run_input(rows, form, create_runner, output, append=append, survey=survey)


@app.command
def create(
    *,
    report_token: ReportToken,
    partner: Annotated[str, Parameter(allow_leading_hyphen=True, help="secondary_client_id of the partner.")],
    allow_odd_ids: AllowOddIDs = False,
    webhook: Webhook = None,
    output: OutputPath = "-",
    journal_options: JournalOptions = JournalOptions(),  # noqa: B008  # frozen
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Create one relay token, and write its outcome as bulk does."""
    if not allow_odd_ids and (oddity := oddity_of(partner)) is not None:
        raise UsageError(f"--partner: {oddity}; --allow-odd-ids accepts it")
    client, journal = client_options.build_client(), journal_options.build_journal()
    check_webhook(webhook, recorded=journal is not None)
    request = build_request(read_token(report_token, "--report-token"), partner, webhook)
    # In a batch, waiting for a rate limit counts against no timeout. A single call must respect its timeout,
    # so it fails immediately if the delay that Plaid requests is longer.
    retry = RetryPolicy(max_pause=client_options.timeout or RetryPolicy().max_pause)
    with open_output(output) as writer:
        rows = FileRows(iter([request]), 1)
        display = ProgressDisplay(1, bar=False)
        runner = BatchRunner(
            *(client, rows, writer, display, signals),
            concurrency=1,
            retry=retry,
            recording=recorded_in(journal),
            print_errors=True,
        )
        return runner.exit_status(signals.run(runner()))


@app.command
def get(
    relay_token: RelayToken,
    /,
    *,
    strict: Strict = False,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Print a report that was shared with you, as JSON.

    A report that differs from Plaid's specification is printed as Plaid sent it, with exit status 1.
    """
    client, token = client_options.build_client(), read_token(relay_token, "RELAY_TOKEN")
    file = open_stdout()  # before the call, so that nothing is sent if it is closed
    try:
        response = run_call(client, lambda: client.relay.get(token))
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
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Download a report that was shared with you, as a PDF."""
    client, token = client_options.build_client(), read_token(relay_token, "RELAY_TOKEN")
    if output == "-":
        file = open_stdout()
        if file.isatty():
            raise UsageError("--output: a PDF can't be shown on a terminal; pass a file name, or use a pipe")
        write_all(file, run_call(client, lambda: client.relay.get_pdf(token)).content)
        return ExitStatus.DONE
    try:
        run_call(client, lambda: client.relay.download_pdf(token, output))
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
    input_options: InputOptions = InputOptions(),  # noqa: B008  # frozen
    strict: Strict = False,
    output: OutputPath = "-",
    append: Append = False,
    concurrency: Concurrency = 50,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Fetch the shared report of each relay token in a file, and store it in its own file.

    A report whose file exists isn't fetched again.

    A report that differs from Plaid's specification is stored as Plaid sent it, with exit status 1.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    if insights and kind == "pdf":
        raise UsageError("--insights: requires --format json")
    client = client_options.build_client(concurrency)
    store = ReportStore(folder, "insights.json" if insights else kind)
    store.prepare()
    form = shared_report_form(request_factory(kind, insights=insights))
    create_runner = partial(FetchRunner, client, concurrency=concurrency, store=store, strict=strict)
    with InputSource(source, input_options.input_format(form.columns)) as rows:
        return run_input(rows, form, create_runner, output, append=append)


@app.command
def refresh(
    relay_token: RelayToken,
    /,
    *,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Refresh a report that was shared with you, and print the response with its relay token."""
    late_outcomes: list[LateOutcome] = []
    client, token = (
        client_options.build_client(late_outcomes=late_outcomes),
        read_token(relay_token, "RELAY_TOKEN"),
    )
    file = open_stdout()
    response = run_write_call(client, lambda: client.relay.refresh(token), late_outcomes)
    if response is None:
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
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Revoke one relay token, and record that in the journal, if one is passed."""
    late_outcomes: list[LateOutcome] = []
    client, token = (
        client_options.build_client(late_outcomes=late_outcomes),
        read_token(relay_token, "RELAY_TOKEN"),
    )
    existing_journal = None if journal is None else ExistingJournal(journal, key_file).build_journal()
    file = open_stdout()

    async def removal() -> RelayRemoveResponse:
        async with existing_journal or contextlib.nullcontext():
            return await client.relay.remove(token, journal=existing_journal)

    response = run_write_call(client, removal, late_outcomes)
    if response is None:
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
    concurrency: BatchConcurrency = None,
    temporal_options: TemporalOptions = TemporalOptions(),  # noqa: B008  # frozen
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Revoke the relay tokens that a run created, and write an outcome for each.

    If the run was on a task queue, pass --task-queue, and cancel the run first if calls are still queued.

    To resume it after an interruption, repeat the command with --append or another --output.

    Ctrl-C stops sending and waits for the calls in flight; a second Ctrl-C abandons them.
    """
    concurrency = batch_concurrency(temporal_options, concurrency)
    client, journal = client_options.build_client(concurrency), existing_journal.build_journal(name)
    connection = temporal_options.connection_for(journal, existing_journal.key_file, client_options)

    tokens = run_query(journal, lambda journal: read_tokens(connection, journal, partner))
    if tokens.maybe_queued:
        print_message(*tokens.warning(), level=logging.WARNING)
    question = f"Revoke the relay tokens of the run {name!r} ({len(tokens.partners):,})?"
    if tokens.partners and not confirm(question, yes=yes):
        return ExitStatus.FAILED
    rows = FileRows(iter(tokens.partners), len(tokens.partners))
    create_runner = partial(
        RevokeRunner,
        client,
        concurrency=concurrency,
        recording=recording_on(connection, journal),
        tokens=tokens,
        read_again=partial(TokensToRevoke.read, journal, name, partner),
    )
    return run_batch(create_runner, rows, output, append=append)


@app.command
def simulate(
    *,
    port: Port = 0,
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
    log_format: LogFormat = "text",
) -> ExitStatus:
    """Run a local Plaid simulator until interrupted."""
    configure_logs(log_format)
    return signals.run(serve_simulator(port, parse_clients(client or ()), report or (), signals))


@app.command
def console(*, port: Port = 0, log_format: LogFormat = "text") -> ExitStatus:
    """Run the gateway's web console on a local Plaid simulator until interrupted."""
    configure_logs(log_format)
    return signals.run(run_console(port, signals))


@app.command
def demo() -> ExitStatus:
    """Share a report with 400 partners on a simulator that rejects some requests and loses a response."""
    return signals.run(run_demo(signals))


def run_command(argv: Sequence[str]) -> int:
    """Run the command, and return its exit status.

    Raises:
        KeyboardInterrupt: a signal has ended the command.
    """
    try:
        # `--help` and `--version` return `None`.
        return (
            app(argv, exit_on_error=False, print_error=False, result_action="return_value") or ExitStatus.DONE
        )
    except CycloptsError as error:
        lines = [*_redact_values(str(error), argv).split("\n"), "see plaid-relay --help"]
        status = ExitStatus.USAGE
    except Exception as error:  # noqa: BLE001  # a traceback could show a token
        lines, status = describe_error(error)
    print_message(f"plaid-relay: {lines[0]}", *lines[1:], level=logging.ERROR)
    return status


def _redact_values(text: str, argv: Sequence[str]) -> str:
    """Redact the arguments in a message of cyclopts, except command names: one may be a token."""
    values = {arg.partition("=")[2] if arg.startswith("-") else arg for arg in argv}
    return redact_words(text, values - {"", *app, *gateway, *keys, *webhooks})
