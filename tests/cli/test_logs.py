"""The log of the command: `--verbose`, `--log-format` and PLAID_RELAY_LOG."""

from __future__ import annotations

import logging
import os
import pty
import re
import signal
import sys

import pytest
from canaries import assert_no_canary
from processes import read_terminal, running_process

from plaid_relay_async.cli.logs import LogHandler

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
CREATE = ("create", "--report-token", REPORT, "--partner")


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose(plaid, run, verbose):
    """`--verbose` shows each attempt and the end of the call, without secrets, and only for this command."""
    result = run(*CREATE, "ann", *["--verbose"] * verbose)
    pattern = r"^\d{4}-\d\d-\d\d .* DEBUG (\w+): operation=/credit/relay/create, .*partner=ann"
    events = ["attempt", "call_end"] if verbose else []
    assert re.findall(pattern, result.err, re.MULTILINE) == events
    assert_no_canary(result.err)
    assert logging.getLogger("plaid_relay_async").level == logging.NOTSET
    assert "operation=" not in run(*CREATE, "bob").err


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_variable(start, spawn, monkeypatch, log_format):
    """PLAID_RELAY_LOG selects the level, and each record is printed once."""
    start()
    monkeypatch.setenv("PLAID_RELAY_LOG", "info")
    _, err = spawn(*CREATE, "ann", "--log-format", log_format).communicate()
    assert (err.count("batch_start"), err.count("attempt: ")) == ({"text": 1, "json": 2}[log_format], 0)


def test_an_invalid_variable(plaid, run, monkeypatch):
    """Another level is a usage error."""
    monkeypatch.setenv("PLAID_RELAY_LOG", "loud")
    result = run(*CREATE, "ann")
    assert (result.status, "PLAID_RELAY_LOG must be debug or info" in result.err) == (2, True)


def test_records_do_not_tear_the_bar(start, partners, tmp_path, monkeypatch):
    """With a progress bar, each record is a line above it."""
    start(latency=0.02)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "500")
    args = ("bulk", partners(20), "--report-token", REPORT, "--output", tmp_path / "out", "--concurrency", 1)
    screen, terminal = pty.openpty()
    command = [*COMMAND, *map(str, args), "--verbose"]
    with running_process(command, stderr=terminal) as process:
        os.close(terminal)
        shown = read_terminal(screen)
        assert process.wait() == 0
    # Before a line above the bar, rich erases the bar with control sequences, which end in a letter.
    lines = [
        re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).strip() for line in re.split("[\r\n]+", shown.decode())
    ]
    events = re.findall(r"^\d{4}-\d\d-\d\d \S+ [A-Z]+ (\w+): operation=.*$", "\n".join(lines), re.MULTILINE)
    expected = [("batch_start", 1), ("attempt", 20), ("call_end", 20), ("batch_end", 1)]
    assert [(event, events.count(event)) for event, _ in expected] == expected
    assert "━" in shown.decode()


@pytest.mark.parametrize("command", ["gateway", "simulate", "console"])
def test_servers(spawn, start, command, monkeypatch, tmp_path):
    """The commands that serve have `--log-format`, and keep what they print on standard output."""
    start()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    process = spawn(command, "--log-format", "json")
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0


def test_a_handler_writes_elsewhere():
    """While a bar is shown, all handlers write above it."""
    written = []
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "a\nb", (), None)
    with LogHandler.writing_with(lambda *lines: written.extend(lines)):
        LogHandler().handle(record)
    assert written == ["a", "b"]
