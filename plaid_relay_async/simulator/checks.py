"""Validation of requests: credentials, the API version, and the fields of a body.

A check is a function of a field's name and value that raises INVALID_FIELD. The tables of fields are in
`operations`. Required, nullable and bounds follow Plaid's published schemas.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from attrs import evolve, frozen

from plaid_relay_async.simulator.api_errors import ApiError

_DATE_PATTERN = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d", re.ASCII)

Check: TypeAlias = Callable[[str, Any], None]

API_VERSIONS = frozenset({"2020-09-14", "2019-05-29", "2018-05-22", "2017-03-08"})
"""https://plaid.com/docs/api/versioning/"""


@frozen
class Field:
    """A field of a body: the check of its value, whether it is required, and whether it may be null."""

    check: Check
    required: bool = False
    nullable: bool = False


Fields: TypeAlias = Mapping[str, Field]


def required(field: Field) -> Field:
    """Return the field as a required one."""
    return evolve(field, required=True)


def nullable(field: Field) -> Field:
    """Return the field as a nullable one."""
    return evolve(field, nullable=True)


def _invalid_field(name: str, requirement: str) -> ApiError:
    return ApiError("INVALID_FIELD", f"{name} must be {requirement}")


def string(*, max_length: int | None = None, allow_empty: bool = False) -> Field:
    """Return a field that holds a string of at most `max_length` characters."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not (value or allow_empty):
            raise _invalid_field(name, "a string" if allow_empty else "a non-empty string")
        if max_length is not None and len(value) > max_length:
            raise _invalid_field(name, f"of at most {max_length} characters")

    return Field(check)


def _check_boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _invalid_field(name, "a boolean")


def _check_url(name: str, value: Any) -> None:
    try:
        url = urlsplit(value if isinstance(value, str) else "")
        is_complete = url.scheme in {"http", "https"} and bool(url.hostname)
    except ValueError:  # such as an unclosed bracket
        is_complete = False
    if not is_complete:
        raise _invalid_field(name, "an http or https URL")


def _check_date(name: str, value: Any) -> None:
    try:
        # From Python 3.11 on, fromisoformat alone would accept 20260630 and 2026-W27-2 too.
        is_date = _DATE_PATTERN.fullmatch(value) and date.fromisoformat(value)
    except (TypeError, ValueError):
        is_date = None
    if not is_date:
        raise _invalid_field(name, "a date such as 2026-06-30")


def _check_url_or_empty(name: str, value: Any) -> None:
    if value != "":
        _check_url(name, value)


def _check_time(name: str, value: Any) -> None:
    try:
        # The form of RFC 3339, which Plaid's schemas name date-time. It has a time zone.
        is_time = _TIME_PATTERN.match(value) and datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        is_time = False
    if not is_time:
        raise _invalid_field(name, "a time such as 2026-06-30T12:00:00Z")


BOOLEAN = Field(_check_boolean)
URL = Field(_check_url)
URL_OR_EMPTY = Field(_check_url_or_empty)
DATE = Field(_check_date)
TIME = Field(_check_time)


def integer(minimum: float = -math.inf, maximum: float = math.inf) -> Field:
    """Return a field that holds an integer from `minimum` to `maximum`, both included."""
    lower = f" from {minimum}" if minimum > -math.inf else ""
    upper = f" to {maximum}" if maximum < math.inf else ""
    requirement = f"an integer{lower}{upper}"

    def check(name: str, value: Any) -> None:
        # A boolean is an integer in Python, but not in JSON.
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _invalid_field(name, requirement)

    return Field(check)


def one_of(*values: str) -> Field:
    """Return a field that holds one of some strings."""

    def check(name: str, value: Any) -> None:
        if value not in values:
            raise _invalid_field(name, f"one of: {', '.join(values)}")

    return Field(check)


def list_of(field: Field, min_length: int = 0, max_length: int | None = None) -> Field:
    """Return a field that holds a list of `min_length` to `max_length` values, each valid for `field`."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise _invalid_field(name, "a list")
        if len(value) < min_length:
            raise _invalid_field(name, f"a list of at least {min_length}")
        if max_length is not None and len(value) > max_length:
            raise _invalid_field(name, f"a list of at most {max_length}")
        for index, entry in enumerate(value):
            field.check(f"{name}[{index}]", entry)

    return Field(check)


def json_object(fields: Fields, *, closed: bool = True) -> Field:
    """Return a field that holds an object with these fields, and with others unless it is `closed`."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _invalid_field(name, "an object")
        checked = value if closed else {key: value[key] for key in value if key in fields}
        check_fields(fields, checked, within=f"{name}.")

    return Field(check)


def check_fields(fields: Fields, body: Mapping[str, Any], *, within: str = "") -> None:
    """Check the fields of a body, or of an object in it.

    Args:
        fields: the allowed fields.
        body: the body or object.
        within: the prefix of the fields' names in an error.

    Raises:
        ApiError: a required field is missing, a field is unknown, or a value is invalid; in this order.
    """
    missing = [within + name for name, field in fields.items() if field.required and name not in body]
    if missing:
        raise ApiError("MISSING_FIELDS", f"the following required fields are missing: {', '.join(missing)}")
    extra = [within + name for name in body if name not in fields]
    if extra:
        raise ApiError(
            "UNKNOWN_FIELDS", f"the following fields are not recognized by this endpoint: {', '.join(extra)}"
        )
    for name, value in body.items():
        field = fields[name]
        if value is not None or not field.nullable:
            field.check(within + name, value)


def check_credentials(client_id: Any, secret: Any, clients: Mapping[str, str] | None) -> str:
    """Return the caller's client_id, if the credentials are valid.

    Args:
        client_id: from a header or the body, not yet checked.
        secret: from a header or the body, not yet checked.
        clients: the secret of each client; None accepts any.

    Raises:
        ApiError: a credential is missing, not a string, or wrong.
    """
    credentials = {"client_id": client_id, "secret": secret}
    missing = [name for name, value in credentials.items() if value is None or value == ""]
    if missing:
        raise ApiError("MISSING_FIELDS", f"the following required fields are missing: {', '.join(missing)}")
    for name, value in credentials.items():
        string().check(name, value)
    if clients is not None and clients.get(client_id) != secret:
        raise ApiError("INVALID_API_KEYS")
    return str(client_id)


def check_version(version: str | None) -> None:
    """Raise ApiError for a Plaid-Version that was never published.

    Plaid doesn't publish how it responds to one: that it is INCOMPATIBLE_API_VERSION is our choice. The
    header is optional, because without it Plaid uses the default of the client's Dashboard.
    """
    if version is not None and version not in API_VERSIONS:
        raise ApiError("INCOMPATIBLE_API_VERSION")
