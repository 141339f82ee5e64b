"""What the command says about itself: on standard error, and as its exit status."""

from __future__ import annotations

import contextlib
import enum
import io
import sys

_OTHER_FILES = 32  # that the command itself has open


class Exit(enum.IntEnum):
    """The command's exit status."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    BUG = 70


class UsageError(Exception):
    """The command line or the input is wrong; each argument is a line of what to say about it."""


class StandardError(io.TextIOBase):
    """Standard error as it is now. That nobody reads it any more is no reason to break off a batch."""

    encoding = "utf-8"
    errors = "replace"

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
        """Whether a person may be looking."""
        return sys.stderr.isatty()


def say(text: str) -> None:
    """Put a line on standard error."""
    StandardError().write(f"{text}\n")


def most_connections() -> int | None:
    """Give how many connections this process may have, beside the files that it has open anyway."""
    try:
        import resource
    except ModuleNotFoundError:  # pragma: no cover  # where there are no such limits
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _OTHER_FILES)
