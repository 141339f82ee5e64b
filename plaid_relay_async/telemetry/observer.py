"""The observer of a client: the transport, tracked calls and batches report to it what happens.

It reports to the log and to the client's callbacks, and counts the outcomes for `Statistics`. All of them get
the same facts, so they agree about each attempt and each call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from attrs import define, field

from plaid_relay_async.errors import ConfigurationError, PlaidRelayError
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.telemetry.events import AttemptEnd, CallEnd
from plaid_relay_async.telemetry.logs import (
    BATCHES,
    CALLS,
    JOURNAL,
    call_fields,
    error_fields,
    log,
    message_of,
)

E = TypeVar("E", AttemptEnd, CallEnd)

OnAttempt: TypeAlias = Callable[[AttemptEnd], object]
OnCallEnd: TypeAlias = Callable[[CallEnd], object]


def _new_id() -> str:
    """Return an identifier for a call or a batch."""
    return secrets.token_hex(6)


@define(eq=False, repr=False)
class Observer:
    """What a client's transport and batches report to.

    Attributes:
        on_attempt: the caller's function for the end of each attempt, if there is one.
        on_call_end: the caller's function for the end of each call, if there is one.
        outcomes: the number of calls by outcome.

    Raises:
        ConfigurationError: a callback is not callable, or is async.
    """

    on_attempt: OnAttempt | None = None
    on_call_end: OnCallEnd | None = None
    outcomes: Counter[str] = field(factory=Counter, init=False)
    _has_callback: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        for name in ("on_attempt", "on_call_end"):
            callback = getattr(self, name)
            if callback is not None and (not callable(callback) or inspect.iscoroutinefunction(callback)):
                raise ConfigurationError(f"{name} must be a plain function, not an async one")
        self._has_callback = self.on_attempt is not None or self.on_call_end is not None

    def start_call(
        self,
        operation: str,
        request: object,
        *,
        run: str | None = None,
        batch: ObservedBatch | None = None,
        number: int = 0,
    ) -> ObservedCall:
        """Return the call that starts; report its end to it.

        Args:
            operation: the path of the operation.
            request: the request of the call.
            run: the run name of the journal.
            batch: the batch of the call.
            number: the position of the request in the input of the batch, from 1.
        """
        detailed = self._has_callback or CALLS.isEnabledFor(logging.DEBUG)
        return ObservedCall(self, operation, request, detailed, run, batch, number)

    def start_batch(self, operation: str, run: str | None) -> ObservedBatch:
        """Return a batch that starts; report its end to it."""
        return ObservedBatch(operation, run)


@define(eq=False, repr=False)
class ObservedBatch:
    """A batch, to whose end and calls the observer listens."""

    operation: str
    run: str | None
    batch_id: str = field(factory=_new_id, init=False)

    def started(self) -> None:
        """Report that the batch has started."""
        log(BATCHES, logging.INFO, "batch_start", **self._fields)

    def ended(self, **fields: Any) -> None:
        """Report that the batch has ended; see `logs.Fields`."""
        log(BATCHES, logging.INFO, "batch_end", **self._fields, **fields)

    @property
    def _fields(self) -> dict[str, Any]:
        return {"operation": self.operation, "batch": self.batch_id, "run": self.run}


@define(eq=False, repr=False)
class ObservedCall:
    """A call, to whose attempts, retries and end the observer listens.

    Attributes:
        detailed: whether the ends of attempts and of successful calls are reported, too. Otherwise only
            retries and unknown outcomes are.
        secret: the secret that authenticated the last attempt, which a response may quote in its request ID.
    """

    observer: Observer
    operation: str
    request: Any
    detailed: bool
    run: str | None
    batch: ObservedBatch | None
    number: int
    secret: Hidden[str] | None = field(default=None, init=False)
    _call_id: str | None = field(default=None, init=False)
    _request_id: str | None = field(default=None, init=False)

    @property
    def call_id(self) -> str:
        """The identifier of the call, created when it is first used."""
        if self._call_id is None:
            self._call_id = _new_id() if self.batch is None else f"{self.batch.batch_id}-{self.number}"
        return self._call_id

    # -------------------------------------------------------------------------------------- the events

    def attempt_ended(
        self, number: int, certainty: str, *, duration: float, status: int | None, **fields: Any
    ) -> None:
        """Report the end of an attempt, if the call is `detailed`.

        Args:
            number: the number of the attempt in its call, from 1.
            certainty: what the end of the attempt proves, or `cancelled`.
            duration: seconds that the attempt took.
            status: the status of the response.
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
        )
        self._request_id = end.request_id
        self.log(
            logging.DEBUG,
            "attempt",
            attempt=number,
            certainty=certainty,
            duration=duration,
            status=status,
            **fields,
        )
        self._run_callback("on_attempt", self.observer.on_attempt, end)

    def retry_planned(self, error: PlaidRelayError, *, attempts: int, wait: float) -> None:
        """Report that another attempt will follow.

        Args:
            error: the error of the last attempt.
            attempts: the number of attempts so far.
            wait: seconds until the next attempt at the earliest.
        """
        self.log(logging.INFO, "retry", attempt=attempts, wait=wait, **error_fields(error))

    def ended(
        self, outcome: str, error: BaseException | None = None, *, attempts: int, duration: float
    ) -> None:
        """Report the end of the call.

        Args:
            outcome: how it ended; see `CallEnd`.
            error: its error, if there is one.
            attempts: the number of its attempts.
            duration: seconds that it took.
        """
        self.observer.outcomes[outcome] += 1
        unknown = outcome == "unknown"
        if not (self.detailed or unknown):
            return
        fields = {"attempts": attempts, "outcome": outcome, "duration": duration, **self._error_fields(error)}
        self.log(logging.WARNING if unknown else logging.DEBUG, "call_end", run=self.run, **fields)
        if self.observer.on_call_end is not None:
            end = CallEnd(**self._identity, **fields)
            self._run_callback("on_call_end", self.observer.on_call_end, end)

    def write_lost(
        self, outcome: str, error: BaseException | None, *, attempts: int, duration: float
    ) -> None:
        """Report that the journal may not have the outcome of the call; see `ended`."""
        fields = {"attempts": attempts, "outcome": outcome, "duration": duration, **self._error_fields(error)}
        self.log(logging.WARNING, "write_lost", logger=JOURNAL, run=self.run, **fields)

    # ------------------------------------------------------------------------------------- the listeners

    def log(self, level: int, event: str, *, logger: logging.Logger = CALLS, **fields: Any) -> None:
        """Log an event of the call; see `logs.log`."""
        if logger.isEnabledFor(level):
            log(logger, level, event, **call_fields(self.operation, self.request, self.call_id), **fields)

    def message_of(self, event: str, **fields: Any) -> str:
        """Return the message of a record about the call; see `logs.log`."""
        return message_of(event, **call_fields(self.operation, self.request, self.call_id), **fields)

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "call_id": self.call_id,
            "batch_id": None if self.batch is None else self.batch.batch_id,
            "run": self.run,
            "partner": getattr(self.request, "secondary_client_id", None),
        }

    def _error_fields(self, error: BaseException | None) -> dict[str, Any]:
        """Return the fields of a call's end that its error determines."""
        if error is None:
            return {"status": None, "error_code": None, "request_id": self._request_id}
        return error_fields(error)

    def _run_callback(self, name: str, callback: Callable[[E], object] | None, event: E) -> None:
        """Call a function of the caller. What it raises is logged, and never changes the outcome."""
        if callback is None:
            return
        try:
            callback(event)
        # The callback isn't async, so a CancelledError comes from its own code.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # any error of the caller's code
            # Only the class of the error: its text may contain a token.
            self.log(logging.WARNING, "callback_error", error_code=type(error).__name__, remark=name)
