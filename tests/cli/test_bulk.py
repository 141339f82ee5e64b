"""The command `bulk`, run in this process: every row has exactly one outcome, whatever happens."""

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
from support import CREATE

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.output import open_output
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.row_iterators import PipedRows
from plaid_relay_async.cli.rows import creation_form
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.cli.sources import InputSource
from plaid_relay_async.simulator import Fault

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
    """Send signals to this process after a condition holds, each after a delay.

    Two signals with the same number may be merged into one if no delay separates them.
    """
    threads = []

    def interrupt(ready, *waits, numbers=(signal.SIGINT,)):
        def send():
            deadline = time.monotonic() + 60
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            for wait, number in zip(waits, itertools.cycle(numbers), strict=False):
                if wait:  # without a sleep, no other thread runs in between
                    time.sleep(wait)
                os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=send, daemon=True))
        threads[-1].start()

    yield interrupt
    for thread in threads:
        thread.join()


@pytest.fixture
def stdout(monkeypatch):
    """Replace standard output with a pipe, and return its reading end."""
    # As a function, because pytest replaces standard output after the fixtures and before the test.
    with contextlib.ExitStack() as stack:

        def stdout():
            reading, writing = os.pipe()
            monkeypatch.setattr(sys, "stdout", stack.enter_context(os.fdopen(writing, "w")))
            stack.callback(os.close, reading)
            return reading

        yield stdout


# Success


def test_each_partner_gets_a_token(plaid, run, partners, tmp_path):
    """Each partner gets a token: status 0, a private file with one line each, and no token anywhere else."""
    out = tmp_path / "out.jsonl"
    result = run("bulk", partners(120), "--report-token", REPORT, "--output", out, "--concurrency", 7)
    assert (result.status, result.out) == (0, "")
    lines = read(out)
    assert [list(line) for line in lines] == [KEYS] * 120
    assert tokens(lines) == ledger(plaid)
    assert {(line["outcome"], line["error_code"], line["attempts"]) for line in lines} == {
        ("created", None, 1)
    }
    assert {line["request_id"] for line in lines} == {entry["request_id"] for entry in plaid.ledger}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    names = ("created", "failed", "unknown", "not_attempted")
    assert [result.count(name) for name in names] == [120, 0, 0, 0]
    assert "credit-relay" not in result.err


def test_standard_output_is_the_default(plaid, run, partners):
    """Outcomes go to standard output as JSON Lines, everything else to standard error."""
    result = run("bulk", partners(3), "--report-token", REPORT)
    assert tokens(result.lines) == ledger(plaid)
    assert result.count("created") == 3


def test_csv_and_append(plaid, run, partners, tmp_path):
    """An output that ends in `.csv` is CSV with one header; an existing file requires --append."""
    out = tmp_path / "out.csv"
    args = ("bulk", partners(3), "--report-token", REPORT, "--output", out)
    assert run(*args).status == 0
    rejected = run(*args)
    assert rejected.status == 2
    assert "already exists" in rejected.err
    assert len(plaid.ledger) == 3
    assert run(*args, "--append").status == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == KEYS
    assert {row["relay_token"] for row in rows} == {entry["relay_token"] for entry in plaid.ledger}
    assert len(rows) == 6


def test_append_to_a_torn_line(plaid, run, partners, tmp_path):
    """--append starts a new line after a torn one, and creates a file that doesn't exist."""
    out = tmp_path / "out.jsonl"
    args = ("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append")
    assert run(*args).status == 0
    with out.open("a") as file:
        file.write('{"outc')
    assert run(*args).status == 0
    assert len(out.read_text().splitlines()) == 3


def test_append_to_an_empty_file(plaid, run, partners, tmp_path):
    """--append accepts an empty private file."""
    out = tmp_path / "out.csv"
    out.touch(0o600)
    assert run("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append").status == 0
    assert out.read_text().startswith("outcome,")


def test_output_that_others_may_read(plaid, run, partners, tmp_path):
    """An output that other users can read is rejected."""
    out = tmp_path / "out.jsonl"
    out.touch(0o644)
    result = run("bulk", partners(1), "--report-token", REPORT, "--output", out, "--append")
    assert result.status == 2
    assert "chmod 600" in result.err
    assert not plaid.ledger


@pytest.mark.parametrize("append", [[], ["--append"]])
def test_output_that_cannot_be_created(plaid, run, partners, tmp_path, append):
    """An output that can't be created is reported before anything is sent."""
    result = run("bulk", partners(1), "--report-token", REPORT, "--output", tmp_path / "no" / "out", *append)
    assert result.status == 2
    assert "No such file or directory" in result.err
    assert not plaid.requests


def test_output_that_is_a_folder(plaid, run, partners, tmp_path):
    """A folder as output is rejected."""
    result = run("bulk", partners(1), "--report-token", REPORT, "--output", tmp_path, "--append")
    assert result.status == 2
    assert "directory" in result.err


def test_rows_with_their_own_report(plaid, run, tmp_path):
    """A row's report and webhook are used; --report-token applies to rows without a report."""
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
    """`@FILE` and `-` read the report token from a file and from standard input."""
    file = tmp_path / "token"
    file.write_text(f"{REPORT}\n")
    assert run("bulk", partners(1), "--report-token", f"@{file}").status == 0
    stdin(f"{REPORT}\n")
    assert run("bulk", partners(1), "--report-token", "-").status == 0
    assert len(plaid.ledger) == 2


def test_no_rows(plaid, run, partners):
    """An input without rows succeeds."""
    assert run("bulk", partners(0), "--report-token", REPORT).status == 0


# Failures


def test_failures_and_unknowns(plaid, run, partners):
    """Status 3 takes precedence over 1; the table counts outcomes and error codes."""
    plaid.fail(
        Fault(secondary_client_id="p3", status=400, body={"error_code": "INVALID_FIELD"}),
        Fault(secondary_client_id="p4", close=True, when="after"),
    )
    path = partners(9)
    path.write_text(path.read_text() + "p0\n")
    result = run("bulk", path, "--report-token", REPORT)
    assert result.status == 3
    names = ("created", "failed", "unknown", "INVALID_FIELD", "DuplicateRequestError", "OutcomeUnknownError")
    assert [result.count(name) for name in names] == [7, 2, 1, 1, 1, 1]
    (unknown,) = [line for line in result.lines if line["outcome"] == "unknown"]
    assert (unknown["secondary_client_id"], unknown["attempts"]) == ("p4", 1)
    assert sorted(line["error_code"] or "" for line in result.lines)[-3:] == [
        "DuplicateRequestError",
        "INVALID_FIELD",
        "OutcomeUnknownError",
    ]


def test_some_failed(plaid, run, partners):
    """A failed row leads to status 1."""
    plaid.fail(Fault(secondary_client_id="p3", status=400))
    result = run("bulk", partners(9), "--report-token", REPORT)
    assert (result.status, result.count("failed")) == (1, 1)


def test_a_shared_error(plaid, run, partners):
    """An error that all requests share stops the batch; every row that wasn't sent is listed."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    result = run("bulk", partners(200), "--report-token", REPORT, "--concurrency", 2)
    assert result.status == 1
    assert "because all requests share this error: Plaid responded with INVALID_API_KEYS" in result.err
    assert sorted(line["secondary_client_id"] for line in result.lines) == sorted(f"p{n}" for n in range(200))
    assert result.count("not_attempted") >= 190
    assert {line["attempts"] for line in result.lines if line["outcome"] == "not_attempted"} == {0}


def test_an_error_of_a_report(plaid, run, tmp_path):
    """An error of a report fails its remaining requests unsent, and doesn't stop other reports."""
    reports = [plaid.add_report(), "assets-sandbox-mistyped", plaid.add_report()]
    rows = tmp_path / "in.csv"
    lines = [f"{report},p{n}\n" for n in range(100) for report in reports]
    rows.write_text("report_token,secondary_client_id\n" + "".join(lines))
    result = run("bulk", rows, "--concurrency", 5)
    unsent = [line for line in result.lines if (line["outcome"], line["attempts"]) == ("failed", 0)]
    assert result.status == 1
    assert (result.count("created"), result.count("failed"), result.count("not_attempted")) == (200, 100, 0)
    assert len(plaid.ledger) == 200
    assert len(plaid.requests) == 300 - len(unsent) <= 200 + 3 + 5
    assert {(line["error_code"], line["request_id"]) for line in unsent} == {
        ("INVALID_ASSET_REPORT_TOKEN", None)
    }
    message = f"{len(unsent)} requests: not sent after 3 errors of the same report: Plaid responded with INVALID_ASSET"
    assert result.err.count(message) == 1
    assert "all requests share this error" not in result.err
    assert "mistyped" not in result.err


def test_invalid_rows_of_a_file(plaid, run, tmp_path):
    """All invalid rows are reported before anything is sent, and no output is created."""
    rows, out = tmp_path / "in.csv", tmp_path / "out"
    rows.write_text("secondary_client_id,webhook\na,\nb c,\nd,nowhere\n")
    result = run("bulk", rows, "--report-token", REPORT, "--output", out)
    assert result.status == 2
    assert f"{rows}:3: secondary_client_id: contains whitespace" in result.err
    assert f"{rows}:4: webhook: must be an http(s) URL" in result.err
    assert "nothing was sent" in result.err
    assert not plaid.requests
    assert not out.exists()


def test_many_invalid_rows(plaid, run, tmp_path):
    """Only the first twenty invalid rows are printed."""
    rows = tmp_path / "in.csv"
    rows.write_text("secondary_client_id,webhook\n" + "a b,\n" * 50)
    result = run("bulk", rows, "--report-token", REPORT)
    assert result.err.count("secondary_client_id:") == 20
    assert "and 30 more" in result.err


def test_a_file_that_changes_meanwhile(plaid, start, run, partners):
    """A row that becomes invalid after the check ends the batch, as in a pipe."""
    plaid = start(latency=0.02)
    path = partners(5000)

    def change():
        wait_until(lambda: ledger(plaid))
        path.write_text("secondary_client_id\n" + "bad row\n" * 20_000)

    thread = threading.Thread(target=change)
    thread.start()
    result = run("bulk", path, "--report-token", REPORT, "--concurrency", 5)
    thread.join()
    assert result.status == 2
    assert "whitespace" in result.err
    assert tokens(result.lines) == ledger(plaid)


# Pipes


@pytest.mark.parametrize("args", [[], ["--stream"]])
def test_from_a_pipe(plaid, run, stdin, args):
    """All rows of a pipe are sent: checked like those of a file or, with --stream, as they arrive."""
    stdin("".join(f"p{n}\n" for n in range(300)))
    result = run("bulk", "-", "--report-token", REPORT, *args)
    assert result.status == 0
    assert tokens(result.lines) == ledger(plaid)
    assert len(plaid.ledger) == 300


def test_from_a_named_pipe(plaid, run, tmp_path):
    """A file that can't be read twice is handled like a pipe."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("p1\np2\n",), daemon=True)
    writer.start()
    assert run("bulk", path, "--report-token", REPORT).status == 0
    writer.join()
    assert sorted(ledger(plaid)) == ["p1", "p2"]


def test_an_invalid_row_in_a_pipe(plaid, run, stdin):
    """With --stream an invalid row stops sending when it arrives; the rows before it have their outcome."""
    stdin("p1\np2\nbad row\np3\n")
    result = run("bulk", "-", "--stream", "--report-token", REPORT)
    assert result.status == 2
    assert "<stdin>:3: secondary_client_id: contains whitespace" in result.err
    assert {line["secondary_client_id"] for line in result.lines} == {"p1", "p2"}
    assert tokens(result.lines) == ledger(plaid)


def test_a_shared_error_from_a_pipe(plaid, run, stdin):
    """After a shared error, the rest of a pipe is listed, up to an invalid row."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    stdin("".join(f"p{n}\n" for n in range(300)) + "bad row\n")
    result = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 2)
    assert result.status == 2
    assert len(result.lines) == 300


def test_a_shared_error_from_a_pipe_that_stays_open(plaid, run, stdin, interrupt):
    """After a shared error the command continues to read and list rows until it is interrupted."""
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    stdin("".join(f"p{n}\n" for n in range(30)), closed=False)
    interrupt(lambda: plaid.counts[CREATE] >= 3, 0.3)
    result = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 2)
    assert result.status == 1
    assert len(result.lines) == 30
    assert "not read to its end" in result.err


def test_a_pipe_that_stays_open(plaid, run, stdin, interrupt):
    """An interrupt doesn't wait for the end of the pipe, and the command reports that it wasn't reached."""
    stdin("p1\np2\n", closed=False)
    interrupt(lambda: len(plaid.ledger) == 2, 0.1)
    result = run("bulk", "-", "--stream", "--report-token", REPORT)
    assert result.status == 1
    assert "stopping: 2 done, 0 pending" in result.err
    assert "not read to its end" in result.err
    assert tokens(result.lines) == ledger(plaid)


# Signals


def test_first_signal_drains(start, run, partners, interrupt):
    """After the first signal, calls in flight are awaited, and other rows are listed as not attempted."""
    plaid = start(latency=0.3)
    interrupt(lambda: plaid.counts[CREATE] >= 5, 0.05, numbers=[signal.SIGTERM])
    result = run("bulk", partners(100), "--report-token", REPORT, "--concurrency", 5)
    assert result.status == 1
    assert "press Ctrl-C again" in result.err
    assert len(result.lines) == 100
    assert tokens(result.lines) == ledger(plaid)
    assert result.count("unknown") == 0
    assert result.count("created") + result.count("not_attempted") == 100


def test_second_signal_abandons(start, run, partners, interrupt):
    """The second signal abandons the calls in flight, whose outcome is unknown; a third changes nothing."""
    plaid = start(latency=60.0)
    numbers = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    interrupt(lambda: plaid.counts[CREATE] >= 5, 0.05, 0.2, 0, numbers=numbers)
    started = time.monotonic()
    result = run("bulk", partners(20), "--report-token", REPORT, "--concurrency", 5)
    assert time.monotonic() - started < 30
    assert result.status == 3
    assert "abandoning the calls in flight: 0 done, 5 abandoned" in result.err
    assert (result.count("unknown"), result.count("not_attempted")) == (5, 15)
    assert len(result.lines) == 20


def test_signal_during_a_pause(plaid, run, partners, interrupt):
    """A signal during a pause after a 429: requests that wait for its end are not sent, and are listed."""
    plaid.fail(Fault(status=429, headers={"Retry-After": "30"}, times=1))
    interrupt(lambda: plaid.counts[CREATE] >= 1, 0.3)
    started = time.monotonic()
    result = run("bulk", partners(20), "--report-token", REPORT, "--concurrency", 5)
    assert time.monotonic() - started < 20
    assert result.status == 1
    assert len(result.lines) == 20
    assert {line["outcome"] for line in result.lines} == {"created", "failed", "not_attempted"}
    assert tokens(result.lines) == ledger(plaid)


# Bugs


async def test_rows_that_raise(start, tmp_path):
    """An unexpected exception is raised unchanged, after the outcome of what was sent is written."""
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
    """After an exception a new output file is kept only if it has content."""
    path = tmp_path / "out"

    def fail():
        with open_output(str(path)) as output:
            if written:
                output.write({"outcome": "failed"})
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert path.exists() == written


# Outputs that can't be written


def test_closed_pipe(start, run, partners, stdout, rescued):
    """If the pipe is closed, calls in flight drain, unread outcomes are rescued, and no token is printed."""
    reading = stdout()
    plaid = start(latency=0.02)
    read = []
    reader = threading.Thread(
        target=lambda: (read.append(os.read(reading, 450)), os.dup2(os.open(os.devnull, 0), reading)),
        daemon=True,
    )
    reader.start()
    result = run("bulk", partners(500), "--report-token", REPORT, "--concurrency", 5)
    reader.join()
    assert result.status == 1
    assert "the output can't be written: Broken pipe" in result.err
    lines = rescued()
    assert f"rescued: {len(lines)} outcomes" in result.err
    assert "credit-relay" not in result.err
    in_the_pipe = [json.loads(line) for line in read[0].split(b"\n")[:-1]]
    assert tokens(in_the_pipe) | tokens(lines) == ledger(plaid)
    assert 0 < len(lines) <= 20
    assert f"not written: {result.count('not_attempted'):,} rows that were not attempted" in result.err
    assert result.count("created") == len(plaid.ledger) < 500


def test_closed_pipe_while_rows_arrive(start, run, stdin, stdout):
    """If the output is closed, the command stops reading its input."""
    reading = stdout()
    start(latency=0.02)
    stdin("".join(f"p{n}\n" for n in range(300)), closed=False)
    os.dup2(os.open(os.devnull, 0), reading)
    result = run("bulk", "-", "--stream", "--report-token", REPORT, "--concurrency", 5)
    assert result.status == 1
    assert "not read to its end" in result.err


def test_slow_reader(start, run, partners, stdout):
    """A slow reader slows down sending, and receives every outcome in the end."""
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
    result = run("bulk", partners(300), "--report-token", REPORT, "--concurrency", 5)
    reader.join()
    assert result.status == 0
    assert parts[0] < 100
    lines = [json.loads(line) for line in b"".join(parts[1:]).splitlines()]
    assert tokens(lines) == ledger(plaid)


def test_reader_that_never_reads(start, run, partners, stdout, interrupt, rescued):
    """A second signal ends the wait for a reader, and the unwritten outcomes are rescued."""
    reading = stdout()
    plaid = start()
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    interrupt(lambda: len(plaid.ledger) >= 5, 0.5, 0.3)
    result = run("bulk", partners(300), "--report-token", REPORT, "--concurrency", 5)
    assert result.status == 1
    assert "it isn't being read" in result.err
    written = [json.loads(line) for line in os.read(reading, 65536).split(b"\n")[:-1]]
    assert tokens(written) | tokens(rescued()) == ledger(plaid)
    assert len(written) + len(rescued()) == len(plaid.ledger)


def test_full_disk(plaid, run, partners, tmp_path, rescued):
    """On a full disk sending stops, the file ends with a complete line, and the other tokens are rescued."""
    out = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        result = run("bulk", partners(300), "--report-token", REPORT, "--output", out, "--concurrency", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.status == 1
    assert "the output can't be written: File too large" in result.err
    written = tokens(read(out))
    assert written.items() < ledger(plaid).items()
    assert written | tokens(rescued(tmp_path)) == ledger(plaid)
    assert len(plaid.ledger) < 300


def test_the_output_belongs_to_one_run(plaid, run, partners, tmp_path):
    """A second run with the same output is rejected, because both would mix up their lines."""
    out = tmp_path / "out"
    with open_output(str(out)):
        result = run("bulk", partners(3), "--report-token", REPORT, "--output", out, "--append")
    assert (result.status, "another process is writing to it" in result.err, len(plaid.ledger)) == (
        2,
        True,
        0,
    )


def test_the_input_is_not_the_output(plaid, run, tmp_path, monkeypatch):
    """An output that is also the input is rejected, even if standard output appends to that file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"p1"\n')
    rows.chmod(0o600)
    result = run("bulk", rows, "--report-token", REPORT, "--output", rows, "--append")
    assert (result.status, "is also the input" in result.err, len(plaid.ledger)) == (2, True, 0)
    with rows.open("a") as appended:
        monkeypatch.setattr(sys, "stdout", appended)
        result = run("bulk", rows, "--report-token", REPORT)
    assert (result.status, len(plaid.ledger), rows.read_text()) == (2, 0, '"p1"\n')
    assert "standard output: is also the input" in result.err
    appended.close()
    assert run("bulk", rows, "--report-token", REPORT).status == 2  # standard output is closed


def test_a_file_that_grows_is_sent_as_it_was_checked(plaid, tmp_path):
    """Rows that are added to a file after the check are not sent."""
    path = tmp_path / "rows.csv"
    path.write_text("p1\np2\n")
    with InputSource(str(path)) as source:
        rows = source.rows(creation_form(REPORT))
        with path.open("a") as file:
            file.write("p3\na,b,c\n")
        assert [row.secondary_client_id for row in rows] == ["p1", "p2"]
