"""Who comes in: from a request's head and body to a caller and what may go on to Plaid; no I/O."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion11
from attrs import frozen

from plaid_relay_async.codec import ENDPOINTS, RELAY_CREATE, Endpoint
from plaid_relay_async.codec.records import plaid_field_names
from plaid_relay_async.config import is_loopback, normalize_host
from plaid_relay_async.errors import Hidden
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.error_responses import GatewayError
from plaid_relay_async.gateway.keys import find_key, unique_members

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from aiohttp import web

    from plaid_relay_async.gateway.keys import Key


def _fold_name(name: str) -> str:
    # A server that ignores case, separators or invisible characters, normalizes, or ends a name at a NUL,
    # would read the member that wasn't checked.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\W_]+", "", folded)


_PLAID_MEMBERS: Final = frozenset({"client_id", "secret"}).union(
    *(plaid_field_names(each.request) for each in ENDPOINTS)
)
_FOLDED_MEMBERS: Final = frozenset(map(_fold_name, _PLAID_MEMBERS))
_BY_PATH: Final = {endpoint.path: endpoint for endpoint in ENDPOINTS}
# Of two that differ the next server may take the other one.
_SINGLE_HEADERS: Final = frozenset(
    {
        "host",
        "origin",
        "authorization",
        "plaid-client-id",
        "plaid-secret",
        "plaid-version",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
    }
)
# What else may stand there aiohttp passes over, and the next server may not.
_ONLY_VALUES: Final = {"transfer-encoding": "chunked", "expect": "100-continue"}
# A name or an address, and a port: no more, for what else stands there may be read in two ways.
_HOST_PATTERN: Final = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)


@frozen
class ParsedBody:
    """What a caller sent, parsed: its key where that stood in the body, and what may go on to Plaid."""

    key: Hidden[str] | None
    body: Hidden[bytes]
    partner: str | None


@frozen
class RequestTarget:
    """What a request is for.

    Attributes:
        host: with its port, as it was sent.
        path: with its query, as it was sent.
    """

    host: str
    path: str


def request_target(request: web.BaseRequest) -> RequestTarget:
    """Return what a request is for: a target in absolute form has the host, and Host counts in no other form.

    RFC 9112 3.2.2 requires servers to accept that form, and 3.2 a Host beside it from HTTP/1.1 on.
    """
    hosts = request.headers.getall("Host", [])
    absolute = _ABSOLUTE_FORM.fullmatch(request.raw_path)
    if absolute is not None and (hosts or request.version < HttpVersion11):
        return RequestTarget(absolute[1], absolute[2] or "/")
    return RequestTarget(",".join(hosts), request.raw_path)


def check_host(target: RequestTarget, allowed_hosts: Collection[str]) -> None:
    """Refuse a host that isn't ours: a page elsewhere may have its own name lead to this address.

    Raises:
        RefusedError: HOST_NOT_ALLOWED.
    """
    name = _parse_host(target.host)
    if name is None or not (is_loopback(name) or name in allowed_hosts):
        raise GatewayError(error_responses.HOST_NOT_ALLOWED)


def _parse_host(host: str) -> str | None:
    found = _HOST_PATTERN.fullmatch(host)
    try:
        return normalize_host(found[1].strip("[]")) if found else None
    except ValueError:
        return None


def check_origin(request: web.BaseRequest, target: RequestTarget) -> None:
    """Refuse what a page of another origin has a browser send.

    Raises:
        RefusedError: ORIGIN_NOT_ALLOWED.
    """
    headers = request.headers
    origin = headers.get("Origin")
    # Behind a proxy that ends TLS the schemes differ, and the host is the same.
    foreign = origin is not None and origin.lower().partition("://")[2] != target.host.lower()
    if foreign or headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        raise GatewayError(error_responses.ORIGIN_NOT_ALLOWED)


def find_endpoint(method: str, path: str) -> Endpoint[Any, Any]:
    """Give the operation at exactly this path.

    Raises:
        RefusedError: NOT_FOUND, METHOD_NOT_ALLOWED.
    """
    endpoint = _BY_PATH.get(path)
    if endpoint is None:
        raise GatewayError(error_responses.NOT_FOUND)
    if method != "POST":
        raise GatewayError(error_responses.METHOD_NOT_ALLOWED)
    return endpoint


def check_headers(request: web.BaseRequest) -> None:
    """Refuse what could be read in two ways, and what a form of a web page could send.

    Raises:
        RefusedError: INVALID_HEADERS, UNSUPPORTED_MEDIA_TYPE.
    """
    headers = request.headers
    twice = any(len(headers.getall(name, [])) > 1 for name in _SINGLE_HEADERS)
    if twice or any(headers.get(name, only).lower() != only for name, only in _ONLY_VALUES.items()):
        raise GatewayError(error_responses.INVALID_HEADERS, closes_connection=True)
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or headers.get("Content-Encoding", "identity").lower() != "identity":
        raise GatewayError(error_responses.UNSUPPORTED_MEDIA_TYPE)


def key_from_headers(request: web.BaseRequest) -> Hidden[str] | None:
    """Give what stands in the place of a key in the headers, if anything does."""
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return Hidden(key.strip() if scheme.lower() == "bearer" else "")
    secret = request.headers.get("PLAID-SECRET")
    return None if secret is None else Hidden(secret)


def parse_body(body: Hidden[bytes]) -> ParsedBody:
    """Take a body apart, and write it anew without the caller's credentials.

    What is checked here is what Plaid reads: of a name that comes twice it might take the other value.

    Raises:
        RefusedError: INVALID_BODY, AMBIGUOUS_MEMBER.
    """
    try:
        fields = json.loads(
            body.reveal().decode(), object_pairs_hook=unique_members, parse_constant=_reject_json_constant
        )
        if any(name not in _PLAID_MEMBERS and _fold_name(name) in _FOLDED_MEMBERS for name in fields):
            raise GatewayError(error_responses.AMBIGUOUS_MEMBER)
        secret, _ = fields.pop("secret", None), fields.pop("client_id", None)
        partner = fields.get("secondary_client_id")
        plain = Hidden(json.dumps(fields, allow_nan=False).encode())
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise GatewayError(error_responses.INVALID_BODY) from None
    key = None if secret is None else Hidden(secret if isinstance(secret, str) else "")
    return ParsedBody(key, plain, partner if isinstance(partner, str) else None)


def _reject_json_constant(_: str) -> None:
    raise ValueError("not a number of JSON's")


def authenticate_key(keys: Iterable[Key], presented: Hidden[str] | None) -> Key:
    """Give the caller with this key.

    Raises:
        RefusedError: UNAUTHORIZED_KEY.
    """
    key = None if presented is None else find_key(keys, presented.reveal())
    if key is None:
        raise GatewayError(error_responses.UNAUTHORIZED_KEY)
    return key


def authorize_call(key: Key, endpoint: Endpoint[Any, Any], partner: str | None) -> None:
    """Refuse a call that the key isn't for.

    Raises:
        RefusedError: UNAUTHORIZED_OPERATION, PARTNER_NOT_ALLOWED.
    """
    if endpoint.path not in key.operations:
        raise GatewayError(error_responses.UNAUTHORIZED_OPERATION)
    if endpoint is RELAY_CREATE and key.partners is not None and partner not in key.partners:
        raise GatewayError(error_responses.PARTNER_NOT_ALLOWED)
