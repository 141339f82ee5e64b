"""Measure the import of this package and the cold start of its command: `nox -s bench`.

Prints a table in Markdown with CPU time, wall time and peak memory. Each program runs in a new process, and
the programs take turns. A figure is the median of the rounds, followed by the minimum and the maximum. The
last columns are the differences from another process of the same round.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import (
    ENVIRONMENT,
    MissingError,
    build_server,
    client_core,
    describe_cores,
    format_median,
    on_core,
    print_table,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each process reads its own peak, because `ru_maxrss` includes the memory of its parent before the exec.
REPORT = """
import atexit
def _report():
    with open("/proc/self/status") as status, open({file!r}, "w") as output:
        output.write(status.read().split("VmHWM:")[1].split()[0])
atexit.register(_report)
"""
NOTHING, AIOHTTP, OURS = "pass", "import aiohttp", "import plaid_relay_async"
IMPORTS = (NOTHING, AIOHTTP, OURS, "import httpx", "import plaid.api.plaid_api")
# The program that another one is compared to; any other is compared to one that does nothing.
COMPARED_TO = {OURS: AIOHTTP}
CREDENTIALS = {"PLAID_CLIENT_ID": "bench", "PLAID_SECRET": "b" * 30}

Figures = tuple[float, float, float]


def command_program(*arguments: object) -> str:
    """Return a Python program that runs `plaid-relay` with these arguments."""
    return (
        "import sys; from plaid_relay_async.cli import main; "
        f"sys.argv = {['plaid-relay', *map(str, arguments)]!r}; sys.exit(main())"
    )


def programs(folder: Path, url: str) -> dict[str, str]:
    rows = folder / "rows.csv"
    rows.write_text(
        "report_token,secondary_client_id\nassets-sandbox-1,ce5bd328dcd34123456\n", encoding="ascii"
    )
    return {f"python -c {each!r}": each for each in IMPORTS} | {
        "plaid-relay --version": command_program("--version"),
        "plaid-relay --help": command_program("--help"),
        "plaid-relay bulk, of one row": command_program("bulk", rows, "--base-url", url),
    }


def run_program(program: str, peak_file: Path) -> Figures:
    """Run a program until it exits, and return its CPU time in ms, its wall time in ms and its peak in MB."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with on_core(client_core()):
        result = subprocess.run(  # noqa: S603  # the benchmark's own program
            [sys.executable, "-c", REPORT.format(file=str(peak_file)) + program],
            env=ENVIRONMENT | CREDENTIALS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(f"{program}\nexited with status {result.returncode}:\n{result.stderr}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu * 1_000, wall * 1_000, int(peak_file.read_text(encoding="ascii")) / 1_024


def measure(by_name: dict[str, str], peak_file: Path, rounds: int) -> dict[str, list[Figures]]:
    figures: dict[str, list[Figures]] = {name: [] for name in by_name}
    for program in by_name.values():
        run_program(program, peak_file)  # warm up: cache all files, and compile them
    for number in range(rounds):
        names = list(by_name)
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            figures[name].append(run_program(by_name[name], peak_file))
    return figures


def rows(by_name: dict[str, str], figures: dict[str, list[Figures]]) -> Iterator[list[str]]:
    names = {program: name for name, program in by_name.items()}
    for name, program in by_name.items():
        reference = names[COMPARED_TO.get(program, NOTHING)]
        row = [f"`{name}`"]
        for index, digits in ((0, 0), (1, 0), (2, 1)):
            row.append(format_median([each[index] for each in figures[name]], digits))
        row.append("" if name == reference else f"`{reference}`")
        for index, digits in ((0, 0), (2, 1)):
            pairs = zip(figures[name], figures[reference], strict=True)
            differences = [each[index] - baseline[index] for each, baseline in pairs]
            row.append("" if name == reference else format_median(differences, digits))
        yield row


def compare(folder: Path, rounds: int) -> None:
    with server(build_server(folder)) as url:
        by_name = programs(folder, url)
        figures = measure(by_name, folder / "peak", rounds)
    print(f"{describe_cores()}\n")
    heads = ["process", "CPU, ms", "time, ms", "peak, MB", "compared with", "CPU, ms", "peak, MB"]
    print_table(heads, rows(by_name, figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round, to check that everything runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(Path(folder), 1 if options.quick else options.rounds)
        except MissingError as missing:
            print(f"skipped: {missing}")


if __name__ == "__main__":
    main()
