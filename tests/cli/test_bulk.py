"""`bulk`, in this process: every row gets one outcome, whatever happens."""

import contextlib
import csv
import fcntl
import itertools
import json
import os
import resource
import signal
import stat
import sys
import threading
import time

import pytest
from processes import wait_until

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.output import open_output
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.rows import InputSource, PipedRows, creation_form
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"
REPORT = "assets-sandbox-1111"
KEYS = ["outcome", "secondary_client_id", "relay_token", "request_id", "error_code", "attempts"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def tokens(lines):
    return {line["secondary_client_id"]: line["relay_token"] for line in lines if line["relay_token"]}


@pytest.fixture
def interrupt():
    """Send signals to this process, at the given moments after a condition holds.

    Two of one number may come as one, where they come close upon each other.
    """
    threads = []

    def interrupt(ready, *waits, numbers=(signal.SIGINT,)):
        def send():
            deadline = time.monotonic() + 60
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            for wait, number in zip(waits, itertools.cycle(numbers), strict=False):
                if wait:  # otherwise nobody is let in between
                    time.sleep(wait)
                os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=send, daemon=True))
        threads[-1].start()

    yield interrupt
    for thread in threads:
        thread.join()


@pytest.fixture
def stdout(monkeypatch):
    """Make standard output a pipe, and give the end to read it from."""
    # Not before the test begins: pytest puts its own in place at that moment.
    with contextlib.ExitStack() as stack:

        def stdout():
            reading, writing = os.pipe()
            monkeypatch.setattr(sys, "stdout", stack.enter_context(os.fdopen(writing, "w")))
            stack.callback(os.close, reading)
            return reading

        yield stdout


# The good case


def test_each_partner_gets_a_token(plaid, run, partners, tmp_path):
    """All created: status 0, a file of one's own with a line for each, and the table; no token anywhere else."""
    out = tmp_path / "out.jsonl"
    done = run("bulk", partners(120), "--report-token", REPORT, "--output", out, "--concurrency", 7)
    assert (done.status, done.out) == (0, "")
    lines = read(out)
    assert [list(line) for line in lines] == [KEYS] * 120
    assert tokens(lines) == ledger(plaid)
    assert {(line["outcome"], line["error_code"], line["attempts"]) for line in lines} == {
        ("created", None, 1)
    }
    assert {line["request_id"] for line in lines} == {entry["request_id"] for entry in plaid.ledger}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    names = ("created", "failed", "unknown", "not_attempted")
    assert [done.count(name) for name in names] == [120, 0, 0, 0]
    assert "credit-relay" not in done.err


def test_standard_output_is_the_default(plaid, run, partners):
    """JSON Lines there, all else on standard error."""
    done = run("bulk", partners(3), "--report-token", REPORT)
    assert tokens(done.lines) == ledger(plaid)
    assert done.count("created") == 3


def test_csv_and_append(plaid, run, partners, tmp_path):
    """`.csv` means CSV, with the keys as its header, once; an existing file is only added to."""
    out = tmp_path / "out.csv"
    words = ("bulk", partners(3), "--report-token", REPORT, "--output", out)
    assert run(*words).status == 0
    refused = run(*words)
    assert refused.status == 2
    assert "already exists" in refused.err
    assert len(plaid.ledger) == 3
    assert run(*words, "--append").status == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == KEYS
    assert {row["relay_token"] for row in rows} == {entry["relay_token"] for entry in plaid.ledger}
    assert len(rows) == 6


def test_append_to_a_torn_line(plaid, run, partners, tmp_path):
    """What comes is not glued to what a crash left; and a file that isn't there yet is made."""
    out = tmp_path / "out.jsonl"
    words = ("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append")
    assert run(*words).status == 0
    with out.open("a") as file:
        file.write('{"outc')
    assert run(*words).status == 0
    assert len(out.read_text().splitlines()) == 3


def test_append_to_nothing(plaid, run, partners, tmp_path):
    """An empty file of one's own is fine, too."""
    out = tmp_path / "out.csv"
    out.touch(0o600)
    assert run("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append").status == 0
    assert out.read_text().startswith("outcome,")


def test_output_that_others_may_read(plaid, run, partners, tmp_path):
    """Tokens don't go to such a file."""
    out = tmp_path / "out.jsonl"
    out.touch(0o644)
    done = run("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append")
    assert done.status == 2
    assert "chmod 600" in done.err
    assert not plaid.ledger


@pytest.mark.parametrize("append", [[], ["--append"]])
def test_output_that_cannot_be_made(plaid, run, partners, tmp_path, append):
    """It is told before anything is sent."""
    done = run("bulk", partners(1), "--report-token", REPORT, "--output", tmp_path / "no" / "out", *append)
    assert done.status == 2
    assert "No such file or directory" in done.err
    assert not plaid.requests


def test_output_that_cannot_be_added_to(plaid, run, partners, tmp_path):
    """The same for a folder."""
    done = run("bulk", partners(1), "--report-token", REPORT, "--output", tmp_path, "--append")
    assert done.status == 2
    assert "directory" in done.err


def test_rows_of_their_own(plaid, run, tmp_path):
    """A row's report and webhook are used; a row of no report gets the one that is given for all."""
    other = plaid.add_report()
    rows = tmp_path / "in.jsonl"
    rows.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (
                {"secondary_client_id": "a", "report_token": other, "webhook": "https://x.example/"},
                {"secondary_client_id": "b"},
            )
        )
    )
    assert run("bulk", rows, "--report-token", REPORT).status == 0
    assert sorted(ledger(plaid)) == ["a", "b"]


def test_tokens_from_files_and_standard_input(plaid, run, partners, tmp_path, stdin):
    """`@file` and `-` give the report token."""
    file = tmp_path / "token"
    file.write_text(f"{REPORT}\n")
    assert run("bulk", partners(1), "--report-token", f"@{file}").status == 0
    stdin(f"{REPORT}\n")
    assert run("bulk", partners(1), "--report-token", "-").status == 0
    assert len(plaid.ledger) == 2


def test_no_rows(plaid, run, partners):
    """Nothing to do is done."""
    assert run("bulk", partners(0), "--report-token", REPORT).status == 0


# What goes wrong


def test_failures_and_unknowns(plaid, run, partners):
    """3 goes before 1; the table counts outcomes, then codes; a pair that came before fails."""
    plaid.fail(
        Fault(secondary_client_id="p3", status=400, body={"error_code": "INVALID_FIELD"}),
        Fault(secondary_client_id="p4", close=True, when="after"),
    )
    path = partners(9)
    path.write_text(path.read_text() + "p0\n")
    done = run("bulk", path, "--report-token", REPORT)
    assert done.status == 3
    names = ("created", "failed", "unknown", "INVALID_FIELD", "DuplicateRequestError", "OutcomeUnknownError")
    assert [done.count(name) for name in names] == [7, 2, 1, 1, 1, 1]
    (unknown,) = [line for line in done.lines if line["outcome"] == "unknown"]
    assert (unknown["secondary_client_id"], unknown["attempts"]) == ("p4", 1)
    assert sorted(line["error_code"] or "" for line in done.lines)[-3:] == [
        "DuplicateRequestError",
        "INVALID_FIELD",
        "OutcomeUnknownError",
    ]


def test_some_failed(plaid, run, partners):
    """Status 1."""
    plaid.fail(Fault(secondary_client_id="p3", status=400))
    done = run("bulk", partners(9), "--report-token", REPORT)
    assert (done.status, done.count("failed")) == (1, 1)


def test_an_error_that_all_share(plaid, run, partners):
    """The batch stops, says why, and each row that wasn't sent is listed, those not read included."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    done = run("bulk", partners(200), "--report-token", REPORT, "--concurrency", 2)
    assert done.status == 1
    assert "because all requests share this error: Plaid answered INVALID_API_KEYS" in done.err
    assert sorted(line["secondary_client_id"] for line in done.lines) == sorted(f"p{n}" for n in range(200))
    assert done.count("not_attempted") >= 190
    assert {line["attempts"] for line in done.lines if line["outcome"] == "not_attempted"} == {0}


def test_an_error_of_a_report(plaid, run, tmp_path):
    """Its requests stop after the first few and fail unsent, the cause is told once, and other reports go on."""
    reports = [plaid.add_report(), "assets-sandbox-mistyped", plaid.add_report()]
    rows = tmp_path / "in.csv"
    lines = [f"{report},p{n}\n" for n in range(100) for report in reports]
    rows.write_text("report_token,secondary_client_id\n" + "".join(lines))
    done = run("bulk", rows, "--concurrency", 5)
    unsent = [line for line in done.lines if (line["outcome"], line["attempts"]) == ("failed", 0)]
    assert done.status == 1
    assert (done.count("created"), done.count("failed"), done.count("not_attempted")) == (200, 100, 0)
    assert len(plaid.ledger) == 200
    assert len(plaid.requests) == 300 - len(unsent) <= 200 + 3 + 5
    assert {(line["error_code"], line["request_id"]) for line in unsent} == {
        ("INVALID_ASSET_REPORT_TOKEN", None)
    }
    told = f"{len(unsent)} requests: not sent after 3 errors of the same report: Plaid answered INVALID_ASSET"
    assert done.err.count(told) == 1
    assert "all requests share this error" not in done.err
    assert "mistyped" not in done.err


def test_bad_rows_of_a_file(plaid, run, tmp_path):
    """All are named before anything is sent, and no output is made."""
    rows, out = tmp_path / "in.csv", tmp_path / "out"
    rows.write_text("secondary_client_id,webhook\na,\nb c,\nd,nowhere\n")
    done = run("bulk", rows, "--report-token", REPORT, "--output", out)
    assert done.status == 2
    assert f"{rows}:3: secondary_client_id: holds white space" in done.err
    assert f"{rows}:4: webhook: must be an http(s) URL" in done.err
    assert "nothing was sent" in done.err
    assert not plaid.requests
    assert not out.exists()


def test_very_many_bad_rows(plaid, run, tmp_path):
    """The first twenty are named."""
    rows = tmp_path / "in.csv"
    rows.write_text("secondary_client_id,webhook\n" + "a b,\n" * 50)
    done = run("bulk", rows, "--report-token", REPORT)
    assert done.err.count("secondary_client_id:") == 20
    assert "and 30 more" in done.err


def test_a_file_that_changes_meanwhile(plaid, start, run, partners):
    """A row that goes bad after the check ends the batch, as it would in a pipe."""
    plaid = start(latency=0.02)
    path = partners(5000)

    def change():
        wait_until(lambda: ledger(plaid))
        path.write_text("secondary_client_id\n" + "bad row\n" * 20_000)

    thread = threading.Thread(target=change)
    thread.start()
    done = run("bulk", path, "--report-token", REPORT, "--concurrency", 5)
    thread.join()
    assert done.status == 2
    assert "white space" in done.err
    assert tokens(done.lines) == ledger(plaid)


# From a pipe


@pytest.mark.parametrize("words", [[], ["--stream"]])
def test_from_a_pipe(plaid, run, stdin, words):
    """All its rows are sent, checked as a file's or, with --stream, as they come."""
    stdin("".join(f"p{n}\n" for n in range(300)))
    done = run("bulk", "-", "--report-token", REPORT, *words)
    assert done.status == 0
    assert tokens(done.lines) == ledger(plaid)
    assert len(plaid.ledger) == 300


def test_from_a_named_pipe(plaid, run, tmp_path):
    """A file that can't be read twice is treated as a pipe."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("p1\np2\n",), daemon=True)
    writer.start()
    assert run("bulk", path, "--report-token", REPORT).status == 0
    writer.join()
    assert sorted(ledger(plaid)) == ["p1", "p2"]


def test_a_bad_row_in_a_pipe(plaid, run, stdin):
    """With --stream it is named when it comes: sending stops, and what was sent has its outcome."""
    stdin("p1\np2\nbad row\np3\n")
    done = run("bulk", "-", "--stream", "--report-token", REPORT)
    assert done.status == 2
    assert "<stdin>:3: secondary_client_id: holds white space" in done.err
    assert {line["secondary_client_id"] for line in done.lines} == {"p1", "p2"}
    assert tokens(done.lines) == ledger(plaid)


def test_a_shared_error_from_a_pipe(plaid, run, stdin):
    """The rest of a pipe is listed, up to the row that is bad."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    stdin("".join(f"p{n}\n" for n in range(300)) + "bad row\n")
    done = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 2)
    assert done.status == 2
    assert len(done.lines) == 300


def test_a_shared_error_from_a_pipe_that_stays_open(plaid, run, stdin, interrupt):
    """The command reads on to list what comes, and stops doing so when it is interrupted."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    stdin("".join(f"p{n}\n" for n in range(30)), closed=False)
    interrupt(lambda: plaid.counts[CREATE] >= 3, 0.3)
    done = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 2)
    assert done.status == 1
    assert len(done.lines) == 30
    assert "not read to its end" in done.err


def test_a_pipe_that_stays_open(plaid, run, stdin, interrupt):
    """An interrupt doesn't wait for it, and says that it wasn't read to its end."""
    stdin("p1\np2\n", closed=False)
    interrupt(lambda: len(plaid.ledger) == 2, 0.1)
    done = run("bulk", "-", "--stream", "--report-token", REPORT)
    assert done.status == 1
    assert "stopping: 2 done, 0 in flight" in done.err
    assert "not read to its end" in done.err
    assert tokens(done.lines) == ledger(plaid)


# Interruptions


def test_first_signal_drains(start, run, partners, interrupt):
    """What is in flight is waited for, and the rest is listed as not attempted."""
    plaid = start(latency=0.3)
    interrupt(lambda: plaid.counts[CREATE] >= 5, 0.05, numbers=[signal.SIGTERM])
    done = run("bulk", partners(100), "--report-token", REPORT, "--concurrency", 5)
    assert done.status == 1
    assert "press Ctrl-C again" in done.err
    assert len(done.lines) == 100
    assert tokens(done.lines) == ledger(plaid)
    assert done.count("unknown") == 0
    assert done.count("created") + done.count("not_attempted") == 100


def test_second_signal_cancels(start, run, partners, interrupt):
    """What is in flight is given up, at once, and listed as unknown; a third changes nothing."""
    plaid = start(latency=60.0)
    numbers = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    interrupt(lambda: plaid.counts[CREATE] >= 5, 0.05, 0.2, 0, numbers=numbers)
    began = time.monotonic()
    done = run("bulk", partners(20), "--report-token", REPORT, "--concurrency", 5)
    assert time.monotonic() - began < 30
    assert done.status == 3
    assert "abandoning the calls in flight: 0 done, 5 abandoned" in done.err
    assert (done.count("unknown"), done.count("not_attempted")) == (5, 15)
    assert len(done.lines) == 20


def test_signal_while_all_wait(plaid, run, partners, interrupt):
    """What was taken up and waits for a pause that Plaid asked for is not sent, and listed."""
    plaid.fail(Fault(status=429, headers={"Retry-After": "30"}, times=1))
    interrupt(lambda: plaid.counts[CREATE] >= 1, 0.3)
    began = time.monotonic()
    done = run("bulk", partners(20), "--report-token", REPORT, "--concurrency", 5)
    assert time.monotonic() - began < 20
    assert done.status == 1
    assert len(done.lines) == 20
    assert {line["outcome"] for line in done.lines} == {"created", "failed", "not_attempted"}
    assert tokens(done.lines) == ledger(plaid)


# Bugs


async def test_rows_that_raise(start, tmp_path):
    """What nobody foresaw comes out as it is, after what was sent has been written."""
    start()

    def rows():
        yield RelayCreateRequest([REPORT], "p1")
        raise LookupError("a bug")

    with open_output(str(tmp_path / "out")) as output, Signals() as signals:
        run = BatchRunner(RelayClient(), PipedRows(rows()), output, ProgressDisplay(None), signals, 1)
        with pytest.raises(LookupError, match="a bug"):
            await run()
    assert [line["secondary_client_id"] for line in read(tmp_path / "out")] == ["p1"]


@pytest.mark.parametrize("written", [True, False])
def test_output_after_a_bug(tmp_path, written):
    """A new file stays if there is something in it."""
    path = tmp_path / "out"

    def fail():
        with open_output(str(path)) as output:
            if written:
                output.write({"outcome": "failed"})
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert path.exists() == written


# An output that takes no more


def test_closed_pipe(start, run, partners, stdout, rescued):
    """Calls in flight drain, and what the reader did not read is rescued; no token is on standard error."""
    reading = stdout()
    plaid = start(latency=0.02)
    read = []
    reader = threading.Thread(
        target=lambda: (read.append(os.read(reading, 450)), os.dup2(os.open(os.devnull, 0), reading)),
        daemon=True,
    )
    reader.start()
    done = run("bulk", partners(500), "--report-token", REPORT, "--concurrency", 5)
    reader.join()
    assert done.status == 1
    assert "the output can't be written: Broken pipe" in done.err
    lines = rescued()
    assert f"rescued: {len(lines)} outcomes" in done.err
    assert "credit-relay" not in done.err
    in_the_pipe = [json.loads(line) for line in read[0].split(b"\n")[:-1]]
    assert tokens(in_the_pipe) | tokens(lines) == ledger(plaid)
    assert 0 < len(lines) <= 20
    assert f"not written: not_attempted: {done.count('not_attempted')} more" in done.err
    assert done.count("created") == len(plaid.ledger) < 500


def test_closed_pipe_while_rows_come(start, run, stdin, stdout):
    """The input isn't read on for nothing."""
    reading = stdout()
    start(latency=0.02)
    stdin("".join(f"p{n}\n" for n in range(300)), closed=False)
    os.dup2(os.open(os.devnull, 0), reading)
    done = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 5)
    assert done.status == 1
    assert "not read to its end" in done.err


def test_slow_reader(start, run, partners, stdout):
    """Nothing is sent that can't be written soon, and in the end everything is."""
    reading = stdout()
    plaid = start()
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    parts = []

    def read_late():
        time.sleep(0.5)
        parts.append(len(plaid.ledger))
        while part := os.read(reading, 4096):
            parts.append(part)
            if b'"p299"' in b"".join(parts[1:]) and b"".join(parts[1:]).count(b"\n") == 300:
                return

    reader = threading.Thread(target=read_late, daemon=True)
    reader.start()
    done = run("bulk", partners(300), "--report-token", REPORT, "--concurrency", 5)
    reader.join()
    assert done.status == 0
    assert parts[0] < 100
    lines = [json.loads(line) for line in b"".join(parts[1:]).splitlines()]
    assert tokens(lines) == ledger(plaid)


def test_reader_that_never_comes(start, run, partners, stdout, interrupt, rescued):
    """A second interrupt ends the wait for a reader, and what was not written is rescued."""
    reading = stdout()
    plaid = start()
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    interrupt(lambda: len(plaid.ledger) >= 5, 0.5, 0.3)
    done = run("bulk", partners(300), "--report-token", REPORT, "--concurrency", 5)
    assert done.status == 1
    assert "it isn't being read" in done.err
    written = [json.loads(line) for line in os.read(reading, 65536).split(b"\n")[:-1]]
    assert tokens(written) | tokens(rescued()) == ledger(plaid)
    assert len(written) + len(rescued()) == len(plaid.ledger)


def test_full_disk(plaid, run, partners, tmp_path, rescued):
    """Sending stops; the file ends with a whole line; every token is in it or in a rescue file."""
    out = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        done = run("bulk", partners(300), "--report-token", REPORT, "--output", out, "--concurrency", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.status == 1
    assert "the output can't be written: File too large" in done.err
    written = tokens(read(out))
    assert written.items() < ledger(plaid).items()
    assert written | tokens(rescued(tmp_path)) == ledger(plaid)
    assert len(plaid.ledger) < 300


def test_the_output_belongs_to_one_run(plaid, run, partners, tmp_path):
    """Two runs that wrote into one file would spoil each other's lines: the second is refused."""
    out = tmp_path / "out"
    with open_output(str(out)):
        done = run("bulk", partners(3), "--report-token", REPORT, "--output", out, "--append")
    assert (done.status, "another run is writing to it" in done.err, len(plaid.ledger)) == (2, True, 0)


def test_the_input_is_not_the_output(plaid, run, tmp_path, monkeypatch):
    """What is written would be read as rows, also from standard output that is appended to the input."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"p1"\n')
    rows.chmod(0o600)
    done = run("bulk", rows, "--report-token", REPORT, "--output", rows, "--append")
    assert (done.status, "is also the input" in done.err, len(plaid.ledger)) == (2, True, 0)
    with rows.open("a") as appended:
        monkeypatch.setattr(sys, "stdout", appended)
        done = run("bulk", rows, "--report-token", REPORT)
    assert (done.status, len(plaid.ledger), rows.read_text()) == (2, 0, '"p1"\n')
    assert "standard output: is also the input" in done.err
    appended.close()
    assert run("bulk", rows, "--report-token", REPORT).status == 2  # it is closed


def test_a_file_that_grows_is_sent_as_it_was_checked(plaid, tmp_path):
    """Rows that come after the check were never checked."""
    path = tmp_path / "rows.csv"
    path.write_text("p1\np2\n")
    with InputSource(str(path)) as source:
        rows = source.rows(creation_form(REPORT))
        with path.open("a") as file:
            file.write("p3\na,b,c\n")
        assert [row.secondary_client_id for row in rows] == ["p1", "p2"]
