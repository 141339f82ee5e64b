"""A batch: one call for each request, with bounded concurrency and one outcome for each.

A batch sends nothing itself: each of its calls (`TrackedCall`) awaits a function that makes it.

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
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from plaid_relay_async import watching
from plaid_relay_async.batch.call import AcquireRecorder, SendFunction, TrackedCall
from plaid_relay_async.batch.input import DuplicateFilter, RequestReader
from plaid_relay_async.batch.results import OutcomeT, Progress, ResultT
from plaid_relay_async.batch.stopping import Sending
from plaid_relay_async.errors import (
    BatchStoppedError,
    DuplicateRequestError,
    PlaidRelayError,
    is_ordinary_error,
)
from plaid_relay_async.telemetry import ObservedCall

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Generator, Iterable
    from types import TracebackType

    from plaid_relay_async.batch.operations import BatchOperation
    from plaid_relay_async.batch.options import BatchSettings
    from plaid_relay_async.cancellation import DrainTracker
    from plaid_relay_async.telemetry import Observer

T = TypeVar("T")


class Batch(Generic[OutcomeT, ResultT]):
    """A batch of calls: await it for its result, or stream its outcomes.

    The type arguments of `Batch[O, R]` are the types of an outcome and of the result.

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
        operation: BatchOperation[OutcomeT, ResultT],
        requests: Iterable[Any] | AsyncIterable[Any],
        send: SendFunction,
        settings: BatchSettings[OutcomeT],
        *,
        drain_timeout: float,
        drains: DrainTracker,
        observer: Observer,
        request_from_token: Callable[[Any], Any] | None = None,
        acquire_recorder: AcquireRecorder | None = None,
        run: str | None = None,
    ) -> None:
        self._result: Final[ResultT] = operation.result_type()
        self._operation = operation
        self._reader = RequestReader(requests, operation.endpoint.request_type, request_from_token)
        self._send = send
        self._acquire_recorder = acquire_recorder
        self._observed = observer.new_batch(operation.endpoint.path, run)
        self._settings = settings
        self._duplicates = None if settings.allow_duplicates else DuplicateFilter(operation.identity)
        self.sending: Final = Sending(
            drain_timeout,
            drains,
            operation.report_identity,
            self._reader,
            self._result,
        )
        self._unread_outcomes: deque[OutcomeT] = deque()
        self._stream_changed = asyncio.Event()
        # Backpressure: calls in flight and unread outcomes share this bound. It is twice the concurrency, so
        # that a caller's loop that is slow for a moment doesn't delay the senders. For safe operations it is
        # the concurrency itself, because each outcome may contain a report of several megabytes.
        self._capacity = asyncio.Semaphore(settings.concurrency * (1 if operation.is_safe else 2))
        self._runner: asyncio.Task[None] | None = None
        self._streamed = False
        self._requests_read = 0
        self._now: Callable[[], float] = float  # returns 0.0 until the batch starts
        self._started_at = 0.0

    # ------------------------------------------------------------------------------- the two ways of use

    def __await__(self) -> Generator[None, None, ResultT]:
        """Run the batch to its end and return its result."""
        runner = self._start(streamed=False)
        yield from self.sending.wait_or_drain(runner).__await__()
        self._raise_error()
        return self.result

    async def __aenter__(self) -> Self:
        self._start(streamed=True)
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._runner is not None and not self._runner.done():
                await self.sending.stop_and_drain(self._runner)
        finally:
            self._streamed = False
            while self._unread_outcomes:
                self._result.add_outcome(self._unread_outcomes.popleft())
        # An exception of the caller's loop takes precedence.
        if error is None:
            self._raise_error()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutcomeT:
        if not self._streamed or self._runner is None:
            raise RuntimeError("iterate over a batch inside `async with ... as outcomes:`")
        while not self._unread_outcomes:
            if self._runner.done():
                self._raise_error()
                raise StopAsyncIteration
            self._stream_changed.clear()
            await self._stream_changed.wait()
        self._capacity.release()
        outcome = self._unread_outcomes.popleft()
        if (watcher := watching.watcher) is not None:
            watcher.add_received(outcome)
        return outcome

    @property
    def result(self) -> ResultT:
        """The result, which grows until the batch has ended."""
        if (watcher := watching.watcher) is not None:
            watcher.add_received(self._result)
        return self._result

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
        self._now = asyncio.get_running_loop().time
        self._started_at = self._now()
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._on_runner_done)
        return self._runner

    async def _run(self) -> None:
        self._observed.batch_started()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(self._run_sender())
        finally:
            # A done callback would run too late: a stream may see that the task is done before its callbacks
            # run.
            self._result.elapsed = self._now() - self._started_at
            self._report_end()

    def _report_end(self) -> None:
        progress, stopped_by = self.progress, self._result.stopped_by
        counts = {
            "succeeded": progress.succeeded,
            "failed": progress.failed,
            "unknown": progress.unknown,
            "not_attempted": len(self._result.not_attempted),
        }
        self._observed.batch_ended(stopped_by, duration=self._result.elapsed, counts=counts)

    def _on_runner_done(self, runner: asyncio.Task[None]) -> None:
        if self.sending.reading_timer is not None:
            self.sending.reading_timer.cancel()
        if not runner.cancelled():
            # The senders handle all errors that are expected, so this is a bug, or an exception that ends the
            # process.
            self.sending.error = self.sending.error or runner.exception()
        self._stream_changed.set()

    def abandon(self) -> None:
        """Stop the batch without waiting for the calls in flight.

        Their outcome is `Unknown`, or `Failed` for reads, unless their response has arrived. Call this to end
        a drain early, for example when a user interrupts a program for the second time. Await the batch, or
        leave its `async with` block, as usual; that returns soon afterwards. Call this method in the event
        loop of the batch. It may be called at any time and more than once; a batch that hasn't started sends
        nothing.
        """
        self.sending.stop(None)
        if self._runner is not None:
            self._runner.cancel()

    def _raise_error(self) -> None:
        error, self.sending.error = self.sending.error, None  # it is raised once
        if error is not None:
            raise BatchStoppedError(
                f"the batch stopped because {type(error).__name__} was raised", result=self.result
            ) from error

    # ---------------------------------------------------------------------------------------- the senders

    async def _run_sender(self) -> None:
        sender = asyncio.current_task()
        assert sender is not None  # noqa: S101  # a coroutine of a TaskGroup runs in a task
        self.sending.calls[sender] = None
        try:
            # Capacity isn't waited for once sending has stopped: a stream that was left never releases any.
            while not self.sending.stopped and (request := await self._next_request()) is not None:
                if not await self._process_request(sender, request):
                    # Calls that fail without waiting for anything must not block the event loop.
                    await asyncio.sleep(0)
        finally:
            del self.sending.calls[sender]

    async def _next_request(self) -> Any:
        """Return the next request, once there is capacity for its outcome; `None` ends the sender."""
        await self._capacity.acquire()
        try:
            request = await self._reader.read_next()
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.sending.stop_with_error(error)  # the caller's iterable raised it, so the caller gets it
            request = None
        if request is None:
            self._capacity.release()
            return None
        self._requests_read += 1
        if self.sending.stopped:  # while this sender waited for the input
            self._result.not_attempted.append(request)
            return None
        return request

    async def _process_request(self, sender: asyncio.Task[None], request: object) -> bool:
        """Process one request, deliver its outcome, and return whether its call succeeded."""
        observed = ObservedCall(self._observed, request, self._observed.detailed, self._requests_read)
        if observed.detailed:
            observed.start()
        # `call` is local to this frame, so a sender that waits for its next request keeps no report in
        # memory.
        call: TrackedCall[OutcomeT] = TrackedCall(
            self._operation,
            request,
            self._send,
            self.sending,
            self._acquire_recorder,
            started_at=self._now(),
            observed=observed,
        )
        self.sending.calls[sender] = call
        try:
            if self._duplicates is not None and self._duplicates.is_duplicate(request):
                call.end_with_error(DuplicateRequestError(self._operation.duplicate_message))
            else:
                await call.run()
        finally:
            try:
                if call.outcome is None:
                    self._result.not_attempted.append(request)
                else:
                    # If the requests for the report have stopped, the error was counted before, with another
                    # request.
                    self._deliver_outcome(call.outcome, None if call.skipped else call.last_error)
            finally:  # a callback may have raised what isn't an error
                self.sending.calls[sender] = None
                outcome = call.report_end()
        return outcome == "succeeded"

    def _deliver_outcome(self, outcome: OutcomeT, error: PlaidRelayError | None) -> None:
        self._result.count_outcome(outcome)
        # A streamed outcome occupies capacity until the caller's loop receives it.
        if self._streamed:
            self._unread_outcomes.append(outcome)
            self._stream_changed.set()
        else:
            self._result.add_outcome(outcome)
            self._capacity.release()
        self.sending.count_outcome(outcome, error)
        if self._settings.on_outcome is not None:
            self._run_callback(self._settings.on_outcome, outcome)
            if (watcher := watching.watcher) is not None:
                watcher.add_received(outcome)
        if self._settings.on_progress is not None:
            self._run_callback(self._settings.on_progress, self.progress)

    def _run_callback(self, callback: Callable[[T], object], argument: T) -> None:
        try:
            callback(argument)
        # The callback isn't async, so a CancelledError comes from its own code, and isn't the cancellation of
        # this task.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the caller gets it at the end
            self.sending.stop_with_error(error)

    @property
    def progress(self) -> Progress:
        """The current progress of the batch."""
        counts, not_attempted = self._result.counts, len(self._result.not_attempted)
        done, failed, unknown = counts.total(), counts["failed"], counts["unknown"]
        return Progress(
            requests_read=self._requests_read,
            succeeded=done - failed - unknown,
            failed=failed,
            unknown=unknown,
            pending=self._requests_read - done - not_attempted,
            elapsed=self._now() - self._started_at,
        )
