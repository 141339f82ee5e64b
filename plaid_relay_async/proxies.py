"""Selects the proxy for an address, from an argument or from the environment, as curl and pip do."""

from __future__ import annotations

import ipaddress
import os
from typing import Final, Self

from attrs import field, frozen
from yarl import URL

from plaid_relay_async.config import parse_url
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.hosts import is_loopback, is_within, normalize_host
from plaid_relay_async.redaction import Hidden

# As in curl, the first variable that is set counts, even if it is empty. HTTP_PROXY isn't read, because calls
# use https or go to loopback, and because a request header `Proxy` would set it in a CGI program.
_PROXY_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_NO_PROXY_VARIABLES: Final = ("no_proxy", "NO_PROXY")


@frozen
class Proxy:
    """An HTTP proxy.

    Attributes:
        address: the URL without user and password, such as `http://proxy.internal:3128`.
        url: the complete URL.
    """

    address: str
    url: Hidden[URL] = field(repr=False)

    @classmethod
    def from_url(cls, url: object, name: str) -> Self:
        """Return the proxy at a URL; the default scheme is http.

        Args:
            url: the URL, which may contain a user and a password.
            name: the name of its source, such as `HTTPS_PROXY`, for error messages.

        Raises:
            ConfigurationError: it isn't the URL of an HTTP proxy. The message doesn't quote the URL.
        """
        complete = f"http://{url}" if isinstance(url, str) and "://" not in url else url
        if isinstance(complete, str) and complete.lower().startswith("socks"):
            raise ConfigurationError(
                f"{name} is a SOCKS proxy, which isn't supported: use an HTTP proxy, or pass a session whose "
                "connector supports SOCKS"
            )
        parsed = parse_url(complete)
        # A slash in a password that isn't percent-encoded ends the host: the rest is parsed as the path.
        if parsed is None or parsed.raw_path_qs not in {"", "/"} or parsed.raw_fragment:
            raise ConfigurationError(
                f"{name} must be a URL such as http://user:password@host:3128, with nothing after the port"
            )
        if not _is_sendable(parsed.user or "", parsed.password or ""):
            raise ConfigurationError(
                f"{name} has a colon in the user, or characters outside Latin-1 in the user or password, "
                "which can't be sent to a proxy"
            )
        with_login = parsed.origin().with_user(parsed.user).with_password(parsed.password)
        return cls(f"{parsed.scheme}://{parsed.host_port_subcomponent}", Hidden(with_login))


def _is_sendable(user: str, password: str) -> bool:
    # aiohttp encodes them as Latin-1, and a colon separates them (RFC 7617).
    try:
        (user + password).encode("latin-1")
    except UnicodeEncodeError:
        return False
    return ":" not in user


def resolve_proxy(base_url: str, proxy: str | None, *, trust_env: bool) -> Proxy | None:
    """Return the proxy for an address, from the argument or the environment; `None` for a loopback address.

    Args:
        base_url: the address that is called.
        proxy: the proxy's URL; an empty string means no proxy, even if the environment names one.
        trust_env: whether the environment is read; NO_PROXY then also applies to the argument.

    Raises:
        ConfigurationError: the URL isn't that of an HTTP proxy.
    """
    # The argument is checked even if it doesn't apply to this address.
    argument = None if proxy is None or proxy == "" else Proxy.from_url(proxy, "proxy")
    url = URL(base_url)
    host = normalize_host(url.raw_host or "")
    if is_loopback(host):
        return None
    if trust_env and _is_exempt(host, url.port or 0):
        return None
    if proxy is not None or not trust_env:
        return argument
    variable = next((name for name in _PROXY_VARIABLES if name in os.environ), None)
    value = "" if variable is None else os.environ[variable].strip()
    return Proxy.from_url(value, variable or "") if value else None


def _is_exempt(host: str, port: int) -> bool:
    """Return whether NO_PROXY lists the host, its domain, its address or network, or `*`."""
    variable = next((name for name in _NO_PROXY_VARIABLES if name in os.environ), None)
    entries = "" if variable is None else os.environ[variable].replace(",", " ").lower().split()
    return any(_entry_matches(entry, host, port) for entry in entries)


def _entry_matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # the host or the entry is a name, or the entry has a port
        name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        return int(number) == port and _entry_matches(name, host, port)
    try:
        domain = normalize_host(entry.removeprefix("*").strip("."))
    except ValueError:  # not a host name, such as an empty entry
        return False
    return is_within(host, domain)
