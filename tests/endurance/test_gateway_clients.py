"""Clients that don't read, read slowly, send nothing or reset: the gateway's descriptors and memory are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trustme

from plaid_relay_async import RelayClient, Timeouts
from plaid_relay_async.gateway import KeyFile
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.slow

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-m", "plaid_relay_async.cli"]
CLIENTS_PER_PROCESS = 500  # a process may have at most 1,024 open files

# Each client reconnects after its connection was closed. A client that reads nothing detects that only by writing.
ATTACK = """
import asyncio, contextlib, logging, random, socket, ssl, struct, sys

host, port, first, count, secure = sys.argv[1], *map(int, sys.argv[2:6])
key = sys.stdin.readline().strip()
PAGE = f"GET /console/many-view.js HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".encode()
body = b'{"relay_token": "nothing"}'
CALL = (
    f"POST /credit/relay/get HTTP/1.1\\r\\nHost: {host}\\r\\nAuthorization: Bearer {key}\\r\\n"
    f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
).encode() + body
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

async def wait_until_closed(writer, data):
    while not writer.is_closing():
        await asyncio.sleep(1)
        if data:
            writer.write(data)

async def read_nothing(reader, writer):
    writer.write(PAGE * 500)
    await wait_until_closed(writer, PAGE)

async def read_slowly(reader, writer):
    writer.write(PAGE * 500)
    while await reader.read(10):
        await asyncio.sleep(0.2)

async def send_nothing(reader, writer):
    await wait_until_closed(writer, b"")

async def send_half_a_request(reader, writer):
    writer.write(PAGE[:20])
    await wait_until_closed(writer, b"x")

async def reset_connection(reader, writer):
    writer.write(PAGE * 20)
    await reader.read(1)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

async def close_sending_side(reader, writer):
    writer.write(PAGE * 500)
    if writer.can_write_eof():
        writer.write_eof()
    await wait_until_closed(writer, b"")

async def call_and_abort(reader, writer):
    writer.write(CALL * 100)
    await reader.read(1)
    writer.transport.abort()

KINDS = [
    read_nothing, read_slowly, send_nothing, send_half_a_request, reset_connection, close_sending_side,
    read_nothing, read_slowly, call_and_abort,
]

async def client(number):
    kind, chance = KINDS[number % len(KINDS)], random.Random(number)
    tls = context if secure and kind is not send_nothing else None
    while True:
        writer = None
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
                name = host if tls else None
                reader, writer = await asyncio.open_connection(
                    sock=sock, limit=1, ssl=tls, server_hostname=name
                )
                await asyncio.wait_for(kind(reader, writer), 60)
            finally:
                sock.close() if writer is None else writer.transport.abort()
        await asyncio.sleep(chance.uniform(0.2, 2))

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    logging.disable()
    clients = [asyncio.create_task(client(first + number)) for number in range(count)]
    print("ready", flush=True)
    await asyncio.gather(*clients)

asyncio.run(main())
"""


def resources_of(process: asyncio.subprocess.Process) -> tuple[int, int]:
    """Return how many descriptors a process has open, and how many MiB of memory it uses."""
    folder = Path("/proc") / str(process.pid)
    status = (folder / "status").read_text()
    return len([*(folder / "fd").iterdir()]), int(status.partition("VmRSS:")[2].split()[0]) // 1024


@contextlib.asynccontextmanager
async def running_program(*command: object) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.may_block
@pytest.mark.timeout(900)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_resources_are_bounded_under_attack(tmp_path, monkeypatch, size, secure):
    """Descriptors and memory stay bounded, and each valid call succeeds, over a new connection or an old one."""
    clients, connections, calls = size(45, 2_000), size(15, 400), size(2, 100)
    file = KeyFile(tmp_path / "keys.json")
    honest_key = await asyncio.to_thread(file.add, "honest")
    attacker_key = await asyncio.to_thread(file.add, "attacker")
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "secret")
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    options = ["--keys", file.path, "--audit", tmp_path / "audit.jsonl", "--connections", connections]
    if secure:
        options += ["--tls-certificate", tmp_path / "certificate.pem", "--tls-key", tmp_path / "key.pem"]
    client_ssl = context if secure else None
    async with contextlib.AsyncExitStack() as stack:
        plaid = await stack.enter_async_context(Simulator(reports=[REPORT]))
        gateway = await stack.enter_async_context(
            running_program(*COMMAND, "gateway", "--upstream", plaid.url, *options)
        )
        url = (await gateway.stdout.readline()).decode().split()[-1]

        seconds, long_timeouts = [], Timeouts(connect=300.0, read=300.0)  # the machine may be busy

        def connect() -> RelayClient:
            return RelayClient(base_url=url, gateway_key=honest_key, ssl=client_ssl, timeouts=long_timeouts)

        async def call_on_new_connection(number: int) -> None:
            started_at = time.monotonic()
            async with connect() as new:
                await new.relay.create([REPORT], f"new-{number}")
            seconds.append(time.monotonic() - started_at)

        client = await stack.enter_async_context(connect())
        await client.relay.create([REPORT], "before")
        before, peak = resources_of(gateway), [0, 0]
        for first in range(0, clients, CLIENTS_PER_PROCESS):
            place = urlsplit(url)
            count = min(CLIENTS_PER_PROCESS, clients - first)
            attacking = await stack.enter_async_context(
                running_program(
                    sys.executable, "-c", ATTACK, place.hostname, place.port, first, count, int(secure)
                )
            )
            attacking.stdin.write(f"{attacker_key}\n".encode())
            assert await attacking.stdout.readline() == b"ready\n"
        while resources_of(gateway)[0] < connections:
            await asyncio.sleep(0.05)
        for first in range(0, calls, 20):
            numbers = range(first, min(first + 20, calls))
            for number in numbers:
                await client.relay.create([REPORT], f"old-{number}")
            await asyncio.gather(*(call_on_new_connection(number) for number in numbers))
            peak = [max(pair) for pair in zip(peak, resources_of(gateway), strict=True)]
        assert gateway.returncode is None
    sys.stdout.write(
        f"{clients} clients, {connections} connections: before {before}, at most {peak} (descriptors, MiB); "
        f"a new caller took {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s\n"
    )
    assert len(plaid.ledger) == 1 + 2 * calls
    # Ten for a connection that waits and those that are being closed, and up to a hundred to Plaid.
    assert peak[0] <= before[0] + connections + 10 + 100
    # With TLS, asyncio has a buffer of 256 KiB for each connection.
    assert peak[1] <= before[1] + 32 + connections // (2 if secure else 4)
