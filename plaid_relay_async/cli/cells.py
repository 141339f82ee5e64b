"""Reads CSV, JSON Lines or JSON as rows of named cells, and reports each problem with its line.

An input that may have been misread is an error, never a guess: a wrong row could share a report
with the wrong partner.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Self, TypeAlias

from attrs import define, field, frozen

from plaid_relay_async.cli.formulas import restore
from plaid_relay_async.cli.identifiers import is_heading, normalize_name
from plaid_relay_async.codec import unique_members
from plaid_relay_async.redaction import contains_token

DELIMITERS = {",": ",", ";": ";", "|": "|", "\t": "tab"}
_SEP_LINE = re.compile(r'"?sep=(.?)[,;|\t]*"?[ \r\n]*', re.IGNORECASE)
# A name without digits can't be a token or a secret of Plaid's, or a key of the gateway.
_COLUMN_NAME = re.compile(r"[^\W\d_](?:[^\W\d]|[ /.()-]){0,39}")
_BLANK = " \t\r\n,;|"
_BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_DECODED = re.compile("[\udc80-\udcff]")
_MAX_LENGTH = 64 * 1024 * 1024  # characters of a row or a document; the cells that `bulk` writes are shorter
_MAX_HEADER_LENGTH = 1024 * 1024
_MAX_UNKNOWN_COLUMNS = 1000
_JSON_SPACE = (" ", "\t", "\r", "\n")

Cells: TypeAlias = dict[str, Any]
Place: TypeAlias = "int | str"
"""A line number, or `line:column` of a problem within it or of a further value of JSON on it."""
ParsedRow: TypeAlias = "tuple[Place, Cells | str]"
"""The place where a row begins, and its cells by column, or the problem with them."""


class UnreadableError(Exception):
    """The rest of the input can't be read; the argument is the place and the reason."""


@frozen
class Columns:
    """The columns that an input may have.

    Attributes:
        names: the names of all columns.
        key: the column that every row must have.
        value_term: the term for a value of that column in messages.
        list_allowed: whether a list of such values without a header is accepted.
    """

    names: tuple[str, ...]
    key: str
    value_term: str
    list_allowed: bool


@frozen
class InputFormat:
    """The options that say how to read an input.

    Attributes:
        delimiter: the delimiter of CSV; `None` to recognize it from the header.
        column_names: by column, its name in the input where that is different.
        may_have_header: whether the first line may be a header.
    """

    delimiter: str | None = None
    column_names: Mapping[str, str] = field(factory=dict)
    may_have_header: bool = True


# ------------------------------------------------------------------------------------------- the lines


class _LineReader:
    """Reads an input as text, line by line, and counts the lines; lines can be put back."""

    def __init__(self, stream: io.BufferedReader | io.BufferedRandom) -> None:
        utf16 = stream.peek(2)[:2] in _BYTE_ORDER_MARKS
        self.number = 0
        self._encoding = "UTF-16" if utf16 else "UTF-8"
        # A byte that is escaped can be reported with its line; an error of the decoder has no line.
        self._text = io.TextIOWrapper(stream, self._encoding, errors="surrogateescape", newline="")
        self._pushed_back: list[str] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._pushed_back.pop() if self._pushed_back else self._read()
        self.number += 1
        return line

    def _read(self) -> str:
        number = self.number + 1
        try:
            line = self._text.readline(_MAX_LENGTH)
        except UnicodeDecodeError:
            raise UnreadableError(f"{number}: this line or a later one isn't {self._encoding}") from None
        if not line:
            raise StopIteration
        if len(line) == _MAX_LENGTH:
            raise UnreadableError(
                f"{number}: the line is too long; write one row per line (CSV or JSON Lines)"
            )
        if number == 1:
            line = line.lstrip("\ufeff")
        if not line.isascii() and (byte := _NOT_DECODED.search(line)):
            problem = f"isn't {self._encoding}; save the file as CSV UTF-8"
            raise UnreadableError(f"{number}:{byte.start() + 1}: {problem}")
        return line

    def put_back(self, *lines: str) -> None:
        """Put back the lines that were read last, so that they are read again."""
        self._pushed_back += reversed(lines)
        self.number -= len(lines)

    def peek_line(self) -> str:
        """Return the next line that isn't blank, and put it back."""
        for line in self:
            if line.strip(_BLANK):
                if "\0" in line:
                    raise UnreadableError(
                        f"{self.number}: is either not text, or UTF-16 without a byte order mark"
                    )
                self.put_back(line)
                return line
        return ""

    def close(self) -> None:
        """Detach from the stream, and leave it open."""
        with contextlib.suppress(ValueError):  # it was closed before
            self._text.detach()


# ------------------------------------------------------------------------------------------- the table


@define
class InputTable:
    """Yields the rows of an input. How it was recognized is known once the rows have been read.

    Attributes:
        stream: the input, at its beginning.
        name: the name of the input; its suffix, or otherwise the first line, selects CSV or JSON.
        columns: the columns that the input may have.
        input_format: the options that say how to read it.
        delimiter: the delimiter of CSV with more than one column.
        recognized: by column, its name in the input.
        unknown: the names of the columns that are ignored, without duplicates.
        headerless_line: the line of the first row of a list without a header.
    """

    stream: io.BufferedReader | io.BufferedRandom
    name: str
    columns: Columns
    input_format: InputFormat
    delimiter: str | None = field(default=None, init=False)
    recognized: dict[str, str] = field(factory=dict, init=False)
    unknown: dict[str, None] = field(factory=dict, init=False)
    headerless_line: int | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[ParsedRow]:
        """Yield the rows.

        Raises:
            UnreadableError: the rest of the input can't be read.
            OSError: reading from the stream failed.
        """
        with contextlib.closing(_LineReader(self.stream)) as lines:
            first = lines.peek_line()
            yield from self._json_rows(lines, first) if self._is_json(first) else self._csv_rows(lines, first)

    def header_hint(self, place: Place) -> str:
        """Return an additional hint for an invalid row, if it is the first one of a list without a header."""
        if place != self.headerless_line or not self.input_format.may_have_header:
            return ""
        return f"; if this is a header, --column {self.columns.key}=NAME says which column it is"

    def _is_json(self, first: str) -> bool:
        name = self.name.lower()
        if name.endswith((".jsonl", ".ndjson", ".json")):
            return True
        return not name.endswith(".csv") and first.lstrip().startswith(("{", "["))

    def _match_columns(self, names: Iterable[str]) -> dict[str, str] | str:
        """Return the column for each name that is one, or the problem with the names."""
        mapped = self.input_format.column_names
        # Names are compared without regard to case, spaces, hyphens and underscores.
        wanted = {normalize_name(mapped.get(column, column)): column for column in self.columns.names}
        matched: dict[str, str] = {}
        others = []
        for name in names:
            column = wanted.get(normalize_name(name))
            if column is None:
                others.append(name)
            elif column in matched.values() or name in matched:
                return f"{column}: occurs twice"
            else:
                matched[name] = column
        # An unknown name that is similar to a missing column is probably a typo. Ignoring it could, for
        # example, send all rows without their webhook.
        missing = tuple(column for column in self.columns.names if column not in matched.values())
        for name in filter(None, others):
            if meant := _similar_column(name, missing):
                return f"unknown column {name}; did you mean {meant}?"
            if len(self.unknown) < _MAX_UNKNOWN_COLUMNS:
                self.unknown[name] = None
        self.recognized.update({column: name for name, column in matched.items()})
        return matched

    def _check_column_names(self, line: int) -> None:
        for column, name in self.input_format.column_names.items():
            if column not in self.recognized:
                raise UnreadableError(f"{line}: --column {column}: the input has no column {name}")

    # -------------------------------------------------------------------------------------------- JSON

    def _json_rows(self, lines: _LineReader, first: str) -> Iterator[ParsedRow]:
        # JSON Lines has a complete value on the first line. An array on one line is a document nevertheless.
        try:
            is_line = not isinstance(_json_decoder.decode(first), list)
        except (ValueError, RecursionError):
            is_line = False
        yield from (_json_lines if is_line else _json_document)(lines, self._json_cells)
        self._check_column_names(lines.number)

    def _json_cells(self, row: Any) -> Cells | str:
        key = self.columns.key
        if isinstance(row, str):
            return {key: row}
        if not isinstance(row, dict):
            return f"must be an object with {key}, or {self.columns.value_term} as a string"
        matched = self._match_columns(row)
        if isinstance(matched, str):
            return matched
        return {column: row[name] for name, column in matched.items() if row[name] is not None}

    # --------------------------------------------------------------------------------------------- CSV

    def _csv_rows(self, lines: _LineReader, first: str) -> Iterator[ParsedRow]:
        csv.field_size_limit(_MAX_LENGTH)
        delimiter = self.input_format.delimiter
        # Excel reads and writes the delimiter in a first line such as `sep=;`.
        if sep := _SEP_LINE.fullmatch(first):
            next(lines)
            if delimiter is None and sep[1] not in DELIMITERS:
                raise UnreadableError(f"{lines.number}: sep= isn't followed by a delimiter; use --delimiter")
            delimiter = delimiter or sep[1]
        delimiter = delimiter or self._detect_delimiter(lines)
        header: list[str | None] | None = None
        for line, cells in _parse_csv(lines, delimiter):
            if header is None:
                self.delimiter = delimiter if len(cells) > 1 else None
                header = self._read_header(line, cells)
                if self.headerless_line is None:
                    continue
            yield line, _cells_by_column(header, cells, self.columns.key)

    def _detect_delimiter(self, lines: _LineReader) -> str:
        """Detect the delimiter from the first row: it yields the key column, or otherwise the most columns.

        `csv.Sniffer` isn't used: it counts characters, and would detect a delimiter in a list of identifiers.
        """
        rows = {delimiter: _peek_row(lines, delimiter) for delimiter in DELIMITERS}
        key = self.columns.key
        name = normalize_name(self.input_format.column_names.get(key, key))
        return max(rows, key=lambda each: (name in map(normalize_name, rows[each]), len(rows[each])))

    def _read_header(self, line: int, cells: list[str]) -> list[str | None]:
        """Return the column of each cell, from a first row that is a header or belongs to a list."""
        key = self.columns.key
        if not self.input_format.may_have_header:
            if len(cells) > 1 or not self.columns.list_allowed:
                needed = "" if self.columns.list_allowed else ", and needs --report-token"
                raise UnreadableError(f"{line}: --no-header requires a list of {key} alone{needed}")
            self.headerless_line = line
            return [key]
        matched = self._match_columns(cells)
        if key not in self.recognized:
            self.unknown.clear()  # without a header these are values, and one may be a token
        if isinstance(matched, str):
            raise UnreadableError(f"{line}: {matched}")
        self._check_column_names(line)
        if key not in self.recognized:
            # A single cell that contains a delimiter is a table whose delimiter was not recognized.
            is_list = self.columns.list_allowed and len(cells) == 1 and not set(cells[0]) & set(DELIMITERS)
            if not is_list or is_heading(cells[0]):
                raise UnreadableError(f"{line}: {self._missing_header_problem(cells)}")
            self.headerless_line = line
            return [key]
        return [matched.get(cell) for cell in cells]

    def _missing_header_problem(self, cells: list[str]) -> str:
        key = self.columns.key
        # The row may be data instead of a header, so a cell is repeated only if it can't be a token.
        named = [cell for cell in cells if _COLUMN_NAME.fullmatch(cell) and not contains_token(cell)]
        known = ", ".join(self.columns.names)
        header = f"the header has {', '.join(named)}; " if named else ""
        name = cells[0] if len(cells) == 1 and is_heading(cells[0]) else "NAME"
        remedy = f"map another name with --column {key}=" + (f'"{name}"' if " " in name else name)
        return f"{key}: isn't in the header; {header}the columns are {known}; {remedy}"


@lru_cache(maxsize=1024)
def _similar_column(name: str, columns: tuple[str, ...]) -> str | None:
    """Return the column whose name is similar to a name, or `None`."""
    by_name = {normalize_name(column): column for column in columns}
    near = difflib.get_close_matches(normalize_name(name), by_name, n=1, cutoff=0.8)
    return by_name[near[0]] if near else None


# -------------------------------------------------------------------------------------------------- CSV


def _parse_csv(lines: _LineReader, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # The header has a lower limit, so that a quote that isn't closed there is found early.
    longest = _MAX_HEADER_LENGTH
    while True:
        line = lines.number + 1
        try:
            cells = _read_row(lines, delimiter, longest)
        except csv.Error as error:
            raise UnreadableError(f"{line}: isn't CSV: {error}") from None
        if cells is None:
            return
        if any(cells):
            yield line, cells
            longest = _MAX_LENGTH


def _read_row(lines: Iterable[str], delimiter: str, longest: int) -> list[str] | None:
    """Return the cells of the next row, or `None` at the end.

    Raises:
        csv.Error: the row isn't valid CSV, or is longer than the limit, for example after an unclosed quote.
    """

    # The reader consumes lines until a quoted field ends, so the length is checked line by line.
    def bounded() -> Iterator[str]:
        size = 0
        for line in lines:
            size += len(line)
            if size > longest:
                raise csv.Error(f"a row of more than {longest:,} characters; is a quote not closed?")
            yield line

    row = next(csv.reader(bounded(), delimiter=delimiter, strict=True), None)
    return None if row is None else [cell.strip() for cell in row]


def _cell_value(column: str, cell: str) -> str:
    """Return the original value of a cell; outputs contain tokens unchanged."""
    return cell if "token" in column else restore(cell)


def _peek_row(lines: _LineReader, delimiter: str) -> list[str]:
    """Return the cells of the first row, and put its lines back; none if it isn't CSV with this delimiter."""
    consumed: list[str] = []

    def recorded() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line

    try:
        return _read_row(recorded(), delimiter, _MAX_HEADER_LENGTH) or []
    except csv.Error:
        return []
    finally:
        lines.put_back(*consumed)


def _cells_by_column(header: list[str | None], cells: list[str], key: str) -> Cells | str:
    # More cells than the header, unless they are empty, mean a misplaced delimiter.
    if any(cells[len(header) :]):
        return f"column {len(header) + 1}: has no name: the number of columns in the header is {len(header)}"
    named = zip(header, cells, strict=False)
    row: Cells = {column: _cell_value(column, cell) for column, cell in named if column and cell}
    if "report_tokens" in row:
        return _parse_report_tokens({key: "", **row})
    return {key: "", **row}


def _parse_report_tokens(row: Cells) -> Cells | str:
    text = row["report_tokens"]
    try:
        row["report_tokens"] = json.loads(text) if text.startswith("[") else [text]
    except (ValueError, RecursionError):
        return "report_tokens: isn't a JSON list"
    return row


# ------------------------------------------------------------------------------------------------- JSON


_json_decoder = json.JSONDecoder(object_pairs_hook=unique_members)


def _json_lines(lines: _LineReader, cells_of: Callable[[Any], Cells | str]) -> Iterator[ParsedRow]:
    for line in lines:
        if not line.strip():
            continue
        try:
            value = _json_decoder.decode(line.rstrip())
        except json.JSONDecodeError as error:
            yield f"{lines.number}:{error.colno}", f"isn't JSON: {error.msg}"
        except (ValueError, RecursionError) as error:
            yield lines.number, f"can't be read as JSON: {error}"
        else:
            yield lines.number, cells_of(value)


def _json_document(lines: _LineReader, cells_of: Callable[[Any], Cells | str]) -> Iterator[ParsedRow]:
    """Yield the values of JSON that isn't one value per line; of an array, its elements."""
    text, skipped = io.StringIO(), lines.number
    for line in lines:
        text.write(line.replace("\r\n", "\n").replace("\r", "\n"))
        if text.tell() > _MAX_LENGTH:
            problem = "is too large for JSON other than JSON Lines; convert it to JSON Lines"
            raise UnreadableError(f"{lines.number}: {problem}")
    # The place of a value is its line, and for a second value on a line also the column. Lines are counted
    # from the previous value on, because counting from the start each time would be quadratic.
    document, number, line_start = text.getvalue(), skipped + 1, 0
    previous: int | None = None
    try:
        for start, value in _json_values(document):
            if breaks := document.count("\n", previous or 0, start):
                number, line_start = number + breaks, document.rfind("\n", 0, start) + 1
            is_first = breaks or previous is None
            previous = start
            yield number if is_first else f"{number}:{start - line_start + 1}", cells_of(value)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{skipped + error.lineno}:{error.colno}: isn't JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{number}: can't be read as JSON: {error}") from None


def _json_values(document: str) -> Iterator[tuple[int, Any]]:
    """Yield each value and where it begins; values may follow each other, as `jq` prints them."""
    position = _skip_space(document, 0)
    while position < len(document):
        if document[position] == "[":
            position = yield from _array_elements(document, position)
        else:
            value, end = _json_decoder.raw_decode(document, position)
            yield position, value
            position = end
        position = _skip_space(document, position)


def _array_elements(document: str, position: int) -> Generator[tuple[int, Any], None, int]:
    """Yield the elements of an array, and return where it ends."""
    # The decoder would decode all of the array without the positions of its elements.
    position = _skip_space(document, position + 1)
    if document.startswith("]", position):
        return position + 1
    while True:
        value, end = _json_decoder.raw_decode(document, position)
        yield position, value
        position = _skip_space(document, end)
        if document.startswith("]", position):
            return position + 1
        if not document.startswith(",", position):
            raise json.JSONDecodeError("Expecting ',' delimiter", document, position)
        position = _skip_space(document, position + 1)


def _skip_space(document: str, position: int) -> int:
    while document[position : position + 1] in _JSON_SPACE:
        position += 1
    return position
