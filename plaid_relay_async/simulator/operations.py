"""Plaid's operations: one row for each in `OPERATIONS`, and one short handler.

A handler is called with the state, the caller's client_id and the checked body. It returns a JSON object, a
report or a PDF, or raises ApiError.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import field, frozen

from plaid_relay_async.simulator import samples, webhooks
from plaid_relay_async.simulator.api_errors import ApiError
from plaid_relay_async.simulator.checks import (
    BOOLEAN,
    DATE,
    TIME,
    URL,
    URL_OR_EMPTY,
    Fields,
    integer,
    json_object,
    list_of,
    nullable,
    one_of,
    required,
    string,
)
from plaid_relay_async.simulator.outline import USER_FIELDS, Outline
from plaid_relay_async.simulator.webhook_log import MAX_PAGE, STATUSES
from plaid_relay_async.simulator.world import Report, ReportOptions, World


@frozen
class OperationRequest:
    """A request with valid credentials and fields; `request[name]` is a field, or None if it is absent."""

    world: World
    client_id: str
    request_id: str
    body: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.body.get(name)

    def options(self) -> Mapping[str, Any]:
        """Return the nested options, or an empty mapping if the body has none."""
        return self.body.get("options", {})  # type: ignore[no-any-return]  # checked to be an object


@frozen
class PendingReport:
    """A response with a report that is not encoded yet, because that takes time for a big one."""

    outline: Outline
    insights: bool


OperationResult: TypeAlias = dict[str, Any] | bytes | PendingReport
Handler: TypeAlias = Callable[[OperationRequest], OperationResult]


def _with_credentials(fields: Fields) -> Fields:
    # They may be in headers instead. If they are in the body, they must be strings.
    return {**fields, "client_id": _ANY_STRING, "secret": _ANY_STRING}


# Plaid's schemas set no minimum length for any string. An empty token, however, is never valid.
_ANY_STRING = string(allow_empty=True)


@frozen
class Operation:
    """An endpoint: the function that executes a request, and the fields of its body without credentials."""

    handler: Handler
    fields: Fields = field(converter=_with_credentials)


def _public_token_create(request: OperationRequest) -> OperationResult:
    token = request.world.create_public_token(
        request.client_id,
        request["institution_id"],
        request["initial_products"],
        webhook=request.options().get("webhook"),
        user_token=request["user_token"],
    )
    return {"public_token": token}


def _public_token_exchange(request: OperationRequest) -> OperationResult:
    item = request.world.exchange_public_token(request.client_id, request["public_token"])
    return {"access_token": item.access_token, "item_id": item.login.item_id}


def _item_remove(request: OperationRequest) -> OperationResult:
    request.world.remove_item(request.client_id, request["access_token"])
    return {}


def _fire_webhook(request: OperationRequest) -> OperationResult:
    request.world.fire_webhook(
        request.client_id,
        request["access_token"],
        code=request["webhook_code"],
        requested_type=request["webhook_type"],
        request_id=request.request_id,
        new_transactions=request.options().get("new_transactions"),
    )
    return {"webhook_fired": True}


def _webhook_key_get(request: OperationRequest) -> OperationResult:
    return {"key": request.world.webhook_keys.find_public_key(request["key_id"])}


def _webhook_events_list(request: OperationRequest) -> OperationResult:
    return request.world.webhooks.list_events(request.client_id, request.body)


def _report_create(request: OperationRequest) -> OperationResult:
    options = request.options()
    # `products` and `include_fast_report` are the deprecated forms of `add_ons`.
    add_ons = {*options.get("add_ons", ()), *options.get("products", ())}
    report_options = ReportOptions(
        client_report_id=options.get("client_report_id"),
        user=options.get("user", {}),
        investments="investments" in add_ons,
        fast_assets="fast_assets" in add_ons or bool(options.get("include_fast_report")),
        require_all_items=options.get("require_all_items") is not False,
        webhook=options.get("webhook"),
    )
    return _report_identifiers(
        *request.world.create_report(
            request.client_id, request["access_tokens"], request["days_requested"], report_options
        )
    )


def _report_identifiers(token: str, report: Report) -> OperationResult:
    return {"asset_report_token": token, "asset_report_id": report.outline.report_id}


def _report_refresh(request: OperationRequest) -> OperationResult:
    return _report_identifiers(
        *request.world.refresh_report(
            request.client_id, request["asset_report_token"], request["days_requested"], request.options()
        )
    )


def _report_filter(request: OperationRequest) -> OperationResult:
    return _report_identifiers(
        *request.world.filter_report(
            request.client_id, request["asset_report_token"], request["account_ids_to_exclude"]
        )
    )


def _report_get(request: OperationRequest) -> OperationResult:
    report = _own_report(request)
    outline = (
        request.world.fast_outline(report) if request["fast_report"] else request.world.ready_outline(report)
    )
    return PendingReport(
        outline.with_days_to_include(_days_to_include(request)), bool(request["include_insights"])
    )


def _own_report(request: OperationRequest) -> Report:
    """Return the report of the report token or, without one, the user's latest report (our choice)."""
    if request["asset_report_token"] is not None:
        return request.world.get_report(request.client_id, request["asset_report_token"])
    if request["user_token"] is not None:
        return request.world.latest_report_of_user(request.client_id, request["user_token"])
    raise ApiError("MISSING_FIELDS", "the following required fields are missing: asset_report_token")


def _days_to_include(request: OperationRequest) -> int | None:
    return request.options().get("days_to_include")


def _report_pdf_get(request: OperationRequest) -> OperationResult:
    outline = request.world.ready_outline(
        request.world.get_report(request.client_id, request["asset_report_token"])
    )
    return samples.render_report_pdf(outline.with_days_to_include(_days_to_include(request)))


def _report_remove(request: OperationRequest) -> OperationResult:
    request.world.remove_report(request.client_id, request["asset_report_token"])
    return {"removed": True}


def _relay_create(request: OperationRequest) -> OperationResult:
    [report_token] = request["report_tokens"]
    partner = request["secondary_client_id"]
    return {
        "relay_token": request.world.create_relay(
            request.client_id, report_token, partner, request.request_id, request["webhook"]
        )
    }


def _relay_get(request: OperationRequest) -> OperationResult:
    relay = request.world.get_relay_token(request.client_id, request["relay_token"])
    outline = request.world.ready_outline(relay.report)
    # Plaid publishes it for this operation. That the one for PDFs doesn't send a webhook is our choice.
    request.world.announce_retrieval(relay)
    return PendingReport(outline, bool(request["include_insights"]))


def _relay_pdf_get(request: OperationRequest) -> OperationResult:
    relay = request.world.get_relay_token(request.client_id, request["relay_token"])
    return samples.render_report_pdf(request.world.ready_outline(relay.report))


def _relay_refresh(request: OperationRequest) -> OperationResult:
    report_id = request.world.refresh_relay(request.client_id, request["relay_token"], request["webhook"])
    return {"relay_token": request["relay_token"], "asset_report_id": report_id}


def _relay_remove(request: OperationRequest) -> OperationResult:
    request.world.remove_relay(request.client_id, request["relay_token"])
    return {"removed": True}


# fmt: off
_PRODUCTS = one_of(
    "assets", "auth", "balance", "balance_plus", "beacon", "identity", "identity_match", "investments",
    "investments_auth", "liabilities", "payment_initiation", "identity_verification", "transactions",
    "credit_details", "income", "income_verification", "standing_orders", "transfer", "employment",
    "recurring_transactions", "transactions_refresh", "signal", "statements", "processor_payments",
    "processor_identity", "profile", "cra_base_report", "cra_income_insights", "cra_partner_insights",
    "cra_network_insights", "cra_cashflow_insights", "cra_monitoring", "cra_lend_score",
    "cra_plaid_credit_score", "cra_qualify", "cra_home_lending", "layer", "pay_by_bank",
    "protect_linked_bank", "protect_transactions",
)
# fmt: on
_SANDBOX_OPTIONS = json_object(
    {
        "webhook": URL,
        "override_username": nullable(_ANY_STRING),
        "override_password": nullable(_ANY_STRING),
        "transactions": nullable(
            json_object({"start_date": DATE, "end_date": DATE, "days_requested": integer(1, 730)})
        ),
        "statements": nullable(json_object({"start_date": required(DATE), "end_date": required(DATE)})),
        "income_verification": json_object(
            {
                "income_source_types": list_of(one_of("bank", "payroll")),
                "bank_income": json_object({"days_requested": integer()}),
            }
        ),
    }
)
_REPORT_DAYS = integer(0, 731)
_DAYS_TO_INCLUDE = json_object({"days_to_include": nullable(_REPORT_DAYS)})
_REPORT_OPTIONS = json_object(
    {
        "client_report_id": nullable(_ANY_STRING),
        "webhook": nullable(URL),
        "include_fast_report": nullable(BOOLEAN),
        "products": list_of(_ANY_STRING),
        "add_ons": list_of(one_of("investments", "fast_assets")),
        # The only object in a request for which Plaid's schema allows further fields.
        "user": json_object(dict.fromkeys(USER_FIELDS, nullable(_ANY_STRING)), closed=False),
        "require_all_items": nullable(BOOLEAN),
    }
)
# Only here does "" have a meaning, which Plaid documents: "Submit an empty string for any
# previously-populated fields you would like set as empty."
_REFRESH_OPTIONS = json_object(
    {
        "client_report_id": nullable(_ANY_STRING),
        "webhook": nullable(URL_OR_EMPTY),
        "user": json_object(dict.fromkeys(USER_FIELDS, nullable(_ANY_STRING)), closed=False),
    }
)
_REASONS = one_of(
    "FRAUD_FIRST_PARTY",
    "FRAUD_FALSE_IDENTITY",
    "FRAUD_ABUSE",
    "FRAUD_OTHER",
    "CONNECTION_IS_NON_FUNCTIONAL",
    "OTHER",
)
_REQUIRED_STRING = required(string())
# The samples in Plaid's docs have "assets", but the only value in the schema is "asset". Plaid doesn't
# publish whether it accepts the former: rejecting it is our choice.
_REPORT_TYPE = required(one_of("asset"))

OPERATIONS: Mapping[str, Operation] = {
    "/sandbox/public_token/create": Operation(
        _public_token_create,
        {
            "institution_id": _REQUIRED_STRING,
            "initial_products": required(list_of(_PRODUCTS, min_length=1)),
            "options": _SANDBOX_OPTIONS,
            "user_token": _ANY_STRING,
            "user_id": _ANY_STRING,
        },
    ),
    "/item/public_token/exchange": Operation(_public_token_exchange, {"public_token": _REQUIRED_STRING}),
    "/item/remove": Operation(
        _item_remove,
        {
            "access_token": _REQUIRED_STRING,
            "reason_code": nullable(_REASONS),
            "reason_note": nullable(string(max_length=512, allow_empty=True)),
        },
    ),
    "/sandbox/item/fire_webhook": Operation(
        _fire_webhook,
        {
            "access_token": _REQUIRED_STRING,
            "webhook_code": required(one_of(*webhooks.WEBHOOK_CODES)),
            "webhook_type": one_of(*webhooks.WEBHOOK_TYPES),
            "options": json_object({"new_transactions": integer(0, math.inf)}),
        },
    ),
    "/webhook_verification_key/get": Operation(_webhook_key_get, {"key_id": _REQUIRED_STRING}),
    "/beta/webhook_events/list": Operation(
        _webhook_events_list,
        {
            "cursor": string(max_length=512),
            "start_time": nullable(TIME),
            "count": nullable(integer(1, MAX_PAGE)),
            "webhook_types": list_of(_ANY_STRING),
            "webhook_codes": list_of(_ANY_STRING),
            "item_ids": list_of(_ANY_STRING),
            "delivery_statuses": list_of(one_of(*STATUSES)),
        },
    ),
    "/asset_report/create": Operation(
        _report_create,
        {
            # Optional in the schema, but a report needs an Item.
            "access_tokens": required(list_of(string(), min_length=1, max_length=99)),
            "days_requested": required(_REPORT_DAYS),
            "options": _REPORT_OPTIONS,
        },
    ),
    "/asset_report/get": Operation(
        _report_get,
        {
            # The schema requires neither of the two tokens, but one is needed; see _own_report.
            "asset_report_token": string(),
            "user_token": _ANY_STRING,
            "include_insights": BOOLEAN,
            "fast_report": BOOLEAN,
            "options": _DAYS_TO_INCLUDE,
        },
    ),
    "/asset_report/pdf/get": Operation(
        _report_pdf_get, {"asset_report_token": _REQUIRED_STRING, "options": _DAYS_TO_INCLUDE}
    ),
    "/asset_report/refresh": Operation(
        _report_refresh,
        {
            "asset_report_token": _REQUIRED_STRING,
            "days_requested": nullable(_REPORT_DAYS),
            "options": _REFRESH_OPTIONS,
        },
    ),
    "/asset_report/filter": Operation(
        _report_filter,
        {"asset_report_token": _REQUIRED_STRING, "account_ids_to_exclude": required(list_of(string()))},
    ),
    "/asset_report/remove": Operation(_report_remove, {"asset_report_token": _REQUIRED_STRING}),
    "/credit/relay/create": Operation(
        _relay_create,
        {
            # At most one token of each report type, and the Asset Report is the only type.
            "report_tokens": required(list_of(string(), min_length=1, max_length=1)),
            "secondary_client_id": _REQUIRED_STRING,
            "webhook": nullable(URL),
        },
    ),
    "/credit/relay/get": Operation(
        _relay_get,
        {"relay_token": _REQUIRED_STRING, "report_type": _REPORT_TYPE, "include_insights": BOOLEAN},
    ),
    "/credit/relay/pdf/get": Operation(
        _relay_pdf_get, {"relay_token": _REQUIRED_STRING, "report_type": _REPORT_TYPE}
    ),
    "/credit/relay/refresh": Operation(
        _relay_refresh,
        {"relay_token": _REQUIRED_STRING, "report_type": _REPORT_TYPE, "webhook": nullable(URL)},
    ),
    "/credit/relay/remove": Operation(_relay_remove, {"relay_token": _REQUIRED_STRING}),
}
