"""Writes outcomes and responses to a private file or to standard output.

An outcome may hold a relay token that exists nowhere else. So an outcome that can't be written goes to a
rescue file.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import errno
import io
import json
import os
import re
import select
import stat
import sys
from codecs import getincrementaldecoder
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from plaid_relay_async import private_files
from plaid_relay_async.cli.formulas import neutralize
from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.cli.rescue import Rescue
from plaid_relay_async.display import escape_json
from plaid_relay_async.errors import reason_of
from plaid_relay_async.outcomes import Created, Failed, Removed, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


OUTCOME_COLUMNS = ("outcome", "secondary_client_id", "relay_token", "request_id", "error_code", "attempts")
_TOKEN_LOST = "a relay token is lost: no rescue file could be written"  # noqa: S105  # a message
_MAX_PIPE_SIZE = 1024 * 1024  # bytes; the default limit for users on Linux (/proc/sys/fs/pipe-max-size)
_POLL_SECONDS = (0.001, 0.05)  # the first and the longest interval between two checks of a full pipe


class BrokenOutputError(Exception):
    """An outcome could not be written; `OutcomeWriter.error` has the reason."""


def outcome_fields(outcome: object, partner: str) -> dict[str, Any]:
    """Return the fields of an output line.

    Args:
        outcome: an outcome; any other object stands for a request that was not attempted.
        partner: the `secondary_client_id`.
    """
    if not isinstance(outcome, Created | Removed | Failed | Unknown):
        values: tuple[Any, ...] = ("not_attempted", partner, None, None, None, 0)
    else:
        values = (
            type(outcome).__name__.lower(),
            partner,
            outcome.relay_token if isinstance(outcome, Created) else None,
            outcome.request_id,
            reason_of(outcome.error) if isinstance(outcome, Failed | Unknown) else None,
            outcome.attempts,
        )
    return dict(zip(OUTCOME_COLUMNS, values, strict=True))


class OutcomeWriter(Protocol):
    """Writes outcomes.

    Attributes:
        error: the error because of which nothing more is written, or `None`.
        token_lost: whether a created relay token could not be stored anywhere.
    """

    error: Exception | None
    token_lost: bool

    def write(self, fields: dict[str, Any], *, journalled: bool = False) -> None:
        """Write one outcome; `journalled` says whether the journal has it too."""
        ...

    async def drain(self) -> None:
        """Wait until all outcomes are written, or can't be."""
        ...

    def stop_waiting(self) -> None:
        """End the wait of `drain`, now and from now on."""
        ...


@frozen(eq=False)
class _OutcomeLine:
    """One outcome, which may hold a token: neither its `repr` nor its text includes the token."""

    fields: dict[str, Any] = field(repr=False)
    journalled: bool

    def __str__(self) -> str:
        outcome, subject, *_ = self.fields.values()
        return f"{outcome} {subject} (request_id {self.fields['request_id']})"


class Output:
    """Writes each outcome as a line, immediately or as soon as a full pipe has space again.

    A blocking write to a full pipe would block the event loop, and calls in flight would time out before
    their response, which may hold a token, is read. So lines are queued. After any error, outcomes go to a
    rescue file.

    Args:
        file: the output, open for writing.
        as_csv: whether to write CSV; otherwise JSON Lines.
        rescue: the store for outcomes that can't be written. Without it they are dropped, so it may be
            omitted only if they are stored elsewhere.
    """

    def __init__(self, file: io.FileIO, *, as_csv: bool, rescue: Rescue | None = None) -> None:
        self.error: Exception | None = None
        self.token_lost = False
        self._file = file
        self._as_csv = as_csv
        self._needs_header = as_csv and not _has_content(file)
        self._may_block = os.name == "posix" and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self._may_wait = True
        self._pending: deque[_OutcomeLine] = deque()
        self._partial = b""  # the encoded first line of `_pending` while it is being written
        self._partial_written = 0  # the number of its bytes that are written
        self._unread_lines = _UnreadLines(file) if self._may_block else None
        self._rescue = rescue
        self._rescued_counts: Counter[bool] = Counter()  # by whether the journal has them too
        self._unwritten: list[_OutcomeLine] = []
        self._unwritten_not_attempted = 0

    def write(self, fields: dict[str, Any], *, journalled: bool = False) -> None:
        """Write an outcome, or queue it while the pipe is full, or rescue it."""
        self._pending.append(_OutcomeLine(fields, journalled))
        self._write_pending()

    async def drain(self) -> None:
        """Wait until all outcomes are written; rescue them if the reader closes the output."""
        pause, longest = _POLL_SECONDS
        while self._pending and self._may_wait:
            await asyncio.sleep(pause)
            pause = _POLL_SECONDS[0] if self._write_pending() else min(2 * pause, longest)
        self.close()

    def stop_waiting(self) -> None:
        """End the wait of `drain`, now and from now on; outcomes that it waited for are rescued."""
        self._may_wait = False

    def close(self) -> None:
        """Rescue outcomes that are queued, and those that a reader left unread when it closed the pipe."""
        self._write_pending()
        if self._pending:
            self._switch_to_rescue(BlockingIOError(errno.EAGAIN, "it isn't being read"))
        elif (
            self.error is None and self._unread_lines is not None and self._unread_lines.closed_with_unread()
        ):
            self._switch_to_rescue(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    def problem_messages(self) -> list[str]:
        """Return messages about outcomes that could not be written; they contain no token."""
        lines = []
        if self._rescued_counts and self._rescue is not None:
            paths = " and ".join(map(str, self._rescue.paths))
            count = f"{self._rescued_counts.total():,} outcomes"
            lines.append(f"rescued: {count} that may be missing from the output, in {paths}")
        lines += [f"not written: {line}" for line in self._unwritten]
        if self.token_lost:
            lines.append(_TOKEN_LOST)
        if self._rescued_counts[True] or any(line.journalled for line in self._unwritten):
            lines.append("the journal has them, too: plaid-relay export")
        if self._unwritten_not_attempted:
            lines.append(f"not written: {self._unwritten_not_attempted:,} rows that were not attempted")
        return lines

    def _write_pending(self) -> bool:
        """Write as much as is possible without blocking, and return whether anything was written."""
        written = False
        try:
            while self._pending and self.error is None and self._is_writable() and self._write_chunk():
                written = True
        except Exception as error:  # noqa: BLE001  # no outcome may be lost because of an unexpected error
            self._switch_to_rescue(error)
        if self.error is not None:
            self._switch_to_rescue(self.error)
        return written

    def _is_writable(self) -> bool:
        return self._unread_lines is None or bool(select.select([], [self._file], [], 0)[1])

    def _write_chunk(self) -> int:
        self._partial = self._partial or self._encode(self._pending[0])
        if self._unread_lines is None:
            write_all(self._file, self._partial)
            written = len(self._partial)
        else:
            # POSIX: if a pipe is writable, a write of PIPE_BUF bytes or fewer doesn't block.
            piece = memoryview(self._partial)[self._partial_written : self._partial_written + select.PIPE_BUF]
            written = self._file.write(piece) or 0
        self._partial_written += written
        if self._partial_written == len(self._partial):
            line = self._pending.popleft()
            if self._unread_lines is not None:
                self._unread_lines.add(line, self._partial_written)
            self._needs_header = False
            self._partial, self._partial_written = b"", 0
        return written

    def _switch_to_rescue(self, error: Exception) -> None:
        self.error = error
        # Lines that the reader left in the pipe come first, then those that were never written.
        unread = (
            self._unread_lines.take_unread()
            if self._unread_lines is not None and self._unread_lines.closed_with_unread()
            else []
        )
        lines = [*unread, *self._pending]
        self._pending.clear()
        if self._rescue is not None:
            for line in lines:
                self._rescue_line(line, self._rescue)

    def _rescue_line(self, line: _OutcomeLine, rescue: Rescue) -> None:
        if line.fields["outcome"] == "not_attempted":
            self._unwritten_not_attempted += 1
        elif rescue.store(json.dumps(line.fields, default=repr).encode() + b"\n"):
            self._rescued_counts[line.journalled] += 1
        else:
            self._unwritten.append(line)
            self.token_lost = self.token_lost or (line.fields["outcome"] == "created" and not line.journalled)

    def _encode(self, line: _OutcomeLine) -> bytes:
        if not self._as_csv:
            return escape_for_terminal(self._file, json.dumps(line.fields).encode() + b"\n")
        header = _csv_row(line.fields) if self._needs_header else b""
        return header + _csv_row(_csv_cell(*field) for field in line.fields.items())


class _UnreadLines:
    """The last lines of an output that isn't a file, which its reader may not have read yet.

    If the reader exits, the operating system discards what is left in the pipe. These lines are then rescued.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._lines: deque[tuple[_OutcomeLine, int]] = deque()
        self._size = 0

    def add(self, line: _OutcomeLine, size: int) -> None:
        """Add a line that was written, and drop lines that no longer fit into the pipe: they were read."""
        self._lines.append((line, size))
        self._size += size
        self._trim(_MAX_PIPE_SIZE)

    def closed_with_unread(self) -> bool:
        """Return whether the reader has closed the output without reading all of it."""
        poll = select.poll()
        poll.register(self._file, 0)
        closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        return closed and bool(self._lines) and self._unread_size() > 0

    def take_unread(self) -> list[_OutcomeLine]:
        """Return and forget the lines that were not completely read."""
        self._trim(self._unread_size())
        lines = [line for line, _ in self._lines]
        self._lines.clear()
        return lines

    def _trim(self, size: int) -> None:
        while self._lines and self._size - self._lines[0][1] >= size:
            self._size -= self._lines.popleft()[1]

    def _unread_size(self) -> int:
        import fcntl
        import termios

        if not stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode):
            return _MAX_PIPE_SIZE  # unknown for a terminal or a socket: assume that nothing was read
        return int.from_bytes(fcntl.ioctl(self._file, termios.FIONREAD, bytes(4)), sys.byteorder)


def _csv_cell(column: str, value: Any) -> Any:
    return neutralize(value) if isinstance(value, str) and column != "relay_token" else value


def _csv_row(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    # Before Python 3.13, the csv module quotes a line break only if it occurs in the line terminator.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace") + b"\n"


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of the data, or none of it if the file can be truncated.

    On a terminal, invisible characters are escaped.

    Raises:
        OSError: the data can't be written.
    """
    data, written = escape_for_terminal(file, data), 0
    try:
        while written < len(data):
            # In non-blocking mode, which the other end of a pipe can set, a write to a full pipe returns
            # `None`.
            written += file.write(data[written:]) or _wait_until_writable(file)
    except OSError:
        with contextlib.suppress(OSError):  # a pipe can't be truncated
            file.truncate(file.seek(0, os.SEEK_END) - written)
        raise


def escape_for_terminal(file: io.FileIO, data: bytes) -> bytes:
    """Return the data with escapes for invisible characters, if the file is a terminal."""
    return escape_json(data) if file.isatty() else data


def _wait_until_writable(file: io.FileIO) -> int:
    select.select([], [file], [])
    return 0


def _has_content(file: io.FileIO) -> bool:
    return file.seekable() and file.seek(0, os.SEEK_END) > 0


@contextlib.contextmanager
def open_output(
    path: str,
    *,
    append: bool = False,
    use_rescue: bool = True,
) -> Iterator[Output]:
    """Yield an output, and at the end report outcomes that could not be written.

    A new file that is still empty after an error is deleted.

    Args:
        path: the path of a file, which is CSV if it ends in `.csv` and otherwise JSON Lines, or `-` for
            standard output.
        append: whether to add to an existing file.
        use_rescue: whether outcomes that can't be written go to a rescue file. Without it they are dropped.

    Raises:
        UsageError: the file can't be opened, already exists, or has permissions that are too open.
        KeyboardInterrupt: a signal was received while the output waited for the reader of a named pipe.
    """
    with contextlib.ExitStack() as stack:
        new = False
        if path == "-":
            file = open_stdout()
        else:
            file, new = _open_file(path, append=append)
            stack.enter_context(file)
            _lock_file(file, path)
            if not new:
                _complete_last_line(file, path)
        regular = path != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        rescue = stack.enter_context(Rescue(Path(path) if regular else None)) if use_rescue else None
        output = Output(file, as_csv=path.endswith(".csv"), rescue=rescue)
        try:
            yield output
        except BaseException:
            output.close()
            if new and not _has_content(file):
                Path(path).unlink(missing_ok=True)
            raise
        finally:
            output.close()
            for line in output.problem_messages():
                print_message(line)


def open_stdout() -> io.FileIO:
    """Return standard output without a buffer, so that written data survives the end of the process.

    Raises:
        UsageError: standard output isn't open for writing.
    """
    # The empty write fails if the descriptor is closed, or open only for reading.
    try:
        sys.stdout.flush()
        file = io.FileIO(sys.stdout.fileno(), "w", closefd=False)
        file.write(b"")
    except (OSError, ValueError):
        raise UsageError("standard output isn't open") from None
    return file


def write_token_response(file: io.FileIO, response: bytes, row: bytes) -> ExitStatus:
    """Write a response that holds a relay token, or rescue it, and return the exit status.

    Args:
        file: the output.
        response: the response.
        row: the response as one line, for the rescue file.
    """
    try:
        write_all(file, response)
    except (OSError, KeyboardInterrupt) as error:
        print_message(f"plaid-relay: the output can't be written: {failure_reason(error)}")
        with Rescue() as rescue:
            stored = rescue.store(row)
        print_message(f"rescued: the response, in {rescue.paths[0]}" if stored else _TOKEN_LOST)
        return ExitStatus.FAILED if stored else ExitStatus.UNKNOWN
    return ExitStatus.DONE


def failure_reason(error: BaseException) -> str:
    """Return a short reason for a failed write; it contains no value."""
    return getattr(error, "strerror", None) or type(error).__name__


def _open_file(path: str, *, append: bool) -> tuple[io.FileIO, bool]:
    try:
        return private_files.create_for_append(path), True
    except FileExistsError:
        if not append:
            raise UsageError(f"{path}: already exists; --append adds to it") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    # Opening a named pipe waits for its reader, until a signal raises KeyboardInterrupt. It is opened only
    # for writing, because with reading this process would be its own reader. A file is also read, to find a
    # torn last line.
    try:
        return private_files.open_for_append(path, readable=Path(path).is_file()), False
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _lock_file(file: io.FileIO, path: str) -> None:
    """Lock the file, because two processes that write to it would mix up their lines."""
    try:
        private_files.lock(file, wait=False)
    except BlockingIOError:
        raise UsageError(f"{path}: another process is writing to it") from None
    except OSError:  # pragma: no cover  # a file system without locks
        return


# A quoted field of CSV; the group is empty if the text ends before the closing quote.
_QUOTED_FIELD = re.compile(rb'(?:\A|[,\r\n])"[^"]*+(?:""[^"]*+)*+("?)')


def _complete_last_line(file: io.FileIO, path: str) -> None:
    """Terminate a last line that was torn by a crash, so that the next line is a separate record."""
    if not _has_content(file):
        return
    size = file.seek(-min(4, file.tell()), os.SEEK_END)
    tail = file.read()
    decoder = getincrementaldecoder("utf-8")("ignore")
    decoder.decode(tail)
    torn_character, _ = decoder.getstate()
    if torn_character:
        file.truncate(size + len(tail) - len(torn_character))
    file.seek(0)
    lines = io.BufferedReader(file)
    within_quotes = path.endswith(".csv") and _ends_within_quotes(lines)
    lines.detach()  # otherwise the file would be closed when `lines` is deleted
    if within_quotes:
        write_all(file, b'"\n')
    elif not tail.endswith(b"\n"):
        write_all(file, b"\n")


def _ends_within_quotes(lines: Iterable[bytes]) -> bool:
    """Return whether the last quoted field of CSV isn't closed."""
    within = False
    for line in lines:
        if b'"' in line:
            # If a field continues from an earlier line, a quote in front lets the pattern match its rest.
            for quoted in _QUOTED_FIELD.finditer(b'"' + line if within else line):
                within = not quoted[1]
    return within
