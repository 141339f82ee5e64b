"""The database under the journal: which it is, its connections, and its errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from attrs import define, field
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
    from collections.abc import Awaitable, Callable, Iterator

    from sqlalchemy import URL

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
        return str(error.orig).partition("\n")[0] or type(error.orig).__name__
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


@sealed
def _parsed(url: str | os.PathLike[str]) -> URL:
    text = os.fspath(url)
    try:
        parsed = make_url(text if "://" in text else f"sqlite:///{text}")
    except (ArgumentError, ValueError):
        raise ConfigurationError("the journal's address is neither a path nor a URL of a database") from None
    backend = parsed.get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        raise ConfigurationError(f"a journal lies in SQLite or PostgreSQL, not in {backend}")
    if backend == "sqlite" and _path(parsed) is None:
        raise ConfigurationError("a journal in memory would survive nothing: give the path of a file")
    return parsed.set(drivername={"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}[backend])


def _path(url: URL) -> Path | None:
    """Give the file of a database of SQLite."""
    name = url.database or ""
    if name.startswith("file:"):
        name = urlsplit(name).path
    in_memory = name in {"", ":memory:"} or url.query.get("mode") == "memory"
    return None if in_memory else Path(name).absolute()


@define(eq=False, repr=False)
class Line:
    """One connection, for one transaction at a time; it is made anew when it was lost."""

    engine: AsyncEngine
    pragmas: tuple[str, ...]
    _connection: AsyncConnection | None = field(default=None, init=False)
    _busy: asyncio.Lock = field(factory=asyncio.Lock, init=False)

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Do the work in one transaction; it is durable when this returns."""
        async with self._busy:
            connection = await self._get()
            try:
                async with connection.begin():
                    return await work(connection)
            except DBAPIError:
                await self.close()
                raise

    async def _get(self) -> AsyncConnection:
        if self._connection is None:
            connection = await self.engine.connect()
            for pragma in self.pragmas:
                await connection.exec_driver_sql(f"PRAGMA {pragma}")
            await connection.commit()
            self._connection = connection
        return self._connection

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # it may be lost
                await connection.close()


class Database:
    """An engine of one's own, or the caller's.

    Attributes:
        path: the file, where it is SQLite.
    """

    def __init__(self, url: str | os.PathLike[str] | AsyncEngine) -> None:
        self._own = not isinstance(url, AsyncEngine)
        self._engine = url if isinstance(url, AsyncEngine) else None
        self._url = url.url if isinstance(url, AsyncEngine) else _parsed(url)
        self.path: Final = _path(self._url) if self._url.get_backend_name() == "sqlite" else None
        self.lines: list[Line] = []

    @property
    def engine(self) -> AsyncEngine:
        """The engine; one of one's own is made when it is first asked for."""
        if self._engine is None:
            waits = {"timeout": _LOCKED_FOR} if self.path else {}
            try:
                self._engine = create_async_engine(self._url, hide_parameters=True, connect_args=waits)
            except ModuleNotFoundError as error:
                needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[postgres]'"
                raise ConfigurationError(needed) from None
        return self._engine

    async def open(self) -> None:
        """See to the file.

        Raises:
            ConfigurationError: others may read it.
            JournalError: it can't be made.
        """
        if self.path is not None:
            with telling():
                await asyncio.to_thread(_see_to, self.path)

    def line(self) -> Line:
        """Give a connection for one user, who has it for as long as the database is open."""
        self.lines.append(Line(self.engine, _PRAGMAS if self.path else ()))
        return self.lines[-1]

    async def checkpoint(self) -> None:
        """Have SQLite write its log into the file, and empty it."""
        async with self.engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    async def close(self) -> None:
        """Close all connections."""
        for line in self.lines:
            await line.close()
        self.lines.clear()
        if self._own and self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def write(self, line: Line, work: Callable[[AsyncConnection], Awaitable[T]], patience: float) -> T:
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
