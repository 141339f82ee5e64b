"""One request and its response, over a connection of an aiohttp pool.

An `Ordinary` exchange goes by aiohttp's `ClientSession`. A `Direct` one takes a connection from the same pool
and writes a head that was made once; aiohttp opens the connections, keeps them, and reads what comes. That
takes seven tenths of the CPU time. It uses methods of aiohttp's that are public but not documented, and
`Direct.fits` sees whether they are there.
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
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from attrs import define, field, frozen
from yarl import URL

from plaid_relay_async.cancellation import ShieldedFuture

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey

T = TypeVar("T")

# Whoever calls has a better timeout.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class Response(Protocol):
    """An answer of which the head has arrived."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, whatever their case."""
        ...

    @property
    def content(self) -> aiohttp.StreamReader:
        """The body as it comes; once it is read to its end, the connection is the pool's again."""
        ...

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        ...


class Exchange(Protocol):
    """Sends requests and gives responses."""

    @property
    def proxy(self) -> str | None:
        """The address of the proxy, without its user and password, if one is used and known."""
        ...

    def prepare(self, url: str, headers: Mapping[str, str]) -> Any:
        """Make what `post` needs of a request besides its body; it may be used again."""
        ...

    async def post(self, prepared: Any, body: RequestBody) -> Response:
        """Send a request, and wait for the head of its response; redirects aren't followed.

        Raises:
            OSError, aiohttp.ClientError, aiohttp.http.HttpProcessingError: no response came.
        """
        ...


# ------------------------------------------------------------------------------------------- the body

# In turns of the event loop. On some platforms a loop delivers what it has read a turn or two later. The
# maximum bounds how long a server that never stops sending can delay a cancellation; with the smallest of TLS
# buffers a response takes some dozens of turns.
_MIN_ITERATIONS: Final = 3
_MAX_ITERATIONS: Final = 1_000

# Turns in which the loop reads an alert from a new connection and ends that connection.
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

_unread_checks: weakref.WeakKeyDictionary[asyncio.BaseProtocol, Callable[[], bool]] = (
    weakref.WeakKeyDictionary()
)


def unread_check(transport: asyncio.Transport) -> Callable[[], bool]:
    """Return a function that checks whether the socket has unread bytes, or the end of its input."""
    connection = transport.get_extra_info("socket")
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows
        return lambda: bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return lambda: bool(poll.poll(0))


@define(eq=False)
class RequestBody:
    """A request's body; it notes the moment at which it is handed to the network.

    A server can't act on a call without its body, so one whose body wasn't handed over was never sent.

    From that moment on, a cancellation takes effect only when everything that has arrived is processed: the
    bytes in the socket, and a response that was read in the same turn of the event loop. Further
    cancellations until then, such as those of an AnyIO scope, count as the same one.

    Attributes:
        data: its bytes, JSON.
        leaves: called just before that moment; it may raise.
        left: whether the body was handed over.
        cancelled: the arguments of a cancellation that has not taken effect yet.
        may_be_rejected: whether it left as the first request of a connection on which the server may still
            reject the TLS handshake.
    """

    data: bytes = field(repr=False)
    on_send: Callable[[], None]
    sent: bool = False
    deferred_cancellation: tuple[Any, ...] | None = None
    may_be_rejected: bool = field(default=False, init=False)
    _protocol: Any = field(default=None, init=False, repr=False)
    _new_protocol: Any = field(default=None, init=False, repr=False)
    _iterations: int = field(default=0, init=False, repr=False)

    def begin_send(self, protocol: Any) -> bool:
        """Check the connection, and return True: the body is written next, before anything else happens.

        Return False if the connection is new and has unread bytes: `settle`, and call this again.

        Raises:
            aiohttp.ClientConnectionError: this connection must not be used.
            TimeoutError: its time is up.
        """
        # A connection on which something arrived unasked would give it as the answer to this request: mostly
        # it is the server's goodbye.
        if protocol.should_close:
            raise aiohttp.ClientConnectionError from protocol.exception()
        has_news = _unread_checks.get(protocol)
        if has_news is None:
            self._new_protocol, has_news = protocol, unread_check(protocol.transport)
            _unread_checks[protocol] = has_news
            if has_news():
                return False
        elif protocol is not self._new_protocol and has_news():
            raise aiohttp.ClientConnectionError
        self.on_send()
        is_first = protocol is self._new_protocol and not self.sent
        self.may_be_rejected = is_first and _is_rejectable(protocol.transport)
        self._protocol, self._new_protocol = protocol, None
        self.sent = True
        return True

    def was_rejected(self, error: BaseException) -> bool:
        """Return whether an error proves that the server rejected the handshake and read no request."""
        return self.may_be_rejected and tls_reason(error) in _CERTIFICATE_ALERTS

    async def read_next(self, read: Callable[[], Coroutine[Any, None, T]]) -> T:
        """Return what is read next of the response; raise a cancellation only if nothing more has arrived."""
        if self.deferred_cancellation is None:
            try:
                return await read()
            except asyncio.CancelledError as error:
                self.deferred_cancellation = error.args
        while True:
            try:
                return _immediate_result(read(), asyncio.CancelledError(*self.deferred_cancellation))
            except asyncio.CancelledError:
                if not self.may_have_more():
                    raise
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def may_have_more(self) -> bool:
        """Return whether to wait another turn of the event loop; called in each turn after a cancellation."""
        self._iterations += 1
        if self._iterations > _MAX_ITERATIONS:
            return False
        # A closed connection has no bytes, and the number of its socket may be another one's by now.
        return self._iterations <= _MIN_ITERATIONS or (
            self._protocol.is_connected() and _unread_checks[self._protocol]()
        )

    def raise_cancellation(self) -> None:
        """Raise the cancellation, if there was one, now that everything is processed or has failed."""
        if self.deferred_cancellation is not None:
            raise asyncio.CancelledError(*self.deferred_cancellation) from None


async def finish_handshake() -> None:
    """Wait until the loop has read what ends a new connection's handshake: session tickets, or an alert."""
    for _ in range(_HANDSHAKE_ITERATIONS):
        await asyncio.sleep(0)


def _is_rejectable(transport: asyncio.Transport) -> bool:
    tls = transport.get_extra_info("ssl_object")
    # With post-handshake authentication, a server may have read the request before it rejects a certificate.
    return tls is not None and tls.version() == "TLSv1.3" and not tls.context.post_handshake_auth


def tls_reason(error: BaseException | None) -> str | None:
    """Return OpenSSL's name for what ended a connection, such as `WRONG_VERSION_NUMBER`, if TLS did."""
    while error is not None:
        # In the text, because aiohttp passes that on and drops the SSLError in some cases.
        if isinstance(error, OSError) and (match := _OPENSSL_REASON.match(str(error.strerror))):
            return match[1]
        error = error.__cause__
    return None


def _immediate_result(coroutine: Coroutine[Any, None, T], error: BaseException) -> T:
    """Return the result of a coroutine that does not have to wait; raise an error inside one that does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    return cast("T", coroutine.throw(error))  # which raises it


# ---------------------------------------------------------------------------------------- by a session


class _Payload(aiohttp.BytesPayload):
    def __init__(self, body: RequestBody) -> None:
        super().__init__(body.data, content_type="application/json")
        self._body = body

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:  # noqa: ARG002
        if not self._body.begin_send(writer.protocol):
            await finish_handshake()
            self._body.begin_send(writer.protocol)
        await writer.write(self._body.data)  # all of it, which is what the length says


@types.coroutine
def _delay_cancellation(work: Generator[Any, None, T], body: RequestBody) -> Generator[Any, None, T]:
    """Run a session's `post`, and keep a cancellation from it until what has arrived is read.

    A `post` closes its connection as soon as a cancellation reaches it.
    """
    # What the post waits for: a future, or None to let other tasks run. It is None whenever the post goes on,
    # because a traceback with locals quotes the error of a future, which may quote the request.
    waited: asyncio.Future[Any] | None = None
    try:
        while body.deferred_cancellation is None:
            waited = None
            waited = work.send(None)
            try:
                yield waited and ShieldedFuture(waited)
            except asyncio.CancelledError as error:
                body.deferred_cancellation = error.args
        while body.sent and body.may_have_more():
            with contextlib.suppress(asyncio.CancelledError):
                yield
            if waited is None or waited.done():
                waited = None
                waited = work.send(None)
        if waited is None or waited.done():
            waited = None
            yield work.throw(asyncio.CancelledError(*body.deferred_cancellation))
        # A future is cancelled immediately, so that nothing arrives in between; a task may take some turns.
        while waited is not None and waited.cancel() and not waited.done():
            with contextlib.suppress(asyncio.CancelledError):
                yield ShieldedFuture(waited)
        waited = None
        return (yield from work)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        work.close()


@frozen
class SessionExchange:
    """By a session's own `post`: with its proxies, traces, middlewares and cookies."""

    session: aiohttp.ClientSession
    proxy: str | None = None

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """Put the two together."""
        return url, {"Content-Type": "application/json", **headers}  # a session may have another one

    async def post(self, prepared: tuple[str, Mapping[str, str]], body: RequestBody) -> Response:
        """Send a request, and wait for the head of its response."""
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
        response = await _delay_cancellation(work.__await__(), body)
        if not body.sent:  # so what came answers something else
            response.close()
            raise aiohttp.ClientConnectionError
        return cast("Response", response)


# -------------------------------------------------------------------------------------------- directly


class _CachedKeyRequest(aiohttp.ClientRequest):
    _key: ConnectionKey | None = None

    # aiohttp asks for it each time that one is sent.
    @property
    def connection_key(self) -> ConnectionKey:
        if self._key is None:
            self._key = super().connection_key
        return self._key


@frozen
class _PreparedRequest:
    request: _CachedKeyRequest
    head: bytes = field(repr=False)


@define(eq=False, repr=False)
class _DirectResponse:
    """A response that came directly."""

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader
    _connection: Connection

    def close(self) -> None:
        self._connection.close()


@frozen
class DirectExchange:
    """Over a connection of a pool, without a session; for a pool without proxies."""

    connector: aiohttp.BaseConnector
    loop: asyncio.AbstractEventLoop
    proxy: None = field(default=None, init=False)

    @staticmethod
    def is_supported(*, connector: type = aiohttp.BaseConnector, handler: type = ResponseHandler) -> bool:
        """Tell whether this release of aiohttp has what is used here."""
        connect = inspect.signature(connector.connect).parameters.keys()  # type: ignore[attr-defined]
        respond = inspect.signature(handler.set_response_params).parameters.keys()  # type: ignore[attr-defined]
        named = {"read_until_eof", "auto_decompress"}
        return connect == {"self", "req", "traces", "timeout"} and respond >= named

    def prepare(self, url: str, headers: Mapping[str, str]) -> _PreparedRequest:
        """Make a request of aiohttp's, and write down its head but for the length."""
        json = {"Content-Type": "application/json", **headers}
        request = _CachedKeyRequest("POST", URL(url), headers=json, loop=self.loop)
        lines = [f"{name}: {value}" for name, value in request.headers.items() if name != "Content-Length"]
        lines = [f"POST {request.url.raw_path_qs} HTTP/1.1", *lines, "Content-Length: "]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header holds a line break")
        return _PreparedRequest(request, "\r\n".join(lines).encode())

    async def post(self, prepared: _PreparedRequest, body: RequestBody) -> Response:
        """Send a request, and wait for the head of its response."""
        connection = await self.connector.connect(prepared.request, traces=[], timeout=_NO_TIMEOUT)
        try:
            protocol: Any = connection.protocol
            protocol.set_response_params(read_until_eof=True, auto_decompress=True)
            if not body.begin_send(protocol):
                await finish_handshake()
                body.begin_send(protocol)
            protocol.transport.write(b"%s%d\r\n\r\n%s" % (prepared.head, len(body.data), body.data))
            message, content = await body.read_next(protocol.read)
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await body.read_next(protocol.read)
        except BaseException:
            connection.close()
            raise
        content.on_eof(lambda: _release_connection(connection))
        return _DirectResponse(message.code, message.headers, content, connection)


def _release_connection(connection: Connection) -> None:
    if connection.transport is not None and connection.transport.get_write_buffer_size():
        connection.close()  # it was answered before all of it had left
    connection.release()
