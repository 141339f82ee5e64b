"""Encode requests to bytes and decode responses to records or errors, without any I/O.

This subpackage contains the endpoint table, and decides what a response means. `transport` decides whether to
retry after an error.
"""

from plaid_relay_async.codec.endpoints import (
    ASSET_REPORT_CREATE,
    ASSET_REPORT_FILTER,
    ASSET_REPORT_GET,
    ASSET_REPORT_PDF_GET,
    ASSET_REPORT_REFRESH,
    ASSET_REPORT_REMOVE,
    ENDPOINTS,
    ITEM_PUBLIC_TOKEN_EXCHANGE,
    ITEM_REMOVE,
    RELAY_CREATE,
    RELAY_GET,
    RELAY_PDF_GET,
    RELAY_REFRESH,
    RELAY_REMOVE,
    SANDBOX_ITEM_FIRE_WEBHOOK,
    SANDBOX_PUBLIC_TOKEN_CREATE,
    WEBHOOK_EVENTS_LIST,
    WEBHOOK_VERIFICATION_KEY_GET,
    Endpoint,
    Idempotency,
)
from plaid_relay_async.codec.records import encode_request, from_json, structure, to_json, unstructure
from plaid_relay_async.codec.responses import (
    RawResponse,
    error_of_response,
    parse_retry_after,
    read_response,
    redact_request_secrets,
    request_id_of,
)
from plaid_relay_async.codec.unique_members import DuplicateMemberError, unique_members

__all__ = [
    "ASSET_REPORT_CREATE",
    "ASSET_REPORT_FILTER",
    "ASSET_REPORT_GET",
    "ASSET_REPORT_PDF_GET",
    "ASSET_REPORT_REFRESH",
    "ASSET_REPORT_REMOVE",
    "ENDPOINTS",
    "ITEM_PUBLIC_TOKEN_EXCHANGE",
    "ITEM_REMOVE",
    "RELAY_CREATE",
    "RELAY_GET",
    "RELAY_PDF_GET",
    "RELAY_REFRESH",
    "RELAY_REMOVE",
    "SANDBOX_ITEM_FIRE_WEBHOOK",
    "SANDBOX_PUBLIC_TOKEN_CREATE",
    "WEBHOOK_EVENTS_LIST",
    "WEBHOOK_VERIFICATION_KEY_GET",
    "DuplicateMemberError",
    "Endpoint",
    "Idempotency",
    "RawResponse",
    "encode_request",
    "error_of_response",
    "from_json",
    "parse_retry_after",
    "read_response",
    "redact_request_secrets",
    "request_id_of",
    "structure",
    "to_json",
    "unique_members",
    "unstructure",
]
