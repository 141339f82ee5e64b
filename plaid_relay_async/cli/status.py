"""What the command says about itself: on standard error, and as its exit status."""

from __future__ import annotations

import contextlib
import enum
import io
import re
import sys

_LONGEST = 2_000  # characters of a line that is shown
_ESCAPABLE = re.compile(r"[^ -~]")
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


def shown(text: str) -> str:
    """Return a line in which every character is escaped that a terminal may act on, or can't display.

    A server's strings are shown this way: they may hold control sequences, and be of any length.
    """
    line = text[:_LONGEST]
    more = "" if len(line) == len(text) else f"[... {len(text) - len(line):,} more characters]"
    return _ESCAPABLE.sub(_escaped, line) + more


def _escaped(character: re.Match[str]) -> str:
    one = character[0]
    return one if one.isprintable() else one.encode("unicode_escape").decode()


def shown_lines(text: str) -> str:
    """Return a text of several lines, each as `shown` returns it."""
    return "\n".join(map(shown, text.split("\n")))


def say(text: str) -> None:
    """Write lines to standard error."""
    StandardError().write(f"{shown_lines(text)}\n")


def most_connections() -> int | None:
    """Give how many connections this process may have, beside the files that it has open anyway."""
    try:
        import resource
    except ModuleNotFoundError:  # pragma: no cover  # where there are no such limits
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _OTHER_FILES)
