"""The log of the command on standard error, as text or as JSON."""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from plaid_relay_async.cli.messages import sanitize, write_lines
from plaid_relay_async.display import escape_json
from plaid_relay_async.redaction import redact_credentials
from plaid_relay_async.telemetry import PACKAGE, VARIABLE, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TextFormatter(logging.Formatter):
    """Formats records as text; those about calls begin with the time and the level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one or more lines."""
        text = super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {text}" if fields_of(record) else text


class JSONFormatter(logging.Formatter):
    """Formats each record as an object of JSON on one line, with the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; of an exception it has the class, because its text may have a secret."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact_credentials(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = record.exc_info[0].__name__
        return escape_json(json.dumps(fields | fields_of(record)).encode()).decode()


class LogHandler(logging.Handler):
    """Writes log records to standard error; of text, each line as `sanitize` returns it.

    Attributes:
        write_lines: writes the lines of all handlers of this class; see `writing_with`.
    """

    write_lines: ClassVar[Callable[..., None]] = staticmethod(write_lines)

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of one or more lines."""
        # The command's own output has each outcome. So records about calls are written only if a level was
        # set, by --verbose or PLAID_RELAY_LOG.
        if fields_of(record) and PACKAGE.level == logging.NOTSET:
            return
        text = self.format(record)
        is_json = isinstance(self.formatter, JSONFormatter)
        LogHandler.write_lines(*([text] if is_json else map(sanitize, text.split("\n"))))

    @classmethod
    @contextlib.contextmanager
    def writing_with(cls, write_lines: Callable[..., None]) -> Iterator[None]:
        """Write with another function, such as one that writes above a progress bar."""
        previous = cls.write_lines
        cls.write_lines = staticmethod(write_lines)
        try:
            yield
        finally:
            cls.write_lines = staticmethod(previous)


handler: Final = LogHandler()
# A client that reads PLAID_RELAY_LOG then adds no handler of its own.
handler.name = VARIABLE


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
