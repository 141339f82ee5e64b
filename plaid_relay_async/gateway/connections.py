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
from plaid_relay_async.gateway import refusals

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_log = logging.getLogger(__name__)

_KEPT = 75.0  # seconds for which an idle connection is kept; longer than the usual clients keep theirs
_LINGERS = 2.0  # seconds for the rest of a request that was refused to arrive, so that the answer is read
_CUT = 0.5  # seconds for what is cut to notice
_GRACE = 1.0  # seconds for which no connection is aborted for another one: for its caller's request to arrive
_UNSENT = 65_536  # bytes that the system queues for a caller that doesn't read; otherwise it queues megabytes
_MOMENT = 0.05  # seconds after which it is checked again whether there is room
_RETRY = 1.0  # seconds until the next try after the system could not accept, as asyncio has it
_QUEUE = (
    4096  # callers that the system lets wait, as far as net.core.somaxconn allows; it ignores further ones
)
_LONGEST_LINE = 8190  # bytes, of the request line and of each header, as aiohttp and Apache have it


class _Connection(web.RequestHandler):
    """One connection; what is no HTTP gets an answer, and a line in the log, that quote nothing of it."""

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self._listener = listener
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connection that was accepted."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # nothing else is listened for
        # A write is then drained only once the system has taken all of it.
        transport.set_write_buffer_limits(high=0)
        self._listener.add(self, transport)
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
    """The state of a connection; of two with the same standing, the lower one is aborted first."""

    TAKING = 1
    """Its caller has yet to receive a response of the gateway's own."""
    OWING = 2
    """Its caller has yet to finish the TLS handshake, or a request."""
    IDLE = 3
    BUSY = 4
    """A call is in flight: it is never aborted for another connection."""
    GONE = 5
    """It was aborted; its socket is closed within a few turns of the event loop."""


class _Standing(enum.IntEnum):
    """What is known of a connection's caller; the lowest is aborted first."""

    STRANGER = 0
    """It got a response, and showed no key."""
    NEW = 1
    KNOWN = 2
    """It showed a key."""


@define(eq=False)
class _State:
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
    standing: _Standing = _Standing.NEW
    stage: _Stage = _Stage.OWING
    timer: asyncio.TimerHandle | None = None

    def enter(self, stage: _Stage, now: float) -> None:
        """Move to a stage, without a time limit."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.stage is not _Stage.GONE:
            self.stage = stage
        if self.standing is _Standing.KNOWN:
            self.since = now

    def abort(self) -> None:
        """Close the socket without waiting until the peer has received what was sent."""
        self.enter(_Stage.GONE, self.since)
        self.transport.abort()

    def waits_since(self, latest: float) -> bool:
        """Return whether it waits for its caller, and has done so since a time or before."""
        return self.stage < _Stage.BUSY and self.since <= latest


def _has_left(accepted: socket.socket, *, half: bool) -> bool:
    """Return whether a caller reset its connection while it waited, or, with `half`, closed its side of it.

    A caller that closes its side may wait for the response to plain HTTP; no TLS handshake can follow.
    """
    poll = select.poll()
    poll.register(accepted, select.POLLRDHUP if half else 0)  # a reset is always reported
    return bool(poll.poll(0))


def _has_unread(transport: asyncio.Transport) -> bool:
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
        most: int,
        patience: float,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        super().__init__(self._answer)
        self._answered_by = handler
        self._most = most
        self.patience = patience
        self.ssl = ssl
        self._states: dict[web.RequestHandler, _State] = {}
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._under_way = 0
        self._calm = asyncio.Event()
        self._calm.set()

    def __call__(self) -> web.RequestHandler:
        """Create the handler of one more connection."""
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
        """Return how many connections there are."""
        return len(self._states)

    def add(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection that was accepted."""
        self._states[handler] = _State(transport, asyncio.get_running_loop().time())
        self.await_caller(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self.forget(handler)

    def know(self, handler: web.RequestHandler) -> None:
        """Prefer a connection on which a key was shown to those on which none was."""
        with contextlib.suppress(KeyError):  # it is closed
            self._states[handler].standing = _Standing.KNOWN

    def forget(self, handler: web.RequestHandler) -> None:
        """Count a connection no longer."""
        self._enter(handler, _Stage.GONE)
        self._states.pop(handler, None)

    def heard(self, handler: web.RequestHandler) -> None:
        """Start the time limit of a request, if this is its beginning."""
        state = self._states.get(handler)
        if state is not None and state.stage is _Stage.IDLE:
            self.await_caller(handler)

    def await_caller(self, handler: web.RequestHandler, stage: _Stage = _Stage.OWING) -> None:
        """Start the time limit of a caller, after which the connection is aborted."""
        if state := self._enter(handler, stage):
            state.timer = asyncio.get_running_loop().call_later(self.patience, state.abort)

    def _enter(self, handler: web.RequestHandler, stage: _Stage) -> _State | None:
        """Move a connection to a stage, unless it is closed."""
        if state := self._states.get(handler):
            state.enter(stage, asyncio.get_running_loop().time())
        return state

    async def _accept(self, listening: socket.socket) -> None:
        """Accept callers, one after the other, as there is room for them."""
        while True:
            try:
                await self._accept_one(listening)
            except OSError as error:  # such as too many open files, which would be raised again immediately
                _log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(_RETRY)

    async def _accept_one(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.sock_accept(listening)
        if _has_left(accepted, half=self.ssl is not None):
            accepted.close()
            return
        try:
            await self._make_room()
            await loop.connect_accepted_socket(self, accepted)
        except BaseException:
            accepted.close()
            raise

    async def _make_room(self) -> None:
        """Wait until one more connection is allowed, and abort another one for it if one may go."""
        while len(self._states) >= self._most:
            going = any(state.stage is _Stage.GONE for state in self._states.values())
            if going or self._abort_one():
                await asyncio.sleep(0)  # its socket is closed in the next turns
            else:
                await asyncio.sleep(_MOMENT)

    def _abort_one(self) -> bool:
        """Abort the connection that is first to go, and return whether there was one."""
        latest = asyncio.get_running_loop().time() - _GRACE
        waiting = [state for state in self._states.values() if state.waits_since(latest)]
        for state in sorted(waiting, key=_rank):
            # A caller that doesn't receive its responses may have sent anything behind them.
            if state.stage is _Stage.TAKING or not _has_unread(state.transport):
                state.abort()
                return True
        return False

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        state = self._enter(handler, _Stage.BUSY)
        if state is not None and state.standing is _Standing.NEW:
            state.standing = _Standing.STRANGER
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

        Meanwhile it may be closed for a further caller. It is aborted if its own caller takes too long.
        """
        with contextlib.suppress(ConnectionError), self.awaiting(request.protocol):
            self.await_caller(request.protocol, _Stage.TAKING)
            await response.prepare(request)
            await response.write_eof()
        return request.transport is not None and not request.transport.is_closing()

    @contextlib.contextmanager
    def awaiting(self, handler: web.RequestHandler) -> Iterator[None]:
        """Let a connection be closed for a further caller while it waits for its own."""
        self._enter(handler, _Stage.OWING)
        try:
            yield
        finally:
            self._enter(handler, _Stage.BUSY)

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Accept connections at the port that this yields, and close them all in the end.

        Raises:
            OSError: the address can't be had.
        """
        server = await asyncio.get_running_loop().create_server(self, host, port, start_serving=False)
        try:
            with contextlib.closing(server):  # asyncio resolves and binds; it would accept without a limit
                for bound in server.sockets:
                    listening = bound.dup()
                    self._accepting[listening] = asyncio.create_task(self._accept(listening))
                    # The sockets that it accepts inherit this.
                    with contextlib.suppress(AttributeError):  # Windows has no such option
                        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
                    listening.listen(_QUEUE)
                port_chosen: int = server.sockets[0].getsockname()[1]
            yield port_chosen
        finally:
            await self._stop()
            await self.shutdown(_CUT)
            while self._states:
                for state in self._states.values():
                    state.abort()
                await asyncio.sleep(0)

    async def _stop(self) -> None:
        """Accept no more connections."""
        tasks = list(self._accepting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._accepting:
            self._accepting.popitem()[0].close()

    async def drain(self, seconds: float) -> None:
        """Accept no more, close idle connections, and wait for the calls in flight, for so long at most."""
        await self._stop()
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()


def _rank(state: _State) -> tuple[_Standing, _Stage, float]:
    return state.standing, state.stage, state.since


def _is_open(handler: web.RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
