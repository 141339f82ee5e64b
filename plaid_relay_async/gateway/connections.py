"""The connections of callers, limited in number and in how long a caller may keep the gateway waiting."""

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

_KEEPALIVE_SECONDS = 75.0  # for an idle connection; longer than common clients keep theirs
_LINGER_SECONDS = 2.0  # for the rest of a rejected request to arrive, so that its response is read
_SHUTDOWN_SECONDS = 0.5  # for handlers that are cut off to end
_GRACE_SECONDS = 1.0  # a younger connection is not evicted, because its request may be about to arrive
_MAX_UNSENT_BYTES = 65_536  # that the system queues for a caller that doesn't read; its default is megabytes
_CAPACITY_POLL_SECONDS = 0.05  # between two checks for a free connection
_ACCEPT_RETRY_SECONDS = 1.0  # after the system could not accept a connection; as in asyncio
_BACKLOG = 4096  # callers that the system lets wait, at most net.core.somaxconn; it ignores further ones
_MAX_LINE_BYTES = 8190  # of the request line and of each header, as in aiohttp and Apache


class _Connection(web.RequestHandler):
    """One connection. Input that isn't HTTP gets an error response and a log line, which don't quote it."""

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self._listener = listener
        self._early_data = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register a connection that was accepted, and start TLS if it is configured."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # only TCP sockets are listened on
        # With this limit, a drained write means that the system took all of it.
        transport.set_write_buffer_limits(high=0)
        self._listener.add_connection(self, transport)
        if self._listener.ssl is None:
            super().connection_made(transport)
        else:
            self._handshake = asyncio.create_task(self._start_tls(transport, self._listener.ssl))

    async def _start_tls(self, transport: asyncio.Transport, ssl: tls.SSLContext) -> None:
        """Perform the TLS handshake.

        asyncio's server would report the connection only after the handshake. Connections in the handshake
        would not count, and their number would not be limited.
        """
        timeout = max(self._listener.caller_timeout, 0.001)
        secured = None
        with contextlib.suppress(OSError):
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                ssl,
                server_side=True,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=timeout,
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
        """Pass data on to the HTTP parser."""
        # Data that arrives together with the end of the handshake is decrypted before start_tls() returns.
        if self._handshake is not None:
            self._early_data += data
            return
        self._listener.note_data(self)
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # aiohttp's message quotes the request
    ) -> web.StreamResponse:
        """Return the response to a request that can't be parsed, or whose handling failed."""
        unexpected = status >= 500
        level = logging.ERROR if unexpected else logging.INFO
        _log.log(level, "a request failed with %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionResetError("a response has already begun")
        reason = error_responses.INTERNAL_ERROR if unexpected else error_responses.INVALID_HTTP
        response = error_responses.error_response(reason, new_request_id())
        response.force_close()
        self._listener.start_caller_timeout(self)
        return response

    def log_exception(  # pragma: no cover  # only aiohttp before 3.14 calls it, for data after an upgrade
        self, *_: object, exc_info: BaseException | None = None, **__: object
    ) -> None:
        """Log what ended a connection, by its class only."""
        _log.error("a connection failed with %s", type(exc_info).__name__)


def new_request_id() -> str:
    """Return an identifier for a response that the gateway creates."""
    return f"gateway-{secrets.token_hex(8)}"


class _Stage(enum.IntEnum):
    """What a connection is doing; of two with the same trust level, the lower one is evicted first."""

    WRITING = 1
    """The gateway sends an error response or a page, and the caller has not received it yet."""
    READING = 2
    """The gateway waits for its caller to finish the TLS handshake, or a request."""
    IDLE = 3
    HANDLING = 4
    """A call is in flight: the connection is never evicted."""
    ABORTED = 5
    """It was aborted; its socket is closed within a few iterations of the event loop."""


class _TrustLevel(enum.IntEnum):
    """What is known about the caller of a connection; the lowest is evicted first."""

    UNAUTHENTICATED = 0
    """It has made a request without a valid key."""
    NEW = 1
    AUTHENTICATED = 2
    """It has presented a valid key."""


@define(eq=False)
class _ConnectionState:
    """The listener's state of one connection.

    Attributes:
        transport: the transport of the connection, without TLS.
        since: when it was accepted; for an authenticated caller, when its stage began.
        trust: what is known about its caller.
        stage: what it is doing.
        timer: aborts the connection if its caller takes too long.
    """

    transport: asyncio.Transport
    since: float
    trust: _TrustLevel = _TrustLevel.NEW
    stage: _Stage = _Stage.READING
    timer: asyncio.TimerHandle | None = None

    def set_stage(self, stage: _Stage, now: float) -> None:
        """Move to a stage, without a timeout."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.stage is not _Stage.ABORTED:
            self.stage = stage
        # Without a key, requests must not make a connection look younger than it is.
        if self.trust is _TrustLevel.AUTHENTICATED:
            self.since = now

    def abort(self) -> None:
        """Close the socket without waiting until the peer has received what was sent."""
        self.set_stage(_Stage.ABORTED, self.since)
        self.transport.abort()

    def has_waited_since(self, time: float) -> bool:
        """Return whether it waits for its caller, and began to wait no later than `time`."""
        return self.stage < _Stage.HANDLING and self.since <= time


def _has_disconnected(accepted: socket.socket) -> bool:
    """Return whether a caller has closed its side of a connection, or has reset it."""
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows
        return False
    poll = select.poll()
    # A reset is always reported. Only Linux has POLLRDHUP.
    poll.register(accepted, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def abort_if_disconnected(handler: web.RequestHandler) -> bool:
    """Abort the connection if its caller has closed its side, and return whether it has.

    asyncio closes such a connection too, but only after it has read all requests before its end.
    """
    transport = handler.transport
    if transport is None:
        return True
    # The socket of a closed connection can't be polled.
    if not transport.is_closing() and not _has_disconnected(transport.get_extra_info("socket")):
        return False
    transport.abort()
    return True


def _has_unread_data(transport: asyncio.Transport) -> bool:
    """Return whether bytes have arrived that the event loop has not read yet."""
    return not transport.is_closing() and bool(unread_check(transport)())


class Listener(web.Server):
    """aiohttp's server with a limit on connections, and on the time that a caller may take.

    A connection counts from when it is accepted until its socket is closed. While the limit is reached,
    further callers wait in the system's queue, and nothing of their requests is lost. For each of them, the
    listener evicts a connection that has waited for its caller for a second, by trust level, stage and age.

    Args:
        handler: returns the response to a request.
        max_connections: the maximum number of concurrent connections.
        caller_timeout: seconds for the head of a request, from its first byte, or from the start of the
            connection; for the TLS handshake; and for a caller to receive an error response or a page. An
            incomplete head that arrives together with the previous request has the time of an idle
            connection, because it can't be recognized.
        ssl: the context with the certificate.
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
        """Create the handler of a new connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEPALIVE_SECONDS,
            lingering_time=min(_LINGER_SECONDS, self.caller_timeout),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            # Compressed bodies are rejected, so none is decompressed.
            auto_decompress=False,
            # The audit log replaces it. An access log would contain paths that unauthenticated callers chose.
            access_log=None,
        )

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._states)

    def add_connection(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection that was accepted."""
        self._states[handler] = _ConnectionState(transport, asyncio.get_running_loop().time())
        self.start_caller_timeout(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Remove a connection that was closed."""
        super().connection_lost(handler, exc)
        self.remove_connection(handler)

    def mark_authenticated(self, handler: web.RequestHandler) -> None:
        """Record that a valid key was presented on a connection, which is then evicted after others."""
        with contextlib.suppress(KeyError):  # the connection is closed
            self._states[handler].trust = _TrustLevel.AUTHENTICATED

    def remove_connection(self, handler: web.RequestHandler) -> None:
        """Stop counting a connection."""
        self._set_stage(handler, _Stage.ABORTED)
        self._states.pop(handler, None)

    def note_data(self, handler: web.RequestHandler) -> None:
        """Start the timeout of a request, if these are its first bytes."""
        state = self._states.get(handler)
        if state is not None and state.stage is _Stage.IDLE:
            self.start_caller_timeout(handler)

    def start_caller_timeout(self, handler: web.RequestHandler, stage: _Stage = _Stage.READING) -> None:
        """Start the timeout of a caller, after which the connection is aborted."""
        if state := self._set_stage(handler, stage):
            state.timer = asyncio.get_running_loop().call_later(self.caller_timeout, state.abort)

    def _set_stage(self, handler: web.RequestHandler, stage: _Stage) -> _ConnectionState | None:
        """Move a connection to a stage, unless it is closed."""
        if state := self._states.get(handler):
            state.set_stage(stage, asyncio.get_running_loop().time())
        return state

    async def _accept_loop(self, listening: socket.socket) -> None:
        """Accept callers one after the other, as the limit allows."""
        while True:
            try:
                await self._accept_one(listening)
            # For example too many open files. Without a pause, the error would repeat in a busy loop.
            except OSError as error:
                _log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_RETRY_SECONDS)

    async def _accept_one(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await _wait_for_caller(listening)
        accepted, _ = listening.accept()
        accepted.setblocking(False)
        if _has_disconnected(accepted):
            accepted.close()
            return
        try:
            await self._wait_for_capacity()
            await loop.connect_accepted_socket(self, accepted)
        except BaseException:
            accepted.close()
            raise

    async def _wait_for_capacity(self) -> None:
        """Wait until another connection is allowed, and evict one if possible."""
        while len(self._states) >= self._max_connections:
            aborted = any(state.stage is _Stage.ABORTED for state in self._states.values())
            if aborted or self._evict_one():
                await asyncio.sleep(0)  # the socket is closed in the next iterations of the event loop
            else:
                await asyncio.sleep(_CAPACITY_POLL_SECONDS)

    def _evict_one(self) -> bool:
        """Abort the first connection in the eviction order, and return whether there was one."""
        latest = asyncio.get_running_loop().time() - _GRACE_SECONDS
        waiting = [state for state in self._states.values() if state.has_waited_since(latest)]
        for state in sorted(waiting, key=_eviction_order):
            # Unread data is probably a request, which must not be cut off. A caller that doesn't receive its
            # responses is evicted anyway: it may have sent any amount of data behind its request.
            if state.stage is _Stage.WRITING or not _has_unread_data(state.transport):
                state.abort()
                return True
        return False

    async def _handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        state = self._set_stage(handler, _Stage.HANDLING)
        if state is None or abort_if_disconnected(handler):
            return web.Response()
        # Until a key is presented in this request, the connection is among the first to be evicted.
        if state.trust is _TrustLevel.NEW:
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
            else:  # it is closed once its caller has received what was sent
                self.start_caller_timeout(handler)

    async def send_response(self, request: web.BaseRequest, response: web.StreamResponse) -> bool:
        """Send a response unless it was sent, and return whether the system took all of it for its caller.

        Until then the connection may be evicted, and it is aborted if its caller takes too long.
        """
        if not response.prepared and abort_if_disconnected(request.protocol):
            return False
        with contextlib.suppress(ConnectionError), self.waiting_for_caller(request.protocol):
            self.start_caller_timeout(request.protocol, _Stage.WRITING)
            await response.prepare(request)
            await response.write_eof()
        return request.transport is not None and not request.transport.is_closing()

    @contextlib.contextmanager
    def waiting_for_caller(self, handler: web.RequestHandler) -> Iterator[None]:
        """Allow the eviction of a connection while it waits for its caller."""
        self._set_stage(handler, _Stage.READING)
        try:
            yield
        finally:
            self._set_stage(handler, _Stage.HANDLING)

    @contextlib.asynccontextmanager
    async def listen_on(self, host: str, port: int) -> AsyncIterator[int]:
        """Accept connections, yield the port, and close all connections at the end.

        Raises:
            OSError: the address can't be used.
        """
        server = await asyncio.get_running_loop().create_server(self, host, port, start_serving=False)
        try:
            # asyncio's server only resolves and binds the address. It would accept without a limit, so this
            # class accepts on duplicates of its sockets.
            with contextlib.closing(server):
                for bound in server.sockets:
                    listening = bound.dup()
                    self._accepting[listening] = asyncio.create_task(self._accept_loop(listening))
                    # Accepted sockets inherit this option.
                    with contextlib.suppress(AttributeError):  # Windows has no such option
                        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
                    listening.listen(_BACKLOG)
                bound_port: int = server.sockets[0].getsockname()[1]
            yield bound_port
        finally:
            await self._stop_accepting()
            await self.shutdown(_SHUTDOWN_SECONDS)
            # aiohttp doesn't know connections in the TLS handshake, and a closed transport keeps its socket
            # while its caller doesn't read. Aborting closes both.
            while self._states:
                for state in self._states.values():
                    state.abort()
                await asyncio.sleep(0)

    async def _stop_accepting(self) -> None:
        """Accept no more connections, and close the listening sockets."""
        tasks = list(self._accepting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._accepting:
            self._accepting.popitem()[0].close()

    async def drain(self, seconds: float) -> bool:
        """Accept no more connections, close idle ones, and wait up to `seconds` for calls in flight.

        Returns:
            Whether they have all ended.
        """
        await self._stop_accepting()
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        return self._drained.is_set()


async def _wait_for_caller(listening: socket.socket) -> None:
    """Wait until a connection can be accepted.

    `loop.sock_accept()` drops a connection and logs an error if it is cancelled in the iteration in which it
    accepts one.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listening, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(listening)


def _eviction_order(state: _ConnectionState) -> tuple[_TrustLevel, _Stage, float]:
    return state.trust, state.stage, state.since


def _is_connected(handler: web.RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
