"""The meaning of a response: a record or an exception."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import NOTHING, define, evolve, field, fields

from plaid_relay_async import models
from plaid_relay_async.certainty import Certainty, certainty_of, reclassify
from plaid_relay_async.codec.endpoints import Endpoint, Idempotency
from plaid_relay_async.codec.records import DECODE_ERRORS, decode_record, describe_decode_error
from plaid_relay_async.display import escape_surrogates
from plaid_relay_async.error_codes import ADVICE, GATEWAY_ERROR, error_class_for
from plaid_relay_async.errors import OutcomeUnknownError, PlaidRelayError, ResponseDecodeError
from plaid_relay_async.redaction import Hidden, redact_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable

R = TypeVar("R")


# PDF readers accept the end marker %%EOF within the last 1024 bytes, and so does this client.
PDF_TAIL_BYTES: Final = 1024


@define(repr=False)
class RawResponse:
    """The response to one attempt.

    Attributes:
        status: the HTTP status.
        headers: the headers, case-insensitive.
        body: the body as far as it was received and kept, uncompressed.
        body_error: the error that ended the body early, or `None` if the body is complete.
    """

    status: int
    headers: Mapping[str, str]
    body: bytearray = field(factory=bytearray)
    body_error: PlaidRelayError | None = None

    def keep_ends(self) -> None:
        """Drop the middle of a body that a `BodyWriter` receives: its ends show whether a PDF is complete."""
        del self.body[PDF_TAIL_BYTES:-PDF_TAIL_BYTES]


def read_response(
    endpoint: Endpoint[Any, R], response: RawResponse, request: object, secret: Hidden[str]
) -> R:
    """Return the record of a response, or raise the error that the response means.

    Args:
        endpoint: the operation.
        response: the response.
        request: the request record; its tokens are redacted in texts that an error quotes from the server.
        secret: the caller's secret, which is redacted as well.

    Raises:
        OutcomeUnknownError: Plaid may have executed the request, and the response doesn't show the result.
        PlaidAPIError: the response is an error. If the operation is non-idempotent, the error proves that
            nothing was executed.
        ConnectionLostError: the response to an idempotent or safe request broke off.
        ResponseDecodeError: the response to an idempotent or safe request is invalid or too long.
    """
    if not 200 <= response.status < 300:
        raise error_of_response(endpoint, response, _secrets_of_request(request, secret))
    is_repeatable = endpoint.idempotency is not Idempotency.NON_IDEMPOTENT
    # The response to a non-idempotent request is decoded even if it broke off: its token may be complete.
    if response.body_error is not None and is_repeatable:
        raise response.body_error
    if endpoint.response_type is models.PdfResponse:
        return _read_pdf(response, request, secret)  # type: ignore[return-value]  # R is PdfResponse here
    try:
        record = decode_record(response.body, endpoint.response_type)
    except DECODE_ERRORS as error:
        problem, path = describe_decode_error(error)
    else:
        # Only the record of a report keeps the bytes of its response.
        return evolve(record, raw=Hidden(bytes(response.body))) if hasattr(record, "raw") else record  # type: ignore[misc]
    if is_repeatable:
        error_attributes = _attributes_of_unreadable(response, request, secret)
        raise ResponseDecodeError(f"{problem} at {path}", path=path, **error_attributes)
    recovered = _recover_token(endpoint, response.body)
    if recovered is not None:
        return recovered
    # If the body broke off, that is the cause, and the decode error only a consequence.
    cause = f"can't be read: {problem} at {path}"
    if response.body_error is not None:
        cause = f"is incomplete: {response.body_error.args[0]}"
    raise OutcomeUnknownError(
        f"Plaid responded with {response.status}, and the response {cause}",
        **_attributes_of_unreadable(response, request, secret),
    )


def _attributes_of_unreadable(response: RawResponse, request: object, secret: Hidden[str]) -> dict[str, Any]:
    """Return the attributes that the error of an unreadable success response has."""
    # The request ID comes from the server as well, which might quote a secret in it.
    request_id = _redact(request_id_of(response), _secrets_of_request(request, secret))
    return {"status": response.status, "request_id": request_id, "body": Hidden(bytes(response.body))}


def _recover_token(endpoint: Endpoint[Any, R], body: bytes | bytearray) -> R | None:
    # If a token can be read, Plaid has issued it, whatever else is wrong with the response.
    record_type: Any = endpoint.response_type
    required = [attribute.name for attribute in fields(record_type) if attribute.default is NOTHING]
    # Of the other records, some need more than the token, and some have none.
    if required != [endpoint.issues]:
        return None
    token = _find_string(required[0], body)
    return record_type(token, request_id=_find_string("request_id", body)) if token else None


def request_id_of(response: RawResponse) -> str | None:
    """Return Plaid's ID of the request, which is in the headers of a PDF, and in the body otherwise."""
    return response.headers.get("Plaid-Request-ID") or _find_string("request_id", response.body)


def _find_string(name: str, body: bytes | bytearray) -> str | None:
    # Possessive quantifiers: a string without an end is scanned once, without backtracking.
    match = re.search(rb'"%s"\s*+:\s*+("(?=[^"])[^"\\]*+(?:\\.[^"\\]*+)*+")' % name.encode(), body)
    if match is None:
        return None
    try:
        # The JSON parser resolves escapes, and rejects an invalid string.
        return str(json.loads(match[1]))
    except ValueError:
        return None


def _read_pdf(response: RawResponse, request: object, secret: Hidden[str]) -> models.PdfResponse:
    if response.body.startswith(b"%PDF-") and b"%%EOF" in response.body[-PDF_TAIL_BYTES:]:
        return models.PdfResponse(bytes(response.body), response.headers.get("Plaid-Request-ID"))
    expected = "a complete PDF" if response.body.startswith(b"%PDF-") else "a PDF"
    raise ResponseDecodeError(
        f"the response isn't {expected}", **_attributes_of_unreadable(response, request, secret)
    )


# ---------------------------------------------------------------------------------------------- errors

_CODE_FORMAT = re.compile("[A-Z][A-Z_]+")
_CODE_FIELDS = ("error_type", "error_code")
_ERROR_FIELDS = (
    *_CODE_FIELDS,
    "error_message",
    "display_message",
    "request_id",
    "documentation_url",
    "suggested_action",
)


def error_of_response(
    endpoint: Endpoint[Any, Any], response: RawResponse, secrets: Iterable[str]
) -> PlaidRelayError:
    """Return what a response without a success status means; `secrets` are redacted in its texts."""
    attributes = _error_attributes(response, secrets)
    cls = error_class_for(attributes.get("error_type"), attributes.get("error_code"), response.status)
    error = cls(_error_text(response, attributes), **attributes | _own_advice(response.status, attributes))
    # An error that proves nothing leaves a non-idempotent request in doubt.
    if endpoint.idempotency is Idempotency.NON_IDEMPOTENT and certainty_of(error) is Certainty.IN_DOUBT:
        return reclassify(error, OutcomeUnknownError, advice=OutcomeUnknownError.advice)
    return error


def _own_advice(status: int, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the advice that replaces that of the error's class, if there is one."""
    if 300 <= status < 400:
        advice = "Redirects aren't followed, as they would send the secret to another host: correct base_url."
        return {"advice": advice}
    suggestion = attributes.get("suggested_action")
    if suggestion and attributes.get("error_type") == GATEWAY_ERROR:
        return {"advice": suggestion}
    code = attributes.get("error_code")
    return {"advice": ADVICE[code]} if code in ADVICE else {}


def _error_attributes(response: RawResponse, secrets: Iterable[str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "status": response.status,
        "retry_after": parse_retry_after(response.headers),
    }
    try:
        received = json.loads(response.body)
        redacted = _redact(received, secrets)
    # A body that isn't JSON, such as the HTML page of an intermediary, has no fields.
    except (ValueError, RecursionError):
        return attributes
    if isinstance(redacted, dict):
        # A code is never secret, and the retry decision needs it. So it is kept even if a secret text of the
        # request, such as the name of a user, occurs in it.
        redacted |= {k: received[k] for k in _CODE_FIELDS if _CODE_FORMAT.fullmatch(str(received.get(k)))}
        attributes.update({k: redacted[k] for k in _ERROR_FIELDS if isinstance(redacted.get(k), str)})
        attributes["causes"] = tuple(redacted["causes"]) if isinstance(redacted.get("causes"), list) else ()
    return attributes


def _secrets_of_request(request: object, secret: Hidden[str]) -> list[str]:
    """Return the caller's secret and the secrets in the request, which a server may quote in an error."""
    return [secret.reveal(), *models.secrets_in(request)]


def redact_request_secrets(text: str, request: object, secret: Hidden[str]) -> str:
    """Return a server's text without the caller's secret and the secrets of the request."""
    redacted: str = _redact(text, _secrets_of_request(request, secret))
    return redacted


def _redact(value: Any, secrets: Iterable[str]) -> Any:
    """Return JSON whose texts are redacted, because a server may quote the request in its error."""
    if isinstance(value, dict):
        return {_redact(k, secrets): _redact(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_redact(v, secrets) for v in value]
    return escape_surrogates(redact_secrets(value, secrets)) if isinstance(value, str) else value


def _error_text(response: RawResponse, attributes: Mapping[str, Any]) -> str:
    if "error_code" not in attributes:
        return f"the server responded with {response.status}, without a Plaid error code"
    server = "the gateway" if attributes.get("error_type") == GATEWAY_ERROR else "Plaid"
    code, message = attributes["error_code"], attributes.get("error_message") or "no message"
    return f"{server} responded with {code}: {message}"


# A larger number would become infinity, with which no time can be calculated.
_MAX_DELAY: Final = sys.float_info.max


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay in seconds that `Retry-After` requests, or `None` if it is missing or invalid.

    A date is compared with the response's own `Date`, so that the two clocks needn't agree
    (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after).
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _MAX_DELAY)
    date, now = _parse_http_date(value), _parse_http_date(headers.get("Date", "")) or datetime.now(UTC)
    return None if date is None else max(0.0, (date - now).total_seconds())


def _parse_http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # a year or an offset that datetime can't represent
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
