"""Records and JSON, in both directions: strict types and exact numbers."""

from __future__ import annotations

import copy
import json
import math
import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from types import MappingProxyType

import pytest
from attrs import evolve, fields_dict, resolve_types
from attrs.exceptions import FrozenInstanceError
from codec_support import CREATE, GET, REPORT, REPORT_TOKEN, get, spoil

from plaid_relay_async import codec, models
from plaid_relay_async.codec.records import _JSON_TYPE_NAMES, _json_type_name
from plaid_relay_async.errors import ResponseDecodeError
from plaid_relay_async.redaction import Hidden

# ------------------------------------------------------------------------------------------------ requests


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


# ------------------------------------------------------------------------------------------------- reports


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
        for name in models.plaid_field_names(cls) - {"content", "path", "raw"}:
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


def test_a_missing_field_is_named():
    """The error of a missing required field names it and its path."""
    report = json.loads(json.dumps(REPORT))
    del report["report"]["items"][0]["item_id"]
    with pytest.raises(
        ResponseDecodeError, match=r"required field missing at \$\.report\.items\[0\]\.item_id"
    ):
        get(report)


# ------------------------------------------------------------------------------- records as JSON, and back


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
