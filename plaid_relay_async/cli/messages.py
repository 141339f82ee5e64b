"""What the command may write to standard error, how it writes it, and its exit status."""

from __future__ import annotations

import contextlib
import enum
import io
import sys
from typing import TYPE_CHECKING

from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.redaction import redact_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_LINE_LENGTH = 2_000  # characters of a line that is shown
_RESERVED_DESCRIPTORS = 32  # for the files that the command itself opens


class ExitStatus(enum.IntEnum):
    """The command's exit status."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    BUG = 70


class UsageError(Exception):
    """The command line or the input is invalid; each argument is one line of the message."""


@contextlib.contextmanager
def naming_extra() -> Iterator[None]:
    """Raise `UsageError` with the text of an import error, which names the extra that isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        problem = str(error)
    else:
        return
    raise UsageError(problem)


class StderrWriter(io.TextIOBase):
    """The current standard error. A batch continues if no process reads it any more."""

    errors = "backslashreplace"

    @property
    def encoding(self) -> str:  # type: ignore[override]  # it is constant in typeshed
        """The name of the encoding; rich draws a bar in ASCII unless it is a Unicode encoding."""
        return sys.stderr.encoding or "ascii"

    def write(self, text: str, /) -> int:
        """Write, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        """Return whether standard error is a terminal."""
        return sys.stderr.isatty()


def sanitize(text: str) -> str:
    """Return a line that is safe to display: without terminal control characters, tokens and secrets.

    Everything that is written to standard error passes through here, as do values in tables on standard
    output. A name, an identifier or a server's text may contain anything and have any length, and a token may
    have been typed in place of a file name.
    """
    line = redact_credentials(text)
    if len(line) > _MAX_LINE_LENGTH:
        line = f"{line[:_MAX_LINE_LENGTH]}[... {len(line) - _MAX_LINE_LENGTH:,} more characters]"
    return escape_unprintable(line)


def write_lines(*lines: str) -> None:
    """Write lines to standard error that are safe to display."""
    StderrWriter().write("".join(f"{line}\n" for line in lines))


def max_connections() -> int | None:
    """Return how many connections this process can open, or `None` if the number isn't limited."""
    try:
        import resource
    except ModuleNotFoundError:  # pragma: no cover  # Windows has no such limit
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _RESERVED_DESCRIPTORS)
