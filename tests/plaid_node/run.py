"""Start a simulator, and let Plaid's client for Node loose on it: `python run.py FOLDER-WITH-node_modules`.

It ends with Node's own count of what passed, and fails if a test did, or if an operation was never asked for.
"""

import asyncio
import os
import sys
from pathlib import Path

from plaid_relay_async.simulator import Simulator
from plaid_relay_async.simulator.operations import OPERATIONS

CLIENTS = {"owner": "owner-secret", "partner": "partner-secret"}
SCRIPT = Path(__file__).with_name("operations.test.cjs")


async def run(installed: Path) -> int:
    async with Simulator(clients=CLIENTS, generating=0.05) as plaid:
        # axios would send what is for this machine through a proxy.
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        more = {"PLAID_BASE_URL": plaid.url, "NODE_PATH": str(installed / "node_modules")}
        node = await asyncio.create_subprocess_exec("node", "--test", str(SCRIPT), env=kept | more)
        status = await node.wait()
    missed = OPERATIONS.keys() - plaid.counts.keys()
    told = " ".join([f"operations asked for: {len(plaid.counts)} of {len(OPERATIONS)}", *sorted(missed)])
    sys.stdout.write(f"{told}\n")
    return status or len(missed)


if __name__ == "__main__":
    sys.exit(asyncio.run(run(Path(sys.argv[1]))))
