"""The verification of a webhook, without I/O.

The order is that of trust: the form of the token, the key, the signature, the claims, the body, the
environment and then the time. Nothing is read of the claims before the signature is verified, and nothing of
the body before its hash is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import time
from typing import TYPE_CHECKING, Final, cast

from attrs import Attribute, field, frozen

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.redaction import strip_traceback
from plaid_relay_async.webhooks.errors import (
    RawBodyRequiredError,
    RefusalReason,
    StaleWebhookError,
    WebhookRefusedError,
)
from plaid_relay_async.webhooks.token import HeaderPairs, SignedToken, read_object, read_token
from plaid_relay_async.webhooks.verified import VerifiedWebhook

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from plaid_relay_async.webhooks.keys import VerificationKey

TOLERANCE: Final = 300.0
"""The age in seconds from which a webhook is stale; Plaid's page says five minutes."""
SKEW: Final = 60.0
"""How many seconds this machine's clock may be behind Plaid's; our choice, because Plaid publishes none."""

_HASH_FORMAT: Final = re.compile("[0-9a-f]{64}")
_MAX_TIME: Final = 253_402_300_799  # the end of the year 9999


def _check_seconds(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not NaN either: a comparison with it is always false, so no webhook would be stale.
    if not is_number or not 0 <= cast("float", value) < math.inf:
        problem = "must be a finite number of seconds, 0 or more"
        raise ConfigurationError(f"{name} {problem}", field=name, problem=problem)


def _check_setting(_: object, attribute: Attribute[float], value: object) -> None:
    _check_seconds(attribute.name, value)


@frozen
class VerificationSettings:
    """What is required of a webhook, besides a valid signature.

    Attributes:
        environment: the environment that its body may name; `None` permits any.
        tolerance: the age in seconds from which it is stale.
        skew: how many seconds in the future it may have been issued.
    """

    environment: str | None = None
    tolerance: float = field(default=TOLERANCE, validator=_check_setting)
    skew: float = field(default=SKEW, validator=_check_setting)


@strip_traceback
def verify(
    body: bytes,
    headers: Mapping[str, str] | HeaderPairs,
    *,
    keys: Iterable[VerificationKey],
    environment: str | None = None,
    tolerance: float = TOLERANCE,
    skew: float = SKEW,
    now: float | None = None,
) -> VerifiedWebhook:
    """Verify that Plaid has signed a webhook, recently.

    https://plaid.com/docs/api/webhooks/webhook-verification/

    Args:
        body: the body of the request, as received. JSON that was parsed and serialized again differs.
        headers: the headers of the request: a mapping such as those of aiohttp, Starlette and Django, or
            pairs of a name and a value.
        keys: the keys to choose from, by the ID in the token.
        environment: the environment that the body may name, `"sandbox"` or `"production"`; `None` permits
            any. A body that names none, or null, is accepted, because an example of Plaid's names none.
        tolerance: the age in seconds from which a webhook is stale.
        skew: how many seconds in the future it may have been issued, if this machine's clock is slow.
        now: the Unix time; the default is this machine's.

    Raises:
        WebhookRefusedError: the webhook isn't authentic; `reason` says why.
        StaleWebhookError: it is authentic, and older than `tolerance`.
        RawBodyRequiredError: the body isn't bytes.
        InvalidHeadersError: the headers are neither a mapping of strings nor pairs of strings or bytes.
        ConfigurationError: `tolerance`, `skew` or `now` is invalid.
    """
    check_body(body)
    settings = VerificationSettings(environment, tolerance, skew)
    now = time.time() if now is None else now
    _check_seconds("now", now)
    token = read_token(headers)
    key = next((key for key in keys if key.key_id == token.key_id), None)
    if key is None:
        raise WebhookRefusedError.of(RefusalReason.UNKNOWN_KEY)
    return verify_token(body, token, key, settings, now)


def check_body(body: object) -> None:
    """Raise `RawBodyRequiredError` unless the body is bytes."""
    if not isinstance(body, bytes):
        raise RawBodyRequiredError(f"the body of a webhook must be bytes, not {type(body).__name__}")


@strip_traceback
def verify_token(
    body: bytes, token: SignedToken, key: VerificationKey, settings: VerificationSettings, now: float
) -> VerifiedWebhook:
    """Verify a webhook whose token was read, and whose key was looked up; see `verify`."""
    if key.is_expired(now):
        raise WebhookRefusedError.of(RefusalReason.EXPIRED_KEY)
    if not key.has_signed(token.signed, token.signature):
        raise WebhookRefusedError.of(RefusalReason.WRONG_SIGNATURE)
    issued_at, expected_hash = _read_claims(token.claims)
    body_hash = hashlib.sha256(body).hexdigest()
    if not hmac.compare_digest(body_hash, expected_hash):
        raise WebhookRefusedError.of(RefusalReason.OTHER_BODY)
    if not _is_of_environment(body, settings.environment):
        raise WebhookRefusedError.of(RefusalReason.OTHER_ENVIRONMENT)
    if issued_at - now > settings.skew:
        raise WebhookRefusedError.of(RefusalReason.ISSUED_IN_FUTURE)
    webhook = VerifiedWebhook(body, body_hash, issued_at)
    if now - issued_at > settings.tolerance:
        raise StaleWebhookError.of(webhook, now - issued_at)
    return webhook


def _read_claims(data: bytes) -> tuple[int, str]:
    """Return the time of issue, and the hash of the body."""
    try:
        claims = read_object(data)
    except (ValueError, RecursionError):
        claims = None
    if claims is None:
        raise WebhookRefusedError.of(RefusalReason.MALFORMED_CLAIMS)
    if not claims.keys() >= {"iat", "request_body_sha256"}:
        raise WebhookRefusedError.of(RefusalReason.MISSING_CLAIM)
    issued_at, body_hash = claims["iat"], claims["request_body_sha256"]
    # To Python, True is an integer.
    if type(issued_at) is not int or not 0 <= issued_at <= _MAX_TIME:
        raise WebhookRefusedError.of(RefusalReason.INVALID_ISSUED_AT)
    if not isinstance(body_hash, str) or not _HASH_FORMAT.fullmatch(body_hash):
        raise WebhookRefusedError.of(RefusalReason.INVALID_BODY_HASH)
    return issued_at, body_hash


def _is_of_environment(body: bytes, environment: str | None) -> bool:
    """Return whether the body names this environment, or none."""
    if environment is None:
        return True
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None  # it names no environment, and can't be parsed as an event
    return not isinstance(payload, dict) or payload.get("environment") in (None, environment)
