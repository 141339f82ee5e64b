"""Shared parts of the compared clients: their command line, the partners, and the measurement.

Each client is a program, `python -m peers.NAME --url URL --partners N --concurrency N`. It creates one relay
token for each partner and prints one line of JSON. The measurement starts after all imports and after loading
a TLS context; it includes opening the connections.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import re
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import loop_delays

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

PATH = "/credit/relay/create"
CLIENT_ID, SECRET = "bench", "b" * 30
HEADERS = {"PLAID-CLIENT-ID": CLIENT_ID, "PLAID-SECRET": SECRET, "Plaid-Version": "2020-09-14"}
REPORT = "assets-sandbox-6f12f5bb-22dd-4855-b918-f47ec439198a"
# Seconds between two single calls beside a bulk run, as a web service would make them.
CALL_INTERVAL = 0.005


@dataclass
class Options:
    """The command line's options; `tls` is `None` for an http URL."""

    url: str
    partners: int
    concurrency: int
    connections: int
    idle: float
    beside: str | None
    awaited: bool
    duplicates: bool
    first: bool
    tls_buffer: int | None
    tls: ssl.SSLContext | None

    def partner_ids(self) -> Iterator[str]:
        """Return the partners' IDs as an iterator, because a list would count as the client's memory."""
        return (f"{number:024x}" for number in range(self.partners))


def body_for(partner: str) -> dict[str, Any]:
    return {"report_tokens": [REPORT], "secondary_client_id": partner}


def parse_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--partners", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--connections", type=int, help="default: the concurrency")
    parser.add_argument("--ca", help="file with the certificate of the server's certificate authority")
    parser.add_argument("--idle", type=float, default=0, help="seconds to stay idle instead of creating")
    parser.add_argument("--beside", choices=("loop", "calls"), help="what to measure during the creations")
    parser.add_argument("--awaited", action="store_true", help="ours: await one result instead of streaming")
    parser.add_argument("--duplicates", action="store_true", help="ours: use allow_duplicates")
    parser.add_argument("--tls-buffer", type=int, help="ours: buffer of each connection in bytes")
    parser.add_argument("--first", action="store_true", help="exit after the first token")
    values = vars(parser.parse_args())
    authority = values.pop("ca")
    values["tls"] = ssl.create_default_context(cafile=authority) if authority else None
    values["connections"] = values["connections"] or values["concurrency"]
    return Options(**values)


# --------------------------------------------------------------------------------------- the measurement


@dataclass
class Meter:
    """A counter of tokens that also measures time and memory since its creation."""

    only_first: bool
    created: int = 0
    started: float = field(default_factory=time.perf_counter)
    cpu_before: float = field(default_factory=time.process_time)
    memory_before: int = field(default_factory=lambda: memory_kilobytes("VmRSS"))
    first: float | None = None
    beside: list[float] = field(default_factory=list)

    def count_token(self, token: str) -> None:
        """Count one token, and record the time of the first one."""
        self.created += token.startswith("credit-relay-")
        if self.first is None:
            self.first = time.perf_counter() - self.started
            if self.only_first:
                self.print_result()
                os._exit(0)  # neither the other tokens nor the time to cancel their calls matter

    def print_result(self) -> None:
        """Print the measurements so far as one line of JSON."""
        wall, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu_before
        peak = memory_kilobytes("VmHWM")
        result = {"wall": wall, "cpu": cpu, "created": self.created, "first": self.first}
        memory = {"peak_kb": peak, "growth_kb": peak - self.memory_before}
        beside = [round(each, 6) for each in self.beside]
        print(json.dumps(result | memory | {"beside": beside}), flush=True)


def memory_kilobytes(name: str) -> int:
    """Read a value from /proc/self/status; `ru_maxrss` would include the parent's memory before the exec."""
    match = re.search(
        rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    assert match is not None
    return int(match[1])


def measure(options: Options, work: Callable[[Meter], object]) -> None:
    """Do the work, check that there is a token for each partner, and print the measurements."""
    gc.collect()
    # Writing 5 resets the peak, VmHWM; without it, the peak may be that of the imports.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    meter = Meter(options.first)
    work(meter)
    assert meter.created == options.partners, f"{meter.created} tokens for {options.partners} partners"
    meter.print_result()


# -------------------------------------------------------------------------------------------- the probes


async def call_times(work: asyncio.Future[Any], call: Callable[[], Awaitable[object]]) -> list[float]:
    """Start a call every `CALL_INTERVAL` seconds until the work is done, and return the time that each took.

    The time counts from the scheduled start, so it includes the delay of a busy event loop.
    """
    times: list[float] = []

    async def measure_call(scheduled: float) -> None:
        await call()
        times.append(time.perf_counter() - scheduled)

    scheduled = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while not work.done():
            group.create_task(measure_call(scheduled))
            scheduled += CALL_INTERVAL
            await asyncio.sleep(scheduled - time.perf_counter())
    return times


async def run_with_probe(
    options: Options,
    meter: Meter,
    bulk: Callable[[], Coroutine[Any, Any, None]],
    call: Callable[[], Awaitable[object]],
) -> None:
    """Run the bulk run, or stay idle, and run the selected probe at the same time."""
    if options.beside is None:
        await bulk()
        return
    work = asyncio.ensure_future(asyncio.sleep(options.idle) if options.idle else bulk())
    meter.beside = await (loop_delays(work) if options.beside == "loop" else call_times(work, call))
    await work


def run(create_all: Callable[[Options, Meter], Coroutine[Any, Any, None]]) -> None:
    """Run a client whose function is a coroutine function."""
    options = parse_options()
    measure(options, lambda meter: asyncio.run(create_all(options, meter)))
