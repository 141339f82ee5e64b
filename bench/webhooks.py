"""Measure what it costs to receive webhooks: `nox -s bench -- webhooks`.

Prints two tables in Markdown. The first has the requests per second of an aiohttp server with a handler that
only reads the body and responds, with one that verifies the webhook, and with a `WebhookReceiver` that also
stores it in SQLite. Each runs in its own process, and they take turns; all requests are different webhooks,
over keep-alive connections. The second table has the time to verify a webhook, compared with PyJWT's
verification of the token and a SHA-256 of the body. A figure is the median of the rounds, followed by the
minimum and the maximum; ratios compare results of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jwt
from cryptography.fernet import Fernet
from harness import (
    ENVIRONMENT,
    client_core,
    describe_cores,
    format_median,
    on_core,
    print_table,
    server_core,
)
from jwt.algorithms import ECAlgorithm

from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator, sign_webhook
from plaid_relay_async.simulator.webhooks import KEY_ID
from plaid_relay_async.webhooks import VerificationKey, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plaid_relay_async.models import JWKPublicKey

BARE, VERIFYING, RECEIVER = "bare aiohttp.web", "verify", "receiver with SQLite"
CONNECTIONS = 20
SERVER = """
import asyncio, sys
from aiohttp import web
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.simulator import Simulator
from plaid_relay_async.webhooks import WebhookReceiver
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler

async def main(kind, database):
    async with Simulator() as plaid, RelayClient(Credentials("a", "b"), base_url=plaid.url) as client:
        async with SQLInbox(database) as inbox:
            async def bare(request):
                await request.read()
                return web.Response()

            async def verify(request):
                await client.webhooks.verify(await request.read(), request.headers)
                return web.Response()

            receiver = WebhookReceiver(client.webhooks, inbox)
            handlers = {"bare aiohttp.web": bare, "verify": verify}
            app = web.Application()
            app.router.add_route("*", "/", handlers.get(kind) or aiohttp_handler(receiver))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            print(runner.addresses[0][1], flush=True)
            await asyncio.to_thread(sys.stdin.read)
            await runner.cleanup()

asyncio.run(main(*sys.argv[1:]))
"""


def body_of(number: int) -> bytes:
    return json.dumps(
        {
            "webhook_type": "ASSETS",
            "webhook_code": "PRODUCT_READY",
            "asset_report_id": f"47dfc92b-bba3-4583-809e-{number:012x}",
            "report_type": "FULL",
            "environment": "sandbox",
        },
        indent=2,
    ).encode()


def request_of(number: int) -> bytes:
    body = body_of(number)
    lines = ["POST / HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in sign_webhook(body).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def send(port: int, requests: Sequence[bytes]) -> None:
    """Send requests over one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
    writer.close()


async def requests_per_second(kind: str, requests: Sequence[bytes], database: Path) -> float:
    """Run a server in another process, and send it all requests."""
    pipe, settings = (
        asyncio.subprocess.PIPE,
        ENVIRONMENT | {"PLAID_RELAY_KEY": Fernet.generate_key().decode()},
    )
    with on_core(server_core()):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, kind, str(database), stdin=pipe, stdout=pipe, env=settings
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        await send(port, requests[:1])  # it looks up the key
        start = time.perf_counter()
        await asyncio.gather(*(send(port, requests[1 + n :: CONNECTIONS]) for n in range(CONNECTIONS)))
        return (len(requests) - 1) / (time.perf_counter() - start)
    finally:
        process.stdin.close()
        await process.wait()


def compare_servers(rounds: int, count: int, folder: Path) -> None:
    kinds = (BARE, VERIFYING, RECEIVER)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        requests = [request_of(each) for each in range(count)]
        for kind in kinds[number % 3 :] + kinds[: number % 3]:
            database = folder / f"{number}-{kinds.index(kind)}.db"
            with on_core(client_core()):
                rates[kind].append(asyncio.run(requests_per_second(kind, requests, database)))
    rows = []
    for kind in kinds:
        ratios = [rate / bare for rate, bare in zip(rates[kind], rates[BARE], strict=True)]
        rows.append([kind, format_median(rates[kind], 0), "" if kind == BARE else format_median(ratios)])
    print(f"## Receiving webhooks\n\n{CONNECTIONS} connections. {describe_cores()}\n")
    print_table(["server", "requests/s", f"vs. {BARE}"], rows)


# ------------------------------------------------------------------------------------- verification


async def look_up_key() -> JWKPublicKey:
    async with Simulator() as plaid, RelayClient(Credentials("a", "b"), base_url=plaid.url) as client:
        return (await client.webhook_verification_key.get(KEY_ID)).key


def microseconds(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count * 1e6


def compare_verification(rounds: int, count: int) -> None:
    body = body_of(1)
    headers = sign_webhook(body)
    key = asyncio.run(look_up_key())
    token, keys = headers["Plaid-Verification"], [VerificationKey.from_jwk(key)]
    public_key = ECAlgorithm.from_jwk({"kty": key.kty, "crv": key.crv, "x": key.x, "y": key.y})

    def with_pyjwt() -> object:
        claims = jwt.decode(token, public_key, algorithms=["ES256"])  # type: ignore[arg-type]  # it is public
        return claims["request_body_sha256"] == hashlib.sha256(body).hexdigest()

    def with_this_package() -> object:
        return verify(body, headers, keys=keys)

    assert with_pyjwt()
    times: dict[str, list[float]] = {"PyJWT and SHA-256": [], "verify": []}
    with on_core(client_core()):
        for _ in range(rounds):
            times["PyJWT and SHA-256"].append(microseconds(with_pyjwt, count))
            times["verify"].append(microseconds(with_this_package, count))
    rows = []
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times["PyJWT and SHA-256"], strict=True)]
        rows.append([name, format_median(values, 0), format_median(ratios) if name == "verify" else ""])
    print("## Verifying webhooks\n")
    print_table(["with", "time, µs", "vs. PyJWT and SHA-256"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    options = parser.parse_args()
    rounds, requests, verifications = (1, 200, 100) if options.quick else (options.rounds, 5_000, 2_000)
    with tempfile.TemporaryDirectory() as folder:
        compare_servers(rounds, requests, Path(folder))
    compare_verification(rounds if options.quick else 5 * rounds, verifications)


if __name__ == "__main__":
    main()
