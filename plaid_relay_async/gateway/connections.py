"""The callers' connections, bounded in number and in how long they may say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web

from plaid_relay_async.gateway import refusals

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_log = logging.getLogger(__name__)

_KEPT = 75.0  # seconds for which an idle connection is kept; longer than the usual clients keep theirs
_LINGERS = 2.0  # seconds for the rest of a request that was refused to arrive, so that the answer is read
_CUT = 0.5  # seconds for what is cut to notice
_LONGEST_LINE = 8190  # bytes, of the request line and of each header, as aiohttp and Apache have it


class _Connection(web.RequestHandler):
    """One connection; what is no HTTP gets an answer, and a line in the log, that quote nothing of it."""

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self._listener = listener
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connection that was accepted, unless there are too many."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # nothing else is listened for
        # So that whoever waits for a drain knows that all was handed to the system.
        transport.set_write_buffer_limits(high=0)
        if not self._listener.accept(self, transport):
            return
        if self._listener.ssl is None:
            super().connection_made(transport)
        else:
            self._handshake = asyncio.create_task(self._secure(transport, self._listener.ssl))

    async def _secure(self, transport: asyncio.Transport, ssl: tls.SSLContext) -> None:
        """Agree on TLS. asyncio's server would do so before it says that there is a connection to count."""
        patience = max(self._listener.patience, 0.001)
        secured = None
        with contextlib.suppress(OSError):
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                ssl,
                server_side=True,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=patience,
            )
        self._handshake = None
        if secured is None or secured.is_closing():
            transport.abort()
            self._listener.forget(self)
            return
        secured.set_write_buffer_limits(high=0)
        super().connection_made(secured)
        if self._early:
            super().data_received(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._handshake is not None:  # it came along with the end of the handshake
            self._early += data
            return
        self._listener.heard(self)
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it quotes what came
    ) -> web.StreamResponse:
        """Answer a request that can't be parsed, or that met a bug."""
        bug = status >= 500
        _log.log(logging.ERROR if bug else logging.INFO, "a request ended in %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        reason = refusals.INTERNAL_ERROR if bug else refusals.INVALID_HTTP
        response = refusals.answer_of(reason, request_id())
        response.force_close()
        self._listener.await_caller(self)
        return response

    def log_exception(  # pragma: no cover  # aiohttp before 3.14 comes here, from what follows an upgrade
        self, *_: object, exc_info: BaseException | None = None, **__: object
    ) -> None:
        """Tell of what ended a connection, by its class alone."""
        _log.error("a connection ended in %s", type(exc_info).__name__)


def request_id() -> str:
    """Give an id for an answer of the gateway's own."""
    return f"gateway-{secrets.token_hex(8)}"


class _Stage(enum.IntEnum):
    """What a connection is at; of two of the same standing the lower one gives way to a new one."""

    OWING = 1
    """Its caller is waited for: to agree on TLS, to send a request or the rest of one, or to take what the
    gateway answers by itself. Nothing was carried out for it that its caller doesn't know of."""
    IDLE = 2
    BUSY = 3
    """It gives way to no other."""


class _Standing(enum.IntEnum):
    """Whose a connection is; the lowest gives way to a new one."""

    STRANGER = 0
    """It was answered, and showed no key."""
    NEW = 1
    KNOWN = 2
    """A key was shown on it: it goes after all others."""


class Listener(web.Server):
    """aiohttp's server with bounds: of too many connections one goes, by its standing, its stage and its age.

    A connection counts from the moment at which it is accepted until its socket is closed. One that has to go
    is aborted: to close it would wait until its peer has taken what was sent.

    Args:
        handler: takes a request and returns its answer.
        most: connections at once.
        patience: seconds for the head of a request, from its first byte, or from the connection's beginning;
            for the handshake of TLS; and to take an answer of the gateway's own. Half a head that came with
            the request before it has the time of an idle connection, because it can't be recognized.
        ssl: the context with its certificate.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        most: int,
        patience: float,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        super().__init__(self._answer)
        self._answered_by = handler
        self._most = most
        self.patience = patience
        self.ssl = ssl
        self._transports: dict[web.RequestHandler, asyncio.Transport] = {}
        # In the order in which they came to be so; what was aborted isn't there any more.
        self._stages: dict[web.RequestHandler, _Stage] = {}
        self._timers: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        self._standings: dict[web.RequestHandler, _Standing] = {}
        self._under_way = 0
        self._calm = asyncio.Event()
        self._calm.set()

    def __call__(self) -> web.RequestHandler:
        """Make the handler of one more connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEPT,
            lingering_time=min(_LINGERS, self.patience),
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            auto_decompress=False,
            access_log=None,
        )

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._transports)

    def accept(self, handler: web.RequestHandler, transport: asyncio.Transport) -> bool:
        """Take a connection in, and another one's place if need be; return whether there is room."""
        self._transports[handler] = transport
        self._standings[handler] = _Standing.NEW
        if len(self._stages) >= self._most:
            yielding = (other for other, stage in self._stages.items() if stage is not _Stage.BUSY)
            self._abort(min(yielding, key=self._rank, default=handler))
        if transport.is_closing():
            return False
        self.await_caller(handler)
        return True

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self.forget(handler)

    def _rank(self, handler: web.RequestHandler) -> tuple[_Standing, _Stage]:
        return self._standings[handler], self._stages[handler]

    def know(self, handler: web.RequestHandler) -> None:
        """Have a connection on which a key was shown give way after all those on which none was."""
        self._standings[handler] = _Standing.KNOWN

    def forget(self, handler: web.RequestHandler) -> None:
        """Count a connection no longer."""
        self._leave(handler)
        self._standings.pop(handler, None)
        self._transports.pop(handler, None)

    def heard(self, handler: web.RequestHandler) -> None:
        """Give a connection that begins to say something its time for it."""
        if self._stages.get(handler) is _Stage.IDLE:
            self.await_caller(handler)

    def await_caller(self, handler: web.RequestHandler) -> None:
        """Give the caller its time, after which the connection is aborted."""
        if self._enter(handler, _Stage.OWING):
            self._timers[handler] = asyncio.get_running_loop().call_later(self.patience, self._abort, handler)

    def _enter(self, handler: web.RequestHandler, stage: _Stage) -> bool:
        """Have a connection at a stage; return whether it is still there."""
        self._leave(handler)
        if there := handler in self._transports:
            self._stages[handler] = stage
        return there

    def _leave(self, handler: web.RequestHandler) -> None:
        self._stages.pop(handler, None)
        if timer := self._timers.pop(handler, None):
            timer.cancel()

    def _abort(self, handler: web.RequestHandler) -> None:
        self._leave(handler)
        self._transports[handler].abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        self._enter(handler, _Stage.BUSY)
        if self._standings.get(handler) is _Standing.NEW:
            self._standings[handler] = _Standing.STRANGER
        self._under_way += 1
        self._calm.clear()
        try:
            response = await self._answered_by(request)
            await self.deliver(request, response)
            return response
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._calm.set()
            if _is_open(handler):
                self._enter(handler, _Stage.IDLE)
            else:  # it is closed once its caller has taken what was sent
                self.await_caller(handler)

    async def deliver(self, request: web.BaseRequest, response: web.StreamResponse) -> bool:
        """Send a response, unless it was sent, and return whether the system took all of it for its caller.

        The connection gives way to a new one meanwhile, and is aborted if the caller takes too long.
        """
        with contextlib.suppress(ConnectionError), self.awaiting(request.protocol):
            self.await_caller(request.protocol)
            await response.prepare(request)
            await response.write_eof()
        return request.transport is not None and not request.transport.is_closing()

    @contextlib.contextmanager
    def awaiting(self, handler: web.RequestHandler) -> Iterator[None]:
        """Have a connection whose caller is waited for give way to a new one meanwhile."""
        self._enter(handler, _Stage.OWING)
        try:
            yield
        finally:
            self._enter(handler, _Stage.BUSY)

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[asyncio.Server]:
        """Take connections, and close them all in the end.

        Raises:
            OSError: the address can't be had.
        """
        server = await asyncio.get_running_loop().create_server(self, host, port)
        try:
            yield server
        finally:
            server.close()
            await self.shutdown(_CUT)
            while self._transports:
                for transport in self._transports.values():
                    transport.abort()
                await asyncio.sleep(0)

    async def drain(self, seconds: float) -> None:
        """Close what is idle, and wait until what is under way has ended, for so long at most."""
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()


def _is_open(handler: web.RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
