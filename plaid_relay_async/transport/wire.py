"""One attempt on the wire: what went out, what came back, and whether it left at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attrs import define, field

from plaid_relay_async.codec import Answer, Replay
from plaid_relay_async.errors import (
    ConfigurationError,
    ConnectionLostError,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    ReadTimeoutError,
    ResponseDecodeError,
    ordinary,
)
from plaid_relay_async.exchange import Body, Exchange, Response
from plaid_relay_async.transport.causes import cause_of
from plaid_relay_async.transport.protocols import Sink
from plaid_relay_async.watch import Span

# Of what is zipped, half an answer can't be read, and a creation's is short.
PLAIN: Final = {"Accept-Encoding": "identity"}
# The most bytes of a response that isn't a report, which has a hundred or so.
SHORT: Final = 1024 * 1024


@define(eq=False)
class Attempt:
    """What is to be sent, and how its answer is to be taken.

    Attributes:
        to: the address, as the exchange made it.
        connect: seconds for a connection.
        read: seconds until an answer begins, and between two pieces of it.
        span: its time at the most; it ends both.
        most: bytes that a success may have, unzipped. An error may have `SHORT`.
        into: where the body goes that is wanted there; what isn't is kept in memory.
        sending: the body, once there is one.
        broken_off: told what is known of an attempt that is cancelled: its answer so far, if any, and why.
    """

    to: Any = field(repr=False)
    body: Hidden[bytes]
    replay: Replay
    connect: float
    read: float
    span: Span
    most: int
    into: Sink | None
    broken_off: Callable[[Answer | None, PlaidRelayError], None]
    sending: Body | None = field(default=None, init=False, repr=False)

    @property
    def in_flight(self) -> bool:
        """Whether it has left, and its time is not up."""
        return self.sending is not None and self.sending.left and not self.span.late


async def send(exchange: Exchange, attempt: Attempt) -> Answer:
    """Make one attempt, and give what came back of an answer.

    Raises:
        NotSentError: it never left, which is a fact.
        OutcomeUnknownError: it left, nothing came back, and it is one that makes something.
        ConnectionLostError: the same, and it may be repeated.
    """
    body = attempt.sending = Body(attempt.body.reveal(), partial(attempt.span.start, attempt.read))
    answer: Answer | None = None
    whole = False
    try:
        with attempt.span as span:
            span.allow(attempt.connect)
            try:
                response = await exchange.post(attempt.to, body)
                try:
                    answer = Answer(response.status, response.headers)
                    await _receive(response, answer, attempt, body)
                except BaseException:
                    response.close()
                    raise
                whole = True
                return answer
            finally:
                body.end()  # whatever the response was
    except BaseException as error:
        left = body.left and not (answer is None and body.was_rejected(error))
        problem = _told(error, attempt.replay, left=left, proxy=exchange.proxy)
        if answer is not None and not whole:
            answer.lost = problem
        if not ordinary(error):
            attempt.broken_off(answer, problem)
            raise
    if answer is not None:
        return answer
    try:
        raise problem
    finally:
        del problem  # its traceback has this frame, which would keep it, and the body, in a circle


class _TooLongError(Exception):
    """Ends the reading of an answer."""


async def _receive(response: Response, answer: Answer, attempt: Attempt, body: Body) -> None:
    # No local name holds a piece: it would stand in a traceback that shows locals.
    wanted = attempt.into is not None and await attempt.into.begin(answer)
    into = attempt.into if wanted else None
    most = attempt.most if 200 <= answer.status < 300 else min(attempt.most, SHORT)
    left, content = most, response.content
    while not content.at_eof():
        whole = content.is_eof()  # then the rest is in memory
        piece = Hidden(content.read_nowait() if whole else await body.next(content.readany))
        left -= len(piece.reveal())
        answer.body += piece.reveal()
        if left < 0:
            raise _TooLongError(most)
        if into is not None:
            attempt.span.allow(math.inf)
            await into.write(piece)
            answer.keep_ends()
        if content.at_eof():
            return
        attempt.span.allow(attempt.read)


_TOO_LONG = "If it is a report, let it be longer by RelayClient(max_response_bytes=...)."


def _told(error: BaseException, replay: Replay, *, left: bool, proxy: str | None) -> PlaidRelayError:
    """Return what an error means for the attempt that it ended: the one place that decides it."""
    cause = cause_of(error, proxied=proxy is not None)
    text = f"{cause.phrase} ({type(error).__name__})"
    errno = getattr(error, "errno", None)
    if not left and type(error) is ValueError:
        return ConfigurationError(
            "the borrowed session refuses the client's requests (ValueError): auth=, a login in .netrc or a "
            "default header conflicts with the client's credentials"
        )
    if not left:
        way = "" if proxy is None else f"; proxy: {proxy}"
        advice = {} if cause.advice is None else {"advice": f"{NotSentError.advice} {cause.advice}"}
        return NotSentError(
            f"the request never left: {text}{way}", errno=errno, shared=cause.shared, **advice
        )
    if isinstance(error, _TooLongError):
        return ResponseDecodeError(f"the answer is longer than {error.args[0]} bytes", advice=_TOO_LONG)
    if replay is Replay.CREATES:
        return OutcomeUnknownError(f"the request was sent, and {text}")
    cls = ReadTimeoutError if isinstance(error, TimeoutError) else ConnectionLostError
    return cls(f"the request was sent, and {text}", errno=errno)
