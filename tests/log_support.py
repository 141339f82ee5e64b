"""Reads log records: compares them with the tables of docs/logs.md, and what they say with what happened."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from canaries import SERVER_TEXT, assert_no_canary

from plaid_relay_async.errors import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = (Path(__file__).parent.parent / "docs" / "logs.md").read_text(encoding="utf-8")
_FIELD_ROWS = re.findall(r"^\| (`plaid_\w+`(?:, `plaid_\w+`)*) \|", _PAGE, re.MULTILINE)
FIELDS = {name for row in _FIELD_ROWS for name in re.findall(r"plaid_(\w+)", row)}
_EVENT_ROWS = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| ([a-z_, ]+) \|$", _PAGE, re.MULTILINE)
EVENTS = {
    name: ({"event", "operation", *fields.split(", ")}, set(re.findall("DEBUG|INFO|WARNING", levels)))
    for name, levels, fields in _EVENT_ROWS
}
ALWAYS = {
    "attempt": {"call", "attempt", "certainty", "duration"},
    "retry": {"call", "attempt", "error_code", "wait"},
    "call_end": {"call", "attempts", "outcome", "duration"},
    "callback_error": {"call", "error_code"},
    "late_outcome": {"call", "attempts", "outcome", "duration"},
    "write_lost": {"call", "attempts", "outcome", "duration"},
    "batch_start": {"batch"},
    "batch_end": {"batch", "duration", "succeeded", "failed", "unknown", "not_attempted"},
}
# What servers say, and names of headers.
_FOREIGN = re.compile(f"{SERVER_TEXT}|PLAID-SECRET|User-Agent|Authorization", re.IGNORECASE)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a record that have a value, without their prefix."""
    prefix = "plaid_"
    return {
        name.removeprefix(prefix): value
        for name, value in vars(record).items()
        if name.startswith(prefix) and value is not None
    }


def records_of(records: list[logging.LogRecord], **fields: object) -> list[dict[str, object]]:
    """Return the fields of the records about calls and batches, of those with certain values."""
    found = [fields_of(record) for record in records if hasattr(record, "plaid_event")]
    return [each for each in found if all(each.get(name) == value for name, value in fields.items())]


def assert_documented(records: list[logging.LogRecord]) -> None:
    """Check that each record about a call or a batch has the documented fields and level, and no canary."""
    for record in records:
        if not hasattr(record, "plaid_event"):
            continue
        names = {name.removeprefix("plaid_") for name in vars(record) if name.startswith("plaid_")}
        assert names == FIELDS
        fields = fields_of(record)
        event = fields["event"]
        allowed, levels = EVENTS[event]
        assert {"event", "operation"} | ALWAYS[event] <= fields.keys() <= allowed
        assert record.levelname in levels
        assert (record.levelname == "WARNING") == (
            event in {"write_lost", "late_outcome", "callback_error"} or fields.get("outcome") == "unknown"
        )
        for name, value in fields.items():
            shown = (f"{name}={value}", f"{name}={json.dumps(value, ensure_ascii=False)}")
            assert name == "event" or any(text in record.getMessage() for text in shown)
        assert record.getMessage().isprintable()
        text = f"{vars(record)} {record.getMessage()}"
        assert_no_canary(text)
        assert _FOREIGN.search(text) is None, text


@contextlib.contextmanager
def captured_log(level: int = logging.DEBUG) -> Iterator[list[logging.LogRecord]]:
    """Yield a list to which the package's records are added, from a level."""
    logger, records = logging.getLogger("plaid_relay_async"), []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, previous = Capture(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous)


# ------------------------------------------------------------------------------------------- what happened


@frozen
class Story:
    """What happened to one request, as the log says it or as its outcome does.

    Attributes:
        outcome: how the call ended.
        attempts: the number of its attempts.
        reason: the reason of an outcome other than a success.
    """

    outcome: str
    attempts: int
    reason: str | None

    @classmethod
    def of(cls, outcome: object) -> Story:
        """Return the story of an outcome of a batch."""
        error = getattr(outcome, "error", None)
        word = "succeeded" if error is None else type(outcome).__name__.lower()
        return cls(word, outcome.attempts, None if error is None else reason_of(error))


def story_from_log(records: list[logging.LogRecord], call: str) -> Story:
    """Return what the log says about one call, and check that its records agree with each other."""
    *others, end = records_of(records, call=call)
    assert end["event"] == "call_end"
    attempts = [each for each in others if each["event"] == "attempt"]
    assert [each["attempt"] for each in attempts] == [*range(1, len(attempts) + 1)]
    # On a busy machine, the journal may take so long to record an intent that its attempt isn't made.
    assert len(attempts) == end["attempts"] or ("run" in end and len(attempts) == end["attempts"] - 1)
    for each in others:
        assert each["event"] in {"attempt", "retry"}
        assert "error_code" in each or each["certainty"] == "definitive"
    # Between two attempts, and only there, is a retry, with the reason of the attempt before it.
    retries = {each["attempt"]: each["error_code"] for each in others if each["event"] == "retry"}
    reasons = {each["attempt"]: each.get("error_code") for each in attempts}
    assert retries.items() <= reasons.items()
    assert {*range(1, len(attempts))} <= retries.keys()
    return Story(end["outcome"], end["attempts"], end.get("error_code"))
