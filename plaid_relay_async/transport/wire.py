"""One attempt on the wire: what went out, what came back, and whether it left at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attrs import define, field

from plaid_relay_async.codec import Idempotency, RawResponse
from plaid_relay_async.deadlines import Deadline
from plaid_relay_async.errors import (
    ConfigurationError,
    ConnectionLostError,
    Hidden,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    ReadTimeoutError,
    ResponseDecodeError,
    is_ordinary_error,
)
from plaid_relay_async.exchange import Exchange, RequestBody, Response
from plaid_relay_async.transport.causes import failure_cause
from plaid_relay_async.transport.protocols import BodyWriter

# Of what is zipped, half an answer can't be read, and a creation's is short.
IDENTITY_ENCODING: Final = {"Accept-Encoding": "identity"}
# The most bytes of a response that isn't a report, which has a hundred or so.
MAX_SHORT_RESPONSE_BYTES: Final = 1024 * 1024


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

    prepared_request: Any = field(repr=False)
    body: Hidden[bytes]
    idempotency: Idempotency
    connect_timeout: float
    read_timeout: float
    deadline: Deadline
    max_bytes: int
    body_writer: BodyWriter | None
    on_interrupted: Callable[[RawResponse | None, PlaidRelayError], None]
    outgoing_body: RequestBody | None = field(default=None, init=False, repr=False)

    @property
    def in_flight(self) -> bool:
        """Whether it has left, and its time is not up."""
        return self.outgoing_body is not None and self.outgoing_body.sent and not self.deadline.expired


async def send_attempt(exchange: Exchange, attempt: Attempt) -> RawResponse:
    """Make one attempt, and give what came back of an answer.

    Raises:
        NotSentError: it never left, which is a fact.
        OutcomeUnknownError: it left, nothing came back, and it is one that makes something.
        ConnectionLostError: the same, and it may be repeated.
    """
    body = attempt.outgoing_body = RequestBody(
        attempt.body.reveal(), partial(attempt.deadline.start_phase, attempt.read_timeout)
    )
    answer: RawResponse | None = None
    whole = False
    try:
        with attempt.deadline as span:
            span.set_timeout(attempt.connect_timeout)
            try:
                response = await exchange.post(attempt.prepared_request, body)
                try:
                    answer = RawResponse(response.status, response.headers)
                    await _receive_body(response, answer, attempt, body)
                except BaseException:
                    response.close()
                    raise
                whole = True
                return answer
            finally:
                body.raise_cancellation()  # whatever the response was
    except BaseException as error:
        left = body.sent and not (answer is None and body.was_rejected(error))
        problem = _error_for_caller(error, attempt.idempotency, sent=left, proxy=exchange.proxy)
        if answer is not None and not whole:
            answer.body_error = problem
        if not is_ordinary_error(error):
            attempt.on_interrupted(answer, problem)
            raise
    if answer is not None:
        return answer
    try:
        raise problem
    finally:
        del problem  # its traceback has this frame, which would keep it, and the body, in a circle


class _ResponseTooLongError(Exception):
    """Ends the reading of an answer."""


async def _receive_body(response: Response, answer: RawResponse, attempt: Attempt, body: RequestBody) -> None:
    # No local name holds a piece: it would stand in a traceback that shows locals.
    wanted = attempt.body_writer is not None and await attempt.body_writer.start_response(answer)
    into = attempt.body_writer if wanted else None
    most = (
        attempt.max_bytes if 200 <= answer.status < 300 else min(attempt.max_bytes, MAX_SHORT_RESPONSE_BYTES)
    )
    left, content = most, response.content
    while not content.at_eof():
        whole = content.is_eof()  # then the rest is in memory
        piece = Hidden(content.read_nowait() if whole else await body.read_next(content.readany))
        left -= len(piece.reveal())
        answer.body += piece.reveal()
        if left < 0:
            raise _ResponseTooLongError(most)
        if into is not None:
            attempt.deadline.set_timeout(math.inf)
            await into.write(piece)
            answer.keep_ends()
        if content.at_eof():
            return
        attempt.deadline.set_timeout(attempt.read_timeout)


_TOO_LONG_ADVICE = "If it is a report, let it be longer by RelayClient(max_response_bytes=...)."


def _error_for_caller(
    error: BaseException, idempotency: Idempotency, *, sent: bool, proxy: str | None
) -> PlaidRelayError:
    """Return what an error means for the attempt that it ended: the one place that decides it."""
    cause = failure_cause(error, proxied=proxy is not None)
    text = f"{cause.phrase} ({type(error).__name__})"
    errno = getattr(error, "errno", None)
    if not sent and type(error) is ValueError:
        return ConfigurationError(
            "the borrowed session refuses the client's requests (ValueError): auth=, a login in .netrc or a "
            "default header conflicts with the client's credentials"
        )
    if not sent:
        way = "" if proxy is None else f"; proxy: {proxy}"
        advice = {} if cause.advice is None else {"advice": f"{NotSentError.advice} {cause.advice}"}
        return NotSentError(
            f"the request never left: {text}{way}", errno=errno, shared=cause.shared, **advice
        )
    if isinstance(error, _ResponseTooLongError):
        return ResponseDecodeError(
            f"the answer is longer than {error.args[0]} bytes", advice=_TOO_LONG_ADVICE
        )
    if idempotency is Idempotency.NON_IDEMPOTENT:
        return OutcomeUnknownError(f"the request was sent, and {text}")
    cls = ReadTimeoutError if isinstance(error, TimeoutError) else ConnectionLostError
    return cls(f"the request was sent, and {text}", errno=errno)
