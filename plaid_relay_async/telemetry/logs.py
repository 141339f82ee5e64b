"""The log: the loggers, and the records about calls and batches, without secrets.

`Fields` lists the fields of a record. Each record that `log` writes has all of them, so a format string can
use any of them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from attrs import asdict, fields, frozen

from plaid_relay_async.errors import ConfigurationError, reason_of
from plaid_relay_async.telemetry.containment import contain
from plaid_relay_async.telemetry.events import redact_id, redact_name, redact_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrs import Attribute

PACKAGE: Final = logging.getLogger("plaid_relay_async")
CALLS: Final = logging.getLogger("plaid_relay_async.calls")
BATCHES: Final = logging.getLogger("plaid_relay_async.batches")
JOURNAL: Final = logging.getLogger("plaid_relay_async.journal")

# Without a handler, Python would print warnings to standard error although the program didn't request that.
PACKAGE.addHandler(logging.NullHandler())

VARIABLE: Final = "PLAID_RELAY_LOG"
"""The environment variable that sends records to standard error, and the name of the command's handler."""
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}
# With it, no field has the name of an attribute that `logging` itself sets, such as `args` or `message`.
_PREFIX: Final = "plaid_"
# The run name is the only value that may need quotation marks.
_NEEDS_QUOTES: Final = re.compile(r'[\s,;="]')


@frozen(kw_only=True)
class Fields:
    """The fields of a log record; as attributes of the record, their names begin with `plaid_`.

    Attributes:
        event: the name of the event: `attempt_end`, `retry`, `call_end`, `callback_error`, `late_outcome`,
            `write_lost`, `batch_start` or `batch_end`.
        operation: the path of the operation, such as `/credit/relay/create`.
        call_id: the identifier of the call, the same in all its records. In a batch, it is that of the batch,
            a hyphen, and the position of the request in the input, from 1.
        batch_id: the identifier of the batch.
        run: the run name of the journal.
        partner: the `secondary_client_id` of a creation.
        attempt: the number of the attempt in its call, from 1.
        attempts: the number of attempts of the call, including those that weren't sent.
        status: the HTTP status of the response.
        error_code: Plaid's `error_code`, or the name of the error's class.
        request_id: Plaid's ID of the request.
        certainty: what the end of the attempt proves: a `Certainty`, or `cancelled`.
        outcome: how the call ended: `succeeded`, `failed`, `unknown`, `cancelled` or `not_attempted`.
        duration: seconds that the attempt, the call or the batch took.
        wait: the minimum number of seconds until the next attempt.
        succeeded: the number of calls of the batch that succeeded.
        failed: the number of calls that failed.
        unknown: the number of calls whose outcome is unknown.
        not_attempted: the number of requests that were read and not sent.
    """

    event: str
    operation: str
    call_id: str | None = None
    batch_id: str | None = None
    run: str | None = None
    partner: str | None = None
    attempt: int | None = None
    attempts: int | None = None
    status: int | None = None
    error_code: str | None = None
    request_id: str | None = None
    certainty: str | None = None
    outcome: str | None = None
    duration: float | None = None
    wait: float | None = None
    succeeded: int | None = None
    failed: int | None = None
    unknown: int | None = None
    not_attempted: int | None = None


def log(logger: logging.Logger, level: int, event: str, *, remark: str = "", **fields: Any) -> None:
    """Log an event, if the logger has the level.

    Args:
        logger: one of this module's loggers.
        level: the level of the record.
        event: see `Fields`.
        remark: is appended to the message.
        **fields: see `Fields`.
    """
    if not logger.isEnabledFor(level):
        return
    try:
        values = _loggable_values(event, fields)
        extra = {_PREFIX + name: value for name, value in values.items()}
        # Error trackers group records by this text, so it has the event.
        template = f"{event}: %s"
        logger.log(level, template, _details(values, remark), extra=extra)
    except BaseException as error:  # noqa: BLE001  # of a handler, a filter or a record factory of the program
        contain(error)


def message_of(event: str, *, remark: str = "", **fields: Any) -> str:
    """Return the message of the record that `log` would write."""
    return f"{event}: {_details(_loggable_values(event, fields), remark)}"


def _details(values: Mapping[str, Any], remark: str) -> str:
    details = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False) if _NEEDS_QUOTES.search(str(value)) else value}"
        for name, value in values.items()
        if value is not None and name != "event"
    )
    return details + (remark and f"; {remark}")


def _loggable_values(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(Fields(event=event, **fields), value_serializer=_loggable)


def _loggable(_: object, field: Attribute[Any], value: Any) -> Any:
    """Return the value of a field with secrets hidden, or a float rounded to microseconds."""
    if isinstance(value, str) and field.name in _REDACTIONS:
        return _REDACTIONS[field.name](value)
    return round(value, 6) if isinstance(value, float) else value


_REDACTIONS: Final = {
    "run": redact_run,
    "partner": redact_name,
    "error_code": redact_id,
    "request_id": redact_id,
}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record that have a value, with their names in `Fields`."""
    # The attributes of another package's record may have the same prefix.
    values = {field.name: getattr(record, _PREFIX + field.name, None) for field in fields(Fields)}
    return {name: value for name, value in values.items() if value is not None}


def error_fields(error: BaseException | None) -> dict[str, Any]:
    """Return the fields that describe an error; none without one."""
    if error is None:
        return {}
    attributes = {name: getattr(error, name, None) for name in ("status", "request_id")}
    return {"error_code": reason_of(error), **attributes}


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, because pytest replaces it, and closes the replacement later."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_stderr_handler: Final = _StderrHandler()
_stderr_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def log_to_stderr_if_requested() -> None:
    """Send the package's log records to standard error if PLAID_RELAY_LOG is set.

    If a handler of the program writes to standard error already, only the level is set.

    Raises:
        ConfigurationError: the variable has another value than `debug` or `info`.
    """
    if not (value := os.environ.get(VARIABLE)):
        return
    if (level := _LEVELS.get(value.lower())) is None:
        raise ConfigurationError(f"{VARIABLE} must be {' or '.join(_LEVELS)}")
    others = [*PACKAGE.handlers, *(logging.root.handlers if PACKAGE.propagate else ())]
    if not any(_shows_on_stderr(handler, level) for handler in others):
        _stderr_handler.setLevel(level)
        PACKAGE.addHandler(_stderr_handler)  # adds it once
    if not PACKAGE.isEnabledFor(level):  # the program may have set a lower level
        PACKAGE.setLevel(level)


def _shows_on_stderr(handler: logging.Handler, level: int) -> bool:
    if handler is _stderr_handler:
        return False
    is_stderr = handler.name == VARIABLE or getattr(handler, "stream", None) is sys.stderr
    return is_stderr and handler.level <= level
