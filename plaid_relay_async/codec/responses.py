"""What an answer means: a record, or an exception."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import define, evolve, field

from plaid_relay_async import models
from plaid_relay_async.codec.endpoints import Endpoint, Idempotency
from plaid_relay_async.codec.records import (
    DECODE_ERRORS,
    decode_record,
    describe_decode_error,
    plaid_field_names,
)
from plaid_relay_async.errors import (
    Certainty,
    Hidden,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    ResponseDecodeError,
    certainty_of,
    error_class_for,
    escape_surrogates,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

R = TypeVar("R")


# Readers of PDFs look for the end within so many bytes, and so do we.
PDF_TAIL_BYTES: Final = 1024


@define(repr=False)
class RawResponse:
    """What came back for one attempt; `lost` says why, where the body isn't whole."""

    status: int
    headers: Mapping[str, str]
    body: bytearray = field(factory=bytearray)
    body_error: PlaidRelayError | None = None

    def keep_ends(self) -> None:
        """Forget the middle of a long body that went elsewhere: its ends tell whether it is a whole PDF."""
        del self.body[PDF_TAIL_BYTES:-PDF_TAIL_BYTES]


def read_response(endpoint: Endpoint[Any, R], answer: RawResponse, request: object, secret: Hidden[str]) -> R:
    """Turn an answer into its record, or raise what it means.

    Args:
        endpoint: what was called.
        answer: what came back.
        request: what was sent; its tokens are taken out of what an error quotes from the server.
        secret: the caller's, for the same reason.

    Raises:
        OutcomeUnknownError: Plaid may have made something, and the answer doesn't tell what.
        PlaidAPIError: the answer says that nothing was carried out, or the call only reads.
        ConnectionLostError: the answer to a read broke off; it is the answer's `lost`.
        ResponseDecodeError: the answer to a read isn't what it should be.
    """
    if not 200 <= answer.status < 300:
        raise _error_of_response(endpoint, answer, _secrets_of_request(request, secret))
    try:
        return _read_success(endpoint, answer)
    except (ResponseDecodeError, OutcomeUnknownError) as error:
        error.request_id = _redact(error.request_id, _secrets_of_request(request, secret))
        raise


def _read_success(endpoint: Endpoint[Any, R], answer: RawResponse) -> R:
    if endpoint.idempotency is Idempotency.NON_IDEMPOTENT:
        return _read_creation(endpoint, answer)
    if answer.body_error is not None:
        raise answer.body_error
    return _decode_body(endpoint, answer)


def _read_creation(endpoint: Endpoint[Any, R], answer: RawResponse) -> R:
    try:
        return _decode_body(endpoint, answer)
    except ResponseDecodeError as error:
        problem = (
            f"isn't whole: {answer.body_error.args[0]}"
            if answer.body_error
            else f"can't be read: {error.args[0]}"
        )
    saved = _recover_token(endpoint.response, answer.body)
    if saved is not None:
        return saved
    raise OutcomeUnknownError(
        f"Plaid answered {answer.status}, and the answer {problem}",
        status=answer.status,
        request_id=_find_string("request_id", answer.body),
        body=Hidden(bytes(answer.body)),
    )


def _recover_token(response: type[R], body: bytes | bytearray) -> R | None:
    # A token that can be read was made, whatever else is wrong with the answer around it.
    if "relay_token" not in plaid_field_names(response):
        return None
    token = _find_string("relay_token", body)
    return response(relay_token=token, request_id=_find_string("request_id", body)) if token else None  # type: ignore[call-arg]  # the two records that have a relay_token


def request_id_of(response: RawResponse) -> str | None:
    """Give Plaid's id of the request, from wherever it stands: for a PDF in the headers, else in the body."""
    return response.headers.get("Plaid-Request-ID") or _find_string("request_id", response.body)


def _find_string(name: str, body: bytes | bytearray) -> str | None:
    # Possessive, so that a string without an end is read once, and no positions are kept to backtrack to.
    found = re.search(rb'"%s"\s*+:\s*+("(?=[^"])[^"\\]*+(?:\\.[^"\\]*+)*+")' % name.encode(), body)
    if found is None:
        return None
    try:
        return str(json.loads(found[1]))
    except ValueError:
        return None


def _decode_body(endpoint: Endpoint[Any, R], answer: RawResponse) -> R:
    if endpoint.response is models.PdfResponse:
        return _read_pdf(answer)  # type: ignore[return-value]  # R is PdfResponse here
    try:
        record = decode_record(answer.body, endpoint.response)
    except DECODE_ERRORS as error:
        problem, path = describe_decode_error(error)
    else:
        return _with_raw(record, answer)
    raise ResponseDecodeError(
        f"{problem} at {path}",
        path=path,
        status=answer.status,
        request_id=_find_string("request_id", answer.body),
        body=Hidden(bytes(answer.body)),
    )


def _with_raw(record: R, answer: RawResponse) -> R:
    if not hasattr(record, "raw"):
        return record
    return evolve(record, raw=Hidden(bytes(answer.body)))  # type: ignore[misc]  # the one record that has it


def _read_pdf(answer: RawResponse) -> models.PdfResponse:
    if answer.body.startswith(b"%PDF-") and b"%%EOF" in answer.body[-PDF_TAIL_BYTES:]:
        return models.PdfResponse(bytes(answer.body), answer.headers.get("Plaid-Request-ID"))
    whole = "whole" if answer.body.startswith(b"%PDF-") else "a PDF"
    raise ResponseDecodeError(
        f"the answer isn't {whole}",
        status=answer.status,
        request_id=request_id_of(answer),
        body=Hidden(bytes(answer.body)),
    )


# ---------------------------------------------------------------------------------------------- errors

# Plaid's tokens are `[type]-[environment]-[id]` (https://plaid.com/docs/quickstart/glossary/).
_TOKEN_FORMAT = re.compile(r"[a-z-]-(?:sandbox|production|development)-[\w-]")
_TOKEN_CHARACTERS = re.compile(r"[\w-]++")
_MIN_REDACTED_LENGTH = 4  # shorter ones, in tests alone, would be found inside of ordinary words
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


def contains_token(text: str) -> bool:
    """Tell whether there is something in a word that has the form of Plaid's tokens."""
    return _TOKEN_FORMAT.search(text) is not None


def _error_of_response(
    endpoint: Endpoint[Any, Any], answer: RawResponse, secrets: Iterable[str]
) -> PlaidRelayError:
    facts = _error_attributes(answer, secrets)
    cls = error_class_for(facts.get("error_type"), facts.get("error_code"), answer.status)
    error = cls(_error_text(answer, facts), **facts)
    if error.error_type == "GATEWAY_ERROR" and error.suggested_action:
        error.advice = error.suggested_action
    if 300 <= answer.status < 400:
        error.advice = "Redirects aren't followed, for they would carry the secret elsewhere: mend base_url."
    if endpoint.idempotency is Idempotency.NON_IDEMPOTENT and certainty_of(error) is Certainty.IN_DOUBT:
        known = {name: facts[name] for name in facts if hasattr(OutcomeUnknownError, name)}
        return OutcomeUnknownError(str(error.args[0]), **known)
    return error


def _error_attributes(answer: RawResponse, secrets: Iterable[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"status": answer.status, "retry_after": parse_retry_after(answer.headers)}
    try:
        said = json.loads(answer.body)
        told = _redact(said, secrets)
    except (ValueError, RecursionError):
        return facts
    if isinstance(told, dict):
        # A code is no secret, even where a person's name is a part of one; and much depends on it.
        told |= {k: said[k] for k in _CODE_FIELDS if _CODE_FORMAT.fullmatch(str(said.get(k)))}
        facts.update({k: told[k] for k in _ERROR_FIELDS if isinstance(told.get(k), str)})
        facts["causes"] = tuple(told["causes"]) if isinstance(told.get("causes"), list) else ()
    return facts


def _secrets_of_request(request: object, secret: Hidden[str]) -> list[str]:
    """Give what a server knows of the caller and must not quote to anybody."""
    known = (secret.reveal(), *models.secrets_in(request))
    return [word for word in known if len(word) >= _MIN_REDACTED_LENGTH]


def _redact(value: Any, secrets: Iterable[str]) -> Any:
    """Take out of JSON what must not be shown: a server may quote the request in its error."""
    if isinstance(value, dict):
        return {_redact(k, secrets): _redact(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_redact(v, secrets) for v in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "[hidden]")
    return escape_surrogates(_TOKEN_CHARACTERS.sub(_redact_token, value))


def _redact_token(word: re.Match[str]) -> str:
    return "[hidden]" if contains_token(word[0]) else word[0]


def _error_text(answer: RawResponse, facts: Mapping[str, Any]) -> str:
    if "error_code" not in facts:
        return f"the server answered {answer.status} without an error of Plaid's"
    who = "the gateway" if facts.get("error_type") == "GATEWAY_ERROR" else "Plaid"
    return f"{who} answered {facts['error_code']}: {facts.get('error_message') or 'no message'}"


# A larger number would be infinity, with which no time can be calculated.
_MAX_DELAY: Final = sys.float_info.max


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Give the delay that the server asked for, in seconds from now; `None` where it gave no usable one.

    A date is held against the answer's own `Date`, so that the two clocks needn't agree
    (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after).
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _MAX_DELAY)
    until, now = _parse_http_date(value), _parse_http_date(headers.get("Date", "")) or datetime.now(UTC)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _parse_http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # a year or an offset that datetime can't hold
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_INVALID_TOKEN_CODE = re.compile("INVALID_.*TOKEN")


def is_unknown_token_error(error: PlaidAPIError) -> bool:
    """Tell whether Plaid refused because it knows no such token.

    The code for a relay token isn't published; its siblings are all called `INVALID_…_TOKEN`. Of an Item that
    was removed it may say ITEM_NOT_FOUND as well (https://plaid.com/docs/errors/item/#item_not_found).
    """
    if error.error_code == "ITEM_NOT_FOUND":
        return True
    return error.error_type == "INVALID_INPUT" and bool(_INVALID_TOKEN_CODE.fullmatch(error.error_code or ""))
