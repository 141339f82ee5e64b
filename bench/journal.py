"""What a journal costs, and what it takes to go on with a long one, in one run: `nox -s bench -- journal`.

Prints two tables in Markdown. The first: creations a second without a journal, and with one in SQLite, in
clear and encrypted, by latency; each in a process of its own, in turn, against a server in C (`server.c`).
A figure is the median of the rounds, with the least and the greatest behind it; a ratio is taken within each
round. The second: opening a long journal, serving a thousand of its pairs, and creating a thousand more.
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

WITHOUT, UNENCRYPTED, ENCRYPTED = "no journal", "in clear", "encrypted"
KEY = Fernet.generate_key().decode()
CONCURRENCY = 100
LATENCIES = {0: 20_000, 50: 10_000}  # by ms, how many creations; so that the start weighs little

Result = dict[str, Any]


def create(kind: str, url: str, partners: int, path: Path, *, first: int = 0) -> Result:
    """Create for so many partners, and give what it took."""
    peer = "peers.ours" if kind == WITHOUT else "peers.journalled"
    words = ("--url", url, "--partners", partners, "--concurrency", CONCURRENCY)
    settings = {"BENCH_JOURNAL": str(path), "BENCH_FROM": str(first)}
    settings["PLAID_RELAY_KEY"] = KEY if kind == ENCRYPTED else ""
    # Of no core of its own: with a journal it has a second thread.
    return json_output_of([sys.executable, "-m", peer, *words], environment=settings, timeout=900)


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def rows_of_rates(url: str, latency: int, partners: int, rounds: int, folder: Path) -> Iterator[list[object]]:
    """Measure in turn, and give a row for each kind."""
    kinds = (WITHOUT, UNENCRYPTED, ENCRYPTED)
    found: dict[str, list[Result]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds[turn % 3 :] + kinds[: turn % 3]:
            path = folder / f"{latency}-{turn}-{kind.partition(' ')[2]}.db"
            found[kind].append(create(kind, url, partners, path))
    for kind, results in found.items():
        rates = [rate(each) for each in results]
        cpu = [each["cpu"] / each["created"] * 1e6 for each in results]
        ratios = [one / rate(other) for one, other in zip(rates, found[WITHOUT], strict=True)]
        ratio = "" if kind == WITHOUT else format_median(ratios)
        yield [latency, kind, format_median(rates, 0), ratio, format_median(cpu, 0)]


def row_for_long_journal(url: str, rows: int, folder: Path) -> list[object]:
    """Make a long journal in the way of everybody, and go on with it."""
    path = folder / "long.db"
    create(ENCRYPTED, url, rows, path)
    result = create(ENCRYPTED, url, 2_000, path, first=rows - 1_000)
    size = path.stat().st_size / 2**20
    return [f"{rows:,}", f"{size:,.0f}", f"{result['wall']:.2f}", f"{result['peak_kb'] / 1024:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see only that all run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the long journal")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.rows = 1, 2_000
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            built = build_server(folder)
        except MissingError as missing:
            print(f"Nothing was measured: {missing}.")
            return
        print(f"## A journal\n\n{CONCURRENCY} at once.\n")
        heads = ["ms", "journal", "creations/s", "of no journal", "CPU, µs"]
        rows: list[list[object]] = []
        for latency, partners in LATENCIES.items():
            with server(built, latency) as url:
                number = 300 if asked.quick else partners
                rows.extend(rows_of_rates(url, latency, number, asked.rounds, folder))
        print_table(heads, rows, words=2)
        with server(built) as url:
            heads = ["rows", "file, MB", "open, serve 1,000 and create 1,000, s", "peak of the process, MB"]
            print_table(heads, [row_for_long_journal(url, asked.rows, folder)], words=0)


if __name__ == "__main__":
    main()
