"""Compare how this package and others decode a report's bytes into records: `nox -s bench`.

Prints two tables in Markdown: time and memory by size of the report, and the delay of the event loop while
the largest report is decoded. Times are CPU times of the best of several rounds, in which the decoders take
turns. Memory is the peak of Python's allocations without the body itself.
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
from plaid.model.asset_report_get_response import AssetReportGetResponse as PlaidPythonResponse

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
    """Use cattrs as it is for the same records: float amounts, lax types, unknown fields dropped."""
    converter = cattrs.Converter()
    converter.register_structure_hook(Decimal, lambda value, _: float(value))
    converter.register_structure_hook(date, lambda value, _: date.fromisoformat(value))
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))
    return lambda body: converter.structure(json.loads(body), AssetReportGetResponse)


def pydantic_reader() -> Callable[[bytes], Any]:
    """Use Pydantic with models of the same fields: strict types, Decimal amounts, unknown fields kept."""
    cache: dict[type, type[pydantic.BaseModel]] = {}

    def annotation(kind: Any) -> Any:
        if models.is_record(kind):
            return model(kind)
        if get_origin(kind) is None:
            return kind
        inner = tuple(annotation(arg) for arg in get_args(kind) if arg is not Ellipsis)
        if get_origin(kind) is tuple:
            return list[inner[0]]  # type: ignore[valid-type]  # a type created at run time
        return inner[0] | None

    def model(record: type) -> type[pydantic.BaseModel]:
        if record not in cache:
            kinds = get_type_hints(record)
            fields = {
                a.name: (annotation(kinds[a.name]), ... if a.default is attrs.NOTHING else None)
                for a in attrs.fields(record)
                if a.name not in {"additional_properties", "raw"}
            }
            config = pydantic.ConfigDict(extra="allow", strict=True)
            cache[record] = pydantic.create_model(record.__name__, __config__=config, **fields)  # type: ignore[call-overload]  # fields are untyped keywords
        return cache[record]

    return model(AssetReportGetResponse).model_validate_json


def plaid_python_reader() -> Callable[[bytes], Any]:
    """Use the decoder of plaid-python, Plaid's own client."""

    class Response:
        def __init__(self, body: bytes) -> None:
            self.data = body.decode()

    client = ApiClient()
    return lambda body: client.deserialize(Response(body), (PlaidPythonResponse,), True)


def readers() -> dict[str, Callable[[bytes], Any]]:
    return {
        "json alone": json.loads,
        BARE: bare_cattrs_reader(),
        OURS: lambda body: decode_record(body, AssetReportGetResponse),
        "pydantic": pydantic_reader(),
        OFFICIAL: plaid_python_reader(),
    }


# --------------------------------------------------------------------------------------- the measurement


def best_times(by_name: dict[str, Callable[[bytes], Any]], body: bytes, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(rounds):
        for name, read in by_name.items():
            gc.collect()
            start = time.thread_time()
            read(body)
            times[name].append(time.thread_time() - start)
    return {name: min(measured) for name, measured in times.items()}


def peak(read: Callable[[bytes], Any], body: bytes) -> int:
    tracemalloc.start()
    try:
        read(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def print_reader_table(rounds: int, sizes: list[str]) -> None:
    by_name = readers()
    print("| report | bytes | reader | ms | vs. bare cattrs | vs. plaid-python | peak, bodies |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for size in sizes:
        body = report_bytes(**SIZES[size])
        times = best_times(by_name, body, rounds)
        for name, read in by_name.items():
            ratios = [times[name] / times[BARE], times[OFFICIAL] / times[name]]
            print(
                f"| {size} | {len(body):,} | {name} | {times[name] * 1000:.2f} | {ratios[0]:.2f} "
                f"| 1/{ratios[1]:.1f} | {peak(read, body) / len(body):.1f} |"
            )


# -------------------------------------------------------------------------------------------- the loop

SERVER = """
import asyncio, sys
from plaid_relay_async.simulator import report_bytes
body = report_bytes(8_000, insights=True, days=365)
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
async def respond(reader, writer):
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
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(asyncio.to_thread(sys.stdin.read), 300)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[str]:
    """Run the server in another process, because it would block this event loop too; yield its URL."""
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

    print("\n| while 8 MB are read | longest delay of the event loop, ms: median of rounds | worst |")
    print("|---|---:|---:|")
    async with server() as url, RelayClient(Credentials("a", "b"), base_url=url) as client:
        for name, read in (
            ("by `client.relay.get`", lambda: client.relay.get("t")),
            ("in the loop itself", in_the_loop),
        ):
            longest = [max(await loop_delays(asyncio.ensure_future(read()))) * 1000 for _ in range(rounds)]
            print(f"| {name} | {statistics.median(longest):.0f} | {max(longest):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    print_reader_table(rounds, [*SIZES][:1] if options.quick else [*SIZES])
    asyncio.run(print_loop_table(rounds))


if __name__ == "__main__":
    main()
