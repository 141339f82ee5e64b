"""From a call to its attempts: queueing, the wire, and whether to try again.

This is the one module that knows backoff, and, with `session`, the one that knows aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import aiohttp
import backoff
from attrs import define

from plaid_relay_async import codec
from plaid_relay_async.codec import Answer, Endpoint, Replay
from plaid_relay_async.config import (
    PLAID_VERSION,
    USER_AGENT,
    Credentials,
    GatewayKey,
    RetryPolicy,
    check_type,
)
from plaid_relay_async.errors import (
    ConfigurationError,
    ConnectionLostError,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    RateLimitError,
    ReadTimeoutError,
    ordinary,
    perhaps_carried_out,
    refused_for_now,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Generator, Iterator

    from plaid_relay_async.config import Identity, Timeouts
    from plaid_relay_async.session import SessionManager

R = TypeVar("R")

# From so many bytes on a report is read in a thread: a megabyte would hold the event loop for some 20 ms.
_LARGE = 256 * 1024
_HEADERS = {"Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}


class RateLimiter(Protocol):
    """Anything that lets attempts through at a rate.

    A limiter may also have a plain method `limited(endpoint, retry_after)`, which is called on each 429.
    """

    def acquire(self, endpoint: str, /) -> Awaitable[object]:
        """Wait until one more attempt at the endpoint, such as `/credit/relay/create`, may be made."""
        ...


class Permit(Protocol):
    """What a batch gives to a call that it makes: leave to send, and an ear for what became of an attempt."""

    async def begin(self) -> None:
        """An attempt is about to leave. May raise to forbid it."""
        ...

    def again(self, error: PlaidRelayError, *, spared: bool) -> None:
        """The attempt ended so, and another is planned. May raise to forbid that.

        `spared` says that no attempt so far can have been carried out.
        """
        ...

    def broken_off(self, known: Any) -> None:
        """The call is being cancelled in the middle of an attempt: here is its response, or an error."""
        ...


class Sink(Protocol):
    """Takes a body piece by piece."""

    async def begin(self) -> None:
        """A body begins; what an attempt before gave is worth nothing."""
        ...

    async def write(self, piece: Hidden[bytes]) -> None:
        """Take the next piece."""
        ...


@define(eq=False, repr=False)
class _Call(Generic[R]):
    endpoint: Endpoint[Any, R]
    request: Any
    policy: RetryPolicy
    permit: Permit | None
    into: Sink | None
    http_timeout: aiohttp.ClientTimeout
    deadline: float | None
    tries: int = 0
    refusals: int = 0
    attempts: int = 0
    gave_up: bool = False
    perhaps_done: PlaidRelayError | None = None

    @property
    def headers(self) -> dict[str, str]:
        """A creation's short answer comes unzipped: of what is zipped, half an answer can't be read."""
        return {"Accept-Encoding": "identity"} if self.endpoint.replay is Replay.CREATES else {}

    @property
    def patient(self) -> bool:
        """Whether pauses are queueing, as in a batch."""
        return self.permit is not None

    @property
    def counted(self) -> int:
        """The tries that the policy bounds."""
        return self.tries - self.refusals

    def has_time_for(self, wait: float, now: float) -> bool:
        return self.deadline is None or now + wait < self.deadline

    def queued(self, seconds: float) -> None:
        if self.deadline is not None:
            self.deadline += seconds

    def verdict(self, error: PlaidRelayError) -> PlaidRelayError:
        """What to raise: an attempt that may have been carried out outweighs what a later one was told."""
        if self.endpoint.replay is Replay.CREATES and self.perhaps_done is not None:
            self.perhaps_done.attempts = self.attempts
            return self.perhaps_done
        if self.gave_up:
            return RateLimitError(str(error.args[0]), **vars(error), gave_up_waiting=True)
        return error


@define(eq=False)
class _Pause:
    """What the server asked of everybody who calls one operation."""

    until: float = 0.0
    total: float = 0.0
    streak: int = 0

    def left(self, now: float) -> float:
        return self.until - now

    def extend(self, now: float, delay: float) -> None:
        if now >= self.until:
            self.streak += 1
        until = max(self.until, now + delay)
        self.total += until - max(self.until, now)
        self.until = until

    def end(self) -> None:
        self.total, self.streak = 0.0, 0


class _Again(Exception):  # noqa: N818  # not an error: it tells backoff how long to wait
    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


def _as_told() -> Generator[float, Any, None]:
    again: _Again = yield 0.0
    while True:
        again = yield again.wait


@define(eq=False, repr=False)
class _Signature:
    headers: dict[str, str]
    fields: Hidden[dict[str, str]]
    secret: Hidden[str]


@contextlib.contextmanager
def _of_the_caller(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not ordinary(error):
            raise
        raise NotSentError(f"{what} raised {type(error).__name__}") from error


class _Body(aiohttp.BytesPayload):
    """The request's body; it notes the moment at which aiohttp begins to hand it to the network."""

    left = False

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        self.left = True
        await super().write_with_length(writer, content_length)


class Transport:
    """Makes calls: one method, `call`, for all operations."""

    def __init__(
        self,
        session: SessionManager,
        *,
        base_url: str,
        identity: Identity,
        credentials_in: Literal["headers", "body"],
        timeouts: Timeouts,
        retry: RetryPolicy,
        rate_limiter: RateLimiter | None,
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._who = identity
        self._credentials_in = credentials_in
        self._timeouts = timeouts
        self._quick = _http_timeout(timeouts.connect, timeouts.read)
        self._slow = _http_timeout(timeouts.connect, timeouts.slow_read)
        self._retry = retry
        self._limiter = rate_limiter
        self._pauses: defaultdict[str, _Pause] = defaultdict(_Pause)

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
            permit: a batch's; with it, the server's pauses count against neither time nor attempts.
            into: where a success's body goes as it arrives; its record then knows its two ends alone.

        Raises:
            PlaidRelayError: see `plaid_relay_async.errors`; `attempts` says how many were made.
        """
        self._session.get()
        total, policy = self.checked(timeout, retry)
        deadline = None if total is None else _now() + total
        http_timeout = self._slow if endpoint.slow else self._quick
        return await self._attempt(_Call(endpoint, request, policy, permit, into, http_timeout, deadline))

    def checked(self, timeout: float | None, retry: RetryPolicy | None) -> tuple[float | None, RetryPolicy]:
        """Give a call's own settings, or the client's in their place.

        Raises:
            ConfigurationError: one of them isn't what it should be.
        """
        policy = self._retry if retry is None else retry
        check_type("retry", policy, RetryPolicy)
        return self._timeouts.within(timeout).total, policy

    # --------------------------------------------------------------------------------- one attempt

    @backoff.on_exception(_as_told, _Again, jitter=None, logger=None)
    async def _attempt(self, call: _Call[R]) -> R:
        call.tries += 1
        try:
            async with self._turn(call) as signature:
                if call.permit is not None:
                    await call.permit.begin()
                answer = await self._post(call, signature)
            response = await _read(call, answer, signature)
        except PlaidRelayError as error:
            failure = error
        else:
            self._pauses[call.endpoint.path].end()
            return response
        return self._conclude(call, failure)

    @contextlib.asynccontextmanager
    async def _turn(self, call: _Call[Any]) -> AsyncIterator[_Signature]:
        """Queue for the server's pause, the limiter and a connection; none of it is time spent on Plaid."""
        pause, slots = self._pauses[call.endpoint.path], self._session.slots
        while True:
            await self._sit_out(call, pause)
            queued_at = _now()
            await self._limit(call.endpoint.path)
            async with slots:
                call.queued(_now() - queued_at)
                signature = await self._sign(call.deadline)
                if pause.left(_now()) <= 0:
                    yield signature
                    return

    async def _sit_out(self, call: _Call[Any], pause: _Pause) -> None:
        while (wait := pause.left(now := _now())) > 0:
            too_long = wait > call.policy.max_pause
            if too_long or not (call.patient or call.has_time_for(wait, now)):
                raise RateLimitError(
                    "Plaid asked for a pause of this operation that is longer than this call may wait",
                    sent=False,
                    retry_after=wait,
                    gave_up_waiting=too_long,
                )
            await asyncio.sleep(wait)
            if call.patient:
                call.queued(_now() - now)

    async def _limit(self, path: str) -> None:
        if self._limiter is not None:
            with _of_the_caller("the rate limiter"):
                await self._limiter.acquire(path)

    async def _sign(self, deadline: float | None) -> _Signature:
        who = self._who
        if callable(who):
            with _of_the_caller("the source of the credentials"):
                async with asyncio.timeout_at(deadline):
                    who = await who()
        nothing: Hidden[dict[str, str]] = Hidden({})
        if isinstance(who, GatewayKey):
            key = Hidden(who.gateway_key)
            return _Signature({"Authorization": f"Bearer {key.reveal()}"}, nothing, key)
        if not isinstance(who, Credentials):
            raise ConfigurationError(f"credentials gave {type(who).__name__}, not Credentials")
        secret = Hidden(who.secret)
        if self._credentials_in == "body":
            return _Signature({}, Hidden({"client_id": who.client_id, "secret": who.secret}), secret)
        return _Signature({"PLAID-CLIENT-ID": who.client_id, "PLAID-SECRET": who.secret}, nothing, secret)

    async def _post(self, call: _Call[Any], signature: _Signature) -> Answer:
        session = self._session.get()
        body = _Body(codec.encode(call.request, signature.fields), content_type="application/json")
        call.attempts += 1
        answer: Answer | None = None
        try:
            async with (
                asyncio.timeout_at(call.deadline),
                session.post(
                    self._base_url + call.endpoint.path,
                    data=body,
                    headers=_HEADERS | call.headers | signature.headers,
                    timeout=call.http_timeout,
                    allow_redirects=False,
                    raise_for_status=False,
                    auto_decompress=True,
                ) as response,
            ):
                answer = Answer(response.status, response.headers)
                await _receive(response, answer, call)
        except BaseException as error:
            problem = _mapped(error, call, left=body.left)
            if not ordinary(error):
                _break_off(call, answer, signature, problem)
                raise
        else:
            return answer
        if answer is None:
            raise problem
        answer.lost = problem
        return answer

    # ------------------------------------------------------------------------------ and what follows

    def _conclude(self, call: _Call[R], error: PlaidRelayError) -> R:
        """Raise the verdict, or the wait before another attempt; a repeated removal may have its answer."""
        error.attempts = call.attempts
        if perhaps_carried_out(error) and call.endpoint.replay is not Replay.HARMLESS:
            call.perhaps_done = error
        elif call.perhaps_done is not None and _already_removed(call.endpoint, error):
            gone: R = call.endpoint.response.gone()  # type: ignore[attr-defined]  # the answer to a removal has it
            return gone
        wait = self._wait_before_next(call, error)
        if wait is None:
            raise call.verdict(error)
        if call.permit is not None:
            call.permit.again(error, spared=call.perhaps_done is None)
        raise _Again(wait)

    def _wait_before_next(self, call: _Call[Any], error: PlaidRelayError) -> float | None:
        if refused_for_now(error):
            return self._pause(call, error)
        if not _repeatable(error, call.policy) or call.counted >= call.policy.attempts:
            return None
        wait: float = getattr(error, "retry_after", None) or _curve(call.policy, call.counted)
        return wait if wait <= call.policy.max_pause and call.has_time_for(wait, _now()) else None

    def _pause(self, call: _Call[Any], error: PlaidRelayError) -> float | None:
        """Have everybody who calls this operation wait, and tell whether this call can."""
        path, asked = call.endpoint.path, getattr(error, "retry_after", None)
        try:
            getattr(self._limiter, "limited", _ignore)(path, asked)
        except Exception as broken:  # noqa: BLE001  # the caller's own: it goes out with what Plaid said
            error.__cause__ = broken
            return None
        pause = self._pauses[path]
        delay: float = asked or _curve(call.policy, pause.streak + 1)
        pause.extend(_now(), delay)
        call.gave_up = max(delay, pause.total) > call.policy.max_pause
        if call.patient:
            call.refusals += 1
            fits = True
        else:
            fits = call.counted < call.policy.attempts and call.has_time_for(delay, _now())
        return 0.0 if fits and not call.gave_up else None


def _http_timeout(connect: float, read: float) -> aiohttp.ClientTimeout:
    # aiohttp rounds longer timeouts up to whole seconds unless told otherwise.
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_read=read, ceil_threshold=float("inf"))


async def _receive(response: aiohttp.ClientResponse, answer: Answer, call: _Call[Any]) -> None:
    # No local name holds a piece: it would stand in a traceback that shows locals. The timeout is aiohttp's
    # own, which it forgets when the framing of chunks breaks behind a good one.
    into = call.into if 200 <= answer.status < 300 else None
    if into is not None:
        await into.begin()
    while not response.content.at_eof():
        async with asyncio.timeout(call.http_timeout.sock_read):
            piece = Hidden(await response.content.readany())
        answer.body += piece.reveal()
        if into is not None:
            await into.write(piece)
            answer.keep_ends()


async def _read(call: _Call[R], answer: Answer, signature: _Signature) -> R:
    # A creation's token must not get lost on the way to a thread and back, and its answer is short.
    if len(answer.body) < _LARGE or call.endpoint.replay is not Replay.HARMLESS:
        return codec.read(call.endpoint, answer, call.request, signature.secret)
    return await asyncio.to_thread(codec.read, call.endpoint, answer, call.request, signature.secret)


def _break_off(
    call: _Call[Any], answer: Answer | None, signature: _Signature, problem: PlaidRelayError
) -> None:
    """Tell a batch what is known of a call that is cancelled in the middle of an attempt."""
    if call.permit is None:
        return
    known: Any = problem
    if answer is not None:
        answer.lost = problem
        try:
            known = codec.read(call.endpoint, answer, call.request, signature.secret)
        except PlaidRelayError as error:
            known = error
    call.permit.broken_off(call.verdict(known) if isinstance(known, PlaidRelayError) else known)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _curve(policy: RetryPolicy, nth: int) -> float:
    return backoff.full_jitter(min(policy.max_backoff, policy.backoff * 2.0 ** (nth - 1)))


def _repeatable(error: PlaidRelayError, policy: RetryPolicy) -> bool:
    if isinstance(error, OutcomeUnknownError):
        return policy.replay == "always"
    return isinstance(error, NotSentError) or perhaps_carried_out(error)


def _already_removed(endpoint: Endpoint[Any, Any], error: PlaidRelayError) -> bool:
    return (
        endpoint.replay is Replay.IDEMPOTENT
        and isinstance(error, PlaidAPIError)
        and codec.says_no_such_token(error)
    )


def _ignore(_endpoint: str, _retry_after: float | None) -> None:
    """Stand in for the `limited` of a limiter that has none."""


# What happened, in words of our own: the texts of aiohttp's errors may name a proxy and its password.
_PHRASES: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "the server's certificate isn't trusted"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (aiohttp.ClientConnectorDNSError, "the name isn't known"),
    (aiohttp.ClientProxyConnectionError, "the proxy can't be reached"),
    (aiohttp.ClientHttpProxyError, "the proxy refused"),
    (asyncio.CancelledError, "the call was cancelled"),
    (TimeoutError, "time ran out"),
    (aiohttp.ServerDisconnectedError, "the connection was closed before an answer came"),
    (aiohttp.ClientConnectorError, "no connection can be made"),
    (aiohttp.ClientOSError, "the connection failed"),
    (OSError, "the connection failed"),
    (aiohttp.ClientPayloadError, "the answer broke off"),
    (aiohttp.ClientResponseError, "the answer isn't HTTP"),
    (aiohttp.ClientConnectionError, "the connection failed"),
)


def _mapped(error: BaseException, call: _Call[Any], *, left: bool) -> PlaidRelayError:
    phrase = next((words for cls, words in _PHRASES if isinstance(error, cls)), "the request failed")
    text = f"{phrase} ({type(error).__name__})"
    errno = getattr(error, "errno", None)
    if not left:
        return NotSentError(f"the request never left: {text}", errno=errno)
    if call.endpoint.replay is Replay.CREATES:
        return OutcomeUnknownError(f"the request was sent, and {text}")
    cls = ReadTimeoutError if isinstance(error, TimeoutError) else ConnectionLostError
    return cls(f"the request was sent, and {text}", errno=errno)
