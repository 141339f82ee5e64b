"""This package with and without OpenTelemetry, in one process, so that the ratios are accurate.

Prints one line of JSON: for each kind of call and each setting, the CPU seconds of a creation in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from peers.common import CLIENT_ID, REPORT, SECRET

from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

ABSENT, AGAIN, NOOP, ACTIVE = "absent", "absent again", "no-op", "active"


def new_client(url: str, telemetry: Telemetry | None = None) -> RelayClient:
    credentials = Credentials(CLIENT_ID, SECRET)
    return RelayClient(credentials, base_url=url, connections=100, telemetry=telemetry)


def client_without_opentelemetry(url: str) -> RelayClient:
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]  # it can't be imported, as if it was absent
    try:
        return new_client(url)
    finally:
        del sys.modules["opentelemetry"]


def active_telemetry() -> tuple[Telemetry, Callable[[], object]]:
    """Return settings with the SDK, whose spans are dropped, and a function that waits for that."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class DroppingExporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002
            return SpanExportResult.SUCCESS

    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(DroppingExporter(), max_queue_size=100_000))
    telemetry = Telemetry(
        tracer_provider=tracer_provider, meter_provider=MeterProvider([InMemoryMetricReader()])
    )
    return telemetry, tracer_provider.force_flush


def partner_ids(count: int) -> Iterator[str]:
    return (f"{number:024x}" for number in range(count))


async def in_batch(client: RelayClient, partners: int) -> None:
    requests = RelayCreateRequest.fan_out([REPORT], partner_ids(partners))
    assert len((await client.relay.create_many(requests, concurrency=100)).created) == partners


async def singly(client: RelayClient, partners: int) -> None:
    ids = partner_ids(partners)

    async def create() -> None:
        for partner in ids:
            await client.relay.create([REPORT], partner)

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(create())


async def measure(
    work: Callable[[RelayClient, int], Coroutine[Any, Any, None]],
    client: RelayClient,
    partners: int,
    flush: Callable[[], object],
) -> float:
    gc.collect()
    started = time.process_time()
    await work(client, partners)
    flush()
    return (time.process_time() - started) / partners


async def compare(url: str, partners: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    absent = client_without_opentelemetry(url)
    telemetry, flush = active_telemetry()
    clients = {ABSENT: absent, NOOP: new_client(url), ACTIVE: new_client(url, telemetry)}
    seconds: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        for client in clients.values():
            await stack.enter_async_context(client)
            await in_batch(client, 200)  # opens the connections
        clients[AGAIN] = absent
        for kind, work in (("create_many", in_batch), ("create", singly)):
            figures = seconds[kind] = {name: [] for name in clients}
            for number in range(rounds):
                names = list(clients)
                for name in (*names[number % 4 :], *names[: number % 4]):
                    wait = flush if name == ACTIVE else bool
                    figures[name].append(await measure(work, clients[name], partners, wait))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--partners", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(compare(options.url, options.partners, options.rounds))))


if __name__ == "__main__":
    main()
