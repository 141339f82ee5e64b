"""What a command prints about an error, and its exit status."""

from __future__ import annotations

import traceback
from pathlib import Path

from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.errors import (
    ConfigurationError,
    OutcomeUnknownError,
    PlaidRelayError,
    RequestValidationError,
)


def describe_error(error: Exception) -> tuple[list[str], ExitStatus]:
    """Return the lines of a message about an error, and the exit status."""
    match error:
        case UsageError():
            return list(error.args), ExitStatus.USAGE
        case PlaidRelayError():
            return [f"{type(error).__name__}: {error}"], _exit_status_of(error)
        case OSError():
            return [f"the output can't be written: {error.strerror}"], ExitStatus.FAILED
    return _describe_bug(error), ExitStatus.BUG


def _exit_status_of(error: PlaidRelayError) -> ExitStatus:
    if isinstance(error, OutcomeUnknownError):
        return ExitStatus.UNKNOWN
    return (
        ExitStatus.USAGE
        if isinstance(error, ConfigurationError | RequestValidationError)
        else ExitStatus.FAILED
    )


def _describe_bug(error: Exception) -> list[str]:
    # Only names of files and functions: an exception's text and local variables may contain a token.
    frames = (
        f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    )
    return ["this is a bug; please report these lines:", type(error).__name__, *frames]
