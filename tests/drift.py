"""Compare the records and the endpoint table with Plaid's OpenAPI document: `nox -s drift -- PATH`.

The request and the response of each operation are compared recursively, in the code and in the document. Each
difference is printed as a line, except those in `ALLOWED`, which have a reason. An entry of `ALLOWED` that no
longer applies is printed as well. The exit status is 0 without a line, 1 with a line, and 2 if the document
can't be read.
"""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from attrs import NOTHING, field, fields, frozen
from specification import Schema, Specification, UnreadableError

from plaid_relay_async import models
from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


# -------------------------------------------------------------------------------- the code's description


@frozen
class Shape:
    """The type of a value.

    Attributes:
        kind: a type or a format of JSON Schema, or `anything`, or `any object` for one of any properties.
        nullable: whether the value may be `None`.
        values: the values of a string that constants name, or `None` without constants.
        items: the shape of an array's elements.
        record: the name of an object's record.
    """

    kind: str
    nullable: bool = False
    values: frozenset[str] | None = None
    items: Shape | None = None
    record: str = ""


@frozen
class Field:
    """A field of a record: whether it is required, and whether it is written even if it is `None`."""

    shape: Shape
    required: bool
    always_sent: bool = False
    default: object = None

    @property
    def omitted_by_default(self) -> bool:
        """Whether it is omitted while it has its default value."""
        return not self.required and not self.always_sent and self.default in {None, False}


@frozen
class Record:
    """The fields of a record, and whether it keeps unknown fields."""

    fields: Mapping[str, Field]
    keeps_unknown: bool


@frozen
class Operation:
    """The names of the records of an operation's request and response; `None` if the response is a file."""

    request: str
    response: str | None


@frozen
class Description:
    """The operations and records of the code, to be compared with the document."""

    operations: Mapping[str, Operation]
    records: Mapping[str, Record]


# Responses name their constants in their annotations. Requests don't, because they are importable without the
# module of the constants.
VALUES_OF_REQUESTS: Final = {
    "AssetReportCreateOptions.add_ons": "AddOn",
    "ItemRemoveRequest.reason_code": "ItemRemoveReason",
    "RelayGetRequest.report_type": "ReportType",
    "RelayPdfGetRequest.report_type": "ReportType",
    "RelayRefreshRequest.report_type": "ReportType",
    "SandboxIncomeVerification.income_source_types": "IncomeSourceType",
    "SandboxItemFireWebhookRequest.webhook_code": "WebhookCode",
    "SandboxItemFireWebhookRequest.webhook_type": "WebhookType",
    "SandboxPublicTokenCreateRequest.initial_products": "Product",
    "WebhookEventsListRequest.delivery_statuses": "WebhookDeliveryStatus",
}

_KINDS: Final = {
    str: "string",
    bool: "boolean",
    int: "integer",
    Decimal: "number",
    date: "date",
    datetime: "date-time",
    Any: "anything",
    dict: "any object",
    Hidden: "hidden",
}


def describe_code() -> Description:
    """Describe the endpoint table and every record that can be reached from it."""
    records: dict[str, Record] = {}
    operations = {
        endpoint.path: Operation(
            _describe(endpoint.request_type, records),
            None
            if endpoint.response_type is models.PdfResponse
            else _describe(endpoint.response_type, records),
        )
        for endpoint in ENDPOINTS
    }
    return Description(operations, records)


def reachable_records(description: Description, record: str) -> Iterator[str]:
    """Yield the names of a record and of all records that it contains."""
    yield record
    for each in description.records[record].fields.values():
        inner = (each.shape.items or each.shape).record
        if inner:
            yield from reachable_records(description, inner)


def _describe(cls: type, records: dict[str, Record]) -> str:
    if cls.__name__ not in records:
        hints = get_type_hints(cls, include_extras=True)
        keeps_unknown = hints.pop("additional_properties", None) is not None
        hints.pop("extra", None)  # not a field of the body, but all fields that the record doesn't have
        attributes = [attribute for attribute in fields(cls) if attribute.name in hints]
        records[cls.__name__] = Record(
            {a.name: _field(cls, a, _shape(hints[a.name], records)) for a in attributes}, keeps_unknown
        )
    return cls.__name__


def _field(cls: type, attribute: Any, shape: Shape) -> Field:
    values = VALUES_OF_REQUESTS.get(f"{cls.__name__}.{attribute.name}")
    if values is not None:
        shape = _with_values(shape, getattr(models, values))
    required = attribute.default is NOTHING
    always_sent = models.ALWAYS_SENT in attribute.metadata
    return Field(shape, required, always_sent, None if required else attribute.default)


def _with_values(shape: Shape, values: type[enum.StrEnum]) -> Shape:
    if shape.items is not None:
        return Shape(shape.kind, shape.nullable, items=_with_values(shape.items, values))
    return Shape(shape.kind, shape.nullable, frozenset(values))


def _shape(hint: Any, records: dict[str, Record]) -> Shape:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _with_values(_shape(inner[0], records), inner[1])
    if origin in {Union, types.UnionType}:
        [shape] = (_shape(arg, records) for arg in inner if arg is not types.NoneType)
        return Shape(shape.kind, True, shape.values, shape.items, shape.record)
    if origin is tuple:
        return Shape("array", items=_shape(inner[0], records))
    if models.is_record(hint):
        return Shape("object", record=_describe(hint, records))
    return Shape(_KINDS[origin or hint])


# ----------------------------------------------------------------------------------------- the differences


class Kind(enum.StrEnum):
    """The kinds of differences, as texts that follow the place."""

    NO_OPERATION = "isn't in the document"
    NOT_SERVED = "is in the document, and this package doesn't have it"
    NOT_POSTED = "isn't a POST in the document"
    OTHER_RESPONSE = "returns a file on one side, and JSON on the other"
    OTHER_REQUEST = "takes no JSON in the document"
    NO_FIELD = "is in the document, and the record doesn't have it"
    UNKNOWN_FIELD = "isn't in the document"
    UNKNOWN_DROPPED = "drops unknown fields"
    LAX = "is always present and never null in the document; the record doesn't require it"
    STRICT = "may be absent or null in the document; the record requires it"
    NOT_ALWAYS_SENT = (
        "is always present, even if null, in the document; the record omits it: see nullable_field()"
    )
    ALWAYS_SENT = "may be absent in the document; the record always writes it: see nullable_field()"
    OMITTED = "is required by the document; the record may omit it"
    REQUIRED = "is optional in the document; the record requires it"
    OTHER_DEFAULT = "is omitted while it is False; the document has another default"
    OTHER_TYPE = "has another type"
    ELEMENTS_LAX = "contains no null in the document; in the record it may contain None"
    ELEMENTS_STRICT = "may contain null in the document; in the record it may not contain None"
    NO_CONSTANTS = "has a set of values in the document; no constants name them"
    NEEDLESS_CONSTANTS = "has constants; the document lists no values"
    NO_CONSTANT = "is a value in the document; no constant names it"
    UNKNOWN_CONSTANT = "is a constant; the document doesn't have the value"
    NOT_SUPPORTED = "has a key that this check doesn't support"
    STALE = "is in ALLOWED, and no longer applies"


@frozen
class Difference:
    """A difference: its place, its kind, and details."""

    where: str
    kind: Kind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}" + (f": {self.detail}" if self.detail else "")


# Sent in headers, or in addition to the fields of a request; see `Credentials`.
CREDENTIALS: Final = frozenset({"client_id", "secret"})
# The package has all operations of the document under these paths, or `ALLOWED` has a reason. The rest of
# Plaid's API is out of scope.
FAMILIES: Final = (
    "/credit/relay/",
    "/asset_report/",
    "/item/public_token/exchange",
    "/item/remove",
    "/sandbox/public_token/create",
    "/sandbox/item/fire_webhook",
    "/webhook_verification_key/",
    "/beta/webhook_events/",
)

_SUPPORTED_KEYS: Final = frozenset(
    {
        "type",
        "format",
        "nullable",
        "properties",
        "required",
        "items",
        "enum",
        "additionalProperties",
        "default",
    }
    | {"minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern"}
    | {"title", "description", "deprecated", "example", "examples", "externalDocs"}
)


@frozen(eq=False)
class _Comparison:
    """A recursive comparison of the code with the document."""

    spec: Specification
    description: Description
    differences: dict[Difference, None] = field(factory=dict)
    compared_schemas: dict[tuple[str, int, bool], Schema] = field(factory=dict)

    def compare_operations(self) -> None:
        for path in self.spec.paths:
            if path.startswith(FAMILIES) and path not in self.description.operations:
                self.add(path, Kind.NOT_SERVED)
        for path, operation in self.description.operations.items():
            if path not in self.spec.paths:
                self.add(path, Kind.NO_OPERATION)
            elif "post" not in self.spec.paths[path]:
                self.add(path, Kind.NOT_POSTED)
            else:
                self.compare_operation(path, operation)

    def compare_operation(self, path: str, operation: Operation) -> None:
        request, response = self.spec.request_schema(path), self.spec.response_schema(path)
        if request is None:
            self.add(path, Kind.OTHER_REQUEST)
        else:
            self.compare_record(operation.request, request, is_response=False)
        if (response is None) != (operation.response is None):
            self.add(path, Kind.OTHER_RESPONSE)
        elif response is not None and operation.response is not None:
            self.compare_record(operation.response, response, is_response=True)

    def compare_record(self, name: str, schema: Schema, *, is_response: bool) -> None:
        schema = self.resolve(name, schema)
        if (name, id(schema), is_response) in self.compared_schemas:
            return
        self.compared_schemas[name, id(schema), is_response] = schema
        ours, theirs = self.description.records[name], schema.get("properties", {})
        if not ours.keeps_unknown and (is_response or schema.get("additionalProperties")):
            self.add(name, Kind.UNKNOWN_DROPPED)
        for each in ours.fields.keys() - theirs.keys():
            self.add(f"{name}.{each}", Kind.UNKNOWN_FIELD)
        for each in theirs.keys() - (set() if is_response else CREDENTIALS):
            if each in ours.fields:
                self.compare_field(f"{name}.{each}", ours.fields[each], schema, is_response=is_response)
            else:
                self.add(f"{name}.{each}", Kind.NO_FIELD)

    def compare_field(self, where: str, ours: Field, parent: Schema, *, is_response: bool) -> None:
        name = where.rpartition(".")[2]
        schema = self.resolve(where, parent["properties"][name])
        required = name in parent.get("required", ())
        if is_response:
            self.compare_presence(where, ours, required=required, nullable=is_nullable(schema))
        else:
            self.compare_request_field(where, ours, schema, required=required)
        self.compare_shape(where, ours.shape, schema, is_response=is_response)

    def compare_presence(self, where: str, ours: Field, *, required: bool, nullable: bool) -> None:
        always_present = required and not nullable
        if always_present and (ours.shape.nullable or not ours.required):
            self.add(where, Kind.LAX)
        if not always_present and (ours.required or not ours.shape.nullable):
            self.add(where, Kind.STRICT)
        if required and nullable and ours.omitted_by_default:
            self.add(where, Kind.NOT_ALWAYS_SENT)
        if ours.always_sent and not required:
            self.add(where, Kind.ALWAYS_SENT)

    def compare_request_field(self, where: str, ours: Field, schema: Schema, *, required: bool) -> None:
        if required and ours.omitted_by_default:
            self.add(where, Kind.OMITTED)
        if not required and ours.required:
            self.add(where, Kind.REQUIRED)
        if ours.omitted_by_default and ours.default is False and schema.get("default") is not False:
            self.add(where, Kind.OTHER_DEFAULT)

    def compare_shape(self, where: str, ours: Shape, schema: Schema, *, is_response: bool) -> None:
        kind = kind_of(schema)
        if kind != ours.kind:
            self.add(where, Kind.OTHER_TYPE, f"{kind} in the document, {ours.kind} in the record")
        elif ours.items is not None:
            self.compare_elements(f"{where}[]", ours.items, schema, is_response=is_response)
        elif kind == "object":
            self.compare_record(ours.record, schema, is_response=is_response)
        else:
            self.compare_values(
                where, ours.values, {value for value in schema.get("enum", ()) if value is not None}
            )

    def compare_elements(self, where: str, ours: Shape, schema: Schema, *, is_response: bool) -> None:
        inner = self.resolve(where, schema.get("items", {}))
        if ours.kind == "anything" and kind_of(inner) in {"anything", "any object"}:
            return
        if ours.nullable and not is_nullable(inner):
            self.add(where, Kind.ELEMENTS_LAX)
        if is_nullable(inner) and not ours.nullable:
            self.add(where, Kind.ELEMENTS_STRICT)
        self.compare_shape(where, ours, inner, is_response=is_response)

    def compare_values(self, where: str, ours: frozenset[str] | None, theirs: set[str]) -> None:
        if ours is None:
            if theirs:
                self.add(where, Kind.NO_CONSTANTS)
        elif not theirs:
            self.add(where, Kind.NEEDLESS_CONSTANTS)
        else:
            for value in sorted(theirs - ours):
                self.add(f"{where}={value}", Kind.NO_CONSTANT)
            for value in sorted(ours - theirs):
                self.add(f"{where}={value}", Kind.UNKNOWN_CONSTANT)

    def resolve(self, where: str, schema: Schema) -> Schema:
        schema = self.spec.resolve(schema)
        for key in schema.keys() - _SUPPORTED_KEYS:
            if not key.startswith("x-"):
                self.add(where, Kind.NOT_SUPPORTED, key)
        return schema

    def add(self, where: str, kind: Kind, detail: str = "") -> None:
        self.differences[Difference(where, kind, detail)] = None


def is_nullable(schema: Schema) -> bool:
    """Return whether a resolved schema allows null."""
    # Plaid uses both forms for sets of values.
    return bool(schema.get("nullable")) or None in schema.get("enum", ())


def kind_of(schema: Schema) -> str:
    """Return the kind of a resolved schema; see `Shape`."""
    kind = schema.get("type", "object" if "properties" in schema else "anything")
    if kind == "object" and "properties" not in schema:
        return "any object"
    return schema["format"] if schema.get("format") in {"date", "date-time", "binary"} else str(kind)


def compared_schemas(
    spec: Specification, description: Description, *, is_response: bool
) -> Iterator[tuple[str, Schema]]:
    """Yield each record that is in the document, with the schema that it was compared with."""
    walk = _Comparison(spec, description)
    walk.compare_operations()
    return (
        (name, schema)
        for (name, _, of_response), schema in walk.compared_schemas.items()
        if of_response is is_response
    )


def find_differences(spec: Specification, description: Description) -> list[Difference]:
    """Return all differences, allowed or not, in the order of their places."""
    walk = _Comparison(spec, description)
    walk.compare_operations()
    return sorted(walk.differences, key=str)


# --------------------------------------------------------------------------------- allowed differences


class Documents(enum.Enum):
    """The documents that a difference is allowed for.

    Two versions of the document are known: 1.697.4, and 1.778.0, from which the client plaid-python 46.0.0 was
    generated. A difference that arose between them applies to one of the two, and may apply to the versions in
    between. A difference that an excerpt of the document has by its nature may be missing.
    """

    ALL = "all"
    EXCERPTS = "excerpts"
    OLDER = "older"
    NEWER = "newer"

    def may_apply(self, spec: Specification) -> bool:
        """Return whether it may apply to the document."""
        return {
            Documents.ALL: True,
            Documents.EXCERPTS: len(spec.paths) < _PATHS_OF_AN_EXCERPT,
            Documents.OLDER: spec.version < _NEWER,
            Documents.NEWER: spec.version > _OLDER,
        }[self]

    def must_apply(self, spec: Specification) -> bool:
        """Return whether it has to apply to the document, and is stale otherwise."""
        return {
            Documents.ALL: True,
            Documents.EXCERPTS: False,
            Documents.OLDER: spec.version <= _OLDER,
            Documents.NEWER: spec.version >= _NEWER,
        }[self]


_OLDER: Final = (1, 697, 4)
_NEWER: Final = (1, 778, 0)
_PATHS_OF_AN_EXCERPT: Final = 100  # the complete document has more than 300


@frozen
class Allowed:
    """An allowed difference: its place, its kind, the reason, and the documents that it applies to.

    With an `operation` it applies only to documents that have this operation.
    """

    where: str
    kind: Kind
    reason: str
    documents: Documents = Documents.ALL
    operation: str | None = None

    def may_apply(self, spec: Specification) -> bool:
        """Return whether it may apply to the document."""
        return self.documents.may_apply(spec) and (self.operation is None or self.operation in spec.paths)

    def covers(self, difference: Difference) -> bool:
        """Return whether the difference is this one."""
        return (difference.where, difference.kind) == (self.where, self.kind)


def _allow_each(
    where: str, ends: Iterable[str], kind: Kind, why: str, documents: Documents = Documents.ALL
) -> Iterable[Allowed]:
    return (Allowed(f"{where}{end}", kind, why, documents) for end in ends)


_RECOVERED = "`None` if a response was damaged and only its token could be read"
_INFERRED = "client-side: a repeated removal found nothing to remove"
_OF_AN_INFERRED = "`None` if the removal is inferred, and no response reported success"
_NOT_IN_EXCERPT = "an excerpt for relays and reports may lack it; Plaid's complete document has it"
_MOVED = "Plaid moved it from investment transactions to holdings in mid-2026: reports of both ages are read"

ALLOWED: Final = (
    *_allow_each(
        "/asset_report/audit_copy/",
        ("create", "get", "pdf/get", "remove"),
        Kind.NOT_SERVED,
        "copies for auditors such as Fannie Mae: another way to share a report, which is out of scope",
    ),
    Allowed("/item/remove", Kind.NO_OPERATION, _NOT_IN_EXCERPT, Documents.EXCERPTS),
    Allowed("/sandbox/item/fire_webhook", Kind.NO_OPERATION, _NOT_IN_EXCERPT, Documents.EXCERPTS),
    Allowed("/beta/webhook_events/list", Kind.NO_OPERATION, "new in mid-2026", Documents.OLDER),
    # Client-side fields.
    Allowed("AssetReportGetResponse.raw", Kind.UNKNOWN_FIELD, "client-side: the bytes of the response"),
    Allowed("RelayRemoveResponse.inferred", Kind.UNKNOWN_FIELD, _INFERRED),
    Allowed("AssetReportRemoveResponse.inferred", Kind.UNKNOWN_FIELD, _INFERRED),
    Allowed("ItemRemoveResponse.inferred", Kind.UNKNOWN_FIELD, _INFERRED, operation="/item/remove"),
    # The records are more lenient than the document.
    Allowed("RelayCreateResponse.request_id", Kind.LAX, _RECOVERED),
    Allowed("RelayRefreshResponse.request_id", Kind.LAX, _RECOVERED),
    Allowed("RelayRemoveResponse.request_id", Kind.LAX, _OF_AN_INFERRED),
    Allowed("AssetReportRemoveResponse.request_id", Kind.LAX, _OF_AN_INFERRED),
    Allowed("ItemRemoveResponse.request_id", Kind.LAX, _OF_AN_INFERRED, operation="/item/remove"),
    Allowed(
        "Cause.item_id",
        Kind.LAX,
        "required, but none of the properties of the error that it extends; a warning without it is readable",
    ),
    Allowed(
        "Cause.error_message",
        Kind.LAX,
        "a text for developers; a report without it is readable",
    ),
    # The records are stricter than the document.
    Allowed(
        "AssetReportCreateRequest.access_tokens",
        Kind.REQUIRED,
        "a report needs an Item; it is optional in the document for users of another product",
    ),
    # Fields that changed in mid-2026.
    Allowed(
        "AddressData.street",
        Kind.LAX,
        "nullable since mid-2026, and older reports are read with the same record",
        Documents.OLDER,
    ),
    Allowed(
        "AssetReportInvestmentHolding.cost_basis",
        Kind.NOT_ALWAYS_SENT,
        "removed in mid-2026, so not always present",
        Documents.OLDER,
    ),
    Allowed(
        "AssetReportInvestmentHolding.cost_basis",
        Kind.UNKNOWN_FIELD,
        "reports from before mid-2026 have it, and can still be read",
        Documents.NEWER,
    ),
    Allowed("AssetReportInvestmentHolding.tax_lots", Kind.UNKNOWN_FIELD, "new in mid-2026", Documents.OLDER),
    *_allow_each(
        "AssetReportInvestmentHolding.vested_",
        ("quantity", "value"),
        Kind.UNKNOWN_FIELD,
        _MOVED,
        Documents.OLDER,
    ),
    *_allow_each(
        "AssetReportInvestmentTransaction.vested_", ("quantity", "value"), Kind.LAX, _MOVED, Documents.OLDER
    ),
    *_allow_each(
        "AssetReportInvestmentTransaction.vested_",
        ("quantity", "value"),
        Kind.UNKNOWN_FIELD,
        _MOVED,
        Documents.NEWER,
    ),
    Allowed(
        "SandboxItemFireWebhookRequest.options",
        Kind.NO_FIELD,
        "the number of transactions in a webhook of /transactions/sync, which reports don't have",
        Documents.NEWER,
        "/sandbox/item/fire_webhook",
    ),
    # Values that changed in mid-2026.
    *_allow_each(
        "AssetReportWarning.warning_code=BANK_INCOME_INSIGHTS_",
        (
            "INCOMPLETE",
            "INSUFFICIENT_DATA",
            "INTERNAL_ERROR",
            "MISMATCHED_DAYS_REQUESTED",
            "STATUS_IN_PROGRESS",
        ),
        Kind.UNKNOWN_CONSTANT,
        "Plaid sent them before its document had them (its changelog, 1.699.1)",
        Documents.OLDER,
    ),
    Allowed(
        "AccountAssets.ownership_type=null",
        Kind.UNKNOWN_CONSTANT,
        "a string since mid-2026, in addition to the null that it means",
        Documents.OLDER,
    ),
    *_allow_each(
        "AccountAssets.subtype=",
        ("commercial line of credit", "home equity loan", "prediction market"),
        Kind.UNKNOWN_CONSTANT,
        "new in mid-2026",
        Documents.OLDER,
    ),
    *_allow_each(
        "SandboxPublicTokenCreateRequest.initial_products[]=",
        ("cra_home_lending", "cra_qualify"),
        Kind.UNKNOWN_CONSTANT,
        "new in mid-2026",
        Documents.OLDER,
    ),
    *_allow_each(
        "Cause.error_type=",
        (
            "ASSETS_ERROR",
            "CRA_MONITORING_ERROR",
            "CRA_PARTNER_INSIGHTS_ERROR",
            "CRA_REPORT_ERROR",
            "CREDIT_PROFILE_REPORT_ERROR",
            "ENCOMPASS_ERROR",
            "ENRICH_ERROR",
            "FRAUD_INSIGHTS_ERROR",
            "FREDDIE_MAC_ERROR",
            "IDEMPOTENCY_ERROR",
            "LINK_DELIVERY_ERROR",
            "PROFILE_ERROR",
            "RECURRING_TRANSACTIONS_ERROR",
            "STATEMENTS_ERROR",
            "TRANSFER_RECURRING_ERROR",
            "TRANSFER_REFUND_ERROR",
        ),
        Kind.UNKNOWN_CONSTANT,
        "new in mid-2026",
        Documents.OLDER,
    ),
    *_allow_each(
        "AssetReportInvestmentTransaction.subtype=",
        ("fund fee", "loan payment", "rebalance"),
        Kind.UNKNOWN_CONSTANT,
        "removed in mid-2026; older reports have them",
        Documents.NEWER,
    ),
)


def find_drift(
    spec: Specification, description: Description, allowed: Sequence[Allowed] = ALLOWED
) -> list[Difference]:
    """Return the differences that aren't allowed, and the stale entries of `allowed`."""
    found_differences = find_differences(spec, description)
    applicable = [each for each in allowed if each.may_apply(spec)]
    allowed_by = {
        difference: [each for each in applicable if each.covers(difference)]
        for difference in found_differences
    }
    used = {each for several in allowed_by.values() for each in several}
    stale = [
        Difference(each.where, Kind.STALE, each.kind.value)
        for each in applicable
        if each not in used and each.documents.must_apply(spec)
    ]
    return [difference for difference in found_differences if not allowed_by[difference]] + stale


def main(arguments: Sequence[str]) -> int:
    """Print the drift of the document at a path; see the module's docstring for the exit status."""
    try:
        spec = Specification.load(_path(arguments))
        found_differences = find_drift(spec, describe_code())
        version = ".".join(map(str, spec.version))
    except UnreadableError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.writelines(f"{difference}\n" for difference in found_differences)
    sys.stderr.write(f"{len(found_differences)} differences from the document {version}\n")
    return 1 if found_differences else 0


def _path(arguments: Sequence[str]) -> str:
    if len(arguments) != 1:
        raise UnreadableError("the path of Plaid's OpenAPI document is missing: nox -s drift -- PATH")
    return arguments[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
