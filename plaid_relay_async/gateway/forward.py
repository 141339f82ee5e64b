"""One attempt at Plaid for one request, and its answer passed on as it comes."""

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
from attrs import define

from plaid_relay_async.codec import Endpoint, Idempotency, RawResponse, request_id_of
from plaid_relay_async.config import PLAID_VERSION, USER_AGENT, Timeouts
from plaid_relay_async.errors import (
    ConfigurationError,
    ConnectionLostError,
    Hidden,
    NotSentError,
    ReadTimeoutError,
)
from plaid_relay_async.gateway import error_responses
from plaid_relay_async.gateway.audit import AuditRecord
from plaid_relay_async.gateway.error_responses import NO_STORE, GatewayError
from plaid_relay_async.gateway.mask import Mask
from plaid_relay_async.transport import MAX_RESPONSE_BYTES
from plaid_relay_async.transport.wire import IDENTITY_ENCODING, Attempt, send_attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from plaid_relay_async.errors import PlaidRelayError
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.transport import Authenticator

_log = logging.getLogger(__name__)

_REQUEST_HEADERS: Final = {"Accept": "*/*", "Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}
_RESPONSE_HEADERS: Final = (
    "Content-Type",
    "Content-Disposition",
    "Date",
    "Retry-After",
    "Plaid-Request-ID",
    "X-Request-ID",
)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# With one of these the length on this side is another one, or isn't known: what is zipped is passed on plain.
_REFRAMING_HEADERS: Final = {"Transfer-Encoding", "Content-Encoding"}
# What aiohttp decodes; in anything else the secret could be quoted unseen.
_DECODABLE_ENCODINGS: Final = {"", "identity", "gzip", "deflate", "br", "zstd"}
_CHUNK_BYTES: Final = 256 * 1024


@define(eq=False)
class _Downstream:
    """Takes the answer, and hands it to the caller; one that goes, or takes too long, is given up.

    What comes from Plaid is read to its end all the same: its connection is needed again, and the id of the
    request may stand there.
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
        if response.status < 200:
            raise ConnectionResetError("an answer that is none ends what was agreed on this connection")
        self._prepare_decoding(response)
        asked = _forwarded_headers(response.headers, _RESPONSE_HEADERS)
        headers = {**NO_STORE, **{name: self.mask.mask_text(value) for name, value in asked.items()}}
        self.response = web.StreamResponse(status=response.status, headers=headers)
        if "Content-Length" in response.headers and not any(
            name in response.headers for name in _REFRAMING_HEADERS
        ):
            self.response.content_length = int(response.headers["Content-Length"])
        self.record.status = response.status
        await self._send_in_time(partial(self.response.prepare, self.request))
        return True

    async def write(self, chunk: Hidden[bytes]) -> None:
        response = self.response
        assert response is not None  # noqa: S101  # an answer begins before its body
        self.has_body |= bool(chunk.reveal())
        for plain in self._decompress(chunk):
            if not self.caller_gone and (shown := self.mask.mask_piece(plain)).reveal():
                await self._send_in_time(partial(response.write, shown.reveal()))

    def _prepare_decoding(self, response: RawResponse) -> None:
        """Prepare to decode what aiohttp doesn't, or refuse it."""
        headers: Any = response.headers
        encoding = ",".join(headers.getall("Content-Encoding", [])).strip().lower()
        if encoding == "x-gzip":  # the same as gzip, by RFC 9110
            self.decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        elif (
            encoding not in _DECODABLE_ENCODINGS
            or headers.get("Transfer-Encoding", "chunked").lower() != "chunked"
        ):
            self.undecodable = True
            raise ConnectionResetError("nothing of it can be shown")

    def _decompress(self, chunk: Hidden[bytes]) -> Iterator[Hidden[bytes]]:
        if self.decompressor is None:
            yield chunk
            return
        left = chunk.reveal()
        while left:
            plain = Hidden(self.decompressor.decompress(left, _CHUNK_BYTES))
            left = self.decompressor.unconsumed_tail
            self.decompressed_bytes += len(plain.reveal())
            if self.decompressor.unused_data or self.decompressed_bytes > MAX_RESPONSE_BYTES:
                raise ConnectionResetError("it doesn't end where it should")
            yield plain

    async def finish(self, answer: RawResponse) -> web.StreamResponse:
        """Close the framing of a whole answer; where it isn't whole, the connection."""
        response, entry = self.response, self.record
        assert response is not None  # noqa: S101  # as above
        entry.request_id = self.mask.mask_text(request_id_of(answer) or "") or None
        # A body without a byte, such as that of a 204, isn't compressed, whatever its header says.
        is_whole = self.decompressor is None or self.decompressor.eof or not self.has_body
        if answer.body_error is None and is_whole:
            await self._send_in_time(lambda: response.write_eof(self.mask.flush().reveal()))
            entry.delivered = not self.caller_gone
        else:
            entry.error_code = error_responses.UPSTREAM_LOST.code
            self._close_connection()
        return response

    async def _send_in_time(self, send: Callable[[], Awaitable[Any]]) -> None:
        if self.caller_gone:
            return
        try:
            async with asyncio.timeout(self.caller_timeout):
                await send()
            # A wait for a connection that was closed meanwhile ends as if all had been taken.
            self.caller_gone = self.request.transport is None or self.request.transport.is_closing()
        except (ConnectionError, TimeoutError):
            self.caller_gone = True
            if (transport := self.request.transport) is not None:
                transport.abort()  # to close would wait for it to take what it was sent

    def _close_connection(self) -> None:
        if (transport := self.request.transport) is None:
            return
        if self.request.version < HttpVersion11:
            # There the mere end of a connection may be the end of an answer, but for a reset.
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            )
            transport.abort()
        transport.close()


class Upstream:
    """Plaid, as the gateway reaches it.

    Args:
        session: its pool, open.
        base_url: its address.
        timeouts: of an attempt.
        patience: seconds for which a caller may keep a piece of an answer waiting, and a call may wait for a
            connection, and for the source of the credentials.
    """

    def __init__(
        self, session: SessionManager, base_url: str, timeouts: Timeouts, caller_timeout: float
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._timeouts = timeouts
        self._caller_timeout = caller_timeout
        self.in_flight = 0

    async def forward(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Authenticator,
        request: web.BaseRequest,
        record: AuditRecord,
    ) -> web.StreamResponse:
        """Make one attempt, and pass its answer on; what is known of that is noted in the entry.

        Raises:
            RefusedError: BUSY, CALLER_GONE, UPSTREAM_UNREACHABLE, UPSTREAM_LOST, UPSTREAM_TIMEOUT.
        """
        slots = self._session.slots
        try:
            async with asyncio.timeout(self._caller_timeout):
                await slots.acquire()
        except TimeoutError:
            raise GatewayError(error_responses.BUSY) from None
        self.in_flight += 1
        try:
            return await self._run_attempt(endpoint, body, signer, request, record)
        finally:
            self.in_flight -= 1
            slots.release()

    async def _run_attempt(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Authenticator,
        request: web.BaseRequest,
        entry: AuditRecord,
    ) -> web.StreamResponse:
        try:
            downstream, attempt = await self._prepare_attempt(endpoint, body, signer, request, entry)
            answer = await send_attempt(self._session.get_exchange(), attempt)
            if downstream.response is None:  # a status that is no answer
                assert answer.body_error is not None  # noqa: S101  # so it was taken for lost
                if downstream.undecodable:
                    _log.warning("%s: the Content-Encoding of the response is unknown", endpoint.path)
                    raise GatewayError(error_responses.UPSTREAM_ENCODING)
                raise answer.body_error
        # ConfigurationError where the credentials' source gave something else.
        except (NotSentError, ConfigurationError) as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_UNREACHABLE
        except ReadTimeoutError as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_TIMEOUT
        except ConnectionLostError as error:
            problem, reason = error.args[0], error_responses.UPSTREAM_LOST
        else:
            return await downstream.finish(answer)
        _log.warning("%s: %s", endpoint.path, problem)
        raise GatewayError(reason)

    async def _prepare_attempt(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Authenticator,
        request: web.BaseRequest,
        entry: AuditRecord,
    ) -> tuple[_Downstream, Attempt]:
        now, total = asyncio.get_running_loop().time(), self._timeouts.total
        signature = await signer.authenticate(now + min(self._caller_timeout, total or math.inf))
        if request.transport is None or request.transport.is_closing():  # no caller would get the token
            raise GatewayError(error_responses.CALLER_GONE)
        downstream = _Downstream(request, self._caller_timeout, Mask(signature.secret), entry)
        asked = _forwarded_headers(request.headers, _REQUEST_HEADERS)
        plain = IDENTITY_ENCODING if endpoint.idempotency is Idempotency.NON_IDEMPOTENT else {}
        attempt = Attempt(
            prepared_request=self._session.get_exchange().prepare(
                self._base_url + endpoint.path, _REQUEST_HEADERS | asked | plain | signature.headers
            ),
            body=body,
            # Nothing is repeated here, whatever it is: what a lost answer means, its caller has to say.
            idempotency=Idempotency.SAFE,
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            deadline=self._session.deadline_timer.create_deadline(None if total is None else now + total),
            max_bytes=MAX_RESPONSE_BYTES,
            body_writer=downstream,
            on_interrupted=_ignore_interruption,
        )
        return downstream, attempt


def _forwarded_headers(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    # What no header can carry would break the request, or the answer with its token.
    there = {name: headers[name] for name in names if name in headers}
    return {name: value for name, value in there.items() if value.isascii() and value.isprintable()}


def _ignore_interruption(_answer: RawResponse | None, _error: PlaidRelayError) -> None:
    """An attempt ends so only when the gateway is cut off: its caller's connection is closed as well."""
