"""Run the tests of Plaid's client for Node against a simulator: `python run.py FOLDER-WITH-node_modules`.

The tests run twice: directly, and through a gateway with its keys instead of Plaid's secrets. The exit status is not
zero if a test fails, or if an operation is never called.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from plaid_relay_async import Credentials
from plaid_relay_async.gateway import ALL_OPERATIONS, Gateway, new_key
from plaid_relay_async.simulator import Simulator
from plaid_relay_async.simulator.operations import OPERATIONS

CLIENTS = {"owner": "owner-secret", "partner": "partner-secret"}
SCRIPT = Path(__file__).with_name("operations.test.cjs")


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


async def run(folder: Path) -> int:
    # axios would send requests to this machine through a proxy too.
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    failed = 0
    for route in (directly, through_a_gateway):
        async with Simulator(clients=CLIENTS, generation_delay=0.05) as plaid:
            async with route(plaid) as settings:
                environment = inherited | settings | {"NODE_PATH": str(folder / "node_modules")}
                node = await asyncio.create_subprocess_exec("node", "--test", str(SCRIPT), env=environment)
                status = await node.wait()
            not_called = OPERATIONS.keys() - plaid.counts.keys()
        summary = f"{route.__name__}: operations called: {len(plaid.counts)} of {len(OPERATIONS)}"
        sys.stdout.write(f"{' '.join([summary, *sorted(not_called)])}\n")
        failed += bool(status) + len(not_called)
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(run(Path(sys.argv[1]))))
