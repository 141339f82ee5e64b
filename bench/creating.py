"""Compare this package with other clients at creating relay tokens for many partners: `nox -s bench`.

Prints tables in Markdown; `--only` selects some of them:

    a  rate and CPU time by latency and concurrency
    b  the same over TLS, and memory
    c  memory by number of partners
    d  time to the first outcome
    e  duration of single calls during a bulk run
    f  delay of the event loop during a bulk run

All clients do the same work against a server in C (`server.c`), each in its own process, and they take turns
in each round. Ratios compare a client with bare aiohttp in the same round. Bare aiohttp runs twice in each
round: the ratio of its second run, in a separate row, shows how accurate the ratios are. A figure is the
median of the rounds, followed by the minimum and the maximum.
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
# The highest expected creations per second; the number of partners follows, so that runs take similar times.
EXPECTED_RATES = {HTTPX: 800, OFFICIAL: 2_000, NODE: 1_500}
# httpx gets slower with every open connection.
HTTPX_AT_100, HTTPX_AT_MOST = 150, 100
# Minimum number of partners in the most important cells, by latency and concurrency. In a longer run, the
# start has less weight.
LONGER_RUNS: dict[tuple[float, int], int] = {(0, 100): 20_000, (50, 100): 10_000}

Result = dict[str, Any]


@dataclass
class Bench:
    """The settings and the results of all measurements; `results_for` finds results by their facts."""

    built: CompiledServer
    rounds: int
    quick: bool
    max_partners: int
    node: Path | None
    results: list[Result] = field(default_factory=list)

    def run(self, peer: str, url: str, *options: object, core: int | None = None, **facts: object) -> Result:
        """Run one client, and store its result together with the facts."""
        environment = {} if self.node is None else {"NODE_PATH": str(self.node.resolve() / "node_modules")}
        output = json_output_of(
            [*self._program(peer), "--url", url, *options], core=core, environment=environment, timeout=900
        )
        delays = output.pop("beside")
        result: Result = {"peer": peer, **facts, **output, "late": delays}
        self.results.append(result)
        return result

    def _program(self, peer: str) -> list[str]:
        if peer == NODE:
            return ["node", "peers/with_plaid_node.cjs"]
        return [sys.executable, "-m", MODULES[peer]]

    def results_for(self, **facts: object) -> list[Result]:
        """Return the results that have all of these facts, in the order of the rounds."""
        return [each for each in self.results if facts.items() <= each.items()]

    def other_peers(self, concurrency: int) -> list[str]:
        """Return the clients to measure besides this package and bare aiohttp."""
        excluded = {NODE} if self.node is None else set()
        if concurrency > HTTPX_AT_MOST:
            excluded.add(HTTPX)
        return [peer for peer in OTHERS if peer not in excluded]


def round_order(others: list[str], round_number: int) -> list[str]:
    """Return the order of a round: this package always runs between the two runs of bare aiohttp."""
    pair = PAIR if round_number % 2 == 0 else PAIR[::-1]
    position = round_number % (len(others) + 1)
    return [*others[:position], *pair, *others[position:]]


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def cpu(result: Result) -> float:
    return float(result["cpu"] / result["created"] * 1e6)


def growth(result: Result) -> float:
    return float(result["growth_kb"] / 1024)


def ratios(bench: Bench, figure: Callable[[Result], float], peer: str, **facts: object) -> list[float]:
    """Return the ratio of a peer's figure to that of bare aiohttp in each round."""
    baseline = {each["round"]: each for each in bench.results_for(peer=BARE, **facts)}
    return [figure(each) / figure(baseline[each["round"]]) for each in bench.results_for(peer=peer, **facts)]


# ------------------------------------------------------------------------------------- rate and CPU time


def partner_count(peer: str, latency: float, concurrency: int, seconds: float) -> int:
    """Return a number of partners for which a client takes about `seconds`; `latency` is in milliseconds."""
    expected_rate: float = (
        HTTPX_AT_100 if peer == HTTPX and concurrency == HTTPX_AT_MOST else EXPECTED_RATES.get(peer, 6_000)
    )
    if latency:
        expected_rate = min(expected_rate, concurrency / latency * 1_000)
    return max(int(expected_rate * seconds), 3 * concurrency)


def measure_cell(bench: Bench, latency: float, concurrency: int) -> None:
    with server(bench.built, latency) as url:
        for round_number in range(bench.rounds):
            # The others start slowly, and differ from bare aiohttp so much that every second round is enough.
            others = bench.other_peers(concurrency) if round_number % 2 == 0 else []
            for peer in round_order(others, round_number):
                seconds = 0.1 if bench.quick else 1 if peer in PAIR else 0.7
                count = partner_count(peer, latency, concurrency, seconds)
                if not bench.quick and peer in (*PAIR, NAIVE):
                    count = max(count, LONGER_RUNS.get((latency, concurrency), 0))
                options = ("--partners", count, "--concurrency", concurrency)
                facts = {"table": "a", "latency": latency, "concurrency": concurrency, "round": round_number}
                bench.run(peer, url, *options, core=client_core(), **facts)


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

    heads = [
        "ms",
        "concurrency",
        "client",
        "creations/s",
        "vs. bare",
        "CPU, µs",
        "vs. bare",
        "of the ideal rate",
    ]
    print(f"Above {HTTPX_AT_MOST} concurrent calls there is no row for httpx, which takes minutes.\n")
    print_table(heads, rows(), words=3)


# --------------------------------------------------------------------------------------------- over TLS


def write_certificates(folder: Path) -> tuple[tuple[Path, Path], Path]:
    """Create a certificate for the server; return the files of its chain and key, and of its authority."""
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    certificate, key, ca = (folder / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    return (certificate, key), ca


def table_b(bench: Bench) -> None:
    if not bench.built.tls:
        print("TLS is skipped: the server was built without it, because OpenSSL's headers are not installed.")
        return
    certificate, ca = write_certificates(bench.built.program.parent)

    def rows() -> Iterator[list[object]]:
        for concurrency in (100,) if bench.quick else (100, 1_000):
            with server(bench.built, 0, certificate) as url:
                for round_number in range(bench.rounds):
                    for peer in round_order([LEAN], round_number):
                        count = 300 if bench.quick else max(5 * concurrency, 5_000)
                        options: tuple[object, ...] = (
                            "--partners",
                            count,
                            "--concurrency",
                            concurrency,
                            "--ca",
                            ca,
                        )
                        options += ("--tls-buffer", 16_384) if peer == LEAN else ()
                        facts = {"table": "b", "concurrency": concurrency, "round": round_number}
                        bench.run(peer, url, *options, core=client_core(), **facts)
            yield from rows_over_tls(bench, concurrency)

    heads = [
        "concurrency",
        "client",
        "creations/s",
        "vs. bare",
        "CPU, µs",
        "vs. bare",
        "memory, MB",
        "vs. bare",
    ]
    print("The memory is the peak of the process minus its memory before the work.\n")
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
    sizes = [size for size in sizes if size <= bench.max_partners]
    jobs = [
        (peer, form, size)
        for size in reversed(sizes)
        for peer, form in FORMS
        if peer == OURS or size <= 100_000
    ]

    def measure(job: tuple[str, str, int]) -> None:
        peer, form, size = job
        options = ("--partners", size, "--concurrency", 100, *FORMS[peer, form])
        bench.run(peer, url, *options, table="c", form=form, partners=size)

    # Only memory is measured, so two clients may run concurrently.
    with server(bench.built) as url, ThreadPoolExecutor(2) as pool:
        list(pool.map(measure, jobs))
    print("100 concurrent calls. The last column is the growth of the peak for each additional partner.\n")
    print_table(["client", "partners", "peak, MB", "bytes per partner"], rows_of_memory(bench))


def rows_of_memory(bench: Bench) -> Iterator[list[object]]:
    for peer, form in FORMS:
        previous: Result | None = None
        results = bench.results_for(table="c", peer=peer, form=form)
        for each in sorted(results, key=lambda result: int(result["created"])):
            growth_kb = each["peak_kb"] - previous["peak_kb"] if previous else 0
            slope = (
                f"{round(growth_kb * 1024 / (each['created'] - previous['created'])):,}" if previous else ""
            )
            yield [f"{peer}, {form}", f"{each['created']:,}", f"{each['peak_kb'] / 1024:,.1f}", slope]
            previous = each


# ------------------------------------------------------------------------------------- the first outcome


def first_outcome(result: Result) -> float:
    return float(result["first"] * 1_000)


def table_d(bench: Bench) -> None:
    number = 1_000 if bench.quick else 100_000
    with server(bench.built) as url:
        for round_number in range(bench.rounds):
            for peer in round_order([], round_number):
                options = ("--partners", number, "--concurrency", 100, "--first")
                bench.run(peer, url, *options, core=client_core(), table="d", round=round_number)

    def rows() -> Iterator[list[object]]:
        for peer in (OURS, BARE, AGAIN):
            times = [first_outcome(each) for each in bench.results_for(table="d", peer=peer)]
            yield [
                peer,
                format_median(times, 0),
                "" if peer == BARE else format_median(ratios(bench, first_outcome, peer, table="d"), 3),
            ]

    print("Bare aiohttp gathers all results at the end; its first outcome is measured inside its task.\n")
    print_table([f"first outcome of {number:,}, concurrency 100", "ms", "vs. bare"], rows())


# ------------------------------------------------------------------- probes: single calls, the event loop

CREATING, NOTHING = "a bulk run", "nothing"


def delay_at(share: float) -> Callable[[Result], float]:
    return lambda result: quantile(result["late"], share) * 1_000


def measure_with_probe(
    bench: Bench,
    table: str,
    probe: tuple[object, ...],
    *,
    concurrency: int,
    seconds: float,
    also_idle: tuple[str, ...],
) -> None:
    """Run a probe during a bulk run of about `seconds`, and, for the clients in `also_idle`, without one."""
    for latency in (0,) if bench.quick else (0, 50):
        with server(bench.built, latency) as url:
            for round_number in range(bench.rounds):
                for peer in round_order([], round_number):
                    count = partner_count(peer, latency, concurrency, seconds)
                    options = ("--partners", count, "--concurrency", concurrency, *probe)
                    facts = {"table": table, "latency": latency, "round": round_number}
                    bench.run(peer, url, *options, core=client_core(), beside=CREATING, **facts)
                    if peer in also_idle:
                        bench.run(
                            peer, url, *probe, "--idle", seconds, core=client_core(), beside=NOTHING, **facts
                        )


def probe_groups(bench: Bench, table: str) -> Iterator[tuple[list[object], dict[str, object]]]:
    """Yield the first cells of each row of a probe's table, and the facts of the row's results."""
    pairs = [(CREATING, OURS), (CREATING, BARE), (CREATING, AGAIN), (NOTHING, OURS), (NOTHING, BARE)]
    for latency in sorted({each["latency"] for each in bench.results_for(table=table)}):
        for beside, peer in pairs:
            facts = {"table": table, "latency": latency, "beside": beside, "peer": peer}
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
            times = [time for each in results for time in each["late"]]
            for share in (0.5, 0.99):
                row.append(format_median(list(map(delay_at(share), results)), 1))
            row += [
                ratio_to_bare(bench, delay_at(0.99), facts),
                f"{quantile(times, 0.999) * 1_000:,.1f}",
                f"{len(times):,}",
            ]
            yield row

    print(
        "A call every 5 ms, from its scheduled start to its token; the bulk run uses 50 of 100 connections.\n"
    )
    heads = [
        "ms",
        "beside",
        "client",
        "p50, ms",
        "p99, ms",
        "p99 vs. bare",
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

    print("The delay of a task that sleeps for a millisecond at a time; the bulk run has 100 calls.\n")
    heads = ["ms", "beside", "client", "p50, ms", "p99, ms", "maximum, ms", "p99 vs. bare"]
    print_table(heads, rows(), words=3)


TABLES = {"a": table_a, "b": table_b, "c": table_c, "d": table_d, "e": table_e, "f": table_f}


# ----------------------------------------------------------------------------------------------- the run


def open_many_files() -> None:
    """Raise the soft limit of open files, as far as the hard limit allows, for a thousand connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 4_096 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4_096, hard))


def measure(options: argparse.Namespace, folder: Path) -> Bench:
    open_many_files()
    rounds = 1 if options.quick else options.rounds
    bench = Bench(build_server(folder), rounds, options.quick, options.partners, options.node)
    print(f"{describe_cores()} aiohttp {version('aiohttp')}.")
    if options.node is None:
        print("Plaid's client for Node is skipped: pass --node FOLDER, the folder where it is installed.")
    for name in options.only.split(",") if options.only else TABLES:
        print(f"\n### {name}\n")
        TABLES[name](bench)
    return bench


def summarize(result: Result) -> Result:
    """Return a result with quantiles in place of all the times that its probe measured."""
    times = result["late"]
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1}
    return result | {
        "late": {name: quantile(times, share) for name, share in shares.items()} if times else None
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    parser.add_argument("--only", help="comma-separated letters of the tables to measure, such as a,c")
    parser.add_argument("--partners", type=int, default=1_000_000, help="maximum partners in table c")
    parser.add_argument("--node", type=Path, help="folder where npm has installed plaid")
    parser.add_argument("--json", type=Path, help="file to write all results to")
    parser.add_argument("--charts", type=Path, help="folder to write the charts to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = measure(options, Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
    results = list(map(summarize, bench.results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.charts:
        import charts

        charts.draw(results, options.charts)


if __name__ == "__main__":
    main()
