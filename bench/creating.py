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
import math
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import (
    CompiledServer,
    MissingError,
    build_server,
    client_core,
    describe_cores,
    format_median,
    json_output_of,
    print_table,
    quantile,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS, BARE, AGAIN = "plaid_relay_async", "bare aiohttp", "bare aiohttp again"
LEAN = f"{OURS}, tls_buffer=16,384"
NAIVE, HTTPX = "aiohttp, attrs, cattrs, backoff", "httpx"
OFFICIAL, NODE = "plaid-python on threads", "plaid for Node"
MODULES = {
    OURS: "peers.ours",
    LEAN: "peers.ours",
    BARE: "peers.bare",
    AGAIN: "peers.bare",
    NAIVE: "peers.naive",
    HTTPX: "peers.with_httpx",
    OFFICIAL: "peers.with_plaid_python",
}
PAIR = (BARE, OURS, AGAIN)
OTHERS = (NAIVE, HTTPX, OFFICIAL, NODE)
# Creations a second to expect at most, so that each run takes about as long.
EXPECTED_RATES = {HTTPX: 800, OFFICIAL: 2_000, NODE: 1_500}
# httpx gets slower with every connection that it holds.
HTTPX_AT_100, HTTPX_AT_MOST = 150, 100
# By latency and concurrency: where the figures matter most, a run is longer, so that its start weighs less.
LONGER_RUNS: dict[tuple[float, int], int] = {(0, 100): 20_000, (50, 100): 10_000}

Result = dict[str, Any]


@dataclass
class Bench:
    """How to measure, and all that was measured: a result is found again by its facts."""

    built: CompiledServer
    rounds: int
    quick: bool
    most: int
    node: Path | None
    results: list[Result] = field(default_factory=list)

    def run(self, peer: str, url: str, *words: object, core: int | None = None, **facts: object) -> Result:
        """Run one client, and keep what it told."""
        found = {} if self.node is None else {"NODE_PATH": str(self.node.resolve() / "node_modules")}
        told = json_output_of(
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

    def results_for(self, **facts: object) -> list[Result]:
        """Give what was measured under these facts, round by round."""
        return [each for each in self.results if facts.items() <= each.items()]

    def other_peers(self, concurrency: int) -> list[str]:
        """Give who can be measured besides ours and bare aiohttp."""
        left_out = {NODE} if self.node is None else set()
        if concurrency > HTTPX_AT_MOST:
            left_out.add(HTTPX)
        return [peer for peer in OTHERS if peer not in left_out]


def round_order(others: list[str], round_number: int) -> list[str]:
    """Give the order of a round: ours stands between the two runs of bare aiohttp, whichever comes first."""
    pair = PAIR if round_number % 2 == 0 else PAIR[::-1]
    place = round_number % (len(others) + 1)
    return [*others[:place], *pair, *others[place:]]


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def cpu(result: Result) -> float:
    return float(result["cpu"] / result["created"] * 1e6)


def growth(result: Result) -> float:
    return float(result["growth_kb"] / 1024)


def ratios(bench: Bench, figure: Callable[[Result], float], peer: str, **facts: object) -> list[float]:
    """Hold a peer's figure against that of bare aiohttp, within each round."""
    against = {each["round"]: each for each in bench.results_for(peer=BARE, **facts)}
    return [figure(each) / figure(against[each["round"]]) for each in bench.results_for(peer=peer, **facts)]


# ------------------------------------------------------------------------------------- rate and CPU time


def partner_count(peer: str, latency: float, concurrency: int, seconds: float) -> int:
    """Give how many partners keep a client busy for about so long."""
    pace: float = (
        HTTPX_AT_100 if peer == HTTPX and concurrency == HTTPX_AT_MOST else EXPECTED_RATES.get(peer, 6_000)
    )
    if latency:
        pace = min(pace, concurrency / latency * 1_000)
    return max(int(pace * seconds), 3 * concurrency)


def measure_cell(bench: Bench, latency: float, concurrency: int) -> None:
    with server(bench.built, latency) as url:
        for turn in range(bench.rounds):
            # They start slowly, and differ from bare aiohttp by more than what every other round tells.
            others = bench.other_peers(concurrency) if turn % 2 == 0 else []
            for peer in round_order(others, turn):
                seconds = 0.1 if bench.quick else 1 if peer in PAIR else 0.7
                number = partner_count(peer, latency, concurrency, seconds)
                if not bench.quick and peer in (*PAIR, NAIVE):
                    number = max(number, LONGER_RUNS.get((latency, concurrency), 0))
                words = ("--partners", number, "--concurrency", concurrency)
                facts = {"table": "a", "latency": latency, "concurrency": concurrency, "round": turn}
                bench.run(peer, url, *words, core=client_core(), **facts)


def rows_of_cell(bench: Bench, latency: float, concurrency: int) -> Iterator[list[object]]:
    for peer in (OURS, BARE, AGAIN, *bench.other_peers(concurrency)):
        facts = {"table": "a", "latency": latency, "concurrency": concurrency}
        results = bench.results_for(peer=peer, **facts)
        ideal = concurrency / latency * 1_000 if latency else math.inf
        yield [
            latency,
            f"{concurrency:,}",
            peer,
            format_median([rate(each) for each in results], 0),
            "" if peer == BARE else format_median(ratios(bench, rate, peer, **facts)),
            format_median([cpu(each) for each in results], 0),
            "" if peer == BARE else format_median(ratios(bench, cpu, peer, **facts)),
            f"{statistics.median(map(rate, results)) / ideal:.0%}" if ideal < 5_000 else "",
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
    print_table(heads, rows(), words=3)


# --------------------------------------------------------------------------------------------- over TLS


def write_certificates(folder: Path) -> tuple[tuple[Path, Path], Path]:
    """Make a certificate for the server, and give its file, its key's, and that of who vouches for it."""
    import trustme

    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    certificate, key, ca = (folder / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    return (certificate, key), ca


def table_b(bench: Bench) -> None:
    if not bench.built.tls:
        print(
            "TLS is left out: OpenSSL's headers aren't on this machine, so the server was built without it."
        )
        return
    certificate, ca = write_certificates(bench.built.program.parent)

    def rows() -> Iterator[list[object]]:
        for concurrency in (100,) if bench.quick else (100, 1_000):
            with server(bench.built, 0, certificate) as url:
                for turn in range(bench.rounds):
                    for peer in round_order([LEAN], turn):
                        number = 300 if bench.quick else max(5 * concurrency, 5_000)
                        words: tuple[object, ...] = (
                            "--partners",
                            number,
                            "--concurrency",
                            concurrency,
                            "--ca",
                            ca,
                        )
                        words += ("--tls-buffer", 16_384) if peer == LEAN else ()
                        facts = {"table": "b", "concurrency": concurrency, "round": turn}
                        bench.run(peer, url, *words, core=client_core(), **facts)
            yield from rows_over_tls(bench, concurrency)

    heads = ["at once", "client", "creations/s", "of bare", "CPU, µs", "of bare", "memory, MB", "of bare"]
    print("The memory is the process's peak, less what it had before the work.\n")
    print_table(heads, rows(), words=2)


def rows_over_tls(bench: Bench, concurrency: int) -> Iterator[list[object]]:
    facts = {"table": "b", "concurrency": concurrency}
    for peer in (OURS, LEAN, BARE, AGAIN):
        row: list[object] = [f"{concurrency:,}", peer]
        for figure, digits in ((rate, 0), (cpu, 0), (growth, 1)):
            row.append(
                format_median([figure(each) for each in bench.results_for(peer=peer, **facts)], digits)
            )
            row.append("" if peer == BARE else format_median(ratios(bench, figure, peer, **facts)))
        yield row


# ------------------------------------------------------------------------------- memory by the partners

STREAMED, DUPLICATES, AWAITED = "streamed", "streamed, duplicates allowed", "awaited"
FORMS = {
    (OURS, STREAMED): (),
    (OURS, DUPLICATES): ("--duplicates",),
    (OURS, AWAITED): ("--awaited",),
    (BARE, AWAITED): (),
}


def table_c(bench: Bench) -> None:
    sizes = [100, 1_000] if bench.quick else [1_000, 10_000, 100_000, 1_000_000]
    sizes = [size for size in sizes if size <= bench.most]
    jobs = [
        (peer, form, number)
        for number in reversed(sizes)
        for peer, form in FORMS
        if peer == OURS or number <= 100_000
    ]

    def measure(job: tuple[str, str, int]) -> None:
        peer, form, number = job
        words = ("--partners", number, "--concurrency", 100, *FORMS[peer, form])
        bench.run(peer, url, *words, table="c", form=form, partners=number)

    # Nothing is timed, so that two may run at once.
    with server(bench.built) as url, ThreadPoolExecutor(2) as pool:
        list(pool.map(measure, jobs))
    print("100 at once; the bytes are what the peak grows by for each partner more.\n")
    print_table(["client", "partners", "peak, MB", "bytes a partner"], rows_of_memory(bench))


def rows_of_memory(bench: Bench) -> Iterator[list[object]]:
    for peer, form in FORMS:
        before: Result | None = None
        results = bench.results_for(table="c", peer=peer, form=form)
        for each in sorted(results, key=lambda result: int(result["created"])):
            more = each["peak_kb"] - before["peak_kb"] if before else 0
            slope = f"{round(more * 1024 / (each['created'] - before['created'])):,}" if before else ""
            yield [f"{peer}, {form}", f"{each['created']:,}", f"{each['peak_kb'] / 1024:,.1f}", slope]
            before = each


# ------------------------------------------------------------------------------------- the first outcome


def first_outcome(result: Result) -> float:
    return float(result["first"] * 1_000)


def table_d(bench: Bench) -> None:
    number = 1_000 if bench.quick else 100_000
    with server(bench.built) as url:
        for turn in range(bench.rounds):
            for peer in round_order([], turn):
                words = ("--partners", number, "--concurrency", 100, "--first")
                bench.run(peer, url, *words, core=client_core(), table="d", round=turn)

    def rows() -> Iterator[list[object]]:
        for peer in (OURS, BARE, AGAIN):
            times = [first_outcome(each) for each in bench.results_for(table="d", peer=peer)]
            yield [
                peer,
                format_median(times, 0),
                "" if peer == BARE else format_median(ratios(bench, first_outcome, peer, table="d"), 3),
            ]

    print("Bare aiohttp's is noted in its task: what it awaits gives them all at once, in the end.\n")
    print_table([f"first outcome of {number:,}, 100 at once", "ms", "of bare"], rows())


# ------------------------------------------------------------------------- what is beside: calls, the loop

CREATING, NOTHING = "a bulk run", "nothing"


def delay_at(share: float) -> Callable[[Result], float]:
    return lambda result: quantile(result["late"], share) * 1_000


def measure_with_probe(
    bench: Bench,
    which: str,
    probe: tuple[object, ...],
    *,
    concurrency: int,
    seconds: float,
    also_idle: tuple[str, ...],
) -> None:
    """Measure what is beside a bulk run of so many seconds, and of some clients what is there without one."""
    for latency in (0,) if bench.quick else (0, 50):
        with server(bench.built, latency) as url:
            for turn in range(bench.rounds):
                for peer in round_order([], turn):
                    number = partner_count(peer, latency, concurrency, seconds)
                    words = ("--partners", number, "--concurrency", concurrency, *probe)
                    facts = {"table": which, "latency": latency, "round": turn}
                    bench.run(peer, url, *words, core=client_core(), beside=CREATING, **facts)
                    if peer in also_idle:
                        bench.run(
                            peer, url, *probe, "--idle", seconds, core=client_core(), beside=NOTHING, **facts
                        )


def probe_groups(bench: Bench, which: str) -> Iterator[tuple[list[object], dict[str, object]]]:
    """Give the first words of each row of such a table, and by which facts its results are found."""
    pairs = [(CREATING, OURS), (CREATING, BARE), (CREATING, AGAIN), (NOTHING, OURS), (NOTHING, BARE)]
    for latency in sorted({each["latency"] for each in bench.results_for(table=which)}):
        for beside, peer in pairs:
            facts = {"table": which, "latency": latency, "beside": beside, "peer": peer}
            if bench.results_for(**facts):
                yield [latency, beside, peer], facts


def ratio_to_bare(bench: Bench, figure: Callable[[Result], float], facts: dict[str, Any]) -> str:
    return "" if facts["peer"] == BARE else format_median(ratios(bench, figure, **facts))


def table_e(bench: Bench) -> None:
    seconds = 0.3 if bench.quick else 2.5
    probe = ("--beside", "calls", "--connections", 100)
    measure_with_probe(bench, "e", probe, concurrency=50, seconds=seconds, also_idle=(OURS, BARE))

    def rows() -> Iterator[list[object]]:
        for row, facts in probe_groups(bench, "e"):
            results = bench.results_for(**facts)
            late = [time for each in results for time in each["late"]]
            for share in (0.5, 0.99):
                row.append(format_median(list(map(delay_at(share), results)), 1))
            row += [
                ratio_to_bare(bench, delay_at(0.99), facts),
                f"{quantile(late, 0.999) * 1_000:,.1f}",
                f"{len(late):,}",
            ]
            yield row

    print("A call every 5 ms, from its turn to its token; the bulk run has 50 of 100 connections.\n")
    heads = [
        "ms",
        "beside",
        "client",
        "p50, ms",
        "p99, ms",
        "p99 of bare",
        "p99.9 of all rounds, ms",
        "calls",
    ]
    print_table(heads, rows(), words=3)


def table_f(bench: Bench) -> None:
    seconds = 0.3 if bench.quick else 2
    measure_with_probe(bench, "f", ("--beside", "loop"), concurrency=100, seconds=seconds, also_idle=(BARE,))

    def rows() -> Iterator[list[object]]:
        for row, facts in probe_groups(bench, "f"):
            for share in (0.5, 0.99, 1):
                row.append(format_median(list(map(delay_at(share), bench.results_for(**facts)))))
            yield [*row, ratio_to_bare(bench, delay_at(0.99), facts)]

    print("How late a task is woken that sleeps a millisecond at a time; the bulk run has 100 at once.\n")
    heads = ["ms", "beside", "client", "p50, ms", "p99, ms", "most, ms", "p99 of bare"]
    print_table(heads, rows(), words=3)


TABLES = {"a": table_a, "b": table_b, "c": table_c, "d": table_d, "e": table_e, "f": table_f}


# ----------------------------------------------------------------------------------------------- the run


def open_many_files() -> None:
    """Let the clients have a thousand connections, where no more than a limit of habit is in the way."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 4_096 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4_096, hard))


def measure(asked: argparse.Namespace, folder: Path) -> Bench:
    open_many_files()
    rounds = 1 if asked.quick else asked.rounds
    bench = Bench(build_server(folder), rounds, asked.quick, asked.partners, asked.node)
    print(f"{describe_cores()} aiohttp {version('aiohttp')}.")
    if asked.node is None:
        print("Plaid's client for Node is left out: --node FOLDER says where it is installed.")
    for name in asked.only.split(",") if asked.only else TABLES:
        print(f"\n### {name}\n")
        TABLES[name](bench)
    return bench


def summarize(result: Result) -> Result:
    """Give what is kept of a result: of the times beside it, some quantiles."""
    late = result["late"]
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1}
    return result | {
        "late": {name: quantile(late, share) for name, share in shares.items()} if late else None
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--only", help="such as a,c")
    parser.add_argument("--partners", type=int, default=1_000_000, help="at most so many, in c")
    parser.add_argument("--node", type=Path, help="the folder into which npm has installed plaid")
    parser.add_argument("--json", type=Path, help="where all results go")
    parser.add_argument("--charts", type=Path, help="the folder into which charts are drawn")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = measure(asked, Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
    results = list(map(summarize, bench.results))
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if asked.charts:
        import charts

        charts.draw(results, asked.charts)


if __name__ == "__main__":
    main()
