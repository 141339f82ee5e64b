"""The other commands, run in this process, and what all commands have in common."""

import io
import itertools
import json
import logging
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from simulator_http import post

from plaid_relay_async.cli import app, main
from plaid_relay_async.config import USER_AGENT, __version__
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"


@pytest.fixture
def shared_token(plaid, run, monkeypatch):
    """Create a relay token, and set the credentials of its partner."""
    result = run("create", "--report-token", REPORT, "--partner", "ann")
    monkeypatch.setenv("PLAID_CLIENT_ID", "ann")
    return result.lines[0]["relay_token"]


@pytest.fixture
def later():
    """Call a function after a delay, while the command runs."""
    timers = []

    def later(seconds, action, *args):
        timers.append(threading.Timer(seconds, action, args))
        timers[-1].start()

    yield later
    for timer in timers:
        timer.join()


# create


def test_create(plaid, run, tmp_path):
    """The outcome is written as by `bulk`, to standard output or to a private file."""
    result = run("create", "--report-token", REPORT, "--partner", "ann", "--webhook", "https://x.example/")
    assert (result.status, result.err) == (0, "")
    assert result.lines[0]["relay_token"] == plaid.ledger[0]["relay_token"]
    assert plaid.requests[0].headers["user-agent"] == f"{USER_AGENT} plaid-relay/{__version__}"
    out = tmp_path / "out.csv"
    assert run("create", "--report-token", REPORT, "--partner", "bob", "--output", out).status == 0
    assert plaid.ledger[1]["relay_token"] in out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_create_rejected(plaid, run):
    """A rejected creation has status 1, an outcome, and the error's text on standard error."""
    result = run("create", "--report-token", "assets-sandbox-no", "--partner", "ann")
    assert (result.status, result.lines[0]["outcome"]) == (1, "failed")
    assert result.lines[0]["error_code"] == "INVALID_ASSET_REPORT_TOKEN"
    assert "INVALID_ASSET_REPORT_TOKEN" in result.err


def test_create_unknown(plaid, run):
    """An unknown outcome has status 3 and advice."""
    plaid.fail(Fault(close=True, when="after"))
    result = run("create", "--report-token", REPORT, "--partner", "ann")
    assert (result.status, result.lines[0]["outcome"]) == (3, "unknown")
    assert "ask Plaid's support" in result.err


def test_create_does_not_wait_longer_than_its_timeout(plaid, run):
    """A delay that Plaid requests and that exceeds the timeout is an error immediately."""
    plaid.fail(Fault(status=429, headers={"Retry-After": "60"}))
    result = run("create", "--report-token", REPORT, "--partner", "ann", "--timeout", "5")
    assert (result.status, result.lines[0]["error_code"]) == (1, "RATE_LIMIT")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--report-token", "a b", "--partner", "p"], "--report-token: contains whitespace"),
        (["--report-token", "a", "--partner", ""], "--partner: is empty"),
        (["--report-token", "a", "--partner", "p", "--webhook", "x"], "--webhook: must be an http(s) URL"),
        (
            ["--report-token", "@no-such-file", "--partner", "p"],
            "--report-token: can't be read: No such file",
        ),
        (["--report-token", "--partner", "p"], "see plaid-relay --help"),
        (["--report-token", "-x", "--partner", "p"], "--report-token: a token doesn't begin with a hyphen"),
        (["--report-token", "a", "--partner", "p", "--timeout", "0"], "--timeout: must be a number"),
        (["--report-token", "a", "--partner", "p", "--timeout", "nan"], "--timeout: must be a number"),
    ],
)
def test_create_with_invalid_options(plaid, run, args, problem):
    """An invalid option is named, with status 2, and nothing is sent."""
    result = run("create", *args)
    assert result.status == 2
    assert problem in result.err
    assert not plaid.requests


def test_a_token_file_that_is_not_text(plaid, run, tmp_path):
    """A token file that isn't text is reported without its content."""
    file = tmp_path / "token"
    file.write_bytes(b"\xff")
    result = run("create", "--report-token", f"@{file}", "--partner", "p")
    assert (result.status, "isn't text" in result.err) == (2, True)


MARK = "\ufeff"


def test_a_byte_order_mark_before_a_token(plaid, run, tmp_path, stdin):
    """A byte order mark, which editors on Windows write, isn't part of a token."""
    file = tmp_path / "token"
    file.write_text(f"{MARK}{REPORT}\r\n", encoding="utf-8")
    assert run("create", "--report-token", f"@{file}", "--partner", "p").status == 0
    stdin(f"{MARK}{REPORT}\n")
    assert run("create", "--report-token", "-", "--partner", "q").status == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["p", "q"]


# get, pdf, refresh, remove


def serve_undecodable_report(plaid, token):
    """Let the simulator send a null that Plaid's specification doesn't allow, and return the response."""
    body = json.loads(post(plaid, "/credit/relay/get", {"relay_token": token, "report_type": "asset"}, "ann"))
    body["report"]["items"][0]["accounts"][0]["name"] = None
    text = json.dumps(body, indent=3) + " \n"
    plaid.fail(Fault(path="/credit/relay/get", status=200, body=text))
    return text


def test_get_prints_a_report_that_cannot_be_decoded(plaid, shared_token, run):
    """The report is printed byte for byte; the error has the JSON path, and the status is 1."""
    text = serve_undecodable_report(plaid, shared_token)
    result = run("get", shared_token)
    assert (result.status, result.out) == (1, text)
    assert "expected a string at $.report.items[0].accounts[0].name" in result.err
    strict = run("get", shared_token, "--strict")
    assert (strict.status, strict.out, strict.err) == (1, "", result.err)


@pytest.mark.parametrize("body", ["<html>", "", "[]", '{"request_id": "q"}', '{"report": null}'])
def test_get_prints_only_reports(plaid, shared_token, run, body):
    """A response without a report, such as a proxy's HTML page, is not printed."""
    plaid.fail(Fault(path="/credit/relay/get", status=200, body=body))
    result = run("get", shared_token)
    assert (result.status, result.out) == (1, "")
    assert "ResponseDecodeError" in result.err


def test_get(shared_token, run):
    """The report is printed as JSON, with its numbers as they were sent."""
    result = run("get", shared_token)
    assert result.status == 0
    response = json.loads(result.out, parse_float=Decimal)
    balances = response["report"]["items"][0]["accounts"][0]["balances"]
    assert isinstance(balances["current"], Decimal | int)
    assert set(response) >= {"report", "request_id"}


def test_pdf(shared_token, run, tmp_path, stdin):
    """A PDF is written to a new private file, and overwrites none; the token may come from standard input."""
    out = tmp_path / "report.pdf"
    stdin(f"{shared_token}\n")
    assert run("pdf", "-", "--output", out).status == 0
    assert out.read_bytes().startswith(b"%PDF-")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = run("pdf", shared_token, "--output", out)
    assert (again.status, "already exists" in again.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.pdf"]
    assert run("pdf", shared_token, "--output", "-").out.startswith("%PDF-")


def test_pdf_whose_file_is_created_meanwhile(plaid, shared_token, run, tmp_path, later):
    """A file that was created during the download isn't overwritten."""
    plaid.fail(Fault(latency=0.5))
    out = tmp_path / "report.pdf"
    later(0.2, out.write_text, "mine")
    assert run("pdf", shared_token, "--output", out).status == 2
    assert out.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_pdf_into_a_missing_folder(shared_token, run, tmp_path):
    """An output that can't be created has status 1, because the call was sent."""
    result = run("pdf", shared_token, "--output", tmp_path / "no" / "x.pdf")
    assert (result.status, "can't be written: No such file" in result.err) == (1, True)


def test_refresh_and_remove(plaid, shared_token, run, monkeypatch):
    """Both print the response as JSON."""
    fresh = json.loads(run("refresh", shared_token).out)
    assert fresh["asset_report_id"] == plaid.refreshes[0][1]
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    result = run("remove", shared_token)
    assert json.loads(result.out)["removed"] is True
    assert json.loads(result.out)["inferred"] is False
    again = run("remove", shared_token)
    assert (again.status, "INVALID_RELAY_TOKEN" in again.err) == (1, True)
    assert shared_token not in again.err


def test_a_token_that_plaid_did_not_remove(plaid, shared_token, run):
    """A response with `removed: false` is printed, with status 1."""
    body = '{"removed": false, "request_id": "q", "new": 0.12345678901234567891}'
    plaid.fail(Fault(path="/credit/relay/remove", status=200, body=body))
    result = run("remove", shared_token)
    response = json.loads(result.out, parse_float=str)
    assert (result.status, response["removed"], response["inferred"]) == (1, False, False)
    assert response["new"] == "0.12345678901234567891"


def test_refresh_unknown(plaid, shared_token, run):
    """A refresh without a response has status 3."""
    plaid.fail(Fault(close=True, when="after"))
    assert run("refresh", shared_token).status == 3


def test_interrupted_calls(plaid, shared_token, run, signal_when, monkeypatch):
    """An interrupted read fails; the response of an interrupted refresh or removal is awaited and printed."""
    plaid.fail(Fault(latency=1.0))
    signal_when(lambda: plaid.counts["/credit/relay/get"])
    assert run("get", shared_token).status == 1
    signal_when(lambda: plaid.counts["/credit/relay/refresh"])
    result = run("refresh", shared_token)
    assert (result.status, json.loads(result.out)["relay_token"]) == (0, plaid.ledger[-1]["relay_token"])
    assert result.err == ""
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    signal_when(lambda: plaid.counts["/credit/relay/remove"] == 1)
    result = run("remove", shared_token)
    assert (result.status, json.loads(result.out)["removed"]) == (0, True)
    signal_when(lambda: plaid.counts["/credit/relay/remove"] == 2)
    result = run("remove", shared_token)
    assert (result.status, "INVALID_RELAY_TOKEN" in result.err) == (1, True)


def test_an_interrupted_call_without_a_response(plaid, shared_token, run, signal_when):
    """The outcome of an interrupted call without a response is reported as unknown."""
    plaid.fail(Fault(latency=0.5, close=True))
    signal_when(lambda: plaid.counts["/credit/relay/refresh"])
    result = run("refresh", shared_token)
    assert (result.status, "outcome of the refresh is unknown" in result.err) == (3, True)


def test_an_invalid_relay_token(plaid, run):
    """A relay token with whitespace is wrong usage, and is not repeated."""
    result = run("get", "credit relay")
    assert result.status == 2
    assert "relay_token contains whitespace" in result.err
    assert "credit relay" not in result.err


# All commands


def test_help_and_version(run):
    """Every command has a help text."""
    from plaid_relay_async import __version__

    assert run("--version").out.strip() == __version__
    overview = run("--help").out
    for name in (
        "bulk",
        "create",
        "get",
        "pdf",
        "refresh",
        "remove",
        "simulate",
        "gateway",
        "console",
        "demo",
        "worker",
        "rate",
        "cancel",
    ):
        assert name in overview
        assert run(name, "--help").status == 0


@pytest.mark.parametrize(
    "args",
    [
        ["nope-canary-token"],
        ["get", "a", "canary-token"],
        ["create", "--report-tokn", "canary-token", "--partner", "p"],
        ["create", "--report-tokn=canary-token", "--partner", "p"],
        ["bulk", "x", "--concurrency", "canary-token"],
    ],
)
def test_usage_errors_quote_no_value(run, args):
    """An argument is not repeated in an error, because it may be a misplaced token."""
    result = run(*args)
    assert result.status == 2
    assert "canary-token" not in result.out + result.err
    assert "plaid-relay --help" in result.err


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["bulk", "-", "--report-token", "-"], "can't be both"),
        (["bulk", "no-such-file", "--report-token", "a"], "no-such-file: No such file"),
        (["bulk", ".", "--report-token", "a"], "directory"),
        (["bulk", "x", "--concurrency", "0"], "--concurrency: must be an integer of at least 1"),
        (["bulk", "x", "--base-url", "http://plaid.example"], "ConfigurationError: base_url is plain http"),
        (["simulate", "--client", "no-colon"], "--client: must be of the form ID:SECRET"),
        (["simulate", "--client", ":x"], "--client: must be of the form ID:SECRET"),
        (["simulate", "--port", "70000"], "for --port. Must be an integer from 0 to 65535."),
        (["console", "--port", "70000"], "for --port. Must be an integer from 0 to 65535."),
    ],
)
def test_invalid_usage(plaid, run, args, problem):
    """Invalid usage has status 2 and a message."""
    result = run(*args)
    # Only some releases of cyclopts quote an option.
    assert problem.replace('"', "") in result.err.replace('"', "")
    assert result.status == 2


def test_a_simulator_on_a_port_that_is_taken(plaid, run):
    """A port that isn't available is reported with the reason of the operating system."""
    result = run("simulate", "--port", plaid.url.rpartition(":")[2])
    assert (result.status, "--port " in result.err, "in use" in result.err) == (2, True, True)


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        (["PLAID_SECRET"], "set PLAID_SECRET ("),
        (["PLAID_CLIENT_ID", "PLAID_SECRET"], "set PLAID_CLIENT_ID and PLAID_SECRET ("),
    ],
)
def test_no_credentials(plaid, run, monkeypatch, missing, names):
    """Missing credentials are reported with the environment variables to set, and not with Python's API."""
    for name in missing:
        monkeypatch.delenv(name)
    result = run("get", "token")
    assert (result.status, f"no credentials: {names}" in result.err) == (2, True)
    assert "Credentials(" not in result.err


def test_help_wraps_to_the_width_of_the_terminal():
    """Each paragraph of a help text is one line if the terminal is wide enough."""
    commands = [[name] for name in app.app if name.isalpha()]
    commands += [["gateway", "keys"], *(["gateway", "keys", name] for name in ("add", "list", "revoke"))]
    commands += [["webhooks", name] for name in app.webhooks if name.isalpha()]
    for command in [[], *commands]:
        printed = io.StringIO()
        app.app.help_print(command, console=Console(file=printed, width=500))
        text, _, _ = printed.getvalue().partition("╭")
        lines = text.splitlines()
        assert not any(one.strip() and other.strip() for one, other in itertools.pairwise(lines)), text


def test_standard_output_is_closed(plaid, run, monkeypatch):
    """A closed standard output is reported before anything is sent."""
    with Path(os.devnull).open("w") as file:
        pass
    monkeypatch.setattr(sys, "stdout", file)
    result = run("create", "--report-token", REPORT, "--partner", "p")
    assert (result.status, "standard output isn't open" in result.err) == (2, True)
    assert not plaid.requests


def test_standard_input_is_closed(plaid, run, monkeypatch):
    """A closed standard input is wrong usage."""
    with Path(os.devnull).open() as file:
        pass
    monkeypatch.setattr(sys, "stdin", file)
    assert run("bulk", "-", "--report-token", REPORT).status == 2


@pytest.fixture
def buggy_command():
    """Add a command that raises an exception which contains a token."""

    @app.app.command
    def bug():
        raise LookupError("canary-token")

    yield
    app.app.__delitem__("bug")


def test_a_bug(run, buggy_command):
    """A bug has status 70, and is reported with code locations but without values."""
    result = run("bug")
    assert result.status == 70
    assert "LookupError" in result.err
    assert "in bug" in result.err
    assert "canary-token" not in result.err


def test_a_missing_extra():
    """If the extra isn't installed, the message names it."""
    code = (
        "import sys; sys.modules['cyclopts'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'plaid_relay_async[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_missing_module():
    """A missing module that isn't part of the extra raises ModuleNotFoundError."""
    code = "import sys; sys.modules['csv'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in result.stderr


def test_outside_of_the_main_thread(plaid, tmp_path):
    """Outside of the main thread the command runs without handling signals."""
    out = tmp_path / "out"
    statuses = []
    args = ["create", "--report-token", REPORT, "--partner", "ann", "--output", str(out)]
    thread = threading.Thread(target=lambda: statuses.append(main(args)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_canary(plaid, run, partners, tmp_path, caplog):
    """The secret and the tokens are only in the output, even if every logger has the level DEBUG."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="plaid_relay_async")
    plaid.fail(
        Fault(secondary_client_id="p3", status=400, body={"error_message": f"no {REPORT} of {SECRET}"}),
        Fault(secondary_client_id="p4", close=True, when="after"),
    )
    out = tmp_path / "out"
    result = run("bulk", partners(30), "--report-token", REPORT, "--output", out)
    rejected = run("create", "--report-token", REPORT, "--partner", "p3", "--output", tmp_path / "other")
    printed = result.out + result.err + rejected.out + rejected.err + caplog.text
    for secret in (SECRET, REPORT, *(entry["relay_token"] for entry in plaid.ledger)):
        assert secret not in printed
    assert SECRET not in out.read_text()
    assert REPORT not in out.read_text()


# demo and simulate


def test_demo(run, monkeypatch, tmp_path):
    """The demo has the scripted outcomes, ignores the environment, prints no token, and creates no file."""
    monkeypatch.setenv("PLAID_BASE_URL", "https://plaid.invalid")
    monkeypatch.setenv("PLAID_ENV", "nonsense")
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.status == 0
    rows = [line.split() for line in result.out.splitlines()[-6:]]
    assert rows[:4] == [["created", "390"], ["failed", "9"], ["unknown", "1"], ["not_attempted", "0"]]
    assert "credit-relay" not in result.out + result.err
    assert list(tmp_path.iterdir()) == []


def test_demo_interrupted(run, signal_when):
    """An interrupted demo reports that its outcomes differ from the script."""
    signal_when()
    result = run("demo")
    assert result.status == 1
    assert "differ from the script" in result.out


def test_simulate(run, signal_when):
    """The simulator prints its address and a ready report, and ends at a signal with status 0."""
    signal_when()
    result = run("simulate", "--report", "assets-sandbox-x", "--client", "a:b")
    assert result.status == 0
    address, report = result.out.splitlines()
    assert address.startswith("listening on http://127.0.0.1:")
    assert report == "report token: assets-sandbox-x"


def test_simulate_in_another_process(spawn, run, monkeypatch, partners):
    """A batch can use the printed address and report, with any credentials."""
    process = spawn("simulate")
    url = process.stdout.readline().split()[-1]
    token = process.stdout.readline().split()[-1]
    monkeypatch.setenv("PLAID_CLIENT_ID", "anybody")
    monkeypatch.setenv("PLAID_SECRET", "anything")
    monkeypatch.delenv("PLAID_ENV", raising=False)
    result = run("bulk", partners(50), "--report-token", token, "--base-url", url)
    assert (result.status, result.count("created")) == (0, 50)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.fixture
def receiver():
    """Return the URL of a receiver of webhooks, and the queue of those that it has received."""
    received = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((dict(self.headers), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/plaid", received
        server.shutdown()
        thread.join()


def test_simulate_sends_webhooks(spawn, receiver):
    """The simulator sends signed webhooks to a receiver on this machine."""
    url, received = receiver
    process = spawn("simulate")
    plaid = SimpleNamespace(url=process.stdout.readline().split()[-1])
    token = process.stdout.readline().split()[-1]
    create = {"report_tokens": [token], "secondary_client_id": "partner", "webhook": url}
    relay_token = json.loads(post(plaid, "/credit/relay/create", create))["relay_token"]
    post(plaid, "/credit/relay/get", {"relay_token": relay_token, "report_type": "asset"}, "partner")
    headers, body = received.get(timeout=60)
    assert "Plaid-Verification" in headers
    assert json.loads(body)["webhook_code"] == "REPORT_RETRIEVED"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
