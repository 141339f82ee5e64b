"""`assert_no_secrets` finds secrets and tokens in each part of a log record."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest

from plaid_relay_async.testing import assert_no_secrets

TOKEN = f"credit-relay-production-{uuid4()}"
LOGGER = logging.getLogger("my.app")


def log_traceback() -> None:
    try:
        raise ValueError(TOKEN)
    except ValueError:
        LOGGER.exception("it failed")


@pytest.mark.parametrize(
    "log",
    [
        lambda: LOGGER.error("created %s", TOKEN),
        lambda: LOGGER.error("created", extra={"response": {"relay_token": TOKEN}}),
        log_traceback,
        lambda: LOGGER.error("the secret is testing-secret"),
        lambda: LOGGER.error("the report is my-report"),
    ],
    ids=["message", "extra", "traceback", "PLAID_SECRET", "own secret"],
)
def test_a_secret_is_found(caplog, monkeypatch, log):
    """A secret in the message, the extra or the traceback is an error, whose text doesn't contain it."""
    monkeypatch.setenv("PLAID_SECRET", "testing-secret")
    log()
    with pytest.raises(
        AssertionError, match=r"the log contains a secret \(my\.app, ERROR, test_logs\.py:"
    ) as raised:
        assert_no_secrets(caplog, "my-report")
    assert not any(secret in str(raised.value) for secret in (TOKEN, "testing-secret", "my-report"))


def test_other_texts_are_no_secrets(caplog, monkeypatch):
    """Names that contain the name of an environment are no secrets, and PLAID_SECRET may be missing."""
    monkeypatch.delenv("PLAID_SECRET", raising=False)
    LOGGER.error("deployed to app-production-2", extra={"host": "app-production-2"})
    assert_no_secrets(caplog)


def test_records_of_fixtures_are_checked(caplog, request):
    """Records that a fixture logged during the set-up are checked as well."""
    request.getfixturevalue("caplog").get_records("setup").append(
        logging.makeLogRecord({"name": "my.app", "msg": TOKEN})
    )
    with pytest.raises(AssertionError):
        assert_no_secrets(caplog)
