"""The files of the console and the headers they are served with.

A strict Content-Security-Policy lets the page run and call nothing that another server provides.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Final

from attrs import define, field, frozen

from plaid_relay_async.gateway.error_responses import NO_STORE
from plaid_relay_async.gateway.forms import console_data
from plaid_relay_async.redaction import Hidden

_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Server": "plaid-relay",
}
HANDOVER_PATH: Final = "/console/handover.json"
_CODE_SECONDS: Final = 300.0
_CONTENT_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


@frozen
class Page:
    """A file of the console, or JSON for it, with its response headers."""

    body: bytes
    headers: Mapping[str, str]


def load_pages() -> dict[str, Page]:
    """Return the console's pages by their paths: its files in the package, and its data."""
    resources = {file.name: file for file in (files("plaid_relay_async.gateway") / "console").iterdir()}
    types = {
        name: _CONTENT_TYPES[suffix]
        for name in resources
        if (suffix := name.rpartition(".")[2]) in _CONTENT_TYPES
    }
    pages = {
        "/" if name == "index.html" else f"/console/{name}": Page(
            resources[name].read_bytes(), {**_PAGE_HEADERS, "Content-Type": f"{content_type}; charset=utf-8"}
        )
        for name, content_type in types.items()
    }
    return {**pages, "/console/operations.json": json_page(console_data())}


def json_page(content: object) -> Page:
    """Return a page with JSON."""
    return Page(json.dumps(content).encode(), {**_PAGE_HEADERS, "Content-Type": "application/json"})


@define(eq=False, repr=False)
class OneTimeCodes:
    """Keys and tokens that the console fetches with a one-time code, so that no URL contains them.

    A browser writes each URL into its history on disk, even if the page then removes a part of it. A code
    that was used or has expired is worthless to a reader of that history.
    """

    now: Callable[[], float] = time.monotonic
    _pending: dict[bytes, tuple[float, Hidden[bytes]]] = field(factory=dict)

    def issue(self, values: Mapping[str, str]) -> str:
        """Return a code that can be exchanged for the values once, within 300 seconds."""
        code = secrets.token_urlsafe(32)
        self._pending[json.dumps(code).encode()] = (
            self.now() + _CODE_SECONDS,
            Hidden(json.dumps(values).encode()),
        )
        return code

    def exchange(self, body: Hidden[bytes]) -> Page | None:
        """Return the values for a code, a JSON string, and invalidate it; None if no such code is valid."""
        presented = body.reveal()
        # The loop covers all codes, in order to remove those that have expired.
        for code, (expires, values) in list(self._pending.items()):
            if self.now() >= expires:
                del self._pending[code]
            # A comparison in constant time reveals nothing about a code through its duration.
            elif secrets.compare_digest(code, presented):
                del self._pending[code]
                return Page(
                    values.reveal(), {**_PAGE_HEADERS, "Content-Type": "application/json", **NO_STORE}
                )
        return None
