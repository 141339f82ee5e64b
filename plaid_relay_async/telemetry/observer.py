"""The observer of a client, to which the transport, tracked calls and batches report events.

It passes the events to the log, to the client's callbacks and to OpenTelemetry, and counts the outcomes for
`Statistics`. All of them get the same information, so they agree about each attempt and each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from attrs import define, field

from plaid_relay_async.errors import ConfigurationError, PlaidRelayError, reason_of
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.telemetry.containment import contain
from plaid_relay_async.telemetry.events import AttemptEnd, CallEnd, redact_name, redact_run
from plaid_relay_async.telemetry.logs import (
    BATCHES,
    CALLS,
    JOURNAL,
    error_fields,
    log,
    message_of,
)
from plaid_relay_async.telemetry.settings import Telemetry

if TYPE_CHECKING:  # OpenTelemetry may not be installed, and attrs doesn't evaluate these annotations
    from types import ModuleType

    from opentelemetry.trace import Span  # noqa: TC004

    from plaid_relay_async.telemetry.otel import CallTrace, OpenTelemetry  # noqa: TC004

E = TypeVar("E", AttemptEnd, CallEnd)

OnAttemptEnd: TypeAlias = Callable[[AttemptEnd], object]
OnCallEnd: TypeAlias = Callable[[CallEnd], object]


def _new_id() -> str:
    """Return an identifier for a call or a batch."""
    return secrets.token_hex(6)


@define(eq=False, repr=False)
class Observer:
    """Receives the events of a client's transport and batches.

    Attributes:
        on_attempt: the caller's function for the end of each attempt, if there is one.
        on_call_end: the caller's function for the end of each call, if there is one.
        otel: the connection to OpenTelemetry, if its API is installed.
        outcomes: the number of calls by outcome.

    Raises:
        ConfigurationError: a callback is not callable, or is async.
    """

    on_attempt: OnAttemptEnd | None = None
    on_call_end: OnCallEnd | None = None
    otel: OpenTelemetry | None = None
    outcomes: Counter[str] = field(factory=Counter, init=False)
    has_callback: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        for name in ("on_attempt", "on_call_end"):
            callback = getattr(self, name)
            if callback is not None and (not callable(callback) or inspect.iscoroutinefunction(callback)):
                raise ConfigurationError(f"{name} must be a plain function, not an async one")
        self.has_callback = self.on_attempt is not None or self.on_call_end is not None

    def start_call(self, operation: str, request: object, run: str | None = None) -> ObservedCall:
        """Start a call outside of a batch, and return the object to which its events are reported.

        Args:
            operation: the path of the operation.
            request: the request of the call.
            run: the run name of the journal.
        """
        group = CallGroup(self, operation, run)
        call = ObservedCall(group, request, group.detailed)
        if group.detailed:
            call.start()
        return call

    def new_batch(self, operation: str, run: str | None) -> CallGroup:
        """Return a batch, to which its start and its end are reported."""
        return CallGroup(self, operation, run, _new_id())


@define(eq=False, repr=False)
class CallGroup:
    """A batch, or a call outside of a batch.

    Attributes:
        observer: the observer of the client.
        operation: the path of the operation.
        run: the run name of the journal.
        batch_id: the identifier of the batch.
        otel: the connection to OpenTelemetry, if a provider is set.
        detailed: whether the ends of attempts and of all calls are reported. Otherwise, only retries and
            unknown outcomes are.
        span: the span of the batch, if a provider is set.
    """

    observer: Observer
    operation: str
    run: str | None
    batch_id: str | None = None
    otel: OpenTelemetry | None = field(init=False)
    detailed: bool = field(init=False)
    span: Span | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        observer, otel = self.observer, self.observer.otel
        self.otel = otel if otel is not None and otel.is_active() else None
        self.detailed = self.otel is not None or observer.has_callback or CALLS.isEnabledFor(logging.DEBUG)

    def batch_started(self) -> None:
        """Report that the batch has started."""
        if self.otel is not None:
            self.span = self.otel.start_batch(
                self.operation, batch_id=self.batch_id, run=redact_run(self.run)
            )
        self._log("batch_start")

    def batch_ended(self, error: BaseException | None, *, duration: float, counts: Mapping[str, int]) -> None:
        """Report that the batch has ended.

        Args:
            error: what stopped it before the end of its input, if anything did.
            duration: the seconds that it took.
            counts: the number of requests by outcome.
        """
        code = None if error is None else reason_of(error)
        self._log("batch_end", **counts, duration=duration, error_code=code)
        if self.otel is not None and self.span is not None:
            self.otel.end_batch(self.span, error, counts)

    def _log(self, event: str, **fields: Any) -> None:
        fields |= {"operation": self.operation, "batch_id": self.batch_id, "run": self.run}
        with self.log_context(self.span):
            log(BATCHES, logging.INFO, event, **fields)

    def log_context(self, span: Span | None) -> AbstractContextManager[object]:
        """Return a context in which a span is the current one, so that log records have its identifiers."""
        return contextlib.nullcontext() if self.otel is None or span is None else self.otel.as_current(span)


@define(eq=False, repr=False)
class ObservedCall:
    """A call, to which its attempts, its retries and its end are reported.

    Attributes:
        group: the batch, or the group of a single call.
        request: the request of the call.
        detailed: see `CallGroup`.
        number: the position of the request in the input of the batch, from 1; 0 outside of a batch.
        secret: the secret that authenticated the last attempt, which a response may quote in its request ID.
    """

    group: CallGroup
    request: Any
    detailed: bool
    number: int = 0
    secret: Hidden[str] | None = None
    _call_id: str | None = None
    _request_id: str | None = None
    _trace: CallTrace | None = None

    def start(self) -> None:
        """Report that the call has started, if it is `detailed`."""
        if self.group.otel is not None:
            self._trace = self.group.otel.start_call(
                self.group.operation,
                self.group.span,
                call_id=self.call_id,
                batch_id=self.group.batch_id,
                run=redact_run(self.group.run),
                partner=redact_name(self._partner),
            )

    @property
    def call_id(self) -> str:
        """The identifier of the call, created when it is first used."""
        if self._call_id is None:
            batch_id = self.group.batch_id
            self._call_id = _new_id() if batch_id is None else f"{batch_id}-{self.number}"
        return self._call_id

    # -------------------------------------------------------------------------------------- the events

    def attempt_admitted(self, wait: float) -> None:
        """Report that an attempt may start, and the seconds that it has waited for this."""
        if self._trace is not None:
            self._trace.admitted(wait)

    def attempt_started(self, number: int) -> Mapping[str, str]:
        """Report that an attempt is about to be sent, and return headers to send with it."""
        return (self._trace and self._trace.start_attempt(number - 1)) or {}

    def response_received(self) -> None:
        """Report that an attempt is no longer in flight, whether or not a response arrived."""
        if self._trace is not None:
            self._trace.leave_attempt()

    def attempt_ended(
        self,
        number: int,
        certainty: str,
        *,
        duration: float,
        status: int | None,
        retry_after: float | None = None,
        **fields: Any,
    ) -> None:
        """Report the end of an attempt, if the call is `detailed`.

        Args:
            number: the number of the attempt in its call, from 1.
            certainty: what the end of the attempt proves, or `cancelled`.
            duration: seconds that the attempt took.
            status: the status of the response.
            retry_after: the delay in seconds that the server requested.
            **fields: `error_code` and `request_id`.
        """
        if not self.detailed:
            return
        end = AttemptEnd(
            **self._identity,
            attempt=number,
            certainty=certainty,
            duration=duration,
            status=status,
            error_code=fields.get("error_code"),
            request_id=fields.get("request_id"),
            retry_after=retry_after,
        )
        self._request_id = end.request_id
        if self._trace is not None:
            self._trace.end_attempt(end)
        self.log(
            logging.DEBUG,
            "attempt_end",
            attempt=number,
            certainty=certainty,
            duration=duration,
            status=status,
            **fields,
        )
        self._run_callback("on_attempt", self.group.observer.on_attempt, end)

    def retry_planned(self, error: PlaidRelayError, *, attempts: int, wait: float) -> None:
        """Report that another attempt will follow.

        Args:
            error: the error of the last attempt.
            attempts: the number of attempts so far.
            wait: seconds until the next attempt at the earliest.
        """
        if self._trace is not None:
            self._trace.retry_planned(error)
        self.log(logging.INFO, "retry", attempt=attempts, wait=wait, **error_fields(error))

    def ended(self, outcome: str, result: Any, attempts: int, started_at: float) -> None:
        """Report the end of the call.

        Args:
            outcome: how it ended; see `CallEnd`.
            result: its error, its response, or an outcome, which may have the attribute `error`.
            attempts: the number of its attempts.
            started_at: the event loop's time at which it started.
        """
        observer = self.group.observer
        observer.outcomes[outcome] += 1
        if not self.detailed and outcome != "unknown":
            return
        error = _error_of(result)
        fields = self._end_fields(outcome, error, attempts, started_at)
        level = logging.WARNING if outcome == "unknown" else logging.DEBUG
        self.log(level, "call_end", **fields)
        if self.detailed:
            end = CallEnd(**self._identity, **fields)
            if self._trace is not None:
                self._trace.end(end, error)
            self._run_callback("on_call_end", observer.on_call_end, end)

    def write_lost(self, outcome: str, result: Any, attempts: int, started_at: float) -> None:
        """Report that the journal may not have the outcome of the call; see `ended`."""
        fields = self._end_fields(outcome, _error_of(result), attempts, started_at)
        self.log(logging.WARNING, "write_lost", logger=JOURNAL, **fields)

    # ------------------------------------------------------------------------------------- the receivers

    def log(self, level: int, event: str, *, logger: logging.Logger = CALLS, **fields: Any) -> None:
        """Log an event of the call; see `logs.log`."""
        if not logger.isEnabledFor(level):
            return
        with self.group.log_context(None if self._trace is None else self._trace.span):
            log(logger, level, event, **self._identity, **fields)

    def message_of(self, event: str, **fields: Any) -> str:
        """Return the message of a record about the call; see `logs.log`."""
        return message_of(event, **self._identity, **fields)

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "operation": self.group.operation,
            "call_id": self.call_id,
            "batch_id": self.group.batch_id,
            "run": self.group.run,
            "partner": self._partner,
        }

    @property
    def _partner(self) -> str | None:
        return getattr(self.request, "secondary_client_id", None)

    def _end_fields(
        self, outcome: str, error: BaseException | None, attempts: int, started_at: float
    ) -> dict[str, Any]:
        fields = {"status": None, "error_code": None, "request_id": self._request_id} | error_fields(error)
        duration = asyncio.get_running_loop().time() - started_at
        return {"outcome": outcome, "attempts": attempts, "duration": duration, **fields}

    def _run_callback(self, name: str, callback: Callable[[E], object] | None, event: E) -> None:
        """Call a function of the caller; log its exception, which never changes the outcome."""
        if callback is None:
            return
        try:
            callback(event)
        except BaseException as error:  # noqa: BLE001  # any error of the caller's code
            # Only the class of the error: its text may contain a token.
            self.log(logging.WARNING, "callback_error", error_code=type(error).__name__, remark=name)
            contain(error)


def _error_of(result: Any) -> BaseException | None:
    """Return the error that a call ended with: its result, or the `error` of its outcome."""
    return result if isinstance(result, BaseException) else getattr(result, "error", None)


def connect_client(settings: Telemetry | None, base_url: str) -> OpenTelemetry | None:
    """Return the connection of a client to OpenTelemetry, or `None` if its API isn't installed.

    Args:
        settings: `None` means the global providers, if there are any.
        base_url: the address to which the client sends its requests.

    Raises:
        ConfigurationError: the settings are invalid, or there are some, and the API isn't installed.
    """
    otel = _import_otel(settings)
    return None if otel is None else otel.OpenTelemetry(settings or Telemetry(), base_url)


def connect_journal(settings: Telemetry | None) -> Callable[[float], object] | None:
    """Return a function that records the seconds of a journal's commit, or `None` without OpenTelemetry.

    Args:
        settings: see `connect_client`.

    Raises:
        ConfigurationError: see `connect_client`.
    """
    otel = _import_otel(settings)
    return None if otel is None else partial(otel.record_commit, (settings or Telemetry()).meter_provider)


def _import_otel(settings: object) -> ModuleType | None:
    if settings is not None and not isinstance(settings, Telemetry):
        raise ConfigurationError("telemetry must be a Telemetry")
    try:
        import plaid_relay_async.telemetry.otel as otel  # noqa: PLR0402  # the package imports this module
    except ModuleNotFoundError:
        if settings is None:
            return None
        raise ConfigurationError("Telemetry needs the extra: pip install 'plaid_relay_async[otel]'") from None
    return otel
