"""The operations as the console's page gets them: the endpoint table, the request records, and `texts`.

The page repeats no rule of the package: whether an input is required, its bounds, and the texts about an
invalid value are those of the request's record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import NOTHING, asdict, fields

from plaid_relay_async import error_codes, models
from plaid_relay_async.gateway import texts
from plaid_relay_async.models import fields as rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from attrs import Attribute

    from plaid_relay_async.gateway.texts import InputText, OperationText
    from plaid_relay_async.models.fields import Validator

# The kinds of inputs without bounds, by their validators.
_KINDS: Final[dict[Validator, str]] = {
    rules.is_identifier: "identifier",
    rules.are_identifiers: "identifiers",
    rules.are_report_tokens: "identifiers",
    rules.IsText(): "text",
    rules.is_url: "url",
    rules.is_url_template: "url",
    rules.is_boolean: "flag",
}


def console_data() -> dict[str, Any]:
    """Return what the page needs to know about operations, inputs and tokens, for JSON.

    - `operations`: see `_describe_operation`.
    - `next`: by the token in a response, the paths of the operations to offer next.
    - `problems`: what can be wrong with any identifier, text or URL.
    - `quote`: a regular expression for the characters that no URL contains.
    - `delimiter`: a regular expression for the characters that no identifier contains.
    - `errors`: the tables of `error_codes` about what an error proves, and whether other requests get it.
    """
    return {
        "operations": [_describe_operation(text) for text in texts.OPERATION_TEXTS],
        "next": {
            token: [endpoint.path for endpoint in endpoints]
            for token, endpoints in texts.NEXT_OPERATIONS.items()
        },
        "problems": {
            "empty": rules.IS_EMPTY,
            "misdecoded": rules.IS_MISDECODED,
            "whitespace": rules.HAS_WHITESPACE,
            "delimiter": rules.HAS_DELIMITER,
            "url": rules.IS_NO_URL,
        },
        "quote": rules.QUOTE.pattern,
        "delimiter": rules.DELIMITER.pattern,
        "errors": {
            "declined": sorted(error_codes.DECLINED_CODES),
            "permanent_limits": sorted(error_codes.PERMANENT_LIMITS),
            "shared": sorted(error_codes.SHARED_CODES),
        },
    }


def _describe_operation(text: OperationText) -> dict[str, Any]:
    """Return an operation, with its inputs in the order of the record's fields.

    Other fields have a fixed value (`fixed`), or have no input on the page (`not_offered`).
    """
    endpoint, inputs, fixed, not_offered = text.endpoint, [], {}, []
    for name, attribute, check in _fields_of(endpoint.request_type, text.inputs):
        if check is rules.is_report_type:
            fixed[name] = attribute.default
        elif name in text.inputs:
            inputs.append(_describe_input(name, attribute, check, text.inputs[name]))
        else:
            not_offered.append(name)
    group, page = texts.GROUPS[endpoint.path.split("/")[1]]
    is_pdf = endpoint.response_type is models.PdfResponse
    return {
        **asdict(text, filter=lambda attribute, _: attribute.name not in {"endpoint", "inputs"}),
        "path": endpoint.path,
        "idempotency": endpoint.idempotency.name,
        "issues": endpoint.issues,
        "returns": "pdf" if is_pdf else "report" if endpoint.returns_report else None,
        "group": group,
        "page": page.format(anchor=endpoint.path.replace("/", "")),
        "inputs": inputs,
        "fixed": fixed,
        "not_offered": not_offered,
    }


def _fields_of(
    record: type, offered: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Attribute[Any], Any]]:
    """Yield each field of a request with its name and its validator.

    A field that is a record is replaced by that record's fields if one of them is offered.
    """
    for attribute in fields(record):
        if models.CLIENT_SIDE in attribute.metadata:
            continue
        # The validator of an optional field is inside one of attrs.
        name, check = prefix + attribute.name, getattr(attribute.validator, "validator", attribute.validator)
        if any(each.startswith(f"{name}.") for each in offered):
            yield from _fields_of(check.cls, offered, f"{name}.")
        else:
            yield name, attribute, check


def _describe_input(name: str, attribute: Attribute[Any], check: Any, text: InputText) -> dict[str, Any]:
    """Return an input.

    - `within`: the member of the body that contains it, if it isn't the body itself.
    - `kind`: how it is checked and shown: token, tokens, identifier, identifiers, text, url, flag, number or
      choice; `list` says that a single token is sent in a list.
    - `min`, `max`, `problem`: its bounds, and what is wrong with a value beyond them. `max` limits a number,
      the items of a list, or the characters of a text.
    - the others are those of `InputText`.
    """
    within, _, own_name = name.rpartition(".")
    kind, bounds = _kind_and_bounds(check)
    if not attribute.repr:
        kind = kind.replace("identifier", "token")
    if text.one_item:
        kind = kind.removesuffix("s")
    return {
        "name": own_name,
        "within": within or None,
        "kind": "choice" if text.choices else kind,
        "list": text.one_item,
        "required": text.required or attribute.default is NOTHING,
        **bounds,
        "hint": text.hint.format_map(bounds),
        "env": text.env,
        "example": text.example,
        "preset": text.preset,
        "choices": text.choices,
    }


def _kind_and_bounds(check: Any) -> tuple[str, dict[str, Any]]:
    """Return what kind of input a validator accepts, and its bounds."""
    if check in _KINDS:
        return _KINDS[check], {}
    if isinstance(check, rules.IsWholeNumber):
        return "number", {"min": check.minimum, "max": check.maximum, "problem": check.problem}
    if isinstance(check, rules.IsText):
        return "text", {"max": check.max_length, "problem": check.problem}
    return "identifiers", {"max": check.limit, "problem": check.problem}
