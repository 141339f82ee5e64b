"""Plaid's OpenAPI document, read from a file, for the tests that compare with it or generate data from it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """A loader for YAML with the types of JSON: a date is a string."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # that is how yaml has it
        first: [(tag, pattern) for tag, pattern in several if tag != "tag:yaml.org,2002:timestamp"]
        for first, several in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


class UnreadableError(Exception):
    """The OpenAPI document can't be read; the text has the reason."""


@frozen(eq=False)
class Specification:
    """An OpenAPI document that resolves `$ref` and `allOf` in its schemas.

    Attributes:
        document: the document as it was read. It must not be changed, because resolved schemas are cached.
    """

    document: Mapping[str, Any] = field(repr=False)
    _resolved: dict[int, Schema] = field(factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Specification:
        """Read a YAML or JSON file.

        Raises:
            UnreadableError: the file can't be read, or isn't an OpenAPI document.
        """
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{path} can't be read: {error}") from error
        except yaml.YAMLError as error:
            raise UnreadableError(f"{path} is neither YAML nor JSON: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
            raise UnreadableError(f"{path} isn't an OpenAPI document: it has no paths")
        return cls(document)

    @property
    def version(self) -> tuple[int, ...]:
        """The document's version, such as (1, 697, 4) for `2020-09-14_1.697.4`."""
        version = str(self.document.get("info", {}).get("version"))
        match = re.fullmatch(r"\d{4}-\d\d-\d\d_(\d+)\.(\d+)\.(\d+)", version)
        if match is None:
            raise UnreadableError(
                f"the document's version is {version!r}, and not such as 2020-09-14_1.697.4"
            )
        return tuple(int(part) for part in match.groups())

    @property
    def paths(self) -> Mapping[str, Any]:
        """The paths of the document's operations."""
        paths: Mapping[str, Any] = self.document["paths"]
        return paths

    def request_schema(self, path: str) -> Schema | None:
        """Return the schema of an operation's JSON request."""
        return _json_schema(self.paths[path]["post"].get("requestBody", {}))

    def response_schema(self, path: str) -> Schema | None:
        """Return the schema of an operation's JSON response; `None` if it is a file."""
        return _json_schema(self.paths[path]["post"].get("responses", {}).get("200", {}))

    def examples(self, path: str) -> Iterator[Any]:
        """Yield the document's examples of an operation's responses."""
        for content in self.paths[path]["post"]["responses"]["200"].get("content", {}).values():
            for example in content.get("examples", {}).values():
                yield example["value"]

    def resolve(self, schema: Schema) -> Schema:
        """Return a schema with its `$ref` and `allOf` resolved.

        Plaid sets `nullable` on either side of a reference, and the outermost one counts. A schema that merges
        others and doesn't set it is nullable if all of them are.
        """
        if id(schema) not in self._resolved:
            self._resolved[id(schema)] = self._merge_all_of(self._follow_reference(schema))
        return self._resolved[id(schema)]

    def _follow_reference(self, schema: Schema) -> Schema:
        if "$ref" not in schema:
            return schema
        target: Any = self.document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            if step not in target:
                raise UnreadableError(f"{schema['$ref']} leads nowhere")
            target = target[step]
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        return {**self.resolve(target), **siblings}

    def _merge_all_of(self, schema: Schema) -> Schema:
        parts = [self.resolve(part) for part in schema.get("allOf", ())]
        if not parts:
            return schema
        own = {key: value for key, value in schema.items() if key != "allOf"}
        merged: Schema = {"nullable": all(part.get("nullable", False) for part in parts)}
        for part in (*parts, own):
            inherited = {key: value for key, value in part.items() if part is own or key != "nullable"}
            properties = merged.get("properties", {}) | inherited.get("properties", {})
            required = [*merged.get("required", ()), *inherited.get("required", ())]
            merged.update(inherited)
            merged.update(properties=properties, required=required)
        return merged


def _json_schema(body: Mapping[str, Any]) -> Schema | None:
    schema: Schema | None = body.get("content", {}).get("application/json", {}).get("schema")
    return schema


def copy_document(spec: Specification) -> dict[str, Any]:
    """Return a copy of the document that may be changed."""
    return copy.deepcopy(dict(spec.document))


# ------------------------------------------------------------------------------------ Plaid's API of mid-2026

# According to Plaid's client plaid-python 46.0.0, which was generated from the document 1.778.0.
_VERSION = "2020-09-14_1.778.0"


def as_of_mid_2026(spec: Specification) -> Specification:
    """Return the document with Plaid's changes up to 1.778.0, and with operations that an excerpt may lack."""
    document = copy_document(spec)
    schemas = document["components"]["schemas"]
    if spec.version < (1, 778, 0):
        document["info"]["version"] = _VERSION
        _change_investments(schemas)
        _change_values(schemas)
        schemas["AddressData"]["properties"]["street"]["nullable"] = True
    for path, (request, response) in _OTHER_OPERATIONS.items():
        document["paths"].setdefault(path, {"post": _operation(request, response)})
    return Specification(document)


def _change_investments(schemas: dict[str, Schema]) -> None:
    holding = schemas["AssetReportInvestmentHolding"]
    del holding["properties"]["cost_basis"]
    holding["required"].remove("cost_basis")
    transaction = schemas["AssetReportInvestmentTransaction"]
    for name in ("vested_quantity", "vested_value"):
        del transaction["properties"][name]
        transaction["required"].remove(name)
        holding["properties"][name] = {"type": "number", "nullable": True}
    holding["properties"]["tax_lots"] = {"type": "array", "items": _TAX_LOT}


def _change_values(schemas: dict[str, Schema]) -> None:
    for name, (removed, added) in _CHANGED_VALUES.items():
        values = schemas[name]["properties"]["warning_code"] if name == "Warning" else schemas[name]
        values["enum"] = [value for value in values["enum"] if value not in removed] + list(added)


_CHANGED_VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "AccountSubtype": ((), ("commercial line of credit", "home equity loan", "prediction market")),
    "InvestmentTransactionSubtype": (("fund fee", "loan payment", "rebalance"), ()),
    "OwnershipType": ((), ("null",)),
    "PlaidErrorType": (
        (),
        (
            *("ASSETS_ERROR", "CRA_MONITORING_ERROR", "CRA_PARTNER_INSIGHTS_ERROR", "CRA_REPORT_ERROR"),
            *("CREDIT_PROFILE_REPORT_ERROR", "ENCOMPASS_ERROR", "ENRICH_ERROR", "FRAUD_INSIGHTS_ERROR"),
            *("FREDDIE_MAC_ERROR", "IDEMPOTENCY_ERROR", "LINK_DELIVERY_ERROR", "PROFILE_ERROR"),
            *("RECURRING_TRANSACTIONS_ERROR", "STATEMENTS_ERROR", "TRANSFER_RECURRING_ERROR"),
            "TRANSFER_REFUND_ERROR",
        ),
    ),
    "Products": ((), ("cra_home_lending", "cra_qualify")),
    "Warning": (
        (),
        (
            "BANK_INCOME_INSIGHTS_INCOMPLETE",
            "BANK_INCOME_INSIGHTS_INSUFFICIENT_DATA",
            "BANK_INCOME_INSIGHTS_INTERNAL_ERROR",
            "BANK_INCOME_INSIGHTS_MISMATCHED_DAYS_REQUESTED",
            "BANK_INCOME_INSIGHTS_STATUS_IN_PROGRESS",
        ),
    ),
}


def _object(optional: tuple[str, ...] = (), *, is_response: bool = False, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "required": required, "properties": properties}
    return {**schema, "additionalProperties": True} if is_response else schema


def _operation(request: Schema, response: Schema) -> Schema:
    return {
        "requestBody": {"content": {"application/json": {"schema": request}}},
        "responses": {"200": {"content": {"application/json": {"schema": response}}}},
    }


_STRING: Schema = {"type": "string"}
_AMOUNT: Schema = {"type": "number", "nullable": True}
_TAX_LOT = _object(
    institution_lot_id={"type": "string", "nullable": True},
    original_purchase_datetime={"type": "string", "format": "date-time", "nullable": True},
    quantity=_AMOUNT,
    purchase_price=_AMOUNT,
    cost_basis=_AMOUNT,
    current_value=_AMOUNT,
    position_type={"type": "string", "enum": [None, "LONG", "SHORT"], "nullable": True},
    is_response=True,
)
_REASONS = [
    *(None, "FRAUD_FIRST_PARTY", "FRAUD_FALSE_IDENTITY", "FRAUD_ABUSE", "FRAUD_OTHER"),
    *("CONNECTION_IS_NON_FUNCTIONAL", "OTHER"),
]
_WEBHOOK_CODES = [
    *("DEFAULT_UPDATE", "NEW_ACCOUNTS_AVAILABLE", "SMS_MICRODEPOSITS_VERIFICATION", "AUTHORIZATION_GRANTED"),
    *("USER_PERMISSION_REVOKED", "USER_ACCOUNT_REVOKED", "PENDING_DISCONNECT", "PRODUCT_READY", "ERROR"),
    *("RECURRING_TRANSACTIONS_UPDATE", "LOGIN_REPAIRED", "SYNC_UPDATES_AVAILABLE"),
]
_WEBHOOK_TYPES = [
    *("AUTH", "HOLDINGS", "INVESTMENTS_TRANSACTIONS", "ITEM", "LIABILITIES", "TRANSACTIONS", "ASSETS"),
    "IDENTITY",
]
_STRINGS: Schema = {"type": "array", "items": _STRING}
_DELIVERY_STATUS = {"type": "string", "enum": ["PENDING", "DELIVERED", "FAILED"]}
_SENT_WEBHOOK = _object(
    webhook_message_id=_STRING,
    webhook_type=_STRING,
    webhook_code=_STRING,
    item_id={"type": "string", "nullable": True},
    sent_time={"type": "string", "format": "date-time"},
    payload={"type": "object", "additionalProperties": True},
    destination_url=_STRING,
    delivery_status=_DELIVERY_STATUS,
    last_http_status_code={"type": "integer", "nullable": True},
    attempt_count={"type": "integer"},
    last_attempt_time={"type": "string", "format": "date-time", "nullable": True},
    is_response=True,
)
_OTHER_OPERATIONS = {
    "/item/remove": (
        _object(
            ("client_id", "secret", "reason_code", "reason_note"),
            client_id=_STRING,
            secret=_STRING,
            access_token=_STRING,
            reason_code={"type": "string", "enum": _REASONS, "nullable": True},
            reason_note={"type": "string", "maxLength": 512, "nullable": True},
        ),
        _object(request_id=_STRING, is_response=True),
    ),
    "/sandbox/item/fire_webhook": (
        _object(
            ("client_id", "secret", "webhook_type", "options"),
            client_id=_STRING,
            secret=_STRING,
            access_token=_STRING,
            webhook_code={"type": "string", "enum": _WEBHOOK_CODES},
            webhook_type={"type": "string", "enum": _WEBHOOK_TYPES},
            options=_object(("new_transactions",), new_transactions={"type": "integer"}),
        ),
        _object(webhook_fired={"type": "boolean"}, request_id=_STRING, is_response=True),
    ),
    "/beta/webhook_events/list": (
        _object(
            (
                *("client_id", "secret", "cursor", "start_time", "count"),
                *("webhook_types", "webhook_codes", "item_ids", "delivery_statuses"),
            ),
            client_id=_STRING,
            secret=_STRING,
            cursor={"type": "string", "maxLength": 512},
            start_time={"type": "string", "format": "date-time", "nullable": True},
            count={"type": "integer", "minimum": 1, "maximum": 100, "default": 100, "nullable": True},
            webhook_types=_STRINGS,
            webhook_codes=_STRINGS,
            item_ids=_STRINGS,
            delivery_statuses={"type": "array", "items": _DELIVERY_STATUS},
        ),
        _object(
            webhook_events={"type": "array", "items": _SENT_WEBHOOK},
            has_more={"type": "boolean"},
            next_cursor=_STRING,
            request_id=_STRING,
            is_response=True,
        ),
    ),
}
