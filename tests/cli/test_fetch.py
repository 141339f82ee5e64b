"""`fetch`: every report that was shared with a partner comes into a file of its own, whatever happens."""

import csv
import hashlib
import io
import json
import resource
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
from simulator_http import post

from plaid_relay_async.cli.cells import InputFormat, InputTable
from plaid_relay_async.cli.rows import InputProblem, parse_rows, shared_report_form
from plaid_relay_async.models import RelayGetRequest
from plaid_relay_async.simulator import Fault

GET, PDF = "/credit/relay/get", "/credit/relay/pdf/get"
REPORT = "assets-sandbox-1111"
KEYS = ["outcome", "row", "file", "asset_report_id", "request_id", "error_code", "attempts", "decode_error"]


def share(plaid, count):
    """Relay tokens for the caller of these tests, who is owner and partner at once."""
    asked = ({"report_tokens": [plaid.add_report()], "secondary_client_id": "owner"} for _ in range(count))
    return [json.loads(post(plaid, "/credit/relay/create", body))["relay_token"] for body in asked]


@pytest.fixture
def given(plaid, tmp_path):
    """A file of so many relay tokens, and the tokens."""

    def given(count, name="tokens.txt"):
        tokens = share(plaid, count)
        path = tmp_path / name
        path.write_text("".join(f"{token}\n" for token in tokens))
        return path, tokens

    return given


def name_of(token, suffix="json"):
    return f"{hashlib.sha256(token.encode()).hexdigest()[:24]}.{suffix}"


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def outcomes(done):
    return [line["outcome"] for line in done.lines]


# The good case


def test_each_report_has_its_file(plaid, run, given, tmp_path):
    """All fetched: status 0, a file of one's own for each token, a line for each row, the table, and no token told."""
    path, tokens = given(30)
    folder = tmp_path / "reports"
    done = run("fetch", path, "--dir", folder, "--concurrency", 7)
    assert done.status == 0
    assert names_in(folder) == {name_of(token) for token in tokens}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [list(line) for line in done.lines] == [KEYS] * 30
    by_row = {line["row"]: line for line in done.lines}
    for number, token in enumerate(tokens, 1):
        line = by_row[number]
        assert line["file"] == str(folder / name_of(token))
        report = json.loads((folder / name_of(token)).read_text())["report"]
        assert line["asset_report_id"] == report["asset_report_id"]
        assert (line["outcome"], line["error_code"], line["attempts"]) == ("fetched", None, 1)
    assert {line["request_id"] for line in done.lines} == {
        r.request_id for r in plaid.requests if r.path == GET
    }
    names = ("fetched", "already_there", "failed", "not_attempted")
    assert [done.count(name) for name in names] == [30, 0, 0, 0]
    assert "credit-relay" not in done.err + done.out


def test_reports_that_cannot_be_decoded(plaid, run, given, tmp_path):
    """They are stored as Plaid sent them, their rows have the JSON path, and the status is 1."""
    path, tokens = given(3)
    asked = {"relay_token": tokens[0], "report_type": "asset"}
    body = json.loads(post(plaid, GET, asked))
    body["report"]["items"][0]["accounts"][0]["name"] = None
    text = json.dumps(body, indent=3)
    plaid.fail(Fault(path=GET, status=200, body=text, times=2))
    strict = run("fetch", path, "--dir", tmp_path / "strict", "--concurrency", 1, "--strict")
    where = "$.report.items[0].accounts[0].name"
    assert strict.status == 1
    assert [(line["outcome"], line["decode_error"]) for line in strict.lines] == [
        *[("failed", where)] * 2,
        ("fetched", None),
    ]
    assert names_in(tmp_path / "strict") == {name_of(tokens[2])}
    plaid.fail(Fault(path=GET, status=200, body=text, times=2))
    done = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", 1)
    assert done.status == 1
    assert [(line["outcome"], line["error_code"], line["decode_error"]) for line in done.lines] == [
        *[("fetched", "ResponseDecodeError", where)] * 2,
        ("fetched", None, None),
    ]
    assert (done.count("fetched"), done.count("failed"), done.count("ResponseDecodeError")) == (3, 0, 2)
    assert "they differ from its specification: 2;" in done.err
    for token, line in zip(tokens[:2], done.lines, strict=False):
        assert line["file"] == str(tmp_path / "reports" / name_of(token))
        assert Path(line["file"]).read_bytes() == text.encode()
    assert stat.S_IMODE((tmp_path / "reports" / name_of(tokens[0])).stat().st_mode) == 0o600
    again = run("fetch", path, "--dir", tmp_path / "reports")
    assert (again.status, outcomes(again)) == (0, ["already_there"] * 3)


def test_what_is_no_report_is_not_stored(plaid, run, given, tmp_path):
    """A page of a proxy, or an answer without a report, is an error with its place, and makes no file."""
    path, _ = given(2)
    plaid.fail(Fault(path=GET, status=200, body="<html>", times=1))
    plaid.fail(Fault(path=GET, status=200, body={"request_id": "q"}, times=1))
    done = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", 1)
    assert (done.status, outcomes(done)) == (1, ["failed"] * 2)
    assert {line["decode_error"] for line in done.lines} == {"$", "$.report"}
    assert names_in(tmp_path / "reports") == set()


def report_in(text):
    """The report in an answer, numbers as they are written; a field that is null is as good as none."""

    def given(pairs):
        return {name: value for name, value in pairs if value is not None}

    return json.loads(text, parse_float=str, object_pairs_hook=given)["report"]


def test_a_file_holds_the_answer(plaid, run, given, tmp_path):
    """The report is there as Plaid sent it, and, but for nulls, as `get` prints it, money to the digit."""
    path, (token,) = given(1)
    assert run("fetch", path, "--dir", tmp_path / "reports").status == 0
    stored = (tmp_path / "reports" / name_of(token)).read_text()
    sent = post(plaid, GET, {"relay_token": token, "report_type": "asset"})
    assert stored.partition('"request_id"')[0] == sent.partition('"request_id"')[0]
    assert report_in(stored) == report_in(run("get", f"@{path}").out)


def test_with_insights(plaid, run, given, tmp_path):
    """Categories are there if asked for; a PDF has none to ask for."""
    path, (token,) = given(1)
    assert run("fetch", path, "--dir", tmp_path / "with", "--insights").status == 0
    assert run("fetch", path, "--dir", tmp_path / "without").status == 0
    with_them = (tmp_path / "with" / name_of(token, "insights.json")).read_text()
    without = (tmp_path / "without" / name_of(token)).read_text()
    assert run("fetch", path, "--dir", tmp_path / "with").count("fetched") == 1  # the one isn't the other
    assert '"category"' in with_them
    assert '"category"' not in without
    refused = run("fetch", path, "--dir", tmp_path / "pdf", "--insights", "--format", "pdf")
    assert (refused.status, "--insights: requires --format json" in refused.err) == (2, True)


def test_pdfs(plaid, run, given, tmp_path):
    """They have no id, and names of their own."""
    path, tokens = given(3)
    done = run("fetch", path, "--dir", tmp_path, "--format", "pdf")
    assert done.status == 0
    assert all((tmp_path / name_of(token, "pdf")).read_bytes().startswith(b"%PDF-") for token in tokens)
    assert {line["asset_report_id"] for line in done.lines} == {None}


def test_what_is_there_is_not_fetched_again(plaid, run, given, tmp_path):
    """A run can be repeated: it fetches what is missing, and says of the rest that it is there."""
    path, tokens = given(10)
    folder = tmp_path / "reports"
    folder.mkdir()
    for token in tokens[:4]:
        (folder / name_of(token)).write_text("kept")
    first = run("fetch", path, "--dir", folder)
    assert (first.status, plaid.counts[GET]) == (0, 6)
    assert {line["row"] for line in first.lines if line["outcome"] == "already_there"} == {1, 2, 3, 4}
    assert (folder / name_of(tokens[0])).read_text() == "kept"
    again = run("fetch", path, "--dir", folder)
    assert (again.status, plaid.counts[GET], again.count("already_there")) == (0, 6, 10)
    there = again.lines[0]
    assert there["file"] == str(folder / name_of(tokens[there["row"] - 1]))
    assert (there["attempts"], there["request_id"]) == (0, None)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_output_of_bulk_is_an_input(plaid, run, tmp_path, suffix):
    """Rows without a token, for there is none, are passed over."""
    plaid.fail(
        Fault(secondary_client_id="refused", status=400), Fault(secondary_client_id="lost", close=True)
    )
    out, folder = tmp_path / f"out.{suffix}", tmp_path / "reports"
    partners = tmp_path / "partners.csv"
    partners.write_text("refused\nowner\nlost\n")
    assert run("bulk", partners, "--report-token", REPORT, "--output", out).status == 3
    done = run("fetch", out, "--dir", folder)
    assert (done.status, outcomes(done)) == (0, ["fetched"])
    assert names_in(folder) == {name_of(plaid.ledger[0]["relay_token"])}


def test_from_a_pipe(plaid, run, stdin, tmp_path):
    """Tokens are fetched as they come."""
    tokens = share(plaid, 5)
    stdin("".join(f"{token}\n" for token in tokens))
    done = run("fetch", "-", "--dir", tmp_path)
    assert (done.status, sorted(line["row"] for line in done.lines)) == (0, [1, 2, 3, 4, 5])
    stdin("".join(f"{token}\n" for token in tokens))
    assert set(outcomes(run("fetch", "-", "--dir", tmp_path))) == {"already_there"}


def test_csv_and_append(plaid, run, given, tmp_path):
    """`.csv` means CSV with a header of these columns, once."""
    path, _ = given(2)
    out = tmp_path / "out.csv"
    words = ("fetch", path, "--dir", tmp_path / "reports", "--output", out)
    assert run(*words).status == 0
    assert run(*words).status == 2
    assert run(*words, "--append").status == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [list(row) for row in rows] == [KEYS] * 4
    assert [row["outcome"] for row in rows] == ["fetched"] * 2 + ["already_there"] * 2


# The input


def read(text, name="in.csv"):
    form = shared_report_form(RelayGetRequest)
    table = InputTable(io.BufferedReader(io.BytesIO(text.encode())), name, form.columns, InputFormat())
    return [
        row.text if isinstance(row, InputProblem) else (row.line, row.request.relay_token)
        for _, row in parse_rows(table, form)
    ]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("in.csv", "", []),
        ("-", "t1\nt2\n", [(1, "t1"), (2, "t2")]),
        ("in.csv", "relay_token\nt1\n\nt2\n", [(2, "t1"), (4, "t2")]),
        ("in.csv", "name,relay_token,report_tokens\nAnn,t1,[\n", [(2, "t1")]),
        ("in.jsonl", '"t1"\n{"relay_token": "t2", "note": 5}\n', [(1, "t1"), (2, "t2")]),
        (
            "in.csv",
            "outcome,relay_token\nfailed,\nunknown,\ncreated,t1\nnot_attempted,\nfailed,t2\n",
            [(4, "t1"), (6, "t2")],
        ),
        ("-", '{"outcome": "failed", "relay_token": null}\n{"outcome": "unknown"}\n', []),
    ],
)
def test_forms(name, text, rows):
    """CSV with or without a header, JSON Lines, other columns, and outcomes without a token."""
    assert read(text, name) == rows


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("in.csv", "outcome,relay_token\ncreated,\n", "in.csv:2: relay_token: is empty"),
        ("in.csv", "relay_tokens\nt\n", "in.csv:1: unknown column relay_tokens; did you mean relay_token?"),
        (
            "in.csv",
            "token\nt\n",
            "in.csv:1: relay_token: isn't in the header; the header has token; the columns are",
        ),
        (
            "in.csv",
            "a,b\n",
            "in.csv:1: relay_token: isn't in the header; the header has a, b; the columns are",
        ),
        ("in.csv", "t1\nt 2\n", "in.csv:2: relay_token: holds white space"),
        ("-", '{"outcome": "created"}\n', "-:1: relay_token: is missing"),
        ("-", '{"relay_token": 7}\n', "-:1: relay_token: must be a string, not int"),
        ("-", "[1]\n", "-:1: must be an object with relay_token, or a relay token as a string"),
    ],
)
def test_problems(name, text, problem):
    """The file, the line and the column are named, and no token."""
    (found,) = [row for row in read(text, name) if isinstance(row, str)]
    assert found.startswith(problem)


def test_bad_rows_of_a_file(plaid, run, tmp_path):
    """They are named before anything is sent, and no output is made."""
    rows, out = tmp_path / "in.txt", tmp_path / "out"
    rows.write_text("credit-relay-sandbox-1\ncredit-relay sandbox-2\n")
    done = run("fetch", rows, "--dir", tmp_path / "reports", "--output", out)
    assert (done.status, f"{rows}:2: relay_token: holds white space" in done.err) == (2, True)
    assert "credit-relay" not in done.err
    assert not plaid.requests
    assert not out.exists()


def test_a_bad_row_in_a_pipe(plaid, run, stdin, tmp_path):
    """It ends the run when it comes; what came before it is there."""
    (token,) = share(plaid, 1)
    stdin(f"{token}\na b\n{token}\n")
    done = run("fetch", "-", "--dir", tmp_path)
    assert (done.status, outcomes(done)) == (2, ["fetched"])
    assert "<stdin>:2: relay_token: holds white space" in done.err


# What goes wrong


def test_failures(plaid, run, given, tmp_path):
    """A token that isn't known, one that comes twice, and an answer that never comes are failed."""
    path, _ = given(5)
    path.write_text(path.read_text() + "credit-relay-sandbox-nobodys\n" + path.read_text())
    done = run("fetch", path, "--dir", tmp_path / "reports")
    assert done.status == 1
    codes = ("fetched", "failed", "INVALID_RELAY_TOKEN", "DuplicateRequestError")
    assert [done.count(code) for code in codes] == [5, 6, 1, 5]
    (line,) = [line for line in done.lines if line["error_code"] == "INVALID_RELAY_TOKEN"]
    assert (line["row"], line["file"], line["attempts"]) == (6, None, 1)


@pytest.mark.parametrize("concurrency", [1, 50])
def test_a_token_that_comes_twice_ends_alike_however_fast_the_first_one_is(run, given, tmp_path, concurrency):
    """The second is a duplicate, whether the first one's file is there already, is under way or is of old."""
    path, (token,) = given(1)
    path.write_text(f"{token}\n{token}\n")
    for first in ("fetched", "already_there"):
        done = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", concurrency)
        assert done.status == 1
        assert {line["row"]: line["outcome"] for line in done.lines} == {1: first, 2: "failed"}
        assert done.count("DuplicateRequestError") == 1


def test_a_row_with_an_odd_outcome_is_one_like_others(run, given, tmp_path):
    """JSON may have anything where an outcome stands."""
    path, (token,) = given(1)
    path.write_text(json.dumps({"outcome": ["x"]}) + "\n" + json.dumps({"relay_token": token, "outcome": {}}))
    done = run("fetch", path, "--dir", tmp_path / "reports")
    assert (done.status, done.count("fetched")) == (0, 1)


def test_an_error_that_all_share(plaid, run, given, tmp_path):
    """The run stops, and each row that wasn't sent is listed, or is there already."""
    path, tokens = given(100)
    (tmp_path / name_of(tokens[99])).write_text("kept")
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    done = run("fetch", path, "--dir", tmp_path, "--concurrency", 1)
    assert (
        done.status,
        "because all requests share this error: Plaid answered INVALID_API_KEYS" in done.err,
    ) == (1, True)
    assert sorted(line["row"] for line in done.lines) == list(range(1, 101))
    assert [done.count(n) for n in ("failed", "already_there", "not_attempted")] == [3, 1, 96]


def test_another_run_was_faster(start, run, tmp_path):
    """A file that comes meanwhile stays as it is."""
    plaid = start(latency=0.3)
    (token,) = share(plaid, 1)
    path, file = tmp_path / "in.txt", tmp_path / name_of(token)
    path.write_text(token)

    def write():
        while not plaid.counts[GET]:
            time.sleep(0.01)
        file.write_text("theirs")

    writer = threading.Thread(target=write)
    writer.start()
    done = run("fetch", path, "--dir", tmp_path)
    writer.join()
    assert (done.status, outcomes(done), file.read_text()) == (0, ["already_there"], "theirs")
    assert names_in(tmp_path) == {"in.txt", file.name}


def test_full_disk(plaid, run, given, tmp_path):
    """Sending stops, it is said, and no half file is left; the rest can be fetched later."""
    path, tokens = given(50)
    folder, out = tmp_path / "reports", tmp_path / "out"
    words = ("fetch", path, "--dir", folder, "--output", out, "--concurrency", 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        done = run(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.status == 1
    assert f"reports can't be written to {folder}: File too large" in done.err
    assert names_in(folder) == set()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == list(range(1, 51))
    assert {line["outcome"] for line in lines} == {"failed", "not_attempted"}
    assert 1 <= done.count("failed") == done.count("OSError") == plaid.counts[GET] <= 3
    assert run(*words, "--append").status == 0
    assert names_in(folder) == {name_of(token) for token in tokens}


@pytest.mark.parametrize("place", ["a/b", "file", "file/x"])
def test_a_folder_that_cannot_be_had(plaid, run, given, tmp_path, place):
    """It is told before anything is sent."""
    path, _ = given(1)
    (tmp_path / "file").touch()
    sent = len(plaid.requests)
    done = run("fetch", path, "--dir", tmp_path / place)
    assert (done.status, f"can't be written: {tmp_path / place}: " in done.err) == (1, True)
    assert len(plaid.requests) == sent


def test_a_folder_in_which_nothing_can_be_made(plaid, run, given):
    """The same, where it is there."""
    path, _ = given(1)
    done = run("fetch", path, "--dir", "/proc/self/fd")
    assert (done.status, "can't be written: /proc/self/fd: " in done.err) == (1, True)


def test_an_output_that_takes_no_more(plaid, run, given, tmp_path, rescued):
    """What could not be written is rescued; the report's file is there all the same."""
    path, tokens = given(3)
    done = run("fetch", path, "--dir", tmp_path / "reports", "--output", "/dev/full", "--append")
    assert done.status == 1
    assert "the output can't be written: No space left on device" in done.err
    assert {Path(row["file"]).name for row in rescued()} == names_in(tmp_path / "reports")
    assert names_in(tmp_path / "reports") <= {name_of(token) for token in tokens}


# In a process of its own


@pytest.mark.full_size
@pytest.mark.timeout(300)
def test_interrupted_and_repeated(start, spawn, tmp_path, rounds):
    """Stopped at any moment there are whole files alone; repeated, all is there and nothing was fetched twice."""
    plaid = start(latency=0.02)
    path, folder = tmp_path / "in.txt", tmp_path / "reports"
    tokens = share(plaid, 120)
    path.write_text("\n".join(tokens))
    words = ("fetch", path, "--dir", folder, "--concurrency", 5)
    for number in range(rounds):
        out = tmp_path / f"out{number}"
        process = spawn(*words, "--output", out)
        wait_for_a_line(out)
        time.sleep(0.05 * number)
        process.send_signal((signal.SIGINT, signal.SIGTERM)[number % 2])
        _, errors = process.communicate()
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        left = any(line["outcome"] == "not_attempted" for line in lines)
        assert process.returncode == (1 if left else 0), errors
        assert sorted(line["row"] for line in lines) == list(range(1, 121))
        assert all(json.loads(file.read_text())["report"] for file in folder.iterdir())
    process = spawn(*words)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert names_in(folder) == {name_of(token) for token in tokens}
    assert plaid.counts[GET] == 120


def wait_for_a_line(path):
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)


def test_killed(start, spawn, tmp_path):
    """Killed, a run leaves no half report under a report's name."""
    plaid = start(latency=0.005)
    path, folder = tmp_path / "in.txt", tmp_path / "reports"
    path.write_text("\n".join(share(plaid, 60)))
    process = spawn("fetch", path, "--dir", folder, "--concurrency", 5)
    process.stdout.readline()
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert all(json.loads(file.read_text()) for file in folder.glob("*.json"))
    assert not any("credit-relay" in name for name in names_in(folder))
