"""What programs do to the log: other formatters, handlers that raise, hostile names. No outcome depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from cancellation_support import cancel_once_sent
from hypothesis import given
from hypothesis import strategies as st
from log_support import FIELDS, assert_documented, captured_log, fields_of, records_of
from pythonjsonlogger.json import JsonFormatter
from support import CREATE, OWNER, QUICK, RecordingJournal

from plaid_relay_async import OutcomeUnknownError, RelayClient, RelayCreateRequest
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.telemetry import CALLS, log

if TYPE_CHECKING:
    from collections.abc import Iterator

MISPLACED = "credit-relay-sandbox-misplaced"
PACKAGE = logging.getLogger("plaid_relay_async")


# ------------------------------------------------------------------------------------------- injection


def parsed(message: str) -> dict[str, str]:
    """Return the fields of a message, as a parser that splits it at separators finds them."""
    details = message.partition(": ")[2].partition("; ")[0]
    pattern = r'(\w+)=("(?:[^"\\]|\\.)*"|[^",]*)(?:, |$)'
    assert re.fullmatch(f"(?:{pattern})*", details), message
    return {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in re.findall(pattern, details)
    }


@given(*[st.text(st.characters(), max_size=90)] * 4)
def test_no_text_forges_a_line_or_a_field(run, partner, error_code, request_id):
    """Whatever the names and identifiers contain, the message is one line, and has exactly the record's fields."""
    with captured_log() as records:
        log(
            CALLS,
            logging.WARNING,
            "call_end",
            operation=CREATE,
            call_id="1f",
            run=run,
            # The request rejects these in a partner.
            partner=re.sub(r"[\s,;'\"\x00-\x1f\x7f-\xa0]", "", partner),
            error_code=error_code,
            request_id=request_id,
            attempts=1,
            outcome="unknown",
            duration=0.1,
        )
    (record,) = records
    assert record.getMessage().isprintable()
    fields = fields_of(record)
    assert fields.pop("event") == "call_end"
    assert parsed(record.getMessage()) == {name: str(value) for name, value in fields.items()}


@pytest.mark.parametrize(
    "name", ["%s%n%(message)s", "{0.__class__}{record}", "${message}", "\x1b[2J\r\n\x00\u202e"]
)
@pytest.mark.parametrize("style", ["%(message)s", "{message}", "${message}"])
async def test_names_are_not_formats(plaid, client, style, name):
    """Names with the placeholders of a format, or control characters, are shown as they are, or escaped."""

    class Named(RecordingJournal):
        run = f"nightly {name}"

        async def record_intent(self, request: Any) -> None: ...

        async def record_outcome(self, outcome: Any) -> None: ...

    formatter = logging.Formatter(style, style=style[0])
    with captured_log() as records:
        requests = RelayCreateRequest.fan_out([plaid.add_report()], ["p"])
        await client.relay.create_many(requests, journal=Named())
    lines = [formatter.format(record) for record in records]
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert_documented(records)


async def test_a_journal_whose_run_is_no_text(plaid, client):
    """Another implementation of a journal may have anything as its run; only text is a run name."""

    class Odd(RecordingJournal):
        run = object()

        async def record_intent(self, request: Any) -> None: ...

        async def record_outcome(self, outcome: Any) -> None: ...

    with captured_log() as records:
        created = await client.relay.create([plaid.add_report()], "p", journal=Odd())
    assert created.relay_token
    assert records_of(records, run=None) == records_of(records)


# -------------------------------------------------------------------------------------- broken programs


class Raising(logging.Handler):
    """A handler and a filter that raise."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error


@contextlib.contextmanager
def broken_handler(error: type[BaseException]) -> Iterator[None]:
    handler = Raising(error)
    PACKAGE.addHandler(handler)
    try:
        yield
    finally:
        PACKAGE.removeHandler(handler)


@contextlib.contextmanager
def broken_filter() -> Iterator[None]:
    CALLS.addFilter(broken := Raising(ZeroDivisionError))
    try:
        yield
    finally:
        CALLS.removeFilter(broken)


@contextlib.contextmanager
def record_factory(factory: Any) -> Iterator[None]:
    previous = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        yield
    finally:
        logging.setLogRecordFactory(previous)


def raise_anything(*_: Any, **__: Any) -> Any:
    raise KeyError("no record")


def create_with_attribute(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    record.plaid_partner = "the program's own attribute"
    return record


@contextlib.contextmanager
def disabled_loggers() -> Iterator[None]:
    """Disable the loggers, as `logging.config.dictConfig` does by default with those that it doesn't configure."""
    loggers = [PACKAGE, CALLS, logging.getLogger("plaid_relay_async.batches")]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@contextlib.contextmanager
def disabled_logging() -> Iterator[None]:
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


PROGRAMS = {
    "a handler raises": lambda: broken_handler(ZeroDivisionError),
    "a handler raises CancelledError": lambda: broken_handler(asyncio.CancelledError),
    "a filter raises": broken_filter,
    "a record factory raises": lambda: record_factory(raise_anything),
    "a record factory sets an attribute": lambda: record_factory(create_with_attribute),
    "the loggers are disabled": disabled_loggers,
    "logging is disabled": disabled_logging,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
async def test_no_outcome_depends_on_the_log(plaid, client, every_log, program):
    """Tokens, errors, cancellations and late outcomes reach the caller, whatever the program's logging does."""
    report = plaid.add_report()
    with program():
        created = await client.relay.create([report], "single")
        plaid.fail(Fault(path=CREATE, status=429, times=2))
        requests = RelayCreateRequest.fan_out([report], ["p1", "p2", "p3"])
        result = await client.relay.create_many(requests)
        plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([report], "lost")
        plaid.fail(Fault(path=CREATE, when="after", latency=0.05))
        plaid.counts.clear()
        await cancel_once_sent(plaid, CREATE, client.relay.create([report], "late"))
    assert created.relay_token == plaid.ledger[0]["relay_token"]
    assert result.counts == {"created": 3}


async def test_a_handler_that_fails_to_write(plaid, every_log, capsys, monkeypatch):
    """`logging` reports the error of a standard handler with the record's arguments, which have no secret."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    stream = io.StringIO()
    stream.close()
    handler = logging.StreamHandler(stream)
    PACKAGE.addHandler(handler)
    try:
        async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
            created = await client.relay.create([plaid.add_report()], MISPLACED)
    finally:
        PACKAGE.removeHandler(handler)
    shown = capsys.readouterr().err
    assert "I/O operation on closed file" in shown
    assert not any(text in shown for text in (created.relay_token, OWNER.secret, MISPLACED))


# ----------------------------------------------------------------------------------- formatters and threads


def as_json_logger(record: logging.LogRecord) -> dict[str, Any]:
    return json.loads(JsonFormatter().format(record))


def as_structlog(record: logging.LogRecord) -> dict[str, Any]:
    processors = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(processors=processors)
    return json.loads(formatter.format(record))


@pytest.mark.parametrize("formatted", [as_json_logger, as_structlog])
async def test_formatters_of_other_packages(plaid, client, formatted):
    """Formatters that write JSON have all fields of each record, with their values."""
    plaid.fail(Fault(path=CREATE, status=429, times=1))
    with captured_log() as records:
        requests = RelayCreateRequest.fan_out([plaid.add_report()], ["p1", "p2"])
        await client.relay.create_many(requests)
    assert {record.plaid_event for record in records} == {
        "batch_start",
        "attempt_end",
        "retry",
        "call_end",
        "batch_end",
    }
    for record in records:
        output = formatted(record)
        assert {name: output[f"plaid_{name}"] for name in FIELDS} == {
            name: getattr(record, f"plaid_{name}") for name in FIELDS
        }


@pytest.mark.may_block  # the threads wait for each other, and coverage for its lock
def test_clients_in_threads(monkeypatch, capsys):
    """Clients in several threads write each record to standard error once, and have calls of their own."""
    monkeypatch.setenv("PLAID_RELAY_LOG", "debug")
    barrier = threading.Barrier(4)

    async def create() -> None:
        async with Simulator(reports=["report"]) as plaid:
            barrier.wait()
            async with RelayClient(OWNER, base_url=plaid.url) as client:
                await client.relay.create(["report"], threading.current_thread().name)

    level, handlers = PACKAGE.level, [*PACKAGE.handlers]
    threads = [threading.Thread(target=asyncio.run, args=[create()], name=f"partner-{n}") for n in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        PACKAGE.setLevel(level)
        PACKAGE.handlers[:] = handlers
    lines = capsys.readouterr().err.splitlines()
    calls = re.findall(r" attempt_end: .*call_id=(\w+), partner=(partner-\d)", "\n".join(lines))
    assert len(lines) == 8
    assert len({call for call, _ in calls}) == 4
    assert sorted(partner for _, partner in calls) == [f"partner-{n}" for n in range(4)]
