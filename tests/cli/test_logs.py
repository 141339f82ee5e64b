"""The log of the command: `--verbose`, `--log-format` and PLAID_RELAY_LOG."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import sys

import pytest
from canaries import assert_no_canary
from processes import read_terminal, running_process
from rich.console import Console

from plaid_relay_async.cli import app
from plaid_relay_async.cli.logs import LogHandler
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
CREATE = ("create", "--report-token", REPORT, "--partner")


def logged_events(text):
    """Return the events of the lines of JSON that aren't messages of the command."""
    return [line["event"] for line in map(json.loads, text.splitlines()) if "event" in line]


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose(plaid, run, verbose):
    """`--verbose` shows each attempt and the end of the call, without secrets, and only for this command."""
    result = run(*CREATE, "ann", *["--verbose"] * verbose)
    pattern = r"^\d{4}-\d\d-\d\d .* DEBUG (\w+): operation=/credit/relay/create, .*partner=ann"
    events = ["attempt_end", "call_end"] if verbose else []
    assert re.findall(pattern, result.err, re.MULTILINE) == events
    assert_no_canary(result.err)
    assert logging.getLogger("plaid_relay_async").level == logging.NOTSET
    assert "operation=" not in run(*CREATE, "bob").err


def test_every_command_that_calls_plaid_is_verbose():
    """Each command with `--base-url` has `--verbose` and `--log-format`."""
    commands = [[name] for name in app.app if name.isalpha()]
    commands += [["webhooks", name] for name in app.webhooks if name.isalpha()]
    calling = []
    for command in commands:
        printed = io.StringIO()
        app.app.help_print(command, console=Console(file=printed, width=500))
        options = {*re.findall(r"--[\w-]+", printed.getvalue())}
        if "--base-url" in options:
            calling.append(command)
            assert {"--verbose", "--log-format"} <= options, command
    assert len(calling) == 12


@pytest.mark.parametrize("command", ["get", "refresh", "remove"])
def test_verbose_on_other_commands(plaid, run, command):
    """A call that fails is logged as well, in text and as JSON, without the token of the command line."""
    token = "credit-relay-sandbox-00000000-0000-0000-0000-000000000000"
    result = run(command, token, "--verbose")
    assert re.findall(r" DEBUG (\w+): ", result.err) == ["attempt_end", "call_end"]
    assert token not in result.err
    result = run(command, token, "--verbose", "--log-format", "json")
    assert logged_events(result.err) == ["attempt_end", "call_end"]
    assert token not in result.err


def test_an_unknown_outcome_is_no_message(plaid, run, caplog):
    """Without `--verbose`, the table has the unknown outcomes, and no record of them is printed."""
    plaid.fail(Fault(close=True, when="after"))
    result = run(*CREATE, "ann", "--log-format", "json")
    assert result.status == 3
    assert "call_end" in caplog.text
    assert logged_events(result.err) == []


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_variable(start, spawn, monkeypatch, log_format):
    """PLAID_RELAY_LOG selects the level, and each record is printed once."""
    start()
    monkeypatch.setenv("PLAID_RELAY_LOG", "info")
    _, err = spawn(*CREATE, "ann", "--log-format", log_format).communicate()
    assert (err.count("batch_start"), err.count("attempt_end: ")) == ({"text": 1, "json": 2}[log_format], 0)


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
    expected = [("batch_start", 1), ("attempt_end", 20), ("call_end", 20), ("batch_end", 1)]
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
