"""The lines of JSON that the commands of `plaid-relay webhooks` print on standard output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from plaid_relay_async.cli.output import escape_for_terminal, write_all

if TYPE_CHECKING:
    import io
    from collections.abc import Mapping

_POLL_SECONDS: Final = (0.001, 0.05)  # the first and the longest interval between two checks of a full pipe
# A string, which is kept, or whitespace between the parts of JSON.
_STRING_OR_WHITESPACE: Final = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")|[ \t\r\n]+')


class LineWriter:
    """Writes complete lines, and waits for a full pipe without blocking the event loop."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._may_block = os.name == "posix" and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)

    async def write(self, line: bytes) -> None:
        """Write a line.

        Raises:
            OSError: the line can't be written; a regular file then has nothing of it.
        """
        if not self._may_block:
            write_all(self._file, line)
            return
        rest = memoryview(escape_for_terminal(self._file, line))
        while rest:
            await self._wait_until_writable()
            # POSIX: if a pipe is writable, a write of PIPE_BUF bytes or fewer doesn't block.
            rest = rest[self._file.write(rest[: select.PIPE_BUF]) or 0 :]

    async def _wait_until_writable(self) -> None:
        pause, longest = _POLL_SECONDS
        while not select.select([], [self._file], [], 0)[1]:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)


def complete_last_line(file: io.FileIO) -> None:
    """Terminate the last line of a regular file, which is incomplete if its process was killed meanwhile.

    Otherwise the next line would be a part of it.

    Raises:
        OSError: the file can't be written.
    """
    status, last = os.fstat(file.fileno()), b""
    if stat.S_ISREG(status.st_mode) and status.st_size:
        # Standard output is usually open only for writing.
        with contextlib.suppress(OSError), Path(f"/dev/fd/{file.fileno()}").open("rb") as reader:
            reader.seek(-1, os.SEEK_END)
            last = reader.read()
    if last not in {b"", b"\n"}:
        write_all(file, b"\n")


def to_line(fields: Mapping[str, Any], body: bytes | None) -> bytes:
    """Return a line with some fields and with the `payload`, which has each number as it was sent.

    Args:
        fields: the other fields.
        body: the body of the webhook, or `None` if it was deleted. If it isn't JSON, `payload` is null, and
            the field `body` has its text.
    """
    payload = None if body is None else _compact_json(body)
    if payload is None and body is not None:
        fields = {**fields, "body": body.decode(errors="surrogateescape")}
    return f'{json.dumps(fields)[:-1]}, "payload": {payload or "null"}}}\n'.encode()


def format_time(seconds: float) -> str:
    """Return a Unix time in the format of ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _compact_json(body: bytes) -> str | None:
    """Return JSON on one line, otherwise unchanged, or `None` if the body isn't JSON."""
    try:
        text = body.decode()
        # Numbers are only checked. An int of Python has a limit on digits.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None
    return _STRING_OR_WHITESPACE.sub(lambda match: match[1] or "", text)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and infinities aren't JSON
