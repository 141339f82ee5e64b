"""The callers' connections, bounded in number and in how long they may say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import secrets
import select
import socket
from typing import TYPE_CHECKING, Any

from aiohttp import web
from attrs import define

from plaid_relay_async.exchange import unread_check
from plaid_relay_async.gateway import error_responses

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_log = logging.getLogger(__name__)

_KEEPALIVE_SECONDS = (
    75.0  # seconds for which an idle connection is kept; longer than the usual clients keep theirs
)
_LINGER_SECONDS = (
    2.0  # seconds for the rest of a request that was refused to arrive, so that the answer is read
)
_SHUTDOWN_SECONDS = 0.5  # seconds for what is cut to notice
_GRACE_SECONDS = (
    1.0  # seconds for which no connection is aborted for another one: for its caller's request to arrive
)
_MAX_UNSENT_BYTES = (
    65_536  # bytes that the system queues for a caller that doesn't read; otherwise it queues megabytes
)
_CAPACITY_POLL_SECONDS = 0.05  # seconds after which it is checked again whether there is room
_ACCEPT_RETRY_SECONDS = 1.0  # seconds until the next try after the system could not accept, as asyncio has it
_BACKLOG = (
    4096  # callers that the system lets wait, as far as net.core.somaxconn allows; it ignores further ones
)
_MAX_LINE_BYTES = 8190  # bytes, of the request line and of each header, as aiohttp and Apache have it


class _Connection(web.RequestHandler):
    """One connection; what is no HTTP gets an answer, and a line in the log, that quote nothing of it."""

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self._listener = listener
        self._early_data = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connection that was accepted."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # nothing else is listened for
        # A write is then drained only once the system has taken all of it.
        transport.set_write_buffer_limits(high=0)
        self._listener.add_connection(self, transport)
        if self._listener.ssl is None:
            super().connection_made(transport)
        else:
            self._handshake = asyncio.create_task(self._start_tls(transport, self._listener.ssl))

    async def _start_tls(self, transport: asyncio.Transport, ssl: tls.SSLContext) -> None:
        """Agree on TLS. asyncio's server would do so before it says that there is a connection to count."""
        patience = max(self._listener.caller_timeout, 0.001)
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
            self._listener.remove_connection(self)
            return
        secured.set_write_buffer_limits(high=0)
        super().connection_made(secured)
        if self._early_data:
            super().data_received(bytes(self._early_data))
            self._early_data.clear()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._handshake is not None:  # it came along with the end of the handshake
            self._early_data += data
            return
        self._listener.note_data(self)
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
        reason = error_responses.INTERNAL_ERROR if bug else error_responses.INVALID_HTTP
        response = error_responses.error_response(reason, new_request_id())
        response.force_close()
        self._listener.start_caller_timeout(self)
        return response

    def log_exception(  # pragma: no cover  # aiohttp before 3.14 comes here, from what follows an upgrade
        self, *_: object, exc_info: BaseException | None = None, **__: object
    ) -> None:
        """Tell of what ended a connection, by its class alone."""
        _log.error("a connection ended in %s", type(exc_info).__name__)


def new_request_id() -> str:
    """Give an id for an answer of the gateway's own."""
    return f"gateway-{secrets.token_hex(8)}"


class _Stage(enum.IntEnum):
    """The state of a connection; of two with the same standing, the lower one is aborted first."""

    WRITING = 1
    """Its caller has yet to receive a response of the gateway's own."""
    READING = 2
    """Its caller has yet to finish the TLS handshake, or a request."""
    IDLE = 3
    HANDLING = 4
    """A call is in flight: it is never aborted for another connection."""
    ABORTED = 5
    """It was aborted; its socket is closed within a few turns of the event loop."""


class _TrustLevel(enum.IntEnum):
    """What is known of a connection's caller; the lowest is aborted first."""

    UNAUTHENTICATED = 0
    """It got a response, and showed no key."""
    NEW = 1
    AUTHENTICATED = 2
    """It showed a key."""


@define(eq=False)
class _ConnectionState:
    """What the listener knows of one connection.

    Attributes:
        transport: aborts it.
        since: when it was accepted; once a key was shown, when its stage began.
        standing: whether it showed a key.
        stage: what it waits for.
        timer: aborts it when its caller takes too long.
    """

    transport: asyncio.Transport
    since: float
    trust: _TrustLevel = _TrustLevel.NEW
    stage: _Stage = _Stage.READING
    timer: asyncio.TimerHandle | None = None

    def set_stage(self, stage: _Stage, now: float) -> None:
        """Move to a stage, without a time limit."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.stage is not _Stage.ABORTED:
            self.stage = stage
        if self.trust is _TrustLevel.AUTHENTICATED:
            self.since = now

    def abort(self) -> None:
        """Close the socket without waiting until the peer has received what was sent."""
        self.set_stage(_Stage.ABORTED, self.since)
        self.transport.abort()

    def has_waited_since(self, moment: float) -> bool:
        """Return whether it waits for its caller, and has done so since a time or before."""
        return self.stage < _Stage.HANDLING and self.since <= moment


def _has_disconnected(accepted: socket.socket, *, half_close: bool) -> bool:
    """Return whether a caller reset its connection while it waited, or, with `half`, closed its side of it.

    A caller that closes its side may wait for the response to plain HTTP; no TLS handshake can follow.
    """
    poll = select.poll()
    poll.register(accepted, select.POLLRDHUP if half_close else 0)  # a reset is always reported
    return bool(poll.poll(0))


def _has_unread_data(transport: asyncio.Transport) -> bool:
    """Return whether bytes have arrived that the event loop hasn't read yet."""
    return not transport.is_closing() and unread_check(transport)()


class Listener(web.Server):
    """aiohttp's server with a limit on connections, and on the time that a caller may take.

    A connection counts from when it is accepted until its socket is closed. While there are as many as there
    may be, further callers wait in the system's queue, and nothing of their requests is lost. For each one a
    connection is aborted that has waited for its own caller for a second: by standing, stage and age.

    Args:
        handler: takes a request and returns its response.
        most: connections at the same time.
        patience: seconds for the head of a request, from its first byte, or from the start of the connection;
            for the TLS handshake; and to receive a response of the gateway's own. Half a head that arrives
            with the request before it has the time of an idle connection, because it can't be recognized.
        ssl: the context with its certificate.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        max_connections: int,
        caller_timeout: float,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        super().__init__(self._handle_request)
        self._handler = handler
        self._max_connections = max_connections
        self.caller_timeout = caller_timeout
        self.ssl = ssl
        self._states: dict[web.RequestHandler, _ConnectionState] = {}
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._in_flight = 0
        self._drained = asyncio.Event()
        self._drained.set()

    def __call__(self) -> web.RequestHandler:
        """Create the handler of one more connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEPALIVE_SECONDS,
            lingering_time=min(_LINGER_SECONDS, self.caller_timeout),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            auto_decompress=False,
            access_log=None,
        )

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._states)

    def add_connection(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection that was accepted."""
        self._states[handler] = _ConnectionState(transport, asyncio.get_running_loop().time())
        self.start_caller_timeout(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self.remove_connection(handler)

    def mark_authenticated(self, handler: web.RequestHandler) -> None:
        """Prefer a connection on which a key was shown to those on which none was."""
        with contextlib.suppress(KeyError):  # it is closed
            self._states[handler].trust = _TrustLevel.AUTHENTICATED

    def remove_connection(self, handler: web.RequestHandler) -> None:
        """Count a connection no longer."""
        self._set_stage(handler, _Stage.ABORTED)
        self._states.pop(handler, None)

    def note_data(self, handler: web.RequestHandler) -> None:
        """Start the time limit of a request, if this is its beginning."""
        state = self._states.get(handler)
        if state is not None and state.stage is _Stage.IDLE:
            self.start_caller_timeout(handler)

    def start_caller_timeout(self, handler: web.RequestHandler, stage: _Stage = _Stage.READING) -> None:
        """Start the time limit of a caller, after which the connection is aborted."""
        if state := self._set_stage(handler, stage):
            state.timer = asyncio.get_running_loop().call_later(self.caller_timeout, state.abort)

    def _set_stage(self, handler: web.RequestHandler, stage: _Stage) -> _ConnectionState | None:
        """Move a connection to a stage, unless it is closed."""
        if state := self._states.get(handler):
            state.set_stage(stage, asyncio.get_running_loop().time())
        return state

    async def _accept_loop(self, listening: socket.socket) -> None:
        """Accept callers, one after the other, as there is room for them."""
        while True:
            try:
                await self._accept_one(listening)
            except OSError as error:  # such as too many open files, which would be raised again immediately
                _log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_RETRY_SECONDS)

    async def _accept_one(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.sock_accept(listening)
        if _has_disconnected(accepted, half_close=self.ssl is not None):
            accepted.close()
            return
        try:
            await self._wait_for_capacity()
            await loop.connect_accepted_socket(self, accepted)
        except BaseException:
            accepted.close()
            raise

    async def _wait_for_capacity(self) -> None:
        """Wait until one more connection is allowed, and abort another one for it if one may go."""
        while len(self._states) >= self._max_connections:
            going = any(state.stage is _Stage.ABORTED for state in self._states.values())
            if going or self._evict_one():
                await asyncio.sleep(0)  # its socket is closed in the next turns
            else:
                await asyncio.sleep(_CAPACITY_POLL_SECONDS)

    def _evict_one(self) -> bool:
        """Abort the connection that is first to go, and return whether there was one."""
        latest = asyncio.get_running_loop().time() - _GRACE_SECONDS
        waiting = [state for state in self._states.values() if state.has_waited_since(latest)]
        for state in sorted(waiting, key=_eviction_order):
            # A caller that doesn't receive its responses may have sent anything behind them.
            if state.stage is _Stage.WRITING or not _has_unread_data(state.transport):
                state.abort()
                return True
        return False

    async def _handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        state = self._set_stage(handler, _Stage.HANDLING)
        if state is not None and state.trust is _TrustLevel.NEW:
            state.trust = _TrustLevel.UNAUTHENTICATED
        self._in_flight += 1
        self._drained.clear()
        try:
            response = await self._handler(request)
            await self.send_response(request, response)
            return response
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._drained.set()
            if _is_connected(handler):
                self._set_stage(handler, _Stage.IDLE)
            else:  # it is closed once its caller has taken what was sent
                self.start_caller_timeout(handler)

    async def send_response(self, request: web.BaseRequest, response: web.StreamResponse) -> bool:
        """Send a response, unless it was sent, and return whether the system took all of it for its caller.

        Meanwhile it may be closed for a further caller. It is aborted if its own caller takes too long.
        """
        with contextlib.suppress(ConnectionError), self.waiting_for_caller(request.protocol):
            self.start_caller_timeout(request.protocol, _Stage.WRITING)
            await response.prepare(request)
            await response.write_eof()
        return request.transport is not None and not request.transport.is_closing()

    @contextlib.contextmanager
    def waiting_for_caller(self, handler: web.RequestHandler) -> Iterator[None]:
        """Let a connection be closed for a further caller while it waits for its own."""
        self._set_stage(handler, _Stage.READING)
        try:
            yield
        finally:
            self._set_stage(handler, _Stage.HANDLING)

    @contextlib.asynccontextmanager
    async def listen_on(self, host: str, port: int) -> AsyncIterator[int]:
        """Accept connections at the port that this yields, and close them all in the end.

        Raises:
            OSError: the address can't be had.
        """
        server = await asyncio.get_running_loop().create_server(self, host, port, start_serving=False)
        try:
            with contextlib.closing(server):  # asyncio resolves and binds; it would accept without a limit
                for bound in server.sockets:
                    listening = bound.dup()
                    self._accepting[listening] = asyncio.create_task(self._accept_loop(listening))
                    # The sockets that it accepts inherit this.
                    with contextlib.suppress(AttributeError):  # Windows has no such option
                        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
                    listening.listen(_BACKLOG)
                port_chosen: int = server.sockets[0].getsockname()[1]
            yield port_chosen
        finally:
            await self._stop_accepting()
            await self.shutdown(_SHUTDOWN_SECONDS)
            while self._states:
                for state in self._states.values():
                    state.abort()
                await asyncio.sleep(0)

    async def _stop_accepting(self) -> None:
        """Accept no more connections."""
        tasks = list(self._accepting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._accepting:
            self._accepting.popitem()[0].close()

    async def drain(self, seconds: float) -> None:
        """Accept no more, close idle connections, and wait for the calls in flight, for so long at most."""
        await self._stop_accepting()
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drained.wait()


def _eviction_order(state: _ConnectionState) -> tuple[_TrustLevel, _Stage, float]:
    return state.trust, state.stage, state.since


def _is_connected(handler: web.RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
