"""The token of a webhook: a JSON Web Token in the header `Plaid-Verification`, read before its verification.

Everything in it is the sender's choice. So it is read strictly: there is one way to write each token, and
what could name a key other than by its ID is refused.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from attrs import field, frozen

from plaid_relay_async.codec.unique_members import unique_members
from plaid_relay_async.redaction import strip_traceback
from plaid_relay_async.webhooks.errors import InvalidHeadersError, RefusalReason, WebhookRefusedError

HeaderPairs: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]
"""Headers as pairs of a name and a value, as ASGI has them."""

_HEADER_NAME: Final = "plaid-verification"
# Our choice: Plaid's tokens have about 300 characters, and its key IDs 36.
_MAX_TOKEN_LENGTH: Final = 2048
_KEY_ID_FORMAT: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SEGMENT_FORMAT: Final = re.compile(r"[A-Za-z0-9_-]+")
# RFC 7515, section 4.1. A key in the header, or the URL of one, would be the sender's choice.
_KEY_MEMBERS: Final = {"jwk", "x5c"}
_KEY_URL_MEMBERS: Final = {"jku", "x5u"}
# `b64` (RFC 7797) changes what is signed, and is an extension that `crit` must name.
_CRITICAL_MEMBERS: Final = {"crit", "b64"}


@frozen
class SignedToken:
    """A token whose signature hasn't been verified.

    Attributes:
        key_id: the ID of its key.
        signed: the bytes that are signed.
        claims: the JSON of its claims.
        signature: the signature.
    """

    key_id: str = field(repr=False)
    signed: bytes = field(repr=False)
    claims: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@strip_traceback
def read_token(headers: Mapping[str, str] | HeaderPairs) -> SignedToken:
    """Read the token in the headers of a request.

    Args:
        headers: the headers of the request: a mapping, or pairs of a name and a value.

    Raises:
        WebhookRefusedError: there is no such header, or more than one; or it isn't a token that Plaid may
            have sent.
        InvalidHeadersError: the headers are neither a mapping of strings nor pairs of strings or bytes.
    """
    token = _find_header(headers)
    if len(token) > _MAX_TOKEN_LENGTH:
        raise WebhookRefusedError.of(RefusalReason.HEADER_TOO_LONG)
    try:
        head, claims, signature = token.split(".")
        key_id = _check_header(read_object(_decode_segment(head)))
        return SignedToken(
            key_id, f"{head}.{claims}".encode(), _decode_segment(claims), _decode_segment(signature)
        )
    except (ValueError, RecursionError):
        pass
    # Raised outside the handler, because the text of the original error may quote the token.
    raise WebhookRefusedError.of(RefusalReason.MALFORMED_TOKEN)


def header_pairs(headers: Mapping[str, str] | HeaderPairs) -> list[tuple[str, str]]:
    """Return the headers as pairs of a name in lower case and a value.

    Raises:
        InvalidHeadersError: they are neither a mapping of strings nor pairs of strings or bytes.
    """
    # Not every multi-valued mapping is a `Mapping`; each has `items`, which repeats a name for each value.
    items = getattr(headers, "items", None)
    try:
        pairs: Any = headers if items is None else items()
        return [(_to_text(name).lower(), _to_text(value)) for name, value in pairs]
    except (TypeError, ValueError):
        pass
    # Raised outside the handler, because the text of the original error may quote a header.
    kind = type(headers).__name__
    raise InvalidHeadersError(f"headers must be a mapping or pairs, of strings or bytes; this {kind} isn't")


def _find_header(headers: Mapping[str, str] | HeaderPairs) -> str:
    match [value for name, value in header_pairs(headers) if name == _HEADER_NAME]:
        case []:
            raise WebhookRefusedError.of(RefusalReason.NO_HEADER)
        # WSGI servers, and with them Django, join headers of the same name with a comma.
        case [value] if "," not in value:
            return value
    raise WebhookRefusedError.of(RefusalReason.SEVERAL_HEADERS)


def _to_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _decode_segment(segment: str) -> bytes:
    """Decode base64url without padding, in its only valid spelling.

    Raises:
        ValueError: it isn't that.
    """
    if not _SEGMENT_FORMAT.fullmatch(segment):
        raise ValueError("characters")
    decoded = urlsafe_b64decode(f"{segment}==")  # Python's decoder ignores padding that isn't needed
    # It also ignores the unused bits of the last character.
    if urlsafe_b64encode(decoded).rstrip(b"=").decode() != segment:
        raise ValueError("spelling")
    return decoded


def read_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: the bytes aren't one, or a name occurs twice.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_members)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  # it is an invalid value
    return value


def _check_header(header: dict[str, Any]) -> str:
    """Return the key ID."""
    if header.get("alg") != "ES256":
        raise WebhookRefusedError.of(RefusalReason.WRONG_ALGORITHM)
    for members, reason in (
        (_KEY_MEMBERS, RefusalReason.KEY_IN_HEADER),
        (_KEY_URL_MEMBERS, RefusalReason.KEY_URL_IN_HEADER),
        (_CRITICAL_MEMBERS, RefusalReason.CRITICAL_HEADER),
    ):
        if members & header.keys():
            raise WebhookRefusedError.of(reason)
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not _KEY_ID_FORMAT.fullmatch(key_id):
        raise WebhookRefusedError.of(RefusalReason.INVALID_KEY_ID)
    return key_id
