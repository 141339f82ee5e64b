"""Credentials, addresses, timeouts and the retry policy, from arguments or from environment variables."""

from __future__ import annotations

import enum
import ipaddress
import os
import re
import ssl as tls
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from attrs import Attribute, evolve, field, frozen
from yarl import URL

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.hosts import is_loopback, normalize_host
from plaid_relay_async.redaction import strip_init_traceback

__version__ = "0.1.0"

PLAID_VERSION = "2020-09-14"
USER_AGENT = f"plaid_relay_async/{__version__}"


class Environment(enum.StrEnum):
    """Plaid's environments. A secret and a token are valid in one of them only.

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
        """Return the environment whose host a URL has, in any spelling, or `None`."""
        host = normalize_host(URL(base_url).raw_host or "")
        return next((each for each in cls if URL(each.base_url).raw_host == host), None)


def _validate_header_value(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        problem = "must be a non-empty string"
    elif not (value.isascii() and value.isprintable()) or " " in value:
        problem = "contains whitespace or characters that aren't allowed in a header"
    else:
        return
    raise ConfigurationError(f"{attribute.name} {problem}", field=attribute.name, problem=problem)


@strip_init_traceback
@frozen
class Credentials:
    """A client ID and its secret for one environment. A repr doesn't show the secret.

    Raises:
        ConfigurationError: one of them is empty, or can't be sent in a header.
    """

    client_id: str = field(validator=_validate_header_value)
    secret: str = field(validator=_validate_header_value, repr=False)


@strip_init_traceback
@frozen
class GatewayKey:
    """The key by which a gateway authenticates its caller. A repr doesn't show it."""

    gateway_key: str = field(validator=_validate_header_value, repr=False)


CredentialsSource: TypeAlias = Credentials | Callable[[], Awaitable[Credentials]]
Identity: TypeAlias = CredentialsSource | GatewayKey


def check_seconds(name: str, value: object, *, zero_allowed: bool = False) -> None:
    """Raise `ConfigurationError` unless the value is a finite number of seconds above 0, or 0 if allowed."""
    is_seconds = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # An integer may be too large for a float.
        and 0 <= value <= sys.float_info.max
        and (value > 0 or zero_allowed)
    )
    if not is_seconds:
        least = "0 or more" if zero_allowed else "above 0"
        raise ConfigurationError(
            f"{name} must be a finite number of seconds, {least}, not {_describe_value(value)}"
        )


def _describe_value(value: object) -> str:
    """Return a number, or the type of anything else, which may be a secret in the wrong place."""
    if not isinstance(value, int | float):
        return type(value).__name__
    # Python doesn't print integers of thousands of digits.
    return "such a large number" if isinstance(value, int) and abs(value) > sys.maxsize else repr(value)


def _validate_seconds(_: object, attribute: Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def _validate_optional_seconds(timeouts: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _validate_seconds(timeouts, attribute, value)


@frozen(kw_only=True)
class Timeouts:
    """Timeouts in seconds. Waits for a free connection or a rate limiter count against none of them.

    Attributes:
        connect: for DNS, the connection and TLS together. Nothing has been sent by then, so a short timeout
            and another attempt are safe.
        read: until the response starts, and between two pieces of it, for fast operations.
        slow_read: the same for creations, refreshes and reports. Plaid has taken 85 s for some responses, and
            a timeout of a creation makes its outcome unknown.
        total: for one call with all its attempts and other waits; `None` for no limit. In a batch, pauses
            that Plaid requests aren't counted. If a call that isn't idempotent has to wait, half of this
            time, or its `read` or `slow_read` if that is shorter, is left for the connection and the
            response.
        drain: for the calls in flight when a batch is left early or a call is cancelled.
        idle: after which an unused connection of an owned pool is closed. It is shorter than the limit of
            most servers, so that a request is seldom sent on a connection that the server is closing: its
            outcome would be unknown.

    Raises:
        ConfigurationError: a value isn't a number of seconds above 0.
    """

    connect: float = field(default=5.0, validator=_validate_seconds)
    read: float = field(default=30.0, validator=_validate_seconds)
    slow_read: float = field(default=120.0, validator=_validate_seconds)
    total: float | None = field(default=300.0, validator=_validate_optional_seconds)
    drain: float = field(default=10.0, validator=_validate_seconds)
    idle: float = field(default=15.0, validator=_validate_seconds)

    def with_total(self, total: float | None) -> Timeouts:
        """Return these timeouts with another total, unless it is `None`."""
        return self if total is None else evolve(self, total=total)


def check_count(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless the value is a whole number of 1 or more."""
    # No queue can be longer than `sys.maxsize`.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= sys.maxsize:
        raise ConfigurationError(f"{name} must be a whole number of 1 or more, not {_describe_value(value)}")


def check_type(name: str, value: object, cls: type) -> None:
    """Raise `ConfigurationError` unless the value is an instance of the class."""
    if not isinstance(value, cls):
        raise ConfigurationError(f"{name} must be a {cls.__name__}, not {type(value).__name__}")


def _validate_count(_: object, attribute: Attribute[int], value: object) -> None:
    check_count(attribute.name, value)


def _validate_replay(_: object, __: object, value: object) -> None:
    if value not in ("safe", "always"):  # no set: the value may be unhashable
        raise ConfigurationError(f"replay must be 'safe' or 'always', not {value!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """When and how often a call is attempted again.

    Attributes:
        attempts: the maximum number of attempts of one call. In a batch, declined attempts (429, planned
            maintenance, or a gateway that can't reach Plaid) aren't counted.
        backoff: the first backoff, in seconds. It doubles with each attempt, with full jitter: the actual
            wait is a random part of it.
        max_backoff: the longest backoff, in seconds.
        max_pause: the longest pause that a server may request, in seconds. Pauses without an accepted attempt
            in between are added up. A longer pause isn't shortened: the call fails, with `RateLimitError` if
            its attempt was declined, or with `WaitTooLongError` if it isn't sent.
        replay: `"safe"` repeats a non-idempotent call only if no attempt can have been executed. `"always"`
            repeats it after an attempt in doubt, too, and so may create a second token.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    attempts: int = field(default=4, validator=_validate_count)
    backoff: float = field(default=0.5, validator=_validate_seconds)
    max_backoff: float = field(default=8.0, validator=_validate_seconds)
    max_pause: float = field(default=300.0, validator=_validate_seconds)
    replay: Literal["safe", "always"] = field(default="safe", validator=_validate_replay)


def parse_url(url: object) -> URL | None:
    """Return a parsed http(s) URL, or `None` if it isn't one or parsers may read it differently."""
    # Some parsers treat a backslash as a slash, and some drop whitespace and control characters.
    if not isinstance(url, str) or not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parsed, parts = URL(url), urlsplit(url)
        host = parsed.raw_host or ""
        valid_host = ipaddress.IPv6Address(host) if "[" in parts.netloc else normalize_host(host)
        usable = valid_host and parsed.scheme in {"http", "https"} and parts.port != 0
    except ValueError:
        return None
    return parsed if usable else None


def check_base_url(url: str, *, name: str = "base_url") -> str:
    """Return the URL without a slash at its end.

    Args:
        url: the URL to check.
        name: the name of its source, for error messages.

    Raises:
        ConfigurationError: it isn't an http(s) URL, it has more than a scheme, a host, a port and a path, or
            it is plain http to an address other than loopback.
    """
    parsed = parse_url(url)
    if parsed is None:
        raise ConfigurationError(
            f"{name} must start with https:// (or http:// for a loopback address) and name a host, "
            "without spaces, backslashes, invisible characters or an invalid port"
        )
    if any(mark in url for mark in "@?#"):
        raise ConfigurationError(f"{name} may contain a scheme, a host, a port and a path, nothing else")
    if parsed.scheme == "http" and not is_loopback(parsed.raw_host or ""):
        raise ConfigurationError(
            f"{name} is plain http to {parsed.raw_host}: use https, which protects the credentials; "
            "only loopback addresses may use plain http"
        )
    return url.rstrip("/")


def resolve_base_url(base_url: str | None, environment: Environment | str | None) -> str:
    """Return the base URL: the arguments come first, then PLAID_BASE_URL, PLAID_ENV, and the sandbox.

    Raises:
        ConfigurationError: the URL is invalid or unsafe, or Plaid has no environment of that name.
    """
    if base_url is not None:
        return check_base_url(base_url)
    if environment is None and (address := os.environ.get("PLAID_BASE_URL")):
        return check_base_url(address, name="PLAID_BASE_URL")
    name = (os.environ.get("PLAID_ENV") or Environment.SANDBOX) if environment is None else environment
    try:
        return Environment(name).base_url
    except ValueError:
        names = " or ".join(Environment)
        # The variable may contain a secret by mistake. Only a value that consists of letters is quoted.
        quoted = f", not {name!r}" if str(name).isalpha() else ""
        raise ConfigurationError(f"environment (PLAID_ENV) must be {names}{quoted}") from None


def resolve_identity(credentials: CredentialsSource | None, gateway_key: str | None) -> Identity:
    """Return the identity of the caller, from an argument, or from PLAID_CLIENT_ID and PLAID_SECRET.

    Raises:
        ConfigurationError: there is none, or both arguments are set.
    """
    if gateway_key is not None and credentials is not None:
        raise ConfigurationError("pass credentials or a gateway_key, not both: the gateway adds credentials")
    if gateway_key is not None:
        return GatewayKey(gateway_key)
    if credentials is None:
        return _credentials_from_environment()
    if not isinstance(credentials, Credentials) and not callable(credentials):
        raise ConfigurationError("credentials must be Credentials, or an async callable that returns them")
    return credentials


def _credentials_from_environment() -> Credentials:
    variables = {"client_id": "PLAID_CLIENT_ID", "secret": "PLAID_SECRET"}
    missing = " and ".join(name for name in variables.values() if not os.environ.get(name))
    if missing:
        raise ConfigurationError(f"no credentials: pass Credentials(client_id, secret), or set {missing}")
    try:
        return Credentials(**{field: os.environ[name] for field, name in variables.items()})
    except ConfigurationError as error:
        message = f"{variables[error.field or '']} {error.problem}"
    # It is raised outside the handler, because the frames of an error's context would contain the secret.
    raise ConfigurationError(message)


# https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def resolve_user_agent(application: object) -> str:
    """Return the value of the header User-Agent, with the name and the version of the application, if any.

    Raises:
        ConfigurationError: the application isn't a pair of texts that the header can contain.
    """
    if application is None:
        return USER_AGENT
    if (
        not isinstance(application, tuple)
        or len(application) != 2
        or not all(isinstance(part, str) and _TOKEN.fullmatch(part) for part in application)
    ):
        raise ConfigurationError(
            'application must be a name and a version, such as ("loan-service", "1.4"): each of ASCII '
            "letters, digits and !#$%&'*+-.^_`|~, without spaces and slashes"
        )
    return f"{USER_AGENT} {'/'.join(application)}"


def check_tls(context: tls.SSLContext | None) -> tls.SSLContext | None:
    """Return the TLS context.

    Raises:
        ConfigurationError: it isn't an `ssl.SSLContext`, or it doesn't verify the server.
    """
    if context is None:
        return None
    if not isinstance(context, tls.SSLContext):
        raise ConfigurationError("ssl must be an ssl.SSLContext, for example with your own CA bundle")
    if context.verify_mode is not tls.CERT_REQUIRED or not context.check_hostname:
        raise ConfigurationError("ssl must verify the server: verify_mode CERT_REQUIRED and check_hostname")
    return context
