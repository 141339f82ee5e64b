"""What it takes until ours is there: its import, and its command's cold start, in one run: `nox -s bench`.

Prints a table in Markdown: CPU time, time, and the peak of the process's memory, each the median of runs in
fresh processes that take turns, with the least and the greatest behind it; and what each takes above another,
within each round.
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

# The process's own peak, for `ru_maxrss` counts what its parent had before the exec.
REPORT = """
import atexit
def _report():
    with open("/proc/self/status") as told, open({where!r}, "w") as to:
        to.write(told.read().split("VmHWM:")[1].split()[0])
atexit.register(_report)
"""
NOTHING, AIOHTTP, OURS = "pass", "import aiohttp", "import plaid_relay_async"
IMPORTS = (NOTHING, AIOHTTP, OURS, "import httpx", "import plaid.api.plaid_api")
# What a process's figures are held against, where that isn't a process that does nothing.
COMPARED_TO = {OURS: AIOHTTP}
CREDENTIALS = {"PLAID_CLIENT_ID": "bench", "PLAID_SECRET": "b" * 30}

Figures = tuple[float, float, float]


def command_program(*words: object) -> str:
    """Give the program that `plaid-relay` is, with these words."""
    return (
        "import sys; from plaid_relay_async.cli import main; "
        f"sys.argv = {['plaid-relay', *map(str, words)]!r}; sys.exit(main())"
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


def run_program(program: str, where: Path) -> Figures:
    """Run a program from its start to its end; give its CPU time and time in ms, and its peak in MB."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with on_core(client_core()):
        done = subprocess.run(  # noqa: S603  # the bench's own program
            [sys.executable, "-c", REPORT.format(where=str(where)) + program],
            env=ENVIRONMENT | CREDENTIALS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{program}\nended with status {done.returncode}:\n{done.stderr}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu * 1_000, wall * 1_000, int(where.read_text(encoding="ascii")) / 1_024


def measure(every: dict[str, str], where: Path, rounds: int) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = {name: [] for name in every}
    for program in every.values():
        run_program(program, where)  # so that each file was read and compiled before
    for turn in range(rounds):
        names = list(every)
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            found[name].append(run_program(every[name], where))
    return found


def rows(every: dict[str, str], found: dict[str, list[Figures]]) -> Iterator[list[str]]:
    names = {program: name for name, program in every.items()}
    for name, program in every.items():
        floor = names[COMPARED_TO.get(program, NOTHING)]
        row = [f"`{name}`"]
        for which, digits in ((0, 0), (1, 0), (2, 1)):
            row.append(format_median([each[which] for each in found[name]], digits))
        row.append("" if name == floor else f"`{floor}`")
        for which, digits in ((0, 0), (2, 1)):
            pairs = zip(found[name], found[floor], strict=True)
            more = [each[which] - less[which] for each, less in pairs]
            row.append("" if name == floor else format_median(more, digits))
        yield row


def compare(folder: Path, rounds: int) -> None:
    with server(build_server(folder)) as url:
        every = programs(folder, url)
        found = measure(every, folder / "peak", rounds)
    print(f"{describe_cores()}\n")
    heads = ["process", "CPU, ms", "time, ms", "peak, MB", "above", "CPU, ms", "peak, MB"]
    print_table(heads, rows(every, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round, only to see that it runs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(Path(folder), 1 if asked.quick else asked.rounds)
        except MissingError as missing:
            print(f"skipped: {missing}")


if __name__ == "__main__":
    main()
