"""Who calls, where, how long and how often: from arguments, or from the process environment."""

from __future__ import annotations

import enum
import ipaddress
import os
import re
import socket
import ssl as tls
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from attrs import Attribute, evolve, field, frozen
from yarl import URL

from plaid_relay_async.errors import ConfigurationError, strip_init_traceback

__version__ = "0.1.0"

PLAID_VERSION = "2020-09-14"
USER_AGENT = f"plaid_relay_async/{__version__}"


class Environment(enum.StrEnum):
    """Plaid's environments; a secret and a token belong to one of them.

    See https://plaid.com/docs/api/#api-host.
    """

    SANDBOX = "sandbox"
    PRODUCTION = "production"

    @property
    def base_url(self) -> str:
        """The address of Plaid's API."""
        return f"https://{self.value}.plaid.com"

    @classmethod
    def from_url(cls, base_url: str) -> Environment | None:
        """Return the environment whose host a URL names in any spelling, or `None`."""
        host = normalize_host(URL(base_url).raw_host or "")
        return next((each for each in cls if URL(each.base_url).raw_host == host), None)


def _validate_header_value(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        problem = "must be a string that isn't empty"
    elif not (value.isascii() and value.isprintable()) or " " in value:
        problem = "holds white space or characters that no header can carry"
    else:
        return
    raise ConfigurationError(f"{attribute.name} {problem}", field=attribute.name, problem=problem)


@strip_init_traceback
@frozen
class Credentials:
    """A client id and its secret, of one environment; the secret shows in no repr.

    Raises:
        ConfigurationError: one of them is empty or can't be sent as a header.
    """

    client_id: str = field(validator=_validate_header_value)
    secret: str = field(validator=_validate_header_value, repr=False)


@strip_init_traceback
@frozen
class GatewayKey:
    """What a gateway knows its caller by; it shows in no repr."""

    gateway_key: str = field(validator=_validate_header_value, repr=False)


CredentialsSource: TypeAlias = Credentials | Callable[[], Awaitable[Credentials]]
Identity: TypeAlias = CredentialsSource | GatewayKey


def check_seconds(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless the value is a number of seconds above 0, and not without end."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(str(value)) < float("inf"):
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {value!r}")


def _validate_seconds(_: object, attribute: Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def _validate_optional_seconds(timeouts: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _validate_seconds(timeouts, attribute, value)


@frozen(kw_only=True)
class Timeouts:
    """How long to wait, in seconds. None of them counts time spent queueing for a connection or a limiter.

    Attributes:
        connect: for the name, the connection and TLS together. Nothing was sent by then, so a short wait
            and another attempt cost nothing.
        read: until an answer begins, and between two pieces of it, for operations that have little to do.
        slow_read: the same for creations, refreshes and reports: answers of 85 s have been seen, and
            giving up early on a creation makes an unknown.
        total: for one call with all its attempts and waits; `None` for no limit. In a batch, pauses that
            Plaid asked for aren't counted. A creation that has waited leaves only while half of this time is
            left for the answer, or `slow_read` if that is less.
        drain: for the calls in flight when a batch is left early or a call is cancelled.
        idle: for which a connection is kept that nobody uses. Shorter than the server's own time for that, so
            that a request seldom meets a connection that the server is closing: nobody could tell what became
            of it.
    """

    connect: float = field(default=5.0, validator=_validate_seconds)
    read: float = field(default=30.0, validator=_validate_seconds)
    slow_read: float = field(default=120.0, validator=_validate_seconds)
    total: float | None = field(default=300.0, validator=_validate_optional_seconds)
    drain: float = field(default=10.0, validator=_validate_seconds)
    idle: float = field(default=15.0, validator=_validate_seconds)

    def with_total(self, total: float | None) -> Timeouts:
        """The same, with another total where one is given."""
        return self if total is None else evolve(self, total=total)


def check_count(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless the value is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number from 1, not {value!r}")


def check_type(name: str, value: object, cls: type) -> None:
    """Raise `ConfigurationError` unless the value is of the class."""
    if not isinstance(value, cls):
        raise ConfigurationError(f"{name} must be a {cls.__name__}, not {type(value).__name__}")


def _validate_count(_: object, attribute: Attribute[int], value: object) -> None:
    check_count(attribute.name, value)


def _validate_replay(_: object, __: object, value: object) -> None:
    if value not in {"safe", "always"}:
        raise ConfigurationError(f"replay must be 'safe' or 'always', not {value!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """When and how often a call is repeated.

    Attributes:
        attempts: at most so many HTTP requests for one call. In a batch, those that Plaid refused for now
            (429, planned maintenance) aren't counted.
        backoff: the first wait, in seconds; it doubles with each attempt, and a random part of it is waited.
        max_backoff: the longest such wait, in seconds.
        max_pause: the longest pause that a server may ask for, in seconds, alone or added up without one
            success between. A longer one isn't shortened: the call fails with `RateLimitError`.
        replay: `"safe"` repeats a creation only when it surely wasn't carried out. `"always"` repeats it
            after a lost answer, too, and so may make a second token.
    """

    attempts: int = field(default=4, validator=_validate_count)
    backoff: float = field(default=0.5, validator=_validate_seconds)
    max_backoff: float = field(default=8.0, validator=_validate_seconds)
    max_pause: float = field(default=300.0, validator=_validate_seconds)
    replay: Literal["safe", "always"] = field(default="safe", validator=_validate_replay)


_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def normalize_host(host: str) -> str:
    """Return the normal spelling of a host; compare hosts only in this form.

    A name is returned in lower-case ASCII (IDNA) and without the dot at its end, an IP address in its usual
    form: `127.1`, `0x7f.1` and `::ffff:127.0.0.1` are `127.0.0.1`, as they are to the system's resolver.

    Args:
        host: a name or an address, without brackets and port.

    Raises:
        ValueError: it is neither.
    """
    # yarl maps the name as aiohttp does when it connects.
    name = (URL.build(scheme="http", host=host).raw_host or "").removesuffix(".")
    if ":" in name:
        address = ipaddress.IPv6Address(name)
        return str(address.ipv4_mapped or address)
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        pass
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("not a host")
    return name


def is_loopback(host: str) -> bool:
    """Return whether a name or an address leads to this machine itself."""
    try:
        name = normalize_host(host)
        return f".{name}".endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def parse_url(url: object) -> URL | None:
    """Return a parsed http(s) URL, or `None` if it isn't one or parsers may read it differently."""
    if not isinstance(url, str) or not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parsed, parts = URL(url), urlsplit(url)
        host = parsed.raw_host or ""
        named = ipaddress.IPv6Address(host) if "[" in parts.netloc else normalize_host(host)
        usable = named and parsed.scheme in {"http", "https"} and parts.port != 0
    except ValueError:
        return None
    return parsed if usable else None


def check_base_url(url: str, *, name: str = "base_url") -> str:
    """Return the address without a slash at its end.

    Raises:
        ConfigurationError: it isn't an http(s) URL, has more than scheme, host, port and path, or is plain
            http to anywhere but a loopback address.
    """
    parsed = parse_url(url)
    if parsed is None:
        raise ConfigurationError(
            f"{name} must start with https:// and name a host, "
            "without spaces, backslashes or invisible characters"
        )
    if any(mark in url for mark in "@?#"):
        raise ConfigurationError(f"{name} may hold a scheme, a host, a port and a path, nothing else")
    if parsed.scheme == "http" and not is_loopback(parsed.raw_host or ""):
        raise ConfigurationError(
            f"{name} is plain http to {parsed.raw_host}: credentials go over https, or to loopback"
        )
    return url.rstrip("/")


def resolve_base_url(base_url: str | None, environment: Environment | str | None) -> str:
    """Where to call: the arguments first, then PLAID_BASE_URL, then PLAID_ENV, then the sandbox.

    Raises:
        ConfigurationError: the address or the environment named isn't one.
    """
    if base_url is not None:
        return check_base_url(base_url)
    if environment is None and (address := os.environ.get("PLAID_BASE_URL")):
        return check_base_url(address, name="PLAID_BASE_URL")
    name = environment or os.environ.get("PLAID_ENV") or Environment.SANDBOX
    try:
        return Environment(name).base_url
    except ValueError:
        known = " or ".join(Environment)
        # A secret may have been put into the wrong variable; a name that consists of letters isn't one.
        wrong = f", not {name!r}" if name.isalpha() else ""
        raise ConfigurationError(f"environment (PLAID_ENV) must be {known}{wrong}") from None


def resolve_identity(credentials: CredentialsSource | None, gateway_key: str | None) -> Identity:
    """Who calls: an argument, or PLAID_CLIENT_ID and PLAID_SECRET.

    Raises:
        ConfigurationError: nothing says, or two arguments do.
    """
    if gateway_key is not None and credentials is not None:
        raise ConfigurationError("pass credentials or a gateway_key, not both: the gateway has its own")
    if gateway_key is not None:
        return GatewayKey(gateway_key)
    if credentials is None:
        return _credentials_from_environment()
    if not isinstance(credentials, Credentials) and not callable(credentials):
        raise ConfigurationError("credentials must be Credentials or an async callable that gives them")
    return credentials


def _credentials_from_environment() -> Credentials:
    names = ("PLAID_CLIENT_ID", "PLAID_SECRET")
    missing = " and ".join(name for name in names if not os.environ.get(name))
    if missing:
        raise ConfigurationError(f"no credentials: pass Credentials(client_id, secret), or set {missing}")
    return Credentials(*(os.environ[name] for name in names))


def check_tls(context: tls.SSLContext | None) -> tls.SSLContext | None:
    """Give the context.

    Raises:
        ConfigurationError: it isn't one, or doesn't verify the server.
    """
    if context is None:
        return None
    if not isinstance(context, tls.SSLContext):
        raise ConfigurationError("ssl must be an ssl.SSLContext, for example with your own CA bundle")
    if context.verify_mode is not tls.CERT_REQUIRED or not context.check_hostname:
        raise ConfigurationError("ssl must verify the server: verify_mode CERT_REQUIRED and check_hostname")
    return context
