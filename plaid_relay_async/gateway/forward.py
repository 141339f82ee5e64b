"""Forwards a call to Plaid in one attempt, and streams the response to the caller."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion11, web
from attrs import define, field

from plaid_relay_async.codec import Endpoint, Idempotency, RawResponse, request_id_of
from plaid_relay_async.config import PLAID_VERSION, USER_AGENT, Timeouts
from plaid_relay_async.deadlines import Deadline
from plaid_relay_async.errors import ConfigurationError, ConnectionLostError, NotSentError, ReadTimeoutError
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.audit import AuditRecord
from plaid_relay_async.gateway.connections import abort_if_disconnected
from plaid_relay_async.gateway.error_responses import NO_STORE, GatewayError
from plaid_relay_async.redaction import Hidden, Mask
from plaid_relay_async.transport import MAX_RESPONSE_BYTES
from plaid_relay_async.transport.wire import Attempt, send_attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from plaid_relay_async.errors import PlaidRelayError
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.transport import Authenticator
    from plaid_relay_async.transport.authentication import Authentication

_log = logging.getLogger(__name__)

# The headers of the caller that are forwarded to Plaid, with their defaults.
_REQUEST_HEADERS: Final = {"Accept": "*/*", "Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}
# The headers of Plaid's response that are forwarded to the caller. Any other one, such as a cookie or a CORS
# header, would speak for the gateway's origin.
_RESPONSE_HEADERS: Final = (
    "Content-Type",
    "Content-Disposition",
    "Date",
    "Retry-After",
    "Plaid-Request-ID",
    "X-Request-ID",
)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # for SO_LINGER
# With one of these headers, the length of the forwarded body differs or is unknown: a compressed body is
# forwarded uncompressed.
_REFRAMING_HEADERS: Final = {"Transfer-Encoding", "Content-Encoding"}
# The encodings that aiohttp decodes. In another one, the secret could be quoted unnoticed.
_DECODABLE_ENCODINGS: Final = {"", "identity", "gzip", "deflate", "br", "zstd"}
_CHUNK_BYTES: Final = 256 * 1024


@define(eq=False)
class _Downstream:
    """Writes a response to the caller; a caller that disconnects or reads too slowly gets no more of it.

    Plaid's response is read to its end in any case: the connection to Plaid can then be reused, and the body
    may contain the request ID for the audit log.
    """

    request: web.BaseRequest
    caller_timeout: float
    mask: Mask
    record: AuditRecord
    response: web.StreamResponse | None = None
    caller_gone: bool = False
    undecodable: bool = False
    decompressor: Any = None
    decompressed_bytes: int = 0
    has_body: bool = False

    async def start_response(self, response: RawResponse) -> bool:
        """Send status and headers to the caller, and return true: the body follows."""
        if response.status < 200:
            raise ConnectionResetError("an interim response ended the HTTP exchange")
        self._prepare_decoding(response)
        # A server that quotes the request may also quote the secret in a header.
        forwarded = _forwarded_headers(response.headers, _RESPONSE_HEADERS)
        headers = {**NO_STORE, **{name: self.mask.mask_text(value) for name, value in forwarded.items()}}
        self.response = web.StreamResponse(status=response.status, headers=headers)
        reframed = any(name in response.headers for name in _REFRAMING_HEADERS)
        if "Content-Length" in response.headers and not reframed:
            self.response.content_length = int(response.headers["Content-Length"])
        self.record.status = response.status
        self.caller_gone = abort_if_disconnected(self.request.protocol)
        await self._send_in_time(partial(self.response.prepare, self.request))
        return True

    async def write(self, chunk: Hidden[bytes]) -> None:
        """Send a chunk of the body, decompressed and masked."""
        response = self.response
        assert response is not None  # noqa: S101  # a response starts before its body
        self.has_body |= bool(chunk.reveal())
        for plain in self._decompress(chunk):
            if not self.caller_gone and (masked := self.mask.mask_chunk(plain)).reveal():
                await self._send_in_time(partial(response.write, masked.reveal()))

    def _prepare_decoding(self, response: RawResponse) -> None:
        """Prepare to decode what aiohttp doesn't decode, or reject the response."""
        headers: Any = response.headers
        encoding = ",".join(headers.getall("Content-Encoding", [])).strip().lower()
        # RFC 9110 8.4.1.3: x-gzip is the same as gzip. aiohttp doesn't decode it.
        if encoding == "x-gzip":
            self.decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        elif (
            encoding not in _DECODABLE_ENCODINGS
            or headers.get("Transfer-Encoding", "chunked").lower() != "chunked"
        ):
            self.undecodable = True
            raise ConnectionResetError("the response can't be decoded, so none of it is forwarded")

    def _decompress(self, chunk: Hidden[bytes]) -> Iterator[Hidden[bytes]]:
        if self.decompressor is None:
            yield chunk
            return
        compressed = chunk.reveal()
        while compressed:
            plain = Hidden(self.decompressor.decompress(compressed, _CHUNK_BYTES))
            compressed = self.decompressor.unconsumed_tail
            self.decompressed_bytes += len(plain.reveal())
            # Data after the end of the gzip stream, or a decompression bomb.
            if self.decompressor.unused_data or self.decompressed_bytes > MAX_RESPONSE_BYTES:
                raise ConnectionResetError("the body is longer than its encoding or the limit allows")
            yield plain

    async def finish(self, raw_response: RawResponse) -> web.StreamResponse:
        """End the body of a complete response; close the connection if the response is truncated."""
        response, record = self.response, self.record
        assert response is not None  # noqa: S101  # as above
        record.request_id = self.mask.mask_text(request_id_of(raw_response) or "") or None
        # An empty body, such as that of a 204, is not compressed, whatever its Content-Encoding says.
        is_complete = self.decompressor is None or self.decompressor.eof or not self.has_body
        if raw_response.body_error is None and is_complete:
            await self._send_in_time(lambda: response.write_eof(self.mask.flush().reveal()))
            record.delivered = not self.caller_gone
        else:
            record.error_code = error_responses.UPSTREAM_LOST.code
            self._close_connection()
        return response

    async def _send_in_time(self, send: Callable[[], Awaitable[Any]]) -> None:
        if self.caller_gone:
            return
        try:
            async with asyncio.timeout(self.caller_timeout):
                await send()
            # aiohttp's wait for a connection that was closed meanwhile ends without an error.
            self.caller_gone = self.request.transport is None or self.request.transport.is_closing()
        except (ConnectionError, TimeoutError):
            self.caller_gone = True
            if (transport := self.request.transport) is not None:
                transport.abort()  # close() would wait until the caller has read what was sent

    def _close_connection(self) -> None:
        if (transport := self.request.transport) is None:
            return
        if self.request.version < HttpVersion11:
            # In HTTP/1.0 the end of the connection is the end of a response. Only a reset shows a truncation.
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            )
            transport.abort()
        transport.close()


@define(eq=False)
class TracedAttempt:
    """An attempt at Plaid, for its span.

    Attributes:
        endpoint: the operation.
        headers: the headers to send with it, which continue a trace.
        response: the response, when that has ended.
    """

    endpoint: Endpoint[Any, Any]
    headers: dict[str, str] = field(factory=dict)
    response: RawResponse | None = None


class Upstream:
    """Sends calls to Plaid.

    Attributes:
        in_flight: the number of calls in flight.

    Args:
        session: the connection pool, which is open.
        base_url: the base URL of Plaid's API.
        timeouts: the timeouts of an attempt.
        caller_timeout: seconds for a caller to receive each chunk of a response, for a call to wait for a
            connection, and for the source of the credentials.
        attempt_span: returns a context manager in which the attempt runs, and which records its span.
    """

    def __init__(
        self,
        session: SessionManager,
        base_url: str,
        timeouts: Timeouts,
        caller_timeout: float,
        attempt_span: Callable[[TracedAttempt], AbstractContextManager[None]],
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._timeouts = timeouts
        self._caller_timeout = caller_timeout
        self._attempt_span = attempt_span
        self.in_flight = 0

    async def forward(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        authenticator: Authenticator,
        request: web.BaseRequest,
        record: AuditRecord,
    ) -> web.StreamResponse:
        """Make one attempt, forward its response, and fill in the audit record.

        Raises:
            GatewayError: BUSY, CALLER_GONE, UPSTREAM_UNREACHABLE, UPSTREAM_LOST, UPSTREAM_ENCODING,
                UPSTREAM_TIMEOUT.
        """
        # Waiting for a connection here keeps it out of the attempt's timeouts (backpressure before the pool).
        slots = self._session.slots
        try:
            async with asyncio.timeout(self._caller_timeout):
                await slots.acquire()
        except TimeoutError:
            raise GatewayError(error_responses.BUSY) from None
        self.in_flight += 1
        try:
            return await self._run_attempt(endpoint, body, authenticator, request, record)
        finally:
            self.in_flight -= 1
            slots.release()

    async def _run_attempt(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        authenticator: Authenticator,
        request: web.BaseRequest,
        record: AuditRecord,
    ) -> web.StreamResponse:
        now, total = asyncio.get_running_loop().time(), self._timeouts.total or math.inf
        try:
            # A callable source of credentials may hang; it gets no more time than a caller.
            authentication = await authenticator.authenticate(now + min(self._caller_timeout, total))
            self._session.check_usable()  # the gateway may have been closed meanwhile
            # The caller could not receive the token, so nothing is sent for it.
            if abort_if_disconnected(request.protocol):
                raise GatewayError(error_responses.CALLER_GONE)
            downstream = _Downstream(request, self._caller_timeout, Mask(authentication.secret), record)
            traced = TracedAttempt(endpoint)
            with self._attempt_span(traced):
                attempt = self._build_attempt(traced, body, authentication, downstream, now + total)
                raw_response = traced.response = await send_attempt(self._session.exchange, attempt)
            if downstream.response is None:  # start_response() rejected the status or the encoding
                assert raw_response.body_error is not None  # noqa: S101  # so the body counts as lost
                if downstream.undecodable:
                    _log.warning("%s: the Content-Encoding of the response is unknown", endpoint.path)
                    raise GatewayError(error_responses.UPSTREAM_ENCODING)
                raise raw_response.body_error
        # ConfigurationError: the source of the credentials returned another object.
        except (NotSentError, ConfigurationError) as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_UNREACHABLE
        except ReadTimeoutError as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_TIMEOUT
        except ConnectionLostError as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_LOST
        else:
            return await downstream.finish(raw_response)
        _log.warning("%s: %s", endpoint.path, problem)
        raise GatewayError(reason)

    def _build_attempt(
        self,
        traced: TracedAttempt,
        body: Hidden[bytes],
        authentication: Authentication,
        downstream: _Downstream,
        deadline: float,
    ) -> Attempt:
        endpoint = traced.endpoint
        forwarded = _forwarded_headers(downstream.request.headers, _REQUEST_HEADERS)
        return Attempt(
            prepared_request=self._session.exchange.prepare(
                self._base_url + endpoint.path,
                {
                    **_REQUEST_HEADERS,
                    **forwarded,
                    **endpoint.headers,
                    **traced.headers,
                    **authentication.headers,
                },
            ),
            body=body.reveal(),
            # As for a safe operation, a lost response raises ConnectionLostError: the gateway never repeats a
            # call, and what the loss means for this operation is the caller's decision.
            idempotency=Idempotency.SAFE,
            read_timeout=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            deadline=Deadline(self._session.deadline_timer, deadline, self._timeouts.connect),
            max_bytes=MAX_RESPONSE_BYTES,
            body_writer=downstream,
            on_interrupted=_ignore_interruption,
        )


def _forwarded_headers(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    # A value that no header can carry would break the request, or the response with its token.
    present = {name: headers[name] for name in names if name in headers}
    return {name: value for name, value in present.items() if value.isascii() and value.isprintable()}


def _ignore_interruption(_response: RawResponse | None, _error: PlaidRelayError) -> None:
    """Ignore a cancelled attempt: only a closing gateway cancels one, and it also closes the connection."""
