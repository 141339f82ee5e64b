"""Validators and field declarations of the records.

A validator, such as `is_url`, has the signature of an attrs validator and raises `RequestValidationError`,
which names the field. `IsText`, `IsWholeNumber`, `AreIdentifiers` and `HasType` are classes of validators;
their bounds are attributes. A declaration, such as `optional_field`, returns an attrs field.

The gateway's console checks its inputs by the same rules: it gets the kind of each field, its bounds, and the
texts and characters below from `gateway/forms`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast
from unicodedata import category
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, frozen, has, validators

from plaid_relay_async.display import escape_surrogates
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.redaction import redact_identifier

Validator: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]

# ------------------------------------------------------------------------------------ fields of requests


invalid = RequestValidationError.of

IS_EMPTY: Final = "is empty"
IS_MISDECODED: Final = (
    "contains a lone surrogate, perhaps from bytes that were decoded with the wrong encoding"
)
HAS_WHITESPACE: Final = "contains whitespace or control characters; remove them"
HAS_DELIMITER: Final = "contains a quote, a comma or a semicolon: pass one identifier, without quotes"
IS_NO_URL: Final = "must be an http(s) URL"
HAS_BRACES: Final = "may contain braces only in {pair}, once, as the last segment of the path"
HAS_PAIR: Final = "contains {pair}, which is replaced only when a relay token is created"
HAS_ENCODED_PAIR: Final = "contains %7Bpair%7D: write {pair}, or another name if it isn't the placeholder"

# Unicode's Quotation_Mark characters, without the apostrophe, which a URL may have (RFC 3986).
_QUOTES = (
    '"\u00ab\u00bb\u2018-\u201f\u2039\u203a\u2e42\u300c-\u300f\u301d-\u301f'
    "\ufe41-\ufe44\uff02\uff07\uff62\uff63"
)
QUOTE: Final = re.compile(f"[{_QUOTES}]")
DELIMITER: Final = re.compile(f"[{_QUOTES}',;]")
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
    if DELIMITER.search(cast("str", value)):
        raise invalid(name, HAS_DELIMITER)


def _check_no_whitespace(name: str, value: object) -> None:
    check_text(name, value)
    if any(character.isspace() or category(character) in {"Cc", "Cf"} for character in cast("str", value)):
        raise invalid(name, HAS_WHITESPACE)


def check_text(name: str, value: object) -> None:
    """Raise `RequestValidationError` unless the value is a non-empty string without lone surrogates."""
    if not isinstance(value, str):
        raise invalid(name, f"must be a string, not {type(value).__name__}")
    if not value:
        raise invalid(name, IS_EMPTY)
    if not value.isascii() and escape_surrogates(value) != value:
        raise invalid(name, IS_MISDECODED)


def is_identifier(_: object, attribute: Attribute[str], value: object) -> None:
    """Check that the value is one identifier, token or name; see `check_identifier`."""
    check_identifier(attribute.name, value)


@frozen
class IsText:
    """Checks that the value is free text of at most `max_length` characters; `None` sets no limit."""

    max_length: int | None = None

    @property
    def problem(self) -> str:
        """What is wrong with a longer text."""
        return f"has more than {self.max_length} characters"

    def __call__(self, _: object, attribute: Attribute[str], value: object) -> None:
        """Check the value."""
        check_text(attribute.name, value)
        if self.max_length is not None and len(cast("str", value)) > self.max_length:
            raise invalid(attribute.name, self.problem)


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


@frozen
class AreIdentifiers:
    """Checks that the value is a tuple of one or more identifiers, at most `limit`; `None` sets no limit.

    Attributes:
        limit: the maximum number of identifiers.
        noun: names them in the error.
        one_per_report_type: whether they are report tokens: no token twice, and at most one of an Asset
            Report (`assets-`), the only type so far. Tokens with another prefix are left to Plaid.
    """

    limit: int | None = None
    noun: str = "identifiers"
    one_per_report_type: bool = False

    @property
    def problem(self) -> str:
        """What is wrong with a longer tuple, as a format string in which `{count}` is its length."""
        return f"has {{count}} {self.noun}: the limit is {self.limit}"

    def __call__(self, _: object, attribute: Attribute[Any], value: object) -> None:
        """Check the value."""
        name = attribute.name
        if not isinstance(value, tuple):
            raise invalid(name, f"must be a list of strings, not {type(value).__name__}: wrap it in a list")
        if not value:
            raise invalid(name, IS_EMPTY)
        for index, identifier in enumerate(value):
            check_identifier(f"{name}[{index}]", identifier)
        if self.limit is not None and len(value) > self.limit:
            raise invalid(name, self.problem.format(count=len(value)))
        if not self.one_per_report_type or len(value) == 1:
            return
        if len(set(value)) < len(value):
            raise invalid(name, "contains the same token twice")
        if sum(token.startswith("assets-") for token in value) > 1:
            raise invalid(name, "contains two asset report tokens: a relay token shares one report")


are_identifiers: Final = AreIdentifiers()
are_report_tokens: Final = AreIdentifiers(one_per_report_type=True)


PAIR_PLACEHOLDER: Final = "{pair}"


def is_url(_: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is an http(s) URL with a host, without `{pair}`, which would be sent as it is."""
    _check_url(attribute.name, value)
    if PAIR_PLACEHOLDER in str(value):
        raise invalid(attribute.name, HAS_PAIR)


def _check_url(name: str, value: object) -> None:
    _check_no_whitespace(name, value)
    try:
        parts = urlsplit(str(value))
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable &= "\\" not in str(value)  # some parsers treat it as a slash
        # These show that the value is two URLs, or a URL in quotes.
        usable &= not (DELIMITER.search(parts.hostname or "") or QUOTE.search(str(value)))
    except ValueError:  # such as an unclosed bracket, or a port that isn't a number
        usable = False
    if not usable:
        raise invalid(name, IS_NO_URL)


def is_url_template(_: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is an http(s) URL, in which `{pair}` may be the last segment of the path."""
    _check_url(attribute.name, value)
    url = str(value)
    if "%7bpair%7d" in url.lower():  # some libraries encode braces
        raise invalid(attribute.name, HAS_ENCODED_PAIR)
    rest = url
    if urlsplit(url).path.endswith(f"/{PAIR_PLACEHOLDER}"):
        rest = url.replace(PAIR_PLACEHOLDER, "", 1)
    if "{" in rest or "}" in rest:
        raise invalid(attribute.name, HAS_BRACES)


def is_aware_time(_: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is a datetime with a time zone."""
    if not isinstance(value, datetime):
        raise invalid(attribute.name, f"must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise invalid(attribute.name, "has no time zone: pass datetime.now(UTC), for example")


def is_boolean(_: object, attribute: Attribute[bool], value: object) -> None:
    """Check that the value is `True` or `False`."""
    if not isinstance(value, bool):
        raise invalid(attribute.name, f"must be True or False, not {type(value).__name__}")


@frozen
class IsWholeNumber:
    """Checks that the value is an integer from `minimum` to `maximum`, both included."""

    minimum: int
    maximum: int

    @property
    def problem(self) -> str:
        """What is wrong with any other value."""
        return f"must be a whole number from {self.minimum} to {self.maximum}"

    def __call__(self, _: object, attribute: Attribute[Any], value: object) -> None:
        """Check the value."""
        # To Python, True is an integer.
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not self.minimum <= cast("int", value) <= self.maximum:
            raise invalid(attribute.name, self.problem)


@frozen
class HasType:
    """Checks that the value is of exactly this class, such as a record or a date."""

    cls: type

    def __call__(self, _: object, attribute: Attribute[Any], value: object) -> None:
        """Check the value."""
        # A datetime is a date too, but not one that Plaid accepts.
        if type(value) is not self.cls:
            raise invalid(attribute.name, f"must be of type {self.cls.__name__}, not {type(value).__name__}")


_MAX_NESTING: Final = 100
_MAX_INTEGER_BITS: Final = 2_000  # Python writes no integers of thousands of digits


def check_json_value(name: str, value: object, place: str = "", nesting: int = 0) -> None:
    """Check that JSON can represent the value; a Decimal counts as a number.

    Args:
        name: the field's name, for the error.
        value: the field's value, or a part of it.
        place: the place of that part in the field, such as `.lines[0]`.
        nesting: the number of lists and objects that contain the part.

    Raises:
        RequestValidationError: a name or a value is invalid.
    """
    if nesting > _MAX_NESTING:
        raise invalid(name, "is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_text(f"a name in {name}{place}", key)
            check_json_value(name, inner, f"{place}.{redact_identifier(key)}", nesting + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_json_value(name, inner, f"{place}[{index}]", nesting + 1)
    elif (problem := _scalar_problem(value)) is not None:
        raise invalid(f"{name}{place}", problem)


def _scalar_problem(value: object) -> str | None:
    """Return why a value that is neither a list nor an object isn't JSON, or `None` if it is."""
    if isinstance(value, float | Decimal):
        return None if Decimal(value).is_finite() else "must be a finite number"
    if isinstance(value, int):
        return None if value.bit_length() <= _MAX_INTEGER_BITS else "is too large a number"
    return None if isinstance(value, str | None) else f"must be a JSON value, not {type(value).__name__}"


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
    """Yield the texts and numbers of a request that must not be shown: in its fields with `repr=False`."""
    for attribute in fields(type(record)):
        value = getattr(record, attribute.name)
        if has(type(value)):
            yield from secrets_in(value)
        elif not attribute.repr:
            yield from _texts_in(value)


def _texts_in(value: object) -> Iterator[str]:
    """Yield the texts and numbers in a string, a tuple or a JSON value, without the names in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        yield str(value)


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


def plaid_field_names(cls: type) -> frozenset[str]:
    """Return the names of a record's fields that are Plaid's, without client-side ones."""
    return frozenset(
        a.name for a in fields(cls) if a.name != "additional_properties" and CLIENT_SIDE not in a.metadata
    )


CLIENT_SIDE = "client side"
"""Metadata key of a field that isn't part of Plaid's JSON."""


def client_side_field() -> Any:
    """Declare a field that is set by the client, isn't part of Plaid's JSON and isn't compared."""
    return field(default=None, repr=False, eq=False, kw_only=True, metadata={CLIENT_SIDE: True})
