"""Helpers for the tests of the command on Temporal; its fixtures are in tests/temporal/conftest.py."""

from __future__ import annotations

import json
import signal
import sys

from attrs import frozen

COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
REPORT = "assets-sandbox-1111"


@frozen
class CompletedCommand:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


def stop(process):
    """Send SIGTERM to a worker, and return its exit status and what it wrote to standard error."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens_of(lines):
    return {line["secondary_client_id"]: line["relay_token"] for line in lines}


def table_of(text):
    """Return the closing table of a command."""
    return dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
