"""The gateway's page on a Plaid of one's own: nothing to set up, nothing left behind."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from plaid_relay_async.cli.serving import serve
from plaid_relay_async.config import Credentials
from plaid_relay_async.gateway import KNOWN, RELAY, Gateway, new_key
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from plaid_relay_async.cli.signals import Signals
    from plaid_relay_async.cli.status import Exit

_OWNER = "console-owner"
_PARTNER = "console-partner"
_FOR_PARTNERS = [path for path in RELAY if path.rpartition("/")[2] in {"get", "refresh"}]
# Enough for a person, and for a machine that allows a process 256 files.
_CONNECTIONS = 100
_DRAIN = 2.0  # seconds


async def show(port: int, signals: Signals) -> Exit:
    """Start a simulator and a gateway to it, and print what it takes to try the page and any client.

    Raises:
        UsageError: the port can't be had.
    """
    clients = {name: secrets.token_hex(15) for name in (_OWNER, _PARTNER)}
    owner, owners_key = new_key("owner", credentials="owner", operations=KNOWN)
    partner, partners_key = new_key("partner", credentials="partner", operations=_FOR_PARTNERS)
    async with Simulator(clients=clients) as plaid:
        report_token = plaid.add_report()
        gateway = Gateway(
            [owner, partner],
            upstream=plaid.url,
            credentials={
                "owner": Credentials(_OWNER, clients[_OWNER]),
                "partner": Credentials(_PARTNER, clients[_PARTNER]),
            },
            operations=KNOWN,
            port=port,
            connections=_CONNECTIONS,
            drain=_DRAIN,
        )

        def greeting() -> str:
            return (
                f"console: {gateway.console_link(key=owners_key, report_token=report_token)}\n"
                f"owner's key: {owners_key}\n"
                f"partner's key: {partners_key}\n"
                f"secondary_client_id: {_PARTNER}\n"
                f"report token: {report_token}\n"
            )

        return await serve(gateway, signals, greeting)
