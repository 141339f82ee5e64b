"""The command with a journal: a run that goes on, what it tells, and what it takes back."""

import csv
import json
import os
import pty
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"
REMOVE = "/credit/relay/remove"
REPORT = "assets-sandbox-1111"
KEYS = ["outcome", "secondary_client_id", "relay_token", "request_id", "error_code", "attempts"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The path of a journal, and its key and that in the environment."""
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(tmp_path / "relay.db"))
    return tmp_path / "relay.db"


@pytest.fixture
def answer(monkeypatch):
    """Put a terminal in the place of standard input, on which somebody has typed."""
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal) as typed:

        def answer(text):
            monkeypatch.setattr(sys, "stdin", typed)
            os.write(keyboard, text.encode())

        yield answer
    os.close(keyboard)


def bulk(run, path, *words, name="nov"):
    return run("bulk", path, "--report-token", REPORT, "--run", name, *words)


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def tokens(lines):
    return {line["secondary_client_id"]: line["relay_token"] for line in lines if line["relay_token"]}


# ------------------------------------------------------------------------------------------ a run goes on


def test_the_same_command_again_goes_on(plaid, run, partners, book):
    """What has a token is served and costs nothing, what failed is tried again, and what is new is created."""
    refusal = {"error_type": "ITEM_ERROR", "error_code": "PRODUCT_NOT_READY"}
    plaid.fail(Fault(secondary_client_id="p3", status=400, body=refusal))
    first = bulk(run, partners(10))
    assert (first.status, first.count("created")) == (1, 9)
    plaid.clear_faults()
    again = bulk(run, partners(12))
    assert (again.status, again.count("created")) == (0, 12)
    assert sum(line["attempts"] == 0 for line in again.lines) == 9
    assert tokens(again.lines) == ledger(plaid)
    assert len(plaid.ledger) == 12
    assert stat.S_IMODE(book.stat().st_mode) == 0o600


def test_unknown_stays_so_until_it_is_to_be_tried_again(plaid, run, partners, book):
    """Status 3 each time, without another request, until --retry-unknown."""
    plaid.fail(Fault(secondary_client_id="p1", close=True, when="after"))
    assert bulk(run, partners(3)).status == 3
    plaid.clear_faults()
    assert bulk(run, partners(3)).status == 3
    assert len(plaid.ledger) == 3
    assert bulk(run, partners(3), "--retry-unknown").status == 0
    assert len(plaid.ledger) == 4


def test_what_another_run_has(plaid, run, partners, book):
    """It is served, refused, or made anew, as --on-existing says."""
    assert bulk(run, partners(2)).status == 0
    assert bulk(run, partners(2), name="dec").status == 0
    refused = bulk(run, partners(2), "--on-existing", "refuse", name="jan")
    assert (refused.status, refused.count("DuplicateRequestError")) == (1, 2)
    assert len(plaid.ledger) == 2
    assert bulk(run, partners(2), "--on-existing", "create", name="feb").status == 0
    assert len(plaid.ledger) == 4
    shown = run("runs")
    assert (shown.status, shown.err) == (0, "")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[0] == [
        "run",
        "started",
        "last",
        "created",
        "failed",
        "unknown",
        "not_attempted",
        "removed",
        "in_flight",
    ]
    assert [(row[0], row[-6:]) for row in rows[1:]] == [
        ("nov", ["2", "0", "0", "0", "0", "0"]),
        ("dec", ["2", "0", "0", "0", "0", "0"]),
        ("jan", ["0", "2", "0", "0", "0", "0"]),
        ("feb", ["2", "0", "0", "0", "0", "0"]),
    ]


def test_a_journal_that_gives_out_on_the_way(start, run, partners, book, tmp_path):
    """Status 1, the reason, a line for each row, and each token in one, also those that the journal didn't take."""
    plaid = start(latency=0.02)
    assert bulk(run, partners(1)).status == 0
    out = tmp_path / "out.jsonl"
    ended = threading.Event()

    def hold():
        with closing(sqlite3.connect(book, isolation_level=None, timeout=20)) as other:
            while len(plaid.ledger) < 50:
                time.sleep(0.001)
            other.execute("BEGIN IMMEDIATE")
            ended.wait(20)

    holding = threading.Thread(target=hold)
    holding.start()
    words = ("--journal", f"sqlite:///{book}?timeout=0", "--output", out, "--concurrency", 10)
    done = bulk(run, partners(300), *words)
    ended.set()
    holding.join()
    assert done.status == 1
    assert "the journal can't be read or written: database is locked" in done.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["secondary_client_id"] for line in lines}) == len(lines) == 300
    assert {line["outcome"] for line in lines} == {"created", "not_attempted"}
    assert tokens(lines) == ledger(plaid)
    again = bulk(run, partners(300))
    assert again.status in {0, 3}
    assert len(plaid.ledger) == 300
    assert again.count("unknown") <= 10


def test_a_key_that_was_given_up_too_early(plaid, run, partners, book, monkeypatch):
    """What lies under it can't be served: status 1, the reason, and a line for each row; nothing is made twice."""
    assert bulk(run, partners(3)).status == 0
    old, new = os.environ["PLAID_RELAY_KEY"], Fernet.generate_key().decode()
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert bulk(run, partners(3)).status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", new)
    done = bulk(run, partners(5))
    assert (done.status, "doesn't match this journal" in done.err) == (1, True)
    assert len({line["secondary_client_id"] for line in done.lines}) == len(done.lines) == 5
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert bulk(run, partners(5)).status == 0
    assert len(plaid.ledger) == 5


# ------------------------------------------------------------------------------------------ what it tells


def test_status_and_export(plaid, run, partners, book, tmp_path):
    """Counts, rate, errors by code and the unknown partners; and a row for each pair, in the shape of bulk's."""
    plaid.fail(
        Fault(secondary_client_id="p1", close=True, when="after"),
        Fault(secondary_client_id="p2", status=400),
    )
    made = bulk(run, partners(5))
    told = run("status", "nov")
    assert (told.status, told.err) == (3, "")
    first, *rows = told.out.splitlines()
    assert first.startswith("started 20")
    assert first.endswith("/s")
    assert [row.split() for row in rows[:4]] == [
        ["created", "3"],
        ["failed", "1"],
        ["unknown", "1"],
        ["not_attempted", "0"],
    ]
    assert {tuple(row.split()) for row in rows[4:-1]} == {
        ("OutcomeUnknownError", "1"),
        ("INVALID_FIELD", "1"),
    }
    assert rows[-1] == "unknown: p1 (OutcomeUnknownError)"
    assert "credit-relay" not in told.out
    out = tmp_path / "out.csv"
    assert run("export", "nov", "--output", out).status == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == KEYS
    wanted = [
        {name: "" if value is None else str(value) for name, value in line.items()} for line in made.lines
    ]
    assert sorted(rows, key=str) == sorted(wanted, key=str)
    assert sorted(run("export", "nov").lines, key=str) == sorted(made.lines, key=str)


def test_an_empty_run(plaid, run, tmp_path, book):
    """An input without a row is done at once, and leaves no run behind."""
    empty = tmp_path / "none.csv"
    empty.write_text("secondary_client_id\n")
    assert bulk(run, empty).status == 0
    assert len(run("runs").out.splitlines()) == 1


def test_export_to_a_pipe_that_closes(plaid, spawn, partners, run, book):
    """Status 1 and the reason."""
    assert bulk(run, partners(600), "--concurrency", 100).status == 0  # more than a pipe holds
    process = spawn("export", "nov")
    assert process.stdout.readline()
    process.stdout.close()
    assert "the output can't be written" in process.stderr.read()
    assert process.wait() == 1


# ------------------------------------------------------------------------------------- what it takes back


def test_revoke_takes_back_what_the_run_made(plaid, run, partners, book):
    """Each token of its own is removed, on record, and not served any more; nothing is left to do then."""
    assert bulk(run, partners(2), name="other").status == 0
    assert bulk(run, partners(5)).status == 0
    done = run("revoke", "nov", "--yes")
    assert (done.status, done.count("removed")) == (0, 3)
    assert [list(line) for line in done.lines] == [KEYS] * 3
    assert {(line["outcome"], line["relay_token"]) for line in done.lines} == {("removed", None)}
    assert {line["secondary_client_id"] for line in done.lines} == {"p2", "p3", "p4"}
    told = run("status", "nov")
    assert told.status == 1
    assert ["removed", "3"] in [row.split() for row in told.out.splitlines()]
    assert {line["relay_token"] for line in run("export", "nov").lines if line["outcome"] == "removed"} == {
        None
    }
    again = run("revoke", "nov")
    assert (again.status, again.out) == (0, "")
    assert bulk(run, partners(5)).status == 0
    assert len(plaid.ledger) == 8


def test_revoke_goes_on(plaid, run, partners, book):
    """What Plaid refused, or nobody knows the end of, is tried again by the next; of one partner alone as well."""
    assert bulk(run, partners(4)).status == 0
    plaid.fail(Fault(path=REMOVE, close=True))
    assert run("revoke", "nov", "--yes", "--partner", "p1", "--timeout", 0.5).status == 3
    plaid.clear_faults()
    one = run("revoke", "nov", "--yes", "--partner", "p1")
    assert (one.status, [line["secondary_client_id"] for line in one.lines]) == (0, ["p1"])
    assert run("revoke", "nov", "--yes").count("removed") == 3
    assert run("revoke", "nov", "--yes", "--partner", "nobody").out == ""


def test_revoke_asks(plaid, run, partners, book, answer):
    """On a terminal a person is asked, and only a yes will do; where nobody is there, --yes is needed."""
    assert bulk(run, partners(2)).status == 0
    answer("\n")
    declined = run("revoke", "nov")
    assert (declined.status, declined.out) == (1, "")
    assert "Revoke the relay tokens of the run 'nov' (2)? [y/N] nothing was changed" in declined.err
    answer("yes\n")
    assert run("revoke", "nov").status == 0


def test_one_at_a_time(plaid, run, partners, book):
    """`create` and `remove` keep the same journal: what one made isn't made again, what one removed not served."""
    made = run("create", "--report-token", REPORT, "--partner", "p0", "--run", "nov")
    assert made.status == 0
    assert tokens(bulk(run, partners(2)).lines)["p0"] == made.lines[0]["relay_token"]
    assert run("remove", made.lines[0]["relay_token"]).status == 0
    assert bulk(run, partners(2)).status == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["p0", "p1", "p0"]


@pytest.mark.parametrize("words", [("revoke", "nov"), ("forget", "nov")])
def test_nobody_is_there_to_be_asked(plaid, run, partners, book, stdin, words):
    """Status 2, and nothing is done."""
    assert bulk(run, partners(1)).status == 0
    stdin("y\n")
    done = run(*words)
    assert (done.status, "not a terminal: pass --yes to confirm" in done.err) == (2, True)
    assert run("status", "nov").status == 0


def test_forget_deletes_tokens_and_keeps_counts(plaid, run, partners, book, answer):
    """What was forgotten isn't served, and can't be revoked: that is said, and status 1."""
    assert bulk(run, partners(3)).status == 0
    answer("n\n")
    assert run("forget", "nov").status == 1
    answer("y\n")
    assert "deleted: 3" in run("forget", "nov").err
    assert run("status", "nov").status == 0
    assert {line["relay_token"] for line in run("export", "nov").lines} == {None}
    done = run("revoke", "nov")
    assert (done.status, "forgotten tokens, which stay valid: 3" in done.err) == (1, True)


def test_revoke_tells_of_unknown_pairs(plaid, run, partners, book):
    """There may be tokens that nobody knows: status 3."""
    plaid.fail(Fault(secondary_client_id="p1", close=True, when="after"))
    assert bulk(run, partners(3)).status == 3
    done = run("revoke", "nov", "--yes")
    assert (done.status, done.count("removed")) == (3, 2)
    assert "unknown outcomes, each of which may have left a valid token: 1" in done.err


def test_revoke_reports_a_malformed_token_and_removes_the_others(plaid, run, partners, book):
    """A token with a space in it can't be sent: its row is failed, and the exit status is 1."""
    body = {"relay_token": "credit-relay sandbox", "request_id": "r"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=200, body=body))
    assert bulk(run, partners(3)).status == 0
    done = run("revoke", "nov", "--yes")
    assert (done.status, done.count("removed"), done.count("failed")) == (1, 2, 1)
    assert [line["secondary_client_id"] for line in done.lines if line["outcome"] == "failed"] == ["p1"]
    assert "malformed tokens, which only a direct call of Plaid's API can remove: 1" in done.err
    assert "credit-relay sandbox" not in done.out + done.err
    assert [entry["removed"] for entry in plaid.ledger] == [True, True]


def test_what_plaid_refused_is_created_with_retry_failed(plaid, run, partners, book):
    """A repeated command reports a refusal as failed without sending it, until --retry-failed is given."""
    plaid.fail(Fault(secondary_client_id="p1", status=400))
    assert bulk(run, partners(3)).status == 1
    plaid.clear_faults()
    sent = len(plaid.requests)
    assert bulk(run, partners(3)).status == 1
    assert len(plaid.requests) == sent
    assert bulk(run, partners(3), "--retry-failed").status == 0
    assert set(ledger(plaid)) == {"p0", "p1", "p2"}
    assert run("status", "nov").status == 0


@pytest.mark.parametrize("option", ["--retry-unknown", "--retry-failed"])
def test_create_takes_the_options_of_a_retry(plaid, run, book, option):
    """`create` takes --retry-unknown and --retry-failed, as `bulk` does."""
    lost = {"close": True, "when": "after"} if option == "--retry-unknown" else {"status": 400}
    plaid.fail(Fault(path=CREATE, **lost))
    words = ("create", "--report-token", REPORT, "--partner", "p", "--run", "nov")
    first = run(*words)
    plaid.clear_faults()
    assert first.status == run(*words).status == (3 if option == "--retry-unknown" else 1)
    assert run(*words, option).status == 0


def test_revoke_while_somebody_creates(start, run, spawn, partners, book):
    """`revoke` removes nothing, with status 1, until the process that works on the run has ended."""
    plaid = start(latency=1.0)
    process = spawn("bulk", partners(40), "--report-token", REPORT, "--run", "nov", "--concurrency", 10)
    while not plaid.requests:
        assert process.poll() is None
    done = run("revoke", "nov", "--yes")
    assert (done.status, "the run 'nov' is in progress" in done.err) == (1, True)
    process.kill()
    process.wait()
    done = run("revoke", "nov", "--yes")
    assert (done.status, "may have left a valid token: 10" in done.err) == (3, True)


def test_keys_change(plaid, run, partners, book, tmp_path, monkeypatch):
    """A file of keys will do, the first of which encrypts after `rotate`; the old one is of no use then."""
    assert bulk(run, partners(3)).status == 0
    old, new = os.environ["PLAID_RELAY_KEY"], Fernet.generate_key().decode()
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"{new}\n{old}\n")
    monkeypatch.delenv("PLAID_RELAY_KEY")
    assert "re-encrypted: 3" in run("rotate", "--key-file", file).err
    file.write_text(f"\ufeff{new}\n", encoding="utf-8")  # with a byte order mark
    assert bulk(run, partners(3), "--key-file", file).status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", old)
    wrong = run("export", "nov")
    assert (wrong.status, "doesn't match this journal" in wrong.err) == (2, True)
    assert tokens(run("export", "nov", "--key-file", file).lines) == ledger(plaid)
    assert len(plaid.ledger) == 3
    assert {new, old} & set((wrong.err + wrong.out).split()) == set()


# --------------------------------------------------------------------------------------- what can't pass


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("bulk", "PARTNERS", "--report-token", REPORT), 2, "--run: must name the run"),
        (
            ("bulk", "PARTNERS", "--report-token", REPORT, "--run", ""),
            2,
            "run must be a string that isn't empty",
        ),
        (("bulk", "PARTNERS", "--report-token", REPORT, "--run", "x", "--lease", "0"), 2, "lease must be"),
        (
            ("bulk", "PARTNERS", "--report-token", REPORT, "--run", "x", "--key-file", "no"),
            2,
            "can't be read: No such",
        ),
        (
            ("bulk", "PARTNERS", "--report-token", REPORT, "--run", "x", "--journal", "oracle://x"),
            2,
            "not in oracle",
        ),
        (
            ("bulk", "PARTNERS", "--report-token", REPORT, "--run", "x", "--journal", "no/x"),
            1,
            "No such file",
        ),
        (("status", "x", "--journal", "no"), 2, "--journal: the file doesn't exist"),
        (("status", "x", "--journal", "sqlite:///no"), 2, "--journal: the file doesn't exist"),
        (("status", "x", "--journal", "host=h password=canary"), 2, "write it as a URL, postgresql://USER"),
        (("status", "x", "--journal", "postgres://u:can@ary@h/d"), 2, "write @ as %40"),
        (
            ("status", "x", "--journal", "postgres://u:canary@h/d?prepare_threshold=0"),
            2,
            '"prepare_threshold"',
        ),
        (("status", "x", "--journal", "postgres://h/d?sslmode=abc"), 2, 'invalid sslmode value: "abc"'),
        (("status", "x", "--journal", "sqlite:///no?timeout=abc"), 2, "timeout in the journal's address"),
        (("status", "x", "--journal", "file:no"), 2, "must be the path of a file"),
        (("status", "x", "--journal", "@no"), 2, "--journal: can't be read: No such file"),
        (("status", "x"), 1, "the journal has no run 'x'"),
        (("export", "x"), 1, "the journal has no run 'x'"),
        (("revoke", "x"), 1, "the journal has no run 'x'"),
        (("forget", "x", "--yes"), 1, "the journal has no run 'x'"),
    ],
)
def test_what_cannot_pass(plaid, run, partners, book, words, status, told):
    """It is named, with the way out; nothing is sent, and nothing is left behind."""
    assert bulk(run, partners(1), name="first").status == 0
    done = run(*[partners(2) if word == "PARTNERS" else word for word in words])
    assert (done.status, done.out) == (status, "")
    assert told in done.err
    assert "canary" not in done.err
    assert not Path("no").exists()
    assert len(plaid.ledger) == 1


def test_an_address_in_a_file(plaid, run, partners, book, tmp_path):
    """`@FILE` keeps a password off the list of processes; a byte order mark isn't part of the address."""
    address = tmp_path / "address"
    address.write_text(f"\ufeff{book}\n", encoding="utf-8")  # with a byte order mark
    assert bulk(run, partners(1), "--journal", f"@{address}").status == 0
    assert run("status", "nov").status == 0


def test_no_journal(plaid, run, partners):
    """What is said of a journal goes with one."""
    done = bulk(run, partners(1))
    assert (done.status, "--journal: is required" in done.err) == (2, True)
    assert run("runs").status == 2
    assert not plaid.requests


def test_the_extra_is_missing(plaid, spawn, partners, book):
    """It is named; without a journal nothing of it is needed."""
    code = "import sys; sys.modules['sqlalchemy'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    words = ("bulk", partners(1), "--report-token", REPORT)
    done = subprocess.run(
        [sys.executable, "-Ic", code, *map(str, words), "--run", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'plaid_relay_async[journal]'" in done.stderr
    del os.environ["PLAID_RELAY_JOURNAL"]
    done = subprocess.run(
        [sys.executable, "-Ic", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


def test_without_a_key_it_is_said(plaid, spawn, partners, book, monkeypatch):
    """Once: tokens lie in it in clear then."""
    monkeypatch.delenv("PLAID_RELAY_KEY")
    for words in (
        ("bulk", partners(1), "--report-token", REPORT, "--run", "nov"),
        ("revoke", "nov", "--yes"),
    ):
        process = spawn(*words)
        _, said = process.communicate()
        assert (process.returncode, said.count("the journal has no key")) == (0, 1)
