"""Caller keys: named credentials of the gateway, of which only a SHA-256 digest is stored.

A key is bound to a set of Plaid's credentials, to operations, to partners and to a rate limit.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from attrs import Attribute, field, frozen

from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.errors import ConfigurationError, RequestValidationError
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.models.fields import check_identifier
from plaid_relay_async.redaction import GATEWAY_KEY_PREFIX, strip_init_traceback, strip_traceback

ALL_OPERATIONS: Final[tuple[str, ...]] = tuple(endpoint.path for endpoint in ENDPOINTS)
"""The paths of all operations that a gateway can serve."""
RELAY_OPERATIONS: Final[tuple[str, ...]] = tuple(
    path for path in ALL_OPERATIONS if path.startswith("/credit/relay/")
)
"""The paths of the relay's operations."""

_KEY_BYTES: Final = 32


def _pattern_validator(pattern: str, description: str) -> Any:
    compiled = re.compile(pattern)

    def check(_: object, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ConfigurationError(f"{attribute.name} must be {description}")

    return check


def _string_set(name: str, values: Iterable[str]) -> frozenset[str]:
    # A string is an iterable of its characters, which is never intended.
    strings = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not strings or not all(isinstance(item, str) for item in strings):
        raise ConfigurationError(f"{name} must be a non-empty collection of strings")
    return frozenset(strings)


def _operation_set(paths: Iterable[str]) -> frozenset[str]:
    return _string_set("operations", paths)


def _partner_set(partners: Iterable[str] | None) -> frozenset[str] | None:
    return None if partners is None else _string_set("partners", partners)


def _check_operations(_: object, __: object, paths: frozenset[str]) -> None:
    if not paths <= set(ALL_OPERATIONS):
        raise ConfigurationError(
            "operations must be paths of Plaid's operations, such as " + RELAY_OPERATIONS[0]
        )


def _check_partners(_: object, __: object, partners: frozenset[str] | None) -> None:
    try:
        for partner in partners or ():
            check_identifier("one of the partners", partner)
    except RequestValidationError as error:
        problem = f"{error.field} {error.problem}"
    else:
        return
    raise ConfigurationError(problem)


def _check_rate(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, RateLimit):
        raise ConfigurationError(f"{attribute.name} must be a RateLimit or None")


def _check_utc(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, datetime) or value.utcoffset() != timedelta():
        raise ConfigurationError(f"{attribute.name} must be a time in UTC, with its time zone")


def _creation_time() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@strip_init_traceback
@frozen
class Key:
    """The record of a caller's key: its digest and what it is bound to. It does not contain the key.

    Attributes:
        name: the name of the caller, for the audit log and the metrics: 1 to 64 ASCII letters, digits, `.`,
            `_` or `-`.
        digest: the key's SHA-256 in hexadecimal. The repr omits it.
        credentials: the name of the set of Plaid's credentials that its calls use: at most 64 lower-case
            letters and digits, in words joined by `-`.
        operations: the paths that it may call.
        partners: the `secondary_client_id`s that its creations may name; `None` allows all.
        rate: its rate limit, over all operations; `None` is no limit.
        created: when it was created, in UTC.

    Raises:
        ConfigurationError: one of the values is invalid.
    """

    name: str = field(
        validator=_pattern_validator("[A-Za-z0-9._-]{1,64}", "1 to 64 ASCII letters, digits, '.', '_' or '-'")
    )
    digest: str = field(repr=False, validator=_pattern_validator("[0-9a-f]{64}", "a SHA-256 in hexadecimal"))
    credentials: str = field(
        default="default",
        validator=_pattern_validator(
            "(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*",
            "the name of a set: at most 64 lower-case letters and digits, in words joined by '-'",
        ),
    )
    operations: frozenset[str] = field(
        default=frozenset(RELAY_OPERATIONS), converter=_operation_set, validator=_check_operations
    )
    partners: frozenset[str] | None = field(default=None, converter=_partner_set, validator=_check_partners)
    rate: RateLimit | None = field(default=None, validator=_check_rate)
    created: datetime = field(factory=_creation_time, validator=_check_utc)


@strip_traceback
def new_key(
    name: str,
    *,
    credentials: str = "default",
    operations: Iterable[str] = RELAY_OPERATIONS,
    partners: Iterable[str] | None = None,
    rate: RateLimit | None = None,
) -> tuple[Key, str]:
    """Create a key of 256 random bits.

    Args:
        name: the name of the caller.
        credentials: the name of the set of Plaid's credentials that its calls use.
        operations: the paths that it may call.
        partners: the `secondary_client_id`s that its creations may name; `None` allows all.
        rate: its rate limit, over all operations.

    Returns:
        Its record, and the key, which can't be recovered from the record.

    Raises:
        ConfigurationError: an argument is invalid; the message names it.
    """
    key = GATEWAY_KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    record = Key(
        name=name,
        digest=_key_digest(key),
        credentials=credentials,
        operations=operations,
        partners=partners,
        rate=rate,
    )
    return record, key


def find_key(keys: Iterable[Key], presented: str) -> Key | None:
    """Return the record of a key, in a time that reveals nothing about how much of the key is correct.

    Args:
        keys: all valid keys; each is compared, also after a match.
        presented: what a caller sent as its key; any text.
    """
    digest, match = _key_digest(presented), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            match = key
    return match


def _key_digest(key: str) -> str:
    # A salt and a slow hash protect guessable passwords. A key of 256 random bits can't be guessed.
    # A header or JSON may contain a lone surrogate, which is encoded only with "surrogatepass".
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
