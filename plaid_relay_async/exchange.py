"""One request and its response, over a connection of an aiohttp pool.

A `SessionExchange` sends requests with aiohttp's `ClientSession`. A `DirectExchange` takes a connection from
the same pool and writes a request head that is built only once; aiohttp still opens the connections, keeps
them alive, and parses the responses. That takes 30 % less CPU time than a session. A `DirectExchange` uses
methods of aiohttp that are public but not documented; `DirectExchange.is_supported` checks that this release
of aiohttp has them.

Both know the exact moment at which a request is sent (`RequestBody.begin_send`). Before that moment an
attempt is certainly not sent; after it, the attempt is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import select
import types
import weakref
from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from attrs import define, field, frozen
from yarl import URL

from plaid_relay_async.cancellation import wait_shielded

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey

T = TypeVar("T")

# The caller's `Deadline` is the only timeout.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class Response(Protocol):
    """A response whose head has arrived."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, by case-insensitive names."""
        ...

    @property
    def content(self) -> aiohttp.StreamReader:
        """The body, as a stream. Reading it to its end returns the connection to the pool."""
        ...

    def close(self) -> None:
        """Close the connection, unless the body has been read to its end."""
        ...


class Exchange(Protocol):
    """Sends requests and returns responses."""

    @property
    def proxy(self) -> str | None:
        """The address of the proxy, without user and password, if one is used and known."""
        ...

    def prepare(self, url: str, headers: Mapping[str, str]) -> Any:
        """Return what `post` needs of a request besides its body; it can be reused."""
        ...

    async def post(self, prepared: Any, body: RequestBody) -> Response:
        """Send a request and return its response once the head has arrived; redirects aren't followed.

        Raises:
            OSError, aiohttp.ClientError, aiohttp.http.HttpProcessingError: no response arrived.
        """
        ...


# ------------------------------------------------------------------------------------------- the body

# The bounds, in iterations of the event loop, for processing what has arrived before a cancellation. On some
# platforms a loop delivers what it has read one or two iterations later: hence the minimum. The maximum
# bounds how long a server that never stops sending can delay a cancellation; with the smallest TLS buffer a
# response takes some dozens of iterations.
_MIN_ITERATIONS: Final = 3
_MAX_ITERATIONS: Final = 1_000

# The number of iterations in which the loop reads an alert from a new connection and closes that connection.
_HANDSHAKE_ITERATIONS: Final = 8

# Alerts by which a server rejects the client's certificate, or the lack of one. In TLS 1.3 they arrive when
# the client considers the handshake complete (RFC 8446, 4.4.2.4 and 6.2) and may have sent a request already;
# the server reads no request before it has authenticated the client. Other alerts prove nothing: a server may
# send close_notify, internal_error, decrypt_error or bad_record_mac after it has acted on a request.
_CERTIFICATE_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "SSLV3_ALERT_NO_CERTIFICATE",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_ACCESS_DENIED",
}

_OPENSSL_REASON: Final = re.compile(r"\[SSL: (\w+)\]")

# For each connection that has been used: the function that checks it for unread bytes. A connection without
# an entry is new.
_unread_checks: weakref.WeakKeyDictionary[asyncio.BaseProtocol, Callable[[], object]] = (
    weakref.WeakKeyDictionary()
)


def unread_check(transport: asyncio.Transport) -> Callable[[], object]:
    """Return a function whose result is true if the socket has unread bytes, or the end of its input."""
    socket = transport.get_extra_info("socket")
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows
        return lambda: select.select([socket], [], [], 0)[0]
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return partial(poll.poll, 0)  # a list of events


@define(eq=False)
class RequestBody:
    """A request's body, which records the moment at which it is handed to the network.

    A server can't execute a call without its body. So a request whose body wasn't handed over was never sent.

    From that moment on, a cancellation takes effect only after everything that has arrived is processed: the
    bytes in the socket, and a response that was read in the same iteration of the event loop. Further
    cancellations until then, such as those of an AnyIO scope, count as the same one. This never waits for the
    response; a drain does (`cancellation.Draining`, `batch.stopping`).

    Attributes:
        data: its bytes, as JSON.
        on_send: called just before the body is handed over; it may raise to prevent that.
        sent: whether the body was handed over.
        cancellation_args: the arguments of a deferred cancellation; `None` if none is deferred.
        may_be_rejected: whether it was sent as the first request of a connection on which the server may
            still reject the TLS handshake.
    """

    data: bytes = field(repr=False)
    on_send: Callable[[], None]
    sent: bool = False
    cancellation_args: tuple[Any, ...] | None = None
    may_be_rejected: bool = field(default=False, init=False)
    # The connection on which the body was sent, and the one that was new when it was checked.
    _protocol: Any = field(default=None, init=False, repr=False)
    _new_protocol: Any = field(default=None, init=False, repr=False)
    _iterations: int = field(default=0, init=False, repr=False)

    def begin_send(self, protocol: Any) -> bool:
        """Check the connection and mark the body as sent. The caller must write it immediately afterwards.

        Returns:
            False if the connection is new, and has unread bytes or is being closed: the body isn't marked as
            sent. Await `finish_handshake`, and call this method again.

        Raises:
            aiohttp.ClientConnectionError: the connection must not be used.
            TimeoutError: the deadline has passed.
        """
        # Bytes that arrive before the request would be taken for its response. In most cases they are the
        # server's announcement that it closes an idle connection.
        if protocol.should_close:
            raise aiohttp.ClientConnectionError from protocol.exception()
        has_unread = _unread_checks.get(protocol)
        if has_unread is None:
            if protocol.transport.get_extra_info("socket") is None:
                return False  # an alert has ended the TLS handshake, and aiohttp will learn that later
            self._new_protocol, has_unread = protocol, unread_check(protocol.transport)
            _unread_checks[protocol] = has_unread
            # The bytes are probably the last messages of the TLS handshake, for which aiohttp doesn't wait.
            if has_unread():
                return False
        # On a new connection, bytes that are unread after `finish_handshake` are tolerated, because they may
        # be more of the handshake.
        elif protocol is not self._new_protocol and has_unread():
            raise aiohttp.ClientConnectionError
        self.on_send()
        # A middleware of a session may send a request again. That a later handshake is rejected proves
        # nothing about the first time.
        is_first = protocol is self._new_protocol and not self.sent
        self.may_be_rejected = is_first and _is_rejectable(protocol.transport)
        self._protocol, self._new_protocol = protocol, None
        self.sent = True
        return True

    def was_rejected(self, error: BaseException) -> bool:
        """Return whether an error proves that the server rejected the handshake and read no request."""
        return self.may_be_rejected and tls_reason(error) in _CERTIFICATE_ALERTS

    async def read_next(self, read: Callable[[], Coroutine[Any, None, T]]) -> T:
        """Read the next part of the response; raise a cancellation only after all that has arrived is read.

        Args:
            read: returns a coroutine that reads the next part; it is called again after a cancellation.
        """
        if self.cancellation_args is None:
            try:
                return await read()
            except asyncio.CancelledError as error:
                self.cancellation_args = error.args
        while True:
            try:
                return _immediate_result(read(), asyncio.CancelledError(*self.cancellation_args))
            except asyncio.CancelledError:
                if not self.may_have_more():
                    raise
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def may_have_more(self) -> bool:
        """Return whether to wait for one more iteration; called in each iteration after a cancellation."""
        self._iterations += 1
        if self._iterations > _MAX_ITERATIONS:
            return False
        # A closed connection has no bytes, and the file descriptor of its socket may belong to another one by
        # now.
        return self._iterations <= _MIN_ITERATIONS or (
            self._protocol.is_connected() and bool(_unread_checks[self._protocol]())
        )


async def finish_handshake() -> None:
    """Wait until the loop has read the last messages of a TLS handshake: session tickets, or an alert."""
    for _ in range(_HANDSHAKE_ITERATIONS):
        await asyncio.sleep(0)


def _is_rejectable(transport: asyncio.Transport) -> bool:
    tls = transport.get_extra_info("ssl_object")
    # The version is None if the alert has arrived already, but the connection isn't closed yet. With
    # post-handshake authentication, a server may have read the request before it rejects a certificate.
    return tls is not None and tls.version() in {"TLSv1.3", None} and not tls.context.post_handshake_auth


def tls_reason(error: BaseException | None) -> str | None:
    """Return OpenSSL's reason for which a connection ended, such as `WRONG_VERSION_NUMBER`, or `None`."""
    while error is not None:
        # It is parsed from the text, because aiohttp keeps the text and drops the SSLError in some cases.
        if isinstance(error, OSError) and (match := _OPENSSL_REASON.match(str(error.strerror))):
            return match[1]
        error = error.__cause__
    return None


def _immediate_result(coroutine: Coroutine[Any, None, T], error: BaseException) -> T:
    """Return the result of a coroutine that doesn't wait; raise an error inside a coroutine that does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    return cast("T", coroutine.throw(error))  # the coroutine raises it


# ------------------------------------------------------------------------------------ through a session


class _Payload(aiohttp.BytesPayload):
    def __init__(self, body: RequestBody) -> None:
        super().__init__(body.data, content_type="application/json")
        self._body = body

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:  # noqa: ARG002
        while not self._body.begin_send(writer.protocol):
            await finish_handshake()
        await writer.write(self._body.data)  # all of it, because `content_length` is its length


@types.coroutine
def _defer_cancellation(work: Generator[Any, None, T], body: RequestBody) -> Generator[Any, None, T]:
    """Run a session's `post`, and defer a cancellation until everything that has arrived is read.

    Otherwise `post` would close its connection as soon as the cancellation reaches it.
    """
    # `awaited` is what `post` waits for: a future, or None to let other tasks run. It is reset before each
    # step: a traceback with locals would show the future with its error, which may quote the request.
    awaited: asyncio.Future[Any] | None = None
    try:
        while body.cancellation_args is None:
            awaited = None
            awaited = work.send(None)
            try:
                yield from wait_shielded(awaited)
            except asyncio.CancelledError as error:
                body.cancellation_args = error.args
        # The request is in flight: let `post` process what has arrived before it is cancelled.
        while body.sent and body.may_have_more():
            with contextlib.suppress(asyncio.CancelledError):
                yield
            if awaited is None or awaited.done():
                awaited = None
                awaited = work.send(None)
        if awaited is None or awaited.done():
            awaited = None
            yield work.throw(asyncio.CancelledError(*body.cancellation_args))
        # A future is cancelled immediately, so nothing arrives in between; a task may take some iterations.
        while awaited is not None and awaited.cancel() and not awaited.done():
            with contextlib.suppress(asyncio.CancelledError):
                yield from wait_shielded(awaited)
        awaited = None
        return (yield from work)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        work.close()


@frozen
class SessionExchange:
    """Sends requests with a session's `post`, and so with its proxies, traces, middlewares and cookies."""

    session: aiohttp.ClientSession
    proxy: str | None = None

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """Return the URL and all headers of a request."""
        # A session may have another default Content-Type.
        return url, {"Content-Type": "application/json", **headers}

    async def post(self, prepared: tuple[str, Mapping[str, str]], body: RequestBody) -> Response:
        """Send a request and return its response once the head has arrived."""
        url, headers = prepared
        work = self.session.post(
            url,
            data=_Payload(body),
            headers=headers,
            timeout=_NO_TIMEOUT,
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=True,
        )
        response = await _defer_cancellation(work.__await__(), body)
        if not body.sent:  # the response arrived before the request, so it isn't a response to it
            response.close()
            raise aiohttp.ClientConnectionError
        return cast("Response", response)


# -------------------------------------------------------------------------------------------- directly


class _CachedKeyRequest(aiohttp.ClientRequest):
    # aiohttp computes the key each time that a request is sent; this class does it once. A request is never
    # changed after it was prepared.
    @cached_property
    def connection_key(self) -> ConnectionKey:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().connection_key


@frozen
class _PreparedRequest:
    request: _CachedKeyRequest
    head: bytes = field(repr=False)


@define(eq=False, repr=False)
class _DirectResponse:
    """A response that was read from a connection without a session."""

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader
    _connection: Connection

    def close(self) -> None:
        self._connection.close()


@frozen
class DirectExchange:
    """Sends requests over the connections of a pool, without a session. It supports no proxies."""

    connector: aiohttp.BaseConnector
    loop: asyncio.AbstractEventLoop
    proxy: None = field(default=None, init=False)

    @staticmethod
    def is_supported(*, connector: type = aiohttp.BaseConnector, handler: type = ResponseHandler) -> bool:
        """Return whether this release of aiohttp has the methods that this class uses.

        The parameters are for tests with other releases' signatures.
        """
        connect_parameters = inspect.signature(connector.connect).parameters.keys()  # type: ignore[attr-defined]
        response_parameters = inspect.signature(handler.set_response_params).parameters.keys()  # type: ignore[attr-defined]
        required = {"read_until_eof", "auto_decompress"}
        return connect_parameters == {"self", "req", "traces", "timeout"} and response_parameters >= required

    def prepare(self, url: str, headers: Mapping[str, str]) -> _PreparedRequest:
        """Return an aiohttp request and its head, which lacks only the value of Content-Length.

        Raises:
            ValueError: a header contains a line break.
        """
        all_headers = {"Content-Type": "application/json", **headers}
        request = _CachedKeyRequest("POST", URL(url), headers=all_headers, loop=self.loop)
        lines = [f"{name}: {value}" for name, value in request.headers.items() if name != "Content-Length"]
        lines = [f"POST {request.url.raw_path_qs} HTTP/1.1", *lines, "Content-Length: "]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header contains a line break")
        return _PreparedRequest(request, "\r\n".join(lines).encode())

    async def post(self, prepared: _PreparedRequest, body: RequestBody) -> Response:
        """Send a request and return its response once the head has arrived."""
        connection = await self.connector.connect(prepared.request, traces=[], timeout=_NO_TIMEOUT)
        try:
            protocol: Any = connection.protocol
            protocol.set_response_params(read_until_eof=True, auto_decompress=True)
            while not body.begin_send(protocol):
                await finish_handshake()
            protocol.transport.write(b"%s%d\r\n\r\n%s" % (prepared.head, len(body.data), body.data))
            message, content = await body.read_next(protocol.read)
            # Interim responses (1xx) precede the final one, except for 101, which ends HTTP on the
            # connection.
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await body.read_next(protocol.read)
        except BaseException:
            connection.close()  # a response that may still arrive must not be read by another request
            raise
        content.on_eof(partial(_release_connection, connection))
        return _DirectResponse(message.code, message.headers, content, connection)


def _release_connection(connection: Connection) -> None:
    if connection.transport is not None and connection.transport.get_write_buffer_size():
        # The server responded before it had read the whole request. The rest would precede the next request.
        connection.close()
    else:
        connection.release()
