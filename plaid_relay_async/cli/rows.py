"""The input: rows of CSV or JSON Lines become requests, and what is wrong is named by its place."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import csv
import difflib
import io
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar

from attrs import define, field, frozen

from plaid_relay_async.cli.status import UsageError
from plaid_relay_async.codec import looks_like_a_token
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models import RelayCreateRequest

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

_PARTNER = "secondary_client_id"
_MOST_PROBLEMS = 20
_READ_AHEAD = 64
_LONGEST_CELL = 64 * 1024 * 1024  # no string of a response is longer, so `bulk` writes no longer one


@frozen
class Problem:
    """What is wrong with the input, and where; holds no value from it that might be a token."""

    text: str


Cells: TypeAlias = dict[str, Any]
_Row: TypeAlias = "tuple[int | str, Cells | str]"
"""A line's number, or line and column, and the cells by name or what is wrong with them."""


@frozen
class Form(Generic[T]):
    """What the rows of an input are.

    Attributes:
        columns: the names that mean something; others are somebody's own.
        key: the column that no row is without.
        bare: what a value of that column is called, standing alone.
        alone: whether a CSV of such values will do.
        headers: above a list of bare values, a header of somebody's own and no such value.
        make: gives what a row asks for, or what is wrong with it from the column's name on, or `None` if it
            is none of ours; the line on which the row begins goes with its cells.
    """

    columns: tuple[str, ...]
    key: str
    bare: str
    alone: bool
    headers: frozenset[str]
    make: Callable[[int | str, Cells], T | str | None]


class BadInputError(Exception):
    """A row can't pass; the rows know which."""


class _UnreadableError(Exception):
    """From here on the input can't be read; the arguments are the place within it and the reason."""


# ------------------------------------------------------------------------------------------- the lines


@define
class _Lines:
    """The lines of an input as text, counted; one can be put back."""

    raw: Iterator[bytes]
    number: int = 0
    back: str | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self.number += 1
        if self.back is not None:
            line, self.back = self.back, None
            return line
        raw = next(self.raw)
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise _UnreadableError(f"{self.number}:{error.start + 1}: isn't UTF-8") from None

    def first(self) -> str:
        """Give the first line that isn't blank, which stays to be read."""
        for line in self:
            if line.strip():
                self.back = line
                self.number -= 1
                return line
        return ""


def parse(raw: Iterable[bytes], name: str, form: Form[T]) -> Iterator[T | Problem]:
    """Give what each row of an input asks for, or what is wrong.

    Args:
        raw: the input's lines.
        name: what to call it; the end tells CSV from JSON Lines, or else the first line does.
        form: what the rows are.
    """
    lines = _Lines(iter(raw))
    try:
        as_json = _is_json(name, lines.first(), form)
        for line, cells in _json_rows(lines, form) if as_json else _csv_rows(lines, form):
            made = cells if isinstance(cells, str) else form.make(line, cells)
            if made is not None:
                yield Problem(f"{name}:{line}: {made}") if isinstance(made, str) else made
    except _UnreadableError as error:
        yield Problem(f"{name}:{error}")
    except OSError as error:
        yield Problem(f"{name}: can't be read: {error.strerror}")


def _is_json(name: str, first: str, form: Form[Any]) -> bool:
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return True
    first = first.strip()
    if name.endswith(".csv") or not first.startswith('"'):
        return not name.endswith(".csv") and first.startswith(("{", "["))
    try:
        return json.loads(first) not in form.columns
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------ JSON Lines


def _json_rows(lines: _Lines, form: Form[Any]) -> Iterator[_Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            yield f"{lines.number}:{error.colno}", f"isn't JSON: {error.msg}"
        except (ValueError, RecursionError):
            yield lines.number, "isn't JSON that can be read"
        else:
            yield lines.number, _json_cells(row, form)


def _json_cells(row: Any, form: Form[Any]) -> Cells | str:
    if isinstance(row, str):
        return {form.key: row}
    if not isinstance(row, dict):
        return f"must be an object with {form.key}, or {form.bare} as a string"
    return _mistyped(row, form.columns) or {name: value for name, value in row.items() if value is not None}


def _mistyped(names: Iterable[str], columns: tuple[str, ...]) -> str | None:
    """Say which name is nearly a column's. Others are somebody's own, and no matter."""
    for name in names:
        if name not in columns and (
            meant := difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.8)
        ):
            return f"{name}: isn't a column; {meant[0]} is"
    return None


# ------------------------------------------------------------------------------------------------- CSV


def _csv_cells(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(lines, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise _UnreadableError(f"{line}: isn't CSV: {error}") from None
        if any(cells):
            yield line, cells


def _csv_rows(lines: _Lines, form: Form[Any]) -> Iterator[_Row]:
    rows = _csv_cells(lines)
    for line, cells in rows:
        header = _header(line, cells, form)
        if header != cells:
            yield line, _by_column(header, cells, form)
        for number, row in rows:
            yield number, _by_column(header, row, form)


def _header(line: int, cells: list[str], form: Form[Any]) -> list[str]:
    """Give the header, which is the first row unless that is already a value of the key's column, alone."""
    alone = form.alone and len(cells) == 1
    problem = _mistyped(cells, form.columns)
    if problem is None and alone and cells[0].lower() in form.headers:
        problem = f"{cells[0]}: isn't a column; {form.key} is"
    if problem is None and alone and cells[0] not in form.columns:
        return [form.key]
    if problem is None and form.key not in cells:
        problem = f"{form.key}: isn't in the header; the columns are {', '.join(form.columns)}"
    if problem is None and any(cells.count(name) > 1 for name in form.columns):
        problem = "the header has a column twice"
    if problem is not None:
        raise _UnreadableError(f"{line}: {problem}")
    return cells


def _by_column(header: list[str], cells: list[str], form: Form[Any]) -> Cells | str:
    if len(cells) > len(header):
        return f"column {len(header) + 1}: is one too many: the header has {len(header)}"
    row = {form.key: "", **{name: cell for name, cell in zip(header, cells, strict=False) if cell}}
    return _with_list(row) if "report_tokens" in form.columns else row


def _with_list(row: Cells) -> Cells | str:
    if row.get("report_tokens", "").startswith("["):
        try:
            row["report_tokens"] = json.loads(row["report_tokens"])
        except (ValueError, RecursionError):
            return "report_tokens: isn't a JSON list"
    elif "report_tokens" in row:
        row["report_tokens"] = [row["report_tokens"]]
    return row


# -------------------------------------------------------------------------------- what a row asks for


def creations(report_token: str | None) -> Form[RelayCreateRequest]:
    """Rows of which each asks for a relay token.

    Args:
        report_token: for rows without one; with it, a list of partners will do.
    """
    return Form(
        columns=("report_token", "report_tokens", _PARTNER, "webhook"),
        key=_PARTNER,
        bare="a partner's id",
        alone=report_token is not None,
        headers=frozenset({"client", "client_id", "id", "name", "partner", "partner_id", "partners"}),
        make=partial(_creation, report_token),
    )


def _creation(report_token: str | None, _: int | str, row: Cells) -> RelayCreateRequest | str:
    if "report_token" in row and "report_tokens" in row:
        return "report_tokens: stands beside report_token; give one of the two"
    tokens: Any = [report_token]
    if "report_token" in row or "report_tokens" in row:
        tokens = row.get("report_tokens", [row.get("report_token")])
    elif report_token is None:
        return "report_token: is missing; give it here, or --report-token for all rows"
    if _PARTNER not in row:
        return f"{_PARTNER}: is missing"
    try:
        return RelayCreateRequest(tokens, row[_PARTNER], row.get("webhook"))
    except RequestValidationError as error:
        field, wrong = error.field, error.problem
    if field.startswith("report_tokens") and "report_tokens" not in row:
        field = "report_token"
    return f"{field}: {wrong}"


@frozen
class Shared:
    """A row of what was shared with a partner: the line on which it begins, and the request to read it."""

    line: int | str
    request: Any = field(repr=False)


def shared(make: Callable[[str], object]) -> Form[Shared]:
    """Rows of which each has a relay token; what `bulk` writes will do.

    Args:
        make: turns a relay token into a request.
    """
    return Form(
        columns=("relay_token",),
        key="relay_token",
        bare="a relay token",
        alone=True,
        headers=frozenset({"relay", "token", "tokens"}),
        make=partial(_shared, make),
    )


def _shared(make: Callable[[str], object], line: int | str, row: Cells) -> Shared | str | None:
    brought_one = row.get("outcome") in (None, "", "created")  # a tuple: JSON may have a list there
    if not row.get("relay_token") and not brought_one:
        return None
    if "relay_token" not in row:
        return "relay_token: is missing"
    try:
        return Shared(line, make(row["relay_token"]))
    except RequestValidationError as error:
        wrong = error.problem
    return f"relay_token: {wrong}"


# ----------------------------------------------------------------------------------------- the source


class Source:
    """An input, opened once, so that what is checked is what is sent."""

    def __init__(self, path: str) -> None:
        """Open it.

        Args:
            path: a file's, or `-` for standard input.

        Raises:
            UsageError: it can't be opened.
        """
        self.name = "<stdin>" if path == "-" else path
        try:
            file = io.FileIO(sys.stdin.fileno(), closefd=False) if path == "-" else io.FileIO(path)
            self._start = file.tell() if file.seekable() else None
        except (OSError, ValueError) as error:
            if looks_like_a_token(path):
                raise UsageError("INPUT: is a token; it has to be a file, or - for standard input") from None
            reason = getattr(error, "strerror", None) or "isn't open"
            raise UsageError(f"{self.name}: {reason}") from None
        self._stream = io.BufferedReader(file)
        self._piped: PipedRows[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # A thread may still wait for a pipe, which nothing can end; the system closes that in time.
        if self._piped is None or self._piped.ended:
            self._stream.close()

    def rows(self, form: Form[Any]) -> FileRows[Any] | PipedRows[Any]:
        """Check a file as a whole, and give its rows; those of a pipe are checked as they come.

        Raises:
            UsageError: some rows can't pass; they are named.
        """
        if self._start is None:
            self._piped = PipedRows(parse(self._stream, self.name, form))
            return self._piped
        total = _check(self._parse_again(form))
        # No further than was checked, though the file may grow meanwhile.
        return FileRows(itertools.islice(self._parse_again(form), total), total)

    def is_also(self, path: str) -> bool:
        """Tell whether a path leads to this very file."""
        try:
            return self._start is not None and os.path.samestat(
                os.fstat(self._stream.fileno()), Path(path).stat()
            )
        except OSError:
            return False

    def _parse_again(self, form: Form[Any]) -> Iterator[Any]:
        self._stream.seek(self._start or 0)
        return parse(self._stream, self.name, form)


def _check(rows: Iterator[object]) -> int:
    total, problems = 0, []
    for row in rows:
        total += 1
        if isinstance(row, Problem):
            problems.append(row.text)
        if len(problems) == _MOST_PROBLEMS:
            problems.append("and perhaps more")
            break
    if problems:
        raise UsageError(*problems, "nothing was sent")
    return total


# ------------------------------------------------------------------------------- the rows, for a batch


class FileRows(Generic[T]):
    """The rows of a file, or of a list: at hand, however long it is.

    Attributes:
        total: how many there are.
        problem: the one that ended them, if one did.
        ended: whether they were read to their end, or to that problem.
    """

    def __init__(self, parsed: Iterator[T | Problem], total: int) -> None:
        self.total: int | None = total
        self.problem: Problem | None = None
        self.ended = True
        self._parsed = parsed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self.problem is not None:
            raise StopIteration
        parsed = next(self._parsed)
        if isinstance(parsed, Problem):
            self.problem = parsed
            raise BadInputError
        return parsed

    def close(self) -> None:
        """Nobody wants to wait for more; there is nothing to wait for."""


class PipedRows(Generic[T]):
    """The rows of a pipe, as they come; a thread waits for them. Attributes as for `FileRows`."""

    def __init__(self, parsed: Iterator[T | Problem]) -> None:
        self.total: int | None = None
        self.problem: Problem | None = None
        self.ended = False
        self._parsed = parsed
        self._closed = False
        self._queue: asyncio.Queue[T | Problem | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(_READ_AHEAD)
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._thread is None:
            # Not one of the loop's own threads: at its end the loop would wait for those.
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._read, args=(loop,), daemon=True)
            self._thread.start()
        while not (self.ended or (self._closed and self._queue.empty())):
            parsed = await self._queue.get()
            if parsed is not None:
                self._room.release()
                return self._checked(parsed)
        raise StopAsyncIteration

    def _checked(self, parsed: T | Problem | Exception) -> T:
        if not isinstance(parsed, Problem | Exception):
            return parsed
        self.ended = True
        if isinstance(parsed, Problem):
            self.problem = parsed
            raise BadInputError
        if isinstance(parsed, StopIteration):
            raise StopAsyncIteration
        raise parsed

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has gone, and nobody wants the rest
            while True:
                parsed = self._next()
                self._room.acquire()
                loop.call_soon_threadsafe(self._queue.put_nowait, parsed)
                if isinstance(parsed, Problem | Exception):
                    return

    def _next(self) -> T | Problem | Exception:
        try:
            return next(self._parsed)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised where the rows are awaited
            return error

    def close(self) -> None:
        """Nobody wants to wait for more: what has been read is given, and then it ends."""
        self._closed = True
        self._queue.put_nowait(None)
