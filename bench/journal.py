"""Measure the cost of a journal, and of resuming a run with a long one: `nox -s bench -- journal`.

Prints two tables in Markdown. The first has the creations per second by latency without a journal, with an
unencrypted one in SQLite, and with an encrypted one. Each runs in its own process against a server in C
(`server.c`), and they take turns. A figure is the median of the rounds, followed by the minimum and the
maximum; ratios compare results of the same round. The second table is for a long journal: open it, return the
recorded outcomes of 1,000 pairs, and create tokens for 1,000 more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet
from harness import MissingError, build_server, format_median, json_output_of, print_table, server

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT, UNENCRYPTED, ENCRYPTED = "no journal", "unencrypted", "encrypted"
KEY = Fernet.generate_key().decode()
CONCURRENCY = 100
# Number of creations by latency in ms: enough that the start of the process has little weight.
LATENCIES = {0: 20_000, 50: 10_000}

Result = dict[str, Any]


def create(kind: str, url: str, partners: int, path: Path, *, first: int = 0) -> Result:
    """Create tokens in a new process, with a journal at `path` of this kind, and return its measurements."""
    peer = "peers.ours" if kind == WITHOUT else "peers.journalled"
    options = ("--url", url, "--partners", partners, "--concurrency", CONCURRENCY)
    settings = {"BENCH_JOURNAL": str(path), "BENCH_FROM": str(first)}
    settings["PLAID_RELAY_KEY"] = KEY if kind == ENCRYPTED else ""
    # The client isn't restricted to one core, because the journal adds a second thread.
    return json_output_of([sys.executable, "-m", peer, *options], environment=settings, timeout=900)


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def rows_of_rates(url: str, latency: int, partners: int, rounds: int, folder: Path) -> Iterator[list[object]]:
    """Measure the three kinds of journal in turn, and yield a row for each of them."""
    kinds = (WITHOUT, UNENCRYPTED, ENCRYPTED)
    by_kind: dict[str, list[Result]] = {kind: [] for kind in kinds}
    for round_number in range(rounds):
        for kind in kinds[round_number % 3 :] + kinds[: round_number % 3]:
            path = folder / f"{latency}-{round_number}-{kind.replace(' ', '-')}.db"
            by_kind[kind].append(create(kind, url, partners, path))
    for kind, results in by_kind.items():
        rates = [rate(each) for each in results]
        cpu = [each["cpu"] / each["created"] * 1e6 for each in results]
        ratios = [each / rate(baseline) for each, baseline in zip(rates, by_kind[WITHOUT], strict=True)]
        ratio = "" if kind == WITHOUT else format_median(ratios)
        yield [latency, kind, format_median(rates, 0), ratio, format_median(cpu, 0)]


def row_for_long_journal(url: str, rows: int, folder: Path) -> list[object]:
    """Create a long journal with a bulk run, and measure a second run that resumes it."""
    path = folder / "long.db"
    create(ENCRYPTED, url, rows, path)
    result = create(ENCRYPTED, url, 2_000, path, first=rows - 1_000)
    size = path.stat().st_size / 2**20
    return [f"{rows:,}", f"{size:,.0f}", f"{result['wall']:.2f}", f"{result['peak_kb'] / 1024:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of rows of the long journal")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.rows = 1, 2_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            built = build_server(folder)
        except MissingError as missing:
            print(f"Nothing was measured: {missing}.")
            return
        print(f"## A journal\n\n{CONCURRENCY} concurrent calls.\n")
        heads = ["ms", "journal", "creations/s", "vs. no journal", "CPU, µs"]
        rows: list[list[object]] = []
        for latency, partners in LATENCIES.items():
            with server(built, latency) as url:
                count = 300 if options.quick else partners
                rows.extend(rows_of_rates(url, latency, count, options.rounds, folder))
        print_table(heads, rows, words=2)
        with server(built) as url:
            heads = ["rows", "file, MB", "open, serve 1,000 and create 1,000, s", "peak of the process, MB"]
            print_table(heads, [row_for_long_journal(url, options.rows, folder)], words=0)


if __name__ == "__main__":
    main()
