"""The command in a process of its own: interruptions at random moments, a terminal, a closed pipe."""

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"
REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"
PARTNERS = 400  # enough for a second of work, so that most moments fall into it


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.timeout(600)
def test_interrupted_twice_at_random_moments(start, spawn, partners, tmp_path, request):
    """No token is in the ledger that is neither in the output nor listed as unknown; each partner has one line."""
    chance = random.Random(7)
    path = partners(PARTNERS)
    for number in range(request.config.getoption("--rounds", default=3)):
        plaid = start(latency=0.02, seed=number)
        plaid.fail(Fault(rate=0.05, status=400), Fault(rate=0.05, close=True, when="after"))
        out = tmp_path / f"out{number}"
        process = spawn("bulk", path, "--report-token", REPORT, "--output", out, "--concurrency", 10)
        for longest in (1.5, 0.3):
            time.sleep(chance.uniform(0, longest))
            process.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
        _, errors = process.communicate(timeout=30)
        check(plaid, lines_of(out), process.returncode, errors)


def check(plaid, lines, status, errors):
    told = {line["secondary_client_id"]: line for line in lines}
    for entry in plaid.ledger:
        line = told[entry["secondary_client_id"]]
        assert line["outcome"] == "unknown" or line["relay_token"] == entry["relay_token"]
    assert len(told) == len(lines)
    assert len(lines) == PARTNERS or (not lines and not plaid.ledger)
    assert status in ({0, 1, 3} if lines else {1, 2, 3, -signal.SIGTERM, -signal.SIGINT, 130})
    assert "Traceback" not in errors or not plaid.ledger


def test_closed_pipe(start, spawn, partners):
    """The command drains, says what was not written, and ends by itself; also when nobody reads its errors."""
    plaid = start(latency=0.01)
    process = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(20) == 1
    lost = errors.count("not written: created p")
    assert 0 < lost < len(plaid.ledger)
    assert first["outcome"] == "created"
    deaf = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    deaf.stderr.close()
    deaf.stdout.close()
    assert deaf.wait(20) == 1


def test_open_pipe_and_signal(plaid, spawn):
    """A process that waits for rows ends at once when it is told to."""
    process = spawn("bulk", "-", "--report-token", REPORT)
    process.stdin.write("p1\np2\n")
    process.stdin.flush()
    assert {json.loads(process.stdout.readline())["secondary_client_id"] for _ in range(2)} == {"p1", "p2"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 1
    assert "not read to its end" in process.stderr.read()


def on_a_terminal(words, **settings):
    """Run with standard error on a terminal, and give what it shows."""
    screen, terminal = pty.openpty()
    command = [sys.executable, "-Im", "plaid_relay_async.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=terminal, **settings)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end was closed
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    return process.wait(20), shown.decode()


def test_progress_bar(start, partners, tmp_path, monkeypatch):
    """On a terminal there is a bar, with done, failed, unknown, rate and the time left; no token."""
    plaid = start(latency=0.05)
    monkeypatch.setenv("TERM", "xterm")
    plaid.fail(Fault(secondary_client_id="p3", status=400))
    words = (
        "bulk",
        partners(200),
        "--report-token",
        REPORT,
        "--output",
        tmp_path / "out",
        "--concurrency",
        10,
    )
    status, shown = on_a_terminal(words)
    assert status == 1
    assert "200 done, 1 failed, 0 unknown" in shown
    assert "/s" in shown
    assert "0:00:0" in shown
    assert "━" in shown
    assert "credit-relay" not in shown


def test_no_bar_among_outcomes(plaid, partners, monkeypatch):
    """When outcomes go to the same terminal, a bar would be in their way."""
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = pty.openpty()
    command = [
        sys.executable,
        "-Im",
        "plaid_relay_async.cli",
        "bulk",
        str(partners(3)),
        "--report-token",
        REPORT,
    ]
    process = subprocess.Popen(command, stderr=terminal, stdout=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    assert process.wait(20) == 0
    assert shown.count(b'"created"') == 3
    assert "━" not in shown.decode()


def test_nothing_on_the_list_of_processes(start, spawn, partners, tmp_path):
    """A token from a file is no argument of any process."""
    start(latency=0.2)
    file = tmp_path / "token"
    file.write_text(REPORT)
    process = spawn("bulk", partners(50), "--report-token", f"@{file}", "--concurrency", 10)
    process.stdout.readline()
    seen = [arguments(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"@" in line and b"bulk" in line for line in seen)
    assert not any(REPORT.encode() in line or SECRET.encode() in line for line in seen)
    process.communicate()


def arguments(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""
