"""`assert_no_secrets`: a check that the log of a test contains neither secrets nor tokens."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from plaid_relay_async.redaction import REDACTED, redact_credentials

if TYPE_CHECKING:
    import pytest

_STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def assert_no_secrets(caplog: pytest.LogCaptureFixture, *secrets: str) -> None:
    """Check that no record of the log contains a secret or a token.

    It checks the message, the traceback and the `extra` of each record that the test and its fixtures have
    logged so far. Only records of the levels that are captured are checked, so call
    `caplog.set_level(logging.DEBUG)` at the start of the test. What counts as secret: PLAID_SECRET,
    everything with the form of Plaid's tokens and secrets, and `secrets`.

    Args:
        caplog: pytest's fixture.
        secrets: further texts that must not be logged, such as the tokens in
            `@pytest.mark.plaid(reports=[...])`.

    Raises:
        AssertionError: a record contains a secret. The message shows the record, with its secrets redacted.
    """
    __tracebackhide__ = True
    known = [secret for secret in (os.environ.get("PLAID_SECRET"), *secrets) if secret]
    for phase in ("setup", "call", "teardown"):
        for record in caplog.get_records(phase):
            text = _text_of(record)
            redacted = _redact(text, known)
            if redacted != text:
                place = f"{record.name}, {record.levelname}, {record.filename}:{record.lineno}"
                raise AssertionError(f"the log contains a secret ({place}): {redacted}")


def _text_of(record: logging.LogRecord) -> str:
    extra = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
    text = logging.Formatter().format(record)
    return f"{text} {extra!r}" if extra else text


def _redact(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return redact_credentials(text)
