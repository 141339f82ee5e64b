"""Start a simulator, and let Plaid's client for Node loose on it: `python run.py FOLDER-WITH-node_modules`.

It does so twice: directly, and through a gateway with its keys in the place of Plaid's secrets. It ends with Node's
own counts of what passed, and fails if a test did, or if an operation was never asked for.
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
    """What the script is told of the simulator."""
    secrets = {f"{who.upper()}_SECRET": secret for who, secret in CLIENTS.items()}
    yield {"PLAID_BASE_URL": plaid.url, "WRONG_SECRET": "INVALID_API_KEYS"} | secrets


@contextlib.asynccontextmanager
async def through_a_gateway(plaid: Simulator) -> AsyncIterator[dict[str, str]]:
    """What it is told of a gateway before the simulator."""
    made = {who: new_key(who, credentials=who, operations=ALL_OPERATIONS) for who in CLIENTS}
    async with Gateway(
        [key for key, _ in made.values()],
        upstream=plaid.url,
        credentials={who: Credentials(who, secret) for who, secret in CLIENTS.items()},
        operations=ALL_OPERATIONS,
    ) as gateway:
        secrets = {f"{who.upper()}_SECRET": key for who, (_, key) in made.items()}
        yield {"PLAID_BASE_URL": gateway.url, "WRONG_SECRET": "UNAUTHORIZED_KEY"} | secrets


async def run(installed: Path) -> int:
    # axios would send what is for this machine through a proxy.
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    failed = 0
    for way in (directly, through_a_gateway):
        async with Simulator(clients=CLIENTS, generation_delay=0.05) as plaid:
            async with way(plaid) as told:
                environment = kept | told | {"NODE_PATH": str(installed / "node_modules")}
                node = await asyncio.create_subprocess_exec("node", "--test", str(SCRIPT), env=environment)
                status = await node.wait()
            missed = OPERATIONS.keys() - plaid.counts.keys()
        words = [
            f"{way.__name__}: operations asked for: {len(plaid.counts)} of {len(OPERATIONS)}",
            *sorted(missed),
        ]
        sys.stdout.write(f"{' '.join(words)}\n")
        failed += bool(status) + len(missed)
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(run(Path(sys.argv[1]))))
