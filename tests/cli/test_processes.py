"""The command in another process: signals at random moments, a terminal, closed pipes and streams."""

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from processes import running_process, unread_bytes, wait_until, waits_in_kernel

from plaid_relay_async.simulator import Fault

COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]

REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"
PARTNERS = 400  # enough for a second of work, so that most moments fall into it


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.timeout(600)
def test_interrupted_twice_at_random_moments(start, spawn, partners, tmp_path, request):
    """Each partner has one line; a token of the ledger is in the output, or its outcome is unknown."""
    rng = random.Random(7)
    path = partners(PARTNERS)
    for number in range(request.config.getoption("--rounds", default=3)):
        plaid = start(latency=0.02, seed=number)
        plaid.fail(Fault(rate=0.05, status=400), Fault(rate=0.05, close=True, when="after"))
        out = tmp_path / f"out{number}"
        process = spawn("bulk", path, "--report-token", REPORT, "--output", out, "--concurrency", 10)
        for longest in (1.5, 0.3):
            time.sleep(rng.uniform(0, longest))
            process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
        _, errors = process.communicate()
        check(plaid, read_lines(out), process.returncode, errors)


def check(plaid, lines, status, errors):
    line_by_partner = {line["secondary_client_id"]: line for line in lines}
    for entry in plaid.ledger:
        line = line_by_partner[entry["secondary_client_id"]]
        assert line["outcome"] == "unknown" or line["relay_token"] == entry["relay_token"]
    assert len(line_by_partner) == len(lines)
    assert len(lines) == PARTNERS or (not lines and not plaid.ledger)
    assert status in ({0, 1, 3} if lines else {1, 2, 3, -signal.SIGTERM, -signal.SIGINT, 130})
    # Until the package itself is imported, Python handles signals. If one arrives in the callback of a weak
    # reference that each import calls, Python prints the KeyboardInterrupt and ignores it.
    assert "Traceback" not in errors or "_get_module_lock" in errors or not plaid.ledger


def test_closed_pipe(start, spawn, partners, rescued):
    """The command drains, rescues unread outcomes, and exits, even if its standard error is closed too."""
    plaid = start(latency=0.01)
    process = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 1
    rescued_tokens = {line["relay_token"] for line in rescued()}
    created = {entry["relay_token"] for entry in plaid.ledger}
    assert 0 < len(rescued_tokens) < len(created)
    assert first["relay_token"] in created
    assert "rescued: " in errors
    second = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    second.stderr.close()
    second.stdout.close()
    assert second.wait() == 1


def test_open_pipe_and_signal(plaid, spawn):
    """A process that waits for rows exits immediately after a signal."""
    process = spawn("bulk", "-", "--stream", "--report-token", REPORT)
    process.stdin.write("p1\np2\n")
    process.stdin.flush()
    assert {json.loads(process.stdout.readline())["secondary_client_id"] for _ in range(2)} == {"p1", "p2"}
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert "not read to its end" in process.stderr.read()


def on_a_terminal(args, **settings):
    """Run with standard error on a terminal; return the exit status and what the terminal shows."""
    screen, terminal = pty.openpty()
    with running_process([*COMMAND, *map(str, args)], stderr=terminal, **settings) as process:
        os.close(terminal)
        screen_text = b""
        with contextlib.suppress(OSError):  # the process has closed the terminal
            while part := os.read(screen, 65536):
                screen_text += part
        os.close(screen)
        return process.wait(), screen_text.decode()


def test_progress_bar(start, partners, tmp_path, monkeypatch):
    """A terminal shows a bar with done, failed, unknown, rate and remaining time, and no token."""
    plaid = start(latency=0.05)
    monkeypatch.setenv("TERM", "xterm")
    plaid.fail(Fault(secondary_client_id="p3", status=400))
    args = (
        "bulk",
        partners(200),
        "--report-token",
        REPORT,
        "--output",
        tmp_path / "out",
        "--concurrency",
        10,
    )
    status, screen_text = on_a_terminal(args)
    assert status == 1
    assert "200 done, 1 failed, 0 unknown" in screen_text
    assert "/s" in screen_text
    assert "0:00:0" in screen_text
    assert "━" in screen_text
    assert "credit-relay" not in screen_text


def test_no_bar_among_outcomes(plaid, partners, monkeypatch):
    """There is no bar if outcomes go to the same terminal."""
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = pty.openpty()
    args = ("bulk", partners(3), "--report-token", REPORT)
    with running_process([*COMMAND, *map(str, args)], stderr=terminal, stdout=terminal) as process:
        os.close(terminal)
        screen_text = b""
        with contextlib.suppress(OSError):
            while part := os.read(screen, 65536):
                screen_text += part
        os.close(screen)
        assert process.wait() == 0
    assert screen_text.count(b'"created"') == 3
    assert "━" not in screen_text.decode()


def test_no_token_in_the_list_of_processes(start, spawn, partners, tmp_path):
    """A token from a file is not an argument of any process."""
    report = f"assets-sandbox-{os.getpid()}"  # which no other test uses
    start(latency=0.2, reports=[report])
    file = tmp_path / "token"
    file.write_text(report)
    process = spawn("bulk", partners(50), "--report-token", f"@{file}", "--concurrency", 10)
    process.stdout.readline()
    cmdlines = [read_cmdline(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"@" in line and b"bulk" in line for line in cmdlines)
    assert not any(report.encode() in line or SECRET.encode() in line for line in cmdlines)
    process.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(plaid, partners, tmp_path, closed):
    """Closed standard streams change neither the exit status nor the output file."""
    out = tmp_path / "out"
    args = ["bulk", str(partners(5)), "--report-token", REPORT, "--output", str(out)]
    command = " ".join([*COMMAND, *args])
    run = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    assert len(read_lines(out)) == 5


def test_a_token_from_closed_standard_input(plaid):
    """A token from closed standard input is wrong usage, not a bug."""
    command = " ".join([*COMMAND, "get", "-"])
    run = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, text=True, check=False)
    assert (run.returncode, "RELAY_TOKEN: can't be read: it isn't open" in run.stderr) == (2, True)


def test_more_connections_than_the_shell_allows(plaid, partners):
    """More connections than the limit of open files are rejected, and the message names the remedy."""
    command = " ".join([*COMMAND, "bulk", str(partners(3)), "--report-token", REPORT, "--concurrency", "500"])
    run = subprocess.run(
        ["sh", "-c", f"ulimit -n 256; {command}"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, "raise ulimit -n" in run.stderr, len(plaid.ledger)) == (2, True, 0)


def test_a_named_pipe(plaid, spawn, partners, tmp_path):
    """A reader that opens the pipe late gets every line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = spawn("bulk", partners(20), "--report-token", REPORT, "--output", pipe, "--append")
    wait_until(waits_in_kernel(process.pid, "wait_for_partner"))
    assert len(read_lines(pipe)) == len(plaid.ledger) == 20
    assert process.wait() == 0


def test_a_pipe_in_non_blocking_mode(start, shared_token, tmp_path):
    """A report that is larger than a pipe in non-blocking mode is written completely."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    args = [*COMMAND, "get", shared_token]
    with running_process(args, stdout=writing, env=os.environ | {"PLAID_CLIENT_ID": "ann"}) as process:
        os.close(writing)
        wait_until(lambda: unread_bytes(reading) >= 65536)  # the pipe is full
        with os.fdopen(reading, "rb") as file:
            content = file.read()
        assert process.wait() == 0
    assert len(content) > 65536
    assert json.loads(content)["report"]


@pytest.fixture
def shared_token(start):
    """Create the relay token of a report that is larger than a pipe."""
    plaid = start()

    def call(path, **body):
        request = urllib.request.Request(
            plaid.url + path,
            json.dumps({"client_id": "owner", "secret": SECRET, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    tokens = []
    for _ in range(9):
        public = call(
            "/sandbox/public_token/create", institution_id="ins_109508", initial_products=["assets"]
        )
        item = call("/item/public_token/exchange", public_token=public["public_token"])
        tokens.append(item["access_token"])
    report = call("/asset_report/create", access_tokens=tokens, days_requested=730)["asset_report_token"]
    return call("/credit/relay/create", report_tokens=[report], secondary_client_id="ann")["relay_token"]


@pytest.mark.parametrize(
    ("command", "status", "message"), [("get", 1, "interrupted"), ("remove", 1, "INVALID_RELAY_TOKEN")]
)
def test_sigterm_during_a_single_call(start, spawn, command, status, message):
    """SIGTERM is handled like Ctrl-C: a read ends, and the response to a removal is awaited."""
    plaid = start(latency=2.0)
    process = spawn(command, "credit-relay-sandbox-1")
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert (process.returncode, message in errors) == (status, True)


def read_cmdline(path):
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
