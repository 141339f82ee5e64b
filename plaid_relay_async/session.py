"""The session manager: one aiohttp connection pool, owned or borrowed, which is opened and closed once.

Calls acquire a slot before they request a connection, and there are as many slots as connections. So a call
doesn't queue inside aiohttp, where the time would count against its timeouts. The exception is a borrowed
session whose connections the program itself uses as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import warnings
import weakref
from asyncio import sslproto
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from aiohttp.helpers import basicauth_from_netrc, get_env_proxy_for_url, netrc_from_env
from yarl import URL

from plaid_relay_async import watching
from plaid_relay_async.cancellation import run_to_completion
from plaid_relay_async.config import check_count, check_tls, check_type
from plaid_relay_async.deadlines import GRACE_ITERATIONS, DeadlineTimer
from plaid_relay_async.errors import ClientClosedError, ConfigurationError
from plaid_relay_async.exchange import DirectExchange, Exchange, SessionExchange
from plaid_relay_async.hosts import is_loopback
from plaid_relay_async.proxies import resolve_proxy

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable, Collection


class SessionState(enum.Enum):
    """The states of a client, which is opened once and closed once. Messages quote the values."""

    NEW = "not open yet"
    OPEN = "open"
    CLOSING = "being closed"
    CLOSED = "closed"


_fork_count = 0


def _count_fork() -> None:
    global _fork_count  # noqa: PLW0603  # comparing this count is cheaper than os.getpid(), a system call
    _fork_count += 1


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has no forks
    os.register_at_fork(after_in_child=_count_fork)

# Several clients may borrow the same pool. They share its connections, so they share its slots.
_borrowed_slots: weakref.WeakKeyDictionary[aiohttp.BaseConnector, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


class SessionManager:
    """Owns an `aiohttp.ClientSession`, or borrows the caller's session and never closes it.

    Args:
        session: the caller's session, with its TLS, proxy and cookie settings; `None` for an owned session.
        base_url: the address to call.
        connections: the maximum number of connections of an owned pool; further calls queue for a slot.
        idle: seconds after which an owned pool closes an unused connection.
        ssl: the TLS context of an owned pool, for example with a private CA bundle.
        proxy: the URL of a proxy, for an owned pool.
        trust_env: whether an owned pool reads its proxy from the environment.
        direct: whether an owned pool without a proxy is used without aiohttp's `ClientSession`, if this
            release of aiohttp supports that.
        tls_buffer: bytes that asyncio allocates to read from each TLS connection; `None` for asyncio's
            default.

    Attributes:
        now: returns the time by the event loop's clock; available once the manager is open.
        deadline_timer: the timer of the attempts' deadlines; available once the manager is open.
        exchange: sends requests; available once the manager is open. Call `check_usable` before each use.
        slots: the slots, as many as the pool has connections; a call acquires one before a connection.

    Raises:
        ConfigurationError: an argument is invalid or contradicts another one, or the TLS context doesn't
            verify the server.
    """

    now: Callable[[], float]
    deadline_timer: DeadlineTimer
    exchange: Exchange

    def __init__(
        self,
        session: aiohttp.ClientSession | None = None,
        *,
        base_url: str,
        connections: int = 100,
        idle: float = 15.0,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        direct: bool = True,
        tls_buffer: int | None = None,
    ) -> None:
        if session is not None and (ssl is not None or proxy is not None or trust_env):
            raise ConfigurationError(
                "ssl, proxy and trust_env are settings of the borrowed session: set them there"
            )
        check_count("connections", connections)
        check_type("direct", direct, bool)
        if tls_buffer is not None:
            check_count("tls_buffer", tls_buffer)
        self._owned = session is None  # a borrowed session is never closed
        self._session = session
        self._connections: int | None = connections
        self._idle = idle
        self._ssl = check_tls(ssl)
        self._base_url = base_url
        # The proxy is resolved once, and not by aiohttp, which would read the environment for each request
        # and send logins from `.netrc`.
        self._proxy = resolve_proxy(base_url, proxy, trust_env=trust_env)
        self._direct = direct and session is None and self._proxy is None
        self._tls_buffer = tls_buffer
        self._state = SessionState.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fork_count_at_open = 0
        self.slots = asyncio.Semaphore(connections)

    async def open(self) -> None:
        """Open the pool inside the running loop.

        Raises:
            ClientClosedError: it has been opened already, or the borrowed session is closed.
            ConfigurationError: the borrowed session would send a login from `.netrc`, or would send plain
                http to a proxy on another machine.
        """
        if self._state is SessionState.OPEN:
            raise ClientClosedError("this client is already open: one `async with` is enough")
        if self._state in {SessionState.CLOSING, SessionState.CLOSED}:
            raise ClientClosedError("this client was closed and can't be opened again: create a new one")
        if self._session is None:
            self._session = self._create_session()
        elif self._session.closed:
            raise ClientClosedError("the aiohttp session that this client borrowed is closed")
        else:
            await _check_plain_http(self._session, URL(self._base_url))
            await _check_netrc(self._session, urlsplit(self._base_url).hostname or "")
            self._connections, self.slots = _slots_for(self._session)
        _raise_mmap_threshold()
        if self._tls_buffer is not None:
            _set_tls_buffer(self._tls_buffer)
        self._loop, self._fork_count_at_open = asyncio.get_running_loop(), _fork_count
        # The loop is looked up once: before Python 3.12, each lookup takes a system call.
        self.now = self._loop.time
        self.deadline_timer = DeadlineTimer(self._loop)
        self.exchange = self._create_exchange(self._session, self._loop)
        self._state = SessionState.OPEN

    def _create_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections or 0, keepalive_timeout=self._idle, ssl=self._ssl or True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # no server may store anything in this process
            proxy=None if self._proxy is None else self._proxy.url.reveal(),
        )

    def _create_exchange(self, session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop) -> Exchange:
        # The direct exchange takes 30 % less CPU time than a session, but supports no proxies, traces or
        # middlewares.
        if self._direct and session.connector is not None and DirectExchange.is_supported():
            return DirectExchange(session.connector, loop)
        return SessionExchange(session, None if self._proxy is None else self._proxy.address)

    def start_closing(self) -> bool:
        """Reject new calls, and return whether there is something to close."""
        # In a forked child, the connections belong to the parent process, so the child closes nothing.
        if self._state is SessionState.OPEN and self._fork_count_at_open == _fork_count:
            self._state = SessionState.CLOSING
        elif self._state is not SessionState.CLOSING:
            self._state = SessionState.CLOSED
        return self._state is SessionState.CLOSING

    async def close(self) -> None:
        """Close an owned pool; a borrowed one stays open. Closing again does nothing.

        A cancellation is raised once the pool is closed.
        """
        if not self.start_closing():
            return
        self._state = SessionState.CLOSED
        self.deadline_timer.close()
        if self._owned and self._session is not None:
            await run_to_completion(partial(_close_session, self._session))

    @property
    def connections(self) -> int | None:
        """The maximum number of connections; `None` for a borrowed pool without a limit."""
        return self._connections

    @property
    def is_open(self) -> bool:
        """Whether calls may start."""
        return self._state is SessionState.OPEN

    def check_usable(self) -> None:
        """Check that the client may be used here.

        Raises:
            ClientClosedError: it isn't open, it was opened in another event loop or process, or the session
                that it borrowed has been closed.
            ConfigurationError: a test with the testing kit uses a client of another machine.
        """
        if self._state is not SessionState.OPEN or self._session is None:
            raise ClientClosedError(f"this client is {self._state.value}")
        if not self._owned and self._session.closed:
            raise ClientClosedError("the aiohttp session that this client borrowed has been closed")
        # The sockets are shared with the parent process: bytes that the child sends would disturb its
        # requests.
        if self._fork_count_at_open != _fork_count:
            raise ClientClosedError("this client was opened in another process: open one after the fork")
        if self._loop is not asyncio.get_running_loop():
            raise ClientClosedError("this client was opened in another event loop: open one in each loop")
        if (watcher := watching.watcher) is not None:
            watcher.check_address(self._base_url)

    def __del__(self) -> None:
        is_open = getattr(self, "_state", None) is SessionState.OPEN
        if is_open and self._owned and self._fork_count_at_open == _fork_count:
            warnings.warn(
                "a RelayClient was never closed: use `async with`, or await its close()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


async def _close_session(session: aiohttp.ClientSession) -> None:
    # In these iterations of the event loop, the calls in flight process the responses that have arrived.
    for _ in range(GRACE_ITERATIONS):
        await asyncio.sleep(0)
    await session.close()


def _raise_mmap_threshold() -> None:
    # asyncio reads into buffers of 256 KB. By default glibc maps that much memory for each read and unmaps it
    # afterwards. Once a larger block has been freed, glibc raises its threshold and takes such buffers from
    # the heap.
    bytes(1024 * 1024)


def _set_tls_buffer(size: int) -> None:
    # An undocumented class attribute, which each new connection reads. Without it, the option does nothing.
    if hasattr(sslproto.SSLProtocol, "max_size"):  # pragma: no branch  # all Pythons so far have it
        sslproto.SSLProtocol.max_size = size


def check_borrowed_session(session: aiohttp.ClientSession, headers: Collection[str]) -> None:
    """Check that a borrowed session sends no credentials in addition to the client's.

    Args:
        session: the caller's session.
        headers: the names of the headers in which the client sends its credentials.

    Raises:
        ConfigurationError: the session sends other credentials.
    """
    if session.auth is not None and "Authorization" in headers:
        raise ConfigurationError(
            "the borrowed session has auth=, and a gateway_key needs the header Authorization: "
            "pass a session without auth="
        )
    for name in ("PLAID-CLIENT-ID", "PLAID-SECRET"):
        if name in session.headers and name not in headers:
            raise ConfigurationError(
                f"the borrowed session sends a header {name} in addition to the client's own credentials: "
                "pass a session without that header"
            )


async def _check_plain_http(session: aiohttp.ClientSession, url: URL) -> None:
    # Plain http is allowed only to a loopback address. A proxy elsewhere would receive the credentials
    # unencrypted.
    if url.scheme != "http":
        return
    proxy = getattr(session, "_default_proxy", None)
    if proxy is None and session.trust_env:
        with contextlib.suppress(LookupError):
            proxy, _ = await asyncio.to_thread(get_env_proxy_for_url, url)
    if proxy is not None and not is_loopback(URL(proxy).raw_host or ""):
        raise ConfigurationError(
            f"the borrowed session would send plain http for {url.raw_host} to a proxy, which could read "
            "the credentials: pass a session without proxy=, or add the host to NO_PROXY"
        )


async def _check_netrc(session: aiohttp.ClientSession, host: str) -> None:
    # aiohttp reads `.netrc` only with trust_env, and a session's own login takes precedence over it.
    if not session.trust_env or session.auth is not None:
        return
    try:
        await asyncio.to_thread(lambda: basicauth_from_netrc(netrc_from_env(), host))
    except LookupError:
        return
    raise ConfigurationError(
        f"the borrowed session has trust_env=True, and .netrc has a login for {host} (or for every host), "
        "which aiohttp would send there as Authorization: pass a session with proxy= instead of trust_env, "
        "or remove that entry"
    )


def _slots_for(session: aiohttp.ClientSession) -> tuple[int | None, asyncio.Semaphore]:
    connector = session.connector
    limits = [] if connector is None else [connector.limit, connector.limit_per_host]
    if connector is None or not any(limits):
        return None, asyncio.Semaphore(2**31)  # in effect unlimited
    limit = min(filter(None, limits))
    return limit, _borrowed_slots.setdefault(connector, asyncio.Semaphore(limit))
