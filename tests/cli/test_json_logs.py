"""`--log-format json`: each line on standard error is an object of JSON, also under faults, and none has a secret."""

from __future__ import annotations

import http.client
import json
import logging
import os
import pty
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import frozen
from canaries import assert_no_canary
from processes import read_terminal, running_process, wait_until
from raw_http import CREATE

from plaid_relay_async import AuthenticationError, JournalError
from plaid_relay_async.cli import logs
from plaid_relay_async.cli.logs import JSONFormatter, LogHandler
from plaid_relay_async.simulator import Fault, sign_webhook

REPORT = "assets-sandbox-1111"
JSON = ("--log-format", "json")
BASE = {"time", "level", "logger", "message"}
FIELDS = {"event", "operation", "call", "batch", "run", "partner", "attempt", "attempts", "status"}
FIELDS |= {"error_code", "request_id", "certainty", "outcome", "duration", "wait", "succeeded", "failed"}
FIELDS |= {"unknown", "not_attempted"}
AUDIT = {"caller", "operation", "partner", "status", "error_code", "request_id", "seconds", "delivered"}
LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
# What a terminal acts on, what forges a line, and what must not appear.
CONTROLS = "\x1b[31m\u202e\r\n{}\x00"
HOSTILE = f"{CONTROLS}canary-hostile"


def read_records(text):
    """Check all lines of standard error, and return their objects."""
    assert_no_canary(text)
    records = [json.loads(line) for line in text.splitlines()]
    for line, record in zip(text.splitlines(), records, strict=True):
        assert line.isprintable()
        # `jq -r` prints a text without the escapes of JSON.
        texts = [value for value in record.values() if isinstance(value, str)]
        assert all(part.isprintable() for text in texts for part in text.split("\n"))
        assert record.keys() >= BASE
        allowed = AUDIT if record["logger"].endswith(".audit") else FIELDS | {"exception", "error"}
        assert record.keys() <= BASE | allowed
        assert record["level"] in LEVELS
        time = datetime.fromisoformat(record["time"])
        assert time.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - time) < timedelta(minutes=10)
    return records


def messages(records, logger="plaid_relay_async.cli"):
    """Return the messages of one logger."""
    return [record["message"] for record in records if record["logger"] == logger]


# -------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("verbose", [False, True])
def test_a_batch_under_faults(start, spawn, partners, tmp_path, verbose):
    """Attempts, retries, an unknown outcome and the totals are records; `--verbose` adds the level DEBUG."""
    plaid = start()
    plaid.fail(
        Fault(secondary_client_id="p0", status=429, times=1, headers={"Retry-After": "0"}),
        Fault(secondary_client_id="p1", close=True, when="after"),
        Fault(
            secondary_client_id="p2",
            status=400,
            body={"error_code": CONTROLS, "error_type": "INVALID_INPUT"},
        ),
        Fault(secondary_client_id="p3", status=500, body=HOSTILE),
        Fault(secondary_client_id="p4", truncate=40, when="after"),
    )
    args = ("bulk", partners(8), "--report-token", REPORT, "--output", tmp_path / "out.jsonl")
    process = spawn(*args, *["--verbose"] * verbose, *JSON)
    _, err = process.communicate()
    assert process.returncode == 3
    records = read_records(err)
    events = [record["event"] for record in records if "event" in record]
    expected = {"batch_start": 1, "attempt": 9, "retry": 1, "call_end": 8, "batch_end": 1} if verbose else {}
    assert {event: events.count(event) for event in events} == expected
    assert {record["level"] for record in records} == ({"DEBUG", "INFO", "WARNING"} if verbose else {"INFO"})
    (totals,) = [text for text in messages(records) if text.startswith("created: ")]
    assert totals.startswith("created: 4, failed: 1, unknown: 3, not_attempted: 0, ")


def test_the_fields_of_a_call(plaid, run):
    """A record has the fields of its event, and the command leaves the log of the program as it was."""
    plaid.fail(Fault(status=400, body={"error_type": "INVALID_INPUT", "error_code": "X \x7f\u202e"}))
    result = run("create", "--report-token", REPORT, "--partner", "ann", "--verbose", *JSON)
    start, attempt, end, batch_end = [each for each in read_records(result.err) if "event" in each]
    assert start["event"] == "batch_start"
    assert (attempt["logger"], attempt["level"]) == ("plaid_relay_async.calls", "DEBUG")
    assert (attempt["partner"], attempt["attempt"], attempt["status"]) == ("ann", 1, 400)
    assert attempt["call"] == end["call"] == f"{start['batch']}-1"
    assert attempt["time"] <= end["time"]
    assert end["outcome"] == "failed"
    assert batch_end["failed"] == 1
    assert not logs.writes_json()


def test_an_unknown_outcome_is_no_record(plaid, run, caplog):
    """Without `--verbose`, the output has the unknown outcome, and no record of the call is printed."""
    plaid.fail(Fault(close=True, when="after"))
    result = run("create", "--report-token", REPORT, "--partner", "ann", *JSON)
    assert result.status == 3
    assert "call_end" in caplog.text
    (record,) = read_records(result.err)
    assert record["message"].startswith("the request was sent, and ")


def test_an_interrupted_batch(start, spawn, partners, tmp_path):
    """What a signal causes is a record as well."""
    plaid = start(latency=0.5)
    args = ("bulk", partners(50), "--report-token", REPORT, "--output", tmp_path / "out", "--concurrency", 1)
    process = spawn(*args, *JSON)
    wait_until(lambda: plaid.ledger)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 1
    assert any(text.startswith("stopping: ") for text in messages(read_records(err)))


def test_an_interrupted_call(start, spawn):
    """A call that a signal ends before its response prints only that."""
    plaid = start()
    plaid.fail(Fault(stall=60))
    process = spawn("get", "credit-relay-sandbox-1", *JSON)
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert messages(read_records(err)) == ["plaid-relay: interrupted"]


def test_progress_on_a_terminal(start, partners, tmp_path, monkeypatch):
    """There is no bar among lines of JSON, and no control sequence."""
    start()
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = pty.openpty()
    args = ("bulk", partners(20), "--report-token", REPORT, "--output", tmp_path / "out", "--verbose", *JSON)
    with running_process([*COMMAND, *map(str, args)], stderr=terminal) as process:
        os.close(terminal)
        shown = read_terminal(screen)
        assert process.wait() == 0
    records = read_records(shown.decode().replace("\r\n", "\n"))
    assert sum(record.get("event") == "attempt" for record in records) == 20


def test_errors_of_usage(plaid, run, monkeypatch):
    """An error that is found after the options were read is a record, and one in the options themselves is text."""
    monkeypatch.delenv("PLAID_SECRET")
    result = run("get", "credit-relay-sandbox-1", *JSON)
    (record,) = read_records(result.err)
    assert (result.status, record["level"]) == (2, "ERROR")
    assert record["message"].startswith("plaid-relay: no credentials: set PLAID_SECRET")
    result = run("get", "--log-format", "yaml")
    assert (result.status, result.err.startswith("plaid-relay: ")) == (2, True)


# ---------------------------------------------------------------------------------------------- the gateway


@frozen
class RunningGateway:
    """A gateway with a key, in another process."""

    process: Any
    url: str
    key: str

    def connect(self):
        """Return a connection to the gateway."""
        return socket.create_connection(("127.0.0.1", urlsplit(self.url).port), timeout=60)

    def is_closed(self):
        """Return whether the gateway accepts no more connections."""
        try:
            self.connect().close()
        except ConnectionError:
            return True
        return False

    def send(self, path, body, *lines):
        """Send a request over a new connection, and return the connection."""
        head = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *lines)
        connection = self.connect()
        connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode())
        return connection

    def request(self, path, body, *lines):
        """Send a request, and return the status of the response."""
        with self.send(path, body, *lines) as connection:
            return int(connection.recv(65536).split()[1])

    def send_creation(self, partner):
        """Send a creation over a new connection, and return the connection."""
        body = json.dumps({"report_tokens": [REPORT], "secondary_client_id": partner})
        return self.send(CREATE, body, f"Authorization: Bearer {self.key}")

    def create(self, partner):
        """Create a relay token, and return the status."""
        with self.send_creation(partner) as connection:
            return int(connection.recv(65536).split()[1])

    def read_until(self, text):
        """Return the lines of standard error until one contains a text."""
        lines = [self.process.stderr.readline()]
        while text not in lines[-1]:
            lines.append(self.process.stderr.readline())
        return "".join(lines)


@pytest.fixture
def plaid_gateway(start, run, spawn, tmp_path, monkeypatch):
    """Return a simulator, and a function that starts a gateway to it."""
    plaid = start()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = run("gateway", "keys", "add", "ann").out.strip()

    def start_gateway(*args):
        process = spawn("gateway", "--upstream", plaid.url, *args, *JSON)
        return RunningGateway(process, process.stdout.readline().split()[-1], key)

    return plaid, start_gateway


def test_a_gateway_under_faults(plaid_gateway, tmp_path):
    """The audit log, warnings, reloads and the end of a drain are records of one form."""
    plaid, start_gateway = plaid_gateway
    plaid.fail(
        Fault(secondary_client_id="lost", close=True, when="after"),
        Fault(secondary_client_id="late", stall=60),
        Fault(secondary_client_id="bad", status=400, body={"error_message": HOSTILE, "request_id": CONTROLS}),
    )
    gateway = start_gateway()
    statuses = [gateway.create(partner) for partner in ("ann", "lost", "bad", "canary-x-sandbox-1")]
    statuses.append(gateway.request(CREATE, "{}", "Authorization: Bearer canary-key"))
    statuses.append(gateway.request("/canary-path", "{}", "X-Canary: canary-header"))
    assert statuses == [200, 502, 400, 200, 401, 404]
    with gateway.connect() as connection:
        connection.sendall(b"canary-nonsense\r\n\r\n")
        assert b" 400 Bad Request" in connection.recv(1024)
    with gateway.send_creation("late"):
        wait_until(lambda: plaid.requests[-1].secondary_client_id == "late")
        gateway.process.send_signal(signal.SIGHUP)
        text = gateway.read_until("plaid-relay: reloaded")
        (tmp_path / "plaid_relay_async" / "gateway-keys.json").chmod(0o644)
        gateway.process.send_signal(signal.SIGHUP)
        text += gateway.read_until("error: not reloaded")
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(gateway.is_closed)
        gateway.process.send_signal(signal.SIGTERM)
        text += gateway.process.communicate()[1]
    assert gateway.process.returncode == 1
    assert gateway.key not in text
    records = read_records(text)
    audit = [record for record in records if record["logger"].endswith(".audit")]
    assert [(record["status"], record["error_code"]) for record in audit] == [
        (200, None),
        (502, "UPSTREAM_LOST"),
        (400, None),
        (200, None),
        (401, "UNAUTHORIZED_KEY"),
        (404, "NOT_FOUND"),
        (None, None),
    ]
    assert all(record.keys() == BASE | AUDIT for record in audit)
    assert {(record["level"], record["message"]) for record in audit} == {("INFO", "a call has ended")}
    assert [record["level"] for record in records if record["logger"].endswith(".forward")] == ["WARNING"]
    assert [(each["level"], each["message"][:26]) for each in records if each["logger"].endswith(".cli")] == [
        ("INFO", "plaid-relay: reloaded"),
        ("ERROR", "plaid-relay: error: not re"),
        ("WARNING", "plaid-relay: calls in flig"),
    ]


def test_an_audit_file_keeps_its_form(plaid_gateway, tmp_path):
    """`--log-format` doesn't apply to the file of `--audit`."""
    _, start_gateway = plaid_gateway
    gateway = start_gateway("--audit", tmp_path / "audit.jsonl")
    assert gateway.create("ann") == 200
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.communicate()[1] == ""
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"time"} | AUDIT


# --------------------------------------------------------------------------------------- webhooks, and the rest


def test_webhooks_listen(plaid, spawn):
    """The address, refusals, and webhooks that can't be verified now are records."""
    plaid.fail(Fault(path="/webhook_verification_key/get", status=500, body=HOSTILE))
    process = spawn("webhooks", "listen", *JSON)
    first = process.stderr.readline()
    port = int(json.loads(first)["message"].rpartition(":")[2])
    body = json.dumps({"webhook_type": "ASSETS", "webhook_code": "ERROR", "asset_report_id": "canary-report"})
    for content, headers in ((b"canary-{}", {}), (b"{}", {}), (body.encode(), sign_webhook(body.encode()))):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/canary-path", content, headers)
        assert 400 <= connection.getresponse().status < 600
        connection.close()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    listening, *refusals = read_records(first + err)
    assert listening["logger"] == "plaid_relay_async.cli"
    assert len(refusals) == 3
    assert {record["logger"] for record in refusals} == {"plaid_relay_async.webhooks"}
    assert all(record["message"].startswith("a webhook wasn't stored: ") for record in refusals)


def format_json(message="x", *args, error=None):
    """Return the object of a record."""
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, message, args, None)
    record.exc_info = None if error is None else (type(error), error, None)
    line = JSONFormatter().format(record)
    assert line.isprintable()
    return json.loads(line)


def test_exceptions():
    """Of an exception, a record has the class and, if it is one of this package's own, its text."""
    assert format_json(error=ValueError("canary-x")).get("exception") == "ValueError"
    assert "error" not in format_json(error=ValueError("canary-x"))
    own = format_json(error=JournalError("the disk is full"))
    assert (own["exception"], own["error"].startswith("the disk is full")) == ("JournalError", True)
    assert "error" not in format_json(error=AuthenticationError("a text of a server"))
    assert format_json().keys() == BASE


def test_a_message_is_escaped_and_redacted():
    """A message stays on its line, and has no token."""
    record = format_json("a\x1b[2J\nassets-sandbox-%s", "0" * 8 + "-0000-1")
    assert record["message"] == "a\\x1b[2J\n[hidden]"


def test_only_fields_of_the_list():
    """An attribute of another package's record isn't shown, even if it has the prefix of the fields."""
    record = logging.LogRecord("x", logging.ERROR, "", 0, "x", (), None)
    record.plaid_secret, record.plaid_status = "canary-x", 200
    assert json.loads(JSONFormatter().format(record)).keys() == BASE | {"status"}


@pytest.mark.parametrize("formatter", [JSONFormatter(), logs.TextFormatter()])
def test_a_record_that_cannot_be_formatted(formatter):
    """Its place is kept by a record that has neither its message nor its arguments, and the program goes on."""
    written = []
    handler = LogHandler()
    handler.setFormatter(formatter)
    with LogHandler.writing_with(written.append):
        handler.handle(logging.LogRecord("x", logging.ERROR, "", 0, "%d", ("canary-x",), None))
    (line,) = written
    assert "a log record can't be formatted: TypeError" in line
    assert "canary" not in line
