"""Count the instructions of a creation with valgrind, for this package and bare aiohttp: `nox -s bench`.

Unlike times, instruction counts hardly depend on the load of the machine, so a change of 1 % is visible. Only
the client runs under valgrind, with 100 concurrent calls. The count of a small run is subtracted, which
removes the start of the process and the connections. Prints a table in Markdown that also has the baseline,
the counts that `--write` has stored in `instructions.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import HERE, MissingError, build_server, output_of, print_table, server

CLIENTS = {"plaid_relay_async": "peers.ours", "bare aiohttp": "peers.bare"}
SMALL_RUN = 200
BASELINE = HERE / "instructions.json"
# Without a fixed seed, the order of sets differs between runs.
SEED = {"PYTHONHASHSEED": "0"}


def count_instructions(module: str, url: str, partners: int, log: Path) -> int:
    """Return the number of instructions of one run of a client."""
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    client = [sys.executable, "-m", module, "--url", url, "--partners", partners, "--concurrency", 100]
    output_of([*valgrind, f"--log-file={log}", *client], environment=SEED, timeout=1_800)
    match = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text(encoding="utf-8"))
    assert match is not None
    return int(match[1].replace(",", ""))


def measure(sizes: list[int], folder: Path) -> dict[str, dict[str, int]]:
    """Return the instructions per creation, by client and number of partners."""
    jobs = [(name, size) for size in (*reversed(sizes), SMALL_RUN) for name in CLIENTS]
    # No times are measured, so two clients may run concurrently.
    with server(build_server(folder)) as url, ThreadPoolExecutor(2) as pool:

        def count(job: tuple[str, int]) -> int:
            name, size = job
            return count_instructions(CLIENTS[name], url, size, folder / f"{CLIENTS[name]}-{size}")

        counts = dict(zip(jobs, pool.map(count, jobs), strict=True))
    return {
        name: {
            str(size): (counts[name, size] - counts[name, SMALL_RUN]) // (size - SMALL_RUN) for size in sizes
        }
        for name in CLIENTS
    }


def compare_to_baseline(baseline: dict[str, Any], name: str, size: str, count: int) -> list[str]:
    """Return the table's cells for the baseline and for the ratio of the new count to it."""
    before = baseline.get("instructions", {}).get(name, {}).get(size)
    return ["", ""] if before is None else [f"{before:,}", f"{count / before:.3f}"]


def report(counts: dict[str, dict[str, int]], baseline: dict[str, Any]) -> None:
    versions = {"python": platform.python_version(), "aiohttp": version("aiohttp")}
    print(f"CPython {versions['python']}, aiohttp {versions['aiohttp']}; 100 concurrent calls.", end=" ")
    if baseline:
        print(f"Baseline: CPython {baseline['python']}, aiohttp {baseline['aiohttp']}.", end="")
    print("\n")
    heads = ["client", "partners", "instructions per creation", "vs. bare", "baseline", "vs. baseline"]
    print_table(
        heads,
        (
            [
                name,
                f"{int(size):,}",
                f"{count:,}",
                f"{count / counts['bare aiohttp'][size]:.3f}",
                *compare_to_baseline(baseline, name, size, count),
            ]
            for name, sizes in counts.items()
            for size, count in sizes.items()
        ),
    )


def write_baseline(counts: dict[str, dict[str, int]]) -> None:
    content = {"python": platform.python_version(), "aiohttp": version("aiohttp"), "instructions": counts}
    BASELINE.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--partners", default="1000,10000", help=f"comma-separated numbers of partners, above {SMALL_RUN}"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"store the counts in {BASELINE.name} as the baseline"
    )
    parser.add_argument("--quick", action="store_true", help="count nothing, because it takes a minute")
    options = parser.parse_args()
    if options.quick:
        print("skipped: counting instructions takes a minute")
        return
    if shutil.which("valgrind") is None:
        print("skipped: valgrind, which counts the instructions, is not installed")
        return
    baseline = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = measure([int(size) for size in options.partners.split(",")], Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
    report(counts, baseline)
    if options.write:
        write_baseline(counts)


if __name__ == "__main__":
    main()
