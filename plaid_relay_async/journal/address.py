"""The address of a database, which is checked before it is opened; the checks of SQLite's files."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, unquote_to_bytes

from attrs import frozen
from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from plaid_relay_async import private_files
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.hosts import is_host
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUSY_TIMEOUT = 10.0  # seconds to wait for a lock of SQLite
_MAX_BUSY_TIMEOUT = 2_000_000.0  # seconds; SQLite stores milliseconds in 32 bits
_MAX_PORT = 65_535
_MAX_INTEGER = 2**31 - 1  # for an option of libpq
# Options that libpq parses only when it connects.
_INTEGERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
# Detects a connection string of libpq, such as "host=db dbname=relay".
_LIBPQ_DSN: Final = re.compile(
    r"(^|\s)(host|hostaddr|port|dbname|user|password|passfile|service|options|connect_timeout|client_encoding"
    r"|(fallback_)?application_name|target_session_attrs|ssl\w+)\s*="
)
_SCHEME: Final = re.compile(r"[A-Za-z][\w+.-]+:")  # a single letter would be a drive of Windows
_ADDRESS_FORMS = "the path of a file, sqlite:///FILE or postgresql://USER@HOST:PORT/DATABASE"
# libpq checks options before it parses the server's address. This one is invalid, so libpq doesn't connect.
_INVALID_HOSTADDR = "no-address"
_SIDE_FILES = ("-wal", "-shm", "-journal")


@frozen(repr=False)
class Address:
    """Where a database is.

    Attributes:
        kind: "sqlite" or "postgresql".
        url: the URL of a PostgreSQL database.
        path: the file of SQLite with symbolic links resolved, so that all paths to it share its locks.
        busy_timeout: seconds to wait for a lock of SQLite.
    """

    kind: str
    url: URL
    path: Path | None = None
    busy_timeout: float = 0.0


@strip_traceback
def parse_address(url: str | os.PathLike[str] | AsyncEngine) -> Address:
    """Return the address that a path, a URL or an engine describes.

    Raises:
        ConfigurationError: it is invalid or ambiguous.
    """
    if isinstance(url, AsyncEngine):
        return _engine_address(url.url)
    if not isinstance(url, str | os.PathLike):
        raise ConfigurationError(f"the database's address must be {_ADDRESS_FORMS}, or an AsyncEngine")
    text = os.fsdecode(url)
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme.replace("+", "").isalnum():
        _check_path(text)
        return _file_address(text)
    if _database_kind(scheme) == "sqlite":
        return _sqlite_address(rest)
    return _postgresql_address(rest)


def _database_kind(scheme: str) -> str:
    """Return the database that the scheme of a URL names; its driver needn't be the one that is used."""
    kind, _, driver = scheme.lower().partition("+")
    # A driver such as SQLCipher would encrypt the file, and isn't used here.
    if kind == "sqlite" and driver in {"", "pysqlite", "aiosqlite"}:
        return kind
    if kind in {"postgres", "postgresql"}:
        return "postgresql"
    raise ConfigurationError(f"the data is stored in SQLite or PostgreSQL, not in {scheme}")


def _check_path(text: str) -> None:
    if _LIBPQ_DSN.search(text):
        raise ConfigurationError(
            "the database's address is a connection string of libpq: write it as a URL, "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE; for a file of this name, use its "
            "absolute path"
        )
    if _SCHEME.match(text) or "://" in text:
        raise ConfigurationError(
            f"the database's address is neither a path nor a URL of a database: it must be {_ADDRESS_FORMS}; "
            "for a file whose name begins like a URL, use its absolute path"
        )


def _file_address(name: str, busy_timeout: float = _BUSY_TIMEOUT) -> Address:
    if name in {"", ":memory:"}:
        raise ConfigurationError("the data can't be stored in memory: pass the path of a file")
    try:
        path = os.path.realpath(name)
    except ValueError:  # NUL, or another character that isn't allowed in file names
        raise ConfigurationError("the database's address isn't a valid path") from None
    return Address("sqlite", URL.create("sqlite"), Path(path), busy_timeout)


def _sqlite_address(rest: str) -> Address:
    name, _, _ = rest.partition("?")
    query = _parse_url(f"sqlite://{rest}").query
    if name and not name.startswith("/"):
        raise ConfigurationError(
            "a URL of SQLite has three slashes before the path of the file: sqlite:///FILE"
        )
    # Only some releases of SQLAlchemy decode the path.
    name = os.fsdecode(unquote_to_bytes(os.fsencode(name[1:])))
    if name.startswith("file:"):
        raise ConfigurationError(
            f"the database's address must not contain a file: URI of SQLite; it must be {_ADDRESS_FORMS}"
        )
    unknown = sorted(set(query) - {"timeout"})
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} in the database's address isn't supported: for SQLite, timeout is the only option"
        )
    return _file_address(name, _parse_busy_timeout(query))


def _engine_address(url: URL) -> Address:
    # Of SQLite's URL, only the path and the timeout are used. `_set_up_sqlite` checks that the engine opens
    # the same file.
    kind = _database_kind(url.drivername)
    if kind == "postgresql":
        return Address(kind, url)
    name = url.database or ""
    if name.startswith("file:") or "uri" in url.query:
        raise ConfigurationError("the engine of SQLite needs the path of its file, not a file: URI")
    return _file_address(name, _parse_busy_timeout(url.query))


def _parse_busy_timeout(query: Mapping[str, Any]) -> float:
    try:
        seconds = float(query.get("timeout", _BUSY_TIMEOUT))
    except (TypeError, ValueError):  # TypeError: the option occurs more than once
        seconds = -1.0
    if not 0 <= seconds <= _MAX_BUSY_TIMEOUT:
        raise ConfigurationError(
            "timeout in the database's address must be one number of seconds, "
            f"from 0 to {_MAX_BUSY_TIMEOUT:.0f}"
        )
    return seconds


def _parse_url(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        pass
    raise ConfigurationError(
        f"the database's address is neither a path nor a URL of a database: it must be {_ADDRESS_FORMS}"
    )


def _postgresql_address(rest: str) -> Address:
    url = _parse_url(f"postgresql+psycopg://{rest}")
    host = unquote(url.host or "")  # as in libpq, for the folder of a socket
    if "\0" in unquote(rest):
        raise ConfigurationError("the database's address must not contain NUL")
    allowed_at_signs = 0 if url.username is None else 1
    if "@" in host or rest.partition("?")[0].count("@") > allowed_at_signs:
        # The error about an unknown host would otherwise quote a part of the password.
        raise ConfigurationError(
            "the database's address has more than one @, or a / in the user: in the user, the password and "
            "the database, write @ as %40 and / as %2F"
        )
    if url.port is not None:
        _check_port(url.port)
    components = {
        "host": host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    for name, value in url.query.items():
        if components.get(name) or (not isinstance(value, str) and name not in {"host", "port"}):
            raise ConfigurationError(f"{name} occurs twice in the database's address")
    return Address("postgresql", url.set(host=host))


@strip_traceback
def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a connection to PostgreSQL, by their names in libpq, without connecting.

    Raises:
        ConfigurationError: an argument is unknown, or its value is invalid.
    """
    for name in _INTEGERS:
        if not _is_integer(arguments[name], -_MAX_INTEGER, _MAX_INTEGER):
            raise ConfigurationError(f"{name} in the database's address must be an integer")
    for port in filter(None, str(arguments.get("port", "")).split(",")):
        _check_port(port)
    for name, is_valid in (("host", _is_server), ("hostaddr", _is_ip_address)):
        if not all(map(is_valid, filter(None, arguments.get(name, "").split(",")))):
            raise ConfigurationError(f"the {name} in the database's address is invalid")
    # libpq checks all other options itself, in the same way as at a real connection.
    problem = _libpq_error({**arguments, "host": "", "hostaddr": _INVALID_HOSTADDR, "port": ""})
    if problem is not None:
        raise ConfigurationError(f"the database's address is invalid: {problem}")


def _check_port(port: object) -> None:
    if not _is_integer(port, 1, _MAX_PORT):
        raise ConfigurationError("the port in the database's address must be a number from 1 to 65535")


def _is_integer(value: object, minimum: int, maximum: int) -> bool:
    try:
        return minimum <= int(str(value)) <= maximum
    except ValueError:
        return False


def _is_server(name: str) -> bool:
    return name.startswith("/") or is_host(name)  # libpq takes a path for the folder of a socket


def _is_ip_address(address: str) -> bool:
    try:
        return bool(ip_address(address))
    except ValueError:
        return False


def _libpq_error(arguments: Mapping[str, Any]) -> str | None:
    """Return libpq's error for arguments without a usable server address, or `None` if only that is wrong."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn

    try:
        probe = PGconn.connect(make_conninfo(**arguments).encode())
    except ProgrammingError as error:  # for example, an unknown option
        return str(error).strip()
    except ValueError:
        return "it isn't text"
    try:
        problem = probe.error_message.decode(errors="replace").strip()
    finally:
        probe.finish()
    return None if _INVALID_HOSTADDR in problem else problem


def create_file(path: Path) -> None:
    """Create the file of a database with mode 0600, or check the existing one.

    Raises:
        ConfigurationError: the file can't be used; the message says why.
        OSError: it can't be created.
    """
    with contextlib.suppress(FileExistsError):
        private_files.create_empty(path)
    check_files(path)


def check_files(path: Path) -> None:
    """Check the file of a database, and the files that SQLite creates beside it.

    Raises:
        ConfigurationError: other users may read or write one of them, or the database isn't a regular file,
            or has a hard link.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path}: the database must be a regular file")
    if status.st_nlink > 1:
        raise ConfigurationError(
            f"{path}: the file has another name (a hard link), under which SQLite would find neither its "
            "write-ahead log nor its locks; remove that name, or copy the file and use the copy"
        )
    # SQLite creates these files beside a database, and they contain its rows as well.
    files = [path, *(path.with_name(path.name + suffix) for suffix in _SIDE_FILES)]
    for each in files:
        if each.exists() and private_files.is_open_to_others(each.stat()):
            raise ConfigurationError(
                f"{each}: file permissions are too open, and secrets may be stored in it; chmod 600 first"
            )
