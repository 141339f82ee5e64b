"""What it takes to turn a report's bytes into records, ours and others', in one run: `nox -s bench`.

Prints two tables in Markdown: time and memory by size of the report, and for how long another task on the
same event loop is held up while the longest is read. The times are CPU time of the best of some rounds, in
which all take turns; the memory is the peak of what Python allocates, the body itself not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
import time
import tracemalloc
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import attrs
import cattrs
import pydantic
from harness import loop_delays
from plaid.api_client import ApiClient
from plaid.model.asset_report_get_response import AssetReportGetResponse as PlaidPythons

from plaid_relay_async import AssetReportGetResponse, Credentials, RelayClient, models
from plaid_relay_async.codec.records import decode_record
from plaid_relay_async.simulator import report_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OURS, BARE, OFFICIAL = "plaid_relay_async", "bare cattrs", "plaid-python"
SIZES = {
    "0.1 MB": {"transactions": 200},
    "1 MB": {"transactions": 3_400},
    "1 MB with insights": {"transactions": 900, "insights": True},
    "8 MB with insights": {"transactions": 8_000, "insights": True, "days": 365},
}


# ------------------------------------------------------------------------------------------- the readers


def bare_cattrs_reader() -> Callable[[bytes], Any]:
    """Cattrs as it comes, into the same records: floats for money, lax types, unknown fields dropped."""
    converter = cattrs.Converter()
    converter.register_structure_hook(Decimal, lambda value, _: float(value))
    converter.register_structure_hook(date, lambda value, _: date.fromisoformat(value))
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))
    return lambda body: converter.structure(json.loads(body), AssetReportGetResponse)


def pydantic_reader() -> Callable[[bytes], Any]:
    """Pydantic, with models of the same fields: strict, Decimal, unknown fields kept."""
    made: dict[type, type[pydantic.BaseModel]] = {}

    def annotation(kind: Any) -> Any:
        if models.is_record(kind):
            return model(kind)
        if get_origin(kind) is None:
            return kind
        inner = tuple(annotation(arg) for arg in get_args(kind) if arg is not Ellipsis)
        if get_origin(kind) is tuple:
            return list[inner[0]]  # type: ignore[valid-type]  # made while the program runs
        return inner[0] | None

    def model(record: type) -> type[pydantic.BaseModel]:
        if record not in made:
            kinds = get_type_hints(record)
            fields = {
                a.name: (annotation(kinds[a.name]), ... if a.default is attrs.NOTHING else None)
                for a in attrs.fields(record)
                if a.name not in {"additional_properties", "raw"}
            }
            config = pydantic.ConfigDict(extra="allow", strict=True)
            made[record] = pydantic.create_model(record.__name__, __config__=config, **fields)  # type: ignore[call-overload]  # its own way to take fields
        return made[record]

    return model(AssetReportGetResponse).model_validate_json


def plaid_python_reader() -> Callable[[bytes], Any]:
    """Plaid's own client for Python, from the bytes on."""

    class Response:
        def __init__(self, body: bytes) -> None:
            self.data = body.decode()

    client = ApiClient()
    return lambda body: client.deserialize(Response(body), (PlaidPythons,), True)


def readers() -> dict[str, Callable[[bytes], Any]]:
    return {
        "json alone": json.loads,
        BARE: bare_cattrs_reader(),
        OURS: lambda body: decode_record(body, AssetReportGetResponse),
        "pydantic": pydantic_reader(),
        OFFICIAL: plaid_python_reader(),
    }


# ------------------------------------------------------------------------------------------- the measure


def best_times(every: dict[str, Callable[[bytes], Any]], body: bytes, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, read in every.items():
            gc.collect()
            begin = time.thread_time()
            read(body)
            times[name].append(time.thread_time() - begin)
    return {name: min(measured) for name, measured in times.items()}


def peak(read: Callable[[bytes], Any], body: bytes) -> int:
    tracemalloc.start()
    try:
        read(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def print_reader_table(rounds: int) -> None:
    every = readers()
    print("| report | bytes | reader | ms | of bare cattrs | of plaid-python | peak, bodies |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for size, asked in SIZES.items():
        body = report_bytes(**asked)
        times = best_times(every, body, rounds)
        for name, read in every.items():
            against = [times[name] / times[BARE], times[OFFICIAL] / times[name]]
            print(
                f"| {size} | {len(body):,} | {name} | {times[name] * 1000:.2f} | {against[0]:.2f} "
                f"| 1/{against[1]:.1f} | {peak(read, body) / len(body):.1f} |"
            )


# -------------------------------------------------------------------------------------------- the loop

SERVER = """
import asyncio, sys
from plaid_relay_async.simulator import report_bytes
body = report_bytes(8_000, insights=True, days=365)
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
async def answer(reader, writer):
    while request := await reader.readline():
        length = 0
        while (line := await reader.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        await reader.readexactly(length)
        writer.write(head + body)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(asyncio.to_thread(sys.stdin.read), 300)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[str]:
    """A server in a process of its own, for it would hold up the loop as well."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.stdin.close()
        await process.wait()


async def print_loop_table(rounds: int) -> None:
    body = report_bytes(8_000, insights=True, days=365)

    async def in_the_loop() -> None:
        decode_record(body, AssetReportGetResponse)

    print("\n| while 8 MB are read | held up at most, ms: median of rounds | worst |")
    print("|---|---:|---:|")
    async with server() as url, RelayClient(Credentials("a", "b"), base_url=url) as client:
        for name, read in (
            ("by `client.relay.get`", lambda: client.relay.get("t")),
            ("in the loop itself", in_the_loop),
        ):
            most = [max(await loop_delays(asyncio.ensure_future(read()))) * 1000 for _ in range(rounds)]
            print(f"| {name} | {statistics.median(most):.0f} | {max(most):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round, only to see that it runs")
    asked = parser.parse_args()
    rounds = 1 if asked.quick else asked.rounds
    print_reader_table(rounds)
    asyncio.run(print_loop_table(rounds))


if __name__ == "__main__":
    main()
