"""One attempt: send the request, read the response, and map each exception to an error of this package."""

from __future__ import annotations

import asyncio
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
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    ReadTimeoutError,
    ResponseDecodeError,
    is_ordinary_error,
)
from plaid_relay_async.exchange import Exchange, RequestBody, Response
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.transport.causes import failure_cause
from plaid_relay_async.transport.protocols import BodyWriter

# The maximum size of a response that isn't a report; such a response has a few hundred bytes.
MAX_SHORT_RESPONSE_BYTES: Final = 1024 * 1024


@define(eq=False)
class Attempt:
    """A request to send, and the limits for its response.

    Attributes:
        prepared_request: what `Exchange.prepare` returned.
        body: the request's body.
        idempotency: of the operation; it decides what a lost response means.
        read_timeout: seconds until the response begins, and between two chunks of it.
        deadline: the deadline of the attempt. Its first step is to get a connection.
        max_bytes: the maximum size of a successful response, uncompressed, in bytes. The body of an error may
            have `MAX_SHORT_RESPONSE_BYTES`.
        body_writer: receives the body if it accepts the response; otherwise the body is kept in memory.
        on_interrupted: called if the attempt is cancelled, with the response so far, if any, and the error.
        outgoing_body: the body that is passed to the exchange; `None` before the attempt starts.
    """

    prepared_request: Any = field(repr=False)
    body: bytes = field(repr=False)
    idempotency: Idempotency
    read_timeout: float
    deadline: Deadline
    max_bytes: int
    body_writer: BodyWriter | None
    on_interrupted: Callable[[RawResponse | None, PlaidRelayError], None]
    outgoing_body: RequestBody | None = field(default=None, init=False, repr=False)

    @property
    def in_flight(self) -> bool:
        """Whether the attempt was sent and its deadline has not passed."""
        return self.outgoing_body is not None and self.outgoing_body.sent and not self.deadline.expired


async def send_attempt(exchange: Exchange, attempt: Attempt) -> RawResponse:
    """Make one attempt, and return its response, which may be incomplete: see `RawResponse.body_error`.

    Raises:
        NotSentError: the request was certainly not sent.
        OutcomeUnknownError: a non-idempotent request was sent, and no response arrived.
        ConnectionLostError: an idempotent or safe request was sent, and no response arrived.
        ConfigurationError: the borrowed session conflicts with the credentials; nothing was sent.
    """
    # The read timeout starts when the body is about to be sent.
    start_reading = partial(attempt.deadline.set_timeout, attempt.read_timeout, raise_if_over=True)
    body = attempt.outgoing_body = RequestBody(attempt.body, start_reading)
    raw_response: RawResponse | None = None
    complete = False
    try:
        with attempt.deadline:
            try:
                response = await exchange.post(attempt.prepared_request, body)
                try:
                    raw_response = RawResponse(response.status, response.headers)
                    await _receive_body(response, raw_response, attempt, body)
                except BaseException:
                    response.close()
                    raise
                complete = True
                return raw_response
            finally:
                # All that had arrived is processed: raise the deferred cancellation, whatever the response.
                if body.cancellation_args is not None:
                    raise asyncio.CancelledError(*body.cancellation_args) from None
    except BaseException as error:
        # A rejected TLS handshake proves that the server read no request, even if bytes of it were written.
        sent = body.sent and not (raw_response is None and body.was_rejected(error))
        problem = _error_for_caller(error, attempt.idempotency, sent=sent, proxy=exchange.proxy)
        if raw_response is not None and not complete:
            raw_response.body_error = problem
        # A cancellation is raised, but what the response has shown so far must not be lost.
        if not is_ordinary_error(error):
            attempt.on_interrupted(raw_response, problem)
            raise
    # The status, or a token in the part that arrived, may still prove the result. The body may even be
    # complete: the cancellation by the deadline is deferred until everything that has arrived is read.
    if raw_response is not None:
        return raw_response
    try:
        raise problem
    finally:
        del problem  # its traceback has this frame, so they and the body would form a reference cycle


class _ResponseTooLongError(Exception):
    """Ends the reading of a response that exceeds its limit."""


async def _receive_body(
    response: Response, raw_response: RawResponse, attempt: Attempt, body: RequestBody
) -> None:
    # No local variable holds a chunk, because a traceback that shows local variables would contain it.
    accepted = attempt.body_writer is not None and await attempt.body_writer.start_response(raw_response)
    writer = attempt.body_writer if accepted else None
    limit = (
        attempt.max_bytes
        if 200 <= raw_response.status < 300
        else min(attempt.max_bytes, MAX_SHORT_RESPONSE_BYTES)
    )
    received, content = 0, response.content
    while not content.at_eof():
        kept = len(raw_response.body)
        buffered = content.is_eof()  # the rest is in memory, so that reading it doesn't wait
        raw_response.body += content.read_nowait() if buffered else await body.read_next(content.readany)
        received += len(raw_response.body) - kept
        if received > limit:
            raise _ResponseTooLongError(limit)
        if writer is not None:
            # The time that the writer takes isn't the server's, so it doesn't count against the read timeout.
            attempt.deadline.set_timeout(math.inf)
            await writer.write(Hidden(bytes(raw_response.body[kept:])))
            raw_response.keep_ends()
        if content.at_eof():
            return
        attempt.deadline.set_timeout(attempt.read_timeout)


_TOO_LONG_ADVICE = "If it is a report, raise the limit with RelayClient(max_response_bytes=...)."


def _error_for_caller(
    error: BaseException, idempotency: Idempotency, *, sent: bool, proxy: str | None
) -> PlaidRelayError:
    """Return the `PlaidRelayError` for any exception that ended an attempt."""
    cause = failure_cause(error, proxied=proxy is not None)
    text = f"{cause.phrase} ({type(error).__name__})"
    errno = getattr(error, "errno", None)
    if not sent and type(error) is ValueError:
        return ConfigurationError(
            "the borrowed session rejects the client's requests (ValueError): auth=, a login in .netrc or a "
            "default header conflicts with the client's credentials"
        )
    if not sent:
        route = "" if proxy is None else f"; proxy: {proxy}"
        advice = {} if cause.advice is None else {"advice": f"{NotSentError.advice} {cause.advice}"}
        return NotSentError(
            f"the request was not sent: {text}{route}", errno=errno, shared=cause.shared, **advice
        )
    if isinstance(error, _ResponseTooLongError):
        return ResponseDecodeError(
            f"the response is longer than {error.args[0]} bytes", advice=_TOO_LONG_ADVICE
        )
    if idempotency is Idempotency.NON_IDEMPOTENT:
        return OutcomeUnknownError(f"the request was sent, and {text}")
    cls = ReadTimeoutError if isinstance(error, TimeoutError) else ConnectionLostError
    return cls(f"the request was sent, and {text}", errno=errno)
