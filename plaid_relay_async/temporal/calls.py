"""The calls of a batch that workers make: what the process that waits for them does with each one."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from attrs import define, field
from temporalio.client import ActivityExecutionStatus, ActivityFailureError, ActivityHandle
from temporalio.exceptions import ApplicationError

from plaid_relay_async.batch import AttemptForbiddenError, Phase, TrackedCall
from plaid_relay_async.error_codes import is_declined
from plaid_relay_async.errors import (
    ConfigurationError,
    JournalError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    WaitTooLongError,
)
from plaid_relay_async.journal.recording import CreationRecorder, IntentKey, NullRecorder, RemovalRecorder
from plaid_relay_async.outcomes import Created, Outcome, Removed
from plaid_relay_async.temporal.requests import BACKOFF_SECONDS, TemporalRequests
from plaid_relay_async.temporal.tasks import CREATE_ACTIVITY, CallNotMadeError, Task, TaskResult

if TYPE_CHECKING:
    from plaid_relay_async.models import RelayCreateResponse, RelayRemoveResponse

T = TypeVar("T")

# Starts an activity of a task with the number of the repetition; see `TaskQueue.start`.
StartActivity: TypeAlias = Callable[
    [Task, int], Awaitable[tuple[ActivityHandle[Any], Literal["started", "pending", "ended"]]]
]

# Seconds for which a declined call is repeated: the default of `RetryPolicy.max_pause`.
_MAX_DECLINED_SECONDS: Final = 300.0
_ENDED_BY_A_WORKER: Final = frozenset({ActivityExecutionStatus.COMPLETED, ActivityExecutionStatus.FAILED})
# The failures of a worker that refuses every task. `NotFoundError` is that of another program's worker.
_REFUSALS: Final = frozenset({ConfigurationError.__name__, "NotFoundError"})
# Those after which another activity may make the call: the journal has failed, the call wasn't made, the
# worker has ended, or an operator has paused or reset the activity. Any other one is an unexpected error.
_REPEATABLE: Final = frozenset(
    {JournalError.__name__, CallNotMadeError.__name__, "CancelledError", "ActivityPause", "ActivityReset"}
)


@define(eq=False, repr=False)
class TaskRecorder:
    """The journal's recorder of a call that a worker makes, which records the intent and the outcome.

    Attributes:
        recorder: the recorder of a creation or a removal, which holds the pair in this process.
        recorded_outcome: the outcome, if the journal, or the result of an earlier activity, has one already,
            and no activity is pending that may replace it.
        first_repetition: the number of the repetition to start with.
        journalled: whether the journal has the outcome, as far as this process knows.
        unrecorded_intent: the key of the worker's intent, if the worker couldn't record the outcome.
    """

    recorder: CreationRecorder | RemovalRecorder | NullRecorder
    recorded_outcome: Outcome | Removed | None
    first_repetition: int = 0
    journalled: bool = False
    unrecorded_intent: IntentKey | None = None
    earlier_in_doubt_error = None  # the worker takes it into account

    @property
    def creation(self) -> CreationRecorder:
        """The recorder of a creation."""
        assert isinstance(self.recorder, CreationRecorder)  # noqa: S101  # only the calls of creations read it
        return self.recorder

    def request_to_send(self, request: T) -> T:
        """Return the request; the worker replaces the pair ID in it."""
        return request

    async def record_intent(self) -> None:
        """Do nothing: the worker records the intent."""

    async def record_outcome(self, outcome: Any) -> None:
        """Record what the worker couldn't record, or that the request is not attempted (`None`)."""
        if outcome is None:
            if self.creation.recorded_outcome is None:  # otherwise, the journal keeps it
                await self.creation.record_outcome(None)
        elif self.unrecorded_intent is not None:
            self.journalled = True  # so that an error of the next line is reported as a lost write
            row = await self.creation.record_outcome_of(self.unrecorded_intent, outcome)
            self.journalled = row is not None or not isinstance(outcome, Created)

    def release(self) -> None:
        """Release the pair."""
        self.recorder.release()


@define(eq=False, repr=False)
class QueuedCall:
    """One call of a batch on the queue.

    Attributes:
        start: starts an activity of it.
        requests: makes requests to Temporal.
        task: the task for the worker.
        request: the request.
        gate: the call as the batch sees it.
        recorder: its recorder.
    """

    start: StartActivity
    requests: TemporalRequests
    task: Task
    request: Any
    gate: TrackedCall[Any]
    recorder: TaskRecorder
    _handle: ActivityHandle[Any] | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    async def run(self) -> RelayCreateResponse | RelayRemoveResponse:
        """Start activities until one has made the call, and return the response."""
        repetition, wait = self.recorder.first_repetition, BACKOFF_SECONDS[0]
        now = asyncio.get_running_loop().time
        decline_deadline = math.inf
        while True:
            self._handle, state = await self.start(self.task, repetition)
            if self._stopped:
                await self._cancel_activity()
            end = None if state == "ended" else await self._wait()
            result = end if isinstance(end, TaskResult) else None
            response: RelayCreateResponse | RelayRemoveResponse | None = None
            if result is None:
                response = await self._recorded_response()
            elif not (_is_declined(result) and now() < decline_deadline):
                response = await self._response(result)
            if response is not None:
                return response
            if isinstance(end, ActivityFailureError):
                self._check_repeatable(end)
            # Another activity may make the call: it was declined, or its activity has ended without an
            # outcome of this run. Then no attempt of a creation was executed, and a removal may be repeated.
            repetition += 1
            if result is not None:
                decline_deadline = min(decline_deadline, now() + _MAX_DECLINED_SECONDS)
            if state != "ended" and not self._stopped:
                await asyncio.sleep(wait)
                wait = min(2 * wait, BACKOFF_SECONDS[1])
            if self._stopped:  # also if that happened during the wait
                self.gate.phase = Phase.WAITING
                raise AttemptForbiddenError

    async def drain(
        self, running: asyncio.Task[RelayCreateResponse | RelayRemoveResponse]
    ) -> RelayCreateResponse | RelayRemoveResponse:
        """Return the response of a call whose batch has stopped, and which a worker has begun.

        Any other call is taken off the queue. A second cancellation of the current task abandons the call.

        Args:
            running: the task that runs the call.
        """
        task: Any = asyncio.current_task()
        if not running.done():
            self.gate.phase = Phase.IN_FLIGHT  # a worker may have begun it
            # An abandoned batch cancels this task twice at once. The second cancellation arrives here, and
            # leaves the call on the queue.
            await asyncio.sleep(0)
            self._stopped = True
            await self._cancel_activity()
        task.uncancel()
        return await asyncio.shield(running)

    async def _cancel_activity(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(ConfigurationError):  # then the call is waited for
                await self.requests.repeat(self._handle.cancel)

    async def _wait(self) -> TaskResult | ActivityFailureError | None:
        """Wait until the activity has ended, and return its result, its failure, or `None` without either.

        Raises:
            ConfigurationError: a worker refuses the call.
            OutcomeUnknownError: the result can't be read.
        """
        handle: Any = self._handle
        try:
            payload = await self.requests.repeat(handle.result)
        except ConfigurationError as error:
            # The server itself adds an unencrypted payload to the failure of an activity that it cancels.
            description = await self.requests.repeat(handle.describe)
            if description is not None and description.status in _ENDED_BY_A_WORKER:
                raise _unreadable_error(error) from error
            return None
        except ActivityFailureError as failure:
            # A worker with another key can't read the task; then the cause has a cause.
            for cause in (failure.cause, failure.cause.__cause__):
                if isinstance(cause, ApplicationError) and cause.type in _REFUSALS:
                    raise ConfigurationError(f"a worker can't make the call: {cause.message}") from None
            return failure
        return None if payload is None else TaskResult.from_payload(payload)

    def _check_repeatable(self, failure: ActivityFailureError) -> None:
        """Check that another activity may make a call of which the journal has no outcome.

        Raises:
            ConfigurationError: the worker had an unexpected error; no attempt was started.
            OutcomeUnknownError: the same, of a removal, which may have been executed.
        """
        cause = failure.cause
        reason = cause.message if isinstance(cause, ApplicationError) else type(cause).__name__
        if not isinstance(cause, ApplicationError) or cause.type in _REPEATABLE:
            self.requests.warn("a worker didn't make a call, which is queued again: %s", reason)
            return
        message = f"a worker can't make the call: {reason}"
        if self.task.activity == CREATE_ACTIVITY:
            raise ConfigurationError(
                message, advice="Fix the cause, of which the worker has a log record, and repeat the run."
            )
        raise OutcomeUnknownError(message, sent=None, advice="Remove the token again, which is safe.")

    async def _recorded_response(self) -> RelayCreateResponse | None:
        """Return the response that the journal has for a creation, or raise the recorded error.

        Return `None` if no attempt can have been executed. A removal may be repeated in any case.
        """
        if self.task.activity != CREATE_ACTIVITY:
            return None
        try:
            outcome = await self.recorder.creation.read_outcome(self.request)
        except (ConfigurationError, JournalError) as error:
            self.gate.sending.stop_with_error(error)
            raise _unreadable_error(error) from error
        if outcome is None:
            return None
        self.recorder.journalled = outcome.journalled
        self.gate.attempts = outcome.attempts
        if isinstance(outcome, Created):
            return outcome.response
        raise outcome.error

    async def _response(self, result: TaskResult) -> RelayCreateResponse | RelayRemoveResponse | None:
        """Return the response that a result has, or raise its error.

        Return `None` if the worker made no attempt because of a token that isn't this run's: the call was
        queued with another setting of `on_existing`.
        """
        self.recorder.journalled = result.journalled
        self.recorder.unrecorded_intent = result.intent_key
        self.gate.attempts = result.attempts
        if not result.succeeded:
            raise result.to_error()
        if self.task.activity != CREATE_ACTIVITY:
            return result.removed_response()
        if (response := result.created_response()) is not None:
            return response
        recorded = await self._recorded_response()
        self.gate.attempts = result.attempts
        if recorded is None and not result.attempts:
            return None
        if recorded is None:
            raise OutcomeUnknownError("the worker has recorded a token, and the journal doesn't have it")
        return result.created_response(recorded.relay_token) or recorded


def _unreadable_error(error: PlaidRelayError) -> OutcomeUnknownError:
    """Return the error of a call that may have been made, and whose outcome can't be read."""
    return OutcomeUnknownError(
        f"the outcome of a call on a task queue can't be read: {error.args[0]}",
        sent=None,
        advice="Fix the cause, and repeat the run. It reads the outcome, or makes the call if no attempt was "
        "started.",
    )


def _is_declined(result: TaskResult) -> bool:
    """Return whether Plaid has declined the call, or its pause was too long: a later activity may succeed."""
    error = None if result.error is None else result.to_error()
    return isinstance(error, WaitTooLongError) or (isinstance(error, PlaidAPIError) and is_declined(error))
