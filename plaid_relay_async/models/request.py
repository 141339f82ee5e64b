"""The base class of all requests, with the fields that a caller adds to a request."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from attrs import Attribute, converters, field, fields, frozen, has, validators

from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models.fields import CLIENT_SIDE, check_json_value, invalid, plaid_field_names
from plaid_relay_async.redaction import strip_init_traceback

_CREDENTIALS: Final = ("client_id", "secret")


def _copy_extra(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy, so that what was checked is what is sent."""
    if not isinstance(value, Mapping):
        raise invalid("extra", f"must be a mapping, not {type(value).__name__}")
    extra = dict(value)
    try:
        check_json_value("extra", extra)
    except RequestValidationError as error:
        problem = f"can't be sent: {error.args[0]}"
    else:
        return deepcopy(extra)
    raise invalid("extra", problem)


def _has_only_unknown_fields(request: object, _: Attribute[Any], value: Mapping[str, Any]) -> None:
    for name in _CREDENTIALS:
        if name in value:
            raise invalid("extra", f"contains {name}: credentials are an argument of the client")
    _check_unknown(type(request), value, "")


def _check_unknown(record: type, extra: Mapping[str, Any], prefix: str) -> None:
    """Raise `RequestValidationError` if the record has one of the fields, or a record in it has."""
    for attribute in fields(record):
        if attribute.name not in extra or attribute.name not in plaid_field_names(record):
            continue
        name, value = prefix + attribute.name, extra[attribute.name]
        # An optional record is checked by a `HasType` inside a validator of attrs.
        nested = getattr(getattr(attribute.validator, "validator", None), "cls", object)
        if not has(nested) or not isinstance(value, dict):
            raise invalid("extra", f"contains {name}, which the request has already")
        _check_unknown(nested, value, f"{name}.")


@strip_init_traceback
@frozen(kw_only=True)
class PlaidRequest:
    """The base class of all requests.

    Attributes:
        extra: fields to add to the body, such as those that Plaid has added since this release: a mapping of
            names to JSON values, in which a `Decimal` is a number. Fields of an object that the request has,
            such as `options`, are added to that object. Every attempt sends these fields. A batch doesn't
            compare them to detect duplicates, a journal doesn't record them, and no repr shows them.

    Raises:
        RequestValidationError: `extra` isn't such a mapping, or contains `client_id`, `secret` or a field
            that the request has already.
    """

    # A dict can't be hashed, and the records are hashable.
    extra: Mapping[str, Any] | None = field(
        default=None,
        converter=converters.optional(_copy_extra),
        validator=validators.optional(_has_only_unknown_fields),
        repr=False,
        hash=False,
        metadata={CLIENT_SIDE: True},
    )
