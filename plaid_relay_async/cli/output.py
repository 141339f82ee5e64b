"""Where outcomes and results go: a file of one's own, or standard output, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import errno
import io
import json
import os
import select
import stat
import sys
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from plaid_relay_async.cli.status import UsageError
from plaid_relay_async.client.files import PartFile
from plaid_relay_async.errors import Hidden, reason_of
from plaid_relay_async.outcomes import Created, Failed, Removed, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator


COLUMNS = ("outcome", "secondary_client_id", "relay_token", "request_id", "error_code", "attempts")
_LOOK_AGAIN = 0.05  # seconds


class BrokenOutputError(Exception):
    """An outcome could not be written; the output knows which."""


def told(outcome: object, partner: str) -> dict[str, Any]:
    """Give the fields of an outcome's line; what is no outcome was not attempted."""
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
    return dict(zip(COLUMNS, values, strict=True))


class Sink(Protocol):
    """Takes outcomes.

    Attributes:
        trouble: why it takes no more.
    """

    trouble: OSError | None

    def write(self, line: dict[str, Any]) -> None:
        """Take the fields of one outcome's line."""
        ...

    async def settle(self) -> None:
        """Wait until whoever reads has made room for all that was taken."""
        ...

    def hurry(self) -> None:
        """Wait no more."""
        ...

    def unwritten(self) -> list[str]:
        """Say what it could not take, a line for each."""
        ...


class Output:
    """Writes each outcome as a line, at once, or as soon as the reader of a pipe makes room for it.

    Waiting for that reader would hold up the event loop, and answers with a token in them would time out
    meanwhile. After a failure it only notes what it could not write.
    """

    def __init__(self, file: io.FileIO, *, as_csv: bool) -> None:
        self.trouble: OSError | None = None
        self._file = file
        self._as_csv = as_csv
        self._needs_header = as_csv and not _holds_something(file)
        self._may_block = os.name == "posix" and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self._patient = True
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost: list[str] = []
        self._unsent = 0

    def write(self, line: dict[str, Any]) -> None:
        """Write a line, or keep it until there is room, or note that it could not be written."""
        self._waiting.append(line)
        self._push()

    async def settle(self) -> None:
        """Wait until whoever reads has made room for all that was taken."""
        while self._waiting and self._patient:
            await asyncio.sleep(_LOOK_AGAIN)
            self._push()
        if self._waiting:
            self._give_up(BlockingIOError(errno.EAGAIN, "nobody reads it"))

    def hurry(self) -> None:
        """Wait no more."""
        self._patient = False

    def unwritten(self) -> list[str]:
        """Say what could not be written, with no token in it."""
        unsent = [f"not_attempted: {self._unsent} more"] if self._unsent else []
        return [f"not written: {lost}" for lost in [*self._lost, *unsent]]

    def _push(self) -> None:
        try:
            while self._waiting and self.trouble is None and self._has_room():
                put(self._file, self._text(self._waiting[0]).encode())
                self._needs_header = False
                self._waiting.popleft()
        except OSError as error:
            self._give_up(error)
        if self.trouble is not None:
            self._give_up(self.trouble)

    def _has_room(self) -> bool:
        return not self._may_block or bool(select.select([], [self._file], [], 0)[1])

    def _give_up(self, trouble: OSError) -> None:
        self.trouble = trouble
        for line in self._waiting:
            if line["outcome"] == "not_attempted":
                self._unsent += 1
            else:
                outcome, which, *_ = line.values()
                self._lost.append(f"{outcome} {which} (request_id {line['request_id']})")
        self._waiting.clear()

    def _text(self, line: dict[str, Any]) -> str:
        if not self._as_csv:
            return json.dumps(line) + "\n"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self._needs_header:
            writer.writerow(line)
        writer.writerow(line.values())
        return text.getvalue()


def put(file: io.FileIO, data: bytes) -> None:
    """Write all of it, or, where the file allows that, nothing.

    Raises:
        OSError: it can't be written.
    """
    written = 0
    try:
        while written < len(data):
            # Where the other end asked not to be waited for, nothing is written while its pipe is full.
            written += file.write(data[written:]) or _wait_for_room(file)
    except OSError:
        with contextlib.suppress(OSError):  # a pipe can't take back what it was given
            file.truncate(file.seek(0, os.SEEK_END) - written)
        raise


def _wait_for_room(file: io.FileIO) -> int:
    select.select([], [file], [])
    return 0


def _holds_something(file: io.FileIO) -> bool:
    return file.seekable() and file.seek(0, os.SEEK_END) > 0


@contextlib.contextmanager
def open_output(path: str, *, append: bool = False) -> Iterator[Output]:
    """Open an output; a new file in which nothing was written because something was wrong is taken away.

    Args:
        path: a file's, `.csv` for CSV and anything else for JSON Lines, or `-` for standard output.
        append: add to the file if there is one.

    Raises:
        UsageError: it can't be opened, or is there already, or others may read it.
    """
    if path == "-":
        yield Output(standard_output(), as_csv=False)
        return
    file, new = _open(path, append=append)
    with file:
        _claim(file, path)
        try:
            yield Output(file, as_csv=path.endswith(".csv"))
        except BaseException:
            if new and not _holds_something(file):
                Path(path).unlink(missing_ok=True)
            raise


def standard_output() -> io.FileIO:
    """Give standard output, without a buffer: what is written has left.

    Raises:
        UsageError: it isn't open.
    """
    try:
        sys.stdout.flush()
        return io.FileIO(sys.stdout.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        raise UsageError("standard output isn't open") from None


def _open(path: str, *, append: bool) -> tuple[io.FileIO, bool]:
    try:
        return _open_new(path), True
    except FileExistsError:
        if not append:
            raise UsageError(f"{path}: is there already; --append adds to it") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        return _open_again(path), False
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _claim(file: io.FileIO, path: str) -> None:
    """Keep the file from others: two runs that write into it would spoil each other's lines."""
    try:
        import fcntl
    except ModuleNotFoundError:  # pragma: no cover  # where there are no POSIX locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another run writes into it") from None
    except OSError:  # pragma: no cover  # a file system without locks, which no test machine need have
        return


def _open_new(path: str) -> io.FileIO:
    return io.FileIO(path, "x", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND, 0o600)


def _open_again(path: str) -> io.FileIO:
    # A pipe is opened to write alone: whoever opens it to read as well is a reader of it.
    file = io.FileIO(path, "a+" if Path(path).is_file() else "w", opener=_private)
    mode = os.fstat(file.fileno()).st_mode
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        file.close()
        raise UsageError(f"{path}: others may read it, and tokens would lie in it; chmod 600 first")
    if _holds_something(file):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            put(file, b"\n")
    return file


def write_new(path: str, content: bytes) -> None:
    """Make a file of one's own that is there as a whole or not at all.

    Raises:
        FileExistsError: there is such a file.
        OSError: it can't be written.
    """
    part = PartFile(Path(path))
    try:
        part.open()
        part.write(Hidden(content))
        part.publish()
    finally:
        part.give_up()


class Kept:
    """Keeps outcomes in memory, for the demonstration."""

    trouble: OSError | None = None

    def __init__(self) -> None:
        self.by_outcome: Counter[str] = Counter()
        self.tokens: dict[str, str] = {}
        self.unknown: list[str] = []

    def write(self, line: dict[str, Any]) -> None:
        """Keep what the demonstration compares with the ledger."""
        self.by_outcome[line["outcome"]] += 1
        if line["outcome"] == "created":
            self.tokens[line["secondary_client_id"]] = line["relay_token"]
        if line["outcome"] == "unknown":
            self.unknown.append(line["secondary_client_id"])

    async def settle(self) -> None:
        """Wait for nobody."""

    def hurry(self) -> None:
        """Wait for nobody."""

    def unwritten(self) -> list[str]:
        """Say nothing: it takes everything."""
        return []
