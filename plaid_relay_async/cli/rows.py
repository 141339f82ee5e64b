"""Converts the rows of an input to requests, and reports each invalid row with its line."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from attrs import field, frozen

from plaid_relay_async.cli.cells import Cells, Columns, InputFormat, InputTable, Place, UnreadableError
from plaid_relay_async.cli.identifiers import oddity_of
from plaid_relay_async.cli.messages import UsageError
from plaid_relay_async.cli.survey import InputSurvey
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.redaction import contains_token

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

_PARTNER_COLUMN = "secondary_client_id"
_MAX_READ_AHEAD = 64


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


def creation_form(report_token: str | None, *, allow_odd: bool = False) -> RowForm[RelayCreateRequest]:
    """Return the form of rows that each create a relay token.

    Args:
        report_token: the report token of rows without one; with it, a list of partners is enough.
        allow_odd: whether values are accepted that are probably not identifiers.
    """
    columns = Columns(
        ("report_token", "report_tokens", _PARTNER_COLUMN, "webhook"),
        key=_PARTNER_COLUMN,
        value_term="a partner ID",
        list_allowed=report_token is not None,
    )
    return RowForm(columns, partial(_parse_creation, report_token, allow_odd=allow_odd))


def _parse_creation(
    report_token: str | None, _: Place, row: Cells, *, allow_odd: bool
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
        return RelayCreateRequest(tokens, partner, row.get("webhook"))
    except RequestValidationError as error:
        field, problem = error.field, error.problem
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


# ----------------------------------------------------------------------------------------- the source


class InputSource:
    """An input that is opened once, so that the rows that are sent are those that were checked.

    Attributes:
        name: the path, or `<stdin>`.
        table: how the input is recognized; set by `rows`.
    """

    def __init__(self, path: str, input_format: InputFormat | None = None, *, stream: bool = True) -> None:
        """Open the input.

        Args:
            path: the path of a file, or `-` for standard input.
            input_format: the options that say how to read it.
            stream: whether the rows of a pipe are checked as they arrive; otherwise a pipe is first copied
                into a private file without a name.

        Raises:
            UsageError: the input can't be opened or copied.
        """
        self.name = "<stdin>" if path == "-" else path
        self._input_format = input_format or InputFormat()
        self._piped_rows: PipedRows[Any] | None = None
        self.table: InputTable
        self._stream: io.BufferedReader | io.BufferedRandom
        try:
            file = io.FileIO(sys.stdin.fileno(), closefd=False) if path == "-" else io.FileIO(path)
            self._start = file.tell() if file.seekable() else None
        except (OSError, ValueError) as error:
            if contains_token(path):
                raise UsageError("INPUT: is a token; pass a file name, or - for standard input") from None
            reason = getattr(error, "strerror", None) or "isn't open"
            raise UsageError(f"{self.name}: {reason}") from None
        self._stream = io.BufferedReader(file)
        if self._start is None and not stream:
            with self._stream as pipe:
                self._stream = self._copy_to_file(pipe)
            self._start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A thread may still be reading from the pipe, and can't be interrupted; the pipe is closed at exit.
        if self._piped_rows is None or self._piped_rows.exhausted:
            self._stream.close()

    def _copy_to_file(self, pipe: io.BufferedReader) -> io.BufferedRandom:
        try:
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(tempfile.TemporaryFile())  # 0600
                shutil.copyfileobj(pipe, file)
                file.flush()
                stack.pop_all()
        except OSError as error:
            remedy = "set TMPDIR to another directory, or use --stream, which makes no copy"
            raise UsageError(
                f"{self.name}: can't be copied for the check: {error.strerror}; {remedy}"
            ) from None
        return file

    def rows(self, form: RowForm[Any], survey: InputSurvey | None = None) -> FileRows[Any] | PipedRows[Any]:
        """Check all rows of a file, and return them; the rows of a pipe are checked as they arrive.

        Args:
            form: the kind of rows.
            survey: counts and compares the rows of a file.

        Raises:
            UsageError: some rows are invalid, or differ from the others; the message has their lines.
        """
        # A seekable input is read twice: once to check all rows, and once to send them.
        self.table = self._open_table(form)
        parsed = parse_rows(self.table, form)
        if self._start is None:
            self._piped_rows = PipedRows(row for _, row in parsed)
            return self._piped_rows
        survey = survey or InputSurvey()
        for place, row in parsed:
            if isinstance(row, InputProblem):
                survey.add_problem(row.text)
            elif isinstance(row, RelayCreateRequest):
                survey.add(place, row.secondary_client_id, row.report_tokens)
            else:
                survey.rows += 1
        if problems := list(survey.problems(self.table)):
            raise UsageError(*problems, "nothing was sent")
        # Read only as many rows as were checked, because the file may have grown meanwhile.
        rows = (row for _, row in parse_rows(self._open_table(form), form))
        return FileRows(itertools.islice(rows, survey.rows), survey.rows)

    def is_same_file(self, path: str) -> bool:
        """Return whether an output path, or standard output for `-`, is the same file as this input."""
        try:
            other = os.fstat(sys.stdout.fileno()) if path == "-" else Path(path).stat()
        except (OSError, ValueError):  # it doesn't exist, or isn't open
            return False
        # Only a regular file would be read again after it was written.
        return stat.S_ISREG(other.st_mode) and os.path.samestat(os.fstat(self._stream.fileno()), other)

    def _open_table(self, form: RowForm[Any]) -> InputTable:
        if self._start is not None:
            self._stream.seek(self._start)
        return InputTable(self._stream, self.name, form.columns, self._input_format)


# ------------------------------------------------------------------------------ iteration for a batch


class FileRows(Generic[T]):
    """Iterates over the rows of a file or a list, without waiting.

    Attributes:
        total: the number of rows.
        problem: the problem that ended the iteration, if any.
        exhausted: whether the input was read to its end, or to that problem.
    """

    def __init__(self, parsed: Iterator[T | InputProblem], total: int) -> None:
        self.total: int | None = total
        self.problem: InputProblem | None = None
        self.exhausted = True
        self._parsed = parsed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self.problem is not None:
            raise StopIteration
        parsed = next(self._parsed)
        if isinstance(parsed, InputProblem):
            self.problem = parsed
            raise BadInputError
        return parsed

    def close(self) -> None:
        """Do nothing: reading a file doesn't wait."""


class PipedRows(Generic[T]):
    """Iterates over the rows of a pipe as a thread reads them. The attributes are those of `FileRows`."""

    def __init__(self, parsed: Iterator[T | InputProblem]) -> None:
        self.total: int | None = None
        self.problem: InputProblem | None = None
        self.exhausted = False
        self._parsed = parsed
        self._closed = False
        self._queue: asyncio.Queue[T | InputProblem | Exception | None] = asyncio.Queue()
        self._free_slots = threading.Semaphore(_MAX_READ_AHEAD)
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._thread is None:
            # Not a thread of the loop's executor: the loop would wait for it when it closes, and so for the
            # pipe.
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._read_in_thread, args=(loop,), daemon=True)
            self._thread.start()
        while not (self.exhausted or (self._closed and self._queue.empty())):
            parsed = await self._queue.get()
            if parsed is not None:
                self._free_slots.release()
                return self._unwrap(parsed)
        raise StopAsyncIteration

    def _unwrap(self, parsed: T | InputProblem | Exception) -> T:
        if not isinstance(parsed, InputProblem | Exception):
            return parsed
        self.exhausted = True
        if isinstance(parsed, InputProblem):
            self.problem = parsed
            raise BadInputError
        if isinstance(parsed, StopIteration):
            raise StopAsyncIteration
        raise parsed

    def _read_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no rows are needed any more
            while True:
                parsed = self._next_parsed()
                self._free_slots.acquire()  # backpressure: read only a few rows ahead of the batch
                loop.call_soon_threadsafe(self._queue.put_nowait, parsed)
                if isinstance(parsed, InputProblem | Exception):
                    return

    def _next_parsed(self) -> T | InputProblem | Exception:
        try:
            return next(self._parsed)
        except Exception as error:  # noqa: BLE001  # it is raised where the rows are awaited
            return error

    def close(self) -> None:
        """Stop waiting for more rows: the iteration ends after the rows that were read."""
        self._closed = True
        self._queue.put_nowait(None)
