"""Compares log records with the tables of docs/logs.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from canaries import assert_no_canary

if TYPE_CHECKING:
    import logging

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
            assert name == "event" or f"{name}={value}" in record.getMessage()
        assert record.getMessage().isprintable()
        assert_no_canary(f"{vars(record)} {record.getMessage()}")
