"""Records to bytes and bytes to records or errors, without any I/O.

Here stands the endpoint table, and here is decided what an answer means. Whether an error is worth another
attempt is decided in `transport`.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import cattrs
from attrs import Attribute, define, field, fields, frozen
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from plaid_relay_async import models
from plaid_relay_async.errors import (
    Hidden,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    ResponseDecodeError,
    class_for,
    perhaps_carried_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Q = TypeVar("Q")
R = TypeVar("R")

# --------------------------------------------------------------------------------------- the endpoints


class Replay(enum.Enum):
    """What a second attempt would do, once the first may have been carried out."""

    HARMLESS = "a read: it may be repeated"
    IDEMPOTENT = "it may be repeated, and the repeat may be told that there is nothing left to do"
    CREATES = "a second one would make a second thing: it may not be repeated"


@frozen
class Endpoint(Generic[Q, R]):
    """One operation: where it is, what goes in and out, whether it may be repeated, whether it is slow."""

    path: str
    request: type[Q]
    response: type[R]
    replay: Replay
    slow: bool = False


RELAY_CREATE: Final = Endpoint(
    "/credit/relay/create",
    models.RelayCreateRequest,
    models.RelayCreateResponse,
    Replay.CREATES,
    slow=True,
)
RELAY_GET: Final = Endpoint(
    "/credit/relay/get",
    models.RelayGetRequest,
    models.AssetReportGetResponse,
    Replay.HARMLESS,
    slow=True,
)
RELAY_PDF_GET: Final = Endpoint(
    "/credit/relay/pdf/get",
    models.RelayPdfGetRequest,
    models.PdfResponse,
    Replay.HARMLESS,
    slow=True,
)
RELAY_REFRESH: Final = Endpoint(
    "/credit/relay/refresh",
    models.RelayRefreshRequest,
    models.RelayRefreshResponse,
    Replay.CREATES,
    slow=True,
)
RELAY_REMOVE: Final = Endpoint(
    "/credit/relay/remove",
    models.RelayRemoveRequest,
    models.RelayRemoveResponse,
    Replay.IDEMPOTENT,
)
ASSET_REPORT_CREATE: Final = Endpoint(
    "/asset_report/create",
    models.AssetReportCreateRequest,
    models.AssetReportCreateResponse,
    Replay.CREATES,
    slow=True,
)
ASSET_REPORT_GET: Final = Endpoint(
    "/asset_report/get",
    models.AssetReportGetRequest,
    models.AssetReportGetResponse,
    Replay.HARMLESS,
    slow=True,
)
SANDBOX_PUBLIC_TOKEN_CREATE: Final = Endpoint(
    "/sandbox/public_token/create",
    models.SandboxPublicTokenCreateRequest,
    models.SandboxPublicTokenCreateResponse,
    Replay.CREATES,
)
# Whether a public token can be exchanged twice isn't published, so a lost exchange is not repeated.
ITEM_PUBLIC_TOKEN_EXCHANGE: Final = Endpoint(
    "/item/public_token/exchange",
    models.ItemPublicTokenExchangeRequest,
    models.ItemPublicTokenExchangeResponse,
    Replay.CREATES,
)

ENDPOINTS: Final[tuple[Endpoint[Any, Any], ...]] = (
    RELAY_CREATE,
    RELAY_GET,
    RELAY_PDF_GET,
    RELAY_REFRESH,
    RELAY_REMOVE,
    ASSET_REPORT_CREATE,
    ASSET_REPORT_GET,
    SANDBOX_PUBLIC_TOKEN_CREATE,
    ITEM_PUBLIC_TOKEN_EXCHANGE,
)


@define(repr=False)
class Answer:
    """What came back for one attempt; `lost` says why, where the body isn't whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray = field(factory=bytearray)
    lost: PlaidRelayError | None = None


# --------------------------------------------------------------------------------------- the converter


def _exactly(cls: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not cls:
            raise TypeError(f"expected {cls.__name__}")
        return value

    return structure


def _decimal(value: Any, _: Any) -> Decimal:
    if type(value) is Decimal:
        return value
    if type(value) is int:
        return Decimal(value)
    raise TypeError("expected a number")


def _datetime(value: Any, _: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _structure_tuple(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], tuple[Any, ...]]:
    as_list = list[cls.__args__[0]]
    base = converter.get_structure_hook(as_list)

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise TypeError("expected a list")
        return tuple(base(value, as_list))

    return structure


def _names(cls: type) -> set[str]:
    return {a.name for a in fields(cls) if a.name != "additional_properties" and "ours" not in a.metadata}


def _structure_record(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    known = _names(cls)
    left_out = {a.name: override(omit=True) for a in fields(cls) if a.name not in known}
    base = make_dict_structure_fn(cls, converter, **left_out)  # type: ignore[arg-type]  # each one is an override

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError("expected an object")
        record = base(value, cls)
        record.additional_properties.update({k: value[k] for k in value.keys() - known})
        return record

    return structure


def _omitted_if_default(attribute: Attribute[Any]) -> bool:
    return attribute.default is None or attribute.default is False


def _unstructure_record(cls: Any, converter: cattrs.Converter) -> Callable[[Any], dict[str, Any]]:
    known = _names(cls)
    how = {
        a.name: override(omit=True) if a.name not in known else override(omit_if_default=True)
        for a in fields(cls)
        if a.name not in known or _omitted_if_default(a)
    }
    base = make_dict_unstructure_fn(cls, converter, **how)  # type: ignore[arg-type]  # each one is an override

    def unstructure(record: Any) -> dict[str, Any]:
        return {**base(record), **getattr(record, "additional_properties", {})}

    return unstructure


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True, unstruct_collection_overrides={tuple: list})
    for cls in (str, int, bool):
        converter.register_structure_hook(cls, _exactly(cls))
    converter.register_structure_hook(Decimal, _decimal)
    converter.register_structure_hook(date, lambda value, _: date.fromisoformat(value))
    converter.register_structure_hook(datetime, _datetime)
    converter.register_unstructure_hook(date, date.isoformat)
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_structure_hook_factory(
        lambda cls: getattr(cls, "__origin__", None) is tuple, _structure_tuple
    )
    converter.register_structure_hook_factory(models.is_record, _structure_record)
    converter.register_unstructure_hook_factory(models.is_record, _unstructure_record)
    return converter


converter: Final = _make_converter()


def encode(record: object, more: Mapping[str, str]) -> bytes:
    """Turn a request into the body of an HTTP request, with what goes beside its fields."""
    return json.dumps({**converter.unstructure(record), **more}, separators=(",", ":")).encode()


# ------------------------------------------------------------------------------------ what comes back


def read(endpoint: Endpoint[Any, R], answer: Answer, request: object, secret: Hidden[str]) -> R:
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
        raise _refusal(endpoint, answer, (secret.reveal(), *models.secrets_in(request)))
    if endpoint.replay is Replay.CREATES:
        return _read_creation(endpoint, answer)
    if answer.lost is not None:
        raise answer.lost
    return _decode(endpoint, answer)


def _read_creation(endpoint: Endpoint[Any, R], answer: Answer) -> R:
    try:
        return _decode(endpoint, answer)
    except ResponseDecodeError as error:
        problem = "broke off" if answer.lost else f"can't be read: {error.args[0]}"
    saved = _salvage(endpoint.response, answer.body)
    if saved is not None:
        return saved
    raise OutcomeUnknownError(
        f"Plaid answered {answer.status}, and the answer {problem}",
        status=answer.status,
        request_id=_string_in("request_id", answer.body),
        body=Hidden(bytes(answer.body)),
    )


def _salvage(response: type[R], body: bytes | bytearray) -> R | None:
    # A token that can be read was made, whatever else is wrong with the answer around it.
    if "relay_token" not in _names(response):
        return None
    token = _string_in("relay_token", body)
    return response(relay_token=token, request_id=_string_in("request_id", body)) if token else None  # type: ignore[call-arg]  # the two records that have a relay_token


def _string_in(name: str, body: bytes | bytearray) -> str | None:
    found = re.search(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)+")' % name.encode(), body)
    if found is None:
        return None
    try:
        return str(json.loads(found[1]))
    except ValueError:
        return None


def _decode(endpoint: Endpoint[Any, R], answer: Answer) -> R:
    if endpoint.response is models.PdfResponse:
        return _pdf(answer)  # type: ignore[return-value]  # R is PdfResponse here
    try:
        return converter.structure(_parse(answer.body), endpoint.response)
    except (cattrs.BaseValidationError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        problem, _, path = _problem(error).rpartition(" @ ")
    raise ResponseDecodeError(
        f"{problem} at {path}",
        path=path,
        status=answer.status,
        request_id=_string_in("request_id", answer.body),
        body=Hidden(bytes(answer.body)),
    )


def _pdf(answer: Answer) -> models.PdfResponse:
    if answer.body.startswith(b"%PDF-"):
        return models.PdfResponse(bytes(answer.body), answer.headers.get("Plaid-Request-ID"))
    raise ResponseDecodeError("the answer isn't a PDF", status=answer.status, body=Hidden(bytes(answer.body)))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} isn't a number in JSON")


def _parse(body: bytes | bytearray) -> Any:
    return json.loads(body, parse_float=Decimal, parse_constant=_no_constant)


def _problem(error: Exception) -> str:
    # cattrs names the place; the texts of others may quote the answer, and so aren't used.
    if isinstance(error, cattrs.BaseValidationError):
        return cattrs.transform_error(error, path="$")[0]
    return "not an object @ $" if isinstance(error, TypeError) else "the answer isn't JSON @ $"


# ---------------------------------------------------------------------------------------------- errors

# Plaid's tokens are `[type]-[environment]-[id]` (https://plaid.com/docs/quickstart/glossary/).
_TOKEN_LIKE = re.compile(r"\b[a-z][a-z-]*-(?:sandbox|production|development)-[\w-]+")
_SHORTEST_SECRET = 4  # shorter ones, in tests alone, would be found inside of ordinary words
_QUOTED = (
    "error_type",
    "error_code",
    "error_message",
    "display_message",
    "request_id",
    "documentation_url",
    "suggested_action",
)


def _refusal(endpoint: Endpoint[Any, Any], answer: Answer, secrets: Iterable[str]) -> PlaidRelayError:
    facts = _error_facts(answer, secrets)
    cls = class_for(facts.get("error_type"), facts.get("error_code"), answer.status)
    error = cls(_error_text(answer, facts), **facts)
    if 300 <= answer.status < 400:
        error.advice = "Redirects aren't followed, for they would carry the secret elsewhere: mend base_url."
    if endpoint.replay is Replay.CREATES and perhaps_carried_out(error):
        known = {name: facts[name] for name in facts if hasattr(OutcomeUnknownError, name)}
        return OutcomeUnknownError(str(error.args[0]), **known)
    return error


def _error_facts(answer: Answer, secrets: Iterable[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"status": answer.status, "retry_after": retry_after(answer.headers)}
    try:
        told = json.loads(answer.body)
        told = _scrubbed(told, [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET])
    except (ValueError, RecursionError):
        return facts
    if isinstance(told, dict):
        facts.update({k: told[k] for k in _QUOTED if isinstance(told.get(k), str)})
        facts["causes"] = tuple(told["causes"]) if isinstance(told.get("causes"), list) else ()
    return facts


def _scrubbed(value: Any, secrets: Iterable[str]) -> Any:
    """Take out of JSON what must not be shown: a server may quote the request in its error."""
    if isinstance(value, dict):
        return {_scrubbed(k, secrets): _scrubbed(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_scrubbed(v, secrets) for v in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "[hidden]")
    return _TOKEN_LIKE.sub("[hidden]", value)


def _error_text(answer: Answer, facts: Mapping[str, Any]) -> str:
    if "error_code" not in facts:
        return f"the server answered {answer.status} without an error of Plaid's"
    return f"Plaid answered {facts['error_code']}: {facts.get('error_message') or 'no message'}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Give the delay that the server asked for, in seconds from now; `None` where it gave no usable one.

    A date is held against the answer's own `Date`, so that the two clocks needn't agree
    (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after).
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    until, now = _http_date(value), _http_date(headers.get("Date", "")) or datetime.now(UTC)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_GONE = re.compile("INVALID_.*TOKEN")


def says_no_such_token(error: PlaidAPIError) -> bool:
    """Tell whether Plaid refused because it knows no such token.

    The code for a relay token isn't published; its siblings are all called `INVALID_…_TOKEN`.
    """
    return error.error_type == "INVALID_INPUT" and bool(_GONE.fullmatch(error.error_code or ""))
