"""The log and the messages of the command on standard error, as text or as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from plaid_relay_async.cli.messages import sanitize, write_lines
from plaid_relay_async.display import escape_json
from plaid_relay_async.errors import PlaidAPIError, PlaidRelayError
from plaid_relay_async.telemetry import PACKAGE, VARIABLE, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MESSAGES: Final = "plaid_relay_async.cli"  # the logger's name in the command's own messages


class TextFormatter(logging.Formatter):
    """Formats records as text; those about calls begin with the time and the level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one or more lines."""
        text = super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {text}" if fields_of(record) else text


class JSONFormatter(logging.Formatter):
    """Formats each record as an object of JSON on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return escape_json(json.dumps(self.fields(record)).encode()).decode()

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the members of the object: those of each record, and the fields of this one."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            # It is escaped twice, because programs such as `jq -r` print the text itself.
            "message": "\n".join(map(sanitize, record.getMessage().split("\n"))),
        }
        return fields | _exception_fields(record) | fields_of(record)


class AuditFormatter(JSONFormatter):
    """Formats the records of the gateway's audit log, whose message is an object of JSON itself."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the members of a record, and those of the audit log."""
        return super().fields(record) | {"message": "a call has ended", **json.loads(record.getMessage())}


def _exception_fields(record: logging.LogRecord) -> dict[str, str]:
    """Return the class of a record's exception and, if it contains no text of a server, its text."""
    error = record.exc_info and record.exc_info[1]
    if not error:
        return {}
    fields = {"exception": type(error).__name__}
    if isinstance(error, PlaidRelayError) and not isinstance(error, PlaidAPIError):
        fields["error"] = sanitize(str(error))
    return fields


class LogHandler(logging.Handler):
    """Writes log records to standard error; of text, each line as `sanitize` returns it.

    Attributes:
        write: writes the lines of all handlers of this class; see `writing_with`.
    """

    write: ClassVar[Callable[..., None]] = staticmethod(write_lines)

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of one or more lines."""
        # The command's own output has each outcome. So records about calls are written only if a level was
        # set, by --verbose or PLAID_RELAY_LOG.
        if fields_of(record) and PACKAGE.level == logging.NOTSET:
            return
        try:
            text = self.format(record)
        # The arguments of another package's record don't match its message. They may be secrets.
        except Exception as error:  # noqa: BLE001  # formatting calls any `__str__`
            problem = f"a log record can't be formatted: {type(error).__name__}"
            text = self.format(_new_record(record.name, record.levelno, problem))
        is_json = isinstance(self.formatter, JSONFormatter)
        LogHandler.write(*([text] if is_json else map(sanitize, text.split("\n"))))

    @classmethod
    @contextlib.contextmanager
    def writing_with(cls, write: Callable[..., None]) -> Iterator[None]:
        """Write with another function, such as one that writes above a progress bar."""
        previous = cls.write
        cls.write = staticmethod(write)
        try:
            yield
        finally:
            cls.write = staticmethod(previous)


def _new_record(logger: str, level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord(logger, level, "", 0, message, None, None)


handler: Final = LogHandler()
# A client that reads PLAID_RELAY_LOG then adds no handler of its own.
handler.name = VARIABLE


def writes_json() -> bool:
    """Return whether each line on standard error is an object of JSON, because of `--log-format json`."""
    return isinstance(handler.formatter, JSONFormatter)


def message_lines(*lines: str, level: int = logging.INFO) -> list[str]:
    """Return the lines that show a message: each as `sanitize` returns it, or a single one of JSON."""
    if not writes_json():
        return [sanitize(line) for line in lines]
    return [handler.format(_new_record(_MESSAGES, level, "\n".join(lines)))]


def print_message(*lines: str, level: int = logging.INFO) -> None:
    """Write a message of one or more lines to standard error."""
    write_lines(*message_lines(*lines, level=level))


def configure_logs(log_format: str, *, verbose: bool = False) -> None:
    """Apply the options `--log-format` and `--verbose`."""
    if verbose:
        PACKAGE.setLevel(logging.DEBUG)
    if log_format == "json":
        handler.setFormatter(JSONFormatter())
    if verbose or log_format == "json":
        PACKAGE.addHandler(handler)  # adds it once


@contextlib.contextmanager
def restored_logs() -> Iterator[None]:
    """Restore the package's logger at the end, because the command may run inside a program."""
    level, handlers, formatter = PACKAGE.level, [*PACKAGE.handlers], handler.formatter
    try:
        yield
    finally:
        PACKAGE.setLevel(level)
        PACKAGE.handlers[:] = handlers
        handler.setFormatter(formatter)
