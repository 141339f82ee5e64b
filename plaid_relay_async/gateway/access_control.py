"""Access control: which request is accepted, who the caller is, and what is forwarded to Plaid.

These functions do no I/O. A request that two HTTP servers or two JSON parsers could read differently is
rejected, because otherwise Plaid could read other values than those that were checked here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion11
from attrs import frozen

from plaid_relay_async import models
from plaid_relay_async.codec import ENDPOINTS, RELAY_CREATE, Endpoint, unique_members
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.error_responses import GatewayError
from plaid_relay_async.gateway.keys import find_key
from plaid_relay_async.hosts import host_of_header, is_loopback
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from aiohttp import web

    from plaid_relay_async.gateway.keys import Key


def _fold_name(name: str) -> str:
    # A server that ignores case, separators or invisible characters, that normalizes names, or that ends a
    # name at a NUL, would accept a variant spelling as the member that was not checked.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\W_]+", "", folded)


_PLAID_MEMBERS: Final = frozenset({"client_id", "secret"}).union(
    *(models.plaid_field_names(endpoint.request_type) for endpoint in ENDPOINTS)
)
_FOLDED_MEMBERS: Final = frozenset(map(_fold_name, _PLAID_MEMBERS))
_BY_PATH: Final = {endpoint.path: endpoint for endpoint in ENDPOINTS}
# Headers that may occur only once: of two, the next server may use the other one.
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
# aiohttp ignores other values of these headers; the next server may not.
_ONLY_VALUES: Final = {"transfer-encoding": "chunked", "expect": "100-continue"}
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)


@frozen
class ParsedBody:
    """The body of a request.

    Attributes:
        key: the caller's key, if the body has a `secret`.
        body: what is forwarded to Plaid, without the caller's credentials.
        partner: the `secondary_client_id`, if it is a string.
    """

    key: Hidden[str] | None
    body: Hidden[bytes]
    partner: str | None


@frozen
class RequestTarget:
    """The host and the path of a request.

    Attributes:
        host: with its port, as it was sent.
        path: with its query, as it was sent.
    """

    host: str
    path: str


def request_target(request: web.BaseRequest) -> RequestTarget:
    """Return the host and the path of a request.

    A target in absolute form contains the host; only with other forms the Host header counts. RFC 9112 3.2.2
    requires servers to accept that form, and 3.2 requires a Host header as well from HTTP/1.1 on.
    """
    hosts = request.headers.getall("Host", [])
    absolute = _ABSOLUTE_FORM.fullmatch(request.raw_path)
    if absolute is not None and (hosts or request.version < HttpVersion11):
        return RequestTarget(absolute[1], absolute[2] or "/")
    return RequestTarget(",".join(hosts), request.raw_path)


def check_host(target: RequestTarget, allowed_hosts: Collection[str]) -> None:
    """Check that the host is the gateway's.

    This prevents DNS rebinding: the host name of another site may resolve to this address, so that a page of
    that site could call the gateway.

    Raises:
        GatewayError: HOST_NOT_ALLOWED.
    """
    name = host_of_header(target.host)
    if name is None or not (is_loopback(name) or name in allowed_hosts):
        raise GatewayError(error_responses.HOST_NOT_ALLOWED)


def check_origin(request: web.BaseRequest, target: RequestTarget) -> None:
    """Check that the request was not sent by a browser on behalf of a page of another origin.

    Raises:
        GatewayError: ORIGIN_NOT_ALLOWED.
    """
    headers = request.headers
    origin = headers.get("Origin")
    # Only the host is compared: behind a TLS-terminating proxy the schemes differ.
    foreign = origin is not None and origin.lower().partition("://")[2] != target.host.lower()
    if foreign or headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        raise GatewayError(error_responses.ORIGIN_NOT_ALLOWED)


def find_endpoint(method: str, path: str) -> Endpoint[Any, Any]:
    """Return the operation at exactly this path.

    Raises:
        GatewayError: NOT_FOUND, METHOD_NOT_ALLOWED.
    """
    endpoint = _BY_PATH.get(path)
    if endpoint is None:
        raise GatewayError(error_responses.NOT_FOUND)
    if method != "POST":
        raise GatewayError(error_responses.METHOD_NOT_ALLOWED)
    return endpoint


def check_headers(request: web.BaseRequest) -> None:
    """Check that the headers are unambiguous, and that the body is uncompressed JSON.

    An HTML form of another site can't send JSON.

    Raises:
        GatewayError: INVALID_HEADERS, UNSUPPORTED_MEDIA_TYPE.
    """
    headers = request.headers
    repeated = any(len(headers.getall(name, [])) > 1 for name in _SINGLE_HEADERS)
    if repeated or any(headers.get(name, value).lower() != value for name, value in _ONLY_VALUES.items()):
        raise GatewayError(error_responses.INVALID_HEADERS, closes_connection=True)
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    encoding = headers.get("Content-Encoding", "identity").lower()
    if content_type != "application/json" or encoding != "identity":
        raise GatewayError(error_responses.UNSUPPORTED_MEDIA_TYPE)


def key_from_headers(request: web.BaseRequest) -> Hidden[str] | None:
    """Return what a header presents as a key, or None if no header does."""
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return Hidden(key.strip() if scheme.lower() == "bearer" else "")
    secret = request.headers.get("PLAID-SECRET")
    return None if secret is None else Hidden(secret)


def parse_body(body: Hidden[bytes]) -> ParsedBody:
    """Parse a body, and serialize it again without the caller's credentials.

    Only what was parsed here is forwarded, so that Plaid reads the values that were checked.

    Raises:
        GatewayError: INVALID_BODY, AMBIGUOUS_MEMBER.
    """
    try:
        members = json.loads(
            body.reveal().decode(), object_pairs_hook=unique_members, parse_constant=_reject_json_constant
        )
        if any(name not in _PLAID_MEMBERS and _fold_name(name) in _FOLDED_MEMBERS for name in members):
            raise GatewayError(error_responses.AMBIGUOUS_MEMBER)
        secret, _ = members.pop("secret", None), members.pop("client_id", None)
        partner = members.get("secondary_client_id")
        forwarded = Hidden(json.dumps(members, allow_nan=False).encode())
    # AttributeError and TypeError: the body is JSON, but not an object.
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise GatewayError(error_responses.INVALID_BODY) from None
    key = None if secret is None else Hidden(secret if isinstance(secret, str) else "")
    return ParsedBody(key, forwarded, partner if isinstance(partner, str) else None)


def _reject_json_constant(_: str) -> None:
    # Python's parser accepts NaN and Infinity, which are not JSON.
    raise ValueError("not a JSON number")


def authenticate_key(keys: Iterable[Key], presented: Hidden[str] | None) -> Key:
    """Return the record of the key that a caller presented.

    Raises:
        GatewayError: UNAUTHORIZED_KEY.
    """
    key = None if presented is None else find_key(keys, presented.reveal())
    if key is None:
        raise GatewayError(error_responses.UNAUTHORIZED_KEY)
    return key


def authorize_call(key: Key, endpoint: Endpoint[Any, Any], partner: str | None) -> None:
    """Check that a key allows the operation and the partner of a call.

    Raises:
        GatewayError: UNAUTHORIZED_OPERATION, PARTNER_NOT_ALLOWED.
    """
    if endpoint.path not in key.operations:
        raise GatewayError(error_responses.UNAUTHORIZED_OPERATION)
    if endpoint is RELAY_CREATE and key.partners is not None and partner not in key.partners:
        raise GatewayError(error_responses.PARTNER_NOT_ALLOWED)
