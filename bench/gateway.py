"""Measure the latency that the gateway adds to a call, compared with nginx as a proxy: `nox -s bench`.

Prints a table in Markdown for one caller and for twenty concurrent ones. It has the time of a small creation
directly, through nginx and through the gateway, at the median and at the 99th percentile; the time that each
proxy adds; and two ratios of the gateway to nginx: of the added times, unless the difference is lost in
noise, and of the total times. The three routes take turns on the same machine, over keep-alive connections.
The upstream is another nginx with a constant response. The nginx proxy only adds the two headers with the
credentials and checks neither keys nor bodies. The ratio is therefore the cost of the gateway's checks and of
Python.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROUTES = ("direct", "nginx", "gateway")
CALLERS = (1, 20)
NOISE = 0.05  # fraction of the direct time
SECRET = "b" * 30
TOKEN = "credit-relay-sandbox-8218d5f8-6d6d-403d-92f5-13a9afaa4398"  # noqa: S105  # not a real token
BODY = json.dumps(
    {"report_tokens": ["assets-sandbox-1"], "secondary_client_id": "ce5bd328dcd34123456"}
).encode()

COMMON = """
worker_processes 1;
pid {folder}/{name}.pid;
error_log stderr crit;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 10000000;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
"""
UPSTREAM = (
    COMMON
    + """
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        location / {{ return 200 '{{"relay_token": "{token}", "request_id": "HNTDNrA8F1shFEW"}}'; }}
    }}
}}
"""
)
PROXY = (
    COMMON
    + """
    upstream plaid {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://plaid;
            proxy_http_version 1.1;
            proxy_next_upstream off;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_set_header PLAID-CLIENT-ID a;
            proxy_set_header PLAID-SECRET {secret};
        }}
    }}
}}
"""
)
GATEWAY = """
import asyncio, sys
from plaid_relay_async import Credentials
from plaid_relay_async.gateway import Gateway, new_key
async def main(upstream, secret):
    key, shown = new_key("bench")
    credentials = {"default": Credentials("a", secret)}
    async with Gateway([key], upstream=upstream, credentials=credentials, console=False) as gateway:
        print(gateway.url, shown, flush=True)
        await asyncio.wait_for(asyncio.to_thread(sys.stdin.read), 900)
asyncio.run(main(*sys.argv[1:]))
"""


# --------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


@contextlib.asynccontextmanager
async def nginx(folder: Path, name: str, template: str, **variables: object) -> AsyncIterator[int]:
    """Run nginx with a configuration built from a template, and yield its port."""
    port = free_port()
    file = folder / f"{name}.conf"
    values = {"folder": folder, "name": name, "port": port, "secret": SECRET, "token": TOKEN, **variables}
    file.write_text(template.format(**values), encoding="utf-8")
    program = shutil.which("nginx") or "nginx"
    arguments = ("-p", str(folder), "-c", str(file), "-e", "stderr", "-g", "daemon off;")
    process = await asyncio.create_subprocess_exec(program, *arguments)
    try:
        await wait_until_listening(port)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def wait_until_listening(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def gateway(upstream: int) -> AsyncIterator[tuple[int, str]]:
    """Run a gateway in another process, and yield its port and a caller's key."""
    pipe = asyncio.subprocess.PIPE
    arguments = ("-c", GATEWAY, f"http://127.0.0.1:{upstream}", SECRET)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url, key = (await process.stdout.readline()).decode().split()
        yield int(url.rpartition(":")[2]), key
    finally:
        process.stdin.close()
        await process.wait()


# --------------------------------------------------------------------------------------------- callers


class Caller(asyncio.Protocol):
    """A client that makes one call after another on one connection, with as little overhead as possible."""

    def __init__(self, request: bytes, count: int) -> None:
        self._request, self._remaining = request, count
        self.seconds: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send_request()

    def _send_request(self) -> None:
        self._received = b""
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Send the next request when the response is complete."""
        self._received += data
        # The body is one JSON object, and no response is pipelined, so this is its last byte.
        if not self._received.endswith(b"}"):
            return
        self.seconds.append(time.perf_counter() - self._started)
        assert self._received.startswith(b"HTTP/1.1 200 "), self._received
        self._remaining -= 1
        if self._remaining:
            self._send_request()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Raise an error from `done` if the server closed the connection before the last response."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed the connection"))


async def measure(port: int, key: str, callers: int, calls: int) -> list[float]:
    """Make `calls` calls in total from `callers` concurrent callers, and return their times in seconds."""
    head = (
        f"POST /credit/relay/create HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    clients = [Caller(head.encode() + BODY, calls // callers) for _ in range(callers)]
    async with asyncio.timeout(120):
        await asyncio.gather(*(loop.create_connection(lambda c=c: c, "127.0.0.1", port) for c in clients))
        await asyncio.gather(*(client.done for client in clients))
    return [seconds for client in clients for seconds in client.seconds]


async def compare(rounds: int, calls: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            nginx(folder, "upstream", UPSTREAM) as upstream,
            nginx(folder, "proxy", PROXY, upstream=upstream) as proxy,
            gateway(upstream) as (gateway_port, key),
        ):
            ports = dict(zip(ROUTES, (upstream, proxy, gateway_port), strict=True))
            print("| callers | ms | direct | nginx | gateway | nginx adds | gateway adds | ratio | of all |")
            print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
            for callers in CALLERS:
                await print_rows(ports, key, callers, rounds, calls)


async def print_rows(ports: dict[str, int], key: str, callers: int, rounds: int, calls: int) -> None:
    seconds: dict[str, list[float]] = {route: [] for route in ROUTES}
    for route in ROUTES:
        await measure(ports[route], key, callers, 200)  # warm up: open connections, fill caches
    for number in range(rounds):
        for route in (*ROUTES[number % 3 :], *ROUTES[: number % 3]):
            seconds[route] += await measure(ports[route], key, callers, calls)
    for name, point in (("p50", 49), ("p99", 98)):
        direct, by_nginx, by_gateway = (
            statistics.quantiles(seconds[route], n=100)[point] * 1000 for route in ROUTES
        )
        adds = by_nginx - direct, by_gateway - direct
        ratio = f"{adds[1] / adds[0]:.1f}" if adds[0] > NOISE * direct else "-"
        print(
            f"| {callers} | {name} | {direct:.3f} | {by_nginx:.3f} | {by_gateway:.3f} "
            f"| {adds[0]:.3f} | {adds[1]:.3f} | {ratio} | {by_gateway / by_nginx:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--calls", type=int, default=2_000, help="number of calls for each route in each round"
    )
    parser.add_argument("--quick", action="store_true", help="one round, to check that everything runs")
    options = parser.parse_args()
    if shutil.which("nginx") is None:
        print("skipped: nginx is not installed")
        return
    asyncio.run(compare(1 if options.quick else options.rounds, options.calls))


if __name__ == "__main__":
    main()
