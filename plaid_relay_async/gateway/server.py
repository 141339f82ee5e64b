"""The gateway: a reverse proxy that lets callers use Plaid's credentials without holding them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from typing import TYPE_CHECKING, Any, Self

from aiohttp import HttpVersion11, web

from plaid_relay_async.cancellation import shield
from plaid_relay_async.config import (
    CredentialsSource,
    Environment,
    Timeouts,
    __version__,
    check_base_url,
    check_count,
    is_loopback,
    normal_host,
    resolve_identity,
)
from plaid_relay_async.errors import ConfigurationError, Hidden, sealed_init
from plaid_relay_async.gateway import admission, pages, refusals
from plaid_relay_async.gateway.audit import Entry
from plaid_relay_async.gateway.callers import Callers
from plaid_relay_async.gateway.connections import Listener, request_id
from plaid_relay_async.gateway.forward import Upstream
from plaid_relay_async.gateway.keys import KNOWN, RELAY, Key, KeyFile
from plaid_relay_async.gateway.metrics import Metrics
from plaid_relay_async.gateway.refusals import RefusedError
from plaid_relay_async.session import SessionManager
from plaid_relay_async.transport import Signer

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.gateway.admission import Target

_log = logging.getLogger(__name__)

_LARGEST_BODY = 1024 * 1024
_SCRAPERS = 20  # connections at once to the port of metrics


@sealed_init
class Gateway:
    """Forwards Plaid's operations, one attempt for one request, with credentials that its callers don't see.

    Use it as an async context manager, or call `start` and `close`. It logs each call to
    `plaid_relay_async.gateway.audit`, as a line of JSON.

    Args:
        keys: who may call. A file is read anew within a second of a change; while it can't be used, nobody
            may.
        upstream: the base URL of Plaid's API; the sandbox's unless told.
        credentials: Plaid's, by the names that keys are bound to; PLAID_CLIENT_ID and PLAID_SECRET of the
            environment as `default` unless told.
        operations: paths that it serves; a key's own are narrowed to these.
        host: the address to listen on.
        port: to listen on; 0 takes a free one.
        names: of hosts that it answers to, beside `host` and loopback's.
        ssl: the context with its certificate.
        plain_http: whether it may do without on another address than loopback's, behind a proxy that has one.
        console: whether it serves the page on which operations can be tried.
        metrics_port: for Prometheus, on 127.0.0.1; 0 takes a free one.
        connections: of callers, at the same time. Further callers wait until one is closed; one that has been
            idle for a second is closed for them.
        upstream_connections: to Plaid.
        upstream_ssl: a context with one's own CA bundle.
        upstream_proxy: the URL of an HTTP proxy to Plaid, as `proxy` of `RelayClient`.
        trust_env: whether the environment may name that proxy, as with `RelayClient`.
        timeouts: of an attempt at Plaid.
        patience: seconds for a caller to send its request, and to take each piece of an answer.
        drain: seconds that calls in flight are given when it closes.

    Raises:
        ConfigurationError: an argument makes no sense, or isn't safe.
    """

    def __init__(
        self,
        keys: KeyFile | Iterable[Key],
        *,
        upstream: str | None = None,
        credentials: Mapping[str, CredentialsSource] | None = None,
        operations: Iterable[str] = RELAY,
        host: str = "127.0.0.1",
        port: int = 0,
        names: Iterable[str] = (),
        ssl: tls.SSLContext | None = None,
        plain_http: bool = False,
        console: bool = True,
        metrics_port: int | None = None,
        connections: int = 500,
        upstream_connections: int = 100,
        upstream_ssl: tls.SSLContext | None = None,
        upstream_proxy: str | None = None,
        trust_env: bool = False,
        timeouts: Timeouts | None = None,
        patience: float = 10.0,
        drain: float = 30.0,
    ) -> None:
        check_count("connections", connections)
        timeouts = timeouts or Timeouts()
        _check_seconds(patience=patience, drain=drain)
        if ssl is None and not plain_http and not is_loopback(host):
            raise ConfigurationError(
                f"keys and reports would go over plain http on {host}: pass ssl, or plain_http=True behind a "
                "proxy that ends TLS"
            )
        self._callers = Callers(keys)
        self._upstream_url = check_base_url(upstream or Environment.SANDBOX.base_url, name="upstream")
        self._signers = _signers(credentials)
        self._operations = _checked(operations)
        self._address = (host, port)
        self._names = _names(host, names)
        self._ssl = ssl
        self._console = console
        self._metrics_port = metrics_port
        self._connections = connections
        self._session = SessionManager(
            base_url=self._upstream_url,
            connections=upstream_connections,
            idle=timeouts.idle,
            ssl=upstream_ssl,
            proxy=upstream_proxy,
            trust_env=trust_env,
        )
        self._upstream = Upstream(self._session, self._upstream_url, timeouts, patience)
        self._patience = patience
        self._drain = drain
        self._pages: dict[str, pages.Page] = {}
        self._handovers = pages.Handovers()
        self._listener: Listener | None = None
        self._metrics: Metrics | None = None
        if metrics_port is not None:
            self._metrics = Metrics(lambda: self._upstream.in_flight, lambda: len(self._listener or ()))
        self._ports: list[int] = []
        self._open = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Gateway to {self._upstream_url}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            RuntimeError: it has been started before.
            ConfigurationError: the file of keys can't be used, or the extra for metrics isn't installed.
            OSError: the address can't be had.
        """
        if self._listener is not None:
            raise RuntimeError("this gateway was started before: make a new one")
        await self._callers.look()
        self._callers.check()
        async with contextlib.AsyncExitStack() as opening:
            await self._session.open()
            opening.push_async_callback(self._session.close)
            self._listener = Listener(
                self._answer, most=self._connections, patience=self._patience, ssl=self._ssl
            )
            if self._metrics_port is not None:
                await self._serve_metrics(opening, self._metrics_port)
            if self._console:
                self._pages = await asyncio.to_thread(pages.load)
                self._pages["/console/settings.json"] = pages.settings(self._settings())
            self._ports.insert(0, await opening.enter_async_context(self._listener.listening(*self._address)))
            watch = asyncio.create_task(self._callers.watch())
            opening.callback(watch.cancel)
            self._open = opening.pop_all()
            self._open.push_async_callback(self._stop, self._listener)

    async def _serve_metrics(self, opening: contextlib.AsyncExitStack, port: int) -> None:
        listener = Listener(self._answer_metrics, most=_SCRAPERS, patience=self._patience)
        self._ports.append(await opening.enter_async_context(listener.listening("127.0.0.1", port)))

    async def _stop(self, listener: Listener) -> None:
        self._callers.trouble = "the gateway is closing"
        await listener.drain(self._drain)

    def reload(self) -> None:
        """Read the file of keys again, within half a second, even if it looks unchanged."""
        self._callers.look_again()

    async def close(self) -> None:
        """Accept no more calls, let those in flight end, for `drain` seconds at most, and close.

        A cancellation by asyncio cuts off the calls in flight; one by an AnyIO scope is raised afterwards.
        """
        with shield():
            await self._open.aclose()

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8080`.

        Raises:
            RuntimeError: it doesn't yet.
        """
        return f"{'https' if self._ssl else 'http'}://{_bracketed(self._address[0])}:{self._port(0)}"

    def console_link(self, **values: str) -> str:
        """Return an address that opens the console with a key and tokens filled in, once, within 5 minutes.

        The address has a one-time code in place of them, because browsers keep addresses on disk.

        Args:
            **values: `key`, `report_token` and `relay_token`.

        Raises:
            RuntimeError: the gateway doesn't listen yet.
            ConfigurationError: it has no console, or listens on another address than loopback's.
        """
        url = self.url
        if not self._console or not is_loopback(self._address[0]):
            raise ConfigurationError("a link to the console needs the console, on a loopback address")
        return f"{url}/#code={self._handovers.issue(values)}"

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds its metrics, if anywhere.

        Raises:
            RuntimeError: it doesn't listen yet.
        """
        return None if self._metrics_port is None else f"http://127.0.0.1:{self._port(1)}/metrics"

    def _port(self, which: int) -> int:
        if not self._ports:
            raise RuntimeError("this gateway isn't started: use `async with`, or await its start()")
        return self._ports[which]

    def _settings(self) -> bytes:
        environment = Environment.at(self._upstream_url)
        served = [path for path in KNOWN if path in self._operations]
        return json.dumps({"environment": environment, "operations": served, "version": __version__}).encode()

    # ------------------------------------------------------------------------------------ one request

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        target = admission.target_of(request)
        if request.method in {"GET", "HEAD"} and (response := self._page(target)) is not None:
            return response
        if target.path == pages.HANDOVER and request.method == "POST":
            return await self._hand_over(request, target)
        entry = Entry()
        try:
            return await self._call(request, target, entry)
        finally:
            entry.tell()
            if self._metrics is not None:
                self._metrics.count(entry)

    def _page(self, target: Target) -> web.Response | None:
        if target.path == "/healthz":
            return web.Response(text="ok", headers=refusals.NO_STORE)
        if target.path == "/readyz":
            ready = self._callers.trouble is None
            text = "ready" if ready else "not ready"
            return web.Response(text=text, status=200 if ready else 503, headers=refusals.NO_STORE)
        page = self._pages.get(target.path)
        if page is None:
            return None
        try:
            admission.check_host(target, self._names)
        except RefusedError as refused:
            return refusals.answer_of(refused.reason, request_id())
        return web.Response(body=page.body, headers=page.headers)

    async def _hand_over(self, request: web.BaseRequest, target: Target) -> web.Response:
        """Answer a page that has a one-time code."""
        try:
            admission.check_host(target, self._names)
            admission.check_origin(request, target)
            admission.check_form(request)
            page = self._handovers.exchange(await self._body(request))
            if page is None:
                raise RefusedError(refusals.NOT_FOUND)
        except RefusedError as refused:
            response = refusals.answer_of(refused.reason, request_id())
            if refused.ends:
                response.force_close()
            return response
        return web.Response(body=page.body, headers=page.headers)

    async def _call(self, request: web.BaseRequest, target: Target, entry: Entry) -> web.StreamResponse:
        assert self._listener is not None  # noqa: S101  # it was started
        try:
            return await self._forward(request, target, entry)
        except RefusedError as error:
            # A name that outlived this block would keep exception, frames and body in a circle.
            reason, headers, ends = error.reason, error.headers, error.ends
        except Exception as error:
            # Plaid's response has begun, and is cut off.
            if entry.status is not None:  # pragma: no cover  # a bug that no test knows how to cause
                entry.error_code = refusals.INTERNAL_ERROR.code
                raise
            _log.error("a request ended in %s", type(error).__name__)
            reason, headers, ends = refusals.INTERNAL_ERROR, {}, True
        entry.status, entry.error_code, entry.request_id = reason.status, reason.code, request_id()
        response = refusals.answer_of(reason, entry.request_id, headers)
        if ends:
            response.force_close()
        entry.delivered = await self._listener.deliver(request, response)
        return response

    async def _forward(self, request: web.BaseRequest, target: Target, entry: Entry) -> web.StreamResponse:
        admission.check_host(target, self._names)
        endpoint = admission.endpoint_at(request.method, target.path)
        entry.operation = endpoint.path
        admission.check_origin(request, target)
        admission.check_form(request)
        key, body = await self._admit(request, endpoint, entry)
        signer = self._signers.get(key.credentials)
        if signer is None:
            raise RefusedError(refusals.UNAUTHORIZED_CREDENTIALS)
        self._callers.take(key)
        return await self._upstream.forward(endpoint, body, signer, request, entry)

    async def _admit(
        self, request: web.BaseRequest, endpoint: Endpoint[Any, Any], entry: Entry
    ) -> tuple[Key, Hidden[bytes]]:
        presented = admission.key_in(request)
        if presented is not None:  # so nobody's body is read who is refused by it
            self._admitted(request, presented, endpoint, entry)
        sent = admission.read(await self._body(request))
        # A key may have been revoked meanwhile.
        key = self._admitted(request, sent.key if presented is None else presented, endpoint, entry)
        if endpoint.path == RELAY[0]:
            entry.partner = sent.partner
        admission.check_leave(key, endpoint, sent.partner)
        return key, sent.body

    def _admitted(
        self,
        request: web.BaseRequest,
        presented: Hidden[str] | None,
        endpoint: Endpoint[Any, Any],
        entry: Entry,
    ) -> Key:
        key = admission.caller_of(self._callers.keys, presented)
        entry.caller = key.name
        assert self._listener is not None  # noqa: S101  # it was started
        self._listener.know(request.protocol)
        if endpoint.path not in self._operations:
            raise RefusedError(refusals.UNAUTHORIZED_OPERATION)
        return key

    async def _body(self, request: web.BaseRequest) -> Hidden[bytes]:
        too_large = RefusedError(refusals.BODY_TOO_LARGE, ends=True)
        if (request.content_length or 0) > _LARGEST_BODY:
            raise too_large
        # The caller waits for 100 Continue, which only aiohttp's router sends. HTTP/1.0 has none.
        if "Expect" in request.headers and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        assert self._listener is not None  # noqa: S101  # it was started
        body, content = Hidden(bytearray()), request.content
        try:
            async with asyncio.timeout(self._patience):
                with self._listener.awaiting(request.protocol):
                    while not content.at_eof():
                        body.reveal().extend(await content.readany())
                        if len(body.reveal()) > _LARGEST_BODY:
                            raise too_large
        except TimeoutError:
            raise RefusedError(refusals.BODY_TIMEOUT, ends=True) from None
        except (web.RequestPayloadError, ConnectionError):  # it broke off, or its framing did
            raise RefusedError(refusals.INVALID_HTTP, ends=True) from None
        return Hidden(bytes(body.reveal()))

    async def _answer_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._metrics is not None  # noqa: S101  # it is served with them alone
        try:
            target = admission.target_of(request)
            admission.check_host(target, ())
        except RefusedError as refused:
            return refusals.answer_of(refused.reason, request_id())
        if target.path != "/metrics":
            return refusals.answer_of(refusals.NOT_FOUND, request_id())
        return web.Response(body=self._metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _names(host: str, names: Iterable[str]) -> frozenset[str]:
    with contextlib.suppress(ValueError):  # such as "", which is every interface and stands in no Host header
        names = (normal_host(host), *names)
    try:
        return frozenset(normal_host(name) for name in names)
    except (ValueError, TypeError):
        raise ConfigurationError("names must be names of hosts, without scheme and port") from None


def _signers(credentials: Mapping[str, CredentialsSource] | None) -> dict[str, Signer]:
    given = {"default": None} if credentials is None else credentials
    return {name: Signer(resolve_identity(who, None), "headers") for name, who in given.items()}


def _checked(operations: Iterable[str]) -> frozenset[str]:
    served = frozenset(operations)
    if unknown := served - set(KNOWN):
        raise ConfigurationError(f"operations must be of {', '.join(KNOWN)}, not {min(unknown)!r}")
    return served


def _check_seconds(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigurationError(f"{name} must be a number of seconds from 0, not {value!r}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
