"""Validators and field declarations of the records.

A validator, such as `is_url`, has the signature of an attrs validator and raises `RequestValidationError`,
which names the field. `is_text`, `is_whole_number`, `max_items` and `has_type` have arguments and return a
validator. A declaration, such as `optional_field`, returns an attrs field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeAlias, cast
from unicodedata import category
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, has, validators

from plaid_relay_async.display import escape_surrogates
from plaid_relay_async.errors import RequestValidationError

Validator: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]

# ------------------------------------------------------------------------------------ fields of requests


invalid = RequestValidationError.of

# Unicode's Quotation_Mark characters, without the apostrophe, which a URL may have (RFC 3986).
_QUOTES = (
    '"\u00ab\u00bb\u2018-\u201f\u2039\u203a\u2e42\u300c-\u300f\u301d-\u301f'
    "\ufe41-\ufe44\uff02\uff07\uff62\uff63"
)
_QUOTE = re.compile(f"[{_QUOTES}]")
_DELIMITER = re.compile(f"[{_QUOTES}',;]")
_ASCII_IDENTIFIER = re.compile(r"[!#-&(-+\--:<-~]+")  # the ASCII characters that an identifier may have


def check_identifier(name: str, value: object) -> None:
    """Raise `RequestValidationError` unless the value can be a single Plaid identifier, token or name.

    Plaid doesn't publish which characters these consist of, and may change them. So only characters that show
    that a value was misread are rejected: whitespace, control and formatting characters, quotes, `,` and `;`.

    Args:
        name: the field's name, for the error.
        value: the value.
    """
    # Most identifiers match this one pattern, which is faster than a check of each character.
    if isinstance(value, str) and _ASCII_IDENTIFIER.fullmatch(value):
        return
    _check_no_whitespace(name, value)
    if _DELIMITER.search(cast("str", value)):
        raise invalid(name, "contains a quote, a comma or a semicolon: pass one identifier, without quotes")


def _check_no_whitespace(name: str, value: object) -> None:
    check_text(name, value)
    if any(character.isspace() or category(character) in {"Cc", "Cf"} for character in cast("str", value)):
        raise invalid(name, "contains whitespace or control characters; remove them")


def check_text(name: str, value: object) -> None:
    """Raise `RequestValidationError` unless the value is a non-empty string without lone surrogates."""
    if not isinstance(value, str):
        raise invalid(name, f"must be a string, not {type(value).__name__}")
    if not value:
        raise invalid(name, "is empty")
    if not value.isascii() and escape_surrogates(value) != value:
        problem = "contains a lone surrogate, perhaps from bytes that were decoded with the wrong encoding"
        raise invalid(name, problem)


def is_identifier(_: object, attribute: Attribute[str], value: object) -> None:
    """Check that the value is one identifier, token or name; see `check_identifier`."""
    check_identifier(attribute.name, value)


def is_text(max_length: int | None = None) -> Validator:
    """Return a validator for free text of at most `max_length` characters; `None` sets no limit."""

    def check(_: object, attribute: Attribute[str], value: object) -> None:
        check_text(attribute.name, value)
        if max_length is not None and len(cast("str", value)) > max_length:
            raise invalid(attribute.name, f"has more than {max_length} characters")

    return check


def as_tuple(value: Iterable[str]) -> tuple[str, ...]:
    """Convert an iterable of strings to a tuple.

    A single string is an iterable of its characters, which is never what the caller means. It is returned
    unchanged, so that the validator rejects it.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return cast("tuple[str, ...]", value)
    return tuple(value)


def as_optional_tuple(value: Iterable[str] | None) -> tuple[str, ...] | None:
    """Convert an iterable of strings to a tuple; leave `None` as it is."""
    return None if value is None else as_tuple(value)


def are_identifiers(_: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is a tuple of one or more identifiers."""
    if not isinstance(value, tuple):
        raise invalid(
            attribute.name, f"must be a list of strings, not {type(value).__name__}: wrap it in a list"
        )
    if not value:
        raise invalid(attribute.name, "is empty")
    for index, identifier in enumerate(value):
        check_identifier(f"{attribute.name}[{index}]", identifier)


def one_token_per_report_type(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    """Check that there is at most one token of each report type.

    The Asset Report is the only type so far, and its tokens start with `assets-`.
    """
    if len(set(value)) < len(value):
        raise invalid(attribute.name, "contains the same token twice")
    if sum(token.startswith("assets-") for token in value) > 1:
        raise invalid(attribute.name, "contains two asset report tokens: a relay token shares one report")


def is_url(_: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is an http(s) URL with a host."""
    _check_no_whitespace(attribute.name, value)
    try:
        parts = urlsplit(str(value))
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable &= "\\" not in str(value)  # some parsers treat it as a slash
        # These show that the value is two URLs, or a URL in quotes.
        usable &= not (_DELIMITER.search(parts.hostname or "") or _QUOTE.search(str(value)))
    except ValueError:  # such as an unclosed bracket, or a port that isn't a number
        usable = False
    if not usable:
        raise invalid(attribute.name, "must be an http(s) URL")


def is_boolean(_: object, attribute: Attribute[bool], value: object) -> None:
    """Check that the value is `True` or `False`."""
    if not isinstance(value, bool):
        raise invalid(attribute.name, f"must be True or False, not {type(value).__name__}")


def is_whole_number(minimum: int, maximum: int) -> Validator:
    """Return a validator for an integer from `minimum` to `maximum`, both included."""

    def check(_: object, attribute: Attribute[Any], value: object) -> None:
        # To Python, True is an integer.
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise invalid(attribute.name, f"must be a whole number from {minimum} to {maximum}")

    return check


def max_items(limit: int, noun: str) -> Validator:
    """Return a validator for a tuple of at most `limit` items; `noun` names them in the error."""

    def check(_: object, attribute: Attribute[Any], value: tuple[object, ...]) -> None:
        if len(value) > limit:
            raise invalid(attribute.name, f"has {len(value)} {noun}: the limit is {limit}")

    return check


def has_type(cls: type) -> Validator:
    """Return a validator for a value of exactly this class, such as a record or a date."""

    def check(_: object, attribute: Attribute[Any], value: object) -> None:
        # A datetime is a date too, but not one that Plaid accepts.
        if type(value) is not cls:
            raise invalid(attribute.name, f"must be of type {cls.__name__}, not {type(value).__name__}")

    return check


def check_json_value(name: str, value: object) -> None:
    """Check that JSON can represent the value; a Decimal counts as a number.

    Raises:
        RequestValidationError: a key or a value is invalid.
        RecursionError: the value is nested too deeply.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_text(f"a name in {name}", key)
            check_json_value(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_json_value(f"{name}[{index}]", inner)
    elif isinstance(value, float | Decimal):
        if not Decimal(value).is_finite():
            raise invalid(name, "must be a finite number")
    elif not isinstance(value, str | int | None):
        raise invalid(name, f"must be a JSON value, not {type(value).__name__}")


def is_report_type(_: object, attribute: Attribute[str], value: object) -> None:
    """Check that the value is `"asset"`, the only type of report that Plaid relays."""
    if value != "asset":
        raise invalid(attribute.name, "must be 'asset', the only type that Plaid relays")


def optional_field(validator: Validator, *, repr: bool = True) -> Any:  # noqa: A002  # attrs' own name for it
    """Declare an optional field of a request: a value is checked, and `None` is not sent."""
    return field(default=None, validator=validators.optional(validator), kw_only=True, repr=repr)


def boolean_field() -> Any:
    """Declare a boolean field of a request; the default is `False`."""
    return field(default=False, validator=is_boolean, kw_only=True)


def report_type_field() -> Any:
    """Declare the type of the report that is relayed."""
    return field(default="asset", validator=is_report_type, kw_only=True)


def secrets_in(record: Any) -> Iterator[str]:
    """Yield the strings of a request that must not be shown: the values of its fields with `repr=False`."""
    for attribute in fields(type(record)):
        value = getattr(record, attribute.name)
        if has(type(value)):
            yield from secrets_in(value)
        elif not attribute.repr and isinstance(value, str | tuple):
            yield from (value,) if isinstance(value, str) else value


# ----------------------------------------------------------------------------------- fields of responses

ALWAYS_SENT = "always sent"
"""Metadata key of a field that Plaid sends even where it is null, so that the encoder writes it too."""


def nullable_field(*, repr: bool = True) -> Any:  # noqa: A002  # attrs' own name for it
    """Declare a nullable field that Plaid always sends; if it is missing, it is read as `None`."""
    return field(default=None, repr=repr, metadata={ALWAYS_SENT: True})


def unknown_fields() -> Any:
    """Declare the field of a response that keeps the fields that this package doesn't know."""
    # A dict can't be hashed, and the records are hashable.
    return field(factory=dict, repr=False, kw_only=True, hash=False)


CLIENT_SIDE = "client side"
"""Metadata key of a field that isn't part of Plaid's JSON."""


def client_side_field() -> Any:
    """Declare a field that is set by the client, isn't part of Plaid's JSON and isn't compared."""
    return field(default=None, repr=False, eq=False, kw_only=True, metadata={CLIENT_SIDE: True})
