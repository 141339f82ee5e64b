"""The database under the journal: which it is, its connections, and its errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, StaticPool

from plaid_relay_async.errors import ConfigurationError, JournalError
from plaid_relay_async.journal.address import check_arguments, check_files, create_file, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_ATTEMPTS_PER_LEASE = (
    3  # that fit into a lease: one on a silently dropped connection must leave time for others
)
_MIN_ATTEMPT_SECONDS = 2.0  # seconds that an attempt may take in any case, connecting included
_RETRY_DELAY = 0.2  # seconds
# The beginnings of the SQLSTATEs after which the same transaction may succeed a moment later.
_TRANSIENT_SQLSTATES: Final = (
    "08",  # the connection was lost, or refused
    "25006",  # read-only, as a server is while it fails over
    "25P03",  # idle for too long in a transaction
    "25P04",  # the transaction took too long
    "40",  # a deadlock, or a conflict of transactions
    "53300",  # too many connections
    "55P03",  # a lock wasn't available in time
    "57014",  # a statement took too long
    "57P0",  # the server shuts down, starts, or ended the connection
)
# For one transaction: PgBouncer refuses to start a session with them, and may give the next transaction to
# another session of the server.
_SET_TIMEOUTS: Final = text(
    "SELECT set_config('statement_timeout', :limit, true), set_config('lock_timeout', :limit, true),"
    " set_config('idle_in_transaction_session_timeout', :limit, true)"
)
_MAX_TIMEOUT_MS = 2**31 - 1  # milliseconds; the server accepts no more
_MAX_KEEPALIVE = 32_767  # seconds; Linux accepts no more
_CHECKPOINT_TIMEOUT = 5.0  # seconds in which SQLite's log has to be cleared
_CHECKPOINT_BUSY_MS = 100  # milliseconds for which clearing it may hold back others at a time
_SELECT_ENCODINGS = text("SELECT current_setting('server_encoding'), current_setting('client_encoding')")
# That an open journal holds: one for its own methods, one for leases, three for writing and looking up.
_CONNECTIONS_PER_JOURNAL = 5
# A name needn't be UTF-8, and a value of bytes is in the encoding of the database.
_SELECT_OPENED_FILE = (
    "SELECT CAST(file AS BLOB), encoding FROM pragma_database_list, pragma_encoding WHERE name = 'main'"
)
_PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


@contextlib.contextmanager
def journal_errors(path: Path | None) -> Iterator[None]:
    """Raise `JournalError` for an error of a file or of the database; the path is that of SQLite's file."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        problem = to_journal_error(error, path)
    else:
        return
    raise problem


def to_journal_error(error: Exception, path: Path | None) -> JournalError:
    """Return the error that says why, without what was written, and names the file."""
    if isinstance(error, OSError) and error.filename is not None:
        path = error.filename
    where = "" if path is None else f" ({path})"
    return JournalError(f"the journal can't be read or written: {_safe_reason(error)}{where}")


def closed_error() -> JournalError:
    """Return the error of a call that came while the journal was closed, or after that."""
    return JournalError(
        "the journal was closed in the meantime",
        advice="Close a journal once the calls that use it have ended.",
    )


def _is_transient(error: Exception) -> bool:
    """Return whether the same transaction may succeed on another connection, or a moment later."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | PoolTimeoutError)
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # there was no session
        return isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(_TRANSIENT_SQLSTATES)


def _safe_reason(error: Exception) -> str:
    if isinstance(error, DBAPIError):
        # The whole of it may quote the values of a row.
        told = str(error.orig).partition("\n")[0].partition(" with text ")[0]
        return told or type(error.orig).__name__
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _check_pool(pool: Pool) -> None:
    if isinstance(pool, StaticPool | AssertionPool):
        most = 1
    elif isinstance(pool, QueuePool) and pool._max_overflow >= 0:  # noqa: SLF001  # no method returns it
        most = pool.size() + pool._max_overflow  # noqa: SLF001
    else:
        return
    if most < _CONNECTIONS_PER_JOURNAL:
        raise ConfigurationError(
            f"a journal holds {_CONNECTIONS_PER_JOURNAL} connections while it is open, and the engine's "
            f"{type(pool).__name__} has {most} at most: raise its pool_size or max_overflow, or use NullPool"
        )


class _ThreadConnection:
    """A connection to a file of SQLite: a whole transaction at a time goes to a thread.

    A driver that is asynchronous does so for each call to it, and there are eight in a transaction.
    """

    def __init__(self, engine: Engine, limit: float, path: Path) -> None:
        self._engine = engine
        self._limit = limit
        self._path = path
        self._executor = ThreadPoolExecutor(1, "plaid_relay_async.journal")
        self._connection: Connection | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        seconds = self._limit if limit is None else limit
        if self._closed:
            raise closed_error()
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)
        running.add_done_callback(_retrieve_exception)
        try:
            await asyncio.wait([running], timeout=seconds)
        finally:
            if not running.done():
                # A thread can't be stopped. What comes next queues behind it, so the order stays.
                running.cancel()
        if running.cancelled():
            raise _timeout_error(seconds)
        return running.result()

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = _set_up_sqlite(self._engine.connect(), self._path)
        try:
            with self._connection.begin():
                return work(self._connection)
        except DBAPIError:
            self._close()
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def close(self) -> None:
        self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        await asyncio.wait([closing], timeout=self._limit)
        self._executor.shutdown(wait=False, cancel_futures=True)


class _TaskConnection:
    """A connection of an `AsyncEngine`.

    Each transaction is a task of its own. One that overruns, or whose caller is cancelled, is abandoned with
    its connection, because a driver may wait for the server even when it is cancelled.
    """

    def __init__(self, engine: AsyncEngine, limit: float, path: Path | None) -> None:
        self._engine = engine
        self._limit = limit
        self._path = path
        self._connection: AsyncConnection | None = None
        self._prepare_threshold: int | None = None  # of the connection, before it was this one's
        self._running: asyncio.Future[Any] | None = None
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._lock = asyncio.Lock()
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        seconds = self._limit if limit is None else limit
        try:
            async with asyncio.timeout(seconds), self._lock:
                if self._closed:
                    raise closed_error()
                running = asyncio.ensure_future(self._transaction(work, seconds))
                self._running = running
                running.add_done_callback(_retrieve_exception)
                try:
                    await asyncio.wait([running])
                finally:
                    self._abandon()
        except TimeoutError:
            raise _timeout_error(seconds) from None
        if running.cancelled():
            raise ConnectionAbortedError("the transaction was cancelled")
        return running.result()

    async def _transaction(self, work: Callable[[Connection], T], seconds: float) -> T:
        if self._connection is None:
            self._connection = await self._connect()
        connection = self._connection
        try:
            async with connection.begin():
                if self._path is None:
                    limit = min(int(seconds * 1000), _MAX_TIMEOUT_MS)
                    await connection.execute(_SET_TIMEOUTS, {"limit": str(limit)})
                return await connection.run_sync(work)
        except IntegrityError:
            raise
        except (SQLAlchemyError, asyncio.CancelledError):
            if self._connection is connection:
                self._connection = None
            raise
        finally:
            if self._connection is not connection:  # it failed, or was abandoned
                await _discard(connection)

    async def _connect(self) -> AsyncConnection:
        connection = await self._engine.connect()
        try:
            if self._path is not None:
                await connection.run_sync(_set_up_sqlite, self._path)
            else:  # whatever the engine has: what others commit has to be seen within a transaction
                await connection.execution_options(isolation_level="READ COMMITTED")
                self._prepare_threshold = _set_prepare_threshold(connection, None)
        except BaseException:
            await _discard(connection)
            raise
        return connection

    def _abandon(self) -> None:
        """Abandon the transaction and its connection, unless it has ended."""
        running, self._running = self._running, None
        if running is None or running.done():
            return
        self._abandoned.add(running)
        running.add_done_callback(self._abandoned.discard)
        connection, self._connection = self._connection, None
        if connection is None or not _shut_down_socket(connection):
            running.cancel()
            # At the first cancellation psycopg asks the server to cancel the query, and waits for that.
            asyncio.get_running_loop().call_later(self._limit, running.cancel)

    async def close(self) -> None:
        self._closed = True
        self._abandon()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, TimeoutError):  # it may be lost
                async with asyncio.timeout(self._limit):
                    _set_prepare_threshold(connection, self._prepare_threshold)
                    await connection.close()
        if self._abandoned:
            # aiosqlite waits forever if its connection is being closed while the event loop ends.
            await asyncio.wait(self._abandoned, timeout=_MIN_ATTEMPT_SECONDS)


def _retrieve_exception(running: asyncio.Future[Any]) -> None:
    """Retrieve an exception that no caller waits for any more, so that asyncio doesn't report it."""
    if not running.cancelled():
        running.exception()


def _timeout_error(seconds: float) -> TimeoutError:
    return TimeoutError(f"the database took longer than {seconds:g} s")


async def _discard(connection: AsyncConnection) -> None:
    """Close a connection for good: one that goes back to the pool would only be used again."""
    with contextlib.suppress(SQLAlchemyError):
        await connection.invalidate()
        await connection.close()


def _set_prepare_threshold(connection: AsyncConnection, threshold: int | None) -> int | None:
    """Set after how many executions psycopg prepares a statement, and return the former number.

    Behind PgBouncer, the next transaction may have a server that doesn't know the statement, or has another
    one of that name: a journal's connections prepare none.
    """
    former: int | None = None
    with contextlib.suppress(SQLAlchemyError, AttributeError):  # it is lost, or no connection of psycopg
        driver: Any = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]
        former, driver.prepare_threshold = driver.prepare_threshold, threshold
    return former


def _shut_down_socket(connection: AsyncConnection) -> bool:
    """Shut down the socket of a connection, so that a wait for the server fails immediately.

    Return whether that was possible: only some drivers, such as psycopg, expose their socket.
    """
    with contextlib.suppress(SQLAlchemyError, OSError, AttributeError):
        driver: Any = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]
        with socket.socket(fileno=os.dup(driver.fileno())) as shared:
            # What wasn't sent yet, such as a COMMIT, must not arrive late.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            shared.shutdown(socket.SHUT_RDWR)
            return True
    return False


# One connection, for one transaction at a time, durable when `run` returns; it is made anew when it was lost.
JournalConnection: TypeAlias = _ThreadConnection | _TaskConnection


def _set_up_sqlite(connection: Connection, path: Path) -> Connection:
    """Check and set up a connection to SQLite, and return it; close it if that isn't possible."""
    try:
        name, encoding = connection.exec_driver_sql(_SELECT_OPENED_FILE).one()
        opened = name.decode(encoding, "surrogateescape")
        if not opened or not Path(opened).samefile(path):
            raise ConfigurationError(
                f"the journal's file is {path}, and SQLite has opened {opened or 'none'}"
            )
        check_files(path)
        for name, value in _PRAGMAS.items():
            connection.exec_driver_sql(f"PRAGMA {name}={value}").close()
            # SQLite reports no error if it can't apply one, as on a file system without shared memory.
            actual = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            if actual != value:  # pragma: no branch  # in a greenlet, of which coverage loses sight
                raise JournalError(
                    f"SQLite can't set {name} to {value} for the journal, it stays {actual}",
                    advice="Keep the journal on a local disk.",
                )
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


class Database:
    """The journal's own engine, or the caller's.

    Args:
        url: the path of a file, a URL, or an engine.
        lease: seconds that a write may take with all its attempts.

    Attributes:
        path: the file, where it is SQLite.
        limit: seconds that one attempt may take; with SQLite there is only one.
    """

    def __init__(self, url: str | os.PathLike[str] | AsyncEngine, lease: float) -> None:
        self._caller_engine = url if isinstance(url, AsyncEngine) else None
        self._address = parse_address(url)
        self.kind: Final = self._address.kind
        self.path: Final = self._address.path
        in_sqlite = self._address.busy_timeout + lease
        self.attempt_seconds: Final = (
            in_sqlite if self.kind == "sqlite" else max(lease / _ATTEMPTS_PER_LEASE, _MIN_ATTEMPT_SECONDS)
        )
        if self._caller_engine is not None:
            _check_pool(self._caller_engine.pool)
        self._connections: list[JournalConnection] = []
        self._engine: Engine | AsyncEngine | None = None

    async def open(self) -> None:
        """Create the file if it doesn't exist, and create the engine.

        Raises:
            ConfigurationError: the file or an option of the URL can't be used, or the driver isn't installed.
            JournalError: the file can't be created.
        """
        if self.path is not None:
            with journal_errors(self.path):
                await asyncio.to_thread(create_file, self.path)
        self._engine = self._caller_engine or self._create_engine()

    def _create_engine(self) -> Engine | AsyncEngine:
        if self.path is not None:
            # SQLite itself must not create the file: others could read that one.
            url = URL.create("sqlite", database=self.path.as_uri(), query={"mode": "rw", "uri": "true"})
            settings = {"check_same_thread": False, "timeout": self._address.busy_timeout}
            return create_engine(url, hide_parameters=True, connect_args=settings)
        settings = self._keepalive_settings()
        try:
            engine = create_async_engine(self._address.url, hide_parameters=True, connect_args=settings)
            _, arguments = engine.dialect.create_connect_args(engine.url)
        except ModuleNotFoundError as error:
            needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[postgres]'"
            raise ConfigurationError(needed) from None
        except ArgumentError as error:  # such as a port for each of several hosts
            raise ConfigurationError(f"the journal's address can't be used: {_safe_reason(error)}") from None
        arguments.pop("context", None)  # SQLAlchemy's own
        check_arguments({**arguments, **settings})
        return engine

    def _keepalive_settings(self) -> dict[str, Any]:
        """Return settings that let libpq notice a server that is gone; those in the URL take precedence."""
        seconds = min(max(1, int(self.attempt_seconds)), _MAX_KEEPALIVE)
        settings = {
            "connect_timeout": max(2, seconds // 2),  # so that there is time for a second host
            "keepalives": 1,
            "keepalives_idle": seconds,
            "keepalives_interval": max(1, seconds // 3),
            "keepalives_count": 3,
            "tcp_user_timeout": seconds * 1000,
        }
        query = self._address.url.query
        chosen = {name: query.get(name, value) for name, value in settings.items()}
        return {**chosen, "client_encoding": "utf8"}  # whatever PGCLIENTENCODING says: any text has to arrive

    async def check_encoding(self, line: JournalConnection) -> None:
        """Check that any text can be stored: one that can't would fail its whole group of writes.

        Raises:
            ConfigurationError: the database, or the caller's connections to it, aren't in UTF8.
        """
        if self.path is not None:
            return  # SQLite converts between its encodings.
        try:
            server, client = await line.run(lambda connection: connection.execute(_SELECT_ENCODINGS).one())
        except TypeError:
            # For SQL_ASCII psycopg returns bytes, from which SQLAlchemy can't read the server's version.
            server = client = "SQL_ASCII"
        if (server, client) != ("UTF8", "UTF8"):
            raise ConfigurationError(
                f"a journal needs a database of PostgreSQL, and connections, in the encoding UTF8: "
                f"server_encoding is {server}, client_encoding is {client}"
            )

    def new_connection(self) -> JournalConnection:
        """Give a connection for one user, who has it for as long as the database is open."""
        assert self._engine is not None  # noqa: S101  # it is open
        if isinstance(self._engine, AsyncEngine):
            self._connections.append(_TaskConnection(self._engine, self.attempt_seconds, self.path))
        else:
            assert self.path is not None  # noqa: S101  # only SQLite has such an engine
            self._connections.append(_ThreadConnection(self._engine, self.attempt_seconds, self.path))
        return self._connections[-1]

    async def close(self) -> None:
        """Close all connections, each within `limit`. It may be cancelled, and called again."""
        await asyncio.gather(*(line.close() for line in self._connections))
        engine = self._engine
        if isinstance(engine, Engine):
            engine.dispose()
        elif engine is not None and engine is not self._caller_engine:
            await engine.dispose()
        self._connections.clear()
        self._engine = None

    async def run_transaction(
        self,
        connection: JournalConnection,
        work: Callable[[Connection], T],
        retry_seconds: float,
        limit: float | None = None,
    ) -> T:
        """Run the work in one transaction, and return its result.

        On PostgreSQL a temporary error, such as a lost connection, is followed by another attempt, for
        `patience` seconds. So the work may be done twice: the connection may be lost after a commit.

        Args:
            line: the connection.
            work: what to do.
            patience: seconds after which no further attempt begins.
            limit: seconds that one attempt may take, instead of the usual ones.

        Raises:
            JournalError: it can't be done.
            IntegrityError: another process was first.
        """
        until = time.monotonic() + retry_seconds
        while True:
            try:
                return await connection.run(work, limit)
            except IntegrityError:
                raise
            except (SQLAlchemyError, OSError) as error:
                problem = to_journal_error(error, self.path)
                passes = self.path is None and _is_transient(error)
            if not passes or time.monotonic() > until:
                raise problem
            await asyncio.sleep(_RETRY_DELAY)

    async def truncate_wal(self, line: JournalConnection) -> None:
        """Remove from SQLite's log what was deleted or overwritten; PostgreSQL has no such file.

        Raises:
            JournalError: it is still there, because another connection reads an older state, or the journal
                can't be written.
        """
        if self.path is None:
            return
        until = time.monotonic() + _CHECKPOINT_TIMEOUT
        while not await self.run_transaction(line, _checkpoint_wal, 0.0):
            if time.monotonic() > until:
                raise JournalError(
                    f"{self.path}-wal: this file may still contain the tokens that were deleted or encrypted "
                    "again, because another connection is reading an older state of the journal",
                    advice="Close that connection, such as a backup or a sqlite3 prompt, and do it again: "
                    "that clears the file.",
                )
            await asyncio.sleep(_RETRY_DELAY)


def _checkpoint_wal(connection: Connection) -> bool:
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    # This checkpoint blocks no other connection; the next one lets none write while it waits for readers.
    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={_CHECKPOINT_BUSY_MS}").close()
    try:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={patience}").close()
    return not busy
