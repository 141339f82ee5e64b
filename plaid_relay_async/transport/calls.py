"""From a call to its attempts: queueing, the wire, and whether to try again.

This is the one module that knows backoff.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar
from urllib.parse import urlsplit

import backoff
from attrs import frozen
from yarl import URL

from plaid_relay_async import codec
from plaid_relay_async.codec import Answer, Endpoint, Replay
from plaid_relay_async.config import (
    PLAID_VERSION,
    USER_AGENT,
    RetryPolicy,
    check_count,
    check_type,
    normal_host,
)
from plaid_relay_async.errors import (
    ConfigurationError,
    Ending,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    ReadTimeoutError,
    ending_of,
    reason_of,
)
from plaid_relay_async.transport import wire
from plaid_relay_async.transport.draining import Draining
from plaid_relay_async.transport.queue import Call, Queue
from plaid_relay_async.transport.statistics import Statistics, Tally

if TYPE_CHECKING:
    from collections.abc import Generator

    from plaid_relay_async.cancellation import Drains
    from plaid_relay_async.config import Timeouts
    from plaid_relay_async.exchange import Exchange
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.transport.protocols import Permit, RateLimiter, Sink
    from plaid_relay_async.transport.signing import Signature, Signer

R = TypeVar("R")

# From so many bytes on a report is read in a thread: a megabyte would hold the event loop for some 20 ms.
_LARGE = 256 * 1024
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
_HEADERS = {"Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}


@frozen(kw_only=True)
class Retry:
    """An attempt ended, and another one is planned. It holds no secret and no token.

    Attributes:
        operation: such as `/credit/relay/create`.
        attempts: how many were made so far.
        reason: Plaid's `error_code`, or the class of the error.
        status: of the answer, where there was one.
        request_id: Plaid's, where the answer had one.
        wait: seconds until the next attempt at the earliest.
    """

    operation: str
    attempts: int
    reason: str
    status: int | None
    request_id: str | None
    wait: float


OnRetry: TypeAlias = Callable[[Retry], object]


class _Again(Exception):  # noqa: N818  # not an error: it tells backoff how long to wait
    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


def _as_told() -> Generator[float, Any, None]:
    again: _Again = yield 0.0
    while True:
        again = yield again.wait


class Transport:
    """Makes calls: one method, `call`, for all operations."""

    def __init__(
        self,
        session: SessionManager,
        *,
        base_url: str,
        signer: Signer,
        timeouts: Timeouts,
        retry: RetryPolicy,
        rate_limiter: RateLimiter | None = None,
        drains: Drains,
        on_late: Callable[..., object],
        on_retry: OnRetry | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        check_count("max_response_bytes", max_response_bytes)
        _check_callables(on_retry, rate_limiter)
        self._session = session
        self._base_url = base_url
        self._timeouts = timeouts
        self._retry = retry
        self._limiter = rate_limiter
        self.drains: Final = drains
        self._on_late = on_late
        self._on_retry = on_retry
        self._most = max_response_bytes
        self._tally = Tally()
        self._queue = Queue(session, signer, rate_limiter, self._tally)

    async def call(
        self,
        endpoint: Endpoint[Any, R],
        request: object,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
        retry: RetryPolicy | None = None,
        permit: Permit | None = None,
        into: Sink | None = None,
    ) -> R:
        """Make the call, with as many attempts as the policy and safety allow.

        Args:
            endpoint: the operation.
            request: its record.
            timeout: seconds for the whole call, in place of the client's `Timeouts.total`.
            retry: in place of the client's policy.
            permit: a batch's; with a patient one, the server's pauses count against neither time nor
                attempts.
            into: where a success's body goes as it arrives; its record then knows its two ends alone.

        Raises:
            PlaidRelayError: see `plaid_relay_async.errors`; `attempts` says how many were made.
            CancelledError: the task was cancelled. Without a permit, and unless it is a read, an attempt that
                has left is waited for first, and `on_late` receives the outcome.
        """
        self._session.check()
        total, policy = self.checked(timeout, retry)
        now = self._session.now
        started = now()
        deadline = None if total is None else started + total
        spare = self._spare(endpoint, total)
        outcome = "cancelled"
        call = Call(endpoint, request, policy, now, permit, into, deadline, spare)
        try:
            response = await self._attempts(call)
            outcome = "succeeded"
            if call.interruption is None:
                return response
            call.known = response
        except PlaidRelayError as error:
            lost = ending_of(error) is Ending.UNKNOWN and endpoint.replay is not Replay.HARMLESS
            outcome = "unknown" if lost else "failed"
            if call.interruption is None:
                raise
            call.known = error
        except asyncio.CancelledError as error:
            call.interruption = call.interruption or error
        finally:
            self._tally.outcomes[outcome] += 1
        return self._raise_interruption(call, started)

    def _raise_interruption(self, call: Call[Any], started: float) -> NoReturn:
        known, call.known = call.known, None
        interruption, call.interruption = call.interruption, None
        assert interruption is not None  # noqa: S101  # the caller checks that
        try:
            if call.sent and call.permit is None and call.endpoint.replay is not Replay.HARMLESS:
                elapsed = call.now() - started
                self._on_late(call.endpoint, call.request, known, attempts=call.attempts, elapsed=elapsed)
            raise interruption
        finally:
            del known, interruption  # their tracebacks hold this frame, so they would form a reference cycle

    def _spare(self, endpoint: Endpoint[Any, Any], total: float | None) -> float:
        # A creation that leaves when its time is nearly up is unknown for nothing: it had better not leave.
        if total is None or endpoint.replay is not Replay.CREATES:
            return 0.0
        return min(total / 2, self._timeouts.slow_read if endpoint.slow else self._timeouts.read)

    def checked(self, timeout: float | None, retry: RetryPolicy | None) -> tuple[float | None, RetryPolicy]:
        """Give a call's own settings, or the client's in their place.

        Raises:
            ConfigurationError: one of them isn't what it should be.
        """
        policy = self._retry if retry is None else retry
        check_type("retry", policy, RetryPolicy)
        return self._timeouts.within(timeout).total, policy

    async def client_id(self, timeout: float | None) -> str | None:  # noqa: ASYNC109  # as in `call`
        """Return the client id, or `None` where a gateway has it.

        Raises:
            NotSentError: the source of the credentials raised, or took longer than the timeout in seconds.
            ConfigurationError: the source returned something else.
        """
        deadline = None if timeout is None else self._session.now() + timeout
        async with self._queue.while_open():
            return await self._queue.signer.client_id(deadline)

    @property
    def host(self) -> str:
        """The host that calls go to, with its port unless it is the default one, in its normal spelling."""
        url = URL(self._base_url)
        normal = URL.build(scheme=url.scheme, host=normal_host(url.raw_host or ""), port=url.explicit_port)
        return normal.host_port_subcomponent or self.host_as_typed

    @property
    def host_as_typed(self) -> str:
        """The same as it stands in the base URL."""
        return urlsplit(self._base_url).netloc

    def wake(self) -> None:
        """End the waits of calls, since the session is closed."""
        self._queue.wake()

    async def sleep(self, seconds: float) -> None:
        """Wait between two calls.

        Raises:
            ClientClosedError: the client is closed.
        """
        async with self._queue.while_open():
            await asyncio.sleep(seconds)

    def statistics(self) -> Statistics:
        """Give what was done so far, and where things stand."""
        rates = {path: pace.rate.a_second for path, pace in self._queue.paces.items()}
        known = {path: rate for path, rate in rates.items() if math.isfinite(rate)}
        return self._tally.snapshot(connections=self._session.connections, rates=known)

    # --------------------------------------------------------------------------------- one attempt

    async def _attempts(self, call: Call[R]) -> R:
        try:
            return await self._attempt(call)
        except _Again as again:
            waits = [again]
        async with self._queue.while_open() as call.sleep:
            return await self._repeat(call, waits)

    @backoff.on_exception(_as_told, _Again, jitter=None, logger=None)
    async def _repeat(self, call: Call[R], waits: list[_Again]) -> R:
        # Most calls need one attempt, and never come here: by backoff each would take a twentieth longer.
        if waits:
            raise waits.pop()
        return await self._attempt(call)

    async def _attempt(self, call: Call[R]) -> R:
        call.tries += 1
        if call.sleep is not None:  # what follows isn't ended by closing the client
            self._queue.waits.discard(call.sleep)
            call.sleep.reschedule(None)
        before = call.attempts
        try:
            signature = await self._queue.enter(call)
            try:
                if call.permit is not None:
                    latest = math.inf if call.latest is None else call.latest
                    in_time = call.now() < latest
                    await call.permit.begin()
                    if in_time and call.now() >= latest:
                        raise NotSentError(
                            "the journal took so long that too little time was left for a response"
                        )
                answer = await self._send(call, signature)
            finally:
                self._queue.leave(call)
            read = partial(codec.read, call.endpoint, answer, call.request, signature.secret)
            # A creation's token must not get lost on the way to a thread and back, and its answer is short.
            reads_long = len(answer.body) >= _LARGE and call.endpoint.replay is Replay.HARMLESS
            response = await _in_a_thread(read, call.deadline) if reads_long else read()
        except PlaidRelayError as error:
            failure = error
        except BaseException:
            if call.attempts > before:
                self._tally.attempts["cancelled"] += 1
            raise
        else:
            self._note(call, Ending.ANSWERED)
            return response
        if call.attempts == before:
            return self._conclude(call, failure, Ending.NOT_SENT)
        self._note(call, ending_of(failure))
        return self._conclude(call, failure, ending_of(failure))

    def _note(self, call: Call[Any], ending: Ending) -> None:
        self._tally.attempts[ending.value] += 1
        call.sent |= ending is not Ending.NOT_SENT
        if ending is Ending.ANSWERED:
            self._queue.pace(call).passed(call.now(), call.turn)

    async def _send(self, call: Call[Any], signature: Signature) -> Answer:
        exchange, endpoint = self._session.get(), call.endpoint
        attempt = wire.Attempt(
            to=self._address(exchange, endpoint, signature),
            body=Hidden(codec.encode(call.request, signature.fields)),
            replay=endpoint.replay,
            connect=self._timeouts.connect,
            read=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            span=self._session.watch.span(call.deadline),
            most=self._most if endpoint.report else min(self._most, wire.SHORT),
            into=call.into,
            broken_off=partial(self._break_off, call, signature),
        )
        call.attempts += 1
        self._tally.in_flight += 1
        try:
            if call.permit is not None or endpoint.replay is Replay.HARMLESS:
                return await wire.send(exchange, attempt)
            # If the task is cancelled, the attempt is waited for, as a batch waits for its own.
            draining = Draining(wire.send(exchange, attempt), attempt, self._timeouts.drain, self.drains)
            try:
                return await draining
            finally:
                call.interruption = draining.interruption
        finally:
            self._tally.in_flight -= 1

    def _address(self, exchange: Exchange, endpoint: Endpoint[Any, Any], signature: Signature) -> Any:
        if endpoint.path not in signature.to:
            plain = wire.PLAIN if endpoint.replay is Replay.CREATES else {}
            headers = _HEADERS | signature.headers | plain
            signature.to[endpoint.path] = exchange.address(self._base_url + endpoint.path, headers)
        return signature.to[endpoint.path]

    def _break_off(
        self, call: Call[Any], signature: Signature, answer: Answer | None, problem: PlaidRelayError
    ) -> None:
        """Keep what is known about a call that is cancelled during an attempt, or pass it to its batch."""
        if call.permit is None and call.endpoint.replay is Replay.HARMLESS:
            return
        known: Any = problem
        if answer is not None:
            try:
                known = codec.read(call.endpoint, answer, call.request, signature.secret)
            except PlaidRelayError as error:
                known = error
        known = call.verdict(known) if isinstance(known, PlaidRelayError) else known
        if call.permit is not None:
            call.permit.broken_off(known)
        elif not isinstance(known, NotSentError):
            call.known, call.sent = known, True

    # ------------------------------------------------------------------------------ and what follows

    def _conclude(self, call: Call[R], error: PlaidRelayError, ending: Ending) -> R:
        """Raise the verdict, or the wait before another attempt; a repeated removal may have its answer."""
        error.attempts = call.attempts
        if ending is Ending.UNKNOWN and call.endpoint.replay is not Replay.HARMLESS:
            call.perhaps_done = error
        elif call.doubted and _already_removed(call.endpoint, error):
            gone: R = call.endpoint.response.gone()  # type: ignore[attr-defined]  # the answer to a removal has it
            return gone
        wait = self._wait_before_next(call, error, ending)
        if wait is None or call.interruption is not None or not self._session.is_open:
            raise call.verdict(error)
        if call.sleep is not None:
            self._queue.waits.add(call.sleep)
        call.known = call.verdict(error)
        if call.permit is not None:
            call.permit.again(error, spared=call.perhaps_done is None)
        self._tell(call, error, wait)
        if ending is Ending.REFUSED:
            wait = 0.0  # the queue keeps it, for all calls together
        self._tally.waits["backoff"] += wait
        raise _Again(wait)

    def _wait_before_next(self, call: Call[Any], error: PlaidRelayError, ending: Ending) -> float | None:
        if ending is Ending.REFUSED:
            return self._pause(call, error)
        if not _repeatable(error, call.policy) or call.counted >= call.policy.attempts:
            return None
        wait: float = getattr(error, "retry_after", None) or _curve(call.policy, call.counted)
        return wait if wait <= call.policy.max_pause and call.has_time_for(wait) else None

    def _pause(self, call: Call[Any], error: PlaidRelayError) -> float | None:
        """Have everybody who calls this operation wait, and tell how long this call has to, if it can."""
        pace, limited = self._queue.pace(call), getattr(error, "status", None) == 429
        asked = getattr(error, "retry_after", None)
        delay = pace.refused(call.now(), call.turn, asked, partial(_curve, call.policy), limited=limited)
        call.gave_up = max(delay, pace.total) > call.policy.max_pause
        call.refusals += call.patient
        wait = pace.expected(call.now(), 0 if call.patient else pace.ahead)
        fits = call.patient or (call.counted < call.policy.attempts and call.has_time_for(wait))
        told = not limited or self._tell_limiter(call, error, asked)
        return wait if fits and told and not call.gave_up else None

    def _tell_limiter(self, call: Call[Any], error: PlaidRelayError, asked: float | None) -> bool:
        try:
            getattr(self._limiter, "limited", _ignore)(call.endpoint.path, asked)
        except Exception as broken:  # noqa: BLE001  # the caller's own: it goes out with what Plaid said
            error.__cause__ = broken
            return False
        return True

    def _tell(self, call: Call[Any], error: PlaidRelayError, wait: float) -> None:
        reason = reason_of(error)
        self._tally.retries[reason] += 1
        if self._on_retry is None:
            return
        facts = {name: getattr(error, name, None) for name in ("status", "request_id")}
        told = Retry(operation=call.endpoint.path, attempts=call.attempts, reason=reason, wait=wait, **facts)
        try:
            self._on_retry(told)
        except Exception as broken:  # as with the limiter
            raise call.verdict(error) from broken


async def _in_a_thread(read: Callable[[], R], deadline: float | None) -> R:
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.to_thread(read)
    except TimeoutError as error:
        if isinstance(error, PlaidRelayError):  # what the response means
            raise
    raise ReadTimeoutError("the response arrived, and time ran out while it was decoded")


def _check_callables(on_retry: object, rate_limiter: object) -> None:
    if on_retry is not None and (not callable(on_retry) or inspect.iscoroutinefunction(on_retry)):
        raise ConfigurationError("on_retry must be a plain function, not an async one")
    if rate_limiter is not None and not callable(getattr(rate_limiter, "acquire", None)):
        raise ConfigurationError("rate_limiter must have a method `async acquire(endpoint)`")


def _curve(policy: RetryPolicy, nth: int) -> float:
    return backoff.full_jitter(min(policy.max_backoff, policy.backoff * 2.0 ** (nth - 1)))


def _repeatable(error: PlaidRelayError, policy: RetryPolicy) -> bool:
    if isinstance(error, OutcomeUnknownError):
        return policy.replay == "always"
    return isinstance(error, NotSentError) or ending_of(error) is Ending.UNKNOWN


def _already_removed(endpoint: Endpoint[Any, Any], error: PlaidRelayError) -> bool:
    return (
        endpoint.replay is Replay.IDEMPOTENT
        and isinstance(error, PlaidAPIError)
        and codec.says_no_such_token(error)
    )


def _ignore(_endpoint: str, _retry_after: float | None) -> None:
    """Stand in for the `limited` of a limiter that has none."""
