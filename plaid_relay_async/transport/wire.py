"""One attempt on the wire: what went out, what came back, and whether it left at all."""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import aiohttp
from attrs import define, field

from plaid_relay_async.codec import Answer, Replay
from plaid_relay_async.errors import (
    ConnectionLostError,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    ReadTimeoutError,
    ResponseDecodeError,
    ordinary,
)
from plaid_relay_async.transport.protocols import Sink

# Of what is zipped, half an answer can't be read, and a creation's is short.
PLAIN: Final = {"Accept-Encoding": "identity"}


@define(eq=False)
class Attempt:
    """What is to be sent, and how its answer is to be taken.

    Attributes:
        most: bytes that the answer may have, unzipped.
        into: where the body goes that is wanted there; what isn't is kept in memory.
        broken_off: told what is known of an attempt that is cancelled: its answer so far, if any, and why.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Hidden[bytes]
    replay: Replay
    timeout: aiohttp.ClientTimeout
    deadline: float | None
    most: int
    into: Sink | None
    broken_off: Callable[[Answer | None, PlaidRelayError], None]


def http_timeout(connect: float, read: float) -> aiohttp.ClientTimeout:
    """Give aiohttp's form of a timeout, to the second's fractions."""
    # aiohttp rounds longer timeouts up to whole seconds unless told otherwise.
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_read=read, ceil_threshold=math.inf)


_used: weakref.WeakSet[asyncio.BaseProtocol] = weakref.WeakSet()
_Watch = getattr(selectors, "PollSelector", selectors.SelectSelector)  # of many files, where there is one


def _has_news(transport: asyncio.Transport) -> bool:
    """Whether something has arrived that the event loop hasn't seen yet."""
    with _Watch() as watch:
        watch.register(transport.get_extra_info("socket"), selectors.EVENT_READ)
        return bool(watch.select(0))


class _Body(aiohttp.BytesPayload):
    """The request's body; it notes the moment at which aiohttp begins to hand it to the network.

    A server can't act on a call without its body, so one whose body wasn't handed over was never sent.
    """

    left = False

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        # A connection on which something arrived unasked would give it as the answer to this request: mostly
        # it is the server's goodbye; on a new one there may be what ends the handshake of TLS.
        if writer.protocol.should_close or (writer.protocol in _used and _has_news(writer.transport)):
            raise aiohttp.ClientConnectionError
        _used.add(writer.protocol)
        self.left = True
        await super().write_with_length(writer, content_length)


async def send(session: aiohttp.ClientSession, attempt: Attempt) -> Answer:
    """Make one attempt, and give what came back of an answer.

    Raises:
        NotSentError: it never left, which is a fact.
        OutcomeUnknownError: it left, nothing came back, and it is one that makes something.
        ConnectionLostError: the same, and it may be repeated.
    """
    body = _Body(attempt.body.reveal(), content_type="application/json")
    answer: Answer | None = None
    try:
        _check_time(attempt.deadline)
        async with (
            _ending_at(attempt.deadline),
            session.post(
                attempt.url,
                data=body,
                headers=attempt.headers,
                timeout=attempt.timeout,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=True,
            ) as response,
        ):
            _check_asked(response, body)
            answer = Answer(response.status, response.headers)
            await _receive(response, answer, attempt)
    except BaseException as error:
        problem = _told(error, attempt.replay, left=body.left)
        if not ordinary(error):
            attempt.broken_off(answer, problem)
            raise
    else:
        return answer
    if answer is not None:
        answer.lost = problem
        return answer
    try:
        raise problem
    finally:
        del problem  # its traceback has this frame, which would keep it, and the body, in a circle


@contextlib.asynccontextmanager
async def _ending_at(deadline: float | None) -> AsyncIterator[None]:
    """A timeout that comes after what arrived in time, also where the event loop was held up beyond it."""
    async with asyncio.timeout(None) as scope:
        if deadline is None:
            yield
            return
        # What wakes the task for an answer stands in the loop's line; a rescheduled timeout goes behind it.
        timer = asyncio.get_running_loop().call_at(deadline, scope.reschedule, deadline)
        try:
            yield
        finally:
            timer.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _check_time(deadline: float | None) -> None:
    if deadline is not None and _now() >= deadline:
        raise TimeoutError


def _check_asked(response: aiohttp.ClientResponse, body: _Body) -> None:
    if not body.left:  # so this answers something else
        response.close()
        raise aiohttp.ClientConnectionError


class _TooLongError(Exception):
    """Ends the reading of an answer."""


async def _receive(response: aiohttp.ClientResponse, answer: Answer, attempt: Attempt) -> None:
    # No local name holds a piece: it would stand in a traceback that shows locals. The timeout is aiohttp's
    # own, which it forgets when the framing of chunks breaks behind a good one.
    wanted = attempt.into is not None and await attempt.into.begin(answer)
    into = attempt.into if wanted else None
    left = attempt.most
    while not response.content.at_eof():
        async with _ending_at(_now() + (attempt.timeout.sock_read or math.inf)):
            piece = Hidden(await response.content.readany())
        left -= len(piece.reveal())
        answer.body += piece.reveal()
        if left < 0:
            raise _TooLongError(attempt.most)
        if into is not None:
            await into.write(piece)
            answer.keep_ends()


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


_TOO_LONG = "If it is a report, let it be longer by RelayClient(max_response_bytes=...)."


def _told(error: BaseException, replay: Replay, *, left: bool) -> PlaidRelayError:
    """Say what an error means for the attempt that it ended: the one place that does."""
    phrase = next((words for cls, words in _PHRASES if isinstance(error, cls)), "the request failed")
    text = f"{phrase} ({type(error).__name__})"
    errno = getattr(error, "errno", None)
    if not left:
        return NotSentError(f"the request never left: {text}", errno=errno)
    if isinstance(error, _TooLongError):
        return ResponseDecodeError(f"the answer is longer than {error.args[0]} bytes", advice=_TOO_LONG)
    if replay is Replay.CREATES:
        return OutcomeUnknownError(f"the request was sent, and {text}")
    cls = ReadTimeoutError if isinstance(error, TimeoutError) else ConnectionLostError
    return cls(f"the request was sent, and {text}", errno=errno)
