"""The other commands, in this process, and what all of them have in common."""

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest
from simulator_http import post

from plaid_relay_async.cli import app, main
from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"
REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"


@pytest.fixture
def shared(plaid, run, monkeypatch):
    """A relay token, and the partner's place to use it from."""
    done = run("create", "--report-token", REPORT, "--partner", "ann")
    monkeypatch.setenv("PLAID_CLIENT_ID", "ann")
    return done.lines[0]["relay_token"]


@pytest.fixture
def later():
    """Do something to this process while the command runs."""
    timers = []

    def later(seconds, action, *args):
        timers.append(threading.Timer(seconds, action, args))
        timers[-1].start()

    yield later
    for timer in timers:
        timer.join()


# create


def test_create(plaid, run, tmp_path):
    """One outcome, as `bulk` writes it, on standard output or in a file of one's own."""
    done = run("create", "--report-token", REPORT, "--partner", "ann", "--webhook", "https://x.example/")
    assert (done.status, done.err) == (0, "")
    assert done.lines[0]["relay_token"] == plaid.ledger[0]["relay_token"]
    out = tmp_path / "out.csv"
    assert run("create", "--report-token", REPORT, "--partner", "bob", "--output", out).status == 0
    assert plaid.ledger[1]["relay_token"] in out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_create_refused(plaid, run):
    """Status 1, an outcome all the same, and the error's text on standard error."""
    done = run("create", "--report-token", "assets-sandbox-no", "--partner", "ann")
    assert (done.status, done.lines[0]["outcome"]) == (1, "failed")
    assert done.lines[0]["error_code"] == "INVALID_ASSET_REPORT_TOKEN"
    assert "INVALID_ASSET_REPORT_TOKEN" in done.err


def test_create_unknown(plaid, run):
    """Status 3, and advice."""
    plaid.fail(Fault(close=True, when="after"))
    done = run("create", "--report-token", REPORT, "--partner", "ann")
    assert (done.status, done.lines[0]["outcome"]) == (3, "unknown")
    assert "ask Plaid's support" in done.err


def test_create_does_not_wait_longer_than_its_time(plaid, run):
    """A pause that doesn't fit is an error at once."""
    plaid.fail(Fault(status=429, headers={"Retry-After": "60"}))
    done = run("create", "--report-token", REPORT, "--partner", "ann", "--timeout", "5")
    assert (done.status, done.lines[0]["error_code"]) == (1, "RATE_LIMIT")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--report-token", "a b", "--partner", "p"], "--report-token: holds white space"),
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
def test_create_used_wrongly(plaid, run, words, problem):
    """Status 2, the option is named, nothing is sent."""
    done = run("create", *words)
    assert done.status == 2
    assert problem in done.err
    assert not plaid.requests


def test_a_token_that_is_no_text(plaid, run, tmp_path):
    """Nor is it quoted."""
    file = tmp_path / "token"
    file.write_bytes(b"\xff")
    done = run("create", "--report-token", f"@{file}", "--partner", "p")
    assert (done.status, "isn't text" in done.err) == (2, True)


MARK = "\ufeff"


def test_a_byte_order_mark_before_a_token(plaid, run, tmp_path, stdin):
    """An editor of Windows puts one into a file: it isn't part of the token, from a file or from standard input."""
    file = tmp_path / "token"
    file.write_text(f"{MARK}{REPORT}\r\n", encoding="utf-8")
    assert run("create", "--report-token", f"@{file}", "--partner", "p").status == 0
    stdin(f"{MARK}{REPORT}\n")
    assert run("create", "--report-token", "-", "--partner", "q").status == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["p", "q"]


# get, pdf, refresh, remove


def spoil(plaid, token):
    """Have the simulator send a null where Plaid's specification doesn't allow it; return the response."""
    body = json.loads(post(plaid, "/credit/relay/get", {"relay_token": token, "report_type": "asset"}, "ann"))
    body["report"]["items"][0]["accounts"][0]["name"] = None
    text = json.dumps(body, indent=3) + " \n"
    plaid.fail(Fault(path="/credit/relay/get", status=200, body=text))
    return text


def test_get_prints_a_report_that_cannot_be_decoded(plaid, shared, run):
    """It belongs to the user: what Plaid sent, byte for byte; the error has the JSON path, and status 1."""
    text = spoil(plaid, shared)
    done = run("get", shared)
    assert (done.status, done.out) == (1, text)
    assert "expected a string at $.report.items[0].accounts[0].name" in done.err
    strict = run("get", shared, "--strict")
    assert (strict.status, strict.out, strict.err) == (1, "", done.err)


@pytest.mark.parametrize("body", ["<html>", "", "[]", '{"request_id": "q"}', '{"report": null}'])
def test_get_prints_nothing_that_is_no_report(plaid, shared, run, body):
    """A page of a proxy or an object without a report isn't one."""
    plaid.fail(Fault(path="/credit/relay/get", status=200, body=body))
    done = run("get", shared)
    assert (done.status, done.out) == (1, "")
    assert "ResponseDecodeError" in done.err


def test_get(shared, run):
    """The report, as JSON, with the numbers as they were sent."""
    done = run("get", shared)
    assert done.status == 0
    answer = json.loads(done.out, parse_float=Decimal)
    balances = answer["report"]["items"][0]["accounts"][0]["balances"]
    assert isinstance(balances["current"], Decimal | int)
    assert set(answer) >= {"report", "request_id"}


def test_pdf(shared, run, tmp_path, stdin):
    """A file of one's own, whole, and never over another; a token from standard input."""
    out = tmp_path / "report.pdf"
    stdin(f"{shared}\n")
    assert run("pdf", "-", "--output", out).status == 0
    assert out.read_bytes().startswith(b"%PDF-")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = run("pdf", shared, "--output", out)
    assert (again.status, "already exists" in again.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.pdf"]
    assert run("pdf", shared, "--output", "-").out.startswith("%PDF-")


def test_pdf_whose_place_is_taken_meanwhile(plaid, shared, run, tmp_path, later):
    """The other file stays as it is."""
    plaid.fail(Fault(latency=0.5))
    out = tmp_path / "report.pdf"
    later(0.2, out.write_text, "mine")
    assert run("pdf", shared, "--output", out).status == 2
    assert out.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_pdf_without_a_place(shared, run, tmp_path):
    """An output that can't be made is status 1, since the call was made."""
    done = run("pdf", shared, "--output", tmp_path / "no" / "x.pdf")
    assert (done.status, "can't be written: No such file" in done.err) == (1, True)


def test_refresh_and_remove(plaid, shared, run, monkeypatch):
    """Their fields, as JSON."""
    fresh = json.loads(run("refresh", shared).out)
    assert fresh["asset_report_id"] == plaid.refreshes[0][1]
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    gone = run("remove", shared)
    assert json.loads(gone.out)["removed"] is True
    assert json.loads(gone.out)["inferred"] is False
    again = run("remove", shared)
    assert (again.status, "INVALID_RELAY_TOKEN" in again.err) == (1, True)
    assert shared not in again.err


def test_a_token_that_plaid_did_not_remove(plaid, shared, run):
    """Plaid's word is printed, and the exit status says that it failed."""
    body = '{"removed": false, "request_id": "q", "new": 0.12345678901234567891}'
    plaid.fail(Fault(path="/credit/relay/remove", status=200, body=body))
    gone = run("remove", shared)
    told = json.loads(gone.out, parse_float=str)
    assert (gone.status, told["removed"], told["inferred"]) == (1, False, False)
    assert told["new"] == "0.12345678901234567891"


def test_refresh_unknown(plaid, shared, run):
    """Status 3."""
    plaid.fail(Fault(close=True, when="after"))
    assert run("refresh", shared).status == 3


def test_interrupted_calls(plaid, shared, run, signal_when, monkeypatch):
    """An interrupted read fails; the response of an interrupted refresh or removal is waited for, and printed."""
    plaid.fail(Fault(latency=1.0))
    signal_when(lambda: plaid.counts["/credit/relay/get"])
    assert run("get", shared).status == 1
    signal_when(lambda: plaid.counts["/credit/relay/refresh"])
    done = run("refresh", shared)
    assert (done.status, json.loads(done.out)["relay_token"]) == (0, plaid.ledger[-1]["relay_token"])
    assert done.err == ""
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    signal_when(lambda: plaid.counts["/credit/relay/remove"] == 1)
    done = run("remove", shared)
    assert (done.status, json.loads(done.out)["removed"]) == (0, True)
    signal_when(lambda: plaid.counts["/credit/relay/remove"] == 2)
    done = run("remove", shared)
    assert (done.status, "INVALID_RELAY_TOKEN" in done.err) == (1, True)


def test_an_interrupted_call_without_a_response(plaid, shared, run, signal_when):
    """Its outcome is unknown, and the command says what to do."""
    plaid.fail(Fault(latency=0.5, close=True))
    signal_when(lambda: plaid.counts["/credit/relay/refresh"])
    done = run("refresh", shared)
    assert (done.status, "outcome of the refresh is unknown" in done.err) == (3, True)


def test_no_such_relay_token(plaid, run):
    """A token that can't pass is wrong usage; it isn't quoted."""
    done = run("get", "credit relay")
    assert done.status == 2
    assert "relay_token holds white space" in done.err
    assert "credit relay" not in done.err


# What all have in common


def test_help_and_version(run):
    """Every command and option has its help."""
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
    ):
        assert name in overview
        assert run(name, "--help").status == 0


@pytest.mark.parametrize(
    "words",
    [
        ["nope-canary-token"],
        ["get", "a", "canary-token"],
        ["create", "--report-tokn", "canary-token", "--partner", "p"],
        ["create", "--report-tokn=canary-token", "--partner", "p"],
        ["bulk", "x", "--concurrency", "canary-token"],
    ],
)
def test_usage_errors_quote_no_value(run, words):
    """What was typed may be a token in the wrong place."""
    done = run(*words)
    assert done.status == 2
    assert "canary-token" not in done.out + done.err
    assert "plaid-relay --help" in done.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["bulk", "-", "--report-token", "-"], "can't be both"),
        (["bulk", "no-such-file", "--report-token", "a"], "no-such-file: No such file"),
        (["bulk", ".", "--report-token", "a"], "directory"),
        (["bulk", "x", "--concurrency", "0"], "--concurrency: must be an integer of at least 1"),
        (["bulk", "x", "--base-url", "http://plaid.example"], "ConfigurationError: base_url is plain http"),
        (["simulate", "--client", "no-colon"], "--client: must be of the form ID:SECRET"),
        (["simulate", "--client", ":x"], "--client: must be of the form ID:SECRET"),
        (["simulate", "--port", "99999"], "--port 99999"),
    ],
)
def test_used_wrongly(plaid, run, words, problem):
    """Status 2 and a sentence."""
    done = run(*words)
    assert (done.status, problem in done.err) == (2, True), done.err


def test_no_credentials(plaid, run, monkeypatch):
    """They are asked for by name."""
    monkeypatch.delenv("PLAID_SECRET")
    done = run("get", "token")
    assert (done.status, "PLAID_SECRET" in done.err) == (2, True)


def test_standard_output_is_closed(plaid, run, monkeypatch):
    """It is told before anything is sent."""
    with Path(os.devnull).open("w") as file:
        pass
    monkeypatch.setattr(sys, "stdout", file)
    done = run("create", "--report-token", REPORT, "--partner", "p")
    assert (done.status, "standard output isn't open" in done.err) == (2, True)
    assert not plaid.requests


def test_standard_input_is_closed(plaid, run, monkeypatch):
    """The same."""
    with Path(os.devnull).open() as file:
        pass
    monkeypatch.setattr(sys, "stdin", file)
    assert run("bulk", "-", "--report-token", REPORT).status == 2


@pytest.fixture
def broken():
    """A command with a bug, which holds a token."""

    @app.app.command
    def bug():
        raise LookupError("canary-token")

    yield
    app.app.__delitem__("bug")


def test_a_bug_of_ours(run, broken):
    """Status 70, with the places in the code and nothing of what they held."""
    done = run("bug")
    assert done.status == 70
    assert "LookupError" in done.err
    assert "in bug" in done.err
    assert "canary-token" not in done.err


def test_a_missing_extra():
    """It is named."""
    code = (
        "import sys; sys.modules['cyclopts'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'plaid_relay_async[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_another_kind():
    """Is no matter of extras."""
    code = "import sys; sys.modules['csv'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr


def test_outside_of_the_main_thread(plaid, tmp_path):
    """It runs, and hears no signals."""
    out = tmp_path / "out"
    statuses = []
    words = ["create", "--report-token", REPORT, "--partner", "ann", "--output", str(out)]
    thread = threading.Thread(target=lambda: statuses.append(main(words)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_canary(plaid, run, partners, tmp_path, caplog):
    """The secret and the tokens are in the output alone, also with every logger at DEBUG."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("plaid_relay_async").setLevel(logging.DEBUG)
    plaid.fail(
        Fault(secondary_client_id="p3", status=400, body={"error_message": f"no {REPORT} of {SECRET}"}),
        Fault(secondary_client_id="p4", close=True, when="after"),
    )
    out = tmp_path / "out"
    done = run("bulk", partners(30), "--report-token", REPORT, "--output", out)
    refused = run("create", "--report-token", REPORT, "--partner", "p3", "--output", tmp_path / "other")
    shown = done.out + done.err + refused.out + refused.err + caplog.text
    for secret in (SECRET, REPORT, *(entry["relay_token"] for entry in plaid.ledger)):
        assert secret not in shown
    assert SECRET not in out.read_text()
    assert REPORT not in out.read_text()


# demo and simulate


def test_demo(run, monkeypatch, tmp_path):
    """It goes as scripted, needs nothing, heeds no variable, shows no token, leaves no file, ends with the table."""
    monkeypatch.setenv("PLAID_BASE_URL", "https://plaid.invalid")
    monkeypatch.setenv("PLAID_ENV", "nonsense")
    monkeypatch.chdir(tmp_path)
    done = run("demo")
    assert done.status == 0
    rows = [line.split() for line in done.out.splitlines()[-6:]]
    assert rows[:4] == [["created", "390"], ["failed", "9"], ["unknown", "1"], ["not_attempted", "0"]]
    assert "credit-relay" not in done.out + done.err
    assert list(tmp_path.iterdir()) == []


def test_demo_interrupted(run, signal_when):
    """A demo that is interrupted did not go as scripted."""
    signal_when()
    done = run("demo")
    assert done.status == 1
    assert "differ from the script" in done.out


def test_simulate(run, signal_when):
    """The simulator prints its address and a ready report, and ends at a signal with status 0."""
    signal_when()
    done = run("simulate", "--report", "assets-sandbox-x", "--client", "a:b")
    assert done.status == 0
    address, report = done.out.splitlines()
    assert address.startswith("listening on http://127.0.0.1:")
    assert report == "report token: assets-sandbox-x"


def test_simulate_in_another_process(spawn, run, monkeypatch, partners):
    """The address and the report that it prints serve a batch; any credentials will do."""
    process = spawn("simulate")
    url = process.stdout.readline().split()[-1]
    token = process.stdout.readline().split()[-1]
    monkeypatch.setenv("PLAID_CLIENT_ID", "anybody")
    monkeypatch.setenv("PLAID_SECRET", "anything")
    monkeypatch.delenv("PLAID_ENV", raising=False)
    done = run("bulk", partners(50), "--report-token", token, "--base-url", url)
    assert (done.status, done.count("created")) == (0, 50)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
