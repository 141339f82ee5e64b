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

from plaid_relay_async.codec import Answer, Endpoint, Replay, request_id_of
from plaid_relay_async.config import PLAID_VERSION, USER_AGENT, Timeouts
from plaid_relay_async.errors import (
    ConfigurationError,
    ConnectionLostError,
    Hidden,
    NotSentError,
    ReadTimeoutError,
)
from plaid_relay_async.gateway import refusals
from plaid_relay_async.gateway.audit import Entry
from plaid_relay_async.gateway.mask import Mask
from plaid_relay_async.gateway.refusals import NO_STORE, RefusedError
from plaid_relay_async.transport import MAX_RESPONSE_BYTES
from plaid_relay_async.transport.wire import PLAIN, Attempt, send

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from plaid_relay_async.errors import PlaidRelayError
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.transport import Signer

_log = logging.getLogger(__name__)

_UP: Final = {"Accept": "*/*", "Plaid-Version": PLAID_VERSION, "User-Agent": USER_AGENT}
_DOWN: Final = (
    "Content-Type",
    "Content-Disposition",
    "Date",
    "Retry-After",
    "Plaid-Request-ID",
    "X-Request-ID",
)
_RESET: Final = struct.pack("ii", 1, 0)
# With one of these the length on this side is another one, or isn't known: what is zipped is passed on plain.
_CHANGED: Final = {"Transfer-Encoding", "Content-Encoding"}
# What aiohttp decodes; in anything else the secret could be quoted unseen.
_DECODED: Final = {"", "identity", "gzip", "deflate", "br", "zstd"}
_PIECE: Final = 256 * 1024


@define(eq=False)
class _Downstream:
    """Takes the answer, and hands it to the caller; one that goes, or takes too long, is given up.

    What comes from Plaid is read to its end all the same: its connection is needed again, and the id of the
    request may stand there.
    """

    request: web.BaseRequest
    patience: float
    mask: Mask
    entry: Entry
    response: web.StreamResponse | None = None
    gone: bool = False
    undecodable: bool = False
    unzip: Any = None
    unzipped: int = 0
    received: bool = False

    async def begin(self, answer: Answer) -> bool:
        if answer.status < 200:
            raise ConnectionResetError("an answer that is none ends what was agreed on this connection")
        self._decode(answer)
        asked = _passed_on(answer.headers, _DOWN)
        headers = {**NO_STORE, **{name: self.mask.over_all(value) for name, value in asked.items()}}
        self.response = web.StreamResponse(status=answer.status, headers=headers)
        if "Content-Length" in answer.headers and not any(name in answer.headers for name in _CHANGED):
            self.response.content_length = int(answer.headers["Content-Length"])
        self.entry.status = answer.status
        await self._within_patience(partial(self.response.prepare, self.request))
        return True

    async def write(self, piece: Hidden[bytes]) -> None:
        response = self.response
        assert response is not None  # noqa: S101  # an answer begins before its body
        self.received |= bool(piece.reveal())
        for plain in self._unzipped(piece):
            if not self.gone and (shown := self.mask.over(plain)).reveal():
                await self._within_patience(partial(response.write, shown.reveal()))

    def _decode(self, answer: Answer) -> None:
        """Prepare to decode what aiohttp doesn't, or refuse it."""
        headers: Any = answer.headers
        encoding = ",".join(headers.getall("Content-Encoding", [])).strip().lower()
        if encoding == "x-gzip":  # the same as gzip, by RFC 9110
            self.unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        elif encoding not in _DECODED or headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            self.undecodable = True
            raise ConnectionResetError("nothing of it can be shown")

    def _unzipped(self, piece: Hidden[bytes]) -> Iterator[Hidden[bytes]]:
        if self.unzip is None:
            yield piece
            return
        left = piece.reveal()
        while left:
            plain = Hidden(self.unzip.decompress(left, _PIECE))
            left = self.unzip.unconsumed_tail
            self.unzipped += len(plain.reveal())
            if self.unzip.unused_data or self.unzipped > MAX_RESPONSE_BYTES:
                raise ConnectionResetError("it doesn't end where it should")
            yield plain

    async def end(self, answer: Answer) -> web.StreamResponse:
        """Close the framing of a whole answer; where it isn't whole, the connection."""
        response, entry = self.response, self.entry
        assert response is not None  # noqa: S101  # as above
        entry.request_id = self.mask.over_all(request_id_of(answer) or "") or None
        # A body without a byte, such as that of a 204, isn't compressed, whatever its header says.
        is_whole = self.unzip is None or self.unzip.eof or not self.received
        if answer.lost is None and is_whole:
            await self._within_patience(lambda: response.write_eof(self.mask.rest().reveal()))
            entry.delivered = not self.gone
        else:
            entry.error_code = refusals.UPSTREAM_LOST.code
            self._hang_up()
        return response

    async def _within_patience(self, send: Callable[[], Awaitable[Any]]) -> None:
        if self.gone:
            return
        try:
            async with asyncio.timeout(self.patience):
                await send()
            # A wait for a connection that was closed meanwhile ends as if all had been taken.
            self.gone = self.request.transport is None or self.request.transport.is_closing()
        except (ConnectionError, TimeoutError):
            self.gone = True
            if (transport := self.request.transport) is not None:
                transport.abort()  # to close would wait for it to take what it was sent

    def _hang_up(self) -> None:
        if (transport := self.request.transport) is None:
            return
        if self.request.version < HttpVersion11:
            # There the mere end of a connection may be the end of an answer, but for a reset.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
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

    def __init__(self, session: SessionManager, base_url: str, timeouts: Timeouts, patience: float) -> None:
        self._session = session
        self._base_url = base_url
        self._timeouts = timeouts
        self._patience = patience
        self.in_flight = 0

    async def forward(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Signer,
        request: web.BaseRequest,
        entry: Entry,
    ) -> web.StreamResponse:
        """Make one attempt, and pass its answer on; what is known of that is noted in the entry.

        Raises:
            RefusedError: BUSY, CALLER_GONE, UPSTREAM_UNREACHABLE, UPSTREAM_LOST, UPSTREAM_TIMEOUT.
        """
        slots = self._session.slots
        try:
            async with asyncio.timeout(self._patience):
                await slots.acquire()
        except TimeoutError:
            raise RefusedError(refusals.BUSY) from None
        self.in_flight += 1
        try:
            return await self._attempt(endpoint, body, signer, request, entry)
        finally:
            self.in_flight -= 1
            slots.release()

    async def _attempt(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Signer,
        request: web.BaseRequest,
        entry: Entry,
    ) -> web.StreamResponse:
        try:
            downstream, attempt = await self._signed(endpoint, body, signer, request, entry)
            answer = await send(self._session.get(), attempt)
            if downstream.response is None:  # a status that is no answer
                assert answer.lost is not None  # noqa: S101  # so it was taken for lost
                if downstream.undecodable:
                    _log.warning("%s: the Content-Encoding of the response is unknown", endpoint.path)
                    raise RefusedError(refusals.UPSTREAM_ENCODING)
                raise answer.lost
        # ConfigurationError where the credentials' source gave something else.
        except (NotSentError, ConfigurationError) as error:
            problem, reason = error.args[0], refusals.UPSTREAM_UNREACHABLE
        except ReadTimeoutError as error:
            problem, reason = error.args[0], refusals.UPSTREAM_TIMEOUT
        except ConnectionLostError as error:
            problem, reason = error.args[0], refusals.UPSTREAM_LOST
        else:
            return await downstream.end(answer)
        _log.warning("%s: %s", endpoint.path, problem)
        raise RefusedError(reason)

    async def _signed(
        self,
        endpoint: Endpoint[Any, Any],
        body: Hidden[bytes],
        signer: Signer,
        request: web.BaseRequest,
        entry: Entry,
    ) -> tuple[_Downstream, Attempt]:
        now, total = asyncio.get_running_loop().time(), self._timeouts.total
        signature = await signer.sign(now + min(self._patience, total or math.inf))
        if request.transport is None or request.transport.is_closing():  # no caller would get the token
            raise RefusedError(refusals.CALLER_GONE)
        downstream = _Downstream(request, self._patience, Mask(signature.secret), entry)
        asked = _passed_on(request.headers, _UP)
        plain = PLAIN if endpoint.replay is Replay.CREATES else {}
        attempt = Attempt(
            to=self._session.get().address(
                self._base_url + endpoint.path, _UP | asked | plain | signature.headers
            ),
            body=body,
            # Nothing is repeated here, whatever it is: what a lost answer means, its caller has to say.
            replay=Replay.HARMLESS,
            connect=self._timeouts.connect,
            read=self._timeouts.slow_read if endpoint.slow else self._timeouts.read,
            span=self._session.watch.span(None if total is None else now + total),
            most=MAX_RESPONSE_BYTES,
            into=downstream,
            broken_off=_untold,
        )
        return downstream, attempt


def _passed_on(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    # What no header can carry would break the request, or the answer with its token.
    there = {name: headers[name] for name in names if name in headers}
    return {name: value for name, value in there.items() if value.isascii() and value.isprintable()}


def _untold(_answer: Answer | None, _error: PlaidRelayError) -> None:
    """An attempt ends so only when the gateway is cut off: its caller's connection is closed as well."""
