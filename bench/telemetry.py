"""Measure what traces and metrics by OpenTelemetry cost: `nox -s bench`.

Prints a table in Markdown with the CPU time of a creation without OpenTelemetry (absent), with its API alone
(no-op), and with its SDK, whose spans are dropped (active). They take turns in one process, and a ratio
compares two of the same round. The row "absent again" shows how accurate the ratios are. A figure is the
median of the rounds, followed by the minimum and the maximum.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from harness import (
    MissingError,
    build_server,
    client_core,
    describe_cores,
    format_median,
    json_output_of,
    print_table,
    server,
)


def report(seconds: dict[str, dict[str, list[float]]]) -> None:
    rows = []
    for kind, by_setting in seconds.items():
        for name, figures in by_setting.items():
            ratios = [one / other for one, other in zip(figures, by_setting["absent"], strict=True)]
            microseconds = [each * 1e6 for each in figures]
            ratio = "" if name == "absent" else format_median(ratios, 3)
            rows.append([f"`{kind}`", name, format_median(microseconds, 1), ratio])
    heads = ["call", "OpenTelemetry", "CPU time of a creation, µs", "ratio to absent"]
    print_table(heads, rows, words=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partners", type=int, default=4_000, help="number of creations of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    options = parser.parse_args()
    partners, rounds = (200, 1) if options.quick else (options.partners, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        try:
            built = build_server(Path(folder))
        except MissingError as missing:
            print(f"skipped: {missing}")
            return
        with server(built) as url:
            program = [sys.executable, "-m", "peers.with_telemetry"]
            sizes = ["--url", url, "--partners", partners, "--rounds", rounds]
            seconds = json_output_of([*program, *sizes], core=client_core(), timeout=900)
    print(f"{describe_cores()} OpenTelemetry {version('opentelemetry-api')}.\n")
    report(seconds)


if __name__ == "__main__":
    main()
