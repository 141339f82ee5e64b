"""Conversion between records and JSON, with strict types and exact numbers."""

from __future__ import annotations

import functools
import json
import math
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import cattrs
from attrs import NOTHING, Attribute, field, fields, make_class, resolve_types
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from plaid_relay_async import models
from plaid_relay_async.errors import RequestValidationError, ResponseDecodeError
from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# -------------------------------------------------------------------------------------- the converters
#
# A hook, such as `_structure_date` or an inner `structure`, converts one value. A hook factory, `..._hook`,
# returns the hook of a type. `with_paths` selects the hooks of the diagnostic converter.

# RFC 3339, but seconds, the offset and its colon may be missing; a time without an offset is taken as UTC.
# Python's parsers accept other forms as well, such as 20260330.
_DATE_FORMAT: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME_FORMAT: Final = re.compile(
    _DATE_FORMAT.pattern + r"[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)


@functools.lru_cache(maxsize=4096)
def _parse_date(text: str) -> date:
    # The cache helps because a report has thousands of dates, but few different ones.
    if not _DATE_FORMAT.fullmatch(text):
        raise ValueError("expected a date")
    return date.fromisoformat(text)


def _scalar_hook(cls: type, *, nullable: bool = False) -> Callable[[Any, Any], Any]:
    def structure_scalar(value: Any, _: Any) -> Any:
        if type(value) is cls or (value is None and nullable):
            return value
        if cls is Decimal and type(value) is int:
            return Decimal(value)
        raise TypeError(f"expected {cls.__name__}")

    return structure_scalar


def _structure_date(value: Any, _: Any) -> date:
    return _parse_date(value)


def _structure_datetime(value: Any, _: Any) -> datetime:
    if not _DATETIME_FORMAT.fullmatch(value):
        raise ValueError("expected a time")
    time = datetime.fromisoformat(value.upper())  # Python accepts only upper-case T and Z
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _structure_object(value: Any, _: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError("expected an object")
    return value


def _optional_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    [inner] = (arg for arg in get_args(cls) if arg is not NoneType)
    # Most of the values are scalars: one hook for value and null saves a call for each of them.
    if inner in _SCALARS:
        return _scalar_hook(inner, nullable=True)
    inner_hook = converter.get_structure_hook(inner)

    def structure(value: Any, _: Any) -> Any:
        return None if value is None else inner_hook(value, inner)

    return structure


def _tuple_hook(
    cls: Any, converter: cattrs.Converter, *, with_paths: bool
) -> Callable[[Any, Any], tuple[Any, ...]]:
    inner = get_args(cls)[0]
    inner_hook = converter.get_structure_hook(inner)

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise TypeError("expected a list")
        # Consuming the parsed list frees its elements early, so the garbage collector has fewer objects to
        # traverse.
        value.reverse()
        elements = []
        while value:
            elements.append(inner_hook(value.pop(), inner))
        return tuple(elements)

    def structure_with_path(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise TypeError("expected a list")
        return tuple(
            _structure_at(inner_hook, element, inner, f"[{index}]") for index, element in enumerate(value)
        )

    return structure_with_path if with_paths else structure


def _keeps_unknown(cls: type) -> bool:
    return any(a.name == "additional_properties" for a in fields(cls))


def _record_hook(cls: Any, converter: cattrs.Converter, *, with_paths: bool) -> Callable[[Any, Any], Any]:
    field_names = models.plaid_field_names(cls)
    keeps_unknown = _keeps_unknown(cls)
    target = cls if with_paths else _mutable_twin(cls)
    omitted = {a.name: override(omit=True) for a in fields(cls) if a.name not in field_names}
    base: Callable[[Any, Any], Any] = (
        _record_hook_with_paths(cls, converter)
        if with_paths
        else make_dict_structure_fn(target, converter, **omitted)  # type: ignore[arg-type]  # each value is an override
    )
    has_all_of = field_names.issuperset

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError("expected an object")
        # Most objects have no unknown field, and a set operation checks that for all of its names.
        unknown = None if has_all_of(value) else {k: v for k, v in value.items() if k not in field_names}
        if unknown and not keeps_unknown:
            raise _StructureError("has an unknown field", "")
        record = base(value, target)
        if unknown:
            record.additional_properties.update(unknown)
        if target is not cls:
            record.__class__ = cls
        return record

    return structure


def _record_hook_with_paths(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    resolve_types(cls)
    names = models.plaid_field_names(cls)
    hooks = [(a, converter.get_structure_hook(a.type)) for a in fields(cls) if a.name in names]

    def structure(value: Any, _: Any) -> Any:
        arguments = {}
        for attribute, hook in hooks:
            path = f".{attribute.name}"
            if attribute.name in value:
                arguments[attribute.name] = _structure_at(hook, value[attribute.name], attribute.type, path)
            elif attribute.default is NOTHING:
                raise _StructureError("required field missing", path)
        try:
            return cls(**arguments)
        except RequestValidationError as error:
            problem, path = error.problem, f".{error.field}"
        except ValueError:  # a validator of attrs, whose text contains the value
            problem, path = "has an invalid field", ""
        raise _StructureError(problem, path)

    return structure


class _StructureError(Exception):
    """An error in JSON, with its cause and its path, and without the content."""

    def __init__(self, problem: str, path: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


def _structure_at(hook: Callable[[Any, Any], Any], value: Any, cls: Any, path: str) -> Any:
    """Structure a value; the first invalid value ends the conversion, and the error has its path."""
    try:
        return hook(value, cls)
    except _StructureError as error:
        error.path = path + error.path
        raise
    except (TypeError, ValueError, ArithmeticError):
        expected = _json_type_name(cls)
    raise _StructureError(f"expected {expected}", path)


_JSON_TYPE_NAMES: Final = {
    str: "a string",
    int: "an integer",
    bool: "a boolean",
    Decimal: "a number",
    date: "a date",
    datetime: "a date and time",
}


def _json_type_name(cls: Any) -> str:
    """Return JSON's name for a type, such as "a string or null"."""
    if get_origin(cls) is Annotated:
        return _json_type_name(get_args(cls)[0])
    if _is_optional(cls):
        [inner] = (arg for arg in get_args(cls) if arg is not NoneType)
        return f"{_json_type_name(inner)} or null"
    return "a list" if _is_tuple(cls) else _JSON_TYPE_NAMES.get(cls, "an object")


def _mutable_twin(cls: Any) -> Any:
    """Return a mutable class with the same fields, or the class itself if it has a `__weakref__` slot.

    To create a frozen instance, attrs makes a call for each field, which takes a third of the time to read a
    report. So a record is created as an instance of the mutable class, and then its `__class__` is changed.
    The records that occur often in a report select this with `weakref_slot=False`.
    """
    if hasattr(cls, "__weakref__"):
        return cls
    resolve_types(cls)
    attributes = {a.name: field(default=a.default, kw_only=a.kw_only, type=a.type) for a in fields(cls)}
    return make_class(cls.__name__, attributes, slots=True, weakref_slot=False)


def _omitted_if_default(attribute: Attribute[Any]) -> bool:
    return (
        attribute.default is None or attribute.default is False
    ) and models.ALWAYS_SENT not in attribute.metadata


def _unstructure_record_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any], dict[str, Any]]:
    field_names = models.plaid_field_names(cls)
    # A field whose default is None or False is omitted while it has that value, unless Plaid always sends it.
    overrides = {
        a.name: override(omit=True) if a.name not in field_names else override(omit_if_default=True)
        for a in fields(cls)
        if a.name not in field_names or _omitted_if_default(a)
    }
    base = make_dict_unstructure_fn(cls, converter, **overrides)  # type: ignore[arg-type]  # each value is an override
    if not _keeps_unknown(cls):
        return base

    def unstructure(record: Any) -> dict[str, Any]:
        return {**base(record), **record.additional_properties}

    return unstructure


def _is_optional(cls: Any) -> bool:
    return get_origin(cls) in {Union, UnionType} and NoneType in get_args(cls)


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _is_object(cls: Any) -> bool:
    return get_origin(cls) is dict


_SCALARS: Final = (str, int, bool, Decimal)


def _make_converter(*, with_paths: bool) -> cattrs.Converter:
    # Detailed validation would collect an error for each invalid value, and there may be a million of them.
    converter = cattrs.Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
    for cls in _SCALARS:
        converter.register_structure_hook(cls, _scalar_hook(cls))
    converter.register_structure_hook(date, _structure_date)
    converter.register_structure_hook(datetime, _structure_datetime)
    converter.register_structure_hook_func(_is_object, _structure_object)
    converter.register_unstructure_hook(date, date.isoformat)
    converter.register_unstructure_hook(datetime, _format_datetime)
    converter.register_structure_hook_factory(_is_optional, _optional_hook)

    def tuple_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], tuple[Any, ...]]:
        return _tuple_hook(cls, converter, with_paths=with_paths)

    def record_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
        return _record_hook(cls, converter, with_paths=with_paths)

    converter.register_structure_hook_factory(_is_tuple, tuple_hook)
    converter.register_structure_hook_factory(models.is_record, record_hook)
    converter.register_unstructure_hook_factory(models.is_record, _unstructure_record_hook)
    return converter


def _format_datetime(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


_converter: Final = _make_converter(with_paths=False)
# Tracking the path accounts for a third of this converter's time, so it is used only after the fast one has
# failed.
_diagnostic_converter: Final = _make_converter(with_paths=True)


# --------------------------------------------------------------------------------------------- decoding


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} isn't a number in JSON")


def _parse_decimal(text: str) -> Decimal:
    # A Python function lets other threads run while a long report is parsed; the type itself would not.
    return Decimal(text)


# One decoder for all responses: creating one takes longer than parsing a short response.
_decimal_decoder: Final = json.JSONDecoder(parse_float=_parse_decimal, parse_constant=_reject_constant)


def _parse_json(body: bytes | bytearray | str) -> Any:
    if isinstance(body, str):
        return _decimal_decoder.decode(body)
    # Most bodies begin with "{" and are UTF-8, so the detection of the encoding is skipped for them. As with
    # `json.loads`, lone surrogates are accepted.
    is_utf8 = body.startswith(b"{") and not body.startswith(b"{\0")
    return _decimal_decoder.decode(
        body.decode("utf-8" if is_utf8 else json.detect_encoding(body), "surrogatepass")
    )


def decode_record(source: Any, cls: type[T], parse: Callable[[Any], Any] = _parse_json) -> T:
    """Decode JSON to a record.

    Args:
        source: the JSON, or whatever `parse` accepts.
        cls: the record's class.
        parse: returns the JSON as Python's dicts, lists and values.

    Raises:
        DECODE_ERRORS: the JSON is invalid; see `describe_decode_error`.
    """
    try:
        return _converter.structure(parse(source), cls)
    except (_StructureError, KeyError, TypeError, ValueError, ArithmeticError):
        # The fast converter has consumed the parsed lists, so the JSON is parsed again.
        return _diagnostic_converter.structure(parse(source), cls)


DECODE_ERRORS: Final = (_StructureError, ValueError, TypeError, ArithmeticError, RecursionError)


def describe_decode_error(error: BaseException, subject: str = "the response") -> tuple[str, str]:
    """Return the problem and its JSON path. The text calls the JSON `subject`, and quotes nothing of it."""
    if isinstance(error, _StructureError):
        return error.problem, f"${error.path}"
    if isinstance(error, json.JSONDecodeError):
        problem = "is empty" if not error.doc.strip() else f"isn't JSON ({error.msg}, character {error.pos})"
        return f"{subject} {problem}", "$"
    if isinstance(error, UnicodeDecodeError):
        return f"{subject} isn't UTF-8 (byte {error.start})", "$"
    if isinstance(error, RecursionError):
        return f"{subject} is nested too deeply", "$"
    # Errors inside a record are `_StructureError`s, so the others concern the whole value. Their texts aren't
    # used, because they may quote the JSON.
    return "not an object" if isinstance(error, TypeError) else f"{subject} contains an invalid number", "$"


# --------------------------------------------------------------------------------------------- encoding


def _dump_json(value: Any, **options: Any) -> str:
    """Return JSON, with each Decimal as an exact number."""
    # The standard library can't write a Decimal, and a float would lose digits. So each Decimal is written as
    # a string with a random prefix that no content contains, and then prefix and quotes are removed.
    marks: list[str] = []

    def mark_decimal(number: Any) -> str:
        if type(number) is not Decimal or not number.is_finite():
            raise TypeError(f"{type(number).__name__} can't be written as JSON")
        if not marks:
            marks.append(secrets.token_hex(16))
        return f"{marks[0]}{number}"

    try:
        text = json.dumps(value, default=mark_decimal, allow_nan=False, **options)
    except ValueError:  # its text may quote the number
        raise TypeError("a number can't be written as JSON") from None
    return re.sub(f'"{marks[0]}([^"]*)"', r"\1", text) if marks else text


class _UnsupportedValueError(Exception):
    """A value that the standard library can't write as JSON, such as a Decimal."""


def _reject_value(_value: object) -> None:
    raise _UnsupportedValueError


_COMPACT_SEPARATORS: Final = (",", ":")
# One encoder for all requests, as with the decoder. Values that it can't write take the slower way.
_json_encoder: Final = json.JSONEncoder(
    separators=_COMPACT_SEPARATORS, allow_nan=False, default=_reject_value
)


def _add_fields(plain: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Add fields to a body, and to the objects in it; none of them replaces another one."""
    for name, value in extra.items():
        if isinstance(plain.get(name), dict):
            _add_fields(plain[name], value)
        else:
            plain.setdefault(name, value)


@strip_traceback
def encode_request(request: models.PlaidRequest, credentials: Hidden[dict[str, str]]) -> bytes:
    """Encode a request record as the body of an HTTP request.

    Args:
        request: the request.
        credentials: fields with credentials to add, if they are sent in the body.

    Raises:
        RequestValidationError: a field has a value that JSON can't represent.
    """
    try:
        plain = _converter.unstructure(request)
        if request.extra is not None:
            _add_fields(plain, request.extra)
        plain.update(credentials.reveal())
        try:
            # Most requests contain no Decimal, so the fast encoder is tried first.
            return _json_encoder.encode(plain).encode()
        except _UnsupportedValueError:
            return _dump_json(plain, separators=_COMPACT_SEPARATORS).encode()
    except (TypeError, ValueError, RecursionError) as error:
        problem = type(error).__name__
    raise RequestValidationError.of("the request", f"can't be written as JSON ({problem})")


# ------------------------------------------------------------------------------------ public functions

_STORED_RECORD_ADVICE: Final = (
    "Read it with the class that it was written from, and check whether it was changed since."
)


def to_json(record: object, *, indent: int | None = None) -> bytes:
    """Return a record as JSON, with every number exactly as Plaid sent it.

    Args:
        record: a response, or a part of one. Client-side fields, such as `raw`, are left out.
        indent: spaces for each level; `None` writes one line.

    Returns:
        The JSON in UTF-8.

    Raises:
        TypeError: it isn't one of this package's records, is a PDF, or has a value that JSON can't represent.
    """
    return _dump_json(_unstructure_checked(record), indent=indent).encode()


@strip_traceback
def from_json(data: bytes | str, cls: type[T]) -> T:
    """Read a record from JSON that `to_json` wrote, or from the body of one of Plaid's responses.

    Args:
        data: the JSON.
        cls: the record's class, such as `AssetReportGetResponse`.

    Raises:
        ResponseDecodeError: the JSON isn't such a record; `path` is the place.
    """
    try:
        return decode_record(data, cls)
    except DECODE_ERRORS as error:
        problem, path = describe_decode_error(error, "the stored record")
    raise ResponseDecodeError(f"{problem} at {path}", path=path, sent=False, advice=_STORED_RECORD_ADVICE)


def unstructure(record: object) -> dict[str, Any]:
    """Return a record as dicts, lists, strings, numbers, booleans and None.

    A number without decimal point and exponent is an int. Any other is a float if Python prints that float as
    the same number, which is always so for up to 15 significant digits; otherwise it stays a `Decimal`.
    `to_json` keeps all digits.

    Raises:
        TypeError: it isn't one of this package's records, or it is a PDF.
    """
    plain: dict[str, Any] = _decimals_to_floats(_unstructure_checked(record))
    return plain


@strip_traceback
def structure(plain: Mapping[str, Any], cls: type[T]) -> T:
    """Convert the result of `unstructure` back to a record.

    Args:
        plain: a mapping, such as the value of a JSON column in a database.
        cls: the record's class.

    Raises:
        ResponseDecodeError: the mapping isn't such a record; `path` is the place.
    """
    try:
        return decode_record(plain, cls, _floats_to_decimals)
    except DECODE_ERRORS as error:
        problem, path = describe_decode_error(error, "the stored record")
    raise ResponseDecodeError(f"{problem} at {path}", path=path, sent=False, advice=_STORED_RECORD_ADVICE)


def _unstructure_checked(record: object) -> dict[str, Any]:
    if not models.is_record(type(record)) or isinstance(record, models.PdfResponse | models.PdfFile):
        raise TypeError(f"{type(record).__name__} isn't a record that can be written as JSON")
    plain: dict[str, Any] = _converter.unstructure(record)
    return plain


def _decimals_to_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decimals_to_floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_decimals_to_floats(inner) for inner in value]
    if not isinstance(value, Decimal):
        return value
    if value.as_tuple().exponent == 0:
        return int(value)
    nearest = float(value)
    # repr() returns the shortest text of a float, so this compares the numbers as JSON would have them.
    return nearest if Decimal(repr(nearest)) == value else value


def _floats_to_decimals(value: Any) -> Any:
    # This includes unknown fields, where a number that was a Decimal becomes one again.
    if isinstance(value, Mapping):
        return {name: _floats_to_decimals(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats_to_decimals(inner) for inner in value]
    if type(value) is float and not math.isfinite(value):
        raise ValueError("expected a number")
    return Decimal(repr(value)) if type(value) is float else value
