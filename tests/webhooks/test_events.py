"""The events of webhooks."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from attrs import fields
from canaries import assert_error_is_clean, assert_no_canary
from hypothesis import given
from hypothesis import strategies as st
from webhook_signing import BODY, EXAMPLES

from plaid_relay_async import ResponseDecodeError, from_json, models, to_json
from plaid_relay_async.webhooks import (
    AssetsErrorWebhook,
    AssetsProductReadyWebhook,
    ItemErrorWebhook,
    ItemLoginRepairedWebhook,
    NewAccountsAvailableWebhook,
    PendingDisconnectWebhook,
    PendingExpirationWebhook,
    RawBodyRequiredError,
    UnknownWebhook,
    UserAccountRevokedWebhook,
    UserPermissionRevokedWebhook,
    WebhookDecodeError,
    WebhookUpdateAcknowledgedWebhook,
    parse,
)

# The shape of an error in Plaid's document, whose example quotes an access token.
ERROR = {
    "display_message": None,
    "error_code": "PRODUCT_NOT_ENABLED",
    "error_message": "not enabled for: access-sandbox-canary-1",
    "error_type": "ASSET_REPORT_ERROR",
    "request_id": "m8MDnv9okwxFNBV",
    "status": 400,
}
ITEM = {"webhook_type": "ITEM", "item_id": "item-1", "environment": "sandbox"}
REPORT = {"webhook_type": "ASSETS", "asset_report_id": "report-1", "environment": "sandbox"}

EVENTS = [
    (REPORT | {"webhook_code": "PRODUCT_READY", "report_type": "FAST"}, AssetsProductReadyWebhook),
    (REPORT | {"webhook_code": "PRODUCT_READY", "user_id": "u"}, AssetsProductReadyWebhook),
    (REPORT | {"webhook_code": "ERROR", "error": ERROR}, AssetsErrorWebhook),
    (REPORT | {"webhook_code": "ERROR", "error": None}, AssetsErrorWebhook),
    (ITEM | {"webhook_code": "ERROR", "error": ERROR}, ItemErrorWebhook),
    (ITEM | {"webhook_code": "LOGIN_REPAIRED"}, ItemLoginRepairedWebhook),
    (ITEM | {"webhook_code": "NEW_ACCOUNTS_AVAILABLE"}, NewAccountsAvailableWebhook),
    (
        ITEM | {"webhook_code": "PENDING_DISCONNECT", "reason": "INSTITUTION_MIGRATION"},
        PendingDisconnectWebhook,
    ),
    (
        ITEM | {"webhook_code": "PENDING_EXPIRATION", "consent_expiration_time": "2026-01-15T13:25:17Z"},
        PendingExpirationWebhook,
    ),
    (ITEM | {"webhook_code": "USER_PERMISSION_REVOKED", "error": ERROR}, UserPermissionRevokedWebhook),
    (ITEM | {"webhook_code": "USER_ACCOUNT_REVOKED", "account_id": "a"}, UserAccountRevokedWebhook),
    (
        ITEM
        | {"webhook_code": "WEBHOOK_UPDATE_ACKNOWLEDGED", "new_webhook_url": "https://canary-url.example"},
        WebhookUpdateAcknowledgedWebhook,
    ),
    ({"webhook_type": "RELAY", "webhook_code": "RETRIEVED", "relay": {"n": 1.5}}, UnknownWebhook),
    (ITEM | {"webhook_code": "OF_TOMORROW"}, UnknownWebhook),
    ({"webhook_type": 7, "webhook_code": None, "environment": []}, UnknownWebhook),
    ({}, UnknownWebhook),
]


@pytest.mark.parametrize(("payload", "record"), EVENTS)
def test_each_webhook_has_a_record(payload, record):
    """The type and the code select the record, which keeps all fields, and can be stored and read again."""
    for body in (payload, payload | {"added_by_plaid": [1, "x"]}):
        event = parse(json.dumps(body).encode())
        assert type(event) is record
        written = json.loads(to_json(event))
        assert {**body, **written} == body
        assert {name for name, value in body.items() if value is not None} <= written.keys() | {"error"}
        assert from_json(to_json(event), record) == event
        assert_no_canary(repr(event))


def test_every_type_and_code_is_tested():
    """The table has the types and codes that are tested here, and no other."""
    tested = {
        (body["webhook_type"], body["webhook_code"]) for body, cls in EVENTS if cls is not UnknownWebhook
    }
    assert tested == set(models.WEBHOOK_RECORDS)


def test_a_report_that_is_ready():
    """The fields of a webhook about a report."""
    event = parse(BODY)
    assert event == AssetsProductReadyWebhook(
        webhook_type=models.WebhookType.ASSETS,
        webhook_code=models.WebhookCode.PRODUCT_READY,
        asset_report_id="canary-report-47dfc92b",
        report_type=models.AssetReportType.FULL,
        environment="sandbox",
    )


def test_a_report_that_failed():
    """The error of a report has Plaid's code."""
    event = parse(json.dumps(REPORT | {"webhook_code": "ERROR", "error": ERROR}).encode())
    assert event.error.error_code == "PRODUCT_NOT_ENABLED"


def test_an_item_that_expires():
    """A time is a time."""
    event = parse(json.dumps(EVENTS[8][0]).encode())
    assert event.consent_expiration_time == datetime(2026, 1, 15, 13, 25, 17, tzinfo=UTC)


def test_an_unknown_webhook_keeps_its_fields():
    """The type, the code and the environment of an unknown webhook are available if they are strings."""
    event = parse(b'{"webhook_type": "RELAY", "webhook_code": "X", "environment": "sandbox", "canary-1": 2}')
    assert (event.webhook_type, event.webhook_code, event.environment) == ("RELAY", "X", "sandbox")
    assert event.additional_properties["canary-1"] == 2
    assert repr(event) == "UnknownWebhook(webhook_type='RELAY', webhook_code='X')"
    event = parse(b'{"webhook_type": 1, "webhook_code": [], "environment": null}')
    assert (event.webhook_type, event.webhook_code, event.environment) == (None, None, None)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"[]", "$"),
        (b"\xff", "$"),
        (b"[" * 100_000, "$"),
        (b'{"environment": NaN}', "$"),
        (b'{"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY"}', "$.asset_report_id"),
        (
            b'{"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "asset_report_id": 7}',
            "$.asset_report_id",
        ),
        (b'{"webhook_type": "ITEM", "webhook_code": "ERROR", "item_id": "canary-1", "error": []}', "$.error"),
    ],
)
def test_a_webhook_of_another_form_is_an_error(body, path):
    """A webhook that isn't what Plaid's document says is an error with its path, and with the body."""
    with pytest.raises(WebhookDecodeError) as caught:
        parse(body)
    text = (
        rf"the webhook can't be read: [^.]+ at {re.escape(path)}\. Report the JSON path.*, or respond with .*"
    )
    assert re.fullmatch(text, str(caught.value))
    assert isinstance(caught.value, ResponseDecodeError)
    assert (caught.value.path, caught.value.response_status, caught.value.sent) == (path, 500, False)
    assert caught.value.body.reveal() == body
    assert_error_is_clean(caught.value)


def test_only_bytes_are_parsed():
    """A body that was decoded is a mistake."""
    with pytest.raises(RawBodyRequiredError):
        parse(BODY.decode())


@EXAMPLES
@given(
    st.dictionaries(
        st.sampled_from(["webhook_type", "webhook_code", "environment", "item_id", "error", "x"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text()
            | st.sampled_from(["ASSETS", "ITEM", "ERROR"]),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_whatever_plaid_sends_passes_or_is_an_error(payload):
    """Any JSON object is an event with all of its fields, or an error."""
    try:
        event = parse(json.dumps(payload).encode())
    except ResponseDecodeError:
        assert payload["webhook_type"] in {"ASSETS", "ITEM"}
    else:
        if isinstance(event, UnknownWebhook):
            assert event.additional_properties == payload


# In a document that is an excerpt, some of these schemas are missing.
ALWAYS_PUBLISHED = {"AssetsProductReadyWebhook", "AssetsErrorWebhook"}
# Plaid's documents have no error for these, but the records of all Items have one.
WITHOUT_ERROR = {
    "ItemLoginRepairedWebhook",
    "PendingDisconnectWebhook",
    "PendingExpirationWebhook",
    "UserAccountRevokedWebhook",
}


def test_the_records_match_the_document(openapi):
    """Each record has the fields of Plaid's schema, and Plaid's examples are read and written as they are."""
    schemas = openapi.document["components"]["schemas"]
    records = {record.__name__: record for record in models.WEBHOOK_RECORDS.values()}
    assert schemas.keys() >= ALWAYS_PUBLISHED
    for name, record in records.items():
        if name not in schemas:
            continue
        names = {attribute.name for attribute in fields(record)} - {"additional_properties"}
        assert names - ({"error"} if name in WITHOUT_ERROR else set()) <= schemas[name]["properties"].keys()
        assert schemas[name]["properties"].keys() <= names
        for example in schemas[name].get("x-examples", {}).values():
            event = parse(json.dumps(example).encode())
            assert type(event) is record
            assert json.loads(to_json(event)) == example
