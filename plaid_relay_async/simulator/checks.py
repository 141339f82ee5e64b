"""What a request must hold: credentials, and the fields of each body, told as plain tables.

A check is a function of a field's name and its value that raises INVALID_FIELD. The tables that use these are
in `operations`. Required, nullable and bounds follow Plaid's published schemas.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from attrs import evolve, frozen

from plaid_relay_async.simulator.api_errors import ApiError

_DATE_PATTERN = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

Check: TypeAlias = Callable[[str, Any], None]

API_VERSIONS = frozenset({"2020-09-14", "2019-05-29", "2018-05-22", "2017-03-08"})
"""https://plaid.com/docs/api/versioning/"""


@frozen
class Field:
    """One field of a body: how its value is checked, and whether it may be absent or null."""

    check: Check
    required: bool = False
    nullable: bool = False


Fields: TypeAlias = Mapping[str, Field]


def required(field: Field) -> Field:
    """The same field, which must be there."""
    return evolve(field, required=True)


def nullable(field: Field) -> Field:
    """The same field, which may be null."""
    return evolve(field, nullable=True)


def _invalid_field(name: str, wanted: str) -> ApiError:
    return ApiError("INVALID_FIELD", f"{name} must be {wanted}")


def string(*, max_length: int | None = None, allow_empty: bool = False) -> Field:
    """A string that is not empty, unless it may be, of at most `most` characters."""

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
        whole = url.scheme in {"http", "https"} and bool(url.hostname)
    except ValueError:  # such as an unclosed bracket
        whole = False
    if not whole:
        raise _invalid_field(name, "an http or https URL")


def _check_date(name: str, value: Any) -> None:
    try:
        # Which alone would take 20260630 and 2026-W27-2 too, from Python 3.11 on.
        good = _DATE_PATTERN.fullmatch(value) and date.fromisoformat(value)
    except (TypeError, ValueError):
        good = None
    if not good:
        raise _invalid_field(name, "a date such as 2026-06-30")


def _check_url_or_empty(name: str, value: Any) -> None:
    if value != "":
        _check_url(name, value)


BOOLEAN = Field(_check_boolean)
URL = Field(_check_url)
URL_OR_EMPTY = Field(_check_url_or_empty)
DATE = Field(_check_date)


def integer(minimum: float = -math.inf, maximum: float = math.inf) -> Field:
    """An integer in the given bounds, both included."""
    least, most = (
        f" from {minimum}" if minimum > -math.inf else "",
        f" to {maximum}" if maximum < math.inf else "",
    )
    wanted = f"an integer{least}{most}"

    def check(name: str, value: Any) -> None:
        # To Python a boolean is an integer, to JSON it is not.
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _invalid_field(name, wanted)

    return Field(check)


def one_of(*values: str) -> Field:
    """One of some strings."""

    def check(name: str, value: Any) -> None:
        if value not in values:
            raise _invalid_field(name, f"one of: {', '.join(values)}")

    return Field(check)


def list_of(field: Field, min_length: int = 0, max_length: int | None = None) -> Field:
    """A list of values that each pass the field's own check."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise _invalid_field(name, "a list")
        if len(value) < min_length:
            raise _invalid_field(name, f"a list of at least {min_length}")
        if max_length is not None and len(value) > max_length:
            raise _invalid_field(name, f"a list of at most {max_length}")
        for place, entry in enumerate(value):
            field.check(f"{name}[{place}]", entry)

    return Field(check)


def json_object(fields: Fields, *, closed: bool = True) -> Field:
    """An object with fields of its own, and others too unless it is closed."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _invalid_field(name, "an object")
        known = value if closed else {key: value[key] for key in value if key in fields}
        check_fields(fields, known, within=f"{name}.")

    return Field(check)


def check_fields(fields: Fields, body: Mapping[str, Any], *, within: str = "") -> None:
    """Refuse a body that lacks a field, has one too many, or holds a value that is not allowed."""
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
    """The caller's client_id, once it has proved itself.

    Args:
        client_id: As it came, from a header or the body.
        secret: The same.
        clients: The secret of each client; None takes any.
    """
    given = {"client_id": client_id, "secret": secret}
    missing = [name for name, value in given.items() if value is None or value == ""]
    if missing:
        raise ApiError("MISSING_FIELDS", f"the following required fields are missing: {', '.join(missing)}")
    for name, value in given.items():
        string().check(name, value)
    if clients is not None and clients.get(client_id) != secret:
        raise ApiError("INVALID_API_KEYS")
    return str(client_id)


def check_version(version: str | None) -> None:
    """Refuse a Plaid-Version that was never published.

    That Plaid answers INCOMPATIBLE_API_VERSION to it is our choice: what it does is not published. Without
    the header Plaid takes the Dashboard's default, so that is fine.
    """
    if version is not None and version not in API_VERSIONS:
        raise ApiError("INCOMPATIBLE_API_VERSION")
