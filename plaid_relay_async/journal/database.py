"""The database of a journal or an inbox: its engine, its connections, retries, and errors.

Each transaction has a time limit and runs on a connection that is kept. On PostgreSQL it is
repeated after a temporary error, such as a lost connection, so it must be idempotent.
"""

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

from attrs import frozen
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

from plaid_relay_async.errors import ConfigurationError, JournalError, PlaidRelayError
from plaid_relay_async.journal.address import check_arguments, check_files, create_file, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_TRANSACTIONS_PER_LEASE = 3  # after one on a silently dropped connection, there must be time to repeat it
_MIN_TRANSACTION_SECONDS = 2.0  # including the time to connect
_RETRY_DELAY = 0.2  # seconds
# Prefixes of the SQLSTATEs after which the same transaction may succeed shortly afterwards.
_TRANSIENT_SQLSTATES: Final = (
    "08",  # the connection was lost, or refused
    "25006",  # read-only, as during a failover
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "40",  # a deadlock or a serialization failure
    "53300",  # too many connections
    "55P03",  # a lock wasn't available in time
    "57014",  # statement_timeout
    "57P0",  # the server is shutting down or starting, or ended the connection
)
# The limits are set for one transaction. PgBouncer rejects connections that set them at the start, and may
# run the next transaction in another session of the server.
_SET_TIMEOUTS: Final = text(
    "SELECT set_config('statement_timeout', :limit, true), set_config('lock_timeout', :limit, true),"
    " set_config('idle_in_transaction_session_timeout', :limit, true)"
)
_MAX_TIMEOUT_MS = 2**31 - 1  # the limit of PostgreSQL
_MAX_KEEPALIVE = 32_767  # seconds; the limit of Linux
_CHECKPOINT_TIMEOUT = 5.0  # seconds to wait for readers of SQLite's write-ahead log
_CHECKPOINT_BUSY_MS = 100  # milliseconds for which one checkpoint may block other writers
_SELECT_ENCODINGS = text("SELECT current_setting('server_encoding'), current_setting('client_encoding')")
# A file name needn't be UTF-8, so it is read as bytes. They are in the encoding of the database.
_SELECT_OPENED_FILE = (
    "SELECT CAST(file AS BLOB), encoding FROM pragma_database_list, pragma_encoding WHERE name = 'main'"
)
# A commit is on disk when it returns (2 is FULL), and deleted tokens are overwritten with zeros.
_PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


@frozen
class Store:
    """What a database is used for: a journal or an inbox.

    Attributes:
        name: the word for it in errors.
        error: the class of its errors.
        connections: the number of connections that it holds while it is open.
    """

    name: str
    error: type[PlaidRelayError]
    connections: int

    @contextlib.contextmanager
    def errors(self, path: Path | None) -> Iterator[None]:
        """Raise the store's error for an error of a file or of the database.

        Args:
            path: SQLite's file; `None` for PostgreSQL.
        """
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            store_error = self.to_error(error, path)
        else:
            return
        # It is raised outside of the handler, because the original error may contain a row's values.
        raise store_error

    def to_error(self, error: Exception, path: Path | None) -> PlaidRelayError:
        """Return an error with the reason and the name of the file, and without the values of any row."""
        if isinstance(error, OSError) and error.filename is not None:
            path = error.filename
        where = "" if path is None else f" ({path})"
        return self.error(f"the {self.name} can't be read or written: {_safe_reason(error)}{where}")

    def closed_error(self) -> PlaidRelayError:
        """Return the error of a call whose store is being closed, or was closed."""
        return self.error(
            f"the {self.name} was closed in the meantime",
            advice=f"Close the {self.name} after the calls that use it have ended.",
        )


# One for the journal's own methods, one for leases, and three for write commands and look-ups.
JOURNAL: Final = Store("journal", JournalError, 5)


def _is_transient(error: Exception) -> bool:
    """Return whether the same transaction may succeed on another connection, or shortly afterwards."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | PoolTimeoutError)
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # the error occurred before there was a session
        return isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(_TRANSIENT_SQLSTATES)


def _safe_reason(error: Exception) -> str:
    if isinstance(error, DBAPIError):
        # The rest of the error may quote values of a row, as in sqlite3's "Could not decode to UTF-8 column
        # 'token' with text '...'".
        reason = str(error.orig).partition("\n")[0].partition(" with text ")[0]
        return reason or type(error.orig).__name__
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _check_pool(pool: Pool, store: Store) -> None:
    if isinstance(pool, StaticPool | AssertionPool):
        limit = 1
    elif isinstance(pool, QueuePool) and pool._max_overflow >= 0:  # noqa: SLF001  # no method returns it
        limit = pool.size() + pool._max_overflow  # noqa: SLF001
    else:
        return
    if limit < store.connections:
        raise ConfigurationError(
            f"the {store.name} holds {store.connections} connections while it is open, and the engine's "
            f"{type(pool).__name__} allows {limit}: raise its pool_size or max_overflow, or use NullPool"
        )


class _ThreadConnection:
    """A connection to a file of SQLite that runs each transaction in a thread.

    An asynchronous driver would switch to a thread for each of its calls, which are about eight in a
    transaction.

    Args:
        engine: the engine.
        limit: seconds that a transaction may take, including the wait for earlier ones.
        path: the file.
        store: what the database is used for.
    """

    def __init__(self, engine: Engine, limit: float, path: Path, store: Store) -> None:
        self._engine = engine
        self._limit = limit
        self._path = path
        self._store = store
        self._executor = ThreadPoolExecutor(1, f"plaid_relay_async.{store.name}")
        self._connection: Connection | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        """Run a function in one transaction, and return its result.

        Raises:
            PlaidRelayError: the connection was closed.
            TimeoutError: it took longer than `limit` seconds. The thread may still commit it.
        """
        seconds = self._limit if limit is None else limit
        if self._closed:
            raise self._store.closed_error()
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)
        running.add_done_callback(_retrieve_exception)
        try:
            await asyncio.wait([running], timeout=seconds)
        finally:
            if not running.done():
                # A thread can't be stopped. The next transaction queues behind it, so the order is preserved.
                running.cancel()
        if running.cancelled():
            raise _timeout_error(seconds)
        return running.result()

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = _set_up_sqlite(self._engine.connect(), self._path, self._store)
        try:
            with self._connection.begin():
                return work(self._connection)
        except DBAPIError:
            self._close()  # the next transaction opens the file again, which checks it
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def close(self) -> None:
        """Close the connection, and wait for it no longer than the time limit."""
        self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        await asyncio.wait([closing], timeout=self._limit)
        self._executor.shutdown(wait=False, cancel_futures=True)


class _TaskConnection:
    """A connection of an `AsyncEngine` that runs each transaction in a task.

    A transaction that exceeds its time limit, or whose caller is cancelled, is abandoned with its connection,
    because a driver may wait for the server even when it is cancelled.

    Args:
        engine: the engine.
        limit: seconds that a transaction may take, including the wait for an earlier one.
        path: SQLite's file; `None` for PostgreSQL.
        store: what the database is used for.
    """

    def __init__(self, engine: AsyncEngine, limit: float, path: Path | None, store: Store) -> None:
        self._engine = engine
        self._limit = limit
        self._path = path
        self._store = store
        self._connection: AsyncConnection | None = None
        # The setting of the connection before it was changed here: a pool gets the connection back
        # unchanged.
        self._prepare_threshold: int | None = None
        self._running: asyncio.Future[Any] | None = None
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._lock = asyncio.Lock()
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        """Run a function in one transaction, and return its result.

        Raises:
            PlaidRelayError: the connection was closed.
            TimeoutError: it took longer than `limit` seconds, including the wait for another transaction.
        """
        seconds = self._limit if limit is None else limit
        try:
            async with asyncio.timeout(seconds), self._lock:
                if self._closed:
                    raise self._store.closed_error()
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
            raise  # the connection still works: only a row was rejected
        except (SQLAlchemyError, asyncio.CancelledError):
            # The state of the connection is unknown. The next transaction uses a new one.
            if self._connection is connection:
                self._connection = None
            raise
        finally:
            if self._connection is not connection:  # it has failed or was abandoned
                await _discard(connection)

    async def _connect(self) -> AsyncConnection:
        connection = await self._engine.connect()
        try:
            if self._path is not None:
                await connection.run_sync(_set_up_sqlite, self._path, self._store)
            else:
                # The engine may have another isolation level. A transaction must see what others commit
                # meanwhile.
                await connection.execution_options(isolation_level="READ COMMITTED")
                self._prepare_threshold = _set_prepare_threshold(connection, None)
        except BaseException:
            await _discard(connection)
            raise
        return connection

    def _abandon(self) -> None:
        """Abandon the transaction and its connection, unless the transaction has ended."""
        running, self._running = self._running, None
        if running is None or running.done():
            return
        self._abandoned.add(running)
        running.add_done_callback(self._abandoned.discard)
        connection, self._connection = self._connection, None
        if connection is None or not _shut_down_socket(connection):
            running.cancel()
            # At the first cancellation, psycopg asks the server to cancel the query, and waits for that. The
            # second one ends the wait.
            asyncio.get_running_loop().call_later(self._limit, running.cancel)

    async def close(self) -> None:
        """Abandon a running transaction, and close the connection or return it to its pool."""
        self._closed = True
        self._abandon()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, TimeoutError):  # the connection may be lost
                async with asyncio.timeout(self._limit):
                    _set_prepare_threshold(connection, self._prepare_threshold)
                    await connection.close()
        if self._abandoned:
            # aiosqlite would wait forever if the event loop ended while it closes a connection.
            await asyncio.wait(self._abandoned, timeout=_MIN_TRANSACTION_SECONDS)


def _retrieve_exception(running: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio doesn't report it if no caller waits any more."""
    if not running.cancelled():
        running.exception()


def _timeout_error(seconds: float) -> TimeoutError:
    return TimeoutError(f"the database took longer than {seconds:g} s")


async def _discard(connection: AsyncConnection) -> None:
    """Close a connection permanently, instead of returning it to the pool."""
    with contextlib.suppress(SQLAlchemyError):
        await connection.invalidate()
        await connection.close()


def _set_prepare_threshold(connection: AsyncConnection, threshold: int | None) -> int | None:
    """Set after how many executions psycopg prepares a statement, and return the former setting.

    Behind PgBouncer, the next transaction may run in another session of the server, which has no prepared
    statement of this name, or a different one. So these connections prepare no statements: they set `None`.
    """
    former: int | None = None
    with contextlib.suppress(SQLAlchemyError, AttributeError):  # the connection is lost, or isn't psycopg's
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
            # Unsent bytes are discarded, because a COMMIT must not arrive late.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            shared.shutdown(socket.SHUT_RDWR)
            return True
    return False


# Runs one transaction at a time, which is durable when `run` returns; it connects again after the connection
# was lost.
JournalConnection: TypeAlias = _ThreadConnection | _TaskConnection


def _set_up_sqlite(connection: Connection, path: Path, store: Store) -> Connection:
    """Check and set up a connection to SQLite, and return it; close it if that fails."""
    try:
        name, encoding = connection.exec_driver_sql(_SELECT_OPENED_FILE).one()
        opened = name.decode(encoding, "surrogateescape")
        if not opened or not Path(opened).samefile(path):
            raise ConfigurationError(
                f"the {store.name}'s file is {path}, but SQLite has opened {opened or 'none'}"
            )
        check_files(path)
        for name, value in _PRAGMAS.items():
            _set_pragma(connection, name, value)
            # SQLite reports no error if it can't apply a setting, as on a file system without shared memory.
            actual = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            if actual != value:  # pragma: no cover  # in a greenlet, which coverage can't always follow
                raise store.error(
                    f"SQLite can't set {name} to {value} for the {store.name}: it is still {actual}",
                    advice=f"Keep the {store.name} on a local disk.",
                )
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def _set_pragma(connection: Connection, name: str, value: object) -> None:
    """Apply a setting of SQLite, and wait for other connections as long as for any lock.

    SQLite itself doesn't wait for a writer when it changes the journal mode: by then, it has locked the file
    for reading, and two connections that have both done so would wait for each other.
    """
    deadline = time.monotonic() + connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() / 1000
    while True:
        try:
            connection.exec_driver_sql(f"PRAGMA {name}={value}").close()
        except OperationalError as error:
            is_locked = str(getattr(error.orig, "sqlite_errorname", None)).startswith("SQLITE_BUSY")
            if not is_locked or time.monotonic() >= deadline:
                raise
        else:
            return
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # waits for the writer
        connection.rollback()


class Database:
    """The database of a journal or an inbox, on its own engine or on the caller's.

    Args:
        url: the path of a file, a URL, or an engine.
        lease: seconds on which the time limit of a transaction depends: the journal's `lease`.
        store: what the database is used for.

    Attributes:
        kind: "sqlite" or "postgresql".
        path: SQLite's file; `None` for PostgreSQL.
        transaction_seconds: seconds that a transaction may take each time that it runs.
    """

    def __init__(
        self, url: str | os.PathLike[str] | AsyncEngine, lease: float, store: Store = JOURNAL
    ) -> None:
        self._store = store
        self._caller_engine = url if isinstance(url, AsyncEngine) else None
        self._address = parse_address(url)
        self.kind: Final = self._address.kind
        self.path: Final = self._address.path
        sqlite_seconds = self._address.busy_timeout + lease
        self.transaction_seconds: Final = (
            sqlite_seconds
            if self.kind == "sqlite"
            else max(lease / _TRANSACTIONS_PER_LEASE, _MIN_TRANSACTION_SECONDS)
        )
        if self._caller_engine is not None:
            _check_pool(self._caller_engine.pool, store)
        self._connections: list[JournalConnection] = []
        self._engine: Engine | AsyncEngine | None = None

    async def open(self) -> None:
        """Create the file if it doesn't exist, and create the engine.

        Raises:
            ConfigurationError: the file or an option of the URL is invalid, or the driver isn't installed.
            PlaidRelayError: the file can't be created; it is of the store's class, as all below.
        """
        if self.path is not None:
            with self.errors():
                await asyncio.to_thread(create_file, self.path)
        self._engine = self._caller_engine or self._create_engine()

    def _create_engine(self) -> Engine | AsyncEngine:
        if self.path is not None:
            # SQLite must not create the file, because other users could read it.
            url = URL.create("sqlite", database=self.path.as_uri(), query={"mode": "rw", "uri": "true"})
            settings = {"check_same_thread": False, "timeout": self._address.busy_timeout}
            return create_engine(url, hide_parameters=True, connect_args=settings)
        settings = self._keepalive_settings()
        try:
            engine = create_async_engine(self._address.url, hide_parameters=True, connect_args=settings)
            _, arguments = engine.dialect.create_connect_args(engine.url)
        except ModuleNotFoundError as error:
            message = f"PostgreSQL needs {error.name}: pip install 'plaid_relay_async[postgres]'"
            raise ConfigurationError(message) from None
        except ArgumentError as error:  # for example, a different number of ports than of hosts
            raise ConfigurationError(f"the database's address is invalid: {_safe_reason(error)}") from None
        arguments.pop("context", None)  # SQLAlchemy's own
        check_arguments({**arguments, **settings})
        return engine

    def _keepalive_settings(self) -> dict[str, Any]:
        """Return settings with which libpq detects a dead server and uses UTF8.

        Except for the encoding, settings in the URL take precedence.
        """
        seconds = min(max(1, int(self.transaction_seconds)), _MAX_KEEPALIVE)
        settings = {
            "connect_timeout": max(2, seconds // 2),  # leaves time for a second host
            "keepalives": 1,
            "keepalives_idle": seconds,
            "keepalives_interval": max(1, seconds // 3),
            "keepalives_count": 3,
            "tcp_user_timeout": seconds * 1000,
        }
        query = self._address.url.query
        chosen = {name: query.get(name, value) for name, value in settings.items()}
        # PGCLIENTENCODING may name an encoding that lacks some characters.
        return {**chosen, "client_encoding": "utf8"}

    async def check_encoding(self, connection: JournalConnection) -> None:
        """Check that every text can be stored. Otherwise one text would make all commands of its group fail.

        Raises:
            ConfigurationError: the database, or the caller's connections to it, aren't in UTF8.
        """
        if self.path is not None:
            return  # SQLite converts between its encodings.
        try:
            server, client = await connection.run(lambda session: session.execute(_SELECT_ENCODINGS).one())
        except TypeError:
            # For SQL_ASCII, psycopg returns bytes, in which SQLAlchemy can't read the server's version.
            server = client = "SQL_ASCII"
        if (server, client) != ("UTF8", "UTF8"):
            raise ConfigurationError(
                f"the {self._store.name} needs a PostgreSQL database and connections in the encoding UTF8: "
                f"server_encoding is {server}, client_encoding is {client}"
            )

    def new_connection(self) -> JournalConnection:
        """Return a new connection, which runs one transaction at a time and is closed with the database."""
        assert self._engine is not None  # noqa: S101  # it is open
        if isinstance(self._engine, AsyncEngine):
            connection: JournalConnection = _TaskConnection(
                self._engine, self.transaction_seconds, self.path, self._store
            )
        else:
            assert self.path is not None  # noqa: S101  # only SQLite has such an engine
            connection = _ThreadConnection(self._engine, self.transaction_seconds, self.path, self._store)
        self._connections.append(connection)
        return connection

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that raises the store's error for an error of a file or of the database."""
        return self._store.errors(self.path)

    async def close(self) -> None:
        """Close all connections, each in at most `transaction_seconds` plus 2 seconds.

        It may be cancelled, and called again.
        """
        await asyncio.gather(*(connection.close() for connection in self._connections))
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

        On PostgreSQL it is repeated after a temporary error, such as a lost connection or a time limit. The
        work must be idempotent, because the connection may have been lost after the commit.

        Args:
            connection: the connection.
            work: the function that runs in the transaction.
            retry_seconds: seconds after which it isn't repeated again; 0 for no repetition.
            limit: seconds that it may take each time. Default: `transaction_seconds`.

        Raises:
            PlaidRelayError: the database can't be read or written.
            IntegrityError: the database rejected a row, because another process was first.
        """
        retry_until = time.monotonic() + retry_seconds
        while True:
            try:
                return await connection.run(work, limit)
            except IntegrityError:
                raise
            except (SQLAlchemyError, OSError) as error:
                store_error = self._store.to_error(error, self.path)
                is_transient = self.path is None and _is_transient(error)
            if not is_transient or time.monotonic() > retry_until:
                raise store_error
            await asyncio.sleep(_RETRY_DELAY)

    async def truncate_wal(self, connection: JournalConnection) -> None:
        """Truncate SQLite's write-ahead log, which may contain deleted or overwritten secrets.

        On PostgreSQL there is nothing to do.

        Raises:
            PlaidRelayError: another connection still reads an older state of the database, or it can't be
                written.
        """
        if self.path is None:
            return
        deadline = time.monotonic() + _CHECKPOINT_TIMEOUT
        while not await self.run_transaction(connection, _checkpoint_wal, 0.0):
            if time.monotonic() > deadline:
                raise self._store.error(
                    f"{self.path}-wal: this file may still contain what was deleted or encrypted again, "
                    "because another connection is reading an older state of the database",
                    advice="Close that connection, such as a backup or a sqlite3 prompt, and repeat the call "
                    "to clear the file.",
                )
            await asyncio.sleep(_RETRY_DELAY)


def _checkpoint_wal(connection: Connection) -> bool:
    """Return whether the write-ahead log could be copied to the database and truncated."""
    busy_timeout = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    # The first checkpoint blocks no other connection, and leaves little work for the second one. The second
    # one blocks writers while it waits for readers, so its wait is short.
    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={_CHECKPOINT_BUSY_MS}").close()
    try:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={busy_timeout}").close()
    return not busy
