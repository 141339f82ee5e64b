"""The database under the journal: which it is, its connections, and its errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from plaid_relay_async.errors import ConfigurationError, JournalError, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_LOCKED_FOR = 10.0  # seconds that a writer waits for another one, in SQLite
_AGAIN_AFTER = 0.2  # seconds
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON")


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Raise `JournalError` for an error of the database or of a file."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        problem = told(error)
    else:
        return
    raise problem


def told(error: Exception) -> JournalError:
    """Give the error that tells the reason, without what was written."""
    return JournalError(f"the journal can't be read or written: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, DBAPIError):
        # The whole of it may quote the values of a row.
        told = str(error.orig).partition("\n")[0].partition(" with text ")[0]
        return told or type(error.orig).__name__
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


@sealed
def _parsed(url: str | os.PathLike[str]) -> URL:
    text = os.fspath(url)
    try:
        parsed = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except (ArgumentError, ValueError):
        raise ConfigurationError("the journal's address is neither a path nor a URL of a database") from None
    drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
    return parsed.set(drivername=drivers.get(parsed.get_backend_name(), parsed.drivername))


def _path(url: URL) -> Path | None:
    """Give the file of a database of SQLite."""
    name = url.database or ""
    if name.startswith("file:"):
        name = urlsplit(name).path
    in_memory = name in {"", ":memory:"} or url.query.get("mode") == "memory"
    return None if in_memory else Path(name).absolute()


class _ThreadLine:
    """A connection to a file of SQLite: a whole transaction at a time goes to a thread.

    A driver that is asynchronous does so for each call to it, and there are eight in a transaction.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "plaid_relay_async.journal")
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = _with_pragmas(self._engine.connect())
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
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()


class _AsyncLine:
    """A connection of an `AsyncEngine`."""

    def __init__(self, engine: AsyncEngine, *, sqlite: bool) -> None:
        self._engine = engine
        self._sqlite = sqlite
        self._connection: AsyncConnection | None = None
        self._busy = asyncio.Lock()

    async def run(self, work: Callable[[Connection], T]) -> T:
        async with self._busy:
            if self._connection is None:
                connection = await self._engine.connect()
                if self._sqlite:
                    await connection.run_sync(_with_pragmas)
                else:  # whatever the engine has: what others commit has to be seen within a transaction
                    await connection.execution_options(isolation_level="READ COMMITTED")
                self._connection = connection
            try:
                async with self._connection.begin():
                    return await self._connection.run_sync(work)
            except (DBAPIError, asyncio.CancelledError):
                await self.close()
                raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # it may be lost
                await connection.close()


# One connection, for one transaction at a time, durable when `run` returns; it is made anew when it was lost.
Line: TypeAlias = _ThreadLine | _AsyncLine


def _with_pragmas(connection: Connection) -> Connection:
    try:
        for pragma in _PRAGMAS:
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


class Database:
    """An engine of one's own, or the caller's.

    Attributes:
        path: the file, where it is SQLite.
    """

    def __init__(self, url: str | os.PathLike[str] | AsyncEngine) -> None:
        self._callers = url if isinstance(url, AsyncEngine) else None
        self._url = url.url if isinstance(url, AsyncEngine) else _parsed(url)
        self.kind: Final = self._url.get_backend_name()
        self.path: Final = _path(self._url) if self.kind == "sqlite" else None
        if self.kind not in {"sqlite", "postgresql"}:
            raise ConfigurationError(f"a journal lies in SQLite or PostgreSQL, not in {self.kind}")
        if self.kind == "sqlite" and self.path is None:
            raise ConfigurationError("a journal in memory would survive nothing: give the path of a file")
        self._lines: list[Line] = []
        self._engine: Engine | AsyncEngine | None = None

    async def open(self) -> None:
        """See to the file, and make the engine.

        Raises:
            ConfigurationError: others may read it, or the database's driver isn't there.
            JournalError: it can't be made.
        """
        if self.path is not None:
            with telling():
                await asyncio.to_thread(_see_to, self.path)
        self._engine = self._callers or self._made()

    def _made(self) -> Engine | AsyncEngine:
        if self.path is not None:
            waits = {} if "timeout" in self._url.query else {"timeout": _LOCKED_FOR}
            settings = {"check_same_thread": False, **waits}
            return create_engine(self._url, hide_parameters=True, connect_args=settings)
        try:
            return create_async_engine(self._url, hide_parameters=True)
        except ModuleNotFoundError as error:
            needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[postgres]'"
            raise ConfigurationError(needed) from None

    def line(self) -> Line:
        """Give a connection for one user, who has it for as long as the database is open."""
        assert self._engine is not None  # noqa: S101  # it is open
        if isinstance(self._engine, AsyncEngine):
            self._lines.append(_AsyncLine(self._engine, sqlite=self.path is not None))
        else:
            self._lines.append(_ThreadLine(self._engine))
        return self._lines[-1]

    async def close(self) -> None:
        """Close all connections."""
        for line in self._lines:
            await line.close()
        self._lines.clear()
        engine, self._engine = self._engine, None
        if isinstance(engine, Engine):
            engine.dispose()
        elif engine is not None and engine is not self._callers:
            await engine.dispose()

    async def write(self, line: Line, work: Callable[[Connection], T], patience: float) -> T:
        """Do the work in one transaction; a lost connection is taken up again, for so many seconds.

        The work may be done twice: it was done, and the connection was lost before it was told so.

        Raises:
            JournalError: it can't be done.
            IntegrityError: somebody else was there first.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return await line.run(work)
            except IntegrityError:
                raise
            except (SQLAlchemyError, OSError) as error:
                problem = told(error)
                lost = self.path is None and isinstance(error, OperationalError | InterfaceError)
            if not lost or time.monotonic() > until:
                raise problem
            await asyncio.sleep(_AGAIN_AFTER)


def _see_to(path: Path) -> None:
    """Make the file, so that nobody else may ever have read it; or look at the one that is there."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        mode = path.stat().st_mode
        if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
            raise ConfigurationError(
                f"{path}: others may read it, and tokens would lie in it; chmod 600 first"
            ) from None
