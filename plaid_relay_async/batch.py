"""The fan-out: one call for each request, a bounded number at a time, and one outcome for every one.

It knows nothing of HTTP: it is given an awaitable that makes the call, and a permit goes with each call, by
which the call asks for leave before an attempt and tells when one surely came to nothing. So a batch that is
left knows of each request whether it can be dropped, or has to be waited for.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import warnings
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from attrs import define, evolve, frozen

from plaid_relay_async.cancellation import DrainTracker, wait_until_done
from plaid_relay_async.errors import (
    BatchStoppedError,
    Certainty,
    ConnectionLostError,
    DuplicateRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    RateLimitError,
    RequestValidationError,
    ResponseDecodeError,
    affects_all_requests,
    affects_report,
    certainty_of,
    is_ordinary_error,
    strip_traceback,
)
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRemoveRequest,
)
from plaid_relay_async.outcomes import (
    BatchResult,
    Created,
    Failed,
    Fetched,
    Progress,
    Refreshed,
    Removed,
    S,
    Unknown,
)

if TYPE_CHECKING:
    from types import TracebackType

Q = TypeVar("Q")
T = TypeVar("T")

# After this number of errors that every request would meet, and no success in between, a batch stops. That
# number of errors of a report stops the requests for that report.
SHARED_ERROR_LIMIT: Final = 3
_MAX_TRACKED_REPORTS: Final = 256  # whose errors are counted at the same time

Requests: TypeAlias = Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest]
Tokens: TypeAlias = Iterable[str | Q] | AsyncIterable[str | Q]


# --------------------------------------------------------------------------------------- the operations


@frozen
class BatchOperation:
    """What a batch has to know of what its calls do.

    Attributes:
        request: the class of its records.
        success: makes the outcome of a call that did it, from `response=` and what all outcomes have.
        same: gives the words of a request that make it the same as another.
        duplicate: says of a request that it is such another.
        report: returns the tokens of a request's report, where several requests have the same report.
        reads: it changes nothing, so that nothing of it is ever unknown; what it reads may be large.
        advice: what to do about an unknown, if that isn't what the error says.
    """

    request_type: type[Any]
    build_success: Callable[..., Any]
    duplicate_key: Callable[[Any], tuple[str, ...]] = lambda request: (request.relay_token,)
    duplicate_message: str = "this relay token came before"
    report_key: Callable[[Any], tuple[str, ...]] | None = None
    is_safe: bool = False
    advice: str = OutcomeUnknownError.advice

    def build_outcome(self, request: object, result: Any, *, attempts: int, elapsed: float) -> Any:
        """Return the outcome of a call from its response or error."""
        error = self.outcome_error(result) if isinstance(result, PlaidRelayError) else None
        facts: dict[str, Any] = {
            "request": request,
            "attempts": attempts,
            "elapsed": elapsed,
            "request_id": getattr(result if error is None else error, "request_id", None),
        }
        if error is None:
            return self.build_success(response=result, **facts)
        if isinstance(error, OutcomeUnknownError):
            return Unknown(error=error, **facts)
        return Failed(error=error, **facts)

    def abandoned_error(self, attempts: int) -> PlaidRelayError:
        """Give the error of a call that was given up in the middle of an attempt, without a word of it."""
        return self._lost_response_error("the batch was left before an answer came", attempts=attempts)

    def unexpected_error(self, error: BaseException) -> PlaidRelayError:
        """Give the error of a call that ended in a bug, of whoever."""
        told = self._lost_response_error(
            f"{type(error).__name__} was raised in the middle of the call", sent=None
        )
        told.__cause__ = error
        return told

    def outcome_error(self, error: PlaidRelayError) -> PlaidRelayError:
        """Turn an error that leaves open whether the call was carried out into one that says so."""
        # A success that can't be read is one all the same.
        left_open = certainty_of(error) is Certainty.IN_DOUBT or isinstance(error, ResponseDecodeError)
        if self.is_safe or not left_open or isinstance(error, OutcomeUnknownError):
            return error
        facts = {name: fact for name, fact in vars(error).items() if hasattr(OutcomeUnknownError, name)}
        unknown = self._lost_response_error(str(error.args[0]), **facts)
        unknown.__cause__ = error
        return unknown

    def _lost_response_error(self, message: str, **facts: Any) -> PlaidRelayError:
        if self.is_safe:
            return ConnectionLostError(message, **facts)
        return OutcomeUnknownError(message, **facts | {"advice": self.advice})


def _build_created(*, response: Any, **facts: Any) -> Created:
    return Created(relay_token=response.relay_token, **facts)


def _build_removed(*, response: Any, **facts: Any) -> Removed | Failed:
    if response.removed:
        return Removed(response=response, **facts)
    said = {"status": 200, "request_id": response.request_id, "attempts": facts["attempts"]}
    error = PlaidAPIError("Plaid answered that it didn't remove the relay token", **said)
    error.advice = "The token still opens the report: remove it again, or ask Plaid's support."
    return Failed(error=error, **facts)


def _report_key(request: RelayCreateRequest) -> tuple[str, ...]:
    return tuple(sorted(request.report_tokens))


def _pair_key(request: RelayCreateRequest) -> tuple[str, ...]:
    return (*_report_key(request), request.secondary_client_id)


CREATE: Final = BatchOperation(
    RelayCreateRequest, _build_created, _pair_key, "this pair of report and partner came before", _report_key
)
GET: Final = BatchOperation(RelayGetRequest, Fetched, is_safe=True)
GET_PDF: Final = BatchOperation(RelayPdfGetRequest, Fetched, is_safe=True)
REFRESH: Final = BatchOperation(RelayRefreshRequest, Refreshed)
REMOVE: Final = BatchOperation(
    RelayRemoveRequest,
    _build_removed,
    advice="It may have been removed. Remove it again, which is safe: told that there is none, it is gone.",
)


@frozen(eq=False, repr=False)
class CallContext:
    """Who has a journal write something down.

    Attributes:
        host: of Plaid's API, or whatever stands in its place.
        client_id: gives the client id, or `None` where a gateway has it; may raise `NotSentError`.
        seconds: that a request may be under way; `None` for no limit.
        former_host: the host as it was typed, which earlier releases used.
        retry_unknown: in place of the journal's setting, if it isn't `None`.
        retry_failed: the same.
    """

    host: str
    get_client_id: Callable[[], Awaitable[str | None]]
    max_request_seconds: float | None
    legacy_host: str | None = None
    retry_unknown: bool | None = None
    retry_failed: bool | None = None


async def _no_client_id() -> None:
    """Stand in for a client id where there is no journal to ask for it."""


NO_CONTEXT: Final = CallContext("", _no_client_id, None)


class LostRaceError(Exception):
    """Somebody else has begun the same in the meantime: enter it anew."""


class CallRecorder(Protocol):
    """One call in a journal."""

    @property
    def recorded_outcome(self) -> Any:
        """The outcome, if the journal has it already; nothing is sent then."""
        ...

    @property
    def earlier_doubt(self) -> OutcomeUnknownError | None:
        """The error of an earlier attempt of it, if one was begun of which nobody knows the end."""
        ...

    @property
    def journalled(self) -> bool:
        """Whether what becomes of it is written down."""
        ...

    async def record_intent(self) -> None:
        """An attempt is about to leave. Returns once that can't be lost; may raise `TakenError`."""
        ...

    def record_outcome(self, outcome: Any) -> Awaitable[object]:
        """Record the outcome, or with `None` that the request is not attempted; it is durable once awaited.

        With `None` the awaitable may raise `TakenError`.
        """
        ...

    def release(self) -> None:
        """The call is over, with or without an outcome."""
        ...


class AnyJournal(Protocol):
    """A durable record of creations and removals; `plaid_relay_async.journal.Journal` is one."""

    async def acquire_recorder(self, request: Any, context: CallContext) -> CallRecorder:
        """A request was taken up. May wait while somebody else is at the same."""
        ...


# ------------------------------------------------------------------------------------------- one flight


class _SendingStoppedError(Exception):
    """The request must not be sent: the batch, or its report, is stopped."""


@define(eq=False, repr=False)
class _BatchCall(Generic[S]):
    """One request on its way, and the permit that goes with its call.

    Attributes:
        busy: it must be waited for, and not be dropped when the batch is left.
        begun: an attempt may be under way at Plaid.
        last: the error of the last attempt.
        doubt: the error of an attempt that may have been carried out.
        made: what a call that was cancelled had received all the same.
        patient: whether the server's pauses count against neither time nor attempts.
        entry: the journal's, if there is a journal.
        taken: somebody else has begun the same.
        stopped: its report is stopped, so it isn't sent, or not again.
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
        """The outcome for the journal: `None` if the request stays unattempted, for its report is stopped."""
        return None if self.report_stopped and self.in_doubt_error is None else self.outcome

    @property
    def in_doubt(self) -> bool:
        return self._find_in_doubt_error() is not None

    def _find_in_doubt_error(self) -> PlaidRelayError | None:
        return self.in_doubt_error or (None if self.recorder is None else self.recorder.earlier_doubt)

    async def start_attempt(self) -> None:
        self.check_may_send()
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
            self.batch.stop_with_error(error)  # without a record, nothing may leave
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
            self.attempts -= 1
            self._end_attempt(self.last_error)
        else:
            self._end_attempt(result)

    def _end_attempt(self, error: PlaidRelayError | None) -> None:
        self.last_error = error
        self.must_drain = self.in_flight = False

    def check_may_send(self) -> None:
        """Raise `_HaltedError` if nothing may be sent for the request."""
        if self.batch.sending_stopped:
            raise _SendingStoppedError
        cause = self.batch.stopping_error(self.request)
        if cause is not None:
            self.report_stopped, self.last_error = True, _stopped_report_error(cause, self.attempts)
            raise _SendingStoppedError

    def success_outcome(self, response: Any) -> S:
        outcome: S = self._build_outcome(response)
        return outcome

    def error_outcome(self, error: PlaidRelayError) -> Failed | Unknown:
        """What an error makes of it; an attempt that may have been carried out outweighs what came later."""
        self.last_error = error
        doubt = self._find_in_doubt_error()
        if doubt is not None and certainty_of(error) is not Certainty.IN_DOUBT:
            doubt.__cause__ = doubt.__cause__ or error
            doubt.attempts = self.attempts
            error = doubt
        outcome: Failed | Unknown = self._build_outcome(error)
        return outcome

    def _build_outcome(self, result: Any) -> Any:
        elapsed = self.batch.now() - self.started_at
        operation = self.batch.operation
        return operation.build_outcome(self.request, result, attempts=self.attempts, elapsed=elapsed)

    def interrupted_outcome(self) -> S | Failed | Unknown | None:
        """What became of it when it was dropped: nothing, if no attempt had left."""
        if self.received_response is not None:
            return self.success_outcome(self.received_response)
        if self.in_flight:
            self.last_error = self.batch.operation.abandoned_error(self.attempts)
        return None if self.last_error is None else self.error_outcome(self.last_error)


def _stopped_report_error(cause: PlaidRelayError, attempts: int) -> PlaidRelayError:
    """Return the error of a request that isn't sent, because others for its report ended with `cause`."""
    error = copy.copy(cause)
    error.args = (f"not sent after {SHARED_ERROR_LIMIT} errors of the same report: {cause.args[0]}",)
    error.sent, error.attempts = attempts > 0, attempts
    vars(error).pop("request_id", None)  # of another request
    return error


CallFunction: TypeAlias = "Callable[[Any, _BatchCall[S]], Awaitable[Any]]"


# -------------------------------------------------------------------------------------------- the input


class _RequestReader:
    """Gives requests one by one, from either kind of iterable; `None` at the end.

    Attributes:
        reader: the task that waits for an async iterable. Cancelling it would close an async generator.
    """

    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        request_type: type[Any],
        request_from_token: Callable[[Any], Any] | None,
    ) -> None:
        self._request_type = request_type
        self._request_from_token = request_from_token
        self._name = "requests" if request_from_token is None else "relay_tokens"
        self._read_count = 0
        self._lock = asyncio.Lock()
        self._async_iterator: AsyncIterator[Any] | None = None
        self.reader: asyncio.Task[Any] | None = None
        self._iterator: Iterator[Any] = iter(())
        if isinstance(source, str | bytes):
            raise RequestValidationError.of(self._name, "must be an iterable, not one string: write [it]")
        if isinstance(source, AsyncIterable):
            self._async_iterator = aiter(source)
        else:
            self._iterator = iter(source)

    async def read_next(self) -> Any:
        try:
            if self._async_iterator is None:
                return self._to_request(next(self._iterator))
            async with self._lock:
                self.reader = asyncio.current_task()
                try:
                    return self._to_request(await anext(self._async_iterator))
                finally:
                    self.reader = None
        except (StopIteration, StopAsyncIteration):
            return None

    @strip_traceback
    def _to_request(self, item: Any) -> Any:
        place = f"{self._name}[{self._read_count}]"
        self._read_count += 1
        if isinstance(item, self._request_type):
            return item
        if self._request_from_token is None:
            wrong = f"must be a {self._request_type.__name__}, not {type(item).__name__}"
            raise RequestValidationError.of(place, wrong)
        try:
            return self._request_from_token(item)
        except RequestValidationError as error:
            wrong = error.problem
        raise RequestValidationError.of(place, wrong)


class _DuplicateFilter:
    """Remembers what makes requests the same, in some 100 bytes each and without holding a token."""

    def __init__(self, key: Callable[[Any], tuple[str, ...]]) -> None:
        self._key = key
        self._seen: set[bytes] = set()

    def is_duplicate(self, request: object) -> bool:
        digest = _hash_key(self._key(request))
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _hash_key(key: tuple[str, ...]) -> bytes:
    # 15 bytes: with one more, each digest would take the next size of CPython's allocator.
    return hashlib.blake2b("\0".join(key).encode(), digest_size=15).digest()


class _ReportErrors:
    """Counts the errors of each report, for the reports that had one last, and without holding a token."""

    def __init__(self, report_key: Callable[[Any], tuple[str, ...]]) -> None:
        self._report_key = report_key
        self._errors: dict[bytes, tuple[int, PlaidRelayError]] = {}

    def record_error(self, request: object, error: PlaidRelayError) -> None:
        """Count an error of the request's report."""
        digest = _hash_key(self._report_key(request))
        count, _ = self._errors.pop(digest, (0, error))
        # A copy has no traceback, which would hold on to responses.
        self._errors[digest] = (count + 1, copy.copy(error))
        if len(self._errors) > _MAX_TRACKED_REPORTS:
            del self._errors[next(iter(self._errors))]

    def clear(self, request: object) -> None:
        """Forget the errors of the request's report, because a request for it succeeded."""
        if self._errors:
            self._errors.pop(_hash_key(self._report_key(request)), None)

    def stopping_error(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for this one's report, or `None`."""
        if not self._errors:
            return None
        count, error = self._errors.get(_hash_key(self._report_key(request)), (0, None))
        return error if count >= SHARED_ERROR_LIMIT else None


# -------------------------------------------------------------------------------------------- the batch


class Batch(Generic[S]):
    """A batch of calls: await it for a `BatchResult`, or stream its outcomes.

    .. code-block:: python

        result = await client.relay.create_many(requests)

        async with client.relay.create_many(requests) as outcomes:
            async for outcome in outcomes: ...
        outcomes.result  # what the loop did not see

    Leaving the stream early, or cancelling either form, stops new sends and drains: it waits for the calls in
    flight, for the drain time at most, and the outcomes that arrive meanwhile are in `result`. Further
    cancellations don't end the drain; `abandon()` does.
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
        journal: AnyJournal | None = None,
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
        self._source = _RequestReader(requests, operation.request_type, request_from_token)
        self._call = call
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._drains = DrainTracker() if drains is None else drains
        self._reader_timeout: asyncio.TimerHandle | None = None
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._duplicates = None if allow_duplicates else _DuplicateFilter(operation.duplicate_key)
        self._unread_outcomes: deque[S | Failed | Unknown] = deque()
        self._stream_changed = asyncio.Event()
        # For what is in flight and what is unread, together. A report may take up megabytes.
        self._capacity = asyncio.Semaphore(concurrency if operation.is_safe else 2 * concurrency)
        self._senders: dict[asyncio.Task[None], _BatchCall[S] | None] = {}
        self._runner: asyncio.Task[None] | None = None
        self._streamed = False
        self._requests_read = 0
        self.now: Callable[[], float] = float  # before it starts, no time goes by
        self._started_at = 0.0
        self._shared_error_count = 0
        self._report_errors = None if operation.report_key is None else _ReportErrors(operation.report_key)
        self._error: BaseException | None = None

    # ------------------------------------------------------------------------------- the two ways of use

    def __await__(self) -> Generator[None, None, BatchResult[S]]:
        """Run the batch to its end and give its result."""
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
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            await self._stop_and_drain()
        finally:
            self._streamed = False
            while self._unread_outcomes:
                self.result.add_outcome(self._unread_outcomes.popleft())
        if error is None:
            self._raise_error()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> S | Failed | Unknown:
        if not self._streamed or self._runner is None:
            raise RuntimeError("stream inside of `async with ... as outcomes:`")
        while not self._unread_outcomes:
            if self._runner.done():
                self._raise_error()
                raise StopAsyncIteration
            self._stream_changed.clear()
            await self._stream_changed.wait()
        self._capacity.release()
        return self._unread_outcomes.popleft()

    def __del__(self) -> None:
        if getattr(self, "_runner", self) is None:
            warnings.warn(
                "a batch was neither awaited nor streamed, so nothing was sent", RuntimeWarning, stacklevel=2
            )

    # ------------------------------------------------------------------------------------ start and stop

    def _start(self, *, streamed: bool) -> asyncio.Task[None]:
        if self._runner is not None:
            raise RuntimeError("this batch was run before: make another")
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
            # A callback of this task would be too late for a loop that reads on as the task ends.
            self.result.elapsed = self.now() - self._started_at

    def _on_runner_done(self, runner: asyncio.Task[None]) -> None:
        if self._reader_timeout is not None:
            self._reader_timeout.cancel()
        if not runner.cancelled():
            self._error = self._error or runner.exception()
        self._stream_changed.set()

    async def _stop_and_drain(self) -> None:
        """Stop sending, and wait for what is in flight until the drain is over or abandoned."""
        runner = self._runner
        if runner is None or runner.done():
            return
        self.stop_sending(None)
        end = asyncio.get_running_loop().call_later(self._drain_timeout, self.abandon)
        try:
            with self._drains.track():
                await wait_until_done(runner)
        finally:
            end.cancel()

    def abandon(self) -> None:
        """Stop the batch without waiting for the calls in flight: their outcome is unknown.

        This ends a drain early, for example when a person interrupts a program for the second time. Await
        the batch, or leave its `async with` block, as usual; that doesn't take long any more. Call this in
        the event loop of the batch. It may be called at any time and more than once; a batch that wasn't
        started yet sends nothing.
        """
        self.stop_sending(None)
        if self._runner is not None:
            self._runner.cancel()

    def stop_sending(self, reason: BaseException | None) -> None:
        """Send nothing more, and cancel the workers that have nothing in flight. For the batch's own flights.

        A worker that waits for the input is in flight as well, for the drain time: cancelling it would close
        an async generator, and the rest of the input would be lost.
        """
        self.result.stopped_by = self.result.stopped_by or reason
        self.sending_stopped = True
        for worker, flight in self._senders.items():
            if worker is self._source.reader:
                self._reader_timeout = self._reader_timeout or worker.get_loop().call_later(
                    self._drain_timeout, worker.cancel
                )
            elif worker is not asyncio.current_task() and (flight is None or not flight.must_drain):
                worker.cancel()

    def stop_with_error(self, error: BaseException) -> None:
        """Stop because of an error that isn't a request's: it is raised once all is in."""
        self._error = self._error or error
        self.stop_sending(error)

    def _raise_error(self) -> None:
        trouble, self._error = self._error, None
        if trouble is not None:
            where = "its input, its journal or a callback"
            raise BatchStoppedError(
                f"the batch broke off, for {where} raised {type(trouble).__name__}", result=self.result
            ) from trouble

    # ---------------------------------------------------------------------------------------- the workers

    async def _run_sender(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None  # noqa: S101  # a coroutine of a TaskGroup runs in a task
        self._senders[worker] = None
        try:
            while (request := await self._next_request()) is not None:
                if self.sending_stopped:  # while this worker waited for the input
                    self.result.not_attempted.append(request)
                    break
                if not await self._process_request(worker, request):
                    await asyncio.sleep(0)  # what fails without waiting for anything must not hold the loop
        finally:
            del self._senders[worker]

    async def _next_request(self) -> Any:
        if self.sending_stopped:
            return None  # and doesn't wait for room: nobody may read any more
        await self._capacity.acquire()
        try:
            request = await self._source.read_next()
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.stop_with_error(error)  # the caller's own: it is raised to the caller in the end
            request = None
        if request is None:
            self._capacity.release()
            return None
        self._requests_read += 1
        return request

    async def _process_request(self, sender: asyncio.Task[None], request: object) -> bool:
        """See to one request, and tell whether its call did what it was for."""
        # The flight's name ends with this frame: a worker that waits for its next request keeps no report.
        flight = self._senders[sender] = _BatchCall(self, request, self.now(), bulk=self.bulk)
        await self._process_call(flight)
        self._senders[sender] = None
        return not isinstance(flight.outcome, Failed | Unknown | None)

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
                self._deliver_outcome(call.outcome, None if call.report_stopped else call.last_error)

    async def _send_call(self, call: _BatchCall[S]) -> None:
        try:
            call.check_may_send()
            call.outcome = call.success_outcome(await self._call(call.request, call))
        except _SendingStoppedError:
            call.outcome = call.interrupted_outcome()
        except LostRaceError:
            # If an earlier attempt may have been executed, that is recorded before the pair is entered again.
            call.outcome = None if call.in_doubt_error is None else call.error_outcome(call.in_doubt_error)
        except PlaidRelayError as error:
            call.outcome = call.error_outcome(error)
        except BaseException as error:
            if not is_ordinary_error(error):
                call.outcome = call.interrupted_outcome()
                raise
            call.outcome = call.error_outcome(self.operation.unexpected_error(error))

    async def _send_with_journal(self, call: _BatchCall[S], journal: AnyJournal) -> None:
        while (entry := await self._acquire_recorder(call, journal)) is not None:
            call.recorder, call.lost_race = entry, False
            try:
                if entry.recorded_outcome is not None:
                    call.outcome = evolve(entry.recorded_outcome, elapsed=self.now() - call.started_at)
                else:
                    await self._send_and_record(call, entry)
            finally:
                entry.release()
            if not call.lost_race:
                return
            call.must_drain = False

    async def _send_and_record(self, call: _BatchCall[S], recorder: CallRecorder) -> None:
        try:
            await self._send_call(call)
        except BaseException:
            if call.outcome_to_record is not None:  # no task waits here any more, but it must not be lost
                self._run_in_background(recorder.record_outcome(call.outcome_to_record))
            raise
        if call.outcome is not None:
            await self._record_outcome(call, recorder)

    async def _acquire_recorder(self, call: _BatchCall[S], journal: AnyJournal) -> CallRecorder | None:
        try:
            return await journal.acquire_recorder(call.request, self._context)
        except NotSentError as error:  # the source of the credentials has none
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
            call.lost_race, call.report_stopped, call.last_error, call.outcome = True, False, None, None
        except BaseException as error:
            if not is_ordinary_error(error):
                raise
            self.stop_with_error(error)  # the outcome is handed on all the same
        else:
            if outcome is not None:
                call.outcome = evolve(outcome, journalled=recorder.journalled)

    def _run_in_background(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    def _deliver_outcome(self, outcome: S | Failed | Unknown, error: PlaidRelayError | None) -> None:
        self.result.count_outcome(outcome)
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
        """Stop the batch, or the requests for a report, if all others would only meet the same error."""
        if not isinstance(outcome, Failed | Unknown):
            if outcome.attempts:  # one that the journal knows shows nothing of today's requests
                self._shared_error_count = 0
                if self._report_errors is not None:
                    self._report_errors.clear(outcome.request)
        elif error is not None:
            if self._report_errors is not None and affects_report(error):
                self._report_errors.record_error(outcome.request, error)
            self._shared_error_count += affects_all_requests(error)
            gave_up = isinstance(error, RateLimitError) and error.exceeds_max_pause
            if gave_up or self._shared_error_count >= SHARED_ERROR_LIMIT:
                self.stop_sending(error)

    def stopping_error(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for this one's report, or `None`."""
        return None if self._report_errors is None else self._report_errors.stopping_error(request)

    def _run_callback(self, callback: Callable[[T], object], argument: T) -> None:
        try:
            callback(argument)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # raised to the caller in the end
            self.stop_with_error(error)

    @property
    def progress(self) -> Progress:
        """Where the batch stands now."""
        counts, left = self.result.counts, len(self.result.not_attempted)
        done, failed, unknown = counts.total(), counts["failed"], counts["unknown"]
        return Progress(
            taken=self._requests_read,
            succeeded=done - failed - unknown,
            failed=failed,
            unknown=unknown,
            in_flight=self._requests_read - done - left,
            elapsed=self.now() - self._started_at,
        )
