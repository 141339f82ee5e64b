from __future__ import annotations

import json
import traceback
from datetime import date
from decimal import Decimal

import pytest
from attrs import evolve, fields, has
from hypothesis import given
from hypothesis import strategies as st

from plaid_relay_async import RelayCreateRequest, RequestValidationError, models
from plaid_relay_async.codec import encode_request
from plaid_relay_async.redaction import Hidden

TOKEN = "assets-sandbox-11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((TOKEN, "p"), "report_tokens must be a list of strings, not str: wrap it in a list"),
        ((b"x", "p"), "report_tokens must be a list of strings, not bytes"),
        (([TOKEN, TOKEN], "p"), "report_tokens contains the same token twice"),
        ((5, "p"), "report_tokens must be a list of strings, not int"),
        (([], "p"), "report_tokens is empty"),
        (([""], "p"), "report_tokens[0] is empty"),
        (([None], "p"), "report_tokens[0] must be a string, not NoneType"),
        ((["a b"], "p"), "report_tokens[0] contains whitespace"),
        (([TOKEN, TOKEN + "2"], "p"), "two asset report tokens"),
        (([TOKEN], ""), "secondary_client_id is empty"),
        (([TOKEN], None), "secondary_client_id must be a string, not NoneType"),
        (([TOKEN], "p\n"), "secondary_client_id contains whitespace or control characters; remove them"),
        (([TOKEN], "p", "ftp://x"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://[x"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://x:port/"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://x\\y.invalid/"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://x/\ud800"), "webhook contains a lone surrogate"),
        (([TOKEN], "p", "https://x/\0"), "webhook contains whitespace or control characters"),
        (([TOKEN], "p\ud800"), "secondary_client_id contains a lone surrogate"),
        (([TOKEN], "p\0"), "secondary_client_id contains whitespace or control characters"),
        ((["t\udcff"], "p"), "report_tokens[0] contains a lone surrogate"),
        (([TOKEN], "p", 5), "webhook must be a string"),
        *(
            (
                ([TOKEN], "p", f"https://lender.example{rest}"),
                "webhook may contain braces only in {pair}, once",
            )
            for rest in (
                "/{pair}/x",
                "/{pair}/",
                "/x{pair}",
                "/{pair}/{pair}",
                "/?id={pair}",
                "/{x}",
                "#/{pair}",
            )
        ),
        (([TOKEN], "p", "https://{pair}"), "webhook may contain braces only in {pair}, once"),
        (([TOKEN], "p", "https://{pair}/{pair}"), "webhook may contain braces only in {pair}, once"),
        (([TOKEN], "p", "https://lender.example/%7bpair%7D"), "webhook contains %7Bpair%7D: write {pair}"),
        (
            ([TOKEN], "p;https://lender.example/relay"),
            "secondary_client_id contains a quote, a comma or a semicolon",
        ),
        ((["assets-1,assets-2"], "p"), "report_tokens[0] contains a quote, a comma or a semicolon"),
        (([TOKEN], "p", "https://a.example,https://b.example"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", 'https://a.example/relay"'), "webhook must be an http(s) URL"),
    ],
)
def test_an_invalid_create_request_names_its_field(arguments, problem):
    """An invalid request is rejected before it is sent; the error names the field and shows no token."""
    with pytest.raises(RequestValidationError) as caught:
        RelayCreateRequest(*arguments)
    assert problem in str(caught.value)
    assert f"{caught.value.field} {caught.value.problem}" == caught.value.args[0]
    assert caught.value.field.partition("[")[0] in {"report_tokens", "secondary_client_id", "webhook"}
    assert "[not sent]" in str(caught.value)
    assert TOKEN not in repr(caught.value)


def test_reports_of_different_types_can_be_shared_together():
    """Plaid may relay other reports one day: a second token is accepted if it isn't an asset report's."""
    assert RelayCreateRequest([TOKEN, "other-sandbox-1"], "p").report_tokens == (TOKEN, "other-sandbox-1")


@pytest.mark.parametrize(
    ("create", "problem"),
    [
        (
            lambda: models.RelayGetRequest("t", include_insights="yes"),
            "include_insights must be True or False",
        ),
        (lambda: models.RelayGetRequest("t", report_type="assets"), "report_type must be 'asset'"),
        (lambda: models.RelayRemoveRequest(""), "relay_token is empty"),
        (lambda: models.RelayRefreshRequest("t", webhook="x"), "webhook must be an http(s) URL"),
        (
            lambda: models.AssetReportCreateRequest(["a"], 732),
            "days_requested must be a whole number from 0 to 731",
        ),
        (lambda: models.AssetReportCreateRequest(["a"], True), "days_requested must be a whole number"),
        (lambda: models.AssetReportCreateRequest(["a"] * 100, 60), "access_tokens has 100 access tokens"),
        (lambda: models.AssetReportCreateOptions(webhook="x"), "webhook must be an http(s) URL"),
        (
            lambda: models.RelayRefreshRequest("t", webhook="https://a.example/{pair}"),
            "contains {pair}, which",
        ),
        (lambda: models.AssetReportCreateOptions(add_ons="investments"), "add_ons must be a list of strings"),
        (lambda: models.AssetReportCreateOptions(add_ons=[]), "add_ons is empty"),
        (lambda: models.AssetReportCreateOptions(client_report_id=""), "client_report_id is empty"),
        (
            lambda: models.AssetReportCreateOptions(user={"ssn": "x"}),
            "user must be of type AssetReportUser, not dict",
        ),
        (lambda: models.AssetReportCreateOptions(require_all_items=1), "require_all_items must be True or"),
        (
            lambda: models.AssetReportCreateRequest(["a"], 5, options={}),
            "options must be of type AssetReportCreate",
        ),
        (models.AssetReportGetRequest, "asset_report_token is missing: pass it, or a user_token"),
        (lambda: models.AssetReportGetRequest(""), "asset_report_token is empty"),
        (
            lambda: models.DaysToInclude(days_to_include=800),
            "days_to_include must be a whole number from 0 to",
        ),
        (lambda: models.AssetReportFilterRequest("t", []), "account_ids_to_exclude is empty"),
        (lambda: models.AssetReportFilterRequest("t", "a"), "account_ids_to_exclude must be a list"),
        (lambda: models.ItemRemoveRequest("t", reason_note="x" * 513), "reason_note has more than 512 char"),
        (lambda: models.ItemRemoveRequest("t", reason_note=5), "reason_note must be a string, not int"),
        (lambda: models.WebhookVerificationKeyGetRequest(""), "key_id is empty"),
        (
            lambda: models.SandboxStatements("2026-01-01", date(2026, 1, 1)),
            "start_date must be of type date, not str",
        ),
        (
            lambda: models.SandboxTransactions(start_date=date(2026, 2, 1), end_date=date(2026, 1, 1)),
            "end_date is before start_date",
        ),
        (
            lambda: models.SandboxStatements(date(2026, 2, 1), date(2026, 1, 1)),
            "end_date is before start_date",
        ),
        (lambda: options_with_user(ssn=123456789), "user.ssn must be a string, not int"),
        (lambda: options_with_user(email=""), "user.email is empty"),
        (
            lambda: options_with_user(additional_properties={"x": b"y"}),
            "user.additional_properties.x must be a JSON value",
        ),
        (
            lambda: options_with_user(additional_properties={"x": [1, {"y": float("nan")}]}),
            "x[1].y must be a finite number",
        ),
        (
            lambda: options_with_user(additional_properties=[1]),
            "user.additional_properties must be a dict, not list",
        ),
        (
            lambda: options_with_user(additional_properties={"x": Decimal("sNaN")}),
            "x must be a finite number",
        ),
        (
            lambda: options_with_user(additional_properties={"x": nested_list(3_000)}),
            "additional_properties is nested too deeply",
        ),
        (
            lambda: options_with_user(additional_properties={5: 1}),
            "a name in user.additional_properties must be a string",
        ),
        (
            lambda: models.SandboxTransactions(days_requested=0),
            "days_requested must be a whole number from 1",
        ),
        (lambda: models.SandboxPublicTokenCreateRequest("ins_1", []), "initial_products is empty"),
    ],
)
def test_other_invalid_requests_name_their_field(create, problem):
    """The error of each request names the invalid field."""
    with pytest.raises(RequestValidationError) as caught:
        create()
    assert problem in str(caught.value)


def nested_list(levels: int) -> list:
    nested: list = []
    for _ in range(levels):
        nested = [nested]
    return nested


def options_with_user(**user_fields):
    return models.AssetReportCreateOptions(user=models.AssetReportUser(**user_fields))


def test_additional_properties_of_a_user_are_sent():
    """Additional properties are sent unchanged, with exact numbers, as they are read from a report."""
    properties = {
        "loan": ["L-1", 5, 0.5, True, None, 10**400],
        "sum": Decimal("12345678901234567890.10"),
        "huge": Decimal("1E+400"),
    }
    request = models.AssetReportCreateRequest(
        ["a"], 5, options=options_with_user(email="a@b.c", additional_properties=properties)
    )
    body = encode_request(request, Hidden({"client_id": "me"}))
    sent = json.loads(body, parse_float=Decimal)
    assert sent["options"]["user"] == {
        "email": "a@b.c",
        **properties,
        "loan": ["L-1", 5, Decimal("0.5"), True, None, 10**400],
    }
    assert b"12345678901234567890.10" in body


def test_a_value_that_json_cannot_hold_is_rejected_without_showing_it():
    """A dict can be changed after its validation; the error then shows nothing of the request."""
    user = models.AssetReportUser()
    request = models.AssetReportCreateRequest(
        ["access-canary"], 5, options=models.AssetReportCreateOptions(user=user)
    )
    for value in (object(), float("nan"), nested_list(100_000)):
        user.additional_properties["x"] = value
        with pytest.raises(RequestValidationError, match="can't be written as JSON") as caught:
            encode_request(request, Hidden({"secret": "canary"}))
        frames = [f.f_code.co_name for f, _ in traceback.walk_tb(caught.value.__traceback__)]
        assert frames == ["test_a_value_that_json_cannot_hold_is_rejected_without_showing_it", "call"]


def test_the_dates_of_a_test_item_are_optional():
    """Either of the two dates of a test Item's transactions may be omitted."""
    for dates in ({}, {"start_date": date(2026, 1, 1)}, {"end_date": date(2026, 1, 1)}):
        assert models.SandboxTransactions(**dates).days_requested is None


def test_a_user_token_instead_of_a_report_token():
    """The latest report of a user is requested with the user's token alone."""
    request = models.AssetReportGetRequest(user_token="user-sandbox-1")
    assert json.loads(encode_request(request, Hidden({}))) == {"user_token": "user-sandbox-1"}


def test_secrets_of_nested_records():
    """The secrets of a request include the personal data in its options, so that they are redacted too."""
    user = models.AssetReportUser(ssn="111-22-1234", first_name="Anna")
    options = models.AssetReportCreateOptions(user=user)
    request = models.AssetReportCreateRequest(["access-1", "access-2"], 5, options=options)
    assert {*models.secrets_in(request)} == {"access-1", "access-2", "111-22-1234", "Anna"}


def test_a_request_shows_no_token():
    """A request's repr has the partner, and no report token."""
    assert (
        repr(RelayCreateRequest([TOKEN], "p")) == "RelayCreateRequest(secondary_client_id='p', webhook=None)"
    )


def test_every_token_field_is_hidden():
    """No record shows a field whose name contains "_token"."""
    records = [cls for name in models.__all__ if models.is_record(cls := getattr(models, name))]
    assert len(records) > 70
    shown = [
        f"{cls.__name__}.{a.name}" for cls in records for a in fields(cls) if "_token" in a.name and a.repr
    ]
    assert shown == []
    assert all(has(cls) for cls in records)


def test_fan_out_is_lazy():
    """A partner is read only when its request is needed."""
    read_partners = []

    def partners():
        for name in ("a", "b", "c"):
            read_partners.append(name)
            yield name

    requests = RelayCreateRequest.fan_out([TOKEN], partners(), webhook="https://example.com/hook")
    assert read_partners == []
    first = next(requests)
    assert (first.secondary_client_id, first.webhook, read_partners) == (
        "a",
        "https://example.com/hook",
        ["a"],
    )


def test_fan_out_checks_shared_values_first():
    """An invalid report token is an error before the first partner; a string isn't a list of partners."""
    with pytest.raises(RequestValidationError, match="report_tokens is empty"):
        RelayCreateRequest.fan_out([], ["a"])
    with pytest.raises(RequestValidationError, match="not one string"):
        RelayCreateRequest.fan_out([TOKEN], "abc")


@pytest.mark.parametrize(("partner", "problem"), [("", "is empty"), ("b,c", "contains a quote, a comma")])
def test_fan_out_names_the_index_of_a_partner(partner, problem):
    """The error of a partner names its index, and the partners before it have their requests."""
    requests = RelayCreateRequest.fan_out([TOKEN], ["a", partner])
    assert next(requests).secondary_client_id == "a"
    with pytest.raises(RequestValidationError) as caught:
        next(requests)
    assert caught.value.field == "secondary_client_ids[1]"
    assert caught.value.problem.startswith(problem)


WHITESPACE = " \t\n\v\f\r\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
CONTROLS = "\0\x01\x1b\x7f\x80\x9f\xad\u200b\u200e\u202e\u2060\ufeff\U000e0041"
DELIMITERS = ",;\"'\u00ab\u00bb\u2018\u2019\u201a\u201c\u201d\u201e\u2039\u203a\u300c\uff02\uff07"


@pytest.mark.parametrize("character", [*WHITESPACE, *CONTROLS, *DELIMITERS])
@pytest.mark.parametrize("form", ["{}id", "i{}d", "id{}"])
def test_a_partner_that_was_misread_is_rejected(character, form):
    """Whitespace, control and formatting characters, quotes and delimiters are no part of an identifier."""
    problem = "contains a quote" if character in DELIMITERS else "contains whitespace or control characters"
    with pytest.raises(RequestValidationError) as caught:
        RelayCreateRequest([TOKEN], form.format(character))
    assert caught.value.field == "secondary_client_id"
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize(
    "partner",
    [
        "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in DELIMITERS),
        *("5f3a9c2e1b7d4a0011223344", "=1+1", "@file", "-x", "5.00E+23", "a|b", "a\\b", "ünïcode", "客户"),
        *("\ue000", "\U0010ffff", "\u0378"),  # private use, noncharacter, unassigned
    ],
)
def test_any_other_partner_is_accepted(partner):
    """All other characters are accepted, because Plaid may change its identifiers."""
    assert RelayCreateRequest([TOKEN], partner).secondary_client_id == partner
    assert next(RelayCreateRequest.fan_out([TOKEN], [partner])).secondary_client_id == partner


@pytest.mark.parametrize("end", ["", "?lender=1", "#fragment"])
def test_a_pair_id_in_a_webhook(end):
    """The pair ID replaces `{pair}`, and the caller's request isn't changed."""
    request = RelayCreateRequest([TOKEN], "p", f"https://lender.example/relay/{{pair}}{end}")
    assert request.needs_pair_id
    sent = request.with_pair_id("0a")
    assert (sent.webhook, sent.needs_pair_id) == (f"https://lender.example/relay/0a{end}", False)
    assert evolve(sent, webhook=request.webhook) == request
    assert sent.with_pair_id("0b") is sent
    plain = RelayCreateRequest([TOKEN], "p")
    assert (plain.needs_pair_id, plain.with_pair_id("0b")) == (False, plain)


@pytest.mark.parametrize("url", ["https://a.example/x,y;z'", "https://a.example:8443/?a=1&b=%22"])
def test_a_webhook_with_delimiters(url):
    """In the path and the query, delimiters and the apostrophe are part of the URL."""
    assert RelayCreateRequest([TOKEN], "p", url).webhook == url


IDENTIFIER = st.text(
    st.characters(
        exclude_categories=("Z", "Cc", "Cf", "Cs", "Pi", "Pf", "Ps", "Pe"), exclude_characters=DELIMITERS
    ),
    min_size=1,
)


@given(token=IDENTIFIER.filter(lambda t: not t.startswith("assets-")), partner=IDENTIFIER)
def test_accepted_strings_are_not_changed(token, partner):
    """A request has exactly the strings that it was created with, in any script."""
    request = RelayCreateRequest([token], partner)
    assert (request.report_tokens, request.secondary_client_id) == ((token,), partner)
    assert list(models.secrets_in(request)) == [token]
