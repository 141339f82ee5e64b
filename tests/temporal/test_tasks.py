"""What a worker returns survives the way to the submitter, also between releases."""

from __future__ import annotations

import json

import pytest
from canaries import assert_no_canary
from journal_support import creation_requests

from plaid_relay_async import OutcomeUnknownError, PlaidAPIError, PlaidRelayError, ResponseDecodeError
from plaid_relay_async.outcomes import Failed, Unknown
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.temporal.tasks import TaskResult


def sent_result(outcome_class, error):
    """Return the payload of the result with an error, as it arrives."""
    (request,) = creation_requests("assets-sandbox-1", 1)
    outcome = outcome_class(request=request, error=error, attempts=1, elapsed=0.0, request_id=None)
    result = TaskResult.of(outcome, None)
    assert_no_canary(repr(result))
    return json.loads(json.dumps(result.to_payload()))


def test_an_unreadable_response_arrives():
    """The bytes that Plaid sent, which may contain a token, arrive with the error, and with its cause."""
    body = Hidden(b"\xffcanary-token")
    error = OutcomeUnknownError("x", body=body)
    error.__cause__ = ResponseDecodeError("y", path="$.a", body=body)
    received = TaskResult.from_payload(sent_result(Unknown, error)).to_error()
    assert type(received) is OutcomeUnknownError
    assert received.body.reveal() == body.reveal()
    assert (type(received.__cause__), received.__cause__.path) == (ResponseDecodeError, "$.a")
    assert received.__cause__.body.reveal() == body.reveal()


def test_a_long_unreadable_response_is_cut_off():
    """Otherwise Temporal would reject the result."""
    payload = sent_result(Unknown, OutcomeUnknownError("x", body=Hidden(b"a" * 10_000_000)))
    assert len(TaskResult.from_payload(payload).to_error().body.reveal()) == 100_000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"class": "LaterError"}, PlaidRelayError),
        ({"attributes": {"status": 400, "later": 1}}, PlaidAPIError),
        ({"class": "RequestValidationError", "body": "YQ=="}, ValueError),
    ],
)
def test_an_error_of_another_release(change, expected):
    """A class or an attribute that this release doesn't know is replaced or left out, and the message stays."""
    payload = sent_result(Failed, PlaidAPIError("the message", status=400))
    payload["error"] |= change
    error = TaskResult.from_payload(payload).to_error()
    assert isinstance(error, expected)
    assert error.args == ("the message",)
