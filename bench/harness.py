"""What the benches share: cores of their own for who is measured, processes that end, figures and tables."""

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
# What is for this machine must not go through a proxy.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


class MissingError(Exception):
    """Something that a bench needs isn't on this machine."""


# --------------------------------------------------------------------------------------------- the cores


def core_pair() -> tuple[int, int] | None:
    """Give a core for who is measured and another for the server, where there are two and a choice."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    ours = sorted(os.sched_getaffinity(0))
    return (ours[0], ours[-1]) if len(ours) > 1 else None


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Have what is started in the block stay on one core: a child has its parent's."""
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
    """Say what the figures were measured on."""
    python = f"CPython {sys.version.partition(' ')[0]}"
    if core_pair() is None:
        return f"{python}; client and server share their cores, for there is one only or no way to choose."
    return f"{python}; the client has one core to itself and the server another."


# ----------------------------------------------------------------------------------------- the processes


def output_of(
    command: Sequence[object],
    *,
    core: int | None = None,
    timeout: float = 120,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a program to its end, in the bench's folder, and give what it printed; fail aloud if it fails."""
    with on_core(core):
        done = subprocess.run(  # noqa: S603  # the bench's own command
            [str(word) for word in command],
            cwd=HERE,
            env=ENVIRONMENT | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def json_output_of(command: Sequence[object], **settings: Any) -> dict[str, Any]:
    """Run a program whose last line is JSON, and give that."""
    told: dict[str, Any] = json.loads(output_of(command, **settings).splitlines()[-1])
    return told


@dataclass(frozen=True)
class CompiledServer:
    """The server, compiled."""

    program: Path
    tls: bool


def build_server(folder: Path) -> CompiledServer:
    """Compile the server, with TLS where OpenSSL's headers are.

    Raises:
        MissingError: there is no compiler, or this isn't Linux.
    """
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise MissingError("there is no C compiler, or no Linux, for the server that creations are sent to")
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
    """Give the URL of a server that answers after so many milliseconds; it ends with the block."""
    scheme, more = "http", list[str]()
    if certificate is not None:
        scheme, more = "https", ["--certificate", str(certificate[0]), "--key", str(certificate[1])]
    command = [str(built.program), "--latency", str(latency), *more]
    pipe = subprocess.PIPE
    with on_core(server_core()):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="ascii")  # noqa: S603  # the bench's own command
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()  # which does nothing to one that has ended


def client_core() -> int | None:
    both = core_pair()
    return both and both[0]


def server_core() -> int | None:
    both = core_pair()
    return both and both[1]


# -------------------------------------------------------------------------------------------- the loop


async def loop_delays(task: asyncio.Future[Any]) -> list[float]:
    """How late a task that sleeps a millisecond at a time is woken, while the work goes on."""
    late = []
    while not task.done():
        begin = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - begin - 0.001)
    return late


# ------------------------------------------------------------------------------------------ the figures


def quantile(values: Iterable[float], share: float) -> float:
    """Give the smallest value that is not exceeded by so many."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)]


def format_median(values: Sequence[float], digits: int = 2) -> str:
    """Give the median of the rounds, and between what they lie."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> None:
    """Print a table in Markdown, whose first columns hold words and the others figures."""
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * words}{'---:|' * (len(heads) - words)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)
