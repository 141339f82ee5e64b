"""The commands with a journal: runs that are resumed, queries, and revocation."""

import asyncio
import csv
import datetime as dt
import json
import os
import re
import signal
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
from processes import wait_until
from support import CREATE, REMOVE

from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
KEYS = ["outcome", "secondary_client_id", "relay_token", "request_id", "error_code", "attempts"]


@pytest.fixture
def journal_path(tmp_path, monkeypatch):
    """Set the path of a journal and its key in the environment, and return the path."""
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(tmp_path / "relay.db"))
    return tmp_path / "relay.db"


def bulk(run, path, *args, name="nov"):
    return run("bulk", path, "--report-token", REPORT, "--run", name, *args)


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def tokens(lines):
    return {line["secondary_client_id"]: line["relay_token"] for line in lines if line["relay_token"]}


# ------------------------------------------------------------------------------------------ resuming a run


def test_a_repeated_command_resumes(plaid, run, partners, journal_path):
    """Recorded tokens are returned without a request, failed rows are retried, and new rows are created."""
    error = {"error_type": "ITEM_ERROR", "error_code": "PRODUCT_NOT_READY"}
    plaid.fail(Fault(secondary_client_id="p3", status=400, body=error))
    first = bulk(run, partners(10))
    assert (first.status, first.count("created")) == (1, 9)
    plaid.clear_faults()
    again = bulk(run, partners(12))
    assert (again.status, again.count("created")) == (0, 12)
    assert sum(line["attempts"] == 0 for line in again.lines) == 9
    assert tokens(again.lines) == ledger(plaid)
    assert len(plaid.ledger) == 12
    assert stat.S_IMODE(journal_path.stat().st_mode) == 0o600


def test_an_unknown_outcome_is_retried_only_on_request(plaid, run, partners, journal_path):
    """The status is 3 each time, without a request, until --retry-unknown."""
    plaid.fail(Fault(secondary_client_id="p1", close=True, when="after"))
    assert bulk(run, partners(3)).status == 3
    plaid.clear_faults()
    assert bulk(run, partners(3)).status == 3
    assert len(plaid.ledger) == 3
    assert bulk(run, partners(3), "--retry-unknown").status == 0
    assert len(plaid.ledger) == 4


def test_tokens_of_another_run(plaid, run, partners, journal_path):
    """They are reused, rejected as duplicates, or created again, as --on-existing says."""
    assert bulk(run, partners(2)).status == 0
    assert bulk(run, partners(2), name="dec").status == 0
    rejected = bulk(run, partners(2), "--on-existing", "refuse", name="jan")
    assert (rejected.status, rejected.count("DuplicateRequestError")) == (1, 2)
    assert len(plaid.ledger) == 2
    assert bulk(run, partners(2), "--on-existing", "create", name="feb").status == 0
    assert len(plaid.ledger) == 4
    listed = run("runs")
    assert (listed.status, listed.err) == (0, "")
    rows = [line.split() for line in listed.out.splitlines()]
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


def test_a_pair_id_in_a_webhook_requires_a_journal(plaid, run, partners, tmp_path, monkeypatch):
    """Without a journal, it is a wrong usage or a wrong input, and nothing is sent; in a run, it is accepted."""
    webhook = "https://lender.example/{pair}"
    report = ("--report-token", REPORT)
    rows = tmp_path / "in.csv"
    rows.write_text(f"secondary_client_id,webhook\np0,\np1,{webhook}\n")
    for arguments, place in (
        (("create", *report, "--partner", "p0", "--webhook", webhook), "--webhook"),
        (("bulk", partners(1), *report, "--webhook", webhook), "--webhook"),
        (("bulk", rows, *report, "--dry-run"), "in.csv:3: webhook"),
        (("bulk", rows, *report), "in.csv:3: webhook"),
    ):
        result = run(*arguments)
        assert result.status == 2
        assert f"{place}: contains {{pair}}, which requires --journal" in result.err
    wrong = run("bulk", partners(1), *report, "--webhook", "https://lender.example/{id}")
    assert (wrong.status, "--webhook: may contain braces only in {pair}" in wrong.err) == (2, True)
    assert not plaid.requests
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())
    recorded = ("--journal", tmp_path / "relay.db", "--run", "nov")
    assert run("bulk", rows, *report, "--webhook", webhook, *recorded).status == 0
    assert run("create", *report, "--partner", "p2", "--webhook", webhook, *recorded).status == 0
    assert len(plaid.ledger) == 3


def test_unknown_pairs_with_a_token(plaid, run, partners, journal_path):
    """Status and export show the retrieval, and --retry-unknown doesn't create again."""

    async def retrieve():
        with closing(sqlite3.connect(journal_path)) as database:
            ((pair,),) = database.execute("SELECT pair FROM relay_entries WHERE partner = 'p1'")
        async with Journal(journal_path) as journal:
            at = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
            assert await journal.record_retrieval(pair, retrieved_at=at)

    plaid.fail(Fault(close=True, when="after"))
    assert bulk(run, partners(3)).status == 3
    plaid.clear_faults()
    assert "have a token" not in run("status", "nov").out
    asyncio.run(retrieve())
    shown = run("status", "nov")
    assert shown.status == 3
    assert "1 of the unknown have a token: their partner retrieved the report\n" in shown.out
    assert "unknown: p1 (OutcomeUnknownError, retrieved 2026-11-01T12:00:00Z)\n" in shown.out
    exported = run("export", "nov").lines
    assert list(exported[0]) == [*KEYS, "retrieved_at"]
    assert {line["secondary_client_id"]: line["retrieved_at"] for line in exported} == {
        "p0": None,
        "p1": "2026-11-01T12:00:00Z",
        "p2": None,
    }
    again = bulk(run, partners(3), "--retry-unknown")
    assert (again.status, again.count("created"), again.count("DuplicateRequestError")) == (1, 2, 1)
    assert len(plaid.ledger) == 5
    assert bulk(run, partners(3), "--on-existing", "create", name="dec").status == 0
    assert len(plaid.ledger) == 8


def test_a_journal_that_fails_during_a_run(start, run, partners, journal_path, tmp_path):
    """Each row has a line, and each token is in one, even if it was not recorded; the status is 1."""
    plaid = start(latency=0.02)
    assert bulk(run, partners(1)).status == 0
    out = tmp_path / "out.jsonl"
    ended = threading.Event()

    def lock_database():
        with closing(sqlite3.connect(journal_path, isolation_level=None, timeout=20)) as other:
            while len(plaid.ledger) < 50:
                time.sleep(0.001)
            other.execute("BEGIN IMMEDIATE")
            ended.wait(20)

    locking = threading.Thread(target=lock_database)
    locking.start()
    args = ("--journal", f"sqlite:///{journal_path}?timeout=0", "--output", out, "--concurrency", 10)
    result = bulk(run, partners(300), *args)
    ended.set()
    locking.join()
    assert result.status == 1
    assert "the journal can't be read or written: database is locked" in result.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["secondary_client_id"] for line in lines}) == len(lines) == 300
    assert {line["outcome"] for line in lines} == {"created", "not_attempted"}
    assert tokens(lines) == ledger(plaid)
    again = bulk(run, partners(300))
    assert again.status in {0, 3}
    assert len(plaid.ledger) == 300
    assert again.count("unknown") <= 10


def test_a_key_that_was_removed_too_early(plaid, run, partners, journal_path, monkeypatch):
    """Tokens with that key can't be read: status 1, a line for each row, and no second token."""
    assert bulk(run, partners(3)).status == 0
    old, new = os.environ["PLAID_RELAY_KEY"], Fernet.generate_key().decode()
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert bulk(run, partners(3)).status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", new)
    result = bulk(run, partners(5))
    assert (result.status, "doesn't match this journal" in result.err) == (1, True)
    assert len({line["secondary_client_id"] for line in result.lines}) == len(result.lines) == 5
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert bulk(run, partners(5)).status == 0
    assert len(plaid.ledger) == 5


# ------------------------------------------------------------------------------------------ queries


def test_status_and_export(plaid, run, partners, journal_path, tmp_path):
    """`status` shows counts, errors and unknown partners; `export` writes the same lines as `bulk`."""
    plaid.fail(
        Fault(secondary_client_id="p1", close=True, when="after"),
        Fault(secondary_client_id="p2", status=400),
    )
    created = bulk(run, partners(5))
    result = run("status", "nov")
    assert (result.status, result.err) == (3, "")
    first, *rows = result.out.splitlines()
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
    assert "credit-relay" not in result.out
    out = tmp_path / "out.csv"
    assert run("export", "nov", "--output", out).status == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == [*KEYS, "retrieved_at"]
    expected = [
        {name: "" if value is None else str(value) for name, value in line.items()} | {"retrieved_at": ""}
        for line in created.lines
    ]
    assert sorted(rows, key=str) == sorted(expected, key=str)
    expected = [line | {"retrieved_at": None} for line in created.lines]
    assert sorted(run("export", "nov").lines, key=str) == sorted(expected, key=str)


def test_an_empty_run(plaid, run, tmp_path, journal_path):
    """An input without rows succeeds, and creates no run."""
    empty = tmp_path / "none.csv"
    empty.write_text("secondary_client_id\n")
    assert bulk(run, empty).status == 0
    assert len(run("runs").out.splitlines()) == 1


def test_export_to_a_pipe_that_closes(plaid, spawn, partners, run, journal_path):
    """A closed pipe is reported, with status 1."""
    assert bulk(run, partners(600), "--concurrency", 100).status == 0  # more than a pipe holds
    process = spawn("export", "nov")
    assert process.stdout.readline()
    process.stdout.close()
    assert "the output can't be written" in process.stderr.read()
    assert process.wait() == 1


# ------------------------------------------------------------------------------------- revoking and forgetting


def test_revoke_removes_the_tokens_of_a_run(plaid, run, partners, journal_path):
    """Each token that the run created is removed, recorded as such, and not returned any more."""
    assert bulk(run, partners(2), name="other").status == 0
    assert bulk(run, partners(5)).status == 0
    result = run("revoke", "nov", "--yes")
    assert (result.status, result.count("removed")) == (0, 3)
    assert [list(line) for line in result.lines] == [KEYS] * 3
    assert {(line["outcome"], line["relay_token"]) for line in result.lines} == {("removed", None)}
    assert {line["secondary_client_id"] for line in result.lines} == {"p2", "p3", "p4"}
    result = run("status", "nov")
    assert result.status == 1
    assert ["removed", "3"] in [row.split() for row in result.out.splitlines()]
    assert {line["relay_token"] for line in run("export", "nov").lines if line["outcome"] == "removed"} == {
        None
    }
    again = run("revoke", "nov")
    assert (again.status, again.out) == (0, "")
    assert bulk(run, partners(5)).status == 0
    assert len(plaid.ledger) == 8


def test_revoke_resumes(plaid, run, partners, journal_path):
    """Failed and unknown removals are retried by the next command, also for one partner alone."""
    assert bulk(run, partners(4)).status == 0
    plaid.fail(Fault(path=REMOVE, close=True))
    assert run("revoke", "nov", "--yes", "--partner", "p1", "--timeout", 0.5).status == 3
    plaid.clear_faults()
    one = run("revoke", "nov", "--yes", "--partner", "p1")
    assert (one.status, [line["secondary_client_id"] for line in one.lines]) == (0, ["p1"])
    assert run("revoke", "nov", "--yes").count("removed") == 3
    assert run("revoke", "nov", "--yes", "--partner", "nobody").out == ""


def test_revoke_asks_for_confirmation(plaid, run, partners, journal_path, type_answer):
    """On a terminal only the answer yes confirms."""
    assert bulk(run, partners(2)).status == 0
    type_answer("\n")
    declined = run("revoke", "nov")
    assert (declined.status, declined.out) == (1, "")
    assert "Revoke the relay tokens of the run 'nov' (2)? [y/N] nothing was changed" in declined.err
    type_answer("yes\n")
    assert run("revoke", "nov").status == 0


def test_create_and_remove_with_a_journal(plaid, run, partners, journal_path):
    """They share the journal with `bulk`: a token is not created again, and a removed one not returned."""
    created = run("create", "--report-token", REPORT, "--partner", "p0", "--run", "nov")
    assert created.status == 0
    assert tokens(bulk(run, partners(2)).lines)["p0"] == created.lines[0]["relay_token"]
    assert run("remove", created.lines[0]["relay_token"]).status == 0
    assert bulk(run, partners(2)).status == 0
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["p0", "p1", "p0"]


@pytest.mark.parametrize("args", [("revoke", "nov"), ("forget", "nov")])
def test_no_terminal_for_the_confirmation(plaid, run, partners, journal_path, stdin, args):
    """Without a terminal and --yes the status is 2, and nothing is done."""
    assert bulk(run, partners(1)).status == 0
    stdin("y\n")
    result = run(*args)
    assert (result.status, "not a terminal: pass --yes to confirm" in result.err) == (2, True)
    assert run("status", "nov").status == 0


def test_forget_deletes_tokens_and_keeps_counts(plaid, run, partners, journal_path, type_answer):
    """Forgotten tokens are not returned and can't be revoked, which `revoke` reports with status 1."""
    assert bulk(run, partners(3)).status == 0
    type_answer("n\n")
    assert run("forget", "nov").status == 1
    type_answer("y\n")
    assert "deleted: 3" in run("forget", "nov").err
    assert run("status", "nov").status == 0
    assert {line["relay_token"] for line in run("export", "nov").lines} == {None}
    result = run("revoke", "nov")
    assert (result.status, "forgotten tokens, which stay valid: 3" in result.err) == (1, True)


def test_revoke_reports_unknown_pairs(plaid, run, partners, journal_path):
    """Unknown pairs may have a token: status 3."""
    plaid.fail(Fault(secondary_client_id="p1", close=True, when="after"))
    assert bulk(run, partners(3)).status == 3
    result = run("revoke", "nov", "--yes")
    assert (result.status, result.count("removed")) == (3, 2)
    assert "unknown outcomes, each of which may have left a valid token: 1" in result.err


def test_revoke_reports_a_malformed_token_and_removes_the_others(plaid, run, partners, journal_path):
    """A token with a space can't be sent: its line is failed, and the exit status is 1."""
    body = {"relay_token": "credit-relay sandbox", "request_id": "r"}
    plaid.fail(Fault(path=CREATE, secondary_client_id="p1", status=200, body=body))
    assert bulk(run, partners(3)).status == 0
    result = run("revoke", "nov", "--yes")
    assert (result.status, result.count("removed"), result.count("failed")) == (1, 2, 1)
    assert [line["secondary_client_id"] for line in result.lines if line["outcome"] == "failed"] == ["p1"]
    assert "malformed tokens, which only a direct call of Plaid's API can remove: 1" in result.err
    assert "credit-relay sandbox" not in result.out + result.err
    assert [entry["removed"] for entry in plaid.ledger] == [True, True]


def test_rejected_pairs_are_created_with_retry_failed(plaid, run, partners, journal_path):
    """A rejected pair is reported as failed without a request, until --retry-failed."""
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
def test_create_has_the_retry_options(plaid, run, journal_path, option):
    """`create` accepts --retry-unknown and --retry-failed, as `bulk` does."""
    lost = {"close": True, "when": "after"} if option == "--retry-unknown" else {"status": 400}
    plaid.fail(Fault(path=CREATE, **lost))
    args = ("create", "--report-token", REPORT, "--partner", "p", "--run", "nov")
    first = run(*args)
    plaid.clear_faults()
    assert first.status == run(*args).status == (3 if option == "--retry-unknown" else 1)
    assert run(*args, option).status == 0


def test_revoke_during_a_run(start, run, spawn, partners, journal_path):
    """`revoke` removes nothing, with status 1, until the process that works on the run has ended."""
    plaid = start(latency=1.0)
    process = spawn("bulk", partners(40), "--report-token", REPORT, "--run", "nov", "--concurrency", 10)
    while not plaid.requests:
        assert process.poll() is None
    result = run("revoke", "nov", "--yes")
    assert (result.status, "the run 'nov' is in progress" in result.err) == (1, True)
    process.kill()
    process.wait()
    result = run("revoke", "nov", "--yes")
    assert (result.status, "may have left a valid token: 10" in result.err) == (3, True)


@pytest.mark.parametrize("is_postgres", [False, True], ids=["sqlite", "postgresql"])
def test_revoke_pairs_without_an_outcome(
    plaid, run, partners, journal_path, postgres, monkeypatch, is_postgres
):
    """They may be on a task queue, which requires PostgreSQL. A message counts them, before and after."""
    if is_postgres:
        asyncio.run(postgres.reset())
        monkeypatch.setenv("PLAID_RELAY_JOURNAL", postgres.url)
    plaid.fail(Fault(path=CREATE, status=400, body={"error_type": "ASSET_REPORT_ERROR"}))
    assert bulk(run, partners(10), "--concurrency", "1").status == 1
    result = run("revoke", "nov", "--yes")
    assert (result.status, result.out) == (0, "")
    assert result.err.count("pairs without an outcome, which may still get a token: 7\n") == 2 * is_postgres
    assert len(plaid.requests) == 3


@pytest.mark.parametrize(
    ("latency", "problem"),
    [
        (0.0, "tokens that were created meanwhile, and stay valid: 1\nrepeat the command to revoke them"),
        (30.0, "the run 'nov' is in progress"),
    ],
    ids=["created", "in flight"],
)
def test_a_creation_during_revoke(plaid, run, spawn, partners, journal_path, latency, problem):
    """`revoke` looks for tokens that were created meanwhile, which it doesn't revoke, and has status 1."""
    assert bulk(run, partners(2)).status == 0
    plaid.fail(Fault(path=REMOVE, latency=3.0))
    revoking = spawn("revoke", "nov", "--yes")
    wait_until(lambda: len(plaid.requests) == 4)
    revoking.send_signal(signal.SIGSTOP)  # on a busy machine, another process may take long to start
    plaid.fail(Fault(path=CREATE, latency=latency))
    creating = spawn("create", "--report-token", REPORT, "--partner", "q", "--run", "nov")
    wait_until(lambda: len(plaid.requests) == 5 and (latency or creating.poll() is not None))
    revoking.send_signal(signal.SIGCONT)
    _, err = revoking.communicate()
    creating.kill()
    assert (revoking.returncode, problem in err) == (1, True), err
    assert re.search(r"^removed +2$", err, re.MULTILINE)


def test_rotate(plaid, run, partners, journal_path, tmp_path, monkeypatch):
    """After `rotate` the first key of the file is enough, and the old one no longer works."""
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


# --------------------------------------------------------------------------------------- invalid usage


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("bulk", "PARTNERS", "--report-token", REPORT), 2, "--run: must name the run"),
        (
            ("bulk", "PARTNERS", "--report-token", REPORT, "--run", ""),
            2,
            "run must be a non-empty string",
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
        (("status", "x", "--journal", "sqlite:///no?timeout=abc"), 2, "timeout in the database's address"),
        (("status", "x", "--journal", "file:no"), 2, "must be the path of a file"),
        (("status", "x", "--journal", "@no"), 2, "--journal: can't be read: No such file"),
        (("status", "x"), 1, "the journal has no run 'x'"),
        (("export", "x"), 1, "the journal has no run 'x'"),
        (("revoke", "x"), 1, "the journal has no run 'x'"),
        (("forget", "x", "--yes"), 1, "the journal has no run 'x'"),
    ],
)
def test_invalid_usage(plaid, run, partners, journal_path, args, status, message):
    """Invalid usage is reported; nothing is sent, and no file is created."""
    assert bulk(run, partners(1), name="first").status == 0
    result = run(*[partners(2) if word == "PARTNERS" else word for word in args])
    assert (result.status, result.out) == (status, "")
    assert message in result.err
    assert "canary" not in result.err
    assert not Path("no").exists()
    assert len(plaid.ledger) == 1


def test_an_address_in_a_file(plaid, run, partners, journal_path, tmp_path):
    """`@FILE` keeps a password out of the list of processes; a byte order mark isn't part of the address."""
    address = tmp_path / "address"
    address.write_text(f"\ufeff{journal_path}\n", encoding="utf-8")  # with a byte order mark
    assert bulk(run, partners(1), "--journal", f"@{address}").status == 0
    assert run("status", "nov").status == 0


def test_no_journal(plaid, run, partners):
    """Journal options without a journal are rejected."""
    result = bulk(run, partners(1))
    assert (result.status, "--journal: is required" in result.err) == (2, True)
    assert run("runs").status == 2
    assert not plaid.requests


def test_the_extra_is_missing(plaid, spawn, partners, journal_path):
    """A missing extra is named; without a journal it isn't needed."""
    code = "import sys; sys.modules['sqlalchemy'] = None; from plaid_relay_async.cli import main; sys.exit(main())"
    args = ("bulk", partners(1), "--report-token", REPORT)
    result = subprocess.run(
        [sys.executable, "-Ic", code, *map(str, args), "--run", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "pip install 'plaid_relay_async[journal]'" in result.stderr
    del os.environ["PLAID_RELAY_JOURNAL"]
    result = subprocess.run(
        [sys.executable, "-Ic", code, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)


def test_a_journal_without_a_key_is_reported(plaid, spawn, partners, journal_path, monkeypatch):
    """A journal that stores tokens unencrypted is reported once."""
    monkeypatch.delenv("PLAID_RELAY_KEY")
    for args in (
        ("bulk", partners(1), "--report-token", REPORT, "--run", "nov"),
        ("revoke", "nov", "--yes"),
    ):
        process = spawn(*args)
        _, errors = process.communicate()
        assert (process.returncode, errors.count("the journal has no key")) == (0, 1)
