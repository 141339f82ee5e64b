"""What is printed on a terminal: no control characters, and no misplaced tokens."""

import io
import json
import logging
import os
import pty
import sys
import tty
import uuid

import pytest
from rich.console import Console
from rich.progress_bar import ProgressBar

from plaid_relay_async.cli.logs import LogHandler, print_message
from plaid_relay_async.cli.messages import StderrWriter, sanitize
from plaid_relay_async.cli.output import Output, write_all
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.errors import NotSentError
from plaid_relay_async.redaction import GATEWAY_KEY_PREFIX
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"

HOSTILE = {
    "escape sequence": ("\x1b[2J", r"\x1b[2J"),
    "title": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "hyperlink": ("\x1b]8;;https://evil.example\x1b\\x", r"\x1b]8;;https://evil.example\x1b\x"),
    "C1 control": ("\x9b2J", r"\x9b2J"),
    "carriage return": ("real\rfake", r"real\rfake"),
    "line break": ("x\nplaid-relay: reloaded", r"x\nplaid-relay: reloaded"),
    "line separator": ("x\u2028y\x85z", r"x\u2028y\x85z"),
    "backspace and delete": ("a\b\x7f", r"a\x08\x7f"),
    "bidirectional override": ("txt\u202egpj", r"txt\u202egpj"),
    "bidirectional isolate": ("a\u2066b\u2069", r"a\u2066b\u2069"),
    "zero width": ("p\u200b1\u200d\ufeff", r"p\u200b1\u200d\ufeff"),
    "soft hyphen": ("p\xad1", r"p\xad1"),
    "filler": ("p\u3164\u115f\u034f", r"p\u3164\u115f\u034f"),
    "variation selector": ("p\ufe0f\U000e0100", r"p\ufe0f\U000e0100"),
    "tag": ("p\U000e0041", r"p\U000e0041"),
    "space that isn't one": ("p\xa0\u2007\u2800", r"p\xa0\u2007\u2800"),
    "lone surrogate": ("\ud800x", r"\ud800x"),
    "private use": ("\ue000", r"\ue000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_invisible_characters_are_escaped(name):
    """Each invisible character is displayed as a backslash sequence."""
    text, escaped = HOSTILE[name]
    assert escape_unprintable(text) == sanitize(text) == escaped


@pytest.mark.parametrize(
    "text", ["plain ASCII ~", "żółw, Zürich, Ω, 日本語, 한국어, العربية", "e\u0301 👍", r"C:\dir", ""]
)
def test_visible_characters_are_unchanged(text):
    """Letters and symbols of all languages are displayed unchanged."""
    assert escape_unprintable(text) == sanitize(text) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_the_text_of_an_error(name):
    """The text of an error is one printable line, whatever a server has sent."""
    text, escaped = HOSTILE[name]
    assert escaped in str(NotSentError(text))
    assert str(NotSentError("x", errno=None)).isprintable()


@pytest.mark.parametrize(
    "text", ["[/x]", "[link=https://evil.example]x[/link]", "[red]x", ":smile:", "x:100:7: y"]
)
def test_rich_reads_no_markup(capfd, text):
    """Messages are not parsed as rich's markup or emoji names."""
    ProgressDisplay(None).print_message(text, "second line")
    assert capfd.readouterr().err == f"{text}\nsecond line\n"


@pytest.mark.parametrize(
    "code", ["[/x]", "[link=https://evil.example]", *(text for text, _ in HOSTILE.values())]
)
def test_an_error_code_in_a_table(plaid, run, partners, code):
    """Any error code is displayed in the table, and none causes a bug."""
    plaid.fail(Fault(status=400, body={"error_code": code, "error_type": "INVALID_INPUT"}))
    result = run("bulk", partners(1), "--report-token", REPORT)
    assert result.status == 1
    assert escape_unprintable(code) in result.err
    assert all(line.isprintable() for line in result.err.split("\n"))


def test_the_name_of_a_run_in_a_table(plaid, run, tmp_path):
    """`runs` displays names without markup and emoji, and escapes invisible characters."""
    args = ("--journal", tmp_path / "relay.db")
    for name in ("[/x]", ":smile:", "p\u3164"):
        assert run("create", "--report-token", REPORT, "--partner", "p", *args, "--run", name).status == 0
    assert {line.split()[0] for line in run("runs", *args).out.splitlines()[1:]} == {
        "[/x]",
        ":smile:",
        r"p\u3164",
    }


TOKENS = [
    f"access-sandbox-{uuid.UUID(int=7)}",
    f"assets-production-{uuid.UUID(int=7)}",
    "credit-relay-production-3TAU2CWVYBDVRHUCAAAI27ULU4",
    f"{GATEWAY_KEY_PREFIX}{'B-7_' * 10}",
    "0123456789abcdef0123456789abcd",
]


@pytest.mark.parametrize("token", TOKENS)
def test_no_token_on_standard_error(capfd, token):
    """Tokens, secrets and keys are hidden in all messages."""
    print_message(f"{token}: no such file", f"/tmp/{token}.csv", f"{token}\x1b[m")
    ProgressDisplay(None).print_message(f"no run {token!r}")
    assert capfd.readouterr().err.splitlines() == [
        "[hidden]: no such file",
        "/tmp/[hidden].csv",
        r"[hidden]\x1b[m",
        "no run '[hidden]'",
    ]


@pytest.mark.parametrize(
    "name",
    ["nightly-production-2026-11-29", "relay-sandbox-outcomes.jsonl", "5f3a9c2e1b7d4a0011223344", "n" * 30],
)
def test_names_are_not_hidden(name):
    """The names of files, runs and partners are shown."""
    assert sanitize(name) == name


def test_a_long_line_is_truncated():
    """A long line is truncated, and no part of a token at the cut is shown."""
    assert sanitize("x" * 3_000) == "x" * 2_000 + "[... 1,000 more characters]"
    assert "access" not in sanitize(" " * 1_990 + TOKENS[0])


def test_log_records_without_a_handler(capfd):
    """A log record without a handler is displayed like other messages."""
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "a\x1b[2J %s\nb", (TOKENS[0],), None)
    LogHandler().handle(record)
    assert capfd.readouterr().err == "a\\x1b[2J [hidden]\nb\n"


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "-"), ("utf-8", "━")])
def test_a_bar_in_the_encoding_of_the_terminal(monkeypatch, encoding, bar):
    """The progress bar uses characters that the terminal's encoding has."""
    written = io.BytesIO()
    monkeypatch.setattr(
        sys, "stderr", io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")
    )
    assert StderrWriter().encoding == encoding
    Console(file=StderrWriter(), force_terminal=True).print(ProgressBar(completed=50, width=10))
    sys.stderr.flush()
    assert bar in written.getvalue().decode()
    assert "\\u" not in written.getvalue().decode()


# -------------------------------------------------------------------------- tokens in the wrong place


@pytest.mark.parametrize("token", [REPORT, *TOKENS])
@pytest.mark.parametrize("args", [["bulk", "{}", "--report-token", "x"], ["fetch", "{}", "--dir", "{dir}"]])
def test_a_token_in_place_of_a_file(plaid, run, tmp_path, token, args):
    """A token in place of a file name is not repeated, and nothing is sent."""
    result = run(*(word.format(token, dir=tmp_path) for word in args))
    assert result.status == 2
    assert token not in result.out + result.err
    assert ("INPUT: is a token" in result.err) or ("[hidden]: No such file" in result.err)
    assert not plaid.requests


@pytest.mark.parametrize(
    "args",
    [
        ["{}"],
        ["--{}"],
        ["--x={}"],
        ["get", "a", "{}"],
        ["get", "--", "-{}", "a"],
        ["bulk", "x", "--concurrency", "{}'x\"y\\z"],
        ["bulk", "x", "--concurrency={}\n\x1b[m"],
        ["fetch", "x", "--dir", "y", "--format", "{}"],
        ["gateway", "{}"],
        ["gateway", "keys", "{}"],
        ["gateway", "keys", "add", "{}"],
        ["gateway", "--audit", "{}/x"],
        ["gateway", "--upstream", "https://u:{}@plaid.example"],
        ["simulate", "--client", "{}"],
        ["status", "x", "--journal", "{}"],
        ["runs", "--journal", "x", "--key-file", "{}"],
        ["pdf", "x", "--output", "{}/y"],
    ],
)
def test_a_token_in_place_of_any_argument(plaid, run, tmp_path, monkeypatch, args):
    """A token in place of any argument is not repeated, whichever part of the command rejects it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for token in TOKENS:
        result = run(*(word.format(token) for word in args))
        assert result.status in {1, 2}
        assert token not in result.out + result.err


@pytest.mark.parametrize(
    "variable", ["PLAID_ENV", "PLAID_BASE_URL", "PLAID_RELAY_KEY", "PLAID_RELAY_JOURNAL"]
)
@pytest.mark.parametrize("token", TOKENS)
def test_a_secret_in_the_wrong_variable(plaid, run, monkeypatch, tmp_path, variable, token):
    """The value of an environment variable is not repeated in an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", "relay.db")
    if variable == "PLAID_ENV":
        monkeypatch.delenv("PLAID_BASE_URL")
    monkeypatch.setenv(variable, token)
    result = run("create", "--report-token", REPORT, "--partner", "p", "--run", "r")
    assert token not in result.err


# ------------------------------------------------------------------------------ JSON on a terminal


@pytest.fixture
def terminal():
    """Open a pseudo-terminal; return its file and a function that reads what was written to it."""
    screen, terminal = pty.openpty()
    tty.setraw(terminal)
    with os.fdopen(screen, "rb", buffering=0) as reader, io.FileIO(terminal, "w") as file:
        yield file, lambda: reader.read(65_536)


@pytest.mark.parametrize("name", HOSTILE)
def test_json_on_a_terminal(terminal, name):
    """JSON on a terminal has the same value, with escapes in place of control characters."""
    text, _ = HOSTILE[name]
    value = {"name": [text, "Zürich 日本語"]}
    file, displayed_bytes = terminal
    raw = json.dumps(value, ensure_ascii="lone" in name, indent=2).encode()
    write_all(file, raw + b"\r\n")
    written = displayed_bytes()
    assert json.loads(written) == value
    assert all(line.isprintable() for line in written.decode().replace("\r\n", "\n").split("\n"))


def test_invalid_text_on_a_terminal(terminal):
    """Bytes that aren't valid UTF-8 are escaped."""
    file, displayed_bytes = terminal
    write_all(file, b"\x9b2J")
    assert displayed_bytes() == rb"\x9b2J"


def test_outcomes_on_a_terminal(terminal):
    """Outcomes are escaped in the same way."""
    file, displayed_bytes = terminal
    output = Output(file, as_csv=False)
    output.write({"outcome": "failed", "secondary_client_id": "p\x7f\x1b", "request_id": None})
    assert (
        displayed_bytes()
        == rb'{"outcome": "failed", "secondary_client_id": "p\u007f\u001b", "request_id": null}' + b"\n"
    )


def test_json_in_a_file_is_exact(tmp_path):
    """JSON in a file is not changed."""
    path = tmp_path / "x.json"
    with io.FileIO(path, "w") as file:
        write_all(file, b"\x9b\xff\r\x1b")
    assert path.read_bytes() == b"\x9b\xff\r\x1b"


def test_a_pdf_on_a_terminal(plaid, spawn):
    """A PDF for a terminal is rejected before anything is sent."""
    screen, terminal = pty.openpty()
    process = spawn("pdf", "credit-relay-x", "--output", "-", stdout=terminal)
    _, errors = process.communicate(timeout=60)
    os.close(terminal)
    os.close(screen)
    assert (process.returncode, "a PDF can't be shown on a terminal" in errors) == (2, True)
    assert not plaid.requests


def test_the_report_token_of_the_simulator(spawn):
    """The simulator escapes control characters in the report token that it prints."""
    process = spawn("simulate", "--report", "a\x1b[2Jb")
    assert process.stdout.readline().startswith("listening on ")
    assert process.stdout.readline() == r"report token: a\x1b[2Jb" + "\n"
