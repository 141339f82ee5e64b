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

pytestmark = pytest.mark.full_size

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-m", "plaid_relay_async.cli"]
# A process may have no more open files than 1,024.
EACH = 500

# Each client connects again once it was cut off. It can't see that while it doesn't read, so it writes.
ATTACK = """
import asyncio, contextlib, logging, random, socket, ssl, struct, sys

host, port, first, count, secure = sys.argv[1], *map(int, sys.argv[2:6])
key = sys.stdin.readline().strip()
PAGE = f"GET /console/operations.js HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".encode()
body = b'{"relay_token": "nothing"}'
CALL = (
    f"POST /credit/relay/get HTTP/1.1\\r\\nHost: {host}\\r\\nAuthorization: Bearer {key}\\r\\n"
    f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
).encode() + body
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

async def cut_off(writer, said):
    while not writer.is_closing():
        await asyncio.sleep(1)
        if said:
            writer.write(said)

async def deaf(reader, writer):
    writer.write(PAGE * 500)
    await cut_off(writer, PAGE)

async def drip(reader, writer):
    writer.write(PAGE * 500)
    while await reader.read(10):
        await asyncio.sleep(0.2)

async def mute(reader, writer):
    await cut_off(writer, b"")

async def half(reader, writer):
    writer.write(PAGE[:20])
    await cut_off(writer, b"x")

async def reset(reader, writer):
    writer.write(PAGE * 20)
    await reader.read(1)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

async def closed(reader, writer):
    writer.write(PAGE * 500)
    if writer.can_write_eof():
        writer.write_eof()
    await cut_off(writer, b"")

async def known(reader, writer):
    writer.write(CALL * 100)
    await reader.read(1)
    writer.transport.abort()

KINDS = [deaf, drip, mute, half, reset, closed, deaf, drip, known]

async def client(number):
    kind, chance = KINDS[number % len(KINDS)], random.Random(number)
    tls = context if secure and kind is not mute else None
    while True:
        writer = None
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            opened = socket.socket()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            opened.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(opened, (host, port))
                name = host if tls else None
                reader, writer = await asyncio.open_connection(
                    sock=opened, limit=1, ssl=tls, server_hostname=name
                )
                await asyncio.wait_for(kind(reader, writer), 60)
            finally:
                opened.close() if writer is None else writer.transport.abort()
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
async def running_program(*words: object) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *map(str, words), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
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
    honest, known = await asyncio.to_thread(file.add, "honest"), await asyncio.to_thread(file.add, "known")
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "secret")
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    words = ["--keys", file.path, "--audit", tmp_path / "audit.jsonl", "--connections", connections]
    if secure:
        words += ["--tls-certificate", tmp_path / "certificate.pem", "--tls-key", tmp_path / "key.pem"]
    trusting = context if secure else None
    async with contextlib.AsyncExitStack() as stack:
        plaid = await stack.enter_async_context(Simulator(reports=[REPORT]))
        gateway = await stack.enter_async_context(
            running_program(*COMMAND, "gateway", "--upstream", plaid.url, *words)
        )
        url = (await gateway.stdout.readline()).decode().split()[-1]

        seconds, patient = [], Timeouts(connect=300.0, read=300.0)  # the machine may have other work

        def connect() -> RelayClient:
            return RelayClient(base_url=url, gateway_key=honest, ssl=trusting, timeouts=patient)

        async def call_on_new_connection(number: int) -> None:
            began = time.monotonic()
            async with connect() as new:
                await new.relay.create([REPORT], f"new-{number}")
            seconds.append(time.monotonic() - began)

        client = await stack.enter_async_context(connect())
        await client.relay.create([REPORT], "before")
        before, most = resources_of(gateway), [0, 0]
        for first in range(0, clients, EACH):
            place = urlsplit(url)
            count = min(EACH, clients - first)
            attacking = await stack.enter_async_context(
                running_program(
                    sys.executable, "-c", ATTACK, place.hostname, place.port, first, count, int(secure)
                )
            )
            attacking.stdin.write(f"{known}\n".encode())
            assert await attacking.stdout.readline() == b"ready\n"
        while resources_of(gateway)[0] < connections:
            await asyncio.sleep(0.05)
        for first in range(0, calls, 20):
            numbers = range(first, min(first + 20, calls))
            for number in numbers:
                await client.relay.create([REPORT], f"old-{number}")
            await asyncio.gather(*(call_on_new_connection(number) for number in numbers))
            most = [max(pair) for pair in zip(most, resources_of(gateway), strict=True)]
        assert gateway.returncode is None
    sys.stdout.write(
        f"{clients} clients, {connections} connections: before {before}, at most {most} (descriptors, MiB); "
        f"a new caller took {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s\n"
    )
    assert len(plaid.ledger) == 1 + 2 * calls
    # One that waits for room, those that are just being closed, and up to a hundred to Plaid.
    assert most[0] <= before[0] + connections + 10 + 100
    # With TLS, asyncio has a buffer of 256 KiB for each connection.
    assert most[1] <= before[1] + 32 + connections // (2 if secure else 4)
