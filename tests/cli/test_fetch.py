"""The command `fetch`: every report that was shared with a partner is stored in a separate file."""

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
from support import GET

from plaid_relay_async.cli.cells import InputFormat, InputTable
from plaid_relay_async.cli.rows import InputProblem, parse_rows, shared_report_form
from plaid_relay_async.models import RelayGetRequest
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
KEYS = ["outcome", "row", "file", "asset_report_id", "request_id", "error_code", "attempts", "decode_error"]


def create_tokens(plaid, count):
    """Create relay tokens for the caller of these tests, who is lender and partner."""
    requests = ({"report_tokens": [plaid.add_report()], "secondary_client_id": "owner"} for _ in range(count))
    return [json.loads(post(plaid, "/credit/relay/create", body))["relay_token"] for body in requests]


@pytest.fixture
def token_file(plaid, tmp_path):
    """Create a file of relay tokens, one per line; return its path and the tokens."""

    def token_file(count, name="tokens.txt"):
        tokens = create_tokens(plaid, count)
        path = tmp_path / name
        path.write_text("".join(f"{token}\n" for token in tokens))
        return path, tokens

    return token_file


def file_name(token, suffix="json"):
    return f"{hashlib.sha256(token.encode()).hexdigest()[:24]}.{suffix}"


def file_names(folder):
    return {path.name for path in folder.iterdir()}


def outcomes(result):
    return [line["outcome"] for line in result.lines]


# Success


def test_each_report_has_its_file(plaid, run, token_file, tmp_path):
    """Each token has a private file and a line in the output, and no token is printed."""
    path, tokens = token_file(30)
    folder = tmp_path / "reports"
    result = run("fetch", path, "--dir", folder, "--concurrency", 7)
    assert result.status == 0
    assert file_names(folder) == {file_name(token) for token in tokens}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [list(line) for line in result.lines] == [KEYS] * 30
    by_row = {line["row"]: line for line in result.lines}
    for number, token in enumerate(tokens, 1):
        line = by_row[number]
        assert line["file"] == str(folder / file_name(token))
        report = json.loads((folder / file_name(token)).read_text())["report"]
        assert line["asset_report_id"] == report["asset_report_id"]
        assert (line["outcome"], line["error_code"], line["attempts"]) == ("fetched", None, 1)
    assert {line["request_id"] for line in result.lines} == {
        r.request_id for r in plaid.requests if r.path == GET
    }
    names = ("fetched", "already_there", "failed", "not_attempted")
    assert [result.count(name) for name in names] == [30, 0, 0, 0]
    assert "credit-relay" not in result.err + result.out


def test_reports_that_cannot_be_decoded(plaid, run, token_file, tmp_path):
    """They are stored as Plaid sent them, their lines have the JSON path, and the status is 1."""
    path, tokens = token_file(3)
    requests = {"relay_token": tokens[0], "report_type": "asset"}
    body = json.loads(post(plaid, GET, requests))
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
    assert file_names(tmp_path / "strict") == {file_name(tokens[2])}
    plaid.fail(Fault(path=GET, status=200, body=text, times=2))
    result = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", 1)
    assert result.status == 1
    assert [(line["outcome"], line["error_code"], line["decode_error"]) for line in result.lines] == [
        *[("fetched", "ResponseDecodeError", where)] * 2,
        ("fetched", None, None),
    ]
    assert (result.count("fetched"), result.count("failed"), result.count("ResponseDecodeError")) == (3, 0, 2)
    assert "they differ from its specification: 2;" in result.err
    for token, line in zip(tokens[:2], result.lines, strict=False):
        assert line["file"] == str(tmp_path / "reports" / file_name(token))
        assert Path(line["file"]).read_bytes() == text.encode()
    assert stat.S_IMODE((tmp_path / "reports" / file_name(tokens[0])).stat().st_mode) == 0o600
    again = run("fetch", path, "--dir", tmp_path / "reports")
    assert (again.status, outcomes(again)) == (0, ["already_there"] * 3)


def test_a_response_without_a_report_is_not_stored(plaid, run, token_file, tmp_path):
    """A response without a report is an error with its JSON path, and creates no file."""
    path, _ = token_file(2)
    plaid.fail(Fault(path=GET, status=200, body="<html>", times=1))
    plaid.fail(Fault(path=GET, status=200, body={"request_id": "q"}, times=1))
    result = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", 1)
    assert (result.status, outcomes(result)) == (1, ["failed"] * 2)
    assert {line["decode_error"] for line in result.lines} == {"$", "$.report"}
    assert file_names(tmp_path / "reports") == set()


def parse_report(text):
    """Parse the report of a response, with numbers as text and without nulls."""

    def token_file(pairs):
        return {name: value for name, value in pairs if value is not None}

    return json.loads(text, parse_float=str, object_pairs_hook=token_file)["report"]


def test_a_file_holds_the_response(plaid, run, token_file, tmp_path):
    """The stored report is what Plaid sent and, except for nulls, what `get` prints, with exact amounts."""
    path, (token,) = token_file(1)
    assert run("fetch", path, "--dir", tmp_path / "reports").status == 0
    stored = (tmp_path / "reports" / file_name(token)).read_text()
    sent = post(plaid, GET, {"relay_token": token, "report_type": "asset"})
    assert stored.partition('"request_id"')[0] == sent.partition('"request_id"')[0]
    assert parse_report(stored) == parse_report(run("get", f"@{path}").out)


def test_with_insights(plaid, run, token_file, tmp_path):
    """--insights adds categories, and can't be used for PDFs."""
    path, (token,) = token_file(1)
    assert run("fetch", path, "--dir", tmp_path / "with", "--insights").status == 0
    assert run("fetch", path, "--dir", tmp_path / "without").status == 0
    with_them = (tmp_path / "with" / file_name(token, "insights.json")).read_text()
    without = (tmp_path / "without" / file_name(token)).read_text()
    assert (
        run("fetch", path, "--dir", tmp_path / "with").count("fetched") == 1
    )  # a report without insights is another file
    assert '"category"' in with_them
    assert '"category"' not in without
    rejected = run("fetch", path, "--dir", tmp_path / "pdf", "--insights", "--format", "pdf")
    assert (rejected.status, "--insights: requires --format json" in rejected.err) == (2, True)


def test_pdfs(plaid, run, token_file, tmp_path):
    """PDFs have no `asset_report_id`, and another suffix."""
    path, tokens = token_file(3)
    result = run("fetch", path, "--dir", tmp_path, "--format", "pdf")
    assert result.status == 0
    assert all((tmp_path / file_name(token, "pdf")).read_bytes().startswith(b"%PDF-") for token in tokens)
    assert {line["asset_report_id"] for line in result.lines} == {None}


def test_stored_reports_are_not_fetched_again(plaid, run, token_file, tmp_path):
    """A repeated command fetches only missing reports, and lists the others as already there."""
    path, tokens = token_file(10)
    folder = tmp_path / "reports"
    folder.mkdir()
    for token in tokens[:4]:
        (folder / file_name(token)).write_text("kept")
    first = run("fetch", path, "--dir", folder)
    assert (first.status, plaid.counts[GET]) == (0, 6)
    assert {line["row"] for line in first.lines if line["outcome"] == "already_there"} == {1, 2, 3, 4}
    assert (folder / file_name(tokens[0])).read_text() == "kept"
    again = run("fetch", path, "--dir", folder)
    assert (again.status, plaid.counts[GET], again.count("already_there")) == (0, 6, 10)
    line = again.lines[0]
    assert line["file"] == str(folder / file_name(tokens[line["row"] - 1]))
    assert (line["attempts"], line["request_id"]) == (0, None)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_output_of_bulk_is_an_input(plaid, run, tmp_path, suffix):
    """Rows of `bulk` without a token are skipped."""
    plaid.fail(
        Fault(secondary_client_id="refused", status=400), Fault(secondary_client_id="lost", close=True)
    )
    out, folder = tmp_path / f"out.{suffix}", tmp_path / "reports"
    partners = tmp_path / "partners.csv"
    partners.write_text("refused\nowner\nlost\n")
    assert run("bulk", partners, "--report-token", REPORT, "--output", out).status == 3
    result = run("fetch", out, "--dir", folder)
    assert (result.status, outcomes(result)) == (0, ["fetched"])
    assert file_names(folder) == {file_name(plaid.ledger[0]["relay_token"])}


def test_from_a_pipe(plaid, run, stdin, tmp_path):
    """Tokens from a pipe are fetched as they arrive."""
    tokens = create_tokens(plaid, 5)
    stdin("".join(f"{token}\n" for token in tokens))
    result = run("fetch", "-", "--dir", tmp_path)
    assert (result.status, sorted(line["row"] for line in result.lines)) == (0, [1, 2, 3, 4, 5])
    stdin("".join(f"{token}\n" for token in tokens))
    assert set(outcomes(run("fetch", "-", "--dir", tmp_path))) == {"already_there"}


def test_csv_and_append(plaid, run, token_file, tmp_path):
    """An output that ends in `.csv` is CSV with one header."""
    path, _ = token_file(2)
    out = tmp_path / "out.csv"
    args = ("fetch", path, "--dir", tmp_path / "reports", "--output", out)
    assert run(*args).status == 0
    assert run(*args).status == 2
    assert run(*args, "--append").status == 0
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
def test_input_formats(name, text, rows):
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
        ("in.csv", "t1\nt 2\n", "in.csv:2: relay_token: contains whitespace"),
        ("-", '{"outcome": "created"}\n', "-:1: relay_token: is missing"),
        ("-", '{"relay_token": 7}\n', "-:1: relay_token: must be a string, not int"),
        ("-", "[1]\n", "-:1: must be an object with relay_token, or a relay token as a string"),
    ],
)
def test_problems(name, text, problem):
    """A problem is reported with the file, the line and the column, but without a token."""
    (row,) = [row for row in read(text, name) if isinstance(row, str)]
    assert row.startswith(problem)


def test_invalid_rows_of_a_file(plaid, run, tmp_path):
    """Invalid rows are reported before anything is sent, and no output is created."""
    rows, out = tmp_path / "in.txt", tmp_path / "out"
    rows.write_text("credit-relay-sandbox-1\ncredit-relay sandbox-2\n")
    result = run("fetch", rows, "--dir", tmp_path / "reports", "--output", out)
    assert (result.status, f"{rows}:2: relay_token: contains whitespace" in result.err) == (2, True)
    assert "credit-relay" not in result.err
    assert not plaid.requests
    assert not out.exists()


def test_an_invalid_row_in_a_pipe(plaid, run, stdin, tmp_path):
    """An invalid row ends the run when it arrives; earlier rows have their outcome."""
    (token,) = create_tokens(plaid, 1)
    stdin(f"{token}\na b\n{token}\n")
    result = run("fetch", "-", "--dir", tmp_path)
    assert (result.status, outcomes(result)) == (2, ["fetched"])
    assert "<stdin>:2: relay_token: contains whitespace" in result.err


# Failures


def test_failures(plaid, run, token_file, tmp_path):
    """A token that Plaid doesn't know and a duplicate token are failed."""
    path, _ = token_file(5)
    path.write_text(path.read_text() + "credit-relay-sandbox-nobodys\n" + path.read_text())
    result = run("fetch", path, "--dir", tmp_path / "reports")
    assert result.status == 1
    codes = ("fetched", "failed", "INVALID_RELAY_TOKEN", "DuplicateRequestError")
    assert [result.count(code) for code in codes] == [5, 6, 1, 5]
    (line,) = [line for line in result.lines if line["error_code"] == "INVALID_RELAY_TOKEN"]
    assert (line["row"], line["file"], line["attempts"]) == (6, None, 1)


@pytest.mark.parametrize("concurrency", [1, 50])
def test_a_duplicate_token_fails_whatever_the_state_of_the_first_one(run, token_file, tmp_path, concurrency):
    """The second one is a duplicate, whether the report is in flight or stored already."""
    path, (token,) = token_file(1)
    path.write_text(f"{token}\n{token}\n")
    for first in ("fetched", "already_there"):
        result = run("fetch", path, "--dir", tmp_path / "reports", "--concurrency", concurrency)
        assert result.status == 1
        assert {line["row"]: line["outcome"] for line in result.lines} == {1: first, 2: "failed"}
        assert result.count("DuplicateRequestError") == 1


def test_a_row_with_an_unknown_outcome(run, token_file, tmp_path):
    """A row whose outcome is any other JSON value is fetched like other rows."""
    path, (token,) = token_file(1)
    path.write_text(json.dumps({"outcome": ["x"]}) + "\n" + json.dumps({"relay_token": token, "outcome": {}}))
    result = run("fetch", path, "--dir", tmp_path / "reports")
    assert (result.status, result.count("fetched")) == (0, 1)


def test_a_shared_error(plaid, run, token_file, tmp_path):
    """A shared error stops the run; rows that weren't sent are listed as not attempted or already there."""
    path, tokens = token_file(100)
    (tmp_path / file_name(tokens[99])).write_text("kept")
    plaid.fail(Fault(status=401, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"}))
    result = run("fetch", path, "--dir", tmp_path, "--concurrency", 1)
    assert (
        result.status,
        "because all requests share this error: Plaid responded with INVALID_API_KEYS" in result.err,
    ) == (1, True)
    assert sorted(line["row"] for line in result.lines) == list(range(1, 101))
    assert [result.count(n) for n in ("failed", "already_there", "not_attempted")] == [3, 1, 96]


def test_another_run_was_faster(start, run, tmp_path):
    """A file that another run stores meanwhile isn't overwritten."""
    plaid = start(latency=0.3)
    (token,) = create_tokens(plaid, 1)
    path, file = tmp_path / "in.txt", tmp_path / file_name(token)
    path.write_text(token)

    def write():
        while not plaid.counts[GET]:
            time.sleep(0.01)
        file.write_text("theirs")

    writer = threading.Thread(target=write)
    writer.start()
    result = run("fetch", path, "--dir", tmp_path)
    writer.join()
    assert (result.status, outcomes(result), file.read_text()) == (0, ["already_there"], "theirs")
    assert file_names(tmp_path) == {"in.txt", file.name}


def test_full_disk(plaid, run, token_file, tmp_path):
    """On a full disk sending stops, no partial file is left, and the rest can be fetched later."""
    path, tokens = token_file(50)
    folder, out = tmp_path / "reports", tmp_path / "out"
    args = ("fetch", path, "--dir", folder, "--output", out, "--concurrency", 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        result = run(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.status == 1
    assert f"reports can't be written to {folder}: File too large" in result.err
    assert file_names(folder) == set()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == list(range(1, 51))
    assert {line["outcome"] for line in lines} == {"failed", "not_attempted"}
    assert 1 <= result.count("failed") == result.count("OSError") == plaid.counts[GET] <= 3
    assert run(*args, "--append").status == 0
    assert file_names(folder) == {file_name(token) for token in tokens}


@pytest.mark.parametrize("folder", ["a/b", "file", "file/x"])
def test_a_folder_that_cannot_be_created(plaid, run, token_file, tmp_path, folder):
    """A folder that can't be created is reported before anything is sent."""
    path, _ = token_file(1)
    (tmp_path / "file").touch()
    sent = len(plaid.requests)
    result = run("fetch", path, "--dir", tmp_path / folder)
    assert (result.status, f"can't be written: {tmp_path / folder}: " in result.err) == (1, True)
    assert len(plaid.requests) == sent


def test_a_folder_that_is_not_writable(plaid, run, token_file):
    """A folder in which no file can be created is reported before anything is sent."""
    path, _ = token_file(1)
    result = run("fetch", path, "--dir", "/proc/self/fd")
    assert (result.status, "can't be written: /proc/self/fd: " in result.err) == (1, True)


def test_an_output_that_cannot_be_written(plaid, run, token_file, tmp_path, rescued):
    """Outcomes that can't be written are rescued; the report's file is stored all the same."""
    path, tokens = token_file(3)
    result = run("fetch", path, "--dir", tmp_path / "reports", "--output", "/dev/full", "--append")
    assert result.status == 1
    assert "the output can't be written: No space left on device" in result.err
    assert {Path(row["file"]).name for row in rescued()} == file_names(tmp_path / "reports")
    assert file_names(tmp_path / "reports") <= {file_name(token) for token in tokens}


# In another process


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupted_and_repeated(start, spawn, tmp_path, rounds):
    """An interrupted run leaves only complete files, and a repeated one fetches no report twice."""
    plaid = start(latency=0.02)
    path, folder = tmp_path / "in.txt", tmp_path / "reports"
    tokens = create_tokens(plaid, 120)
    path.write_text("\n".join(tokens))
    args = ("fetch", path, "--dir", folder, "--concurrency", 5)
    for number in range(rounds):
        out = tmp_path / f"out{number}"
        process = spawn(*args, "--output", out)
        wait_for_a_line(out)
        time.sleep(0.05 * number)
        process.send_signal((signal.SIGINT, signal.SIGTERM)[number % 2])
        _, errors = process.communicate()
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        left = any(line["outcome"] == "not_attempted" for line in lines)
        assert process.returncode == (1 if left else 0), errors
        assert sorted(line["row"] for line in lines) == list(range(1, 121))
        assert all(json.loads(file.read_text())["report"] for file in folder.iterdir())
    process = spawn(*args)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert file_names(folder) == {file_name(token) for token in tokens}
    assert plaid.counts[GET] == 120


def wait_for_a_line(path):
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)


def test_killed(start, spawn, tmp_path):
    """A killed run leaves no partial report under a report's name."""
    plaid = start(latency=0.005)
    path, folder = tmp_path / "in.txt", tmp_path / "reports"
    path.write_text("\n".join(create_tokens(plaid, 60)))
    process = spawn("fetch", path, "--dir", folder, "--concurrency", 5)
    process.stdout.readline()
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert all(json.loads(file.read_text()) for file in folder.glob("*.json"))
    assert not any("credit-relay" in name for name in file_names(folder))
