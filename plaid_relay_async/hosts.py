"""Host names and IP addresses: their normal spelling, and how URLs and Host headers contain them."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

from yarl import URL

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# A name or an address, and an optional port. Anything more could be read in two ways.
_HEADER: Final = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)


def normalize_host(host: str) -> str:
    """Return the normal spelling of a host; compare hosts only in this form.

    A name becomes lower-case ASCII (IDNA) without the final dot. An IP address gets its usual form: `127.1`,
    `0x7f.1` and `::ffff:127.0.0.1` become `127.0.0.1`, as the system's resolver reads them.

    Args:
        host: a name or an IP address, without brackets and port.

    Raises:
        ValueError: it is neither.
    """
    # aiohttp uses yarl, too, so the name is encoded here as it is when aiohttp connects.
    name = (URL.build(scheme="http", host=host).raw_host or "").removesuffix(".")
    if ":" in name:
        address = ipaddress.IPv6Address(name)
        return str(address.ipv4_mapped or address)
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        pass  # it isn't an IPv4 address, so it has to be a name
    if not _NAME.fullmatch(name):
        raise ValueError("not a host")
    return name


def is_host(text: str) -> bool:
    """Return whether a text is a host name or an IP address, without brackets and port."""
    try:
        return bool(normalize_host(text))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address, `localhost`, or a name that ends with `.localhost`."""
    try:
        name = normalize_host(host)
        return is_within(name, "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_within(host: str, domain: str) -> bool:
    """Return whether a host is a domain, or a name in it; both in their normal spelling."""
    return f".{host}".endswith(f".{domain}")


def host_of_header(value: str) -> str | None:
    """Return the normal spelling of the host in a Host header, or `None` if the header is invalid."""
    match = _HEADER.fullmatch(value)
    try:
        return normalize_host(match[1].strip("[]")) if match else None
    except ValueError:
        return None


def bracketed(host: str) -> str:
    """Return a host as a URL contains it: an IPv6 address needs brackets."""
    return f"[{host}]" if ":" in host else host
