"""Runs the rows of an input, or of a journal, as a batch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError, sanitize
from plaid_relay_async.cli.output import open_output, open_stdout, write_all
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.row_iterators import FileRows, PipedRows
from plaid_relay_async.cli.signals import signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.cli.bulk import BatchRunner
    from plaid_relay_async.cli.rows import RowForm
    from plaid_relay_async.cli.sources import InputSource
    from plaid_relay_async.cli.survey import InputSurvey


def run_input(
    source: InputSource,
    form: RowForm[Any],
    create_runner: Callable[..., BatchRunner],
    output: str,
    *,
    append: bool,
    survey: InputSurvey | None = None,
) -> ExitStatus:
    """Check the rows of an input, send them as a batch, and return the exit status.

    Args:
        source: the input.
        form: the kind of rows.
        create_runner: takes the rows, the output, the display and the signals, and returns the runner.
        output: the path of the output, or `-` for standard output.
        append: whether to add to an existing output.
        survey: counts and compares the rows; without it, unknown columns aren't reported.

    Raises:
        UsageError: the input or the output can't be used.
    """
    if source.is_same_file(output):
        name = "standard output" if output == "-" else output
        raise UsageError(f"{name}: is also the input")
    rows = source.rows(form, survey)
    # The columns of a file are known once its rows are checked, and those of a pipe only at its end.
    if isinstance(rows, FileRows) and survey is not None:
        _report_unknown_columns(source)
    status = run_batch(create_runner, rows, output, append=append)
    if isinstance(rows, PipedRows) and survey is not None:
        _report_unknown_columns(source)
    return status


def _report_unknown_columns(source: InputSource) -> None:
    if source.table.unknown:
        print_message(f"unknown columns are ignored: {', '.join(source.table.unknown)}")


def check_input(source: InputSource, form: RowForm[Any], survey: InputSurvey) -> ExitStatus:
    """Check the rows of an input and print a summary of them, without sending anything.

    Raises:
        UsageError: some rows are invalid.
    """
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


def run_batch(
    create_runner: Callable[..., BatchRunner],
    rows: FileRows[Any] | PipedRows[Any],
    output: str,
    *,
    append: bool,
) -> ExitStatus:
    """Send rows as a batch, write their outcomes, and return the exit status.

    Raises:
        UsageError: the output can't be used.
    """
    with open_output(output, append=append) as writer:
        # A bar would be torn by outcomes that are printed on the same terminal.
        display = ProgressDisplay(rows.total, bar=not (output == "-" and sys.stdout.isatty()))
        runner = create_runner(rows, writer, display, signals)
        counts = signals.run(runner())
    display.show_totals(counts)
    return runner.exit_status(counts)
