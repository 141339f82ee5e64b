"""When a batch stops, and how: no further attempt starts, and calls in flight are drained.

A batch stops if its caller leaves it, if its input, journal or callback raises, or after errors that its
other requests would get as well. Errors of one report stop only the requests for that report.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any, Final, Protocol

from attrs import define, field

from plaid_relay_async.batch.input import RequestReader
from plaid_relay_async.batch.operations import RequestIdentity
from plaid_relay_async.batch.results import BatchResult
from plaid_relay_async.cancellation import DrainTracker, wait_until_done
from plaid_relay_async.certainty import reclassify
from plaid_relay_async.error_codes import affects_all_requests, affects_report
from plaid_relay_async.errors import PlaidRelayError, RateLimitError, WaitTooLongError
from plaid_relay_async.outcomes import Failed, Unknown

# A batch stops after this number of errors that every request would get, without a success in between. The
# same number of errors of one report stops the requests for that report.
SHARED_ERROR_LIMIT: Final = 3
# Only the reports with the latest errors are tracked, so that the stored errors need constant memory.
_MAX_TRACKED_REPORTS: Final = 256


class DrainableCall(Protocol):
    """A `TrackedCall`, as far as a drain needs it; `batch/call` imports this module."""

    @property
    def must_drain(self) -> bool:
        """Whether the call must be waited for when sending stops; otherwise it is cancelled."""
        ...


@define(eq=False, repr=False)
class Sending:
    """The tasks that send the requests of a batch, and whether they may start further attempts.

    A single call with a journal has one as well.

    Attributes:
        drain_timeout: the seconds for which calls in flight are waited for.
        drains: counts the client's drains.
        report_identity: see `BatchOperation.report_identity`.
        reader: the input of the batch.
        result: the result of the batch; its `stopped_by` is set as soon as sending stops.
        calls: the tasks that send, each with the call that it makes at the moment.
        stopped: whether no further attempt may start.
        error: an error of the input, the journal or a callback; it is raised once all calls have ended.
        reading_timer: ends the wait for an async input.
        report_errors: by a digest of the report, the number of its errors since a success, and the latest
            one, for the reports that failed most recently.
    """

    drain_timeout: float
    drains: DrainTracker
    report_identity: RequestIdentity = field(factory=RequestIdentity)
    reader: RequestReader | None = None
    result: BatchResult[Any, Any] = field(factory=BatchResult)
    calls: dict[asyncio.Task[None], DrainableCall | None] = field(factory=dict, init=False)
    stopped: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    reading_timer: asyncio.TimerHandle | None = field(default=None, init=False)
    report_errors: dict[bytes, tuple[int, PlaidRelayError]] = field(factory=dict, init=False)
    _shared_error_count: int = field(default=0, init=False)

    def stop(self, reason: BaseException | None) -> None:
        """Start no more attempts, and cancel the tasks whose call doesn't have to be drained.

        A task that waits for an async input isn't cancelled until the drain timeout: cancelling it would
        close an async generator, and the rest of the input would be lost.

        Args:
            reason: the error because of which sending stops, or `None` if the caller stops it.
        """
        self.stopped = True
        self.result.stopped_by = self.result.stopped_by or reason
        for task, call in self.calls.items():
            if self.reader is not None and task is self.reader.reading_task:
                self.reading_timer = self.reading_timer or task.get_loop().call_later(
                    self.drain_timeout, task.cancel
                )
            elif task is not asyncio.current_task() and (call is None or not call.must_drain):
                task.cancel()

    def stop_with_error(self, error: BaseException) -> None:
        """Stop because of an error that isn't a request's; it is raised once all calls have ended."""
        self.error = self.error or error
        self.stop(error)

    async def wait_or_drain(self, runner: asyncio.Task[None]) -> None:
        """Wait for the task that runs the calls; if this task is cancelled meanwhile, stop and drain."""
        try:
            await asyncio.wait([runner])
        finally:
            if not runner.done():
                await self.stop_and_drain(runner)

    async def stop_and_drain(self, runner: asyncio.Task[None]) -> None:
        """Stop sending, and wait for the task that runs the calls, until the drain timeout cancels it."""
        self.stop(None)
        timer = asyncio.get_running_loop().call_later(self.drain_timeout, runner.cancel)
        try:
            with self.drains.track():
                await wait_until_done(runner)
        finally:
            timer.cancel()

    def report_stop_cause(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for a request's report, or `None`."""
        count, error = self.report_errors.get(self.report_identity.digest(request), (0, None))
        return error if count >= SHARED_ERROR_LIMIT else None

    def count_outcome(self, outcome: Any, error: PlaidRelayError | None) -> None:
        """Count an outcome, and stop sending after a few errors that every other request would get.

        Errors of one report stop only the requests for that report. Sending also stops if the operation's
        pauses since the last accepted attempt exceed the retry policy's `max_pause`.

        Args:
            outcome: the outcome of a call.
            error: the error of its last attempt, or of what prevented it, if that error isn't counted yet.
        """
        if not isinstance(outcome, Failed | Unknown):
            if outcome.attempts:  # an outcome from the journal says nothing about the requests of this batch
                self._shared_error_count = 0
                if self.report_errors:
                    self.report_errors.pop(self.report_identity.digest(outcome.request), None)
        elif error is not None:
            if self.report_identity.names and affects_report(error):
                self._count_report_error(self.report_identity.digest(outcome.request), error)
            self._shared_error_count += affects_all_requests(error)
            pause_too_long = isinstance(error, RateLimitError | WaitTooLongError) and error.exceeds_max_pause
            if pause_too_long or self._shared_error_count >= SHARED_ERROR_LIMIT:
                self.stop(error)

    def _count_report_error(self, report: bytes, error: PlaidRelayError) -> None:
        count, _ = self.report_errors.pop(report, (0, error))
        # A copy has no traceback, whose frames would keep responses in memory.
        self.report_errors[report] = (count + 1, copy.copy(error))
        if len(self.report_errors) > _MAX_TRACKED_REPORTS:
            del self.report_errors[next(iter(self.report_errors))]


def skipped_request_error(cause: PlaidRelayError, *, sent: bool, attempts: int) -> PlaidRelayError:
    """Return the error of a request that isn't sent because others for its report failed with `cause`."""
    not_sent = "not sent again" if sent else "not sent"
    message = f"{not_sent} after {SHARED_ERROR_LIMIT} errors of the same report: {cause.args[0]}"
    # The request ID identifies another request.
    return reclassify(cause, type(cause), message=message, sent=sent, attempts=attempts, request_id=None)
