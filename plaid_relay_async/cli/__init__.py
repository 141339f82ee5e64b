"""The command `plaid-relay`; it comes with the extra `cli`."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from plaid_relay_async.cli.messages import FallbackLogHandler
from plaid_relay_async.cli.signals import signals

__all__ = ["main"]

_EXTRA_PACKAGES = {"cyclopts", "platformdirs", "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        words: the command line, in place of the process's own.

    Returns:
        The exit status: 0 done, 1 some failed, 2 wrong usage or input, 3 some unknown, 70 a bug.
    """
    try:
        from plaid_relay_async.cli.app import run_command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA_PACKAGES:
            raise
        needed = "plaid-relay needs cyclopts, platformdirs and rich: pip install 'plaid_relay_async[cli]'"
        sys.stderr.write(f"{needed}\n")
        return 2
    if argv is not None:
        with signals:
            return run_command(argv)
    _open_standard_streams()
    logging.lastResort = FallbackLogHandler(logging.WARNING)
    logging.captureWarnings(capture=True)
    with signals:
        status = run_command(sys.argv[1:])
        return _flush_streams(status)


class _ClosedStream(io.TextIOBase):
    """A standard stream that the caller closed: it has no descriptor, and drops what is written."""

    def write(self, text: str, /) -> int:
        """Drop the text."""
        return len(text)


def _open_standard_streams() -> None:
    """Occupy the descriptors of streams that the caller closed, so that no other file takes their place."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(nowhere)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _ClosedStream())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may lack a name's characters


def _flush_streams(status: int) -> int:
    """Flush the standard streams, and return the exit status: a reader that is gone doesn't change it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if not signals.interrupted:
                stream.flush()
                continue
        except KeyboardInterrupt:
            status = 1
        except (OSError, ValueError):
            pass
        # Python flushes once more at its exit: it would change the status, or wait for a reader.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
