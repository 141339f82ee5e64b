"""The callers' connections, bounded in number and in how long they may say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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

    # Where aiohttp before 3.14 fails to parse what follows an offer of WebSockets.
    def log_exception(  # pragma: no cover
        self, *_: object, exc_info: BaseException | None = None, **__: object
    ) -> None:
        """Tell of what ended a connection, by its class alone."""
        _log.error("a connection ended in %s", type(exc_info).__name__)


def request_id() -> str:
    """Give an id for an answer of the gateway's own."""
    return f"gateway-{secrets.token_hex(8)}"


class Listener(web.Server):
    """aiohttp's server with bounds: of too many connections the one goes that has owed most for longest.

    Args:
        handler: takes a request and gives its answer.
        most: connections at once.
        patience: seconds for the head of a request, from its first byte, or from the connection's beginning.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        most: int,
        patience: float,
    ) -> None:
        super().__init__(handler)
        self._most = most
        self._patience = patience
        # In the order in which they came to be so. Who owes a request, or its rest, has a time for that.
        self._owing: dict[web.RequestHandler, asyncio.TimerHandle | None] = {}
        self._idle: dict[web.RequestHandler, None] = {}
        self._busy: set[web.RequestHandler] = set()
        self._calm = asyncio.Event()
        self._calm.set()

    def __call__(self) -> web.RequestHandler:
        """Make the handler of one more connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEPT,
            lingering_time=_LINGERS,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            auto_decompress=False,
            access_log=None,
        )

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._owing) + len(self._idle) + len(self._busy)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection in, and another one's place if need be."""
        super().connection_made(handler, transport)
        if len(self) >= self._most:
            other = next(itertools.chain(self._owing, self._idle), handler)
            self._forget(other)
            other.force_close()
        if handler.transport is not None and not handler.transport.is_closing():
            self._await_request(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._forget(handler)

    def heard(self, handler: web.RequestHandler) -> None:
        """Give a connection that begins to say something its time for it."""
        if handler in self._idle:
            self._await_request(handler)

    def _await_request(self, handler: web.RequestHandler) -> None:
        self._forget(handler)
        self._owing[handler] = asyncio.get_running_loop().call_later(self._patience, handler.force_close)

    def _forget(self, handler: web.RequestHandler) -> None:
        if timer := self._owing.pop(handler, None):
            timer.cancel()
        self._idle.pop(handler, None)
        self._busy.discard(handler)
        # Whose body is awaited has no timer here: that is under way as well.
        if not self._busy and None not in self._owing.values():
            self._calm.set()

    @contextlib.contextmanager
    def at_work(self, handler: web.RequestHandler) -> Iterator[None]:
        """Have a connection count as busy meanwhile."""
        self._forget(handler)
        self._busy.add(handler)
        self._calm.clear()
        try:
            yield
        finally:
            self._forget(handler)
            if handler.transport is not None and not handler.transport.is_closing():
                self._idle[handler] = None

    @contextlib.contextmanager
    def awaiting_body(self, handler: web.RequestHandler) -> Iterator[None]:
        """Have a connection that is at work give way to a new one: nothing was carried out for it."""
        self._busy.discard(handler)
        self._owing[handler] = None
        try:
            yield
        finally:
            if handler in self._owing:
                del self._owing[handler]
                self._busy.add(handler)

    async def drain(self, seconds: float) -> None:
        """Close what is idle, and wait until what is under way has ended, for so long at most."""
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()


@contextlib.asynccontextmanager
async def serving(
    server: web.Server,
    host: str,
    port: int,
    *,
    ssl: tls.SSLContext | None = None,
    handshake: float | None = None,
) -> AsyncIterator[asyncio.Server]:
    """Listen meanwhile.

    Args:
        server: makes the handler of each connection.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        ssl: the context, if it speaks TLS.
        handshake: seconds for that of TLS. aiohttp's own sites leave a caller a minute.

    Raises:
        OSError: the address can't be had.
    """
    runner = web.ServerRunner(server, shutdown_timeout=0.5)
    await runner.setup()
    try:
        listening = await asyncio.get_running_loop().create_server(
            server, host, port, ssl=ssl, ssl_handshake_timeout=handshake if ssl else None
        )
        try:
            yield listening
        finally:
            listening.close()
    finally:
        await runner.cleanup()


def port_of(listening: asyncio.Server) -> int:
    """Give the port that it listens on."""
    return int(listening.sockets[0].getsockname()[1])
