"""What creating relay tokens for many partners takes, with ours and with others, in one run: `nox -s bench`.

Prints tables in Markdown, of `--only` those that are named:

    a  rate and CPU time by latency and by how many calls are under way at once
    b  the same over TLS, and memory
    c  memory by number of partners
    d  time to the first outcome
    e  how long a single call takes beside a bulk run
    f  how late the event loop is beside a bulk run

All clients do the same work against a server in C (`server.c`), each in a process of its own, and take turns
round by round. Bare aiohttp, which the others are held against, is measured twice in each round: its second
run shows, in the row of its own, what a ratio is worth. A figure is the median of the rounds, with the least
and the greatest behind it; a ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import (
    Built,
    MissingError,
    build_server,
    median_of,
    of_the_cores,
    our_core,
    server,
    table,
    told_by,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS, BARE, AGAIN = "plaid_relay_async", "bare aiohttp", "bare aiohttp again"
NAIVE, HTTPX = "aiohttp, attrs, cattrs, backoff", "httpx"
OFFICIAL, NODE = "plaid-python on threads", "plaid for Node"
MODULES = {
    OURS: "peers.ours",
    BARE: "peers.bare",
    AGAIN: "peers.bare",
    NAIVE: "peers.naive",
    HTTPX: "peers.with_httpx",
    OFFICIAL: "peers.with_plaid_python",
}
PAIR = (BARE, OURS, AGAIN)
OTHERS = (NAIVE, HTTPX, OFFICIAL, NODE)
# Creations a second to expect at most, so that each run takes about as long.
PACES = {HTTPX: 800, OFFICIAL: 2_000, NODE: 1_500}
# httpx gets slower with every connection that it holds.
HTTPX_AT_100, HTTPX_AT_MOST = 150, 100

Result = dict[str, Any]


@dataclass
class Bench:
    """How to measure, and all that was measured: a result is found again by its facts."""

    built: Built
    rounds: int
    quick: bool
    node: Path | None
    results: list[Result] = field(default_factory=list)

    def run(self, peer: str, url: str, *words: object, core: int | None = None, **facts: object) -> Result:
        """Run one client, and keep what it told."""
        found = {} if self.node is None else {"NODE_PATH": str(self.node / "node_modules")}
        told = told_by(
            [*self._program(peer), "--url", url, *words], core=core, environment=found, timeout=900
        )
        beside = told.pop("beside")
        result: Result = {"peer": peer, **facts, **told, "late": beside}
        self.results.append(result)
        return result

    def _program(self, peer: str) -> list[str]:
        if peer == NODE:
            return ["node", "peers/with_plaid_node.cjs"]
        return [sys.executable, "-m", MODULES[peer]]

    def found(self, **facts: object) -> list[Result]:
        """Give what was measured under these facts, round by round."""
        return [each for each in self.results if facts.items() <= each.items()]

    def others(self, concurrency: int) -> list[str]:
        """Give who can be measured besides ours and bare aiohttp."""
        left_out = {NODE} if self.node is None else set()
        if concurrency > HTTPX_AT_MOST:
            left_out.add(HTTPX)
        return [peer for peer in OTHERS if peer not in left_out]


def in_turn(others: list[str], turn: int) -> list[str]:
    """Give the order of a round: ours stands between the two runs of bare aiohttp, whichever comes first."""
    pair = PAIR if turn % 2 == 0 else PAIR[::-1]
    place = turn % (len(others) + 1)
    return [*others[:place], *pair, *others[place:]]


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def cpu(result: Result) -> float:
    return float(result["cpu"] / result["created"] * 1e6)


def growth(result: Result) -> float:
    return float(result["growth_kb"] / 1024)


def ratios(bench: Bench, figure: Callable[[Result], float], peer: str, **facts: object) -> list[float]:
    """Hold a peer's figure against that of bare aiohttp, within each round."""
    against = {each["round"]: each for each in bench.found(peer=BARE, **facts)}
    return [figure(each) / figure(against[each["round"]]) for each in bench.found(peer=peer, **facts)]


# ------------------------------------------------------------------------------------- rate and CPU time


def partners(peer: str, latency: float, concurrency: int, seconds: float) -> int:
    """Give how many partners keep a client busy for about so long."""
    pace = HTTPX_AT_100 if peer == HTTPX and concurrency == HTTPX_AT_MOST else PACES.get(peer, 6_000)
    if latency:
        pace = min(pace, concurrency / latency * 1_000)
    return max(int(pace * seconds), 3 * concurrency)


def measure_cell(bench: Bench, latency: float, concurrency: int) -> None:
    main = not latency and concurrency == 100 and not bench.quick
    with server(bench.built, latency) as url:
        for turn in range(bench.rounds):
            for peer in in_turn(bench.others(concurrency), turn):
                seconds = 0.1 if bench.quick else 1 if peer in PAIR else 0.7
                number = partners(peer, latency, concurrency, seconds)
                if main and peer in (*PAIR, NAIVE):
                    number = 20_000
                words = ("--partners", number, "--concurrency", concurrency)
                facts = {"table": "a", "latency": latency, "concurrency": concurrency, "round": turn}
                bench.run(peer, url, *words, core=our_core(), **facts)


def rows_of_cell(bench: Bench, latency: float, concurrency: int) -> Iterator[list[object]]:
    for peer in (OURS, BARE, AGAIN, *bench.others(concurrency)):
        facts = {"table": "a", "latency": latency, "concurrency": concurrency}
        results = bench.found(peer=peer, **facts)
        ideal = concurrency / latency * 1_000 if latency else 0
        yield [
            latency,
            f"{concurrency:,}",
            peer,
            median_of([rate(each) for each in results], 0),
            "" if peer == BARE else median_of(ratios(bench, rate, peer, **facts)),
            median_of([cpu(each) for each in results], 0),
            "" if peer == BARE else median_of(ratios(bench, cpu, peer, **facts)),
            f"{statistics.median(map(rate, results)) / ideal:.0%}" if ideal else "",
        ]


def table_a(bench: Bench) -> None:
    cells = [(latency, concurrency) for latency in (0, 5, 50) for concurrency in (1, 10, 100, 1_000)]
    if bench.quick:
        cells = [(0, 100), (5, 10)]

    def rows() -> Iterator[list[object]]:
        for cell in cells:
            measure_cell(bench, *cell)
            yield from rows_of_cell(bench, *cell)

    heads = ["ms", "at once", "client", "creations/s", "of bare", "CPU, µs", "of bare", "of the ideal rate"]
    print(f"httpx is left out above {HTTPX_AT_MOST} calls at once, where it takes minutes.\n")
    table(heads, rows(), words=3)


TABLES = {"a": table_a}


# ----------------------------------------------------------------------------------------------- the run


def measure(asked: argparse.Namespace, folder: Path) -> Bench:
    bench = Bench(build_server(folder), 1 if asked.quick else asked.rounds, asked.quick, asked.node)
    print(f"{of_the_cores()} aiohttp {version('aiohttp')}.")
    if asked.node is None:
        print("Plaid's client for Node is left out: --node FOLDER says where it is installed.")
    for name in asked.only.split(",") if asked.only else TABLES:
        print(f"\n### {name}\n")
        TABLES[name](bench)
    return bench


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--only", help="such as a,c")
    parser.add_argument("--node", type=Path, help="the folder into which npm has installed plaid")
    parser.add_argument("--json", type=Path, help="where all results go")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = measure(asked, Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
    if asked.json:
        asked.json.write_text(json.dumps(bench.results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
