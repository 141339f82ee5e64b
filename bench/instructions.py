"""How many instructions a creation takes, ours and bare aiohttp's, as valgrind counts them: `nox -s bench`.

Unlike times, these come out the same on a machine that is busy, so that a change of a per cent is seen. The
client alone runs under valgrind, 100 calls at once. What the runs of all sizes share, the start and the
connections, is taken off by one of a small size. Prints a table in Markdown, beside the figures that
`--write` has kept in `instructions.json`.
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
# Without a seed, the order of sets would differ from run to run.
SEED = {"PYTHONHASHSEED": "0"}


def count_instructions(module: str, url: str, partners: int, log: Path) -> int:
    """Count all the instructions of one client's run."""
    counting = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    client = [sys.executable, "-m", module, "--url", url, "--partners", partners, "--concurrency", 100]
    output_of([*counting, f"--log-file={log}", *client], environment=SEED, timeout=1_800)
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1].replace(",", ""))


def measure(sizes: list[int], folder: Path) -> dict[str, dict[str, int]]:
    """Give the instructions for each creation, by client and number of partners."""
    jobs = [(name, size) for size in (*reversed(sizes), SMALL_RUN) for name in CLIENTS]
    # Nothing is timed, so that two may run at once.
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


def compare_to_baseline(kept: dict[str, Any], name: str, size: str, now: int) -> list[str]:
    """Give what was kept, and the ratio of what is now to it."""
    before = kept.get("instructions", {}).get(name, {}).get(size)
    return ["", ""] if before is None else [f"{before:,}", f"{now / before:.3f}"]


def report(found: dict[str, dict[str, int]], kept: dict[str, Any]) -> None:
    versions = {"python": platform.python_version(), "aiohttp": version("aiohttp")}
    print(f"CPython {versions['python']}, aiohttp {versions['aiohttp']}; 100 at once.", end=" ")
    if kept:
        print(f"Kept were those of CPython {kept['python']} with aiohttp {kept['aiohttp']}.", end="")
    print("\n")
    heads = ["client", "partners", "instructions a creation", "of bare", "kept", "of kept"]
    print_table(
        heads,
        (
            [
                name,
                f"{int(size):,}",
                f"{now:,}",
                f"{now / found['bare aiohttp'][size]:.3f}",
                *compare_to_baseline(kept, name, size, now),
            ]
            for name, sizes in found.items()
            for size, now in sizes.items()
        ),
    )


def write_baseline(found: dict[str, dict[str, int]]) -> None:
    told = {"python": platform.python_version(), "aiohttp": version("aiohttp"), "instructions": found}
    BASELINE.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partners", default="1000,10000", help=f"some numbers above {SMALL_RUN}")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {BASELINE.name}")
    parser.add_argument("--quick", action="store_true", help="not at all, for it takes a minute")
    asked = parser.parse_args()
    if asked.quick:
        print("skipped: counting instructions takes a minute")
        return
    if shutil.which("valgrind") is None:
        print("skipped: there is no valgrind to count instructions with")
        return
    kept = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure([int(size) for size in asked.partners.split(",")], Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
    report(found, kept)
    if asked.write:
        write_baseline(found)


if __name__ == "__main__":
    main()
