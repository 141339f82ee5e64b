"""The console's files, as they are served: nothing from elsewhere runs in the page, or is called by it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Final

from attrs import define, field, frozen

from plaid_relay_async.errors import Hidden
from plaid_relay_async.gateway.error_responses import NO_STORE

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
    """A file of the console."""

    body: bytes
    headers: Mapping[str, str]


def load_pages() -> dict[str, Page]:
    """Give the console's files by their paths."""
    there = {file.name: file for file in (files("plaid_relay_async.gateway") / "console").iterdir()}
    kinds = {
        name: _CONTENT_TYPES[end] for name in there if (end := name.rpartition(".")[2]) in _CONTENT_TYPES
    }
    return {
        "/" if name == "index.html" else f"/console/{name}": Page(
            there[name].read_bytes(), {**_PAGE_HEADERS, "Content-Type": f"{kind}; charset=utf-8"}
        )
        for name, kind in kinds.items()
    }


def settings_page(body: bytes) -> Page:
    """Give what the page asks for about this gateway."""
    return Page(body, {**_PAGE_HEADERS, "Content-Type": "application/json"})


@define(eq=False, repr=False)
class OneTimeCodes:
    """Keys and tokens that the page fetches with a one-time code, so that its address contains none of them.

    A browser writes each address into its history on disk, where it stays if the page takes a part of it out.
    A code that was used, or has expired, is of no use to a reader of that history.
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
        """Return the values for a code, a JSON string, and use it up; None if no such code is valid."""
        presented = body.reveal()
        for code, (expires, values) in list(self._pending.items()):
            if self.now() >= expires:
                del self._pending[code]
            elif secrets.compare_digest(code, presented):
                del self._pending[code]
                return Page(
                    values.reveal(), {**_PAGE_HEADERS, "Content-Type": "application/json", **NO_STORE}
                )
        return None
