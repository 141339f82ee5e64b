"""The fan-out: one creation for each request, a bounded number at a time, and one outcome for every one.

It knows nothing of HTTP: it is given an awaitable that creates, and a permit goes with each call, by which
the call asks for leave before an attempt and tells when one surely came to nothing. So a batch that is left
knows of each request whether it can be dropped, or has to be waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeAlias, TypeVar

from attrs import define, evolve, field, frozen

from plaid_relay_async.errors import (
    BatchStoppedError,
    DuplicateRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    RateLimitError,
    concerns_everyone,
    ordinary,
)
from plaid_relay_async.models import RelayCreateRequest, RelayCreateResponse

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

# After so many errors that every partner would meet alike, and no success between, a batch stops.
SHARED_ERRORS: Final = 3


# -------------------------------------------------------------------------------------------- outcomes


@frozen(kw_only=True)
class Settled:
    """What all outcomes have.

    Attributes:
        request: what was asked for.
        attempts: how many HTTP requests were made.
        elapsed: seconds from taking up the request to its outcome, queueing included.
        request_id: Plaid's, where an answer had one.
        journalled: whether the journal holds this outcome.
    """

    request: RelayCreateRequest
    attempts: int
    elapsed: float
    request_id: str | None
    journalled: bool = False


@frozen(kw_only=True)
class Created(Settled):
    """Plaid made the relay token: `relay_token`, a bearer secret for the request's partner."""

    relay_token: str = field(repr=False)


@frozen(kw_only=True)
class Failed(Settled):
    """There is no relay token, for nothing was sent or Plaid refused: `error` says why."""

    error: PlaidRelayError


@frozen(kw_only=True)
class Unknown(Settled):
    """An attempt may have been carried out, and no answer tells: `error` has all that is known."""

    error: OutcomeUnknownError


Outcome: TypeAlias = Created | Failed | Unknown


@frozen(kw_only=True)
class Progress:
    """Where a batch stands: how many requests were taken up, and what became of them."""

    taken: int
    created: int
    failed: int
    unknown: int
    in_flight: int
    elapsed: float

    @property
    def done(self) -> int:
        """How many have an outcome."""
        return self.created + self.failed + self.unknown


@define(repr=False)
class BatchResult:
    """What became of a batch.

    The counts are of all outcomes. The lists hold them all when the batch was awaited; when it was streamed,
    they hold those that the loop was not handed.

    Attributes:
        created: the outcomes with a token.
        failed: those without.
        unknown: those of which nobody can tell.
        not_attempted: requests that were taken from the input, and of which nothing was sent.
        stopped_by: the error that stopped the batch before its end, if one did.
        counts: how many outcomes of each kind there were, by `"created"`, `"failed"`, `"unknown"`.
        error_codes: how many outcomes had which `error_code`, or which class of error where there is none.
        elapsed: seconds from start to end.
    """

    created: list[Created] = field(factory=list)
    failed: list[Failed] = field(factory=list)
    unknown: list[Unknown] = field(factory=list)
    not_attempted: list[RelayCreateRequest] = field(factory=list)
    stopped_by: BaseException | None = None
    counts: Counter[str] = field(factory=Counter)
    error_codes: Counter[str] = field(factory=Counter)
    elapsed: float = 0.0

    def __repr__(self) -> str:
        kinds = ("created", "failed", "unknown")
        told = ", ".join(f"{kind}={self.counts[kind]}" for kind in kinds)
        return f"<BatchResult {told}, not_attempted={len(self.not_attempted)}>"

    def raise_for_failures(self) -> None:
        """Raise an `ExceptionGroup` if any outcome of the batch is failed or unknown.

        Outcomes that a loop was handed are no longer held here; one error speaks for them. What wasn't
        attempted, for the batch was left, is no failure: see `not_attempted`.

        Raises:
            ExceptionGroup: with the error of each outcome in the lists.
        """
        bad = self.counts["failed"] + self.counts["unknown"]
        errors: list[PlaidRelayError] = [*(o.error for o in self.failed), *(o.error for o in self.unknown)]
        if bad > len(errors):
            codes = ", ".join(f"{code} {count}" for code, count in self.error_codes.most_common())
            handed = bad - len(errors)
            errors.append(PlaidRelayError(f"{handed} were handed to the loop; all: {codes}", sent=None))
        if errors:
            unknown = self.counts["unknown"]
            raise ExceptionGroup(f"{bad - unknown} failed, {unknown} unknown: {self!r}", errors)

    def count(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[type(outcome).__name__.lower()] += 1
        if not isinstance(outcome, Created):
            code = getattr(outcome.error, "error_code", None)
            self.error_codes[code or type(outcome.error).__name__] += 1

    def hold(self, outcome: Outcome) -> None:
        """Put a counted outcome into its list."""
        match outcome:
            case Created():
                self.created.append(outcome)
            case Failed():
                self.failed.append(outcome)
            case _:
                self.unknown.append(outcome)


class Journal(Protocol):
    """A durable record of creations. Each method returns once what it was told can't be lost."""

    async def begin(self, request: RelayCreateRequest) -> None:
        """An attempt is about to leave."""
        ...

    async def end(self, outcome: Outcome) -> None:
        """This is what became of the request."""
        ...


# ------------------------------------------------------------------------------------------- one flight


class _HaltedError(Exception):
    """The batch takes back its leave to send."""


@define(eq=False, repr=False)
class _Flight:
    """One request on its way, and the permit that goes with its call.

    Attributes:
        busy: it must be waited for, and not be dropped when the batch is left.
        perhaps_sent: an attempt may be under way at Plaid, or may have been carried out.
        last: the error of the last attempt.
        made: what a call that was cancelled had received all the same.
    """

    batch: Batch
    request: RelayCreateRequest
    started: float
    attempts: int = 0
    busy: bool = False
    perhaps_sent: bool = False
    last: PlaidRelayError | None = None
    made: RelayCreateResponse | None = None
    outcome: Outcome | None = None

    async def begin(self) -> None:
        self._check()
        self.busy = True
        if self.batch.journal is not None:
            await self._journal_begins(self.batch.journal)
        self.attempts += 1
        self.perhaps_sent = True

    async def _journal_begins(self, journal: Journal) -> None:
        try:
            await journal.begin(self.request)
        except BaseException as error:
            if not ordinary(error):
                raise
            self.batch.fail(error)  # without a record, nothing may leave
            raise _HaltedError from None

    def again(self, error: PlaidRelayError, *, spared: bool) -> None:
        self.last = error
        self.busy = False
        self.perhaps_sent = not spared
        self._check()

    def broken_off(self, known: RelayCreateResponse | PlaidRelayError) -> None:
        if not isinstance(known, PlaidRelayError):
            self.made = known
            return
        self.perhaps_sent = isinstance(known, OutcomeUnknownError)
        if isinstance(known, NotSentError):
            self.attempts -= 1
        else:
            self.last = known

    def _check(self) -> None:
        if self.batch.halted:
            raise _HaltedError

    def created(self, made: RelayCreateResponse) -> Created:
        return Created(
            request=self.request,
            relay_token=made.relay_token,
            attempts=self.attempts,
            elapsed=_now() - self.started,
            request_id=made.request_id,
        )

    def ended(self, error: PlaidRelayError) -> Failed | Unknown:
        facts = {
            "request": self.request,
            "attempts": self.attempts,
            "elapsed": _now() - self.started,
            "request_id": getattr(error, "request_id", None),
        }
        if isinstance(error, OutcomeUnknownError):
            return Unknown(error=error, **facts)  # type: ignore[arg-type]  # each has its place above
        return Failed(error=error, **facts)  # type: ignore[arg-type]  # the same

    def interrupted(self) -> Outcome | None:
        """What became of it when it was dropped: nothing, if no attempt had left."""
        if self.made is not None:
            return self.created(self.made)
        if self.perhaps_sent and not isinstance(self.last, OutcomeUnknownError):
            self.last = OutcomeUnknownError(
                "the batch was left before an answer came", attempts=self.attempts
            )
        return None if self.last is None else self.ended(self.last)


Create: TypeAlias = "Callable[[RelayCreateRequest, _Flight], Awaitable[RelayCreateResponse]]"
Requests: TypeAlias = "Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest]"


# -------------------------------------------------------------------------------------------- the input


class _Input:
    """Gives requests one by one, from either kind of iterable; `None` at the end."""

    def __init__(self, requests: Requests) -> None:
        self._lock = asyncio.Lock()
        self._later: AsyncIterator[RelayCreateRequest] | None = None
        self._now: Iterator[RelayCreateRequest] = iter(())
        if isinstance(requests, AsyncIterable):
            self._later = aiter(requests)
        else:
            self._now = iter(requests)

    async def take(self) -> RelayCreateRequest | None:
        try:
            if self._later is None:
                request = next(self._now)
            else:
                async with self._lock:
                    request = await anext(self._later)
        except (StopIteration, StopAsyncIteration):
            return None
        if not isinstance(request, RelayCreateRequest):
            raise TypeError(f"requests must hold RelayCreateRequest, not {type(request).__name__}")
        return request


class _Pairs:
    """Remembers pairs of report and partner, in some 100 bytes each and without holding a token."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def met(self, request: RelayCreateRequest) -> bool:
        words = (*sorted(request.report_tokens), request.secondary_client_id)
        # 15 bytes: with one more, each digest would take the next size of CPython's allocator.
        digest = hashlib.blake2b("\0".join(words).encode(), digest_size=15).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


# -------------------------------------------------------------------------------------------- the batch


class Batch:
    """A batch of creations: await it for a `BatchResult`, or stream its outcomes.

    .. code-block:: python

        result = await client.relay.create_many(requests)

        async with client.relay.create_many(requests) as outcomes:
            async for outcome in outcomes: ...
        outcomes.result  # what the loop did not see

    Leaving the stream early, or cancelling either form, stops new sends and waits for the calls in flight,
    for the drain time at most; what comes in then is in `result`. A second cancellation doesn't wait.
    """

    def __init__(
        self,
        requests: Requests,
        create: Create,
        *,
        concurrency: int,
        drain: float,
        journal: Journal | None = None,
        on_outcome: Callable[[Outcome], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
    ) -> None:
        self.journal: Final = journal
        self.result: Final = BatchResult()
        self.halted = False
        self._source = _Input(requests)
        self._create = create
        self._concurrency = concurrency
        self._drain = drain
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._pairs = None if allow_duplicates else _Pairs()
        self._unread: deque[Outcome] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(2 * concurrency)
        self._workers: dict[asyncio.Task[None], _Flight | None] = {}
        self._runner: asyncio.Task[None] | None = None
        self._streamed = False
        self._taken = 0
        self._started = 0.0
        self._shared_errors = 0
        self._trouble: BaseException | None = None

    # ------------------------------------------------------------------------------- the two ways of use

    def __await__(self) -> Generator[None, None, BatchResult]:
        """Run the batch to its end and give its result."""
        return self._collect().__await__()

    async def _collect(self) -> BatchResult:
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

    async def __anext__(self) -> Outcome:
        if not self._streamed or self._runner is None:
            raise RuntimeError("stream inside of `async with client.relay.create_many(...) as outcomes:`")
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
            raise RuntimeError("this batch was run before: call create_many again for another")
        self._streamed = streamed
        self._started = _now()
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._finished)
        return self._runner

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work())

    def _finished(self, runner: asyncio.Task[None]) -> None:
        if not runner.cancelled():
            self._trouble = self._trouble or runner.exception()
        self.result.elapsed = _now() - self._started
        self._news.set()

    async def _leave(self) -> None:
        """Stop sending and wait for what is in flight; when that takes too long, or is cut short, drop it."""
        runner = self._runner
        if runner is None or runner.done():
            return
        self.halt(None)
        try:
            await asyncio.wait([runner], timeout=self._drain)
        finally:
            runner.cancel()
            await _ended(runner)

    def halt(self, why: BaseException | None) -> None:
        """Send nothing more, and wake whoever waits with nothing in flight. For the batch's own flights."""
        self.result.stopped_by = self.result.stopped_by or why
        self.halted = True
        for worker, flight in self._workers.items():
            if worker is not asyncio.current_task() and (flight is None or not flight.busy):
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
                flight = self._workers[worker] = _Flight(self, request, _now())
                await self._settle(flight)
                self._workers[worker] = None
                if not isinstance(flight.outcome, Created):
                    await asyncio.sleep(0)  # what fails without waiting for anything must not hold the loop
        finally:
            del self._workers[worker]

    async def _take(self) -> RelayCreateRequest | None:
        await self._room.acquire()
        try:
            request = None if self.halted else await self._source.take()
        except BaseException as error:
            if not ordinary(error):
                raise
            self.fail(error)  # the caller's own: it is raised to the caller in the end
            request = None
        if request is None:
            self._room.release()
        else:
            self._taken += 1
        return request

    async def _settle(self, flight: _Flight) -> None:
        if self._pairs is not None and self._pairs.met(flight.request):
            flight.outcome = flight.ended(
                DuplicateRequestError("this pair of report and partner came before")
            )
            self._deliver(flight.outcome)
            return
        try:
            await self._fly(flight)
            await self._record(flight)
        finally:
            if flight.outcome is None:
                self.result.not_attempted.append(flight.request)
            else:
                self._deliver(flight.outcome)

    async def _fly(self, flight: _Flight) -> None:
        try:
            flight.outcome = flight.created(await self._create(flight.request, flight))
        except _HaltedError:
            flight.outcome = flight.interrupted()
        except PlaidRelayError as error:
            flight.outcome = flight.ended(error)
        except BaseException as error:
            if not ordinary(error):
                flight.outcome = flight.interrupted()
                raise
            # A bug, of whoever: nobody can tell what became of the call.
            flight.outcome = flight.ended(_unforeseen(error))

    async def _record(self, flight: _Flight) -> None:
        if self.journal is None or flight.outcome is None:
            return
        flight.busy = True
        try:
            await self.journal.end(flight.outcome)
        except BaseException as error:
            if not ordinary(error):
                raise
            self.fail(error)  # the outcome is handed on all the same
        else:
            flight.outcome = evolve(flight.outcome, journalled=True)

    def _deliver(self, outcome: Outcome) -> None:
        self.result.count(outcome)
        if self._streamed:
            self._unread.append(outcome)
            self._news.set()
        else:
            self.result.hold(outcome)
            self._room.release()
        self._weigh(outcome)
        if self._on_outcome is not None:
            self._tell(self._on_outcome, outcome)
        if self._on_progress is not None:
            self._tell(self._on_progress, self.progress)

    def _weigh(self, outcome: Outcome) -> None:
        """Stop where going on would only give every partner the same error."""
        if isinstance(outcome, Created):
            self._shared_errors = 0
            return
        self._shared_errors += concerns_everyone(outcome.error)
        gave_up = isinstance(outcome.error, RateLimitError) and outcome.error.gave_up_waiting
        if gave_up or self._shared_errors >= SHARED_ERRORS:
            self.halt(outcome.error)

    def _tell(self, callback: Callable[[T], object], news: T) -> None:
        try:
            callback(news)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # raised to the caller in the end
            self.fail(error)

    @property
    def progress(self) -> Progress:
        """Where the batch stands now."""
        counts, left = self.result.counts, len(self.result.not_attempted)
        created, failed, unknown = counts["created"], counts["failed"], counts["unknown"]
        return Progress(
            taken=self._taken,
            created=created,
            failed=failed,
            unknown=unknown,
            in_flight=self._taken - created - failed - unknown - left,
            elapsed=_now() - self._started,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _unforeseen(error: BaseException) -> OutcomeUnknownError:
    unknown = OutcomeUnknownError(f"{type(error).__name__} was raised in the middle of the call", sent=None)
    unknown.__cause__ = error
    return unknown


async def _ended(runner: asyncio.Task[None]) -> None:
    """Wait for a cancelled task; further cancellations of the waiter are kept until it has ended."""
    again: asyncio.CancelledError | None = None
    while not runner.done():
        try:
            await asyncio.wait([runner])
        except asyncio.CancelledError as error:
            again = error
    if again is not None:
        raise again
