"""What the clients that are compared share: their command line, whom they create for, and what is measured.

Each is a program, `python -m peers.NAME --url URL --partners N --concurrency N`, that creates one relay token
for each partner and prints one line of JSON. Imports, and what a context for TLS takes to load, are over
before the clock starts; opening the connections isn't.
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
# As often as a web service beside the bulk run creates for somebody, in seconds.
CALL_INTERVAL = 0.005


@dataclass
class Options:
    """What the command line says; `tls` is None where the URL is plain."""

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
        """Give the partners' ids one by one: a list of them would count as the client's memory."""
        return (f"{number:024x}" for number in range(self.partners))


def body_for(partner: str) -> dict[str, Any]:
    return {"report_tokens": [REPORT], "secondary_client_id": partner}


def parse_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--partners", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--connections", type=int, help="as many as calls at once, unless said otherwise")
    parser.add_argument("--ca", help="the file of the authority that the server's certificate is from")
    parser.add_argument("--idle", type=float, default=0, help="seconds to do nothing, in place of creating")
    parser.add_argument("--beside", choices=("loop", "calls"), help="what to measure beside the creations")
    parser.add_argument("--awaited", action="store_true", help="ours: as one result, not as a stream")
    parser.add_argument("--duplicates", action="store_true", help="ours: with allow_duplicates")
    parser.add_argument("--tls-buffer", type=int, help="ours: bytes set aside for each connection")
    parser.add_argument("--first", action="store_true", help="end with the first token")
    said = vars(parser.parse_args())
    authority = said.pop("ca")
    said["tls"] = ssl.create_default_context(cafile=authority) if authority else None
    said["connections"] = said["connections"] or said["concurrency"]
    return Options(**said)


# ------------------------------------------------------------------------------------------- the measure


@dataclass
class Meter:
    """Counts the tokens, and notes when the first one came."""

    only_first: bool
    created: int = 0
    started: float = field(default_factory=time.perf_counter)
    cpu_before: float = field(default_factory=time.process_time)
    memory_before: int = field(default_factory=lambda: memory_kilobytes("VmRSS"))
    first: float | None = None
    beside: list[float] = field(default_factory=list)

    def count_token(self, token: str) -> None:
        """Count one."""
        self.created += token.startswith("credit-relay-")
        if self.first is None:
            self.first = time.perf_counter() - self.started
            if self.only_first:
                self.print_result()
                os._exit(0)  # what comes after it is of no interest, nor how long it takes to give it up

    def print_result(self) -> None:
        """Print what it took until now."""
        wall, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu_before
        peak = memory_kilobytes("VmHWM")
        told = {"wall": wall, "cpu": cpu, "created": self.created, "first": self.first}
        memory = {"peak_kb": peak, "growth_kb": peak - self.memory_before}
        beside = [round(each, 6) for each in self.beside]
        print(json.dumps(told | memory | {"beside": beside}), flush=True)


def memory_kilobytes(name: str) -> int:
    """Read one of the kernel's figures; `ru_maxrss` would count what the parent had before the exec."""
    found = re.search(
        rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    assert found is not None
    return int(found[1])


def measure(asked: Options, work: Callable[[Meter], object]) -> None:
    """Do the work, and print what it took, once it is sure that there is a token for each partner."""
    gc.collect()
    with contextlib.suppress(OSError):  # without it, the peak may be the imports'
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    meter = Meter(asked.first)
    work(meter)
    assert meter.created == asked.partners, f"{meter.created} tokens for {asked.partners} partners"
    meter.print_result()


# ------------------------------------------------------------------------------------- what runs beside


async def call_times(work: asyncio.Future[Any], call: Callable[[], Awaitable[object]]) -> list[float]:
    """Make one call after another at a steady pace, and give how long after its turn each was done."""
    times: list[float] = []

    async def one(turn: float) -> None:
        await call()
        times.append(time.perf_counter() - turn)

    turn = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while not work.done():
            group.create_task(one(turn))
            turn += CALL_INTERVAL
            await asyncio.sleep(turn - time.perf_counter())
    return times


async def run_with_probe(
    asked: Options,
    meter: Meter,
    bulk: Callable[[], Coroutine[Any, Any, None]],
    call: Callable[[], Awaitable[object]],
) -> None:
    """Run the bulk, or nothing, with what is to be measured beside it."""
    if asked.beside is None:
        await bulk()
        return
    work = asyncio.ensure_future(asyncio.sleep(asked.idle) if asked.idle else bulk())
    meter.beside = await (loop_delays(work) if asked.beside == "loop" else call_times(work, call))
    await work


def run(create_all: Callable[[Options, Meter], Coroutine[Any, Any, None]]) -> None:
    """Run a client that is made for asyncio."""
    wanted = parse_options()
    measure(wanted, lambda meter: asyncio.run(create_all(wanted, meter)))
