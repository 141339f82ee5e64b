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
from plaid_relay_async.journal.address import address_of, check_arguments, check_files, create_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_ATTEMPTS = 3  # that fit into a lease: one on a silently dropped connection must leave time for others
_SHORTEST = 2.0  # seconds that an attempt may take in any case, connecting included
_AGAIN_AFTER = 0.2  # seconds
# The beginnings of the SQLSTATEs after which the same transaction may succeed a moment later.
_PASSING: Final = (
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
_LIMITS: Final = text(
    "SELECT set_config('statement_timeout', :limit, true), set_config('lock_timeout', :limit, true),"
    " set_config('idle_in_transaction_session_timeout', :limit, true)"
)
_LONGEST_LIMIT = 2**31 - 1  # milliseconds; the server accepts no more
_LONGEST_KEEPALIVE = 32_767  # seconds; Linux accepts no more
_CHECKPOINT_WITHIN = 5.0  # seconds in which SQLite's log has to be cleared
_CHECKPOINT_WAIT = 100  # milliseconds for which clearing it may hold back others at a time
_ENCODINGS = text("SELECT current_setting('server_encoding'), current_setting('client_encoding')")
# That an open journal holds: one for its own methods, one for leases, three for writing and looking up.
_CONNECTIONS = 5
# A name needn't be UTF-8, and a value of bytes is in the encoding of the database.
_OPENED_FILE = (
    "SELECT CAST(file AS BLOB), encoding FROM pragma_database_list, pragma_encoding WHERE name = 'main'"
)
_PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


@contextlib.contextmanager
def telling(path: Path | None) -> Iterator[None]:
    """Raise `JournalError` for an error of a file or of the database; the path is that of SQLite's file."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        problem = told(error, path)
    else:
        return
    raise problem


def told(error: Exception, path: Path | None) -> JournalError:
    """Return the error that says why, without what was written, and names the file."""
    if isinstance(error, OSError) and error.filename is not None:
        path = error.filename
    where = "" if path is None else f" ({path})"
    return JournalError(f"the journal can't be read or written: {_reason(error)}{where}")


def closed() -> JournalError:
    """Return the error of a call that came while the journal was closed, or after that."""
    return JournalError(
        "the journal was closed in the meantime",
        advice="Close a journal once the calls that use it have ended.",
    )


def _passes(error: Exception) -> bool:
    """Return whether the same transaction may succeed on another connection, or a moment later."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | PoolTimeoutError)
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # there was no session
        return isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(_PASSING)


def _reason(error: Exception) -> str:
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
    if most < _CONNECTIONS:
        raise ConfigurationError(
            f"a journal holds {_CONNECTIONS} connections while it is open, and the engine's "
            f"{type(pool).__name__} has {most} at most: raise its pool_size or max_overflow, or use NullPool"
        )


class _ThreadLine:
    """A connection to a file of SQLite: a whole transaction at a time goes to a thread.

    A driver that is asynchronous does so for each call to it, and there are eight in a transaction.
    """

    def __init__(self, engine: Engine, limit: float, path: Path) -> None:
        self._engine = engine
        self._limit = limit
        self._path = path
        self._thread = ThreadPoolExecutor(1, "plaid_relay_async.journal")
        self._connection: Connection | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        seconds = self._limit if limit is None else limit
        if self._closed:
            raise closed()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        running.add_done_callback(_retrieved)
        try:
            await asyncio.wait([running], timeout=seconds)
        finally:
            if not running.done():
                # A thread can't be stopped. What comes next queues behind it, so the order stays.
                running.cancel()
        if running.cancelled():
            raise _overran(seconds)
        return running.result()

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = _with_pragmas(self._engine.connect(), self._path)
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
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        await asyncio.wait([closing], timeout=self._limit)
        self._thread.shutdown(wait=False, cancel_futures=True)


class _AsyncLine:
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
        self._busy = asyncio.Lock()
        self._closed = False

    async def run(self, work: Callable[[Connection], T], limit: float | None = None) -> T:
        seconds = self._limit if limit is None else limit
        try:
            async with asyncio.timeout(seconds), self._busy:
                if self._closed:
                    raise closed()
                running = asyncio.ensure_future(self._transaction(work, seconds))
                self._running = running
                running.add_done_callback(_retrieved)
                try:
                    await asyncio.wait([running])
                finally:
                    self._abandon()
        except TimeoutError:
            raise _overran(seconds) from None
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
                    limit = min(int(seconds * 1000), _LONGEST_LIMIT)
                    await connection.execute(_LIMITS, {"limit": str(limit)})
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
                await connection.run_sync(_with_pragmas, self._path)
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
        if connection is None or not _severed(connection):
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
            await asyncio.wait(self._abandoned, timeout=_SHORTEST)


def _retrieved(running: asyncio.Future[Any]) -> None:
    """Retrieve an exception that no caller waits for any more, so that asyncio doesn't report it."""
    if not running.cancelled():
        running.exception()


def _overran(seconds: float) -> TimeoutError:
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


def _severed(connection: AsyncConnection) -> bool:
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
Line: TypeAlias = _ThreadLine | _AsyncLine


def _with_pragmas(connection: Connection, path: Path) -> Connection:
    """Check and set up a connection to SQLite, and return it; close it if that isn't possible."""
    try:
        name, encoding = connection.exec_driver_sql(_OPENED_FILE).one()
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
        self._callers = url if isinstance(url, AsyncEngine) else None
        self._address = address_of(url)
        self.kind: Final = self._address.kind
        self.path: Final = self._address.path
        in_sqlite = self._address.wait + lease
        self.limit: Final = in_sqlite if self.kind == "sqlite" else max(lease / _ATTEMPTS, _SHORTEST)
        if self._callers is not None:
            _check_pool(self._callers.pool)
        self._lines: list[Line] = []
        self._engine: Engine | AsyncEngine | None = None

    async def open(self) -> None:
        """Create the file if it doesn't exist, and create the engine.

        Raises:
            ConfigurationError: the file or an option of the URL can't be used, or the driver isn't installed.
            JournalError: the file can't be created.
        """
        if self.path is not None:
            with telling(self.path):
                await asyncio.to_thread(create_file, self.path)
        self._engine = self._callers or self._made()

    def _made(self) -> Engine | AsyncEngine:
        if self.path is not None:
            # SQLite itself must not create the file: others could read that one.
            url = URL.create("sqlite", database=self.path.as_uri(), query={"mode": "rw", "uri": "true"})
            settings = {"check_same_thread": False, "timeout": self._address.wait}
            return create_engine(url, hide_parameters=True, connect_args=settings)
        settings = self._settings()
        try:
            engine = create_async_engine(self._address.url, hide_parameters=True, connect_args=settings)
            _, arguments = engine.dialect.create_connect_args(engine.url)
        except ModuleNotFoundError as error:
            needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[postgres]'"
            raise ConfigurationError(needed) from None
        except ArgumentError as error:  # such as a port for each of several hosts
            raise ConfigurationError(f"the journal's address can't be used: {_reason(error)}") from None
        arguments.pop("context", None)  # SQLAlchemy's own
        check_arguments({**arguments, **settings})
        return engine

    def _settings(self) -> dict[str, Any]:
        """Return settings that let libpq notice a server that is gone; those in the URL take precedence."""
        seconds = min(max(1, int(self.limit)), _LONGEST_KEEPALIVE)
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

    async def check(self, line: Line) -> None:
        """Check that any text can be stored: one that can't would fail its whole group of writes.

        Raises:
            ConfigurationError: the database, or the caller's connections to it, aren't in UTF8.
        """
        if self.path is not None:
            return  # SQLite converts between its encodings.
        try:
            server, client = await line.run(lambda connection: connection.execute(_ENCODINGS).one())
        except TypeError:
            # For SQL_ASCII psycopg returns bytes, from which SQLAlchemy can't read the server's version.
            server = client = "SQL_ASCII"
        if (server, client) != ("UTF8", "UTF8"):
            raise ConfigurationError(
                f"a journal needs a database of PostgreSQL, and connections, in the encoding UTF8: "
                f"server_encoding is {server}, client_encoding is {client}"
            )

    def line(self) -> Line:
        """Give a connection for one user, who has it for as long as the database is open."""
        assert self._engine is not None  # noqa: S101  # it is open
        if isinstance(self._engine, AsyncEngine):
            self._lines.append(_AsyncLine(self._engine, self.limit, self.path))
        else:
            assert self.path is not None  # noqa: S101  # only SQLite has such an engine
            self._lines.append(_ThreadLine(self._engine, self.limit, self.path))
        return self._lines[-1]

    async def close(self) -> None:
        """Close all connections, each within `limit`. It may be cancelled, and called again."""
        await asyncio.gather(*(line.close() for line in self._lines))
        engine = self._engine
        if isinstance(engine, Engine):
            engine.dispose()
        elif engine is not None and engine is not self._callers:
            await engine.dispose()
        self._lines.clear()
        self._engine = None

    async def write(
        self, line: Line, work: Callable[[Connection], T], patience: float, limit: float | None = None
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
        until = time.monotonic() + patience
        while True:
            try:
                return await line.run(work, limit)
            except IntegrityError:
                raise
            except (SQLAlchemyError, OSError) as error:
                problem = told(error, self.path)
                passes = self.path is None and _passes(error)
            if not passes or time.monotonic() > until:
                raise problem
            await asyncio.sleep(_AGAIN_AFTER)

    async def clear_log(self, line: Line) -> None:
        """Remove from SQLite's log what was deleted or overwritten; PostgreSQL has no such file.

        Raises:
            JournalError: it is still there, because another connection reads an older state, or the journal
                can't be written.
        """
        if self.path is None:
            return
        until = time.monotonic() + _CHECKPOINT_WITHIN
        while not await self.write(line, _cleared, 0.0):
            if time.monotonic() > until:
                raise JournalError(
                    f"{self.path}-wal: this file may still contain the tokens that were deleted or encrypted "
                    "again, because another connection is reading an older state of the journal",
                    advice="Close that connection, such as a backup or a sqlite3 prompt, and do it again: "
                    "that clears the file.",
                )
            await asyncio.sleep(_AGAIN_AFTER)


def _cleared(connection: Connection) -> bool:
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    # This checkpoint blocks no other connection; the next one lets none write while it waits for readers.
    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={_CHECKPOINT_WAIT}").close()
    try:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={patience}").close()
    return not busy
