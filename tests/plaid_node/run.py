"""Run the tests of Plaid's client for Node against a simulator: `python run.py FOLDER-WITH-node_modules`.

The tests run twice: directly, and through a gateway with its keys instead of Plaid's secrets. Then webhooks are
exchanged with jose, a library for JSON Web Tokens. The exit status is not zero if a test fails, or if an operation is
never called.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from plaid_relay_async import Credentials, from_json
from plaid_relay_async.gateway import ALL_OPERATIONS, Gateway, new_key
from plaid_relay_async.models import JWKPublicKey
from plaid_relay_async.simulator import Simulator, sign_webhook
from plaid_relay_async.simulator.operations import OPERATIONS
from plaid_relay_async.webhooks import StaleWebhookError, VerificationKey, WebhookRefusedError, verify

CLIENTS = {"owner": "owner-secret", "partner": "partner-secret"}
SCRIPT = Path(__file__).with_name("operations.test.cjs")
WEBHOOKS_SCRIPT = Path(__file__).with_name("webhooks.test.cjs")


@contextlib.asynccontextmanager
async def directly(plaid: Simulator) -> AsyncIterator[dict[str, str]]:
    """Yield the script's environment variables for the simulator."""
    secrets = {f"{name.upper()}_SECRET": secret for name, secret in CLIENTS.items()}
    yield {"PLAID_BASE_URL": plaid.url, "WRONG_SECRET": "INVALID_API_KEYS"} | secrets


@contextlib.asynccontextmanager
async def through_a_gateway(plaid: Simulator) -> AsyncIterator[dict[str, str]]:
    """Run a gateway to the simulator, and yield the script's environment variables for it."""
    keys = {name: new_key(name, credentials=name, operations=ALL_OPERATIONS) for name in CLIENTS}
    async with Gateway(
        [key for key, _ in keys.values()],
        upstream=plaid.url,
        credentials={name: Credentials(name, secret) for name, secret in CLIENTS.items()},
        operations=ALL_OPERATIONS,
    ) as gateway:
        secrets = {f"{name.upper()}_SECRET": key for name, (_, key) in keys.items()}
        yield {"PLAID_BASE_URL": gateway.url, "WRONG_SECRET": "UNAUTHORIZED_KEY"} | secrets


@contextlib.asynccontextmanager
async def judge() -> AsyncIterator[str]:
    """Run a server that judges webhooks with the key that it receives, and yield its address."""
    keys: list[VerificationKey] = []

    async def receive_key(request: web.Request) -> web.Response:
        keys[:] = [VerificationKey.from_jwk(from_json(await request.read(), JWKPublicKey))]
        return web.Response()

    async def receive_webhook(request: web.Request) -> web.Response:
        try:
            verify(await request.read(), request.headers, keys=keys)
        except WebhookRefusedError as error:
            return web.Response(text=error.reason)
        except StaleWebhookError:
            return web.Response(text="stale")
        return web.Response(text="accepted")

    async def sign(request: web.Request) -> web.Response:
        return web.Response(text=sign_webhook(await request.read())["Plaid-Verification"])

    app = web.Application()
    for path, handler in (("/key", receive_key), ("/webhook", receive_webhook), ("/signed", sign)):
        app.router.add_post(path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def run_script(script: Path, folder: Path, variables: dict[str, str]) -> int:
    """Run a script with Node, and return its exit status."""
    # axios would send requests to this machine through a proxy too.
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = inherited | variables | {"NODE_PATH": str(folder / "node_modules")}
    node = await asyncio.create_subprocess_exec("node", "--test", str(script), env=environment)
    return await node.wait()


async def run_operations(folder: Path) -> int:
    failed = 0
    for route in (directly, through_a_gateway):
        async with Simulator(clients=CLIENTS, generation_delay=0.05) as plaid:
            async with route(plaid) as settings:
                status = await run_script(SCRIPT, folder, settings)
            not_called = OPERATIONS.keys() - plaid.counts.keys()
        summary = f"{route.__name__}: operations called: {len(plaid.counts)} of {len(OPERATIONS)}"
        sys.stdout.write(f"{' '.join([summary, *sorted(not_called)])}\n")
        failed += bool(status) + len(not_called)
    return failed


async def run_webhooks(folder: Path) -> int:
    async with Simulator(clients=CLIENTS) as plaid, directly(plaid) as settings, judge() as url:
        return await run_script(WEBHOOKS_SCRIPT, folder, settings | {"JUDGE_URL": url})


async def run(folder: Path) -> int:
    return await run_operations(folder) + await run_webhooks(folder)


if __name__ == "__main__":
    sys.exit(asyncio.run(run(Path(sys.argv[1]))))
