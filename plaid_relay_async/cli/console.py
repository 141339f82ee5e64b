"""The command `console`: the gateway's page on a local simulator, without any setup and without files."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from plaid_relay_async.cli.serving import serve_gateway
from plaid_relay_async.config import Credentials
from plaid_relay_async.gateway import ALL_OPERATIONS, RELAY_OPERATIONS, Gateway, new_key
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from plaid_relay_async.cli.messages import ExitStatus
    from plaid_relay_async.cli.signals import Signals

_LENDER_ID = "console-lender"
_PARTNER_ID = "console-partner"
_PARTNER_OPERATIONS = [path for path in RELAY_OPERATIONS if path.rpartition("/")[2] in {"get", "refresh"}]
# Enough for one user, and within the limit of a machine that allows a process 256 open files.
_MAX_CONNECTIONS = 100
_DRAIN_SECONDS = 2.0


async def run_console(port: int, signals: Signals) -> ExitStatus:
    """Run a simulator and a gateway to it until a signal, and print the keys and identifiers to try them.

    Raises:
        UsageError: the port isn't available.
    """
    clients = {name: secrets.token_hex(15) for name in (_LENDER_ID, _PARTNER_ID)}
    lender, lenders_key = new_key("lender", credentials="lender", operations=ALL_OPERATIONS)
    partner, partners_key = new_key("partner", credentials="partner", operations=_PARTNER_OPERATIONS)
    async with Simulator(clients=clients) as plaid:
        report_token = plaid.add_report()
        gateway = Gateway(
            [lender, partner],
            upstream=plaid.url,
            credentials={
                "lender": Credentials(_LENDER_ID, clients[_LENDER_ID]),
                "partner": Credentials(_PARTNER_ID, clients[_PARTNER_ID]),
            },
            operations=ALL_OPERATIONS,
            port=port,
            connections=_MAX_CONNECTIONS,
            drain=_DRAIN_SECONDS,
        )

        def greeting() -> str:
            return (
                f"console: {gateway.console_link(key=lenders_key, report_token=report_token)}\n"
                f"lender's key: {lenders_key}\n"
                f"partner's key: {partners_key}\n"
                f"secondary_client_id: {_PARTNER_ID}\n"
                f"report token: {report_token}\n"
            )

        return await serve_gateway(gateway, signals, greeting)
