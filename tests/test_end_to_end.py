"""`plaid-relay simulate` and `plaid-relay bulk` in two processes, as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support import CREATE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = (sys.executable, "-Im", "plaid_relay_async.cli")
# An operator's environment, without the variables of the machine that runs the tests.
SHELL = {"PLAID_CLIENT_ID": "owner", "PLAID_SECRET": "secret-of-the-owner", "PATH": os.environ["PATH"]}


@contextlib.contextmanager
def running_simulator() -> Iterator[tuple[str, str]]:
    """Run `plaid-relay simulate` in another process, and yield its URL and the token of a report that is ready."""
    command = [*COMMAND, "simulate", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=SHELL) as process:
        try:
            words = f"{process.stdout.readline()} {process.stdout.readline()}".split()
            yield (
                next(word for word in words if word.startswith("http://")),
                next(word for word in words if word.startswith("assets-sandbox-")),
            )
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def fetch(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read().decode()


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def run_bulk(folder: Path, count: int, *more: str) -> subprocess.CompletedProcess[str]:
    partners = folder / f"{count}.csv"
    partners.write_text(
        "secondary_client_id\n" + "".join(f"partner-{n}\n" for n in range(count)), encoding="utf-8"
    )
    command = [*COMMAND, "bulk", str(partners), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=SHELL)


def printed_counts(run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Parse the summary table: the count of each outcome."""
    rows = (line.split() for line in (run.stdout + run.stderr).splitlines())
    names = {"created", "failed", "unknown", "not_attempted"}
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[0] in names and row[1].isdigit()}


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--partners"))


@pytest.mark.timeout(900)
def test_each_partner_gets_its_token(tmp_path: Path, count: int):
    """Each of thousands of partners in a file gets its own token, and the ledger has exactly these tokens."""
    output = tmp_path / "out.jsonl"
    with running_simulator() as (url, report):
        run = run_bulk(tmp_path, count, "--base-url", url, "--report-token", report, "--output", str(output))
        ledger = json_lines(fetch(f"{url}/_simulator/ledger"))
    assert run.returncode == 0, run.stderr
    written = json_lines(output.read_text(encoding="utf-8"))
    assert {o["relay_token"]: o["secondary_client_id"] for o in written} == {
        entry["relay_token"]: entry["secondary_client_id"] for entry in ledger
    }
    assert sorted(o["secondary_client_id"] for o in written) == sorted(f"partner-{n}" for n in range(count))
    assert {o["outcome"] for o in written} == {"created"}
    assert printed_counts(run)["created"] == count
    assert output.stat().st_mode & 0o777 == 0o600
    assert "credit-relay-" not in run.stdout + run.stderr


@pytest.mark.timeout(900)
def test_each_partner_has_one_outcome_under_faults(tmp_path: Path, count: int):
    """One request in twenty fails, in six ways; an outcome is unknown only if its attempt ended in doubt."""
    output = tmp_path / "out.jsonl"
    # A 429 pauses all requests, so there are only a few.
    variants = [
        {"status": 429, "headers": {"Retry-After": "1"}, "times": max(1, count // 1000)},
        {"status": 429, "headers": {"Retry-After": "0"}, "times": max(3, count // 200)},
        {"status": 500, "when": "before"},
        {"status": 500, "when": "after"},
        {"close": True, "when": "before"},
        {"close": True, "when": "after"},
    ]
    faults = [{"path": CREATE, "rate": 0.05 / len(variants), **variant} for variant in variants]
    with running_simulator() as (url, report):
        fetch(f"{url}/_simulator/faults", {"faults": faults})
        run = run_bulk(tmp_path, count, "--base-url", url, "--report-token", report, "--output", str(output))
        ledger = json_lines(fetch(f"{url}/_simulator/ledger"))
    written = {o["secondary_client_id"]: o for o in json_lines(output.read_text(encoding="utf-8"))}
    outcomes = Counter(o["outcome"] for o in written.values())
    assert len(written) == len(output.read_text(encoding="utf-8").splitlines()) == count
    assert run.returncode == 3, run.stderr
    assert outcomes.keys() == {
        "created",
        "unknown",
    }  # a 429 is retried until the token is created; only an attempt in doubt ends as unknown
    assert printed_counts(run) == {"failed": 0, "not_attempted": 0, **outcomes}
    tokens = {o["relay_token"] for o in written.values() if o["outcome"] == "created"}
    # Plaid issued these tokens, and no response delivered them.
    unreported = Counter(e["secondary_client_id"] for e in ledger if e["relay_token"] not in tokens)
    assert tokens <= {e["relay_token"] for e in ledger}
    assert all(written[partner]["outcome"] == "unknown" for partner in unreported)
    assert max(Counter(e["secondary_client_id"] for e in ledger).values()) == 1
    assert any(o["attempts"] > 1 for o in written.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_hardly_grows_with_the_number_of_partners(tmp_path: Path, count: int):
    """With ten times the partners, the peak memory grows only by what duplicate detection needs."""
    peaks = {}
    with running_simulator() as (url, report):
        for partners in (2_000, 20 * count):
            options = (
                "--base-url",
                url,
                "--report-token",
                report,
                "--output",
                f"{tmp_path}/{partners}.jsonl",
            )
            peaks[partners] = peak_memory(tmp_path, partners, options)
    assert peaks[20 * count] - peaks[2_000] < 30 * 1024, peaks


def peak_memory(folder: Path, partners: int, options: tuple[str, ...]) -> int:
    """Return the peak resident size of one bulk run in KiB.

    `RUSAGE_CHILDREN` covers all children of a process, so the run is the only child of a process of its own.
    """
    program = (
        "import resource, subprocess, sys;"
        "code = subprocess.run(sys.argv[1:], stdout=2).returncode;"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    rows = folder / f"{partners}.csv"
    rows.write_text("".join(f"partner-{n}\n" for n in range(partners)), encoding="utf-8")
    command = [sys.executable, "-Ic", program, *COMMAND, "bulk", str(rows), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=SHELL)
    code, peak = run.stdout.split()
    assert code == "0", run.stderr
    return int(peak)
