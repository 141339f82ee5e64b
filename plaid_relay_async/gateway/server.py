"""The gateway's server: checks each request, forwards calls to Plaid, and serves the console and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

from aiohttp import HttpVersion11, web

from plaid_relay_async.cancellation import shield_from_anyio
from plaid_relay_async.config import (
    CredentialsSource,
    Environment,
    Timeouts,
    __version__,
    check_base_url,
    check_count,
    check_seconds,
    resolve_identity,
)
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import access_control, error_responses, pages
from plaid_relay_async.gateway.audit import AuditRecord
from plaid_relay_async.gateway.callers import Callers
from plaid_relay_async.gateway.connections import Listener, new_request_id
from plaid_relay_async.gateway.error_responses import GatewayError
from plaid_relay_async.gateway.forward import Upstream
from plaid_relay_async.gateway.keys import ALL_OPERATIONS, RELAY_OPERATIONS, Key
from plaid_relay_async.gateway.metrics import Metrics
from plaid_relay_async.hosts import bracketed, is_loopback, normalize_host
from plaid_relay_async.redaction import Hidden, strip_init_traceback
from plaid_relay_async.session import SessionManager
from plaid_relay_async.telemetry import connect_client
from plaid_relay_async.transport import Authenticator

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.gateway.access_control import RequestTarget
    from plaid_relay_async.gateway.key_file import KeyFile
    from plaid_relay_async.gateway.tracing import Tracing
    from plaid_relay_async.telemetry import Telemetry

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1024 * 1024
_MAX_METRICS_CONNECTIONS = 20


@strip_init_traceback
class Gateway:
    """A reverse proxy that adds Plaid's credentials to calls, so that callers don't need them.

    It forwards each request in one attempt and repeats none. Use it as an async context manager, or call
    `start` and `close`. It logs each call to `plaid_relay_async.gateway.audit`, as a line of JSON at level
    INFO.

    Args:
        keys: the keys of its callers. A key file is reloaded within a second of a change; while it can't be
            used, no caller is admitted.
        upstream: the base URL of Plaid's API; by default the sandbox's.
        credentials: Plaid's credentials, by the names that keys are bound to; by default PLAID_CLIENT_ID and
            PLAID_SECRET of the environment, as `default`.
        operations: the paths that it serves. A key allows only those of its operations that are also served.
        host: the address to listen on.
        port: the port to listen on; 0 picks a free port.
        allowed_hosts: host names by which callers may reach it, in addition to `host` and loopback names.
        ssl: the TLS context with its certificate.
        plain_http: whether plain HTTP is allowed on an address other than loopback, behind a TLS-terminating
            proxy.
        console: whether it serves the console, a page for calling operations by hand.
        metrics_port: the port on 127.0.0.1 for Prometheus; 0 picks a free port, `None` serves no metrics.
        connections: the maximum number of concurrent connections of callers. Further callers wait until one
            is closed; one that has been idle for a second is closed for them.
        upstream_connections: the maximum number of concurrent connections to Plaid.
        upstream_ssl: a TLS context for Plaid, for example with another CA bundle.
        upstream_proxy: the URL of an HTTP proxy to Plaid, like `proxy` of `RelayClient`.
        trust_env: whether to read that proxy from the environment, like `RelayClient`.
        timeouts: the timeouts of an attempt at Plaid; by default those of `RelayClient`.
        caller_timeout: seconds for a caller to send its request, and to receive each chunk of a response;
            also for a call to wait for a connection to Plaid, and for the source of the credentials.
        drain: seconds to wait for calls in flight when it closes.
        telemetry: where its spans and the metrics of its attempts go, and whether a trace is continued to
            Plaid, as for `RelayClient`. By default, they go to OpenTelemetry's global providers, if the extra
            `otel` is installed.

    Raises:
        ConfigurationError: an argument is invalid or unsafe, or the extra for metrics or for `telemetry`
            isn't installed.
    """

    def __init__(
        self,
        keys: KeyFile | Iterable[Key],
        *,
        upstream: str | None = None,
        credentials: Mapping[str, CredentialsSource] | None = None,
        operations: Iterable[str] = RELAY_OPERATIONS,
        host: str = "127.0.0.1",
        port: int = 0,
        allowed_hosts: Iterable[str] = (),
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
        caller_timeout: float = 10.0,
        drain: float = 30.0,
        telemetry: Telemetry | None = None,
    ) -> None:
        check_count("connections", connections)
        timeouts = timeouts or Timeouts()
        check_seconds("caller_timeout", caller_timeout, zero_allowed=True)
        check_seconds("drain", drain, zero_allowed=True)
        if ssl is None and not plain_http and not is_loopback(host):
            raise ConfigurationError(
                f"keys and reports would be sent over plain http on {host}: pass ssl, or plain_http=True "
                "behind a TLS-terminating proxy"
            )
        self._callers = Callers(keys)
        self._upstream_url = check_base_url(upstream or Environment.SANDBOX.base_url, name="upstream")
        self._authenticators = _create_authenticators(credentials)
        self._operations = _served_operations(operations)
        self._address = (host, port)
        self._allowed_hosts = _normalize_hosts(host, allowed_hosts)
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
        tracing = self._connect_tracing(telemetry)
        self._call_span = _no_span if tracing is None else tracing.call_span
        self._upstream = Upstream(
            self._session,
            self._upstream_url,
            timeouts,
            caller_timeout,
            attempt_span=_no_span if tracing is None else tracing.attempt_span,
        )
        self._caller_timeout = caller_timeout
        self._drain = drain
        self._drained = True
        self._pages: dict[str, pages.Page] = {}
        self._one_time_codes = pages.OneTimeCodes()
        self._listener: Listener | None = None
        self._metrics: Metrics | None = None
        if metrics_port is not None:
            self._metrics = Metrics(lambda: self.calls_in_flight, lambda: self.open_connections)
        self._ports: list[int] = []
        self._resources = contextlib.AsyncExitStack()

    def _connect_tracing(self, telemetry: Telemetry | None) -> Tracing | None:
        otel = connect_client(telemetry, self._upstream_url)
        if otel is None:
            return None
        from plaid_relay_async.gateway.tracing import Tracing

        return Tracing(otel, scheme="https" if self._ssl else "http", host=self._address[0])

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
        """Start to listen.

        Raises:
            RuntimeError: it has been started before.
            ConfigurationError: the key file can't be used.
            OSError: the address can't be used.
        """
        if self._listener is not None:
            raise RuntimeError("this gateway was started before: create a new one")
        await self._callers.reload()
        # If a step fails, the stack closes what was opened before it.
        async with contextlib.AsyncExitStack() as resources:
            await self._session.open()
            resources.push_async_callback(self._session.close)
            self._listener = Listener(
                self._handle_request,
                max_connections=self._connections,
                caller_timeout=self._caller_timeout,
                ssl=self._ssl,
            )
            if self._metrics_port is not None:
                await self._serve_metrics(resources, self._metrics_port)
            if self._console:
                self._pages = await asyncio.to_thread(pages.load_pages)
                self._pages["/console/settings.json"] = pages.json_page(self._settings())
            # The port for callers is opened last, when everything is ready for calls, but it is the first in
            # the list.
            self._ports.insert(
                0, await resources.enter_async_context(self._listener.listen_on(*self._address))
            )
            watcher = asyncio.create_task(self._callers.watch_file())
            resources.callback(watcher.cancel)
            self._resources = resources.pop_all()
            self._resources.push_async_callback(self._stop_serving, self._listener)

    async def _serve_metrics(self, resources: contextlib.AsyncExitStack, port: int) -> None:
        listener = Listener(
            self._handle_metrics_request,
            max_connections=_MAX_METRICS_CONNECTIONS,
            caller_timeout=self._caller_timeout,
        )
        self._ports.append(await resources.enter_async_context(listener.listen_on("127.0.0.1", port)))

    async def _stop_serving(self, listener: Listener) -> None:
        # /readyz fails from now on, so that load balancers send no more calls.
        self._callers.problem = "the gateway is closing"
        self._drained = await listener.drain(self._drain)

    async def reload(self) -> None:
        """Read the key file even if it seems unchanged.

        Raises:
            ConfigurationError: the key file can't be used; no caller is admitted until it can.
        """
        await self._callers.reload()

    async def close(self) -> bool:
        """Accept no more calls, wait up to `drain` seconds for those in flight, and close.

        A cancellation by asyncio cuts off the calls in flight. A cancellation by an AnyIO scope is raised
        afterwards.

        Returns:
            Whether the calls in flight have ended. If not, they were cut off, and their outcome is unknown.
        """
        with shield_from_anyio():
            await self._resources.aclose()
        return self._drained

    @property
    def url(self) -> str:
        """The URL that it listens on, such as `http://127.0.0.1:8080`.

        Raises:
            RuntimeError: it isn't started.
        """
        return f"{'https' if self._ssl else 'http'}://{bracketed(self._address[0])}:{self._listening_port(0)}"

    @property
    def keys(self) -> tuple[Key, ...]:
        """The records of the keys that are valid now; none while the key file can't be used."""
        return self._callers.keys

    @property
    def open_connections(self) -> int:
        """The number of connections from callers."""
        return len(self._listener or ())

    @property
    def calls_in_flight(self) -> int:
        """The number of calls that were sent to Plaid and have not ended."""
        return self._upstream.in_flight

    def console_link(self, **values: str) -> str:
        """Return a URL that opens the console once, within 5 minutes, with a key and tokens filled in.

        The URL contains a one-time code instead of them, because browsers store URLs on disk.

        Args:
            **values: `key`, `report_token` and `relay_token`.

        Raises:
            RuntimeError: the gateway isn't started.
            ConfigurationError: it has no console, or does not listen on a loopback address.
        """
        url = self.url
        if not self._console or not is_loopback(self._address[0]):
            raise ConfigurationError("a link to the console needs the console, on a loopback address")
        return f"{url}/#code={self._one_time_codes.issue(values)}"

    @property
    def metrics_url(self) -> str | None:
        """The URL of the metrics for Prometheus, or None if it serves none.

        Raises:
            RuntimeError: it isn't started.
        """
        if self._metrics_port is None:
            return None
        return f"http://127.0.0.1:{self._listening_port(1)}/metrics"

    def _listening_port(self, index: int) -> int:
        if not self._ports:
            raise RuntimeError("this gateway isn't started: use `async with`, or await its start()")
        return self._ports[index]

    def _settings(self) -> dict[str, Any]:
        environment = Environment.from_url(self._upstream_url)
        served = [path for path in ALL_OPERATIONS if path in self._operations]
        return {"environment": environment, "operations": served, "version": __version__}

    # ------------------------------------------------------------------------------------ one request

    async def _handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        target = access_control.request_target(request)
        if request.method in {"GET", "HEAD"} and (response := self._find_page(target)) is not None:
            return response
        if target.path == pages.HANDOVER_PATH and request.method == "POST":
            return await self._exchange_code(request, target)
        record = AuditRecord()
        with self._call_span(request, record):
            try:
                return await self._handle_call(request, target, record)
            finally:
                record.write()
                if self._metrics is not None:
                    self._metrics.count_call(record)

    def _find_page(self, target: RequestTarget) -> web.Response | None:
        # Health checks reveal nothing, so they are served for any Host header.
        if target.path == "/healthz":
            return web.Response(text="ok", headers=error_responses.NO_STORE)
        if target.path == "/readyz":
            ready = self._callers.problem is None
            text = "ready" if ready else "not ready"
            return web.Response(text=text, status=200 if ready else 503, headers=error_responses.NO_STORE)
        page = self._pages.get(target.path)
        if page is None:
            return None
        try:
            access_control.check_host(target, self._allowed_hosts)
        except GatewayError as error:
            return error_responses.error_response(error.reason, new_request_id())
        return web.Response(body=page.body, headers=page.headers)

    async def _exchange_code(self, request: web.BaseRequest, target: RequestTarget) -> web.Response:
        """Return the values for a one-time code of the console."""
        try:
            access_control.check_host(target, self._allowed_hosts)
            access_control.check_origin(request, target)
            access_control.check_headers(request)
            page = self._one_time_codes.exchange(await self._read_body(request))
            if page is None:
                raise GatewayError(error_responses.NOT_FOUND)
        except GatewayError as error:
            response = error_responses.error_response(error.reason, new_request_id())
            if error.closes_connection:
                response.force_close()
            return response
        return web.Response(body=page.body, headers=page.headers)

    async def _handle_call(
        self, request: web.BaseRequest, target: RequestTarget, record: AuditRecord
    ) -> web.StreamResponse:
        assert self._listener is not None  # noqa: S101  # start() has created it
        try:
            return await self._forward_call(request, target, record)
        except GatewayError as error:
            # The exception must not outlive this block: it would form a reference cycle with its frames and
            # the body, which only the garbage collector would free.
            reason, headers, closes = error.reason, error.headers, error.closes_connection
        except Exception as error:
            # Plaid's response has begun, so no other one can be sent. aiohttp cuts it off.
            if record.status is not None:  # pragma: no cover  # an unexpected error that no test can cause
                record.error_code = error_responses.INTERNAL_ERROR.code
                raise
            _log.error("a request failed with %s", type(error).__name__)
            reason, headers, closes = error_responses.INTERNAL_ERROR, {}, True
        record.status, record.error_code, record.request_id = reason.status, reason.code, new_request_id()
        response = error_responses.error_response(reason, record.request_id, headers)
        if closes:
            response.force_close()
        record.delivered = await self._listener.send_response(request, response)
        return response

    async def _forward_call(
        self, request: web.BaseRequest, target: RequestTarget, record: AuditRecord
    ) -> web.StreamResponse:
        access_control.check_host(target, self._allowed_hosts)
        endpoint = access_control.find_endpoint(request.method, target.path)
        record.operation = endpoint.path
        access_control.check_origin(request, target)
        access_control.check_headers(request)
        key, body = await self._authorize(request, endpoint, record)
        authenticator = self._authenticators.get(key.credentials)
        if authenticator is None:
            raise GatewayError(error_responses.UNAUTHORIZED_CREDENTIALS)
        self._callers.acquire_permit(key)
        return await self._upstream.forward(endpoint, body, authenticator, request, record)

    async def _authorize(
        self, request: web.BaseRequest, endpoint: Endpoint[Any, Any], record: AuditRecord
    ) -> tuple[Key, Hidden[bytes]]:
        presented = access_control.key_from_headers(request)
        if presented is not None:  # checked before the body, so that no body is read for an invalid key
            self._authenticate(request, presented, endpoint, record)
        parsed = access_control.parse_body(await self._read_body(request))
        # Checked again, because the key may have been revoked while the body was read.
        key = self._authenticate(request, parsed.key if presented is None else presented, endpoint, record)
        if endpoint.path == RELAY_OPERATIONS[0]:
            record.partner = parsed.partner
        access_control.authorize_call(key, endpoint, parsed.partner)
        return key, parsed.body

    def _authenticate(
        self,
        request: web.BaseRequest,
        presented: Hidden[str] | None,
        endpoint: Endpoint[Any, Any],
        record: AuditRecord,
    ) -> Key:
        key = access_control.authenticate_key(self._callers.keys, presented)
        record.caller = key.name
        assert self._listener is not None  # noqa: S101  # start() has created it
        # A connection with a valid key is preferred even if its key does not allow this operation.
        self._listener.mark_authenticated(request.protocol)
        if endpoint.path not in self._operations:
            raise GatewayError(error_responses.UNAUTHORIZED_OPERATION)
        return key

    async def _read_body(self, request: web.BaseRequest) -> Hidden[bytes]:
        too_large = GatewayError(error_responses.BODY_TOO_LARGE, closes_connection=True)
        if (request.content_length or 0) > _MAX_BODY_BYTES:
            raise too_large
        # The caller waits for 100 Continue, which only aiohttp's router sends. HTTP/1.0 has no interim
        # responses.
        if "Expect" in request.headers and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        assert self._listener is not None  # noqa: S101  # start() has created it
        # The length is also checked while reading, because a chunked body has no Content-Length.
        body, content = Hidden(bytearray()), request.content
        try:
            async with asyncio.timeout(self._caller_timeout):
                with self._listener.waiting_for_caller(request.protocol):
                    while not content.at_eof():
                        body.reveal().extend(await content.readany())
                        if len(body.reveal()) > _MAX_BODY_BYTES:
                            raise too_large
        except TimeoutError:
            raise GatewayError(error_responses.BODY_TIMEOUT, closes_connection=True) from None
        except (web.RequestPayloadError, ConnectionError):  # the body is truncated, or its framing is invalid
            raise GatewayError(error_responses.INVALID_HTTP, closes_connection=True) from None
        return Hidden(bytes(body.reveal()))

    async def _handle_metrics_request(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._metrics is not None  # noqa: S101  # this port is served only with metrics
        try:
            target = access_control.request_target(request)
            access_control.check_host(target, ())
        except GatewayError as error:
            return error_responses.error_response(error.reason, new_request_id())
        if target.path != "/metrics":
            return error_responses.error_response(error_responses.NOT_FOUND, new_request_id())
        return web.Response(
            body=self._metrics.render_text(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )


def _no_span(*_: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _normalize_hosts(host: str, allowed_hosts: Iterable[str]) -> frozenset[str]:
    # An address such as "", which means every interface, is not a host name: no Host header contains it.
    with contextlib.suppress(ValueError):
        allowed_hosts = (normalize_host(host), *allowed_hosts)
    try:
        return frozenset(normalize_host(name) for name in allowed_hosts)
    except (ValueError, TypeError):
        raise ConfigurationError("allowed_hosts must be host names, without scheme and port") from None


def _create_authenticators(credentials: Mapping[str, CredentialsSource] | None) -> dict[str, Authenticator]:
    sources = {"default": None} if credentials is None else credentials
    return {
        name: Authenticator(resolve_identity(source, None), "headers") for name, source in sources.items()
    }


def _served_operations(operations: Iterable[str]) -> frozenset[str]:
    served = frozenset(operations)
    if unknown := served - set(ALL_OPERATIONS):
        raise ConfigurationError(
            f"operations must be among {', '.join(ALL_OPERATIONS)}, not {min(unknown)!r}"
        )
    return served
