from __future__ import annotations

import copy
import json
import math
import pickle
import string
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from types import MappingProxyType

import pytest
from attrs import evolve, fields_dict, resolve_types
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from plaid_relay_async import codec, error_codes, models
from plaid_relay_async.codec import ENDPOINTS, Idempotency, RawResponse, read_response
from plaid_relay_async.codec.records import _JSON_TYPE_NAMES, _json_type_name, plaid_field_names
from plaid_relay_async.errors import (
    ConnectionLostError,
    InvalidRequestError,
    ItemError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidServerError,
    ResponseDecodeError,
)
from plaid_relay_async.redaction import Hidden

REPORT_TOKEN = "assets-sandbox-5f2b0f6e-canary"
CREATE = models.RelayCreateRequest([REPORT_TOKEN], "partner")
GET = models.RelayGetRequest("credit-relay-sandbox-canary")
SECRET = Hidden("canary-secret")


def raw_response(
    body: bytes | str | dict | list, status: int = 200, *, cut_off: bool = False, **headers: str
) -> RawResponse:
    if isinstance(body, dict | list):
        body = json.dumps(body)
    raw = bytearray(body.encode() if isinstance(body, str) else body)
    body_error = ConnectionLostError("the response broke off") if cut_off else None
    return RawResponse(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, raw, body_error
    )


def create(*args, **kwargs):
    return read_response(codec.RELAY_CREATE, raw_response(*args, **kwargs), CREATE, SECRET)


def get(*args, **kwargs):
    return read_response(codec.RELAY_GET, raw_response(*args, **kwargs), GET, SECRET)


CAUSE = {
    "error_type": "ITEM_ERROR",
    "error_code": "X",
    "error_message": None,
    "display_message": None,
    "http_code": 400,
}
REPORT = {
    "report": {
        "asset_report_id": "r1",
        "client_report_id": None,
        "date_generated": "2026-03-30T18:27:37Z",
        "days_requested": 90,
        "user": {"ssn": None},
        "items": [
            {
                "item_id": "i1",
                "institution_id": "ins_109508",
                "institution_name": "First Platypus Bank",
                "date_last_updated": "2026-03-30T18:25:26+00:00",
                "accounts": [
                    {
                        "account_id": "a1",
                        "name": "Checking",
                        "official_name": None,
                        "mask": "0000",
                        "type": "depository",
                        "subtype": "a subtype of tomorrow",
                        "days_available": 90,
                        "owners": [],
                        "balances": {
                            "available": 100,
                            "current": 110.07,
                            "limit": None,
                            "iso_currency_code": "USD",
                            "unofficial_currency_code": None,
                        },
                        "historical_balances": [
                            {
                                "date": "2026-03-29",
                                "current": -373.67,
                                "iso_currency_code": "USD",
                                "unofficial_currency_code": None,
                            }
                        ],
                        "transactions": [
                            {
                                "account_id": "a1",
                                "transaction_id": "t1",
                                "amount": 0.1,
                                "date": "2026-03-28",
                                "pending": False,
                                "iso_currency_code": "USD",
                                "unofficial_currency_code": None,
                                "original_description": None,
                                "merchant_of_tomorrow": {"name": "x"},
                            }
                        ],
                    }
                ],
            }
        ],
    },
    "warnings": [{"warning_type": "ASSET_REPORT_WARNING", "warning_code": "NEW", "cause": CAUSE}],
    "request_id": "q1",
    "field_of_tomorrow": [1, 2.50],
}


# ------------------------------------------------------------------------------------------ requests


def test_a_request_contains_only_the_arguments_that_were_passed():
    """Unset options are omitted; required fields are sent, also with their default value."""
    assert json.loads(codec.encode_request(CREATE, Hidden({}))) == {
        "report_tokens": [REPORT_TOKEN],
        "secondary_client_id": "partner",
    }
    hooked = models.RelayCreateRequest([REPORT_TOKEN], "p", "https://example.com/h")
    assert json.loads(codec.encode_request(hooked, Hidden({"client_id": "me"}))) == {
        "report_tokens": [REPORT_TOKEN],
        "secondary_client_id": "p",
        "webhook": "https://example.com/h",
        "client_id": "me",
    }
    assert json.loads(codec.encode_request(GET, Hidden({}))) == {
        "relay_token": GET.relay_token,
        "report_type": "asset",
    }
    insights = models.RelayGetRequest("t", include_insights=True)
    assert json.loads(codec.encode_request(insights, Hidden({})))["include_insights"] is True
    options = models.AssetReportCreateOptions(client_report_id="mine")
    report = models.AssetReportCreateRequest(["a"], 0, options=options)
    assert json.loads(codec.encode_request(report, Hidden({}))) == {
        "access_tokens": ["a"],
        "days_requested": 0,
        "options": {"client_report_id": "mine"},
    }


def test_each_operation_is_in_the_table_once():
    """Paths are unique, and no operation that creates something is marked safe."""
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS)
    creating = {e.path for e in ENDPOINTS if e.idempotency is Idempotency.NON_IDEMPOTENT}
    assert {"/credit/relay/create", "/credit/relay/refresh", "/asset_report/create"} <= creating
    assert {e.path for e in ENDPOINTS if e.idempotency is Idempotency.IDEMPOTENT} == {
        "/asset_report/remove",
        "/credit/relay/remove",
        "/item/remove",
    }


# ------------------------------------------------------------------------------------------- reports


def test_a_report_is_typed_and_exact():
    """Dates are dates, times are aware, and amounts are exactly the JSON text, to the last digit."""
    text = json.dumps(REPORT).replace("0.1,", "12345678901234.123456789,")
    report = get(text).report
    account = report.items[0].accounts[0]
    assert account.transactions[0].amount == Decimal("12345678901234.123456789")
    assert account.balances.current == Decimal("110.07")
    assert account.historical_balances[0].date == date(2026, 3, 29)
    assert report.date_generated == datetime(2026, 3, 30, 18, 27, 37, tzinfo=UTC)


def test_a_valid_report_needs_no_diagnostic_converter():
    """The slow converter, which tracks paths, isn't needed for valid data: this checks the fast one."""
    parsed = json.loads(json.dumps(REPORT), parse_float=Decimal)
    assert codec.records._converter.structure(parsed, models.AssetReportGetResponse) == get(REPORT)


def test_a_decoded_record_is_frozen():
    """A decoded record is immutable, equal to one from its constructor, and can be copied and pickled."""
    transaction = next(get(REPORT).report.transactions())
    copied = evolve(transaction)
    assert type(transaction) is models.AssetReportTransaction
    assert transaction == copied == pickle.loads(pickle.dumps(transaction)) == copy.deepcopy(transaction)
    with pytest.raises(FrozenInstanceError):
        transaction.amount = Decimal(1)


def test_a_time_without_a_zone_is_utc():
    """Plaid's times are UTC, with or without a zone."""
    bare = json.dumps(REPORT).replace("18:27:37Z", "18:27:37")
    assert get(bare).report.date_generated == datetime(2026, 3, 30, 18, 27, 37, tzinfo=UTC)


def test_unknown_fields_and_values_survive():
    """Unknown fields and values are kept at each level, and are written again."""
    response = get(REPORT)
    transaction = response.report.items[0].accounts[0].transactions[0]
    assert transaction.additional_properties == {"merchant_of_tomorrow": {"name": "x"}}
    assert response.additional_properties == {"field_of_tomorrow": [1, Decimal("2.5")]}
    assert response.warnings[0].warning_code == "NEW"
    assert response.warnings[0].cause.additional_properties == {"http_code": 400}
    plain = codec.unstructure(response)
    assert plain["report"]["items"][0]["accounts"][0]["transactions"][0]["merchant_of_tomorrow"] == {
        "name": "x"
    }
    assert codec.structure(plain, models.AssetReportGetResponse) == response


def spoil(path: str, value: object) -> dict:
    report = json.loads(json.dumps(REPORT))
    *steps, last = path.split("/")
    place = report
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value", "expected_path"),
    [
        ("request_id", None, "$.request_id"),
        ("warnings", "abc", "$.warnings"),
        ("report", [], "$.report"),
        ("report/asset_report_id", 5, "$.report.asset_report_id"),
        ("report/days_requested", "90", "$.report.days_requested"),
        ("warnings/0/cause/status", 400.0, "$.warnings[0].cause.status"),
        ("report/date_generated", "yesterday", "$.report.date_generated"),
        (
            "report/items/0/accounts/0/transactions/0/pending",
            "false",
            "$.report.items[0].accounts[0].transactions[0].pending",
        ),
        (
            "report/items/0/accounts/0/transactions/0/amount",
            True,
            "$.report.items[0].accounts[0].transactions[0].amount",
        ),
        (
            "report/items/0/accounts/0/transactions/0/amount",
            "5",
            "$.report.items[0].accounts[0].transactions[0].amount",
        ),
        (
            "report/items/0/accounts/0/balances/current",
            "110",
            "$.report.items[0].accounts[0].balances.current",
        ),
    ],
)
def test_a_wrong_type_is_an_error_with_its_path(path, value, expected_path):
    """Nothing is converted on a guess; the error has the JSON path and the request ID, but not the value."""
    with pytest.raises(ResponseDecodeError) as caught:
        get(spoil(path, value))
    assert caught.value.path == expected_path
    assert expected_path in str(caught.value)
    assert caught.value.request_id == ("q1" if path != "request_id" else None)
    assert b"report" in caught.value.body.reveal()


ACCOUNT = "report/items/0/accounts/0"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("report/asset_report_id", "a string"),
        (f"{ACCOUNT}/type", "a string"),
        (f"{ACCOUNT}/subtype", "a string or null"),
        (f"{ACCOUNT}/official_name", "a string or null"),
        ("report/days_requested", "a number"),
        ("warnings/0/cause/status", "an integer or null"),
        (f"{ACCOUNT}/transactions/0/amount", "a number"),
        (f"{ACCOUNT}/balances/available", "a number or null"),
        (f"{ACCOUNT}/transactions/0/pending", "a boolean"),
        (f"{ACCOUNT}/historical_balances/0/date", "a date"),
        ("report/date_generated", "a date and time"),
        (f"{ACCOUNT}/balances/last_updated_datetime", "a date and time or null"),
        ("report/items", "a list"),
        ("report/user", "an object"),
        ("report", "an object"),
        (f"{ACCOUNT}/transactions/0/location", "an object or null"),
    ],
)
def test_a_wrong_type_is_named_as_json_names_it(path, expected):
    """The message names the expected type in JSON's terms, not Python's, and null as well."""
    wrong = "canary" if "object" in expected or "list" in expected else ["canary"]
    for value in (wrong, *([] if "null" in expected else [None])):
        with pytest.raises(ResponseDecodeError) as caught:
            get(spoil(path, value))
        assert caught.value.args[0] == f"expected {expected} at {caught.value.path}"


def test_every_field_type_has_a_json_name():
    """No message names a Python type: each field is a list, an object, or one of the named types."""
    for cls in vars(models).values():
        if not models.is_record(cls):
            continue
        resolve_types(cls)
        for name in plaid_field_names(cls) - {"content", "path", "raw"}:
            name_in_json = _json_type_name(fields_dict(cls)[name].type)
            assert name_in_json.removesuffix(" or null") in {
                *_JSON_TYPE_NAMES.values(),
                "a list",
                "an object",
            }


@pytest.mark.parametrize(
    ("stored", "cls", "problem"),
    [
        ({"relay_token": ""}, models.RelayCreateResponse, "has an invalid field at $ "),
        (
            {"report_tokens": ["canary"], "secondary_client_id": "canary b"},
            models.RelayCreateRequest,
            "contains whitespace or control characters; remove them at $.secondary_client_id ",
        ),
        (
            {"report_tokens": ["canary"], "secondary_client_id": "b", "canary": 1},
            models.RelayCreateRequest,
            "has an unknown field at $ ",
        ),
    ],
)
def test_a_stored_record_that_is_invalid_is_an_error(stored, cls, problem):
    """The error says what is wrong with a record whose fields have the right types, and quotes nothing."""
    for read in (lambda: codec.structure(stored, cls), lambda: codec.from_json(json.dumps(stored), cls)):
        with pytest.raises(ResponseDecodeError) as caught:
            read()
        assert str(caught.value).startswith(problem)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the response is empty at $"),
        (b" \r\n", "the response is empty at $"),
        (b"[]", "not an object at $"),
        (b"null", "not an object at $"),
        (b"<html>", "the response isn't JSON (Expecting value, character 0) at $"),
        (b'{"report": {}} x', "the response isn't JSON (Extra data, character 15) at $"),
        (b'{"report": "\xff"}', "the response isn't UTF-8 (byte 12) at $"),
        (b"\xff\xfe", "the response is empty at $"),
        (b"[" * 100_000, "the response is nested too deeply at $"),
        (b'{"report": NaN}', "the response contains an invalid number at $"),
        (b'{"report": -Infinity}', "the response contains an invalid number at $"),
        (b'{"report": ' + b"9" * 5000 + b"}", "the response contains an invalid number at $"),
        (b'{"report": 1e9999999999999999999}', "the response contains an invalid number at $"),
    ],
)
def test_a_read_that_is_no_object_is_an_error(body, problem):
    """A body that isn't the expected JSON raises an error, which names the cause and quotes nothing."""
    with pytest.raises(ResponseDecodeError) as caught:
        get(body)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda cls: codec.from_json(b"", cls), "the stored record is empty at $"),
        (lambda cls: codec.from_json(b'{"removed":', cls), "the stored record isn't JSON (Expecting value, "),
        (lambda cls: codec.structure({"x": math.inf}, cls), "the stored record contains an invalid number"),
    ],
)
def test_stored_json_that_is_corrupt_is_an_error(read, problem):
    """The error is about the stored record, and not about a response."""
    with pytest.raises(ResponseDecodeError) as caught:
        read(models.RelayRemoveResponse)
    assert str(caught.value).startswith(problem)


def test_a_byte_order_mark_is_ignored():
    """JSON must not have one, but some servers send it."""
    assert get(b"\xef\xbb\xbf" + json.dumps(REPORT).encode()).request_id == "q1"


def test_the_last_value_of_a_duplicate_name_counts():
    """JSON leaves this undefined; the client does what Python's parser does."""
    text = json.dumps(REPORT).replace('"request_id": "q1"', '"request_id": 5, "request_id": "q2"')
    assert get(text).request_id == "q2"


def test_a_nullable_field_may_be_missing():
    """A nullable field that is missing reads as None, and so does an optional one that is null."""
    report = spoil("report/insights", None)
    del report["report"]["client_report_id"]
    response = get(report).report
    assert (response.client_report_id, response.insights) == (None, None)


@pytest.mark.parametrize("amount", ["1e400", "-0", "0E-9", "123456789012345678901234567890.5", "7"])
def test_every_json_number_is_kept_exactly(amount):
    """A float would round some of them and turn others into infinity."""
    text = json.dumps(spoil("report/items/0/accounts/0/transactions/0/amount", "AMOUNT"))
    response = get(text.replace('"AMOUNT"', amount))
    [transaction] = response.report.transactions()
    assert transaction.amount == Decimal(amount)
    copied = codec.from_json(codec.to_json(response), models.AssetReportGetResponse)
    assert copied == response


def test_an_unknown_field_may_be_deeply_nested():
    """A few hundred levels in an unknown field are kept."""
    deep = json.loads("[" * 300 + "]" * 300)
    assert get(spoil("field_of_tomorrow", deep)).additional_properties == {"field_of_tomorrow": deep}


def test_the_raw_response_is_available_and_hidden():
    """The received bytes stay with the record, hidden, and don't take part in comparisons."""
    body = json.dumps(REPORT, indent=3)
    response = get(body)
    assert response.raw.reveal() == body.encode()
    assert "ins_109508" not in repr(response)
    assert response == get(REPORT)


def test_a_missing_field_is_named():
    """The error of a missing required field names it and its path."""
    report = json.loads(json.dumps(REPORT))
    del report["report"]["items"][0]["item_id"]
    with pytest.raises(
        ResponseDecodeError, match=r"required field missing at \$\.report\.items\[0\]\.item_id"
    ):
        get(report)


def test_a_partial_response_to_a_read_is_lost():
    """Half a response to a read is lost; the read may be repeated."""
    with pytest.raises(ConnectionLostError, match="broke off"):
        get(b'{"report": ', cut_off=True)


def test_a_pdf_is_its_bytes():
    """A PDF is returned as received, with the request ID of its header; anything else is an error."""
    pdf = models.RelayPdfGetRequest("t")
    content = b"%PDF-1.7 ... %%EOF\r\n"
    response = read_response(codec.RELAY_PDF_GET, raw_response(content, Plaid_Request_ID="q9"), pdf, SECRET)
    assert (response.content, response.request_id) == (content, "q9")
    with pytest.raises(ResponseDecodeError, match="isn't a PDF") as caught:
        read_response(codec.RELAY_PDF_GET, raw_response(b'{"request_id": "q8"}'), pdf, SECRET)
    assert caught.value.request_id == "q8"


@pytest.mark.parametrize("body", [b"%PDF-1.7 ... %%EO", b"%PDF-1.7 %%EOF" + b"." * 1100])
def test_a_pdf_without_its_end_is_an_error(body):
    """A PDF ends with %%EOF, or nearly so; the error of an incomplete one has its header's request ID."""
    pdf = models.RelayPdfGetRequest("t")
    with pytest.raises(ResponseDecodeError, match="isn't a complete PDF") as caught:
        read_response(codec.RELAY_PDF_GET, raw_response(body, Plaid_Request_ID="q9"), pdf, SECRET)
    assert caught.value.request_id == "q9"


# ------------------------------------------------------------------------------------------ creations


@pytest.mark.parametrize(
    ("body", "request_id"),
    [
        (b'{"relay_token": "T-1", "request_id": "q"}', "q"),
        (b'\xef\xbb\xbf{"relay_token": "T-1", "request_id": "q"}', "q"),
        (b'{"relay_token": "T-1"}', None),
        (b'{"relay_token": "T-1", "request_id": 5}', None),
        (b'{"request_id": "q", "relay_token": "T-1", "x": NaN}', "q"),
        (b'{"relay_token": "T-1", "request_id": "q"} trailing', "q"),
        (b'{"relay_token": "T-1", "reque', None),
        (b'{"relay_token" : "T-1"', None),
        (b'{"x": "\xff", "relay_token": "T-1"}', None),
        (b'[{"relay_token": "T-1"}]', None),
        (b'{"relay_token": "T-1", "request_id": "q", "x": 1e9999999999999999999}', "q"),
        (b'{"relay_token": "\\u0054-1", ', None),
        (b'{"relay_token": "T-0", "relay_token": "T-1"}', None),
        (b'{"relay_token": "T-1", "x": ' + b"[" * 100_000, None),
        (b'{"relay_token": "T-1", "request_id": null, "removed": "yes"}', None),
        (b'<html>{"relay_token": "T-1"}</html>', None),
    ],
)
@pytest.mark.parametrize("cut_off", [False, True])
def test_a_readable_token_is_created(body, request_id, cut_off):
    """A 200 with a complete relay token is a creation, whatever else is wrong with it."""
    created = create(body, cut_off=cut_off)
    assert (created.relay_token, created.request_id) == ("T-1", request_id)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"<html>hello</html>",
        b'{"relay_token": "credit-relay-sandb',
        b'{"relay_token": "credit-relay-sandbox-1\\',
        b'{"relay_token": ""}',
        b'{"relay_token": null, "request_id": "q"}',
        b'{"relay_token": 5}',
        b'{"relay_token": "\\q"}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_success_without_a_token_is_unknown(body, status):
    """Plaid reports success, but the token can't be read; the bytes are kept as a secret."""
    with pytest.raises(OutcomeUnknownError) as caught:
        create(body, status)
    assert caught.value.body.reveal() == body
    assert caught.value.status == status
    assert body.decode() not in str(caught.value) or body == b""


@given(st.data())
def test_any_cut_of_a_response_is_created_or_unknown(data):
    """Wherever a response breaks off, a complete token is returned, and an incomplete one never is."""
    token = data.draw(st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=40))
    body = json.dumps({"relay_token": token, "request_id": "q"}).encode()
    length = data.draw(st.integers(0, len(body)))
    try:
        created = create(body[:length], cut_off=True)
    except OutcomeUnknownError:
        assert length < body.index(b",")
    else:
        assert created.relay_token == token


def test_other_creations_are_not_recovered():
    """An asset report needs its token and its ID: without one of them the outcome is unknown."""
    request = models.AssetReportCreateRequest(["a"], 5)
    with pytest.raises(OutcomeUnknownError):
        read_response(codec.ASSET_REPORT_CREATE, raw_response({"asset_report_token": "x"}), request, SECRET)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_the_table_names_the_token_that_an_operation_issues(endpoint):
    """It is the token that the response's record hides; only a non-idempotent operation issues one."""
    response_fields = fields_dict(endpoint.response_type).items()
    hidden = [name for name, field in response_fields if name.endswith("_token") and not field.repr]
    assert hidden == ([] if endpoint.issues is None else [endpoint.issues])
    assert endpoint.issues is None or endpoint.idempotency is Idempotency.NON_IDEMPOTENT
    assert bool(endpoint.headers) == (endpoint.idempotency is Idempotency.NON_IDEMPOTENT)


# ---------------------------------------------------------------------------------------------- errors


def error_body(error_type: str, error_code: str, **more: object) -> dict:
    return {
        "error_type": error_type,
        "error_code": error_code,
        "error_message": "in words",
        "display_message": None,
        "request_id": "q5",
        "documentation_url": "https://plaid.com/docs/?ref=error",
        "suggested_action": None,
        **more,
    }


@pytest.mark.parametrize(
    ("status", "body", "cls"),
    [
        (400, error_body("INVALID_REQUEST", "INVALID_FIELD"), InvalidRequestError),
        (404, b"", InvalidRequestError),
        (408, b"<html>", InvalidRequestError),
        (302, b"", PlaidAPIError),
        (503, error_body("API_ERROR", "PLANNED_MAINTENANCE"), PlaidServerError),
        (500, error_body("API_ERROR", "INTERNAL_SERVER_ERROR"), OutcomeUnknownError),
        (500, error_body("INVALID_REQUEST", "INVALID_FIELD"), OutcomeUnknownError),
        (502, b"<html>Bad Gateway</html>", OutcomeUnknownError),
        (503, b"", OutcomeUnknownError),
        (504, b"[1]", OutcomeUnknownError),
        (400, error_body("API_ERROR", "INTERNAL_SERVER_ERROR"), OutcomeUnknownError),
        (101, b"", OutcomeUnknownError),
        (400, b'{"error_code": "X", "causes": ' + b"[" * 5000 + b"]" * 5000 + b"}", InvalidRequestError),
    ],
)
def test_a_creation_fails_only_if_the_response_proves_it(status, body, cls):
    """4xx, redirects and Plaid's maintenance prove that nothing was executed; any other 5xx doesn't."""
    with pytest.raises(cls) as caught:
        create(body, status)
    assert type(caught.value) is cls
    assert caught.value.status == status


def test_the_status_counts_even_if_the_body_broke_off():
    """The status line was complete, so a rejection is a rejection."""
    with pytest.raises(InvalidRequestError):
        create(b'{"error_ty', 400, cut_off=True)
    with pytest.raises(OutcomeUnknownError):
        create(b'{"error_ty', 500, cut_off=True)


def test_a_500_to_a_read_is_a_server_error():
    """For a read, a 500 is only an error of the server."""
    with pytest.raises(PlaidServerError):
        get(b"<html>", 502)


def test_an_error_has_all_of_plaids_fields():
    """Each of Plaid's fields is an attribute, except those with a wrong type; causes are kept as received."""
    causes = [{"item_id": "i", "error_code": "ITEM_LOGIN_REQUIRED"}]
    with pytest.raises(PlaidAPIError) as caught:
        get(error_body("ASSET_REPORT_ERROR", "DATA_UNAVAILABLE", causes=causes, suggested_action=5), 400)
    error = caught.value
    assert (error.error_type, error.error_code, error.request_id) == (
        "ASSET_REPORT_ERROR",
        "DATA_UNAVAILABLE",
        "q5",
    )
    assert (error.error_message, error.display_message, error.suggested_action) == ("in words", None, None)
    assert error.causes == tuple(causes)
    assert error.documentation_url == "https://plaid.com/docs/?ref=error"


def test_an_error_code_is_never_redacted():
    """The text of an error is redacted, but not its codes, because the client's decisions depend on them."""
    user = models.AssetReportUser(last_name="ITEM", ssn="123-45-6789")
    options = models.AssetReportCreateOptions(user=user)
    request = models.AssetReportCreateRequest(["access-sandbox-1"], 5, options=options)
    body = error_body("ITEM_ERROR", "ITEM_LOGIN_REQUIRED", error_message="of ITEM, 123-45-6789")
    with pytest.raises(ItemError) as caught:
        read_response(codec.ASSET_REPORT_CREATE, raw_response(body, 400), request, SECRET)
    assert (caught.value.error_code, caught.value.error_message) == (
        "ITEM_LOGIN_REQUIRED",
        "of [hidden], [hidden]",
    )


def test_an_unknown_outcome_keeps_plaids_fields():
    """The code, the request ID and the delay help when a user asks Plaid's support."""
    with pytest.raises(OutcomeUnknownError) as caught:
        create(error_body("API_ERROR", "INTERNAL_SERVER_ERROR"), 500, Retry_After="3")
    error = caught.value
    assert (error.error_code, error.request_id, error.retry_after) == ("INTERNAL_SERVER_ERROR", "q5", 3.0)


def test_a_quoted_request_is_redacted():
    """The caller's tokens and secret, and anything with the form of a token, are redacted in an error."""
    message = f"{REPORT_TOKEN} of {SECRET.reveal()} and access-production-other"
    body = error_body("INVALID_INPUT", "X", error_message=message, causes=[{REPORT_TOKEN: [message, 5]}])
    with pytest.raises(PlaidAPIError) as caught:
        create(body, 400)
    shown = f"{caught.value} {caught.value!r} {vars(caught.value)}"
    assert "[hidden] of [hidden] and [hidden]" in shown
    for secret in (REPORT_TOKEN, SECRET.reveal(), "access-production"):
        assert secret not in shown


# ---------------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
    ],
)
def test_a_delay_in_seconds(value, seconds):
    """A number is a delay in seconds; any other text is ignored."""
    assert codec.parse_retry_after({"Retry-After": value}) == seconds


def test_a_delay_as_a_date_uses_the_servers_clock():
    """The two clocks needn't agree; a date in the past is no delay."""
    then = datetime(2020, 1, 1, tzinfo=UTC)
    headers = {"Retry-After": format_datetime(then, usegmt=True)}
    assert (
        codec.parse_retry_after(
            headers | {"Date": format_datetime(then - timedelta(seconds=90), usegmt=True)}
        )
        == 90.0
    )
    assert codec.parse_retry_after(headers | {"Date": "Wed, 01 Jan 2020 00:01:00 -0000"}) == 0.0
    assert codec.parse_retry_after(headers) == 0.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    assert 40 < codec.parse_retry_after({"Retry-After": soon}) <= 50


def test_which_errors_mean_that_a_token_does_not_exist():
    """Plaid's code for an unknown relay token isn't published, so the pattern of similar codes is used."""
    unknown_token = PlaidAPIError("x", error_type="INVALID_INPUT", error_code="INVALID_RELAY_TOKEN")
    other = PlaidAPIError("x", error_type="INVALID_INPUT", error_code="INVALID_API_KEYS")
    assert error_codes.is_token_not_found(unknown_token)
    assert not error_codes.is_token_not_found(other)
    assert not error_codes.is_token_not_found(PlaidAPIError("x", status=400))
    assert error_codes.is_token_not_found(
        PlaidAPIError("x", error_type="ITEM_ERROR", error_code="ITEM_NOT_FOUND")
    )


# ------------------------------------------------------------------------------ records as JSON, and back


def test_a_record_round_trips_through_json():
    """`to_json` and `from_json` lose nothing, and neither do `unstructure` and `structure`."""
    response = get(REPORT)
    assert codec.from_json(codec.to_json(response), models.AssetReportGetResponse) == response
    assert (
        codec.from_json(codec.to_json(response, indent=2).decode(), models.AssetReportGetResponse) == response
    )
    plain = codec.unstructure(response)
    assert json.loads(json.dumps(plain)) == plain
    assert codec.structure(plain, models.AssetReportGetResponse) == response
    report = codec.from_json(codec.to_json(response.report), models.AssetReport)
    assert report == response.report


def test_the_written_json_is_plaids():
    """The written JSON equals Plaid's, except for absent and null fields and the shortest form of times."""
    sent = json.loads(json.dumps(REPORT).replace("+00:00", "Z"))
    written = json.loads(codec.to_json(get(REPORT)))
    sent["report"]["user"] = written["report"]["user"]
    balances = written["report"]["items"][0]["accounts"][0]["balances"]
    assert balances.pop("margin_loan_amount") is None
    assert written == sent


def test_numbers_are_written_exactly():
    """No digit is lost or added, even if a string looks like a number."""
    numbers = {"a": "0.10", "b": Decimal("0.10"), "c": [Decimal("12345678901234567890.123456789"), 5]}
    record = models.RelayRemoveResponse(removed=True, request_id="q", additional_properties=numbers)
    assert codec.to_json(record) == (
        b'{"removed": true, "request_id": "q", "a": "0.10", "b": 0.10, "c": [12345678901234567890.123456789, 5]}'
    )


def test_a_number_is_a_float_only_if_that_is_exact():
    """A number that no float represents exactly stays a Decimal, which `json` rejects rather than rounds."""
    numbers = {"whole": Decimal(90), "short": Decimal("12.10"), "long": Decimal("0.12345678901234567890")}
    record = models.RelayRemoveResponse(removed=True, additional_properties=numbers)
    plain = codec.unstructure(record)
    assert [type(plain[name]) for name in numbers] == [int, float, Decimal]
    assert {name: plain[name] for name in numbers} == numbers | {"short": 12.1}


@pytest.mark.parametrize("record", [5, models.PdfResponse(b"%PDF-"), {"a": 1}])
def test_only_records_become_json(record):
    """Anything but a record is rejected; a PDF has its bytes."""
    for convert in (codec.to_json, codec.unstructure):
        with pytest.raises(TypeError, match="isn't a record that can be written as JSON"):
            convert(record)


def test_a_damaged_stored_record_is_an_error_with_its_path():
    """A stored record that can't be read raises the same error as a response, with its path."""
    for read_back in (
        lambda: codec.from_json(b'{"removed": "yes"}', models.RelayRemoveResponse),
        lambda: codec.structure({"removed": "yes"}, models.RelayRemoveResponse),
    ):
        with pytest.raises(ResponseDecodeError) as caught:
            read_back()
        assert (caught.value.path, caught.value.sent) == ("$.removed", False)
        assert "the class that it was written from" in str(caught.value)


def test_a_stored_request_rejects_unknown_fields():
    """A request can be stored as well, but it has no unknown fields, because this package wrote it."""
    assert codec.from_json(codec.to_json(GET), models.RelayGetRequest) == GET
    with pytest.raises(ResponseDecodeError) as caught:
        codec.from_json(b'{"relay_token": "t", "colour": 1}', models.RelayGetRequest)
    assert caught.value.path == "$"


@pytest.mark.parametrize(
    "number", [date(2026, 1, 1), Decimal("Infinity"), Decimal("NaN"), float("nan"), float("-inf"), object()]
)
def test_values_that_json_does_not_have_are_rejected(number):
    """Neither a date in a record's unknown fields nor an infinite number is written."""
    record = models.RelayRemoveResponse(removed=True, additional_properties={"x": number})
    with pytest.raises(TypeError, match="can't be written as JSON"):
        codec.to_json(record)


def test_a_nonfinite_float_is_rejected():
    """Python's floats include values that JSON's numbers don't."""
    for number in (float("nan"), float("inf")):
        with pytest.raises(ResponseDecodeError):
            codec.structure({"removed": True, "x": number}, models.RelayRemoveResponse)


def test_any_mapping_can_be_read():
    """A mapping, such as a database row, needn't be a dict."""
    stored = MappingProxyType({"removed": True, "more": MappingProxyType({"x": 0.5})})
    response = codec.structure(stored, models.RelayRemoveResponse)
    assert response.additional_properties == {"more": {"x": Decimal("0.5")}}


def test_unknown_fields_keep_their_order():
    """The same record is written as the same bytes in every process."""
    names = list("zyxwvutsrqponmlkjihgfedcba")
    text = json.dumps({"removed": True} | dict.fromkeys(names, 1))
    written = json.loads(codec.to_json(codec.from_json(text, models.RelayRemoveResponse)))
    assert list(written) == ["removed", *names]


def test_records_are_hashable():
    """Records are frozen and have a hash; unknown fields don't take part in it."""
    one, two = get(REPORT).report, get(REPORT).report
    assert {*one.transactions()} == {*two.transactions()}
    assert len({*one.transactions(), *two.transactions()}) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("report/items/0/accounts/0/historical_balances/0/date", "20260329"),
        ("report/items/0/accounts/0/historical_balances/0/date", "2026-W13-7"),
        ("report/date_generated", "2026-03-30"),
        ("report/date_generated", "20260330"),
        ("report/date_generated", "2026-W13-1T10:00:00Z"),
        ("report/date_generated", "2026-03-30X10:00:00Z"),
        ("report/date_generated", "2026-03-30T10"),
        ("report/date_generated", 1774895257),
    ],
)
def test_a_date_that_only_python_accepts_is_rejected(path, value):
    """A date is a year, a month and a day; a time has an hour."""
    with pytest.raises(ResponseDecodeError):
        get(spoil(path, value))


def test_times_keep_their_offset():
    """A time is written with the offset that it was read with."""
    for received, written in (
        ("2026-03-30T18:27:37+02:00", "2026-03-30T18:27:37+02:00"),
        ("2026-03-30 18:27:37.25Z", "2026-03-30T18:27:37.250000Z"),
        ("2026-03-30t18:27:37z", "2026-03-30T18:27:37Z"),
        ("2026-03-30T18:27:37.123456789+0530", "2026-03-30T18:27:37.123456+05:30"),
        ("2026-03-30T18:27:37-00:30", "2026-03-30T18:27:37-00:30"),
    ):
        response = get(spoil("report/date_generated", received))
        assert json.loads(codec.to_json(response))["report"]["date_generated"] == written
