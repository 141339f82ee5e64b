"""A batch: one call for each request, with bounded concurrency and one outcome for each.

A batch knows nothing about HTTP. For each request, it calls a function with the request and a gate
(`_BatchCall`), and awaits what the function returns. The transport asks the gate before each attempt, and
reports the attempt's end if a retry is planned or the call is cancelled. So a batch that stops early knows
which calls can be cancelled and which are in flight and must be drained.

- Backpressure: a semaphore bounds the requests in flight and the unread outcomes together, so the input is
  read no faster than outcomes are consumed.
- Deduplication: a request that is already in the batch fails without being sent.
- Shared errors: after a few errors that every request would get, the batch stops; after a few errors of one
  report, the requests for that report stop.
- Journal: the intent of each attempt is recorded before the attempt starts (a write-ahead record), and each
  outcome before the caller receives it.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar

from attrs import define, evolve

from plaid_relay_async.batch.input import DuplicateFilter, RequestReader
from plaid_relay_async.batch.protocols import NO_CONTEXT, CallRecorder, LostRaceError
from plaid_relay_async.batch.stopping import SHARED_ERROR_LIMIT, ReportErrors, stopped_report_error
from plaid_relay_async.cancellation import DrainTracker, wait_until_done
from plaid_relay_async.errors import (
    BatchStoppedError,
    Certainty,
    DuplicateRequestError,
    NotSentError,
    PlaidRelayError,
    RateLimitError,
    affects_all_requests,
    affects_report,
    certainty_of,
    is_ordinary_error,
)
from plaid_relay_async.outcomes import BatchResult, Failed, Progress, S, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable
    from types import TracebackType

    from plaid_relay_async.batch.operations import BatchOperation
    from plaid_relay_async.batch.protocols import CallContext, JournalProtocol

T = TypeVar("T")


class _SendingStoppedError(Exception):
    """The request must not be sent, because the batch, or the requests for its report, have stopped."""


@define(eq=False, repr=False)
class _BatchCall(Generic[S]):
    """One call of a batch; the transport's `AttemptGate` for its attempts.

    Attributes:
        must_drain: whether the call must be waited for when the batch stops. It is True from before the
            intent is recorded until the attempt has ended, and while the call's outcome is recorded. A call
            that sleeps or queues can be cancelled.
        in_flight: whether an attempt may have been sent and hasn't ended.
        last_error: the error of the last attempt.
        in_doubt_error: the error of an attempt that may have been executed.
        received_response: the response that a call had received when it was cancelled.
        bulk: see `plaid_relay_async.transport.protocols.AttemptGate`.
        recorder: the journal's recorder, if there is a journal.
        lost_race: whether the recorder raised `LostRaceError`, so that a new one is acquired.
        report_stopped: whether the call ended before its next attempt because the requests for its report
            have stopped.
        outcome: the outcome, as soon as it is known.
    """

    batch: Batch[S]
    request: Any
    started_at: float
    attempts: int = 0
    must_drain: bool = False
    in_flight: bool = False
    last_error: PlaidRelayError | None = None
    in_doubt_error: PlaidRelayError | None = None
    received_response: Any = None
    bulk: bool = True
    recorder: CallRecorder | None = None
    lost_race: bool = False
    report_stopped: bool = False
    outcome: S | Failed | Unknown | None = None

    @property
    def outcome_to_record(self) -> S | Failed | Unknown | None:
        """The outcome for the journal; `None` records the request as not attempted.

        It is `None` if the requests for the report have stopped and no attempt of this call is in doubt.
        """
        return None if self.report_stopped and self.in_doubt_error is None else self.outcome

    @property
    def in_doubt(self) -> bool:
        return self._find_in_doubt_error() is not None

    def _find_in_doubt_error(self) -> PlaidRelayError | None:
        return self.in_doubt_error or (
            None if self.recorder is None else self.recorder.earlier_in_doubt_error
        )

    async def start_attempt(self) -> None:
        self.check_may_send()
        # From here on, stopping the batch doesn't cancel this call: a recorded intent is followed by its
        # attempt.
        self.must_drain = True
        if self.recorder is not None:
            await self._record_intent(self.recorder)
        self.attempts += 1
        self.in_flight = True

    async def _record_intent(self, recorder: CallRecorder) -> None:
        try:
            await recorder.record_intent()
        except LostRaceError:
            self.must_drain, self.lost_race = False, True
            raise
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.batch.stop_with_error(error)  # an attempt without a recorded intent must not start
            raise _SendingStoppedError from None

    def prepare_retry(self, error: PlaidRelayError, *, never_executed: bool) -> None:
        self._end_attempt(error)
        if not never_executed and certainty_of(error) is Certainty.IN_DOUBT:
            self.in_doubt_error = error
        self.check_may_send()

    def attempt_interrupted(self, result: Any) -> None:
        if not isinstance(result, PlaidRelayError):
            self.received_response = result
        elif isinstance(result, NotSentError):
            # The call was cancelled before this attempt was sent: it ends as if this attempt hadn't started.
            self.attempts -= 1
            self._end_attempt(self.last_error)
        else:
            self._end_attempt(result)

    def _end_attempt(self, error: PlaidRelayError | None) -> None:
        self.last_error = error
        self.must_drain = self.in_flight = False

    def check_may_send(self) -> None:
        """Raise `_SendingStoppedError` if the request must not be sent."""
        if self.batch.sending_stopped:
            raise _SendingStoppedError
        cause = self.batch.report_stop_cause(self.request)
        if cause is not None:
            sent = self.last_error is not None and bool(self.last_error.sent)
            self.report_stopped = True
            self.last_error = stopped_report_error(cause, sent=sent, attempts=self.attempts)
            raise _SendingStoppedError

    def success_outcome(self, response: Any) -> S:
        outcome: S = self._build_outcome(response)
        return outcome

    def error_outcome(self, error: PlaidRelayError) -> Failed | Unknown:
        """Return the outcome of a call that ended with an error.

        If an earlier attempt is in doubt, its error takes precedence, because a later attempt that was
        rejected proves nothing about the earlier one.
        """
        self.last_error = error
        in_doubt_error = self._find_in_doubt_error()
        if in_doubt_error is not None and certainty_of(error) is not Certainty.IN_DOUBT:
            in_doubt_error.__cause__ = in_doubt_error.__cause__ or error
            in_doubt_error.attempts = self.attempts
            error = in_doubt_error
        outcome: Failed | Unknown = self._build_outcome(error)
        return outcome

    def _build_outcome(self, result: Any) -> Any:
        elapsed = self.batch.now() - self.started_at
        operation = self.batch.operation
        return operation.build_outcome(self.request, result, attempts=self.attempts, elapsed=elapsed)

    def interrupted_outcome(self) -> S | Failed | Unknown | None:
        """Return the outcome of a call that was stopped or cancelled.

        Return `None` if it had neither a response nor an error, and no attempt was in flight.
        """
        if self.received_response is not None:
            return self.success_outcome(self.received_response)
        if self.in_flight:
            self.last_error = self.batch.operation.abandoned_error(self.attempts)
        return None if self.last_error is None else self.error_outcome(self.last_error)


CallFunction: TypeAlias = "Callable[[Any, _BatchCall[S]], Awaitable[Any]]"


class Batch(Generic[S]):
    """A batch of calls: await it for a `BatchResult`, or stream its outcomes.

    .. code-block:: python

        result = await client.relay.create_many(requests)

        async with client.relay.create_many(requests) as outcomes:
            async for outcome in outcomes: ...
        outcomes.result  # counts, and the outcomes that the loop didn't receive

    Leaving the stream early, or cancelling either form, stops sending and drains: the batch waits for the
    calls in flight, for `Timeouts.drain` seconds at most, and outcomes that arrive meanwhile are in `result`.
    Further cancellations don't end the drain; `abandon()` does.

    The operations, such as `create_many`, create batches. A batch runs once.
    """

    def __init__(
        self,
        operation: BatchOperation,
        requests: Iterable[Any] | AsyncIterable[Any],
        call: CallFunction[S],
        *,
        concurrency: int,
        drain_timeout: float,
        drains: DrainTracker | None = None,
        request_from_token: Callable[[Any], Any] | None = None,
        journal: JournalProtocol | None = None,
        context: CallContext = NO_CONTEXT,
        bulk: bool = True,
        on_outcome: Callable[[S | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
    ) -> None:
        self.operation: Final = operation
        self.bulk: Final = bulk
        self.result: Final[BatchResult[S]] = BatchResult()
        self.sending_stopped = False
        self._journal = journal
        self._context = context
        self._background_tasks: set[asyncio.Future[object]] = set()
        self._source = RequestReader(requests, operation.request_type, request_from_token)
        self._call = call
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._drains = DrainTracker() if drains is None else drains
        self._reading_timer: asyncio.TimerHandle | None = None
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._duplicates = None if allow_duplicates else DuplicateFilter(operation.duplicate_key)
        self._unread_outcomes: deque[S | Failed | Unknown] = deque()
        self._stream_changed = asyncio.Event()
        # Backpressure: calls in flight and unread outcomes share this bound. It is twice the concurrency, so
        # that a caller's loop that is slow for a moment doesn't delay the senders. For safe operations it is
        # the concurrency itself, because each outcome may contain a report of several megabytes.
        self._capacity = asyncio.Semaphore(concurrency if operation.is_safe else 2 * concurrency)
        self._senders: dict[asyncio.Task[None], _BatchCall[S] | None] = {}
        self._runner: asyncio.Task[None] | None = None
        self._streamed = False
        self._requests_read = 0
        self.now: Callable[[], float] = float  # returns 0.0 until the batch starts
        self._started_at = 0.0
        self._shared_error_count = 0
        self._report_errors = None if operation.report_key is None else ReportErrors(operation.report_key)
        self._error: BaseException | None = None

    # ------------------------------------------------------------------------------- the two ways of use

    def __await__(self) -> Generator[None, None, BatchResult[S]]:
        """Run the batch to its end and return its result."""
        return self._run_to_result().__await__()

    async def _run_to_result(self) -> BatchResult[S]:
        runner = self._start(streamed=False)
        try:
            await asyncio.wait([runner])
        finally:
            await self._stop_and_drain()
        self._raise_error()
        return self.result

    async def __aenter__(self) -> Self:
        self._start(streamed=True)
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._stop_and_drain()
        finally:
            self._streamed = False
            while self._unread_outcomes:
                self.result.add_outcome(self._unread_outcomes.popleft())
        # An exception of the caller's loop takes precedence.
        if error is None:
            self._raise_error()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> S | Failed | Unknown:
        if not self._streamed or self._runner is None:
            raise RuntimeError("iterate over a batch inside `async with ... as outcomes:`")
        while not self._unread_outcomes:
            if self._runner.done():
                self._raise_error()
                raise StopAsyncIteration
            self._stream_changed.clear()
            await self._stream_changed.wait()
        self._capacity.release()
        return self._unread_outcomes.popleft()

    def __del__(self) -> None:
        # The attribute is missing if `__init__` raised.
        if getattr(self, "_runner", self) is None:
            warnings.warn(
                "a batch was neither awaited nor streamed, so nothing was sent", RuntimeWarning, stacklevel=2
            )

    # ------------------------------------------------------------------------------------ start and stop

    def _start(self, *, streamed: bool) -> asyncio.Task[None]:
        if self._runner is not None:
            raise RuntimeError("this batch has already run: create another one")
        self._streamed = streamed
        self.now = asyncio.get_running_loop().time
        self._started_at = self.now()
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._on_runner_done)
        return self._runner

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._run_sender())
        finally:
            # A done callback would run too late: a stream may see that the task is done before its callbacks
            # run.
            self.result.elapsed = self.now() - self._started_at

    def _on_runner_done(self, runner: asyncio.Task[None]) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
        if not runner.cancelled():
            self._error = self._error or runner.exception()
        self._stream_changed.set()

    async def _stop_and_drain(self) -> None:
        """Stop sending, and wait for the calls in flight until the drain ends or is abandoned."""
        runner = self._runner
        if runner is None or runner.done():
            return
        self.stop_sending(None)
        timer = asyncio.get_running_loop().call_later(self._drain_timeout, self.abandon)
        try:
            with self._drains.track():
                await wait_until_done(runner)
        finally:
            timer.cancel()

    def abandon(self) -> None:
        """Stop the batch without waiting for the calls in flight.

        Their outcome is `Unknown`, or `Failed` for reads, unless their response has arrived. Call this to end
        a drain early, for example when a user interrupts a program for the second time. Await the batch, or
        leave its `async with` block, as usual; that returns soon afterwards. Call this method in the event
        loop of the batch. It may be called at any time and more than once; a batch that hasn't started sends
        nothing.
        """
        self.stop_sending(None)
        if self._runner is not None:
            self._runner.cancel()

    def stop_sending(self, reason: BaseException | None) -> None:
        """Start no more attempts, and cancel the senders whose call doesn't have to be drained.

        A sender that waits for an async input isn't cancelled until the drain timeout: cancelling it
        would close an async generator, and the rest of the input would be lost.

        Args:
            reason: the error because of which the batch stops, or `None` if the caller stops it.
        """
        self.result.stopped_by = self.result.stopped_by or reason
        self.sending_stopped = True
        for sender, call in self._senders.items():
            if sender is self._source.reading_task:
                self._reading_timer = self._reading_timer or sender.get_loop().call_later(
                    self._drain_timeout, sender.cancel
                )
            elif sender is not asyncio.current_task() and (call is None or not call.must_drain):
                sender.cancel()

    def stop_with_error(self, error: BaseException) -> None:
        """Stop because of an error that isn't a request's; it is raised once all calls have ended."""
        self._error = self._error or error
        self.stop_sending(error)

    def _raise_error(self) -> None:
        error, self._error = self._error, None  # it is raised once
        if error is not None:
            source = "its input, its journal or a callback"
            raise BatchStoppedError(
                f"the batch stopped because {source} raised {type(error).__name__}", result=self.result
            ) from error

    # ---------------------------------------------------------------------------------------- the senders

    async def _run_sender(self) -> None:
        sender = asyncio.current_task()
        assert sender is not None  # noqa: S101  # a coroutine of a TaskGroup runs in a task
        self._senders[sender] = None
        try:
            while (request := await self._next_request()) is not None:
                if self.sending_stopped:  # while this sender waited for the input
                    self.result.not_attempted.append(request)
                    break
                if not await self._process_request(sender, request):
                    # Calls that fail without waiting for anything must not block the event loop.
                    await asyncio.sleep(0)
        finally:
            del self._senders[sender]

    async def _next_request(self) -> Any:
        if self.sending_stopped:
            return None  # without waiting for capacity: a stream that was left never releases any
        await self._capacity.acquire()
        try:
            request = await self._source.read_next()
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.stop_with_error(error)  # the caller's iterable raised it, so the caller gets it at the end
            request = None
        if request is None:
            self._capacity.release()
            return None
        self._requests_read += 1
        return request

    async def _process_request(self, sender: asyncio.Task[None], request: object) -> bool:
        """Process one request, and return whether its call succeeded."""
        # `call` is local to this frame, so a sender that waits for its next request keeps no report in
        # memory.
        call = self._senders[sender] = _BatchCall(self, request, self.now(), bulk=self.bulk)
        await self._process_call(call)
        self._senders[sender] = None
        return not isinstance(call.outcome, Failed | Unknown | None)

    async def _process_call(self, call: _BatchCall[S]) -> None:
        if self._duplicates is not None and self._duplicates.is_duplicate(call.request):
            call.outcome = call.error_outcome(DuplicateRequestError(self.operation.duplicate_message))
            self._deliver_outcome(call.outcome, call.last_error)
            return
        try:
            if self._journal is None:
                await self._send_call(call)
            else:
                await self._send_with_journal(call, self._journal)
        finally:
            if call.outcome is None:
                self.result.not_attempted.append(call.request)
            else:
                # The error of a call whose report has stopped was counted before, with another request.
                self._deliver_outcome(call.outcome, None if call.report_stopped else call.last_error)

    async def _send_call(self, call: _BatchCall[S]) -> None:
        try:
            call.check_may_send()
            call.outcome = call.success_outcome(await self._call(call.request, call))
        except _SendingStoppedError:
            call.outcome = call.interrupted_outcome()
        except LostRaceError:
            # An earlier attempt in doubt is recorded as unknown before a new recorder is acquired.
            call.outcome = None if call.in_doubt_error is None else call.error_outcome(call.in_doubt_error)
        except PlaidRelayError as error:
            call.outcome = call.error_outcome(error)
        except BaseException as error:
            if not is_ordinary_error(error):
                call.outcome = call.interrupted_outcome()
                raise
            call.outcome = call.error_outcome(self.operation.unexpected_error(error))

    async def _send_with_journal(self, call: _BatchCall[S], journal: JournalProtocol) -> None:
        # After a lost race, the next recorder looks the pair up again.
        while (recorder := await self._acquire_recorder(call, journal)) is not None:
            call.recorder, call.lost_race = recorder, False
            try:
                if recorder.recorded_outcome is not None:
                    call.outcome = evolve(recorder.recorded_outcome, elapsed=self.now() - call.started_at)
                else:
                    await self._send_and_record(call, recorder)
            finally:
                recorder.release()
            if not call.lost_race:
                return
            call.must_drain = False

    async def _send_and_record(self, call: _BatchCall[S], recorder: CallRecorder) -> None:
        try:
            await self._send_call(call)
        except BaseException:
            # This task is cancelled and can't wait for the journal any more, but the outcome must not be
            # lost.
            if call.outcome_to_record is not None:
                self._run_in_background(recorder.record_outcome(call.outcome_to_record))
            raise
        if call.outcome is not None:
            await self._record_outcome(call, recorder)

    async def _acquire_recorder(self, call: _BatchCall[S], journal: JournalProtocol) -> CallRecorder | None:
        try:
            return await journal.acquire_recorder(call.request, self._context)
        except NotSentError as error:  # the source of the credentials, and so of the client ID, failed
            call.outcome = call.error_outcome(error)
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.stop_with_error(error)
        return None

    async def _record_outcome(self, call: _BatchCall[S], recorder: CallRecorder) -> None:
        call.must_drain = True
        outcome = call.outcome_to_record
        try:
            await recorder.record_outcome(outcome)
        except LostRaceError:
            # The pair must be looked up first, so the call starts again with a new recorder.
            call.lost_race, call.report_stopped = True, False
            call.last_error = call.outcome = None
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.stop_with_error(error)  # the caller receives the outcome in any case
        else:
            if outcome is not None:
                call.outcome = evolve(outcome, journalled=recorder.journalled)

    def _run_in_background(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        # The event loop has only a weak reference to the task.
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    def _deliver_outcome(self, outcome: S | Failed | Unknown, error: PlaidRelayError | None) -> None:
        self.result.count_outcome(outcome)
        # A streamed outcome occupies capacity until the caller's loop receives it.
        if self._streamed:
            self._unread_outcomes.append(outcome)
            self._stream_changed.set()
        else:
            self.result.add_outcome(outcome)
            self._capacity.release()
        self._check_stop_conditions(outcome, error)
        if self._on_outcome is not None:
            self._run_callback(self._on_outcome, outcome)
        if self._on_progress is not None:
            self._run_callback(self._on_progress, self.progress)

    def _check_stop_conditions(self, outcome: S | Failed | Unknown, error: PlaidRelayError | None) -> None:
        """Stop the batch, or the requests for a report, if all others would get the same error.

        The batch also stops if the operation's pauses since the last accepted attempt exceed the retry
        policy's `max_pause`.
        """
        if not isinstance(outcome, Failed | Unknown):
            if outcome.attempts:  # an outcome from the journal says nothing about the requests of this batch
                self._shared_error_count = 0
                if self._report_errors is not None:
                    self._report_errors.clear(outcome.request)
        elif error is not None:
            if self._report_errors is not None and affects_report(error):
                self._report_errors.record_error(outcome.request, error)
            self._shared_error_count += affects_all_requests(error)
            pause_too_long = isinstance(error, RateLimitError) and error.exceeds_max_pause
            if pause_too_long or self._shared_error_count >= SHARED_ERROR_LIMIT:
                self.stop_sending(error)

    def report_stop_cause(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for the same report, or `None`."""
        return None if self._report_errors is None else self._report_errors.report_stop_cause(request)

    def _run_callback(self, callback: Callable[[T], object], argument: T) -> None:
        try:
            callback(argument)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the caller gets it at the end
            self.stop_with_error(error)

    @property
    def progress(self) -> Progress:
        """The current progress of the batch."""
        counts, not_attempted = self.result.counts, len(self.result.not_attempted)
        done, failed, unknown = counts.total(), counts["failed"], counts["unknown"]
        return Progress(
            requests_read=self._requests_read,
            succeeded=done - failed - unknown,
            failed=failed,
            unknown=unknown,
            pending=self._requests_read - done - not_attempted,
            elapsed=self.now() - self._started_at,
        )
