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
import urllib.request
from pathlib import Path

import pytest
from processes import running_process, unread_bytes, wait_until, waits_in_kernel

from plaid_relay_async.simulator import Fault

COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]

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
        _, errors = process.communicate()
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


def test_closed_pipe(start, spawn, partners, rescued):
    """The command drains, rescues what was not read, and ends by itself; also when nobody reads its errors."""
    plaid = start(latency=0.01)
    process = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 1
    saved = {line["relay_token"] for line in rescued()}
    made = {entry["relay_token"] for entry in plaid.ledger}
    assert 0 < len(saved) < len(made)
    assert first["relay_token"] in made
    assert "rescued: " in errors
    deaf = spawn("bulk", partners(400), "--report-token", REPORT, "--concurrency", 5)
    deaf.stderr.close()
    deaf.stdout.close()
    assert deaf.wait() == 1


def test_open_pipe_and_signal(plaid, spawn):
    """A process that waits for rows ends at once when it is told to."""
    process = spawn("bulk", "-", "--stream", "--report-token", REPORT)
    process.stdin.write("p1\np2\n")
    process.stdin.flush()
    assert {json.loads(process.stdout.readline())["secondary_client_id"] for _ in range(2)} == {"p1", "p2"}
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert "not read to its end" in process.stderr.read()


def on_a_terminal(words, **settings):
    """Run with standard error on a terminal, and return the exit status and what the terminal shows."""
    screen, terminal = pty.openpty()
    with running_process([*COMMAND, *map(str, words)], stderr=terminal, **settings) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end was closed
            while part := os.read(screen, 65536):
                shown += part
        os.close(screen)
        return process.wait(), shown.decode()


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
    words = ("bulk", partners(3), "--report-token", REPORT)
    with running_process([*COMMAND, *map(str, words)], stderr=terminal, stdout=terminal) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):
            while part := os.read(screen, 65536):
                shown += part
        os.close(screen)
        assert process.wait() == 0
    assert shown.count(b'"created"') == 3
    assert "━" not in shown.decode()


def test_nothing_on_the_list_of_processes(start, spawn, partners, tmp_path):
    """A token from a file is no argument of any process."""
    report = f"assets-sandbox-{os.getpid()}"  # which no other test gives to anybody
    start(latency=0.2, reports=[report])
    file = tmp_path / "token"
    file.write_text(report)
    process = spawn("bulk", partners(50), "--report-token", f"@{file}", "--concurrency", 10)
    process.stdout.readline()
    seen = [arguments(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"@" in line and b"bulk" in line for line in seen)
    assert not any(report.encode() in line or SECRET.encode() in line for line in seen)
    process.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(plaid, partners, tmp_path, closed):
    """Whoever closes them gets nothing there, and neither a false status nor a token in the wrong place."""
    out = tmp_path / "out"
    words = ["bulk", str(partners(5)), "--report-token", REPORT, "--output", str(out)]
    command = " ".join([*COMMAND, *words])
    run = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    assert len(lines_of(out)) == 5


def test_a_token_from_nowhere(plaid):
    """Standard input that is closed holds no token: wrong usage, and no bug."""
    command = " ".join([*COMMAND, "get", "-"])
    run = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, text=True, check=False)
    assert (run.returncode, "RELAY_TOKEN: can't be read: isn't open" in run.stderr) == (2, True)


def test_more_connections_than_the_shell_allows(plaid, partners):
    """It is said before anything is sent, with the way out."""
    command = " ".join([*COMMAND, "bulk", str(partners(3)), "--report-token", REPORT, "--concurrency", "500"])
    run = subprocess.run(
        ["sh", "-c", f"ulimit -n 256; {command}"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, "raise ulimit -n" in run.stderr, len(plaid.ledger)) == (2, True, 0)


def test_a_pipe_with_a_name(plaid, spawn, partners, tmp_path):
    """A reader that comes late gets every line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = spawn("bulk", partners(20), "--report-token", REPORT, "--output", pipe, "--append")
    wait_until(waits_in_kernel(process.pid, "wait_for_partner"))
    assert len(lines_of(pipe)) == len(plaid.ledger) == 20
    assert process.wait() == 0


def test_a_pipe_that_does_not_wait(start, shared_token, tmp_path):
    """A report that is larger than the pipe arrives whole, though the pipe asks not to be waited for."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    words = [*COMMAND, "get", shared_token]
    with running_process(words, stdout=writing, env=os.environ | {"PLAID_CLIENT_ID": "ann"}) as process:
        os.close(writing)
        wait_until(lambda: unread_bytes(reading) >= 65536)  # the pipe is full
        with os.fdopen(reading, "rb") as file:
            content = file.read()
        assert process.wait() == 0
    assert len(content) > 65536
    assert json.loads(content)["report"]


@pytest.fixture
def shared_token(start):
    """The relay token of a report that is larger than a pipe."""
    plaid = start()

    def ask(path, **body):
        request = urllib.request.Request(
            plaid.url + path,
            json.dumps({"client_id": "owner", "secret": SECRET, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    tokens = []
    for _ in range(9):
        public = ask("/sandbox/public_token/create", institution_id="ins_109508", initial_products=["assets"])
        item = ask("/item/public_token/exchange", public_token=public["public_token"])
        tokens.append(item["access_token"])
    report = ask("/asset_report/create", access_tokens=tokens, days_requested=730)["asset_report_token"]
    return ask("/credit/relay/create", report_tokens=[report], secondary_client_id="ann")["relay_token"]


@pytest.mark.parametrize(
    ("word", "status", "told"), [("get", 1, "interrupted"), ("remove", 1, "INVALID_RELAY_TOKEN")]
)
def test_a_single_call_that_is_told_to_end(start, spawn, word, status, told):
    """SIGTERM is handled like Ctrl-C: a read ends, and the response to a removal is waited for."""
    plaid = start(latency=2.0)
    process = spawn(word, "credit-relay-sandbox-1")
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert (process.returncode, told in errors) == (status, True)


def arguments(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""
