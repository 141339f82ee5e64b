"""Batches: one call for each request, with bounded concurrency and one outcome for each.

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
import copy
import hashlib
import warnings
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from attrs import define, evolve, frozen

from plaid_relay_async.cancellation import DrainTracker, wait_until_done
from plaid_relay_async.certainty import Certainty, certainty_of, error_of_call, reclassify
from plaid_relay_async.error_codes import affects_all_requests, affects_report
from plaid_relay_async.errors import (
    BatchStoppedError,
    ConnectionLostError,
    DuplicateRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    RateLimitError,
    RequestValidationError,
    ResponseDecodeError,
    WaitTooLongError,
    is_ordinary_error,
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
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from types import TracebackType

Q = TypeVar("Q")
T = TypeVar("T")

# A batch stops after this number of errors that every request would get, without a success in between. The
# same number of errors of one report stops the requests for that report.
SHARED_ERROR_LIMIT: Final = 3
# Only the reports with the latest errors are tracked, so that the stored errors need constant memory.
_MAX_TRACKED_REPORTS: Final = 256

Requests: TypeAlias = Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest]
Tokens: TypeAlias = Iterable[str | Q] | AsyncIterable[str | Q]


# --------------------------------------------------------------------------------------- the operations


@frozen
class BatchOperation:
    """The properties of an operation that a batch depends on.

    Attributes:
        request_type: the class of its requests.
        build_success: returns the outcome of a call that got a response, from `response=` and the attributes
            that all outcomes have. It is a success, or `Failed` if the response says that a token wasn't
            removed.
        duplicate_key: returns the strings that identify a request; requests with the same key are duplicates.
        duplicate_message: the message of the error of a duplicate.
        report_key: returns the tokens of a request's report; `None` if requests don't share reports.
        is_safe: whether the operation is safe as RFC 9110 defines it: it changes nothing, so no outcome is
            ever unknown. Safe operations return reports, which may be large.
        advice: what to do about an unknown outcome.
    """

    request_type: type[Any]
    build_success: Callable[..., Any]
    duplicate_key: Callable[[Any], tuple[str, ...]] = lambda request: (request.relay_token,)
    duplicate_message: str = "this relay token is already in the batch"
    report_key: Callable[[Any], tuple[str, ...]] | None = None
    is_safe: bool = False
    advice: str = OutcomeUnknownError.advice

    def build_outcome(self, request: object, result: Any, *, attempts: int, elapsed: float) -> Any:
        """Return the outcome of a call.

        Args:
            request: the request of the call.
            result: its response, or its `PlaidRelayError`.
            attempts: the number of attempts, including those that weren't sent.
            elapsed: seconds from reading the request to the end of the call.
        """
        error = self.outcome_error(result) if isinstance(result, PlaidRelayError) else None
        attributes: dict[str, Any] = {
            "request": request,
            "attempts": attempts,
            "elapsed": elapsed,
            "request_id": getattr(result if error is None else error, "request_id", None),
        }
        if error is None:
            return self.build_success(response=result, **attributes)
        if isinstance(error, OutcomeUnknownError):
            return Unknown(error=error, **attributes)
        return Failed(error=error, **attributes)

    def abandoned_error(self, attempts: int) -> PlaidRelayError:
        """Return the error of a call that was abandoned during an attempt, without a result."""
        return self._lost_response_error("the batch ended before a response arrived", attempts=attempts)

    def unexpected_error(self, error: BaseException) -> PlaidRelayError:
        """Return the error of a call that raised something other than a `PlaidRelayError`.

        Whether a request was sent is unknown then, because the error may come from anywhere.
        """
        unexpected = self._lost_response_error(
            f"{type(error).__name__} was raised during the call", sent=None
        )
        unexpected.__cause__ = error
        return unexpected

    def outcome_error(self, error: PlaidRelayError) -> PlaidRelayError:
        """Return the error for the outcome: an `OutcomeUnknownError` if the call ended in doubt.

        The error of a safe operation stays as it is.
        """
        # An unreadable success response proves that Plaid executed the request, but doesn't show the result.
        in_doubt = certainty_of(error) is Certainty.IN_DOUBT or isinstance(error, ResponseDecodeError)
        if self.is_safe or not in_doubt or isinstance(error, OutcomeUnknownError):
            return error
        unknown = reclassify(error, OutcomeUnknownError, advice=self.advice)
        unknown.__cause__ = error
        return unknown

    def _lost_response_error(self, message: str, **attributes: Any) -> PlaidRelayError:
        if self.is_safe:
            return ConnectionLostError(message, **attributes)
        return OutcomeUnknownError(message, **attributes | {"advice": self.advice})


def _build_created(*, response: Any, **attributes: Any) -> Created:
    return Created(relay_token=response.relay_token, **attributes)


def _build_removed(*, response: Any, **attributes: Any) -> Removed | Failed:
    if response.removed:
        return Removed(response=response, **attributes)
    error = PlaidAPIError(
        "Plaid's response says that the relay token wasn't removed",
        status=200,
        request_id=response.request_id,
        attempts=attributes["attempts"],
        advice="The partner can still read the report: remove the token again, or ask Plaid's support.",
    )
    return Failed(error=error, **attributes)


def _report_key(request: RelayCreateRequest) -> tuple[str, ...]:
    # The order of the tokens makes no difference to Plaid.
    return tuple(sorted(request.report_tokens))


def _pair_key(request: RelayCreateRequest) -> tuple[str, ...]:
    return (*_report_key(request), request.secondary_client_id)


CREATE: Final = BatchOperation(
    RelayCreateRequest,
    _build_created,
    _pair_key,
    "this pair of report and partner is already in the batch",
    _report_key,
)
GET: Final = BatchOperation(RelayGetRequest, Fetched, is_safe=True)
GET_PDF: Final = BatchOperation(RelayPdfGetRequest, Fetched, is_safe=True)
REFRESH: Final = BatchOperation(RelayRefreshRequest, Refreshed)
REMOVE: Final = BatchOperation(
    RelayRemoveRequest,
    _build_removed,
    advice="The relay token may have been removed. Remove it again, which is safe: if Plaid doesn't find it, "
    "it was removed.",
)


@frozen(eq=False, repr=False)
class CallContext:
    """The context in which a journal records calls: for which account at Plaid, and with which settings.

    Attributes:
        host: the host of Plaid's API, or of the gateway or simulator that is called instead.
        get_client_id: returns the client ID, or `None` if a gateway adds it; raises `NotSentError` or
            `ConfigurationError` if the source of the credentials fails.
        max_request_seconds: the longest time for which a request may be in flight; `None` for no limit.
        legacy_host: the host as it is spelled in the base URL, which earlier versions recorded.
        retry_unknown: replaces the journal's setting, unless it is `None`.
        retry_failed: replaces the journal's setting, unless it is `None`.
    """

    host: str
    get_client_id: Callable[[], Awaitable[str | None]]
    max_request_seconds: float | None
    legacy_host: str | None = None
    retry_unknown: bool | None = None
    retry_failed: bool | None = None


async def _no_client_id() -> None:
    """Return no client ID: the placeholder for a batch without a journal, which never calls it."""


NO_CONTEXT: Final = CallContext("", _no_client_id, None)


class LostRaceError(Exception):
    """The pair has changed since its look-up, or was assumed to be new. Acquire a new recorder."""


class CallRecorder(Protocol):
    """A journal's recorder of one call.

    It holds the call's pair until it is released: meanwhile the journal object returns no other recorder for
    that pair. Another process may still change what is recorded of the pair; see `LostRaceError`.
    """

    @property
    def recorded_outcome(self) -> Any:
        """The outcome, if the journal has one already; then nothing is sent."""
        ...

    @property
    def earlier_in_doubt_error(self) -> OutcomeUnknownError | None:
        """The error of an earlier recorded attempt that ended in doubt, or `None`."""
        ...

    @property
    def journalled(self) -> bool:
        """Whether the journal records the outcome."""
        ...

    async def record_intent(self) -> None:
        """Record that an attempt is about to start; return once the record is durable.

        Raises:
            LostRaceError: the attempt must not start, and the batch acquires a new recorder. Any other error
                stops the batch.
        """
        ...

    def record_outcome(self, outcome: Any) -> Awaitable[object]:
        """Record the outcome, durable once awaited; `None` means that the request isn't attempted.

        For `None`, the awaitable may raise `LostRaceError`. Any other error stops the batch.
        """
        ...

    def release(self) -> None:
        """Release the pair: the call has ended, with or without an outcome, or needs a new recorder.

        If the call was cancelled, the awaitable of `record_outcome` may not be done yet.
        """
        ...


class JournalProtocol(Protocol):
    """A durable record of creations and removals; `plaid_relay_async.journal.Journal` is one."""

    async def acquire_recorder(self, request: Any, context: CallContext) -> CallRecorder:
        """Return a recorder for a request; wait while another call for the same pair is in progress.

        Raises:
            NotSentError: the client ID isn't available; the call fails. Any other error stops the batch.
        """
        ...


# ------------------------------------------------------------------------------------------- one call


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
            self.last_error = _stopped_report_error(cause, sent=sent, attempts=self.attempts)
            raise _SendingStoppedError

    def success_outcome(self, response: Any) -> S:
        outcome: S = self._build_outcome(response)
        return outcome

    def error_outcome(self, error: PlaidRelayError) -> Failed | Unknown:
        """Return the outcome of a call that ended with an error."""
        self.last_error = error
        error = error_of_call(error, in_doubt=self._find_in_doubt_error(), attempts=self.attempts)
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


def _stopped_report_error(cause: PlaidRelayError, *, sent: bool, attempts: int) -> PlaidRelayError:
    """Return the error of a request that isn't sent because others for its report failed with `cause`."""
    not_sent = "not sent again" if sent else "not sent"
    message = f"{not_sent} after {SHARED_ERROR_LIMIT} errors of the same report: {cause.args[0]}"
    # The request ID identifies another request.
    return reclassify(cause, type(cause), message=message, sent=sent, attempts=attempts, request_id=None)


CallFunction: TypeAlias = "Callable[[Any, _BatchCall[S]], Awaitable[Any]]"


# -------------------------------------------------------------------------------------------- the input


class _RequestReader:
    """Reads requests one by one, from an iterable or an async iterable.

    Attributes:
        reading_task: the task that waits for an async iterable, or `None`. Cancelling it would close an async
            generator, and the rest of the input would be lost.
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
        self.reading_task: asyncio.Task[Any] | None = None
        self._iterator: Iterator[Any] = iter(())
        # A string is an iterable of characters, which is never what the caller means.
        if isinstance(source, str | bytes):
            raise RequestValidationError.of(
                self._name, "must be an iterable, not one string: wrap it in a list"
            )
        if isinstance(source, AsyncIterable):
            self._async_iterator = aiter(source)
        else:
            self._iterator = iter(source)

    async def read_next(self) -> Any:
        """Return the next request, or `None` at the end of the input.

        Raises:
            RequestValidationError: an item isn't a request or, where tokens are allowed, a valid token.
        """
        try:
            if self._async_iterator is None:
                return self._to_request(next(self._iterator))
            # An async generator can't be advanced by two tasks at the same time.
            async with self._lock:
                self.reading_task = asyncio.current_task()
                try:
                    return self._to_request(await anext(self._async_iterator))
                finally:
                    self.reading_task = None
        except (StopIteration, StopAsyncIteration):
            return None

    @strip_traceback
    def _to_request(self, item: Any) -> Any:
        place = f"{self._name}[{self._read_count}]"
        self._read_count += 1
        if isinstance(item, self._request_type):
            return item
        if self._request_from_token is None:
            problem = f"must be a {self._request_type.__name__}, not {type(item).__name__}"
            raise RequestValidationError.of(place, problem)
        try:
            return self._request_from_token(item)
        except RequestValidationError as error:
            problem = error.problem
        # It is raised outside the handler, so that it has no context, whose frames may have the token.
        raise RequestValidationError.of(place, problem)


class _DuplicateFilter:
    """Detects duplicates by a digest of each request's key: about 100 bytes a request, and no tokens."""

    def __init__(self, key: Callable[[Any], tuple[str, ...]]) -> None:
        self._key = key
        self._seen: set[bytes] = set()

    def is_duplicate(self, request: object) -> bool:
        """Return whether a request with the same key was seen before, and remember this one."""
        digest = _hash_key(self._key(request))
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _hash_key(key: tuple[str, ...]) -> bytes:
    # With 16 bytes, each digest would need the next larger size class of CPython's allocator.
    return hashlib.blake2b("\0".join(key).encode(), digest_size=15).digest()


class _ReportErrors:
    """Counts the errors of each report, for the reports that failed most recently. It stores no tokens."""

    def __init__(self, report_key: Callable[[Any], tuple[str, ...]]) -> None:
        self._report_key = report_key
        self._errors: dict[bytes, tuple[int, PlaidRelayError]] = {}

    def record_error(self, request: object, error: PlaidRelayError) -> None:
        """Count an error of the request's report."""
        digest = _hash_key(self._report_key(request))
        count, _ = self._errors.pop(digest, (0, error))
        # A copy has no traceback, whose frames would keep responses in memory.
        self._errors[digest] = (count + 1, copy.copy(error))
        if len(self._errors) > _MAX_TRACKED_REPORTS:
            del self._errors[next(iter(self._errors))]

    def clear(self, request: object) -> None:
        """Forget the errors of the request's report, because a request for it succeeded."""
        if self._errors:
            self._errors.pop(_hash_key(self._report_key(request)), None)

    def report_stop_cause(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for the same report, or `None`."""
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
        self._source = _RequestReader(requests, operation.request_type, request_from_token)
        self._call = call
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._drains = DrainTracker() if drains is None else drains
        self._reading_timer: asyncio.TimerHandle | None = None
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._duplicates = None if allow_duplicates else _DuplicateFilter(operation.duplicate_key)
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
        self._report_errors = None if operation.report_key is None else _ReportErrors(operation.report_key)
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
            pause_too_long = isinstance(error, RateLimitError | WaitTooLongError) and error.exceeds_max_pause
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
