"""Opens an input, and checks its rows before they are sent."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from plaid_relay_async.cli.cells import InputFormat, InputTable
from plaid_relay_async.cli.messages import UsageError
from plaid_relay_async.cli.row_iterators import FileRows, PipedRows
from plaid_relay_async.cli.rows import InputProblem, RowForm, parse_rows
from plaid_relay_async.cli.survey import InputSurvey
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.redaction import contains_token

if TYPE_CHECKING:
    from types import TracebackType


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
        return stat.S_ISREG(other.st_mode) and os.path.samestat(os.fstat(self.fileno()), other)

    def fileno(self) -> int:
        """Return the descriptor of the input, or of its copy."""
        return self._stream.fileno()

    def _open_table(self, form: RowForm[Any]) -> InputTable:
        if self._start is not None:
            self._stream.seek(self._start)
        return InputTable(self._stream, self.name, form.columns, self._input_format)
