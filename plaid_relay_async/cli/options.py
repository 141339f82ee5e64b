"""The options that several commands share, and how to read an input."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from attrs import frozen
from cyclopts import Parameter

from plaid_relay_async.cli.cells import DELIMITERS, Columns, InputFormat
from plaid_relay_async.cli.messages import UsageError

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
Webhook: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="URL that Plaid calls when a partner retrieves the report. With --journal, it may end in "
        "/{pair}, which becomes the ID of the pair."
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
Verbose: TypeAlias = Annotated[
    bool, Parameter(negative="", help="Log each attempt, retry and outcome on standard error.")
]
LogFormat: TypeAlias = Annotated[
    Literal["text", "json"],
    Parameter(name="--log-format", help="Format of the lines on standard error."),
]
Strict: TypeAlias = Annotated[
    bool, Parameter(negative="", help="Reject reports that differ from Plaid's specification.")
]
Append: TypeAlias = Annotated[bool, Parameter(negative="", help="Append to the output if it exists.")]
Concurrency: TypeAlias = Annotated[int, Parameter(help="Maximum number of concurrent calls.")]
BatchConcurrency: TypeAlias = Annotated[
    int | None,
    Parameter(
        help="Maximum number of concurrent calls. Default: 50. With --task-queue, the maximum number of "
        "calls that are queued at the Temporal server or in flight. Default: 500."
    ),
]
AllowOddIDs: TypeAlias = Annotated[
    bool,
    Parameter(
        name="--allow-odd-ids",
        negative="",
        help="Accept partner IDs that look like a formula, a number or a heading and, in bulk, IDs that "
        "differ from the others.",
    ),
]


def check_port(_: Any, port: int | None) -> None:
    """Raise `ValueError` unless it is the number of a port; cyclopts adds the name of the option."""
    if port is not None and not 0 <= port <= 65535:
        raise ValueError("Must be an integer from 0 to 65535.")


Port: TypeAlias = Annotated[
    int, Parameter(validator=check_port, help="Port to listen on; 0 picks a free port.")
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
