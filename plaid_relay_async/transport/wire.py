"""One attempt on the wire: what went out, what came back, and whether it left at all."""

from __future__ import annotations

import asyncio
import math
import select
import weakref
from collections.abc import Callable, Mapping
from functools import partial
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
from plaid_relay_async.watch import Span

# Of what is zipped, half an answer can't be read, and a creation's is short.
PLAIN: Final = {"Accept-Encoding": "identity"}


@define(eq=False)
class Attempt:
    """What is to be sent, and how its answer is to be taken.

    Attributes:
        connect: seconds for a connection.
        read: seconds until an answer begins, and between two pieces of it.
        span: its time at the most; it ends both.
        most: bytes that the answer may have, unzipped.
        into: where the body goes that is wanted there; what isn't is kept in memory.
        broken_off: told what is known of an attempt that is cancelled: its answer so far, if any, and why.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Hidden[bytes]
    replay: Replay
    connect: float
    read: float
    span: Span
    most: int
    into: Sink | None
    broken_off: Callable[[Answer | None, PlaidRelayError], None]


# The span is the one timeout that there is.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)


_used: weakref.WeakKeyDictionary[asyncio.BaseProtocol, Callable[[], bool]] = weakref.WeakKeyDictionary()


def _news_of(transport: asyncio.Transport) -> Callable[[], bool]:
    """Give what tells whether something has arrived that the event loop hasn't seen yet."""
    connection = transport.get_extra_info("socket")
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows
        return lambda: bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return lambda: bool(poll.poll(0))


class _Body(aiohttp.BytesPayload):
    """The request's body; it notes the moment at which aiohttp begins to hand it to the network.

    A server can't act on a call without its body, so one whose body wasn't handed over was never sent.
    """

    left = False

    def __init__(self, body: bytes, leaves: Callable[[], None]) -> None:
        super().__init__(body, content_type="application/json")
        self._leaves = leaves

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        # A connection on which something arrived unasked would give it as the answer to this request: mostly
        # it is the server's goodbye; on a new one there may be what ends the handshake of TLS.
        if writer.protocol.should_close:
            raise aiohttp.ClientConnectionError
        has_news = _used.get(writer.protocol)
        if has_news is None:
            _used[writer.protocol] = _news_of(writer.transport)
        elif has_news():
            raise aiohttp.ClientConnectionError
        self.left = True
        self._leaves()
        await super().write_with_length(writer, content_length)


async def send(session: aiohttp.ClientSession, attempt: Attempt) -> Answer:
    """Make one attempt, and give what came back of an answer.

    Raises:
        NotSentError: it never left, which is a fact.
        OutcomeUnknownError: it left, nothing came back, and it is one that makes something.
        ConnectionLostError: the same, and it may be repeated.
    """
    body = _Body(attempt.body.reveal(), partial(attempt.span.allow, attempt.read))
    answer: Answer | None = None
    try:
        with attempt.span as span:
            span.allow(attempt.connect)
            response = await session.post(
                attempt.url,
                data=body,
                headers=attempt.headers,
                timeout=_NO_TIMEOUT,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=True,
            )
            try:
                _check_asked(body)
                answer = Answer(response.status, response.headers)
                await _receive(response, answer, attempt)
            except BaseException:
                response.close()
                raise
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


def _check_asked(body: _Body) -> None:
    if not body.left:  # so what came answers something else
        raise aiohttp.ClientConnectionError


class _TooLongError(Exception):
    """Ends the reading of an answer."""


async def _receive(response: aiohttp.ClientResponse, answer: Answer, attempt: Attempt) -> None:
    # No local name holds a piece: it would stand in a traceback that shows locals.
    wanted = attempt.into is not None and await attempt.into.begin(answer)
    into = attempt.into if wanted else None
    left = attempt.most
    while not response.content.at_eof():
        piece = Hidden(await response.content.readany())
        left -= len(piece.reveal())
        answer.body += piece.reveal()
        if left < 0:
            raise _TooLongError(attempt.most)
        if into is not None:
            attempt.span.allow(math.inf)
            await into.write(piece)
            answer.keep_ends()
        attempt.span.allow(attempt.read)


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
