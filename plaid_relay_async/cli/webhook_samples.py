"""Sends a sample of a webhook for the command `webhooks send`."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

import aiohttp

from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.config import parse_url
from plaid_relay_async.hosts import is_loopback
from plaid_relay_async.simulator.webhooks import (
    WEBHOOK_CODES,
    fired,
    report_retrieved,
    resolve_type,
    sign_webhook,
)

_RESPONSE_SECONDS: Final = 10.0  # as long as Plaid waits
_DEFAULT: Final = "ASSETS/PRODUCT_READY"
_RETRIEVAL: Final = "CREDIT_RELAY/REPORT_RETRIEVED"


def check_receiver(url: str) -> None:
    """Raise `UsageError` unless the URL is one of this machine."""
    address = parse_url(url)
    if address is None:
        raise UsageError("URL: must be a URL such as http://127.0.0.1:8080/relay")
    if not is_loopback(address.host or ""):
        raise UsageError(
            f"URL: is one of {address.host}; it must be one of this machine, such as http://127.0.0.1:8080/relay"
        )


def read_body(sample: str | None, body: str | None) -> bytes:
    """Return the body that the options `--sample` and `--body` describe.

    Raises:
        UsageError: there is no such sample, the body can't be read, or both options were passed.
    """
    if body is None:
        return _sample_body(sample or _DEFAULT)
    if sample is not None:
        raise UsageError("--sample: can't be used with --body")
    if body != "-" and not body.startswith("@"):
        return os.fsencode(body)
    try:
        return sys.stdin.buffer.read() if body == "-" else Path(body[1:]).read_bytes()
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't open"
    raise UsageError(f"--body: can't be read: {reason}")


def _sample_body(name: str) -> bytes:
    """Return a sample with a new ID, so that a receiver doesn't take it for a duplicate."""
    codes = {f"{resolve_type(code, None)}/{code}": code for code in WEBHOOK_CODES}
    webhook_type, _, code = name.partition("/")
    identifier = str(uuid.uuid4())
    payload: Any
    if name == _RETRIEVAL:
        payload = report_retrieved(identifier)
    elif name in codes:
        payload = fired(webhook_type, code, identifier, identifier, None)
    else:
        raise UsageError(f"--sample: must be one of {', '.join(sorted([*codes, _RETRIEVAL]))}")
    return json.dumps(payload, indent=2).encode()


async def send_webhook(url: str, body: bytes, age: float) -> ExitStatus:
    """Send a webhook as Plaid does, print the status of the response, and return whether it is 200.

    Args:
        url: the URL of the receiver.
        body: the body.
        age: how many seconds ago it is signed.

    Raises:
        ModuleNotFoundError: the extra for signatures isn't installed.
    """
    headers = sign_webhook(body, at=time.time() - age)
    timeout = aiohttp.ClientTimeout(total=_RESPONSE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # A redirect could lead away from this machine.
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, OSError) as error:  # such as a TimeoutError
        problem = getattr(error, "strerror", None) or type(error).__name__
    else:
        sys.stdout.write(f"status: {status}\n")
        return ExitStatus.DONE if status == 200 else ExitStatus.FAILED
    print_message(f"plaid-relay: the webhook wasn't received: {problem}")
    return ExitStatus.FAILED
