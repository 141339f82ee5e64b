"""The meaning of a response: a record or an error."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from codec_support import REPORT, REPORT_TOKEN, SECRET, create, get, raw_response
from hypothesis import given
from hypothesis import strategies as st

from plaid_relay_async import codec, models
from plaid_relay_async.codec import read_response
from plaid_relay_async.errors import (
    ConnectionLostError,
    InvalidRequestError,
    ItemError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidServerError,
    ResponseDecodeError,
)

# ----------------------------------------------------------------------------------------------- creations


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


# --------------------------------------------------------------------------------------------------- reads


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


def test_the_raw_response_is_available_and_hidden():
    """The received bytes stay with the record, hidden, and don't take part in comparisons."""
    body = json.dumps(REPORT, indent=3)
    response = get(body)
    assert response.raw.reveal() == body.encode()
    assert "ins_109508" not in repr(response)
    assert response == get(REPORT)


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


# -------------------------------------------------------------------------------------------------- errors


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


# --------------------------------------------------------------------------------------------- Retry-After


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
