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

    def data_received(self, data: bytes) -> None:
        """Take what came."""
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
    """What a connection is at; the lowest gives way to a new one."""

    OWING = 1
    """A request, or the rest of one: nothing was carried out for it."""
    IDLE = 2
    BUSY = 3
    """It gives way to nobody."""


class Listener(web.Server):
    """aiohttp's server with bounds: of too many connections the one goes that has owed most for longest.

    Args:
        handler: takes a request and gives its answer.
        most: connections at once.
        patience: seconds for the head of a request, from its first byte, or from the connection's beginning;
            and for the handshake of TLS. Half a head that came along with the request before it has the time
            of an idle connection, for nothing tells that there is one.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        most: int,
        patience: float,
    ) -> None:
        super().__init__(self._answer)
        self._answered_by = handler
        self._most = most
        self._patience = patience
        # In the order in which they came to be so.
        self._stages: dict[web.RequestHandler, _Stage] = {}
        self._timers: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        self._under_way = 0
        self._calm = asyncio.Event()
        self._calm.set()

    def __call__(self) -> web.RequestHandler:
        """Make the handler of one more connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEPT,
            lingering_time=min(_LINGERS, self._patience),
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            auto_decompress=False,
            access_log=None,
        )

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._stages)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection in, and another one's place if need be."""
        super().connection_made(handler, transport)
        if len(self) >= self._most:
            yielding = (other for other, stage in self._stages.items() if stage is not _Stage.BUSY)
            other = min(yielding, key=self._stages.__getitem__, default=handler)
            self._leave(other)
            other.force_close()
        if _is_open(handler):
            self._await_request(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._leave(handler)

    def heard(self, handler: web.RequestHandler) -> None:
        """Give a connection that begins to say something its time for it."""
        if self._stages.get(handler) is _Stage.IDLE:
            self._await_request(handler)

    def _await_request(self, handler: web.RequestHandler) -> None:
        self._enter(handler, _Stage.OWING)
        self._timers[handler] = asyncio.get_running_loop().call_later(self._patience, handler.force_close)

    def _enter(self, handler: web.RequestHandler, stage: _Stage) -> None:
        self._leave(handler)
        self._stages[handler] = stage

    def _leave(self, handler: web.RequestHandler) -> None:
        self._stages.pop(handler, None)
        if timer := self._timers.pop(handler, None):
            timer.cancel()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        self._enter(handler, _Stage.BUSY)
        self._under_way += 1
        self._calm.clear()
        try:
            return await self._answered_by(request)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._calm.set()
            self._leave(handler)
            if _is_open(handler):
                self._enter(handler, _Stage.IDLE)

    @contextlib.contextmanager
    def awaiting_body(self, handler: web.RequestHandler) -> Iterator[None]:
        """Have a connection whose request is being answered give way to a new one meanwhile."""
        self._enter(handler, _Stage.OWING)
        try:
            yield
        finally:
            if handler in self._stages:
                self._enter(handler, _Stage.BUSY)

    @contextlib.asynccontextmanager
    async def listening(
        self, host: str, port: int, ssl: tls.SSLContext | None = None
    ) -> AsyncIterator[asyncio.Server]:
        """Take connections, and close them all in the end.

        Raises:
            OSError: the address can't be had.
        """
        # asyncio's own bound is a minute.
        handshake = None if ssl is None else max(self._patience, 0.001)
        server = await asyncio.get_running_loop().create_server(
            self, host, port, ssl=ssl, ssl_handshake_timeout=handshake
        )
        try:
            yield server
        finally:
            server.close()
            await self.shutdown(_CUT)

    async def drain(self, seconds: float) -> None:
        """Close what is idle, and wait until what is under way has ended, for so long at most."""
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()


def _is_open(handler: web.RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
