"""Shared parts of the benchmarks: CPU affinity, subprocesses, the server, statistics and tables."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HERE = Path(__file__).parent
# Requests to this machine must not go through a proxy.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


class MissingError(Exception):
    """This machine lacks something that a benchmark needs."""


# --------------------------------------------------------------------------------------------- the cores


def core_pair() -> tuple[int, int] | None:
    """Return a core for the client and another for the server.

    Returns `None` if the process may use only one core, or if the system can't set the affinity.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[-1]) if len(available) > 1 else None


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run processes that are started in the block on one core: a child inherits its parent's affinity."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe_cores() -> str:
    """Return a sentence about the Python version and the cores that are used."""
    python = f"CPython {sys.version.partition(' ')[0]}"
    if core_pair() is None:
        return f"{python}; client and server share their cores, because the process can't select two."
    return f"{python}; the client has one core to itself and the server another."


# ----------------------------------------------------------------------------------------- the processes


def output_of(
    command: Sequence[object],
    *,
    core: int | None = None,
    timeout: float = 120,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a program in the benchmarks' folder, and return its standard output.

    Raises:
        SystemExit: the program failed; the message contains its standard error.
    """
    with on_core(core):
        result = subprocess.run(  # noqa: S603  # the benchmark's own command
            [str(word) for word in command],
            cwd=HERE,
            env=ENVIRONMENT | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nexited with status {result.returncode}:\n{result.stderr}")
    return result.stdout


def json_output_of(command: Sequence[object], **settings: Any) -> dict[str, Any]:
    """Run a program whose last line of output is JSON, and return that object."""
    result: dict[str, Any] = json.loads(output_of(command, **settings).splitlines()[-1])
    return result


@dataclass(frozen=True)
class CompiledServer:
    """The compiled server; `tls` is whether it was built with OpenSSL."""

    program: Path
    tls: bool


def build_server(folder: Path) -> CompiledServer:
    """Compile the server into a folder, with TLS if OpenSSL's headers are installed.

    Raises:
        MissingError: there is no C compiler, or the system isn't Linux.
    """
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise MissingError("the server needs a C compiler and Linux")
    program = folder / "server"
    plain = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", str(HERE / "server.c"), "-o", str(program)]
    with_tls = subprocess.run(  # noqa: S603  # the bench's own command
        [*plain, "-DTLS", "-lssl", "-lcrypto"], capture_output=True, timeout=120, check=False
    )
    if with_tls.returncode:
        output_of(plain)
    return CompiledServer(program, tls=not with_tls.returncode)


@contextlib.contextmanager
def server(
    built: CompiledServer, latency: float = 0, certificate: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Run the server, which responds after `latency` milliseconds, and yield its URL.

    With `certificate`, the files of a certificate chain and its key, it serves HTTPS.
    """
    scheme, tls_options = "http", list[str]()
    if certificate is not None:
        scheme, tls_options = "https", ["--certificate", str(certificate[0]), "--key", str(certificate[1])]
    command = [str(built.program), "--latency", str(latency), *tls_options]
    pipe = subprocess.PIPE
    with on_core(server_core()):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="ascii")  # noqa: S603  # the benchmark's own command
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()  # no effect if the server has exited


def client_core() -> int | None:
    cores = core_pair()
    return cores and cores[0]


def server_core() -> int | None:
    cores = core_pair()
    return cores and cores[1]


# -------------------------------------------------------------------------------------------- the loop


async def loop_delays(task: asyncio.Future[Any]) -> list[float]:
    """Sleep for a millisecond at a time until a task is done; return the delay of each wake-up in seconds."""
    delays = []
    while not task.done():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        delays.append(time.perf_counter() - start - 0.001)
    return delays


# ------------------------------------------------------------------------------------------ the figures


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that is not exceeded by a `share` (0 to 1) of the values."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)]


def format_median(values: Sequence[float], digits: int = 2) -> str:
    """Format the median of the rounds, followed by the minimum and the maximum if there are several."""
    median = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> None:
    """Print a Markdown table; the first `words` columns are text, and the others are numbers."""
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * words}{'---:|' * (len(heads) - words)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)
