"""Requests sent to the simulator directly, without the package's client."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaid_relay_async.simulator import Simulator


def post(plaid: Simulator, path: str, body: dict[str, Any], client_id: str = "owner") -> str:
    """Send a request, and return the body of the response."""
    headers = {
        "PLAID-CLIENT-ID": client_id,
        "PLAID-SECRET": "secret",
        "Plaid-Version": "2020-09-14",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(plaid.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        text: str = response.read().decode()
        return text
