"""The options for runs on Temporal, without the extra that makes them work; see tests/temporal for the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

REPORT = "assets-sandbox-1111"
# The address is never used.
POSTGRES = "postgresql://user@127.0.0.1:1/none"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("PLAID_RELAY_KEY", "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=")
    monkeypatch.delenv("PLAID_RELAY_JOURNAL", raising=False)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--temporal", "127.0.0.1:7233"], "--temporal: requires --task-queue"),
        (["--temporal-tls"], "--temporal-tls: requires --task-queue"),
        (["--temporal-api-key-file", "canary"], "--temporal-api-key-file: requires --task-queue"),
        (["--detach"], "--detach: requires --task-queue"),
        (["--rate", "20"], "--rate: requires --task-queue"),
        (["--task-queue", "relay"], "--task-queue: requires --journal and --run"),
        (
            ["--task-queue", "relay", "--run", "r", "--journal", POSTGRES, "--timeout", "5"],
            "--timeout and --proxy: pass them to the workers, which make the calls",
        ),
        (
            ["--task-queue", "relay", "--run", "r", "--journal", "relay.db"],
            "--journal: a run on Temporal requires a PostgreSQL journal",
        ),
    ],
)
def test_options_without_effect(plaid, run, partners, tmp_path, monkeypatch, args, problem):
    """An option that would have no effect, or that lacks another one, is an error, and nothing is sent."""
    monkeypatch.chdir(tmp_path)
    result = run("bulk", partners(1), "--report-token", REPORT, *args)
    assert (result.status, result.out) == (2, "")
    assert problem in result.err
    assert not plaid.requests
    assert not (tmp_path / "relay.db").exists()


@pytest.mark.parametrize(
    "command",
    [["worker"], ["cancel", "r"], ["revoke", "r", "--yes", "--task-queue", "relay"]],
)
def test_a_journal_in_a_file(plaid, run, tmp_path, command):
    """The commands of a run on Temporal refuse a journal in a file, which other machines can't use."""
    path = tmp_path / "relay.db"
    path.touch(mode=0o600)
    result = run(*command, "--journal", path)
    assert result.status == 2
    assert "--journal: a run on Temporal requires a PostgreSQL journal" in result.err
    assert path.read_bytes() == b""


def test_temporals_variables_alone_have_no_effect(plaid, run, partners, monkeypatch):
    """Without --task-queue, the command calls Plaid, even if the variables of Temporal's clients are set."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    result = run("bulk", partners(2), "--report-token", REPORT)
    assert (result.status, len(plaid.ledger)) == (0, 2)


@pytest.mark.parametrize(
    "args",
    [
        ["bulk", "{partners}", "--report-token", REPORT, "--run", "r", "--journal", POSTGRES],
        ["worker", "--journal", POSTGRES],
        ["rate"],
    ],
    ids=lambda args: args[0],
)
def test_the_extra_is_missing(plaid, partners, args):
    """A missing extra is named, before anything is opened."""
    code = "import sys; sys.modules['temporalio'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    words = [each.format(partners=partners(1)) for each in args]
    address = ("--task-queue", "relay", "--temporal", "127.0.0.1:1")
    command = [sys.executable, "-Ic", code, *words, *address]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "pip install 'plaid_relay_async[temporal]'" in result.stderr
    assert not plaid.requests
