"""Converts the rows of an input to requests, and reports each invalid row with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from attrs import field, frozen

from plaid_relay_async.cli.cells import Cells, Columns, InputTable, Place, UnreadableError
from plaid_relay_async.cli.identifiers import oddity_of
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models import RelayCreateRequest

T = TypeVar("T")

NEEDS_JOURNAL = "contains {pair}, which requires --journal"
_PARTNER_COLUMN = "secondary_client_id"


@frozen
class InputProblem:
    """A problem with the input and its place. The text contains no value that might be a token."""

    text: str


@frozen
class RowForm(Generic[T]):
    """The kind of rows that an input has.

    Attributes:
        columns: the columns that are read; others are ignored.
        parse_row: takes the place where a row begins and its cells. Returns the request, or the problem with
            the row, starting with the name of the column, or `None` to skip the row.
    """

    columns: Columns
    parse_row: Callable[[Place, Cells], T | str | None]


class BadInputError(Exception):
    """A row is invalid; the `problem` of the rows says which."""


def parse_rows(table: InputTable, form: RowForm[T]) -> Iterator[tuple[Place, T | InputProblem]]:
    """Yield the place where each row of an input begins, and its request or its problem."""
    try:
        for place, cells in table:
            request = cells if isinstance(cells, str) else form.parse_row(place, cells)
            if isinstance(request, str):
                yield place, InputProblem(f"{table.name}:{place}: {request}{table.header_hint(place)}")
            elif request is not None:
                yield place, request
    except UnreadableError as error:
        yield "", InputProblem(f"{table.name}:{error}")
    except OSError as error:
        yield "", InputProblem(f"{table.name}: can't be read: {error.strerror}")


# ---------------------------------------------------------------------------------- the kinds of rows


def creation_form(
    report_token: str | None, webhook: str | None = None, *, recorded: bool = False, allow_odd: bool = False
) -> RowForm[RelayCreateRequest]:
    """Return the form of rows that each create a relay token.

    Args:
        report_token: the report token of rows without one; with it, a list of partners is enough.
        webhook: the webhook of rows without one.
        recorded: whether a journal records the creations.
        allow_odd: whether values are accepted that are probably not identifiers.
    """
    columns = Columns(
        ("report_token", "report_tokens", _PARTNER_COLUMN, "webhook"),
        key=_PARTNER_COLUMN,
        value_term="a partner ID",
        list_allowed=report_token is not None,
    )
    return RowForm(
        columns, partial(_parse_creation, report_token, webhook, recorded=recorded, allow_odd=allow_odd)
    )


def _parse_creation(
    report_token: str | None, webhook: str | None, _: Place, row: Cells, *, recorded: bool, allow_odd: bool
) -> RelayCreateRequest | str:
    if "report_token" in row and "report_tokens" in row:
        return "report_tokens: can't be used with report_token; use one of the two"
    tokens: Any = [report_token]
    if "report_token" in row or "report_tokens" in row:
        tokens = row.get("report_tokens", [row.get("report_token")])
    elif report_token is None:
        return "report_token: is missing; add that column, or pass --report-token for all rows"
    if _PARTNER_COLUMN not in row:
        return f"{_PARTNER_COLUMN}: is missing"
    partner = row[_PARTNER_COLUMN]
    # Before the checks of the record, which would report the quotes of `="..."` and not the formula.
    if not allow_odd and isinstance(partner, str) and (oddity := oddity_of(partner)) is not None:
        return f"{_PARTNER_COLUMN}: {oddity}; --allow-odd-ids accepts it"
    try:
        request = RelayCreateRequest(tokens, partner, row.get("webhook", webhook))
    except RequestValidationError as error:
        field, problem = error.field, error.problem
    else:
        return request if recorded or not request.needs_pair_id else f"webhook: {NEEDS_JOURNAL}"
    # The record names its own field, which for this row is another column.
    if field.startswith("report_tokens") and "report_tokens" not in row:
        field = "report_token"
    return f"{field}: {problem}"


@frozen
class SharedReportRow:
    """A row for a report that was shared with a partner: its first line, and the request to read it."""

    line: Place
    request: Any = field(repr=False)


def shared_report_form(build_request: Callable[[str], object]) -> RowForm[SharedReportRow]:
    """Return the form of rows that each have a relay token, such as the output of `bulk`.

    Args:
        build_request: converts a relay token to a request.
    """
    columns = Columns(
        ("relay_token", "outcome"), key="relay_token", value_term="a relay token", list_allowed=True
    )
    return RowForm(columns, partial(_parse_shared_report, build_request))


def _parse_shared_report(
    build_request: Callable[[str], object], line: Place, row: Cells
) -> SharedReportRow | str | None:
    # The outcome may be any JSON value. A set would reject a list, which isn't hashable.
    may_have_token = row.get("outcome") in (None, "", "created")
    if not row.get("relay_token") and not may_have_token:
        return None
    if "relay_token" not in row:
        return "relay_token: is missing"
    try:
        return SharedReportRow(line, build_request(row["relay_token"]))
    except RequestValidationError as error:
        problem = error.problem
    return f"relay_token: {problem}"
