"""The command `plaid-relay`, which requires the extra `cli`."""

import atexit
import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from plaid_relay_async.cli import logs
from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.telemetry import PACKAGE

__all__ = ["main"]

_EXTRA_PACKAGES = {"cyclopts", "platformdirs", "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments in place of those of the process. With it, the standard streams and the logging of
            the process stay as they are.

    Returns:
        The exit status, as in the help of `plaid-relay`.
    """
    with signals:
        if argv is not None:
            with logs.restored_logs():
                return _run(argv)
        _open_standard_streams()
        logging.lastResort = logs.handler
        PACKAGE.addHandler(logs.handler)
        logging.captureWarnings(capture=True)
        status = _run(sys.argv[1:])
        if "temporalio" in sys.modules:  # pragma: no cover  # only the session `temporal` has it
            # A thread of Temporal's core may crash while Python ends, or keep it from ending.
            atexit._run_exitfuncs()  # noqa: SLF001
            os._exit(_flush_streams(status))
        return _flush_streams(status)


def _run(argv: Sequence[str]) -> int:
    try:
        # Python ignores an exception in some functions that an import calls, and prints its traceback.
        with signals.deferred():
            from plaid_relay_async.cli.app import run_command
        return run_command(argv)
    except KeyboardInterrupt:
        print_message("plaid-relay: interrupted")
        return ExitStatus.FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA_PACKAGES:
            raise
        message = "plaid-relay needs cyclopts, platformdirs and rich: pip install 'plaid_relay_async[cli]'"
        sys.stderr.write(f"{message}\n")
        return ExitStatus.USAGE


class _ClosedStream(io.TextIOBase):
    """Replaces a standard stream that was closed before the process started, and discards all text."""

    def write(self, text: str, /) -> int:
        """Discard the text."""
        return len(text)


def _open_standard_streams() -> None:
    """Open the descriptors of closed standard streams on the null device.

    Otherwise the next file that is opened would have such a descriptor, and would receive the text of that
    stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _ClosedStream())
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name may contain characters that the locale can't represent.
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_streams(status: int) -> int:
    """Flush the standard streams, and return the exit status.

    A reader that has closed its end doesn't change the status. A signal changes it to 1, and discards the
    text.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if not signals.interrupted:
                stream.flush()
                continue
        except KeyboardInterrupt:
            status = 1
        except (OSError, ValueError):
            pass
        # Python flushes again when it exits. Without a reader that would fail and change the status, or
        # block.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
