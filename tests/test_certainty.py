"""What an error proves about its attempt, and which error a call ends with: plain functions, without a server."""

from __future__ import annotations

import pytest

from plaid_relay_async import (
    ClientClosedError,
    ConnectionLostError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    ResponseDecodeError,
    WaitTooLongError,
)
from plaid_relay_async.certainty import Certainty, certainty_of, error_of_call, reclassify

MAINTENANCE = {"status": 503, "error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}


@pytest.mark.parametrize(
    ("error", "certainty"),
    [
        (NotSentError("x"), Certainty.NOT_SENT),
        (NotSentError("x", sent=True), Certainty.NOT_SENT),
        (WaitTooLongError("x", sent=True), Certainty.NOT_SENT),
        (ClientClosedError("x"), Certainty.NOT_SENT),
        (InvalidRequestError("x", status=400, sent=False), Certainty.NOT_SENT),
        (RateLimitError("x", status=429), Certainty.DECLINED),
        (PlaidServerError("x", **MAINTENANCE), Certainty.DECLINED),
        (RateLimitError("x", status=429, error_code="CREDITS_EXHAUSTED"), Certainty.DEFINITIVE),
        (InvalidRequestError("x", status=400), Certainty.DEFINITIVE),
        (PlaidAPIError("x", status=302), Certainty.DEFINITIVE),
        (PlaidAPIError("not removed", status=200), Certainty.DEFINITIVE),
        (ResponseDecodeError("x", status=200), Certainty.DEFINITIVE),
        (PlaidServerError("x", status=400, error_type="API_ERROR"), Certainty.IN_DOUBT),
        (PlaidServerError("x", status=503), Certainty.IN_DOUBT),
        (ReadTimeoutError("x"), Certainty.IN_DOUBT),
        (OutcomeUnknownError("x"), Certainty.IN_DOUBT),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}"[:60],
)
def test_what_an_error_proves_about_its_attempt(error, certainty):
    """An error proves that its attempt wasn't sent, was declined or was rejected, or it proves nothing."""
    assert certainty_of(error) is certainty


@pytest.mark.parametrize(
    "later",
    [
        NotSentError("not sent"),
        WaitTooLongError("paused"),
        RateLimitError("declined", status=429),
        InvalidRequestError("rejected", status=400),
    ],
    ids=lambda error: str(error.args[0]),
)
def test_an_attempt_in_doubt_outweighs_a_later_refusal(later):
    """A later refusal is only the cause of the error in doubt, which counts all attempts."""
    lost = ConnectionLostError("lost", attempts=1)
    assert error_of_call(later, in_doubt=lost, attempts=2, sent=True) is lost
    assert lost.__cause__ is later
    assert (lost.attempts, later.attempts, lost.sent, later.sent) == (2, 2, True, True)


def test_a_later_attempt_in_doubt_is_the_error_of_the_call():
    """Of two attempts in doubt, the error of the later one is raised."""
    first, second = OutcomeUnknownError("first"), OutcomeUnknownError("second", request_id="q2")
    assert error_of_call(second, in_doubt=first, attempts=2) is second


@pytest.mark.parametrize("sent", [None, False, True])
def test_whether_a_call_was_sent(sent):
    """A call was sent if any of its attempts was; otherwise its last error says what is known."""
    assert error_of_call(ClientClosedError("closed", sent=sent), attempts=0).sent is sent
    assert error_of_call(ClientClosedError("closed", sent=sent), attempts=1, sent=True).sent is True


def test_a_reclassified_error_keeps_what_its_class_declares():
    """Another class keeps the text and the attributes that it has; the original error isn't changed."""
    lost = ConnectionLostError("lost", attempts=3, errno=104)
    unknown = reclassify(lost, OutcomeUnknownError, advice="Look.", request_id="q1")
    assert str(unknown) == "lost [sent, attempts=3, request_id=q1] Look."
    assert (lost.advice, lost.attempts) == (ConnectionLostError.advice, 3)
    assert reclassify(unknown, OutcomeUnknownError, message="gone", request_id=None).args == ("gone",)
