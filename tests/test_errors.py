from __future__ import annotations

import copy
import inspect
import pickle

import aiohttp
import pytest

from plaid_relay_async import error_codes, errors
from plaid_relay_async.error_codes import error_class_for
from plaid_relay_async.errors import (
    AssetReportError,
    AuthenticationError,
    ConfigurationError,
    CursorExpiredError,
    InboxError,
    InvalidRequestError,
    ItemError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    ReportNotReadyError,
    RequestValidationError,
)
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import Fault
from plaid_relay_async.transport import causes

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PlaidRelayError)]
# An inbox calls no operation of Plaid.
REQUEST_ERRORS = [cls for cls in CLASSES if cls is not InboxError]


@pytest.mark.parametrize(
    ("error_type", "error_code", "status", "cls"),
    [
        ("INVALID_INPUT", "INVALID_API_KEYS", 400, AuthenticationError),
        ("INVALID_INPUT", "UNAUTHORIZED_ROUTE_ACCESS", 400, AuthenticationError),
        ("INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN", 400, InvalidRequestError),
        ("INVALID_INPUT", "WEBHOOK_EVENTS_CURSOR_EXPIRED", 400, CursorExpiredError),
        ("INVALID_INPUT", "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE", 400, InvalidRequestError),
        ("INVALID_REQUEST", "MISSING_FIELDS", 400, InvalidRequestError),
        ("ASSET_REPORT_ERROR", "PRODUCT_NOT_READY", 400, ReportNotReadyError),
        ("ITEM_ERROR", "PRODUCT_NOT_READY", 400, ItemError),
        ("ASSET_REPORT_ERROR", "DATA_UNAVAILABLE", 400, AssetReportError),
        ("ASSETS_ERROR", "SOMETHING_NEW", 400, AssetReportError),
        ("INSTITUTION_ERROR", "INSTITUTION_DOWN", 400, ItemError),
        ("RATE_LIMIT_EXCEEDED", "CREDITS_EXHAUSTED", 429, RateLimitError),
        ("API_ERROR", "INTERNAL_SERVER_ERROR", 500, PlaidServerError),
        ("API_ERROR", "PLANNED_MAINTENANCE", 503, PlaidServerError),
        ("NEVER_SEEN", "NEVER_SEEN", 400, InvalidRequestError),
        ("NEVER_SEEN", "NEVER_SEEN", 500, PlaidServerError),
        (None, None, 401, AuthenticationError),
        (None, None, 404, InvalidRequestError),
        (None, None, 429, RateLimitError),
        (None, None, 502, PlaidServerError),
        (None, None, 302, PlaidAPIError),
    ],
)
def test_the_class_is_chosen_by_code_then_type_then_status(error_type, error_code, status, cls):
    """The class of an error depends on Plaid's code first, its type next and the HTTP status last."""
    assert error_class_for(error_type, error_code, status) is cls


def test_each_type_of_the_specification_is_in_the_table(openapi):
    """The table contains each error_type of Plaid's specification."""
    types = openapi.document["components"]["schemas"]["PlaidErrorType"]["enum"]
    assert set(types) <= set(error_codes._BY_TYPE)


def test_each_exception_of_aiohttp_has_a_phrase():
    """Each exception that aiohttp raises for a request has a phrase of this package."""
    exempt = {
        "ContentTypeError": "response.json() alone",
        "InvalidURL": "an address is checked when the client is created",
        "InvalidUrlClientError": "the same",
        "InvalidUrlRedirectClientError": "redirects aren't followed",
        "NonHttpUrlClientError": "an address is checked when the client is created",
        "NonHttpUrlRedirectClientError": "redirects aren't followed",
        "RedirectClientError": "redirects aren't followed",
        "UploadAbortedError": "only for uploads whose progress is observed",
        "WSServerHandshakeError": "WebSockets",
        "ClientError": "the root",
    }
    with_phrase = tuple(cls for cls, _ in causes._PHRASES)
    missing = {
        cls.__name__
        for _, cls in inspect.getmembers(aiohttp, inspect.isclass)
        if issubclass(cls, aiohttp.ClientError) and not issubclass(cls, with_phrase)
    }
    assert missing <= exempt.keys()


@pytest.mark.parametrize("cls", REQUEST_ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_says_whether_it_was_sent_and_what_to_do(cls):
    """The text of every error has the message, whether the request was sent, and a sentence of advice."""
    error = cls("what happened", sent=None, attempts=3)
    assert str(error).startswith("what happened [perhaps sent, attempts=3] ")
    assert str(error).endswith(".")
    assert error.advice in str(error)
    assert cls.__doc__


def test_an_error_of_an_inbox_has_no_details_of_a_request():
    """The text of an `InboxError` has the message and a sentence of advice: no request to Plaid failed."""
    error = InboxError("the disk is full")
    assert str(error) == f"the disk is full. {error.advice}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_pickling_and_copying(cls):
    """Task queues and process pools pass errors on by pickle."""
    error = cls("what happened", sent=True, attempts=2)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)
        assert (twin.sent, twin.attempts) == (True, 2)


def test_the_text_of_an_error_has_plaids_fields():
    """The text contains type, code, request ID, documentation and delay."""
    error = PlaidAPIError(
        "no",
        status=429,
        error_type="RATE_LIMIT_EXCEEDED",
        error_code="RATE_LIMIT",
        request_id="q7",
        documentation_url="https://plaid.com/docs/errors/",
        retry_after=2.5,
    )
    for word in ("429", "RATE_LIMIT_EXCEEDED", "RATE_LIMIT", "q7", "https://plaid.com/docs/errors/", "2.5"):
        assert word in str(error)


def test_errors_derive_from_builtin_classes():
    """Handlers for Python's built-in exceptions catch the errors of this package that mean the same."""
    assert issubclass(NotSentError, ConnectionError)
    assert issubclass(ReadTimeoutError, TimeoutError)
    assert issubclass(RequestValidationError, ValueError)
    assert not issubclass(InvalidRequestError, ValueError)  # a rejection by Plaid isn't an invalid argument
    assert NotSentError("no", errno=111).errno == 111


def test_a_validation_error_survives_pickling():
    """A worker process can pass on the error with its field and problem."""
    error = pickle.loads(pickle.dumps(RequestValidationError.of("report_tokens[0]", "is empty")))
    assert (error.field, error.problem) == ("report_tokens[0]", "is empty")
    assert str(error) == "report_tokens[0] is empty [not sent] Fix the field that is named."


def test_an_unknown_attribute_is_rejected():
    """A misspelt attribute doesn't pass unnoticed."""
    with pytest.raises(TypeError, match="no attribute 'colour'"):
        OutcomeUnknownError("x", colour="red")


def test_a_hidden_value_is_shown_only_by_reveal():
    """Neither the repr nor the string shows the value."""
    secret = Hidden(b"credit-relay-sandbox-1")
    assert f"{secret!r} {secret}" == "<hidden> <hidden>"
    assert secret.reveal() == b"credit-relay-sandbox-1"


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_error_can_be_printed_whatever_a_server_sends(plaid, client, status):
    """A lone surrogate in a response, which no encoding can represent, is escaped in the error."""
    body = {"error_code": "X", "error_message": "a\ud800b", "request_id": "r\udfff", "causes": ["\ud800"]}
    plaid.fail(Fault(path="/credit/relay/create", status=status, body=body))
    with pytest.raises(PlaidRelayError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    error = caught.value
    assert b"request_id=r\\udfff" in str(error).encode()
    assert error.request_id == "r\\udfff"
    if status != 200:
        assert b"a\\ud800b" in str(error).encode()
        assert error.error_message == "a\\ud800b"


def test_an_error_with_a_lone_surrogate_can_be_printed():
    """A name that isn't text, such as a file's, is escaped in the text of an error."""
    assert "no \\udcff here" in str(ConfigurationError("no \udcff here"))


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
