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

from plaid_relay_async.cancellation import Drains, ended
from plaid_relay_async.errors import (
    BatchStoppedError,
    ConnectionLostError,
    DuplicateRequestError,
    Ending,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    RateLimitError,
    RequestValidationError,
    ResponseDecodeError,
    concerns_everyone,
    concerns_report,
    ending_of,
    ordinary,
    sealed,
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
SHARED_ERRORS: Final = 3
_REPORTS: Final = 256  # whose errors are counted at the same time

Requests: TypeAlias = Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest]
Tokens: TypeAlias = Iterable[str | Q] | AsyncIterable[str | Q]


# --------------------------------------------------------------------------------------- the operations


@frozen
class Operation:
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

    request: type[Any]
    success: Callable[..., Any]
    same: Callable[[Any], tuple[str, ...]] = lambda request: (request.relay_token,)
    duplicate: str = "this relay token came before"
    report: Callable[[Any], tuple[str, ...]] | None = None
    reads: bool = False
    advice: str = OutcomeUnknownError.advice

    def outcome(self, request: object, known: Any, *, attempts: int, elapsed: float) -> Any:
        """Return the outcome of a call from its response or error."""
        error = self.verdict(known) if isinstance(known, PlaidRelayError) else None
        facts: dict[str, Any] = {
            "request": request,
            "attempts": attempts,
            "elapsed": elapsed,
            "request_id": getattr(known if error is None else error, "request_id", None),
        }
        if error is None:
            return self.success(response=known, **facts)
        if isinstance(error, OutcomeUnknownError):
            return Unknown(error=error, **facts)
        return Failed(error=error, **facts)

    def dropped(self, attempts: int) -> PlaidRelayError:
        """Give the error of a call that was given up in the middle of an attempt, without a word of it."""
        return self._open("the batch was left before an answer came", attempts=attempts)

    def unforeseen(self, error: BaseException) -> PlaidRelayError:
        """Give the error of a call that ended in a bug, of whoever."""
        told = self._open(f"{type(error).__name__} was raised in the middle of the call", sent=None)
        told.__cause__ = error
        return told

    def verdict(self, error: PlaidRelayError) -> PlaidRelayError:
        """Turn an error that leaves open whether the call was carried out into one that says so."""
        # A success that can't be read is one all the same.
        left_open = ending_of(error) is Ending.UNKNOWN or isinstance(error, ResponseDecodeError)
        if self.reads or not left_open or isinstance(error, OutcomeUnknownError):
            return error
        facts = {name: fact for name, fact in vars(error).items() if hasattr(OutcomeUnknownError, name)}
        unknown = self._open(str(error.args[0]), **facts)
        unknown.__cause__ = error
        return unknown

    def _open(self, message: str, **facts: Any) -> PlaidRelayError:
        if self.reads:
            return ConnectionLostError(message, **facts)
        return OutcomeUnknownError(message, **facts | {"advice": self.advice})


def _created(*, response: Any, **facts: Any) -> Created:
    return Created(relay_token=response.relay_token, **facts)


def _removed(*, response: Any, **facts: Any) -> Removed | Failed:
    if response.removed:
        return Removed(response=response, **facts)
    said = {"status": 200, "request_id": response.request_id, "attempts": facts["attempts"]}
    error = PlaidAPIError("Plaid answered that it didn't remove the relay token", **said)
    error.advice = "The token still opens the report: remove it again, or ask Plaid's support."
    return Failed(error=error, **facts)


def _report(request: RelayCreateRequest) -> tuple[str, ...]:
    return tuple(sorted(request.report_tokens))


def _report_and_partner(request: RelayCreateRequest) -> tuple[str, ...]:
    return (*_report(request), request.secondary_client_id)


CREATE: Final = Operation(
    RelayCreateRequest, _created, _report_and_partner, "this pair of report and partner came before", _report
)
GET: Final = Operation(RelayGetRequest, Fetched, reads=True)
GET_PDF: Final = Operation(RelayPdfGetRequest, Fetched, reads=True)
REFRESH: Final = Operation(RelayRefreshRequest, Refreshed)
REMOVE: Final = Operation(
    RelayRemoveRequest,
    _removed,
    advice="It may have been removed. Remove it again, which is safe: told that there is none, it is gone.",
)


@frozen(eq=False, repr=False)
class Caller:
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
    client_id: Callable[[], Awaitable[str | None]]
    seconds: float | None
    former_host: str | None = None
    retry_unknown: bool | None = None
    retry_failed: bool | None = None


async def _no_client_id() -> None:
    """Stand in for a client id where there is no journal to ask for it."""


NOBODY: Final = Caller("", _no_client_id, None)


class TakenError(Exception):
    """Somebody else has begun the same in the meantime: enter it anew."""


class Entry(Protocol):
    """One call in a journal."""

    @property
    def known(self) -> Any:
        """The outcome, if the journal has it already; nothing is sent then."""
        ...

    @property
    def doubt(self) -> OutcomeUnknownError | None:
        """The error of an earlier attempt of it, if one was begun of which nobody knows the end."""
        ...

    @property
    def kept(self) -> bool:
        """Whether what becomes of it is written down."""
        ...

    async def begin(self) -> None:
        """An attempt is about to leave. Returns once that can't be lost; may raise `TakenError`."""
        ...

    def end(self, outcome: Any) -> Awaitable[object]:
        """Record the outcome, or with `None` that the request is not attempted; it is durable once awaited.

        With `None` the awaitable may raise `TakenError`.
        """
        ...

    def leave(self) -> None:
        """The call is over, with or without an outcome."""
        ...


class AnyJournal(Protocol):
    """A durable record of creations and removals; `plaid_relay_async.journal.Journal` is one."""

    async def enter(self, request: Any, caller: Caller) -> Entry:
        """A request was taken up. May wait while somebody else is at the same."""
        ...


# ------------------------------------------------------------------------------------------- one flight


class _HaltedError(Exception):
    """The request must not be sent: the batch, or its report, is stopped."""


@define(eq=False, repr=False)
class _Flight(Generic[S]):
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
    started: float
    attempts: int = 0
    busy: bool = False
    begun: bool = False
    last: PlaidRelayError | None = None
    doubt: PlaidRelayError | None = None
    made: Any = None
    patient: bool = True
    entry: Entry | None = None
    taken: bool = False
    stopped: bool = False
    outcome: S | Failed | Unknown | None = None

    @property
    def to_record(self) -> S | Failed | Unknown | None:
        """The outcome for the journal: `None` if the request stays unattempted, for its report is stopped."""
        return None if self.stopped and self.doubt is None else self.outcome

    @property
    def doubted(self) -> bool:
        return self._left_open() is not None

    def _left_open(self) -> PlaidRelayError | None:
        return self.doubt or (None if self.entry is None else self.entry.doubt)

    async def begin(self) -> None:
        self.check()
        self.busy = True
        if self.entry is not None:
            await self._journal_begins(self.entry)
        self.attempts += 1
        self.begun = True

    async def _journal_begins(self, entry: Entry) -> None:
        try:
            await entry.begin()
        except TakenError:
            self.busy, self.taken = False, True
            raise
        except BaseException as error:
            if not ordinary(error):
                raise
            self.batch.fail(error)  # without a record, nothing may leave
            raise _HaltedError from None

    def again(self, error: PlaidRelayError, *, spared: bool) -> None:
        self._attempt_ended(error)
        if not spared and ending_of(error) is Ending.UNKNOWN:
            self.doubt = error
        self.check()

    def broken_off(self, known: Any) -> None:
        if not isinstance(known, PlaidRelayError):
            self.made = known
        elif isinstance(known, NotSentError):
            self.attempts -= 1
            self._attempt_ended(self.last)
        else:
            self._attempt_ended(known)

    def _attempt_ended(self, error: PlaidRelayError | None) -> None:
        self.last = error
        self.busy = self.begun = False

    def check(self) -> None:
        """Raise `_HaltedError` if nothing may be sent for the request."""
        if self.batch.halted:
            raise _HaltedError
        cause = self.batch.stopped_report(self.request)
        if cause is not None:
            self.stopped, self.last = True, _not_sent_because_of(cause, self.attempts)
            raise _HaltedError

    def succeeded(self, response: Any) -> S:
        outcome: S = self._outcome(response)
        return outcome

    def ended(self, error: PlaidRelayError) -> Failed | Unknown:
        """What an error makes of it; an attempt that may have been carried out outweighs what came later."""
        self.last = error
        doubt = self._left_open()
        if doubt is not None and ending_of(error) is not Ending.UNKNOWN:
            doubt.__cause__ = doubt.__cause__ or error
            doubt.attempts = self.attempts
            error = doubt
        outcome: Failed | Unknown = self._outcome(error)
        return outcome

    def _outcome(self, known: Any) -> Any:
        elapsed = self.batch.now() - self.started
        operation = self.batch.operation
        return operation.outcome(self.request, known, attempts=self.attempts, elapsed=elapsed)

    def interrupted(self) -> S | Failed | Unknown | None:
        """What became of it when it was dropped: nothing, if no attempt had left."""
        if self.made is not None:
            return self.succeeded(self.made)
        if self.begun:
            self.last = self.batch.operation.dropped(self.attempts)
        return None if self.last is None else self.ended(self.last)


def _not_sent_because_of(cause: PlaidRelayError, attempts: int) -> PlaidRelayError:
    """Return the error of a request that isn't sent, because others for its report ended with `cause`."""
    error = copy.copy(cause)
    error.args = (f"not sent after {SHARED_ERRORS} errors of the same report: {cause.args[0]}",)
    error.sent, error.attempts = attempts > 0, attempts
    vars(error).pop("request_id", None)  # of another request
    return error


Call: TypeAlias = "Callable[[Any, _Flight[S]], Awaitable[Any]]"


# -------------------------------------------------------------------------------------------- the input


class _Input:
    """Gives requests one by one, from either kind of iterable; `None` at the end.

    Attributes:
        reader: the task that waits for an async iterable. Cancelling it would close an async generator.
    """

    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        record: type[Any],
        make: Callable[[Any], Any] | None,
    ) -> None:
        self._record = record
        self._make = make
        self._name = "requests" if make is None else "relay_tokens"
        self._taken = 0
        self._lock = asyncio.Lock()
        self._later: AsyncIterator[Any] | None = None
        self.reader: asyncio.Task[Any] | None = None
        self._now: Iterator[Any] = iter(())
        if isinstance(source, str | bytes):
            raise RequestValidationError.of(self._name, "must be an iterable, not one string: write [it]")
        if isinstance(source, AsyncIterable):
            self._later = aiter(source)
        else:
            self._now = iter(source)

    async def take(self) -> Any:
        try:
            if self._later is None:
                return self._read(next(self._now))
            async with self._lock:
                self.reader = asyncio.current_task()
                try:
                    return self._read(await anext(self._later))
                finally:
                    self.reader = None
        except (StopIteration, StopAsyncIteration):
            return None

    @sealed
    def _read(self, item: Any) -> Any:
        place = f"{self._name}[{self._taken}]"
        self._taken += 1
        if isinstance(item, self._record):
            return item
        if self._make is None:
            wrong = f"must be a {self._record.__name__}, not {type(item).__name__}"
            raise RequestValidationError.of(place, wrong)
        try:
            return self._make(item)
        except RequestValidationError as error:
            wrong = error.problem
        raise RequestValidationError.of(place, wrong)


class _Met:
    """Remembers what makes requests the same, in some 100 bytes each and without holding a token."""

    def __init__(self, same: Callable[[Any], tuple[str, ...]]) -> None:
        self._same = same
        self._seen: set[bytes] = set()

    def before(self, request: object) -> bool:
        digest = _digest(self._same(request))
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _digest(words: tuple[str, ...]) -> bytes:
    # 15 bytes: with one more, each digest would take the next size of CPython's allocator.
    return hashlib.blake2b("\0".join(words).encode(), digest_size=15).digest()


class _Reports:
    """Counts the errors of each report, for the reports that had one last, and without holding a token."""

    def __init__(self, report: Callable[[Any], tuple[str, ...]]) -> None:
        self._report = report
        self._errors: dict[bytes, tuple[int, PlaidRelayError]] = {}

    def count(self, request: object, error: PlaidRelayError) -> None:
        """Count an error of the request's report."""
        digest = _digest(self._report(request))
        count, _ = self._errors.pop(digest, (0, error))
        # A copy has no traceback, which would hold on to responses.
        self._errors[digest] = (count + 1, copy.copy(error))
        if len(self._errors) > _REPORTS:
            del self._errors[next(iter(self._errors))]

    def clear(self, request: object) -> None:
        """Forget the errors of the request's report, because a request for it succeeded."""
        if self._errors:
            self._errors.pop(_digest(self._report(request)), None)

    def stopped(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for this one's report, or `None`."""
        if not self._errors:
            return None
        count, error = self._errors.get(_digest(self._report(request)), (0, None))
        return error if count >= SHARED_ERRORS else None


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
        operation: Operation,
        requests: Iterable[Any] | AsyncIterable[Any],
        call: Call[S],
        *,
        concurrency: int,
        drain: float,
        drains: Drains | None = None,
        make: Callable[[Any], Any] | None = None,
        journal: AnyJournal | None = None,
        caller: Caller = NOBODY,
        patient: bool = True,
        on_outcome: Callable[[S | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
    ) -> None:
        self.operation: Final = operation
        self.patient: Final = patient
        self.result: Final[BatchResult[S]] = BatchResult()
        self.halted = False
        self._journal = journal
        self._caller = caller
        self._unwatched: set[asyncio.Future[object]] = set()
        self._source = _Input(requests, operation.request, make)
        self._call = call
        self._concurrency = concurrency
        self._drain = drain
        self._drains = Drains() if drains is None else drains
        self._last_read: asyncio.TimerHandle | None = None
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._met = None if allow_duplicates else _Met(operation.same)
        self._unread: deque[S | Failed | Unknown] = deque()
        self._news = asyncio.Event()
        # For what is in flight and what is unread, together. A report may take up megabytes.
        self._room = asyncio.Semaphore(concurrency if operation.reads else 2 * concurrency)
        self._workers: dict[asyncio.Task[None], _Flight[S] | None] = {}
        self._runner: asyncio.Task[None] | None = None
        self._streamed = False
        self._taken = 0
        self.now: Callable[[], float] = float  # before it starts, no time goes by
        self._started = 0.0
        self._shared_errors = 0
        self._reports = None if operation.report is None else _Reports(operation.report)
        self._trouble: BaseException | None = None

    # ------------------------------------------------------------------------------- the two ways of use

    def __await__(self) -> Generator[None, None, BatchResult[S]]:
        """Run the batch to its end and give its result."""
        return self._collect().__await__()

    async def _collect(self) -> BatchResult[S]:
        runner = self._start(streamed=False)
        try:
            await asyncio.wait([runner])
        finally:
            await self._leave()
        self._raise_trouble()
        return self.result

    async def __aenter__(self) -> Self:
        self._start(streamed=True)
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            await self._leave()
        finally:
            self._streamed = False
            while self._unread:
                self.result.hold(self._unread.popleft())
        if error is None:
            self._raise_trouble()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> S | Failed | Unknown:
        if not self._streamed or self._runner is None:
            raise RuntimeError("stream inside of `async with ... as outcomes:`")
        while not self._unread:
            if self._runner.done():
                self._raise_trouble()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._room.release()
        return self._unread.popleft()

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
        self._started = self.now()
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._finished)
        return self._runner

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work())
        finally:
            # A callback of this task would be too late for a loop that reads on as the task ends.
            self.result.elapsed = self.now() - self._started

    def _finished(self, runner: asyncio.Task[None]) -> None:
        if self._last_read is not None:
            self._last_read.cancel()
        if not runner.cancelled():
            self._trouble = self._trouble or runner.exception()
        self._news.set()

    async def _leave(self) -> None:
        """Stop sending, and wait for what is in flight until the drain is over or abandoned."""
        runner = self._runner
        if runner is None or runner.done():
            return
        self.halt(None)
        end = asyncio.get_running_loop().call_later(self._drain, self.abandon)
        try:
            with self._drains.one():
                await ended(runner)
        finally:
            end.cancel()

    def abandon(self) -> None:
        """Stop the batch without waiting for the calls in flight: their outcome is unknown.

        This ends a drain early, for example when a person interrupts a program for the second time. Await
        the batch, or leave its `async with` block, as usual; that doesn't take long any more. Call this in
        the event loop of the batch. It may be called at any time and more than once; a batch that wasn't
        started yet sends nothing.
        """
        self.halt(None)
        if self._runner is not None:
            self._runner.cancel()

    def halt(self, why: BaseException | None) -> None:
        """Send nothing more, and cancel the workers that have nothing in flight. For the batch's own flights.

        A worker that waits for the input is in flight as well, for the drain time: cancelling it would close
        an async generator, and the rest of the input would be lost.
        """
        self.result.stopped_by = self.result.stopped_by or why
        self.halted = True
        for worker, flight in self._workers.items():
            if worker is self._source.reader:
                self._last_read = self._last_read or worker.get_loop().call_later(self._drain, worker.cancel)
            elif worker is not asyncio.current_task() and (flight is None or not flight.busy):
                worker.cancel()

    def fail(self, trouble: BaseException) -> None:
        """Stop because of an error that isn't a request's: it is raised once all is in."""
        self._trouble = self._trouble or trouble
        self.halt(trouble)

    def _raise_trouble(self) -> None:
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            where = "its input, its journal or a callback"
            raise BatchStoppedError(
                f"the batch broke off, for {where} raised {type(trouble).__name__}", result=self.result
            ) from trouble

    # ---------------------------------------------------------------------------------------- the workers

    async def _work(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None  # noqa: S101  # a coroutine of a TaskGroup runs in a task
        self._workers[worker] = None
        try:
            while (request := await self._take()) is not None:
                if self.halted:  # while this worker waited for the input
                    self.result.not_attempted.append(request)
                    break
                if not await self._serve(worker, request):
                    await asyncio.sleep(0)  # what fails without waiting for anything must not hold the loop
        finally:
            del self._workers[worker]

    async def _take(self) -> Any:
        if self.halted:
            return None  # and doesn't wait for room: nobody may read any more
        await self._room.acquire()
        try:
            request = await self._source.take()
        except BaseException as error:
            if not ordinary(error):
                raise
            self.fail(error)  # the caller's own: it is raised to the caller in the end
            request = None
        if request is None:
            self._room.release()
            return None
        self._taken += 1
        return request

    async def _serve(self, worker: asyncio.Task[None], request: object) -> bool:
        """See to one request, and tell whether its call did what it was for."""
        # The flight's name ends with this frame: a worker that waits for its next request keeps no report.
        flight = self._workers[worker] = _Flight(self, request, self.now(), patient=self.patient)
        await self._settle(flight)
        self._workers[worker] = None
        return not isinstance(flight.outcome, Failed | Unknown | None)

    async def _settle(self, flight: _Flight[S]) -> None:
        if self._met is not None and self._met.before(flight.request):
            flight.outcome = flight.ended(DuplicateRequestError(self.operation.duplicate))
            self._deliver(flight.outcome, flight.last)
            return
        try:
            if self._journal is None:
                await self._fly(flight)
            else:
                await self._fly_on_record(flight, self._journal)
        finally:
            if flight.outcome is None:
                self.result.not_attempted.append(flight.request)
            else:
                self._deliver(flight.outcome, None if flight.stopped else flight.last)

    async def _fly(self, flight: _Flight[S]) -> None:
        try:
            flight.check()
            flight.outcome = flight.succeeded(await self._call(flight.request, flight))
        except _HaltedError:
            flight.outcome = flight.interrupted()
        except TakenError:
            # If an earlier attempt may have been executed, that is recorded before the pair is entered again.
            flight.outcome = None if flight.doubt is None else flight.ended(flight.doubt)
        except PlaidRelayError as error:
            flight.outcome = flight.ended(error)
        except BaseException as error:
            if not ordinary(error):
                flight.outcome = flight.interrupted()
                raise
            flight.outcome = flight.ended(self.operation.unforeseen(error))

    async def _fly_on_record(self, flight: _Flight[S], journal: AnyJournal) -> None:
        while (entry := await self._enter(flight, journal)) is not None:
            flight.entry, flight.taken = entry, False
            try:
                if entry.known is not None:
                    flight.outcome = evolve(entry.known, elapsed=self.now() - flight.started)
                else:
                    await self._fly_entered(flight, entry)
            finally:
                entry.leave()
            if not flight.taken:
                return
            flight.busy = False

    async def _fly_entered(self, flight: _Flight[S], entry: Entry) -> None:
        try:
            await self._fly(flight)
        except BaseException:
            if flight.to_record is not None:  # no task waits here any more, but it must not be lost
                self._meanwhile(entry.end(flight.to_record))
            raise
        if flight.outcome is not None:
            await self._record(flight, entry)

    async def _enter(self, flight: _Flight[S], journal: AnyJournal) -> Entry | None:
        try:
            return await journal.enter(flight.request, self._caller)
        except NotSentError as error:  # the source of the credentials has none
            flight.outcome = flight.ended(error)
        except BaseException as error:
            if not ordinary(error):
                raise
            self.fail(error)
        return None

    async def _record(self, flight: _Flight[S], entry: Entry) -> None:
        flight.busy = True
        outcome = flight.to_record
        try:
            await entry.end(outcome)
        except TakenError:
            flight.taken, flight.stopped, flight.last, flight.outcome = True, False, None, None
        except BaseException as error:
            if not ordinary(error):
                raise
            self.fail(error)  # the outcome is handed on all the same
        else:
            if outcome is not None:
                flight.outcome = evolve(outcome, journalled=entry.kept)

    def _meanwhile(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._unwatched.add(task)
        task.add_done_callback(self._unwatched.discard)

    def _deliver(self, outcome: S | Failed | Unknown, met: PlaidRelayError | None) -> None:
        self.result.count(outcome)
        if self._streamed:
            self._unread.append(outcome)
            self._news.set()
        else:
            self.result.hold(outcome)
            self._room.release()
        self._weigh(outcome, met)
        if self._on_outcome is not None:
            self._tell(self._on_outcome, outcome)
        if self._on_progress is not None:
            self._tell(self._on_progress, self.progress)

    def _weigh(self, outcome: S | Failed | Unknown, met: PlaidRelayError | None) -> None:
        """Stop the batch, or the requests for a report, if all others would only meet the same error."""
        if not isinstance(outcome, Failed | Unknown):
            if outcome.attempts:  # one that the journal knows shows nothing of today's requests
                self._shared_errors = 0
                if self._reports is not None:
                    self._reports.clear(outcome.request)
        elif met is not None:
            if self._reports is not None and concerns_report(met):
                self._reports.count(outcome.request, met)
            self._shared_errors += concerns_everyone(met)
            gave_up = isinstance(met, RateLimitError) and met.gave_up_waiting
            if gave_up or self._shared_errors >= SHARED_ERRORS:
                self.halt(met)

    def stopped_report(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for this one's report, or `None`."""
        return None if self._reports is None else self._reports.stopped(request)

    def _tell(self, callback: Callable[[T], object], news: T) -> None:
        try:
            callback(news)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # raised to the caller in the end
            self.fail(error)

    @property
    def progress(self) -> Progress:
        """Where the batch stands now."""
        counts, left = self.result.counts, len(self.result.not_attempted)
        done, failed, unknown = counts.total(), counts["failed"], counts["unknown"]
        return Progress(
            taken=self._taken,
            succeeded=done - failed - unknown,
            failed=failed,
            unknown=unknown,
            in_flight=self._taken - done - left,
            elapsed=self.now() - self._started,
        )
