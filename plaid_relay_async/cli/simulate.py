"""The command `simulate`: runs the simulator as a server until a signal."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plaid_relay_async.cli.signals import Signals


def parse_clients(pairs: Sequence[str]) -> dict[str, str] | None:
    """Return the secret of each client ID, or `None`, which accepts any credentials, if there are no pairs.

    Raises:
        UsageError: a pair doesn't have the form ID:SECRET.
    """
    clients: dict[str, str] = {}
    for pair in pairs:
        client_id, _, secret = pair.partition(":")
        if not client_id or not secret:
            raise UsageError("--client: must be of the form ID:SECRET")
        clients[client_id] = secret
    return clients or None


async def serve_simulator(
    port: int, clients: dict[str, str] | None, reports: Sequence[str], signals: Signals
) -> ExitStatus:
    """Listen on 127.0.0.1, print the address and a report token, and stop at the first signal.

    Raises:
        UsageError: the port isn't available.
    """
    plaid = Simulator(port=port, clients=clients, reports=reports)
    try:
        await plaid.start()
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}") from None
    report_token = reports[0] if reports else plaid.add_report()
    sys.stdout.write(f"listening on {plaid.url}\nreport token: {escape_unprintable(report_token)}\n")
    sys.stdout.flush()
    stopped = asyncio.Event()
    try:
        with signals.handled_by(stopped.set):
            await stopped.wait()
    finally:
        await plaid.close()
    return ExitStatus.DONE
