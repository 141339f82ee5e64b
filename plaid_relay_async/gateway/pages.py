"""The console's files, as they are served: nothing from elsewhere runs in the page, or is called by it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from attrs import frozen

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Server": "plaid-relay",
}
_KINDS: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@frozen
class Page:
    """A file of the console."""

    body: bytes
    headers: Mapping[str, str]


def load() -> dict[str, Page]:
    """Give the console's files by their paths."""
    there = {file.name: file for file in (files("plaid_relay_async.gateway") / "console").iterdir()}
    kinds = {name: _KINDS[end] for name in there if (end := name.rpartition(".")[2]) in _KINDS}
    return {
        "/" if name == "index.html" else f"/console/{name}": Page(
            there[name].read_bytes(), {**_HEADERS, "Content-Type": f"{kind}; charset=utf-8"}
        )
        for name, kind in kinds.items()
    }


def settings(body: bytes) -> Page:
    """Give what the page asks for about this gateway."""
    return Page(body, {**_HEADERS, "Content-Type": "application/json"})
