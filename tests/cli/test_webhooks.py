"""The commands of `plaid-relay webhooks`, with real receivers, a simulator that sends webhooks, and files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attrs import frozen
from cryptography.fernet import Fernet
from processes import unread_bytes, wait_until
from simulator_http import post as call

from plaid_relay_async.cli.webhook_output import to_line
from plaid_relay_async.cli.webhook_samples import read_body
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.models.webhooks import WEBHOOK_RECORDS, UnknownWebhook
from plaid_relay_async.simulator import Fault, sign_webhook
from plaid_relay_async.webhooks import IncomingWebhook, parse

REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"
PAIR = "0123456789abcdef0123456789abcdef"
PAGE = (Path(__file__).parent.parent.parent / "docs/command.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """The key of stores and journals."""
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("PLAID_RELAY_KEY", key)
    return key


def event(number=1, **fields):
    """Return the body of a webhook, as Plaid formats it."""
    payload = {
        "webhook_type": "ASSETS",
        "webhook_code": "PRODUCT_READY",
        "asset_report_id": f"canary-report-{number}",
        **fields,
    }
    return json.dumps(payload, indent=2).encode()


def post(url, body, headers=None, *, method="POST"):
    """Send a webhook to a receiver, and return the status of the response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.request(method, parts.path, body, sign_webhook(body) if headers is None else headers)
        return connection.getresponse().status
    finally:
        connection.close()


@frozen
class Listening:
    """A running `webhooks listen`."""

    process: subprocess.Popen
    url: str

    def read(self, count):
        """Return the next lines."""
        return [json.loads(self.process.stdout.readline()) for _ in range(count)]

    def stop(self, number=signal.SIGTERM):
        """Send a signal; return the exit status, the remaining lines, and standard error."""
        self.process.send_signal(number)
        out, errors = self.process.communicate()
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], errors


@pytest.fixture
def listen(plaid, spawn):
    """Start `webhooks listen`, and wait until it listens."""

    def listen(*args, **settings):
        process = spawn("webhooks", "listen", *args, **settings)
        lines = []
        while not lines or not lines[-1].startswith("listening on "):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        return Listening(process, lines[-1].split()[-1])

    return listen


def report_ids(lines):
    return [line["payload"]["asset_report_id"] for line in lines]


# ------------------------------------------------------------------------------------------------- listen


def test_each_webhook_is_a_line(listen):
    """A webhook is printed once, with its pair and with the payload exactly as it was sent."""
    receiver = listen()
    body = b'{\r\n  "webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "n": [1.10, 1E400, 12345678901234567890],'
    body += ' "asset_report_id": "a \\" \\u0000 é"}'.encode()
    assert post(f"{receiver.url}/relay/{PAIR}", body) == 200
    assert post(f"{receiver.url}/relay/{PAIR}", body) == 200  # a duplicate
    assert post(receiver.url, event()) == 200
    text = receiver.process.stdout.readline()
    assert text.endswith(
        '"payload": {"webhook_type":"ASSETS","webhook_code":"PRODUCT_READY",'
        '"n":[1.10,1E400,12345678901234567890],"asset_report_id":"a \\" \\u0000 é"}}\n'
    )
    first, (second,) = json.loads(text), receiver.read(1)
    assert [(line["webhook_type"], line["webhook_code"]) for line in (first, second)] == [
        ("ASSETS", "PRODUCT_READY")
    ] * 2
    assert (first["pair"], second["pair"], second["stale"]) == (PAIR, None, False)
    assert len({first["id"], second["id"]}) == 2
    assert receiver.stop() == (0, [], "")


def test_the_fields_of_a_line(listen, run, start, tmp_path):
    """docs/command.md lists the fields of a line, in their order; those of the journal only with --journal."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.partition("### Receive webhooks")[2], re.MULTILINE)
    documented = rows[: rows.index("payload") + 1]
    created = run(
        "create", "--report-token", REPORT, "--partner", "ann", "--journal", tmp_path / "j", "--run", "r"
    )
    assert created.status == 0
    receiver = listen("--journal", tmp_path / "j", "--store", tmp_path / "j")  # in one database
    post(receiver.url, event())
    (line,) = receiver.read(1)
    assert [*line] == documented
    receiver.stop()
    receiver = listen()
    post(receiver.url, event())
    (line,) = receiver.read(1)
    assert [*line] == [name for name in documented if name not in {"run", "secondary_client_id"}]


def test_payloads_that_are_not_json():
    """A body that isn't JSON is printed as text; a deleted one is null."""
    for body in (b"a\xffb", b"NaN", b"[" * 100_000, b"\xef\xbb\xbf{}", b'{"a": "\n"}'):
        line = json.loads(to_line({"id": "1"}, body))
        assert line["payload"] is None
        assert line["body"].encode(errors="surrogateescape") == body
    assert json.loads(to_line({"id": 1}, None)) == {"id": 1, "payload": None}
    assert to_line({"id": 1}, b' [1.0 , " "]\n') == b'{"id": 1, "payload": [1.0," "]}\n'


def test_refusals(listen, plaid):
    """The reason of a refusal is on standard error, with nothing of the request; nothing is printed."""
    receiver = listen()
    json_type = {"Content-Type": "application/json"}
    body = event(error="canary-payload")
    assert post(f"{receiver.url}/canary-path", body, json_type | {"canary-header": "x"}) == 400
    assert post(receiver.url, body, json_type | {"Plaid-Verification": "canary.token.x"}) == 400
    assert post(receiver.url, body, sign_webhook(body + b" ")) == 400
    assert post(receiver.url, body, sign_webhook(body, at=time.time() - 400)) == 400
    assert post(receiver.url, body, {"Content-Type": "text/canary"}) == 415
    assert post(receiver.url, b"", json_type, method="PUT") == 405
    plaid.fail(Fault(path="/webhook_verification_key/get", status=400))
    assert post(receiver.url, body, sign_webhook(body, key_id="11111111-2222-4333-8444-555555555555")) == 503
    with socket.create_connection((urlsplit(receiver.url).hostname, urlsplit(receiver.url).port)) as peer:
        peer.sendall(b"canary \x01\r\n\r\n")
        assert peer.recv(65536).startswith(b"HTTP/1.")
    status, lines, errors = receiver.stop()
    assert (status, lines) == (0, [])
    assert "canary" not in errors
    assert SECRET not in errors
    reasons = re.findall(r"^a webhook wasn't stored: (\w+)", errors, re.MULTILINE)
    assert reasons == [
        "no_header",
        "malformed_token",
        "other_body",
        "stale",
        "wrong_content_type",
        "wrong_method",
        "key_lookup_failed",
    ]


def test_a_store(listen, tmp_path):
    """A stored webhook isn't printed again, and a stale one is accepted."""
    store = tmp_path / "store.db"
    first = listen("--store", store, "--retention", "1")
    assert post(first.url, event(1)) == 200
    body = event(2)
    assert post(first.url, body, sign_webhook(body, at=time.time() - 400)) == 200
    lines = first.read(2)
    assert [line["stale"] for line in lines] == [False, True]
    assert first.stop() == (0, [], "")
    second = listen("--store", store)
    assert post(second.url, body, sign_webhook(body, at=time.time() - 400)) == 200
    assert post(second.url, event(3)) == 200
    assert report_ids(second.read(1)) == ["canary-report-3"]
    assert second.stop() == (0, [], "")
    assert b"canary" not in store.read_bytes()


LONG = "x" * 30_000  # so that a pipe is full after a few webhooks


def test_a_reader_that_pauses(listen):
    """Webhooks are accepted while standard output isn't read, and printed when it is."""
    receiver = listen()
    for number in range(6):
        assert post(receiver.url, event(number, text=LONG)) == 200
    assert unread_bytes(receiver.process.stdout) <= 65536
    assert report_ids(receiver.read(6)) == [f"canary-report-{number}" for number in range(6)]
    assert receiver.stop() == (0, [], "")


@pytest.mark.timeout(300)
def test_a_kill(listen, tmp_path):
    """What a killed command hasn't printed is printed by the next one; each webhook at least once."""
    store = tmp_path / "store.db"
    first = listen("--store", store)
    for number in range(6):
        assert post(first.url, event(number, text=LONG)) == 200
    first.process.kill()
    out, _ = first.process.communicate()
    printed = {json.loads(line)["id"] for line in out.splitlines() if line.endswith("}")}
    assert len(printed) < 6
    second = listen("--store", store)
    while len(printed) < 6:
        printed.add(second.read(1)[0]["id"])
    assert second.stop()[0] == 0


def test_a_broken_pipe(listen, tmp_path):
    """If the reader has exited, the command ends, and the next one prints what wasn't printed."""
    store = tmp_path / "store.db"
    first = listen("--store", store)
    first.process.stdout.close()
    assert post(first.url, event(1)) == 200
    assert first.process.wait() == 1
    assert "plaid-relay: the output can't be written: Broken pipe" in first.process.stderr.read()
    second = listen("--store", store)
    assert report_ids(second.read(1)) == ["canary-report-1"]
    assert second.stop() == (0, [], "")


def limit_size_of_files():
    """Limit the size of the files that this process writes, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


LIMIT = 2**20


def test_a_full_disk(listen, tmp_path):
    """A file that can't be written ends the command, with nothing of the webhook in it."""
    store, out = tmp_path / "store.db", tmp_path / "out"
    out.write_bytes(b"\n" * (LIMIT - 100))
    with out.open("a") as file:
        first = listen("--store", store, stdout=file, preexec_fn=limit_size_of_files)
    assert post(first.url, event(1)) == 200
    assert first.process.wait() == 1
    errors = first.process.stderr.read()
    assert "plaid-relay: the output can't be written: File too large" in errors
    assert "canary" not in errors
    assert out.stat().st_size == LIMIT - 100
    out.write_bytes(b"")
    with out.open("a") as file:
        second = listen("--store", store, stdout=file)
    wait_until(lambda: out.read_bytes().endswith(b"\n"))
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait() == 0
    assert report_ids(json.loads(line) for line in out.read_text().splitlines()) == ["canary-report-1"]


def test_a_line_that_is_incomplete(listen, tmp_path):
    """A line that a killed command left incomplete in a file isn't continued; a complete one is followed."""
    out = tmp_path / "out"
    for content in (b'{"id": "1', b'{"id": "1"}\n', b""):
        out.write_bytes(content)
        with out.open("a") as file:
            receiver = listen(stdout=file)
        assert post(receiver.url, event()) == 200
        wait_until(lambda: b"canary-report-1" in out.read_bytes())
        receiver.process.send_signal(signal.SIGTERM)
        assert receiver.process.wait() == 0
        lines = out.read_bytes().splitlines()
        assert lines[:-1] == content.splitlines()
        assert report_ids([json.loads(lines[-1])]) == ["canary-report-1"]


def test_webhooks_that_are_lost_without_a_store(listen):
    """Without a store, the command says how many webhooks it has received and not printed."""
    receiver = listen()
    for number in range(6):
        assert post(receiver.url, event(number, text=LONG)) == 200
    receiver.process.send_signal(signal.SIGTERM)
    assert receiver.process.wait() == 1
    match = re.search(r"received and not printed: (\d); use --store", receiver.process.stderr.read())
    assert 1 < int(match[1]) < 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(listen, number):
    """Each signal ends the command with status 0."""
    assert listen().stop(number) == (0, [], "")


def test_a_port_that_is_taken(plaid, run):
    """An address that isn't available is reported with the reason of the operating system."""
    result = run("webhooks", "listen", "--port", urlsplit(plaid.url).port)
    assert (result.status, "can't listen: " in result.err, "in use" in result.err) == (2, True, True)
    assert run("webhooks", "listen", "--listen", "127.0.0.256", "--plain-http").status == 2


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--listen", "0.0.0.0"], "--listen: webhooks would be received over plain http on 0.0.0.0"),
        (["--retention", "1"], "--store: is required by --retention"),
        (["--store", "s", "--retention", "-1"], "--retention: must be a number of days, 0 or more"),
        (["--store", "s", "--retention", "nan"], "--retention: must be a number of days, 0 or more"),
        (["--key-file", "k"], "--key-file: requires --store or --journal"),
        (["--journal", "no-such-file"], "--journal: the file doesn't exist"),
        (["--store", "@no-such-file"], "--store: can't be read: No such file"),
        (["--base-url", "http://plaid.example"], "base_url is plain http"),
    ],
)
def test_invalid_options_of_listen(plaid, run, tmp_path, monkeypatch, args, problem):
    """An invalid option is named, with status 2, and nothing is created."""
    monkeypatch.chdir(tmp_path)
    result = run("webhooks", "listen", *args)
    assert (result.status, problem in result.err) == (2, True), result.err
    assert not plaid.requests
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------------------------------ pairs, recover


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def share(plaid, run, tmp_path):
    """Create a relay token with a webhook, let its partner read the report, and wait for the delivery."""

    def share(partner, url):
        journal = ("--journal", tmp_path / "journal.db", "--run", "2026-11")
        args = ("--report-token", REPORT, "--partner", partner, "--webhook", f"{url}/{{pair}}", *journal)
        token = run("create", *args).lines[0]["relay_token"]
        call(plaid, "/credit/relay/get", {"relay_token": token, "report_type": "asset"}, partner)
        wait_until(lambda: plaid.sent_webhooks[-1]["attempt_count"] > 0)

    return share


def test_recovery(plaid, listen, run, share, tmp_path):
    """What was sent while no command listened is printed by the next one after `recover`, with its pair."""
    port = free_port()
    store = ("--store", tmp_path / "store.db")
    options = (*store, "--journal", tmp_path / "journal.db", "--port", port)
    url = f"http://127.0.0.1:{port}/relay"
    share("partner-0", "http://127.0.0.1:1/elsewhere")
    first = listen(*options)
    share("partner-1", url)
    lines = first.read(1)
    assert first.stop()[0] == 0
    share("partner-2", url)
    share("partner-3", url)
    result = run("webhooks", "recover", *store, "--url-prefix", url)
    assert (result.status, result.out, result.err) == (0, "", "read: 4\nstored: 2\n")
    again = run("webhooks", "recover", *store, "--url-prefix", url)
    assert again.err == "read: 0\nstored: 0\n"
    second = listen(*options)
    lines += second.read(2)
    share("partner-4", url)
    lines += second.read(1)
    assert second.stop() == (0, [], "")
    partners = [line["secondary_client_id"] for line in lines]
    assert partners == ["partner-1", "partner-2", "partner-3", "partner-4"]
    assert {line["run"] for line in lines} == {"2026-11"}
    assert len({line["pair"] for line in lines}) == 4
    exported = run("export", "2026-11", "--journal", tmp_path / "journal.db").lines
    assert [bool(line["retrieved_at"]) for line in exported] == [False, True, True, True, True]


def rename_table(path, old, new):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_journal_that_fails(listen, share, tmp_path):
    """While the journal can't be written, webhooks are stored; they are printed when it can be."""
    journal = tmp_path / "journal.db"
    share("partner-1", "http://127.0.0.1:1/relay")
    receiver = listen("--store", tmp_path / "store.db", "--journal", journal)
    rename_table(journal, "relay_entries", "hidden")
    assert post(f"{receiver.url}/{PAIR}", event()) == 200
    text = receiver.process.stderr.readline() + receiver.process.stderr.readline()
    assert re.search(r"the handler of webhook \w+ failed, attempt 1 of .+\nthe journal ", text), text
    rename_table(journal, "hidden", "relay_entries")
    (line,) = receiver.read(1)
    assert (line["pair"], line["run"], line["secondary_client_id"]) == (PAIR, None, None)
    status, lines, errors = receiver.stop()
    assert (status, lines, "canary" in text + errors) == (0, [], False)


def test_recovery_while_it_listens(plaid, listen, run, tmp_path, share):
    """A running command prints what `recover` stores."""
    store = ("--store", tmp_path / "store.db")
    receiver = listen(*store)
    share("partner-1", "http://127.0.0.1:1/relay")
    assert run("webhooks", "recover", *store).err == "read: 1\nstored: 1\n"
    (line,) = receiver.read(1)
    assert line["webhook_code"] == "REPORT_RETRIEVED"
    assert receiver.stop() == (0, [], "")


def test_a_recovery_that_comes_too_late(plaid, run, tmp_path, share):
    """If the last recovery was more than 7 days ago, the exit status is 1."""
    store = ("--store", tmp_path / "store.db")
    share("partner-1", "http://127.0.0.1:1/relay")
    assert run("webhooks", "recover", *store).status == 0
    plaid.fail(Fault(path="/beta/webhook_events/list", status=400, times=1, body=EXPIRED))
    result = run("webhooks", "recover", *store)
    assert (result.status, "aren't recovered" in result.err) == (1, True)
    assert "stored: 0" in result.err


EXPIRED = {"error_type": "INVALID_REQUEST", "error_code": "WEBHOOK_EVENTS_CURSOR_EXPIRED"}


def test_a_failed_recovery(plaid, run, tmp_path):
    """An error of Plaid's is printed, with status 1; without a store, nothing is sent."""
    plaid.fail(Fault(path="/beta/webhook_events/list", status=400, body={"error_code": "INVALID_FIELD"}))
    result = run("webhooks", "recover", "--store", tmp_path / "store.db")
    assert (result.status, "INVALID_FIELD" in result.err) == (1, True)
    assert run("webhooks", "recover").status == 2


# --------------------------------------------------------------------------------------------------- list


def test_list(plaid, run, share):
    """The sent webhooks are printed as Plaid lists them."""
    assert (run("webhooks", "list").status, run("webhooks", "list").out) == (0, "")
    share("partner-1", "http://127.0.0.1:1/relay")
    result = run("webhooks", "list")
    assert (result.status, result.err) == (0, "")
    (line,) = result.lines
    (sent,) = plaid.sent_webhooks
    assert line["webhook_message_id"] == sent["webhook_message_id"]
    assert line["payload"] == sent["payload"]
    assert line["destination_url"].startswith("http://127.0.0.1:1/relay/")


@pytest.mark.parametrize(
    ("args", "count"),
    [
        (["--type", "CREDIT_RELAY"], 1),
        (["--type", "ITEM", "--type", "CREDIT_RELAY"], 1),
        (["--type", "ITEM"], 0),
        (["--code", "REPORT_RETRIEVED"], 1),
        (["--code", "ERROR"], 0),
        (["--status", "DELIVERED"], 0),
        (["--status", "PENDING"], 1),
    ],
)
def test_filters(run, share, args, count):
    """A webhook is listed if it matches one of the values of each filter."""
    share("partner-1", "http://127.0.0.1:1/relay")
    result = run("webhooks", "list", *args)
    assert (result.status, len(result.lines)) == (0, count)


def test_since(run, share):
    """Only webhooks from a time on are listed; a time without an offset is in UTC."""
    before = datetime.now(UTC)
    share("partner-1", "http://127.0.0.1:1/relay")
    after = datetime.now(UTC)
    local = before.astimezone(timezone(timedelta(hours=5))).isoformat()
    for since, count in (
        (before.isoformat(), 1),
        (before.replace(tzinfo=None).isoformat(), 1),
        (local, 1),
        (f"{before:%Y-%m-%d}", 1),
        (after.isoformat(), 0),
    ):
        result = run("webhooks", "list", "--since", since)
        assert (result.status, len(result.lines)) == (0, count), result.err


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--since", "yesterday"], "--since: must be a date or a time"),
        (["--type", "a b"], "--type: "),
        (["--code", ""], "--code: "),
        (["--status", "a b"], "--status: "),
    ],
)
def test_invalid_filters(plaid, run, args, problem):
    """An invalid filter is named, with status 2, and nothing is sent."""
    result = run("webhooks", "list", *args)
    assert (result.status, problem in result.err) == (2, True), result.err
    assert not plaid.requests


def test_a_time_that_is_too_long_ago(plaid, run):
    """Plaid's error for a time before its list is printed, with status 1."""
    result = run("webhooks", "list", "--since", "2020-01-01")
    assert (result.status, "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE" in result.err) == (1, True)


# --------------------------------------------------------------------------------------------------- send


def test_send(listen, run, stdin, tmp_path):
    """A sample, or a body from an argument, a file or standard input, is signed and sent as it is."""
    receiver = listen("--store", tmp_path / "store.db")
    file = tmp_path / "body.json"
    file.write_bytes(b'{"from": "file"} \n')
    stdin('{"from": "-"}')
    for args in (
        [],
        ["--sample", "CREDIT_RELAY/REPORT_RETRIEVED"],
        ["--body", '{"from": "argument"}'],
        ["--body", f"@{file}"],
        ["--body", "-", "--age", "400"],
    ):
        result = run("webhooks", "send", f"{receiver.url}/relay/{PAIR}", *args)
        assert (result.status, result.out, result.err) == (0, "status: 200\n", "")
    lines = receiver.read(5)
    assert [line["webhook_code"] for line in lines[:2]] == ["PRODUCT_READY", "REPORT_RETRIEVED"]
    assert [line["payload"]["from"] for line in lines[2:]] == ["argument", "file", "-"]
    assert [line["stale"] for line in lines] == [False, False, False, False, True]
    assert {line["pair"] for line in lines} == {PAIR}


def test_a_receiver_that_refuses(listen, run):
    """The exit status is 1 if the response has another status than 200."""
    receiver = listen()
    result = run("webhooks", "send", receiver.url, "--age", "400")
    assert (result.status, result.out) == (1, "status: 400\n")


def test_no_receiver(run):
    """The exit status is 1 if no receiver responds."""
    result = run("webhooks", "send", f"http://127.0.0.1:{free_port()}/")
    assert (result.status, result.out, "the webhook wasn't received: " in result.err) == (1, "", True)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["https://lender.example/relay"], "URL: is one of lender.example; it must be one of this machine"),
        (["http://192.0.2.1/"], "URL: is one of 192.0.2.1"),
        (["http://127.0.0.1@lender.example/"], "URL: is one of lender.example"),
        (["http://localhost.lender.example/"], "URL: is one of localhost.lender.example"),
        (["nowhere"], "URL: must be a URL such as"),
        (["http://127.0.0.1/", "--sample", "ASSETS"], "--sample: must be one of ASSETS/ERROR, "),
        (
            ["http://127.0.0.1/", "--sample", "ITEM/ERROR", "--body", "{}"],
            "--sample: can't be used with --body",
        ),
        (["http://127.0.0.1/", "--body", "@no-such-file"], "--body: can't be read: No such file"),
        (["http://127.0.0.1/", "--age", "nan"], "--age: must be a number of seconds"),
    ],
)
def test_invalid_arguments_of_send(run, args, problem):
    """A host other than this machine, a sample or a body that doesn't exist are wrong usage."""
    result = run("webhooks", "send", *args)
    assert (result.status, problem in result.err) == (2, True), result.err


def test_a_body_from_closed_standard_input(spawn):
    """A closed standard input is wrong usage."""
    command = [sys.executable, "-Im", "plaid_relay_async.cli", "webhooks", "send", "http://127.0.0.1/"]
    line = " ".join([*command, "--body", "-", "<&-"])
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (result.returncode, "--body: can't be read: it isn't open" in result.stderr) == (2, True)


def test_samples(run):
    """Each sample is as documented, and differs from the previous one."""
    result = run("webhooks", "send", "http://127.0.0.1/", "--sample", "none")
    names = result.err.partition("one of ")[2].split("\n")[0].split(", ")
    assert len(names) > 10
    for name in names:
        body = read_body(name, None)
        parsed = parse(body)
        key = tuple(name.split("/"))
        assert isinstance(parsed, WEBHOOK_RECORDS.get(key, UnknownWebhook))
        assert (parsed.webhook_type, parsed.webhook_code) == key
        assert read_body(name, None) != body


# ---------------------------------------------------------------------------------------------- the store


@pytest.fixture
def store(tmp_path):
    """A store with a pending webhook and two dead letters; return its path and the IDs."""
    path = tmp_path / "store.db"

    async def fill():
        async with SQLInbox(path) as inbox:
            for number in range(2):
                await inbox.add(IncomingWebhook(event(number), time.time(), PAIR))
            for lease in await inbox.lease(2):
                await inbox.bury(lease, error="LookupError")
            await inbox.add(IncomingWebhook(b'{"webhook_type": "ITEM"}', time.time()))
            return [webhook.id async for webhook in inbox.webhooks()]

    return path, asyncio.run(fill())


def test_stored(run, store):
    """The webhooks of a store are printed with their state; a filter selects a state."""
    path, ids = store
    lines = run("webhooks", "stored", "--store", path).lines
    assert [line["id"] for line in lines] == ids
    assert [line["state"] for line in lines] == ["dead", "dead", "pending"]
    assert [line["webhook_code"] for line in lines] == ["PRODUCT_READY", "PRODUCT_READY", None]
    assert (lines[0]["pair"], lines[0]["attempts"], lines[0]["error"]) == (PAIR, 1, "LookupError")
    assert lines[0]["payload"]["asset_report_id"] == "canary-report-0"
    result = run("webhooks", "stored", "--store", path, "--state", "dead")
    assert (result.status, len(result.lines), result.err) == (0, 2, "")


def test_dead_letters(run, store, listen):
    """A dead letter can be delivered again, or discarded; then it has no payload any more."""
    path, (first, second, third) = store
    assert run("webhooks", "redeliver", first, "--store", path).status == 0
    assert run("webhooks", "discard", second, "--store", path, "--yes").status == 0
    for command in (["redeliver"], ["discard", "--yes"]):
        result = run("webhooks", *command, first, "--store", path)
        assert (result.status, "webhooks stored --state dead" in result.err) == (2, True)
    lines = run("webhooks", "stored", "--store", path).lines
    assert [line["state"] for line in lines] == ["pending", "done", "pending"]
    assert (lines[1]["payload"], lines[1]["webhook_type"], "body" in lines[1]) == (None, None, False)
    receiver = listen("--store", path)
    assert {line["id"] for line in receiver.read(2)} == {first, third}
    assert receiver.stop() == (0, [], "")


def test_discard_asks_for_confirmation(run, store, type_answer):
    """On a terminal only the answer yes confirms."""
    path, (first, *_) = store
    type_answer("\n")
    declined = run("webhooks", "discard", first, "--store", path)
    assert (declined.status, "[y/N] nothing was changed" in declined.err) == (1, True)
    assert len(run("webhooks", "stored", "--store", path, "--state", "dead").lines) == 2
    type_answer("yes\n")
    assert run("webhooks", "discard", first, "--store", path).status == 0
    assert len(run("webhooks", "stored", "--store", path, "--state", "dead").lines) == 1


def test_rotate(run, store, key, tmp_path, monkeypatch):
    """A store is re-encrypted with the first of its keys; the others can then be removed."""
    path, _ = store
    new = Fernet.generate_key().decode()
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"{new}\n{key}\n")
    result = run("webhooks", "rotate", "--store", path, "--key-file", file)
    assert (result.status, result.err) == (0, "re-encrypted: 3\n")
    monkeypatch.setenv("PLAID_RELAY_KEY", new)
    assert len(run("webhooks", "stored", "--store", path).lines) == 3


def test_a_store_that_does_not_exist(run, tmp_path):
    """Commands for an existing store don't create one."""
    path = tmp_path / "store.db"
    for command in (["stored"], ["redeliver", "1"], ["discard", "1", "--yes"], ["rotate"]):
        result = run("webhooks", *command, "--store", path)
        assert (result.status, "--store: the file doesn't exist" in result.err) == (2, True)
    assert not path.exists()


# -------------------------------------------------------------------------------------------- the extras


@pytest.mark.parametrize(
    ("missing", "args"),
    [
        ("jwt", ["listen"]),
        ("sqlalchemy", ["recover", "--store", "s"]),
        ("cryptography", ["send", "http://127.0.0.1:1/"]),
    ],
)
def test_a_missing_extra(plaid, tmp_path, missing, args):
    """If the extra isn't installed, the message names it."""
    code = f"import sys; sys.modules[{missing!r}] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "webhooks", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert re.search(rf"{missing}[.\w]*: pip install 'plaid_relay_async\[", result.stderr)
    assert "Traceback" not in result.stderr


def test_other_commands_load_no_extra_of_webhooks():
    """The commands start without the packages that only webhooks and journals need."""
    code = (
        "import sys; from plaid_relay_async.cli import main; main(['--help']); "
        "sys.exit(bool({'jwt', 'cryptography', 'sqlalchemy'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0
