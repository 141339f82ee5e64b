"""One call: from its request to its outcome, with or without a journal.

A call is also the transport's gate for its attempts. The transport asks it before each attempt, and reports
the attempt's end if a retry is planned or the call is cancelled. So its phase is known at any moment: if
sending stops, a waiting call is cancelled, and any other is drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeAlias

from attrs import define, evolve, field

from plaid_relay_async import watching
from plaid_relay_async.batch.operations import BatchOperation
from plaid_relay_async.batch.protocols import CallRecorder, LostRaceError
from plaid_relay_async.batch.results import OutcomeT
from plaid_relay_async.batch.stopping import Sending, skipped_request_error
from plaid_relay_async.certainty import error_of_call
from plaid_relay_async.errors import NotSentError, PlaidRelayError, is_ordinary_error
from plaid_relay_async.models.relay import needs_journal_error
from plaid_relay_async.outcomes import outcome_word
from plaid_relay_async.telemetry import ObservedCall

# Makes a call of a request, with a `TrackedCall` as its keyword argument `gate`, and returns the response.
SendFunction: TypeAlias = Callable[..., Awaitable[Any]]
# Returns a journal's recorder for a request; see `JournalProtocol.acquire_recorder`.
AcquireRecorder: TypeAlias = Callable[[Any], Awaitable[CallRecorder]]

# The event loop has only weak references to its tasks.
_background_tasks: Final[set[asyncio.Future[None]]] = set()


def _end_background_task(task: asyncio.Future[Any]) -> None:
    _background_tasks.discard(task)
    # `report_end` has reported that the write may be lost. asyncio would log the exception as well.
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


class AttemptForbiddenError(Exception):
    """No attempt may start: sending or the requests for the report have stopped, or the race was lost."""


class Phase(enum.Enum):
    """What a call does at the moment. If sending stops, a waiting call is cancelled; others are drained.

    A call that has ended stays in the phase in which it ended.
    """

    WAITING = enum.auto()
    """Nothing is in flight: it queues, or waits for the journal's look-up or for a retry."""
    RECORDING_INTENT = enum.auto()
    """The journal records an intent, which is followed by its attempt."""
    IN_FLIGHT = enum.auto()
    """An attempt may have been sent, and isn't known to have ended."""
    RECORDING_OUTCOME = enum.auto()
    """The journal records the outcome."""


@define(eq=False, repr=False)
class TrackedCall(Generic[OutcomeT]):
    """One call, which can be ended at any moment.

    Its phase, its errors and its response so far determine its outcome then.

    Attributes:
        operation: the properties of its operation.
        request: its request.
        send: makes the call.
        sending: decides whether an attempt may start.
        acquire_recorder: returns the journal's recorder for the request, if there is a journal.
        bulk: see `plaid_relay_async.transport.protocols.AttemptGate`.
        started_at: the time of the event loop at which the request was read.
        observed: the call as the observer sees it.
        attempts: the number of attempts, including those that weren't sent.
        phase: what the call does at the moment.
        last_error: the error of the last attempt, or of what prevented it.
        in_doubt_error: the error of an attempt of this call that may have been executed. The transport drops
            its own note of it when a call ends without a response or an error, such as after a lost race; the
            recorder has only that of an earlier call.
        received_response: the response, once the call has received it.
        recorder: the journal's recorder, once it is acquired.
        lost_race: whether the recorder has lost the race for its pair, so that another one is acquired.
        skipped: whether the call ended before its next attempt because the requests for its report have
            stopped.
        outcome: the outcome, as soon as it is known; `None` after the end if the request wasn't attempted.
    """

    operation: BatchOperation[OutcomeT, Any]
    request: Any
    send: SendFunction
    sending: Sending
    acquire_recorder: AcquireRecorder | None = None
    bulk: bool = True
    started_at: float = field(kw_only=True)
    observed: ObservedCall = field(kw_only=True)
    attempts: int = field(default=0, init=False)
    phase: Phase = field(default=Phase.WAITING, init=False)
    last_error: PlaidRelayError | None = field(default=None, init=False)
    in_doubt_error: PlaidRelayError | None = field(default=None, init=False)
    received_response: Any = field(default=None, init=False)
    recorder: CallRecorder | None = field(default=None, init=False)
    lost_race: bool = field(default=False, init=False)
    skipped: bool = field(default=False, init=False)
    outcome: OutcomeT | None = field(default=None, init=False)

    # ------------------------------------------------------------------------------ from request to outcome

    async def run(self) -> None:
        """Make the call, record its outcome if there is a journal, and set `outcome`.

        A recorder loses a race in two cases: another call has changed the pair before an intent is recorded;
        or the journal skipped the look-up of the pair, and the request isn't attempted, so only a look-up can
        tell whether the pair has an outcome. The next recorder looks the pair up.
        """
        if self.acquire_recorder is None:
            if self.operation.needs_journal(self.request):
                self.sending.stop_with_error(needs_journal_error())
                return
            await self._send()
            return
        while (recorder := await self._acquire_recorder(self.acquire_recorder)) is not None:
            self.recorder, self.lost_race = recorder, False
            try:
                if recorder.recorded_outcome is not None:
                    elapsed = asyncio.get_running_loop().time() - self.started_at
                    self.outcome = evolve(recorder.recorded_outcome, elapsed=elapsed)
                    return
                await self._send()
                if self.outcome is not None:
                    await self._record_outcome(recorder)
                if not self.lost_race:
                    return
            finally:
                recorder.release()
            self.phase = Phase.WAITING

    async def run_alone(self) -> None:
        """Run the call in another task, and drain that one if the caller's task is cancelled."""
        runner = asyncio.create_task(self.run())
        self.sending.calls[runner] = self
        runner.add_done_callback(self.sending.calls.pop)
        try:
            await self.sending.wait_or_drain(runner)
        finally:
            self.report_end()
        runner.result()

    async def _acquire_recorder(self, acquire: AcquireRecorder) -> CallRecorder | None:
        try:
            return await acquire(self.request)
        except NotSentError as error:  # the source of the credentials, and so of the client ID, failed
            self.end_with_error(error)
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.sending.stop_with_error(error)
        return None

    async def _send(self) -> None:
        try:
            self._check_may_send()
            request = self.request if self.recorder is None else self.recorder.request_to_send(self.request)
            self.received_response = await self.send(request, gate=self)
            self._set_outcome(self.received_response)
        except AttemptForbiddenError:
            # A call that has lost a race starts again. An earlier attempt in doubt is its outcome until then,
            # and is recorded as unknown before the next recorder is acquired.
            if not self.lost_race or self.in_doubt_error is not None:
                self._end_interrupted()
        except PlaidRelayError as error:
            self.end_with_error(error)
        except BaseException as error:
            if is_ordinary_error(error):
                self.end_with_error(self.operation.unexpected_error(error))
                return
            self._end_interrupted()
            # This task is cancelled and can't wait for the journal any more, but the outcome must not be
            # lost.
            if self.recorder is not None and self._outcome_to_record is not None:
                task = asyncio.ensure_future(_write_outcome(self.recorder, self._outcome_to_record))
                _background_tasks.add(task)
                task.add_done_callback(_end_background_task)
            raise

    async def _record_outcome(self, recorder: CallRecorder) -> None:
        self.phase = Phase.RECORDING_OUTCOME
        outcome: Any = self._outcome_to_record
        try:
            await _write_outcome(recorder, outcome)
        except LostRaceError:
            # The pair wasn't looked up and may have an outcome, so the request isn't recorded as not
            # attempted.
            self.lost_race, self.skipped = True, False
            self.last_error = self.outcome = None
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.sending.stop_with_error(error)  # the caller receives the outcome in any case
        else:
            if outcome is not None:
                self.outcome = evolve(outcome, journalled=recorder.journalled)

    def report_end(self) -> str:
        """Report to the observer how the call ended, and return the word for it.

        Report also that the journal may not have the outcome.
        """
        outcome: Any = self.outcome
        word = outcome_word(outcome)
        self.observed.ended(word, outcome, self.attempts, self.started_at)
        is_recorded = self.recorder is not None and self.recorder.journalled
        if is_recorded and self._outcome_to_record is not None and not outcome.journalled:
            self.observed.write_lost(word, outcome, self.attempts, self.started_at)
        return word

    @property
    def must_drain(self) -> bool:
        """Whether the call must be waited for when sending stops; otherwise it is cancelled."""
        return self.phase is not Phase.WAITING

    # ------------------------------------------------------------------------------- the transport's gate

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may have been executed: of this call, or an earlier one in the journal."""
        return self._find_in_doubt_error() is not None

    async def start_attempt(self) -> None:
        """Record the intent of an attempt that is sent next, or raise to prevent the attempt."""
        self._check_may_send()
        if self.recorder is not None:
            # From here on, the call is drained: a recorded intent is followed by its attempt.
            self.phase = Phase.RECORDING_INTENT
            try:
                await self.recorder.record_intent()
            except LostRaceError:
                self.lost_race = True
                raise AttemptForbiddenError from None
            except BaseException as error:
                if not is_ordinary_error(error):
                    raise
                # An attempt without a recorded intent must not start.
                self.sending.stop_with_error(error)
                raise AttemptForbiddenError from None
        self.attempts += 1
        self.phase = Phase.IN_FLIGHT

    def prepare_retry(self, error: PlaidRelayError, *, in_doubt_error: PlaidRelayError | None) -> None:
        """Note that an attempt has ended and a retry is planned, or raise to prevent the retry."""
        self.phase = Phase.WAITING
        self.last_error = error
        self.in_doubt_error = in_doubt_error or self.in_doubt_error
        self._check_may_send()

    def attempt_interrupted(self, result: Any) -> None:
        """Note the response, or the error of the call, if the call is cancelled during an attempt."""
        if not isinstance(result, PlaidRelayError):
            self.received_response = result
            return
        self.phase = Phase.WAITING
        # An attempt that wasn't sent adds nothing to what is known about the call.
        if not isinstance(result, NotSentError):
            self.last_error = result

    def _check_may_send(self) -> None:
        """Raise `AttemptForbiddenError` if the request must not be sent."""
        sending = self.sending
        if sending.stopped:
            raise AttemptForbiddenError
        if sending.report_errors and (cause := sending.report_stop_cause(self.request)) is not None:
            self.skipped = True
            self.last_error = skipped_request_error(cause, sent=self.sent, attempts=self.attempts)
            raise AttemptForbiddenError

    # ---------------------------------------------------------------------------------------- the outcome

    @property
    def sent(self) -> bool:
        """Whether an attempt of this call that has ended was sent, or may have been."""
        if self.received_response is not None:
            return True
        # The transport notes in each error whether any attempt of the call was sent.
        return self.last_error is not None and self.last_error.sent is not False

    @property
    def _outcome_to_record(self) -> OutcomeT | None:
        """The outcome for the journal; `None` records the request as not attempted.

        It is `None` if the call was skipped and no attempt of it is in doubt.
        """
        return None if self.skipped and self.in_doubt_error is None else self.outcome

    def _find_in_doubt_error(self) -> PlaidRelayError | None:
        return self.in_doubt_error or (
            None if self.recorder is None else self.recorder.earlier_in_doubt_error
        )

    def end_with_error(self, error: PlaidRelayError) -> None:
        """Set the outcome of a call that ended with an error."""
        self.last_error = error
        self._set_outcome(error_of_call(error, in_doubt=self._find_in_doubt_error(), attempts=self.attempts))

    def _end_interrupted(self) -> None:
        """Set the outcome of a call that was stopped or cancelled.

        It has none if it had neither a response nor an error, and no attempt was in flight.
        """
        if self.received_response is not None:
            self._set_outcome(self.received_response)
            return
        if self.phase is Phase.IN_FLIGHT:
            self.last_error = self.operation.interrupted_error()
        if self.last_error is not None:
            self.end_with_error(self.last_error)

    def _set_outcome(self, result: Any) -> None:
        elapsed = asyncio.get_running_loop().time() - self.started_at
        self.outcome = self.operation.build_outcome(
            self.request, result, attempts=self.attempts, elapsed=elapsed
        )


async def _write_outcome(recorder: CallRecorder, outcome: Any) -> None:
    await recorder.record_outcome(outcome)
    if (watcher := watching.watcher) is not None and recorder.journalled:
        watcher.add_received(outcome)
