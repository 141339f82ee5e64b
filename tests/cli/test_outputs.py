"""Outputs that can't be written: no relay token is lost, and sending stops."""

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import Any

import pytest
from support import CREATE, REFRESH

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import UsageError, sanitize
from plaid_relay_async.cli.output import Output, open_output
from plaid_relay_async.cli.progress import ProgressDisplay
from plaid_relay_async.cli.rescue import Rescue
from plaid_relay_async.cli.row_iterators import FileRows
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.display import escape_surrogates
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
LINE = {
    "outcome": "created",
    "secondary_client_id": "p",
    "relay_token": "credit-relay-1",
    "request_id": "r1",
    "error_code": None,
    "attempts": 1,
}


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def respond_with(plaid, partner, request_id, token="credit-relay-strange"):
    body = {"relay_token": token, "request_id": request_id}
    plaid.fail(Fault(path=CREATE, secondary_client_id=partner, status=200, body=body))


def shell(line, **settings):
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, **settings)


@pytest.fixture
def pipe():
    """Create a pipe, and return its reading and its writing end."""
    with contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(os.fdopen(end, mode, 0))
            for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        ]
        yield ends


def fill(writing):
    """Fill a pipe."""
    os.set_blocking(writing.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing.fileno(), bytes(4096)):
            pass
    os.set_blocking(writing.fileno(), True)


@pytest.fixture
def later():
    """Call a function in a thread, one second after a condition holds."""
    threads = []

    def later(ready, act):
        def wait():
            deadline = time.monotonic() + 60
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1)
            act()

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[-1].start()

    yield later
    for thread in threads:
        thread.join()


# ----------------------------------------------------------------------------- unusual strings


@pytest.mark.parametrize("partner", ["p0", "p30"])
def test_a_lone_surrogate_in_csv(plaid, run, partners, tmp_path, partner):
    """A lone surrogate is escaped, and no row is lost because of it."""
    out = tmp_path / "out.csv"
    respond_with(plaid, partner, "\ud800")
    result = run("bulk", partners(60), "--report-token", REPORT, "--output", out, "--concurrency", 3)
    assert result.status == 0
    rows = {row["secondary_client_id"]: row for row in read_csv(out)}
    assert rows[partner] == {key: "" if value is None else str(value) for key, value in LINE.items()} | {
        "secondary_client_id": partner,
        "relay_token": "credit-relay-strange",
        "request_id": "\\ud800",
    }
    assert len(rows) == 60
    assert {name: rows[name]["relay_token"] for name in ledger(plaid)} == ledger(plaid)


@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "a\nb", "\0", '"', ",", "\x1b[2J", "\x85\u2028", ""])
def test_any_other_string_in_csv(plaid, run, partners, tmp_path, text):
    """Any other string is read back as it was sent, and the next rows are separate records."""
    out = tmp_path / "out.csv"
    respond_with(plaid, "p0", text)
    assert run("bulk", partners(3), "--report-token", REPORT, "--output", out, "--concurrency", 1).status == 0
    assert [row["secondary_client_id"] for row in read_csv(out)] == ["p0", "p1", "p2"]
    assert read_csv(out)[0]["request_id"] == text


def test_the_output_of_bulk_is_an_input_however_long_its_cells_are(plaid, run, partners, tmp_path):
    """`fetch` reads CSV whose cells exceed the default limit of Python's csv module."""
    out = tmp_path / "out.csv"
    respond_with(plaid, "p0", "x" * 200_000)
    assert run("bulk", partners(1), "--report-token", REPORT, "--output", out).status == 0
    result = run("fetch", out, "--dir", tmp_path / "reports")
    assert [line["error_code"] for line in result.lines] == ["INVALID_RELAY_TOKEN"]


@pytest.mark.parametrize("code", ["[/nope]", "[red]x", ":smile:", "\x1b[2J", "\ud800", "a\nb", "x" * 500_000])
def test_an_error_code_in_the_table(plaid, run, partners, code):
    """An error code is displayed without markup and control characters, and truncated if it is long."""
    plaid.fail(Fault(status=400, body={"error_code": code, "error_type": "INVALID_INPUT"}))
    result = run("bulk", partners(1), "--report-token", REPORT)
    assert result.status == 1
    assert [line["error_code"] for line in result.lines] == [escape_surrogates(code)]
    assert sanitize(code)[:60] in result.err
    assert "\x1b" not in result.err
    assert len(result.err) < 10_000


def test_a_message_on_a_terminal(plaid, run):
    """A server's message can't control the terminal."""
    plaid.fail(Fault(status=400, body={"error_code": "X", "error_message": "\x1b]0;title\x07 [red]é\u202e"}))
    result = run("create", "--report-token", REPORT, "--partner", "p")
    assert result.status == 1
    assert r"\x1b]0;title\x07 [red]é\u202e" in result.err


def test_the_status_of_a_run_on_a_terminal(plaid, run, tmp_path):
    """A server's error that was recorded can't control the terminal."""
    plaid.fail(
        Fault(status=500, body={"error_code": "[/x]", "error_type": "API_ERROR", "request_id": "\x1b[2J\nr"})
    )
    args = ("--journal", tmp_path / "relay.db")
    result = run("create", "--report-token", REPORT, "--partner", "p", *args, "--run", "r")
    assert result.status == 3
    result = run("status", "r", *args)
    assert result.status == 3
    assert r"unknown: p ([/x], \x1b[2J\nr)" in result.out


def test_a_journal_escapes_unsupported_characters(plaid, run, tmp_path):
    """A NUL and a lone surrogate in a request ID are recorded as escapes."""
    args = ("--journal", tmp_path / "relay.db")
    respond_with(plaid, "p", "a\0\ud800é")
    result = run("create", "--report-token", REPORT, "--partner", "p", *args, "--run", "r")
    assert [line["request_id"] for line in result.lines] == ["a\0\ud800é"]
    assert [line["request_id"] for line in run("export", "r", *args).lines] == [r"a\x00\ud800é"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_locale_cannot_represent(plaid, run, partners, tmp_path, encoding):
    """`status`, `export` and `keys list` escape characters that the locale can't represent."""
    plaid.fail(Fault(status=500))
    args = ("--journal", str(tmp_path / "relay.db"))
    result = run("create", "--report-token", REPORT, "--partner", "żółw", *args, "--run", "żółw")
    assert result.status == 3
    keys = ("--keys", str(tmp_path / "keys.json"))
    assert run("gateway", "keys", "add", "ann", "--partner", "żółw", *keys).status == 0

    def run_with_encoding(*args):
        environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        command = [sys.executable, "-m", "plaid_relay_async.cli", *args]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    assert run_with_encoding("status", "żółw", *args).stdout.count(rb"\u017c") == 1
    assert run_with_encoding("runs", *args).stdout.count(rb"\u017c") == 1
    assert json.loads(run_with_encoding("export", "żółw", *args).stdout)["secondary_client_id"] == "żółw"
    assert rb"\u017c" in run_with_encoding("gateway", "keys", "list", *keys).stdout


# --------------------------------------------------------------------------------- standard output is closed


@pytest.mark.parametrize("closed", [">&-", pytest.param("1</dev/null", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "args",
    [
        f"create --report-token {REPORT} --partner p",
        f"bulk partners.csv --report-token {REPORT}",
        "fetch tokens.txt --dir reports",
        "get token",
        "pdf token --output -",
        "refresh token",
        "remove token",
        "gateway keys add ann --keys keys.json",
    ],
)
def test_a_closed_standard_output(plaid, partners, tmp_path, args, closed):
    """A closed standard output is rejected before anything is sent or a key is created."""
    partners(1)
    (tmp_path / "tokens.txt").write_text("credit-relay-sandbox-1\n")
    result = shell(f"{' '.join(COMMAND)} {args} {closed}", cwd=tmp_path)
    assert (result.returncode, "standard output isn't open" in result.stderr) == (2, True), result.stderr
    assert not plaid.requests
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize("args", [f"bulk - --report-token {REPORT}", "remove -"])
def test_a_closed_standard_input(plaid, args):
    """A closed standard input is an error, not an empty input."""
    result = shell(f"{' '.join(COMMAND)} {args} <&-")
    assert (result.returncode, "isn't open" in result.stderr) == (2, True), result.stderr


def test_status_without_standard_output(plaid, run, tmp_path):
    """`status` works without standard output, for its exit status."""
    args = ("--journal", tmp_path / "relay.db")
    assert run("create", "--report-token", REPORT, "--partner", "p", *args, "--run", "r").status == 0
    result = shell(f"{' '.join(COMMAND)} status r --journal {tmp_path / 'relay.db'} >&-")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)


# ------------------------------------------------------------------------------------------- the rescue file


def test_an_unexpected_error_in_the_output(tmp_path, rescued):
    """An outcome that can't be formatted is rescued, and so are all later ones."""
    path = tmp_path / "out.jsonl"
    with open_output(str(path)) as output:
        output.write(LINE)
        output.write(LINE | {"request_id": io})
        output.write(LINE | {"relay_token": "credit-relay-3"})
        output.write(LINE | {"outcome": "not_attempted"})
    assert isinstance(output.error, TypeError)
    assert json.loads(path.read_text()) == LINE
    assert rescued(tmp_path) == [LINE | {"request_id": repr(io)}, LINE | {"relay_token": "credit-relay-3"}]
    assert "not written: 1 rows that were not attempted" in output.problem_messages()


async def test_a_bug_in_the_output_ends_a_run(start, tmp_path, rescued):
    """An unexpected error of the output is raised once all created tokens are stored."""
    plaid = start(latency=0.05)

    class Broken:
        def __init__(self, output: Output) -> None:
            self._output = output

        def __getattr__(self, name: str) -> Any:
            return getattr(self._output, name)

        def write(self, fields: dict[str, Any], **options: bool) -> None:
            self._output.write(fields | {"attempts": io}, **options)

    requests = RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(20)])
    with open_output(str(tmp_path / "out")) as output, Signals() as signals:
        rows = FileRows(iter(requests), 20)
        run = BatchRunner(RelayClient(), rows, Broken(output), ProgressDisplay(None), signals, 3)
        with pytest.raises(TypeError):
            await run()
    assert {row["relay_token"] for row in rescued(tmp_path)} == set(ledger(plaid).values())
    assert 0 < len(plaid.ledger) < 20


def test_queued_outcomes_are_rescued(rescued, pipe):
    """Outcomes that wait for a reader are rescued even if the output itself has not failed."""
    _, writing = pipe
    fill(writing)

    def fail():
        with open_output(f"/dev/fd/{writing.fileno()}", append=True) as output:
            output.write(LINE)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert rescued() == [LINE]


@pytest.mark.parametrize("read_count", [0, 1, 3])
def test_unread_outcomes_are_rescued(rescued, pipe, read_count):
    """Outcomes that the reader of a pipe left unread are rescued; none are if it read all."""
    reading, writing = pipe
    with Rescue() as rescue:
        output = Output(io.FileIO(writing.fileno(), "w", closefd=False), as_csv=False, rescue=rescue)
        for number in range(3):
            output.write(LINE | {"attempts": number})
        output.close()
        assert output.error is None
        size = len(json.dumps(LINE)) + 1
        assert len(reading.read(size * read_count)) == size * read_count
        reading.close()
        output.close()
    assert (output.error is None) == (read_count == 3)
    assert [row["attempts"] for row in rescued()] == [0, 1, 2][read_count:]


def test_a_terminal_that_was_closed(rescued):
    """Outcomes that a closed terminal may not have shown are rescued."""
    screen, terminal = pty.openpty()
    with Rescue() as rescue, io.FileIO(terminal, "w") as file:
        output = Output(file, as_csv=False, rescue=rescue)
        output.write(LINE)
        os.close(screen)
        output.write(LINE)
    assert len(rescued()) == 2
    assert output.error is not None


def test_read_lines_are_dropped(pipe):
    """The memory of a long run through a pipe is bounded."""
    reading, writing = pipe
    output = Output(io.FileIO(writing.fileno(), "w", closefd=False), as_csv=False)
    tracemalloc.start()
    try:
        for number in range(80):
            output.write(LINE | {"request_id": f"{number:02}" * 30_000})
            assert reading.read(100_000)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 25 * 60_000  # a pipe has at most a mebibyte that isn't read


def test_a_long_line_and_no_reader(plaid, spawn, partners, rescued):
    """A long line without a reader doesn't block the command: a second signal ends it."""
    respond_with(plaid, "p0", "x" * 1_000_000)
    process = spawn("bulk", partners(1), "--report-token", REPORT)
    while not plaid.requests:
        time.sleep(0.01)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert process.returncode == 1
    (row,) = rescued()
    assert (row["relay_token"], len(row["request_id"])) == ("credit-relay-strange", 1_000_000)


def test_a_long_line_and_a_slow_reader(plaid, spawn, partners):
    """A slow reader receives a long line completely."""
    respond_with(plaid, "p0", "x" * 900_000)
    process = spawn("bulk", partners(1), "--report-token", REPORT)
    time.sleep(0.5)
    assert len(json.loads(process.stdout.read())["request_id"]) == 900_000
    assert process.wait() == 0


def test_the_folders_of_a_rescue_file(tmp_path, rescued):
    """If a folder can't store a row, the next one is used; a failed row leaves no empty file."""
    row, long = (json.dumps(LINE | {"request_id": "x" * size}).encode() + b"\n" for size in (1, 2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Rescue(tmp_path / "out.csv") as rescue:
        assert rescue.paths == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(row), hard))
        try:
            assert [rescue.store(row) for _ in range(3)] == [True] * 3
            assert not rescue.store(long)
            assert rescue.store(row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.parent.name for path in rescue.paths] == [tmp_path.name, "plaid_relay_async"]
    assert len(rescued(tmp_path)) == 4


def test_a_folder_that_cannot_be_created(tmp_path, monkeypatch, rescued):
    """If a folder can't be created, the next one is used."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with Rescue() as rescue:
        assert rescue.store(b"{}\n")
    (path,) = rescue.paths
    assert path.read_bytes() == b"{}\n"
    path.unlink()


NO_SPACE = "ulimit -f 0; "


def test_a_token_that_cannot_be_stored(plaid, tmp_path):
    """A lost token is reported without its value, and the exit status is that of an unknown outcome."""
    line = f"{' '.join(COMMAND)} create --report-token {REPORT} --partner p"
    result = shell(f"{NO_SPACE}{line} > {tmp_path / 'out'}")
    assert result.returncode == 3
    assert f"not written: created p (request_id {plaid.ledger[0]['request_id']})" in result.stderr
    assert "a relay token is lost" in result.stderr
    assert plaid.ledger[0]["relay_token"] not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("journalled", "message"),
    [
        (True, "the journal has them, too: plaid-relay export"),
        (False, "a relay token is lost: no rescue file could be written"),
    ],
)
def test_a_token_that_only_the_journal_may_have(pipe, journalled, message):
    """Without a rescue file a token is lost unless the journal has it, which the message says."""

    class Full(Rescue):
        def store(self, row):
            return False

    reading, writing = pipe
    reading.close()
    output = Output(io.FileIO(writing.fileno(), "w", closefd=False), as_csv=False, rescue=Full())
    output.write(LINE, journalled=journalled)
    assert output.token_lost is not journalled
    assert output.problem_messages() == ["not written: created p (request_id r1)", message]


def test_a_run_with_a_journal_and_a_closed_pipe(plaid, run, partners, tmp_path, spawn, rescued):
    """Each token is rescued, and the message says that the journal has it too."""
    args = ("--journal", tmp_path / "relay.db")
    reading, writing = os.pipe()
    os.close(reading)
    command = ("bulk", partners(5), "--report-token", REPORT, *args, "--run", "r", "--concurrency", 1)
    process = spawn(*command, stdout=writing)
    os.close(writing)
    errors = process.stderr.read()
    assert process.wait() == 1
    assert "the journal has them, too: plaid-relay export" in errors
    assert {row["relay_token"] for row in rescued()} == set(ledger(plaid).values()) != set()
    assert {line["relay_token"] for line in run("export", "r", *args).lines} >= set(ledger(plaid).values())


def test_an_export_to_a_closed_pipe_rescues_nothing(plaid, run, partners, tmp_path, spawn, rescued):
    """An export rescues nothing, because all outcomes are in the journal."""
    args = ("--journal", tmp_path / "relay.db")
    assert run("bulk", partners(5), "--report-token", REPORT, *args, "--run", "r").status == 0
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("export", "r", *args, stdout=writing)
    os.close(writing)
    assert "the output can't be written: Broken pipe" in process.stderr.read()
    assert process.wait() == 1
    assert rescued() == []


@pytest.fixture
def refreshing(plaid):
    """A simulator that refreshes any token."""
    plaid.fail(
        Fault(path=REFRESH, status=200, body={"relay_token": "credit-relay-new", "request_id": "\ud800"})
    )
    return plaid


def test_a_refresh_into_a_closed_pipe(refreshing, spawn, rescued):
    """The new token of a refresh is rescued if the output is a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("refresh", "token", stdout=writing)
    os.close(writing)
    errors = process.stderr.read()
    assert process.wait() == 1
    assert "the output can't be written: Broken pipe\nrescued: the response, in " in errors
    assert [row["relay_token"] for row in rescued()] == ["credit-relay-new"]


def test_a_refresh_that_is_interrupted_while_it_waits_for_a_reader(
    refreshing, run, rescued, pipe, later, monkeypatch
):
    """The new token of a refresh is rescued if a signal ends the wait for a reader."""
    _, writing = pipe
    fill(writing)
    monkeypatch.setattr(sys, "stdout", writing)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    later(lambda: refreshing.requests, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run("refresh", "token").status == 1
    assert [row["relay_token"] for row in rescued()] == ["credit-relay-new"]


def test_a_refresh_that_cannot_be_stored(refreshing, tmp_path):
    """The exit status is that of an unknown outcome."""
    result = shell(f"{NO_SPACE}{' '.join(COMMAND)} refresh token > {tmp_path / 'out'}")
    assert result.returncode == 3
    assert "a relay token is lost" in result.stderr
    assert "credit-relay-new" not in result.stderr


# --------------------------------------------------------------------------------------------- appending


HEADER = "outcome,secondary_client_id,relay_token,request_id,error_code,attempts\n"
COMPLETE = HEADER + 'created,a,t,"two\nlines, and a ""quote""",,1\n'


@pytest.mark.parametrize(
    ("content", "torn"),
    [
        (COMPLETE, []),
        (COMPLETE + 'created,b,t,"x', ["created", "b", "t", "x"]),
        (COMPLETE + 'created,b,t,"x\n', ["created", "b", "t", "x\n"]),
        (COMPLETE + 'created,b,t,"x\n\ny', ["created", "b", "t", "x\n\ny"]),
        (COMPLETE + 'created,b,t,"x""', ["created", "b", "t", 'x"']),
        (COMPLETE + 'created,b,t,"x""y"', ["created", "b", "t", 'x"y']),
        (COMPLETE + 'created,b,t,"', ["created", "b", "t", ""]),
        (COMPLETE + "created,b,t", ["created", "b", "t"]),
        (COMPLETE + 'created,b,5" x', ["created", "b", '5" x']),
        ((COMPLETE + "created,b,é").encode()[:-1], ["created", "b", ""]),
        ((COMPLETE + 'created,b,"\U0001f600').encode()[:-1], ["created", "b", ""]),
    ],
)
def test_append_to_csv_that_is_torn(plaid, run, partners, tmp_path, content, torn):
    """Wherever the last row was torn, new rows are separate records; a complete file isn't changed."""
    out = tmp_path / "out.csv"
    out.touch(0o600)
    content = content.encode() if isinstance(content, str) else content
    out.write_bytes(content)
    args = ("bulk", partners(2), "--report-token", REPORT, "--output", out, "--append", "--concurrency", 1)
    assert run(*args).status == 0
    with out.open(newline="", encoding="utf-8") as file:
        _, first, *rest = csv.reader(file, strict=True)
    assert first[3] == 'two\nlines, and a "quote"'
    assert [row[1] for row in rest[-2:]] == ["p0", "p1"]
    assert rest[:-2] == ([torn] if torn else [])
    assert out.read_bytes().startswith(content[:-3])


def test_a_file_that_another_run_writes(tmp_path):
    """A second run is rejected before it terminates a line that the first one is writing."""
    path = tmp_path / "out.jsonl"
    with path.open("w") as file:
        path.chmod(0o600)
        file.write('{"half')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(UsageError, match="another process is writing to it"),
            open_output(str(path), append=True),
        ):
            pass
    assert path.read_text() == '{"half'


# ------------------------------------------------------------------------------ a named pipe without a reader


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_named_pipe_that_no_process_reads(plaid, run, partners, tmp_path, later, number):
    """The first signal ends the wait for a reader, and nothing was sent."""
    os.mkfifo(tmp_path / "fifo")
    before = signal.getsignal(number)
    later(lambda: signal.getsignal(number) is not before, lambda: os.kill(os.getpid(), number))
    result = run("bulk", partners(1), "--report-token", REPORT, "--output", tmp_path / "fifo", "--append")
    assert (result.status, "interrupted" in result.err) == (1, True)
    assert not plaid.requests


def test_a_socket_as_output(plaid, run, partners, tmp_path):
    """A socket as output is rejected immediately."""
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        result = run(
            "bulk", partners(1), "--report-token", REPORT, "--output", tmp_path / "socket", "--append"
        )
    assert (result.status, "No such device" in result.err) == (2, True)
